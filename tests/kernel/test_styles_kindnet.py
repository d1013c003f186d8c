"""kindnet in a real kernel: the hop table of docs/kindnet.md, read from captures by tshark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from tests.kernel.tshark_hops import ping_hops

pytestmark = pytest.mark.requires(*load_style("kindnet").requires, "tshark")
ROUTED_PODS = Path(__file__).parents[2] / "scenarios/connectivity/topologies/routed-pods.yaml"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Its router sends the pod network to n1, so that a host outside reaches pods."""
    with Lab(ROUTED_PODS, cni="kindnet", wire_accurate=True) as started:
        yield started


@pytest.fixture(scope="module")
def dual_stack() -> Iterator[Lab]:
    with Lab("dual-stack", cni="kindnet", wire_accurate=True) as started:
        yield started


def test_the_kernel_holds_what_was_planned(lab: Lab, dual_stack: Lab) -> None:
    assert lab.verify() == []
    assert dual_stack.verify() == []


def test_ipv6_alone_is_as_planned_too() -> None:
    with Lab("ipv6", cni="kindnet") as lab:
        assert lab.verify() == []
        assert lab.probe("n1-p1", "n2-p1", 80).result.answered_by == "n2-p1"


def test_pods_of_one_node_are_routed_to_each_other(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "n1-p2") == [
        "n1-p1:eth0 out  10.244.1.2>10.244.1.3  ttl 64  n1-p1:eth0>n1:veth*  98 bytes",
        "n1:veth* in  10.244.1.2>10.244.1.3  ttl 64  n1-p1:eth0>n1:veth*  98 bytes",
        "n1:veth* out  10.244.1.2>10.244.1.3  ttl 63  n1:veth*>n1-p2:eth0  98 bytes",
        "n1-p2:eth0 in  10.244.1.2>10.244.1.3  ttl 63  n1:veth*>n1-p2:eth0  98 bytes",
    ]


def test_pods_of_two_nodes_talk_without_encapsulation(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "n2-p1") == [
        "n1-p1:eth0 out  10.244.1.2>10.244.2.2  ttl 64  n1-p1:eth0>n1:veth*  98 bytes",
        "n1:veth* in  10.244.1.2>10.244.2.2  ttl 64  n1-p1:eth0>n1:veth*  98 bytes",
        "n1:eth0 out  10.244.1.2>10.244.2.2  ttl 63  n1:eth0>n2:eth0  98 bytes",
        "n2:eth0 in  10.244.1.2>10.244.2.2  ttl 63  n1:eth0>n2:eth0  98 bytes",
        "n2:veth* out  10.244.1.2>10.244.2.2  ttl 62  n2:veth*>n2-p1:eth0  98 bytes",
        "n2-p1:eth0 in  10.244.1.2>10.244.2.2  ttl 62  n2:veth*>n2-p1:eth0  98 bytes",
    ]


def test_a_pod_is_seen_outside_as_its_node(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "client") == [
        "n1-p1:eth0 out  10.244.1.2>203.0.113.10  ttl 64  n1-p1:eth0>n1:veth*  98 bytes",
        "n1:veth* in  10.244.1.2>203.0.113.10  ttl 64  n1-p1:eth0>n1:veth*  98 bytes",
        "n1:eth0 out  192.168.50.11>203.0.113.10  ttl 63  n1:eth0>tor:eth0  98 bytes",
        "tor:eth0 in  192.168.50.11>203.0.113.10  ttl 63  n1:eth0>tor:eth0  98 bytes",
        "tor:eth1 out  192.168.50.11>203.0.113.10  ttl 62  tor:eth1>client:eth0  98 bytes",
        "client:eth0 in  192.168.50.11>203.0.113.10  ttl 62  tor:eth1>client:eth0  98 bytes",
    ]


def test_a_host_outside_is_seen_as_itself_on_any_node(lab: Lab) -> None:
    assert ping_hops(lab, "client", "n2-p1") == [
        "client:eth0 out  203.0.113.10>10.244.2.2  ttl 64  client:eth0>tor:eth1  98 bytes",
        "tor:eth1 in  203.0.113.10>10.244.2.2  ttl 64  client:eth0>tor:eth1  98 bytes",
        "tor:eth0 out  203.0.113.10>10.244.2.2  ttl 63  tor:eth0>n1:eth0  98 bytes",
        "n1:eth0 in  203.0.113.10>10.244.2.2  ttl 63  tor:eth0>n1:eth0  98 bytes",
        "n1:eth0 out  203.0.113.10>10.244.2.2  ttl 62  n1:eth0>n2:eth0  98 bytes",
        "n2:eth0 in  203.0.113.10>10.244.2.2  ttl 62  n1:eth0>n2:eth0  98 bytes",
        "n2:veth* out  203.0.113.10>10.244.2.2  ttl 61  n2:veth*>n2-p1:eth0  98 bytes",
        "n2-p1:eth0 in  203.0.113.10>10.244.2.2  ttl 61  n2:veth*>n2-p1:eth0  98 bytes",
    ]


def test_a_node_talks_to_its_own_pod_from_the_gateways_address(lab: Lab) -> None:
    assert ping_hops(lab, "n1", "n1-p1") == [
        "n1:veth* out  10.244.1.1>10.244.1.2  ttl 64  n1:veth*>n1-p1:eth0  98 bytes",
        "n1-p1:eth0 in  10.244.1.1>10.244.1.2  ttl 64  n1:veth*>n1-p1:eth0  98 bytes",
    ]


def test_a_node_talks_to_another_nodes_pod_from_its_own_address(lab: Lab) -> None:
    assert ping_hops(lab, "n1", "n2-p1") == [
        "n1:eth0 out  192.168.50.11>10.244.2.2  ttl 64  n1:eth0>n2:eth0  98 bytes",
        "n2:eth0 in  192.168.50.11>10.244.2.2  ttl 64  n1:eth0>n2:eth0  98 bytes",
        "n2:veth* out  192.168.50.11>10.244.2.2  ttl 63  n2:veth*>n2-p1:eth0  98 bytes",
        "n2-p1:eth0 in  192.168.50.11>10.244.2.2  ttl 63  n2:veth*>n2-p1:eth0  98 bytes",
    ]


def test_ipv6_takes_the_same_way_and_leaves_masqueraded(dual_stack: Lab) -> None:
    near, far = "fd00:10:244:1::2", "fd00:10:244:2::2"
    assert ping_hops(dual_stack, "n1-p1", "n2-p1", family=6)[2:4] == [
        f"n1:eth0 out  {near}>{far}  ttl 63  n1:eth0>n2:eth0  118 bytes",
        f"n2:eth0 in  {near}>{far}  ttl 63  n1:eth0>n2:eth0  118 bytes",
    ]
    assert ping_hops(dual_stack, "n1-p1", "client", family=6)[-1] == (
        "client:eth0 in  fd00:192:168:50::11>2001:db8:113::10  ttl 62  tor:eth1>client:eth0  118 bytes"
    )


def test_the_trace_names_the_table_that_masqueraded(lab: Lab) -> None:
    request = lab.trace("n1-p1", "client").request
    assert request is not None
    (leaving,) = [hop for hop in request.hops if (hop.ns, hop.device, hop.direction) == ("node/n1", "eth0", "out")]
    assert "nftables table inet kindnet-ipmasq" in [reason.subject for reason in leaving.reasons]


def test_a_pod_has_no_route_to_its_subnet_but_by_the_gateway(lab: Lab) -> None:
    routes = lab.run("n1-p1", "ip", "-4", "route").stdout.split("\n")
    assert [" ".join(line.split()) for line in routes if line] == [
        "default via 10.244.1.1 dev eth0",
        "10.244.1.0/24 via 10.244.1.1 dev eth0 src 10.244.1.2",
        "10.244.1.1 dev eth0 scope link src 10.244.1.2",
    ]
