"""The AWS VPC CNI in a real kernel: the hop tables of docs/aws-vpc.md, read from captures by tshark, and what the VPC
refuses to carry. NodePorts are rules made by hand here; kube-proxy is not part of this."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from emulator.errors import AddressesExhausted
from emulator.plan.model import Veth
from tests.kernel.tshark_hops import ping_hops

pytestmark = pytest.mark.requires(*load_style("aws-vpc").requires, "tshark")

SMALL = Path(__file__).parents[2] / "scenarios/aws/topologies/small-instances.yaml"
A, NEIGHBOUR, B, ON_ETH1 = "192.168.50.14", "192.168.50.15", "192.168.50.17", "192.168.50.30"
N1, CLIENT = "192.168.50.11", "203.0.113.10"
NODE_PORT = 30080


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Five pods on each t3.small: the fourth has an address of eth1."""
    with Lab(SMALL, cni="aws-vpc", wire_accurate=True) as started:
        yield started


def test_the_kernel_holds_what_was_planned(lab: Lab) -> None:
    assert lab.verify() == []


def test_pods_of_one_node_are_routed_to_each_other(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "n1-p2") == [
        f"n1-p1:eth0 out  {A}>{NEIGHBOUR}  ttl 64  n1-p1:eth0>n1:eni*  98 bytes",
        f"n1:eni* in  {A}>{NEIGHBOUR}  ttl 64  n1-p1:eth0>n1:eni*  98 bytes",
        f"n1:eni* out  {A}>{NEIGHBOUR}  ttl 63  n1:eni*>n1-p2:eth0  98 bytes",
        f"n1-p2:eth0 in  {A}>{NEIGHBOUR}  ttl 63  n1:eni*>n1-p2:eth0  98 bytes",
    ]


def test_the_vpc_carries_pods_addresses_as_they_are_and_is_no_hop(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "n2-p1") == [
        f"n1-p1:eth0 out  {A}>{B}  ttl 64  n1-p1:eth0>n1:eni*  98 bytes",
        f"n1:eni* in  {A}>{B}  ttl 64  n1-p1:eth0>n1:eni*  98 bytes",
        f"n1:eth0 out  {A}>{B}  ttl 63  n1:eth0>vpc:n1-eth0  98 bytes",
        f"vpc:n1-eth0 in  {A}>{B}  ttl 63  n1:eth0>vpc:n1-eth0  98 bytes",
        f"vpc:n2-eth0 out  {A}>{B}  ttl 63  vpc:n2-eth0>n2:eth0  98 bytes",
        f"n2:eth0 in  {A}>{B}  ttl 63  vpc:n2-eth0>n2:eth0  98 bytes",
        f"n2:eni* out  {A}>{B}  ttl 62  n2:eni*>n2-p1:eth0  98 bytes",
        f"n2-p1:eth0 in  {A}>{B}  ttl 62  n2:eni*>n2-p1:eth0  98 bytes",
    ]


def test_a_pod_of_the_second_interface_leaves_by_it_with_its_mac(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p4", "n2-p1")[2:5] == [
        f"n1:eth1 out  {ON_ETH1}>{B}  ttl 63  n1:eth1>vpc:n1-eth1  98 bytes",
        f"vpc:n1-eth1 in  {ON_ETH1}>{B}  ttl 63  n1:eth1>vpc:n1-eth1  98 bytes",
        f"vpc:n2-eth0 out  {ON_ETH1}>{B}  ttl 63  vpc:n2-eth0>n2:eth0  98 bytes",
    ]


def test_out_of_the_vpc_it_leaves_by_the_first_with_the_nodes_address(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p4", "client")[2:] == [
        f"n1:eth0 out  {N1}>{CLIENT}  ttl 63  n1:eth0>vpc:n1-eth0  98 bytes",
        f"vpc:n1-eth0 in  {N1}>{CLIENT}  ttl 63  n1:eth0>vpc:n1-eth0  98 bytes",
        f"vpc:tor-eth0 out  {N1}>{CLIENT}  ttl 63  vpc:tor-eth0>tor:eth0  98 bytes",
        f"tor:eth0 in  {N1}>{CLIENT}  ttl 63  vpc:tor-eth0>tor:eth0  98 bytes",
        f"tor:eth1 out  {N1}>{CLIENT}  ttl 62  tor:eth1>client:eth0  98 bytes",
        f"client:eth0 in  {N1}>{CLIENT}  ttl 62  tor:eth1>client:eth0  98 bytes",
    ]


def test_every_packet_of_a_connection_out_of_the_vpc_takes_the_same_way(lab: Lab) -> None:
    with lab.capture("n1") as capture:
        assert lab.probe("n1-p4", "client", 80).result.answered_by == "client"
    ways = {hop.device for way in capture.journeys() for hop in way.hops if hop.packet.target == CLIENT}
    assert "eth0" in ways
    assert "eth1" not in ways


def test_with_external_snat_it_keeps_its_address_and_its_interface() -> None:
    with Lab(SMALL, cni="aws-vpc:external-snat", wire_accurate=True) as lab:
        assert lab.verify() == []
        assert ping_hops(lab, "n1-p4", "client")[2:] == [
            f"n1:eth1 out  {ON_ETH1}>{CLIENT}  ttl 63  n1:eth1>vpc:n1-eth1  98 bytes",
            f"vpc:n1-eth1 in  {ON_ETH1}>{CLIENT}  ttl 63  n1:eth1>vpc:n1-eth1  98 bytes",
            f"vpc:tor-eth0 out  {ON_ETH1}>{CLIENT}  ttl 63  vpc:tor-eth0>tor:eth0  98 bytes",
            f"tor:eth0 in  {ON_ETH1}>{CLIENT}  ttl 63  vpc:tor-eth0>tor:eth0  98 bytes",
            f"tor:eth1 out  {ON_ETH1}>{CLIENT}  ttl 62  tor:eth1>client:eth0  98 bytes",
            f"client:eth0 in  {ON_ETH1}>{CLIENT}  ttl 62  tor:eth1>client:eth0  98 bytes",
        ]


def test_a_host_outside_reaches_a_pod_by_the_pods_own_interface(lab: Lab) -> None:
    assert ping_hops(lab, "client", "n1-p4")[3:] == [
        f"vpc:tor-eth0 in  {CLIENT}>{ON_ETH1}  ttl 63  tor:eth0>vpc:tor-eth0  98 bytes",
        f"vpc:n1-eth1 out  {CLIENT}>{ON_ETH1}  ttl 63  vpc:n1-eth1>n1:eth1  98 bytes",
        f"n1:eth1 in  {CLIENT}>{ON_ETH1}  ttl 63  vpc:n1-eth1>n1:eth1  98 bytes",
        f"n1:eni* out  {CLIENT}>{ON_ETH1}  ttl 62  n1:eni*>n1-p4:eth0  98 bytes",
        f"n1-p4:eth0 in  {CLIENT}>{ON_ETH1}  ttl 62  n1:eni*>n1-p4:eth0  98 bytes",
    ]


def test_a_node_talks_to_pods_with_its_own_address(lab: Lab) -> None:
    assert ping_hops(lab, "n1", "n1-p1") == [
        f"n1:eni* out  {N1}>{A}  ttl 64  n1:eni*>n1-p1:eth0  98 bytes",
        f"n1-p1:eth0 in  {N1}>{A}  ttl 64  n1:eni*>n1-p1:eth0  98 bytes",
    ]
    assert ping_hops(lab, "n1", "n2-p1")[-1] == f"n2-p1:eth0 in  {N1}>{B}  ttl 63  n2:eni*>n2-p1:eth0  98 bytes"


def test_a_private_subnet_reaches_the_internet_by_nat_and_internet_gateway() -> None:
    with Lab("vpc", cni="aws-vpc", wire_accurate=True) as lab:
        assert lab.verify() == []
        assert ping_hops(lab, "n1-p4", "client")[2:] == [
            f"n1:eth0 out  10.0.16.11>{CLIENT}  ttl 63  n1:eth0>vpc:n1-eth0  98 bytes",
            f"vpc:n1-eth0 in  10.0.16.11>{CLIENT}  ttl 63  n1:eth0>vpc:n1-eth0  98 bytes",
            f"vpc:nat-a-eth0 out  10.0.16.11>{CLIENT}  ttl 63  vpc:nat-a-eth0>nat-a:eth0  98 bytes",
            f"nat-a:eth0 in  10.0.16.11>{CLIENT}  ttl 63  vpc:nat-a-eth0>nat-a:eth0  98 bytes",
            f"nat-a:eth0 out  10.0.0.4>{CLIENT}  ttl 62  nat-a:eth0>vpc:nat-a-eth0  98 bytes",
            f"vpc:nat-a-eth0 in  10.0.0.4>{CLIENT}  ttl 62  nat-a:eth0>vpc:nat-a-eth0  98 bytes",
            f"vpc:igw-eth0 out  10.0.0.4>{CLIENT}  ttl 62  vpc:igw-eth0>igw:eth0  98 bytes",
            f"igw:eth0 in  10.0.0.4>{CLIENT}  ttl 62  vpc:igw-eth0>igw:eth0  98 bytes",
            f"igw:eth1 out  198.51.100.11>{CLIENT}  ttl 62  igw:eth1>isp:eth0  98 bytes",
            f"isp:eth0 in  198.51.100.11>{CLIENT}  ttl 62  igw:eth1>isp:eth0  98 bytes",
            f"isp:eth3 out  198.51.100.11>{CLIENT}  ttl 61  isp:eth3>client:eth0  98 bytes",
            f"client:eth0 in  198.51.100.11>{CLIENT}  ttl 61  isp:eth3>client:eth0  98 bytes",
        ]
        assert lab.probe("client", "198.51.100.10", 80).result.answered_by == "bastion"
        assert lab.probe("client", "n1-p1", 80).result.verdict != "delivered"  # nobody routes to private addresses


def test_prefixes_carry_pods_too() -> None:
    with Lab("three-nodes", cni="aws-vpc:prefix") as lab:
        assert lab.verify() == []
        assert lab.probe("n1-p1", "n2-p3", 80).result.answered_by == "n2-p3"
        assert lab.probe("n1-p1", "client", 80).result.answered_by == "client"


def test_racks_are_subnets_of_one_vpc_and_each_leaves_by_its_own_router() -> None:
    with Lab("racks", cni="aws-vpc") as lab:
        assert lab.verify() == []
        assert lab.probe("n1-p1", "n3-p1", 80).result.answered_by == "n3-p1"
        for node, router in (("n1", "tor1"), ("n3", "tor2")):
            request = lab.trace(f"{node}-p1", "client").request
            assert request is not None
            assert f"router/{router}" in {hop.ns for hop in request.hops}


def test_interfaces_come_and_go_with_the_pods() -> None:
    def web(replicas: int) -> dict[str, Any]:
        template = {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "web", "image": "web", "ports": [{"containerPort": 80}]}],
            },
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
        return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"}, "spec": spec}

    def interfaces(lab: Lab) -> set[str]:
        plan = lab.plan()
        return {item.name for item in plan if isinstance(item, Veth) and item.peer_ns == "router/vpc"}

    with Lab("three-nodes", cni="aws-vpc") as lab:
        lab.apply(web(10))
        assert interfaces(lab) == {"eth0", "eth1", "eth2"}
        assert lab.verify() == []
        assert lab.probe("n2-p1", "web-9", 80).result.answered_by == "web-9"
        lab.apply(web(0))
        assert interfaces(lab) == {"eth0", "eth1"}
        assert lab.verify() == []
        with pytest.raises(AddressesExhausted, match=r"m5\.large takes 3 network interfaces"):
            lab.apply(web(25))
        assert lab.verify() == []


# What the VPC does not carry


def test_frames_of_9001_bytes_fit_within_the_vpc(lab: Lab) -> None:
    assert lab.probe("n1-p1", "n2-p1", size=9001 - 28, dont_fragment=True).result.verdict == "delivered"


def test_out_of_the_vpc_1500_is_all_that_fits(lab: Lab) -> None:
    result = lab.probe("n1-p5", "client", size=1473, dont_fragment=True).result
    assert (result.verdict, result.mtu, result.reporter) == ("unreachable", 1500, "192.168.50.1")


def test_the_source_check_drops_what_is_not_an_address_of_the_interface(lab: Lab) -> None:
    with lab.capture() as capture:
        lab.send("n1", f'IP(src="198.18.0.1", dst="{B}")/ICMP(id=7, seq=1)')
    (way,) = [each for each in capture.journeys() if each.hops[0].packet.source == "198.18.0.1"]
    assert (way.hops[-1].ns, way.hops[-1].device) == ("router/vpc", "n1-eth0")
    assert "VPC-SOURCE-CHECK" in way.verdict
    assert "source check: not an address of eth0 of n1" in way.verdict


def test_an_address_of_the_nodes_other_interface_is_foreign_too(lab: Lab) -> None:
    """Two interfaces of one instance do not stand in for each other: so there are rules 1024 and 1536."""
    with lab.capture() as capture:
        lab.send("n1", f'IP(src="{ON_ETH1}", dst="{B}", id=8)/ICMP(id=8, seq=8)')
    (way,) = [each for each in capture.journeys() if each.hops[0].packet.source == ON_ETH1]
    assert (way.hops[-1].ns, way.hops[-1].device) == ("router/vpc", "n1-eth0")
    assert "source check: not an address of eth0 of n1" in way.verdict


def test_an_address_that_nobody_has_gets_no_answer(lab: Lab) -> None:
    with lab.capture("vpc") as capture:
        result = lab.probe("n1-p1", "192.168.50.250").result
    assert result.verdict != "delivered"
    assert not [hop for way in capture.journeys() for hop in way.hops if hop.device == "tor-eth0"]


# NodePorts, made by hand: a DNAT rule stands for kube-proxy


def node_port(lab: Lab) -> None:
    """Requests to the node's port go to the pod whose address is of the second interface."""
    rule = ["-p", "tcp", "-d", N1, "--dport", str(NODE_PORT), "-j", "DNAT", "--to-destination", f"{ON_ETH1}:80"]
    assert lab.exec("n1", ["iptables", "-t", "nat", "-I", "PREROUTING", *rule]) == 0


def answer_leaves_by(lab: Lab) -> set[str]:
    """The interfaces of n1 that the pod's SYN-ACK leaves by."""
    with lab.capture("n1") as capture:
        lab.probe("client", N1, NODE_PORT, timeout=0.5)
    hops = [hop for way in capture.journeys() for hop in way.hops]
    return {
        hop.device
        for hop in hops
        if hop.direction == "out" and hop.packet.target == CLIENT and hop.device.startswith("eth")
    }


def test_a_node_port_is_answered_by_the_interface_that_was_asked() -> None:
    with Lab(SMALL, cni="aws-vpc") as lab:
        node_port(lab)
        assert lab.probe("client", N1, NODE_PORT).result.answered_by == "n1-p4"
        assert answer_leaves_by(lab) == {"eth0"}


def test_without_the_marks_the_answer_leaves_by_the_wrong_interface_and_the_vpc_drops_it() -> None:
    with Lab(SMALL, cni="aws-vpc:no-connmark") as lab:
        node_port(lab)
        assert lab.probe("client", N1, NODE_PORT, timeout=0.5).result.verdict != "delivered"
        assert answer_leaves_by(lab) == {"eth1"}
        assert lab.probe("client", "n1-p4", 80).result.answered_by == "n1-p4"  # the pod itself is well


def test_with_a_strict_filter_the_request_does_not_even_reach_the_pod() -> None:
    with Lab(SMALL, cni="aws-vpc:no-connmark") as lab:
        node_port(lab)
        assert lab.exec("n1", ["sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=1"]) == 0
        with lab.capture("n1", "n1-p4") as capture:
            assert lab.probe("client", N1, NODE_PORT, timeout=0.5).result.verdict != "delivered"
        seen = {hop.ns for way in capture.journeys() for hop in way.hops if hop.packet.source == CLIENT}
        assert seen == {"node/n1"}
