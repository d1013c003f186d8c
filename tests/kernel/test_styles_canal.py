"""Canal in a real kernel: the hop table of docs/canal.md, read from captures by tshark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from tests.kernel.tshark_hops import ping_hops

pytestmark = pytest.mark.requires(*load_style("canal").requires, "tshark")
ROUTED_PODS = Path(__file__).parents[2] / "scenarios/connectivity/topologies/routed-pods.yaml"
HOST_END = "ee:ee:ee:ee:ee:ee"
WIRE = "n1:eth0|n1:flannel.1>n2:eth0|n2:flannel.1  udp 8472 vni 1  148 bytes"
NODES = "192.168.50.11|{}>192.168.50.12|10.244.2.2"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Its router sends the pod network to n1, so that a host outside reaches pods."""
    with Lab(ROUTED_PODS, cni="canal", wire_accurate=True) as started:
        yield started


def test_the_kernel_holds_what_was_planned(lab: Lab) -> None:
    assert lab.verify() == []


def test_pods_of_one_node_are_routed_to_each_other(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "n1-p2") == [
        f"n1-p1:eth0 out  10.244.1.2>10.244.1.3  ttl 64  n1-p1:eth0>{HOST_END}  98 bytes",
        f"n1:cali* in  10.244.1.2>10.244.1.3  ttl 64  n1-p1:eth0>{HOST_END}  98 bytes",
        f"n1:cali* out  10.244.1.2>10.244.1.3  ttl 63  {HOST_END}>n1-p2:eth0  98 bytes",
        f"n1-p2:eth0 in  10.244.1.2>10.244.1.3  ttl 63  {HOST_END}>n1-p2:eth0  98 bytes",
    ]


def test_pods_of_two_nodes_talk_through_flannels_tunnel(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "n2-p1") == [
        f"n1-p1:eth0 out  10.244.1.2>10.244.2.2  ttl 64  n1-p1:eth0>{HOST_END}  98 bytes",
        f"n1:cali* in  10.244.1.2>10.244.2.2  ttl 64  n1-p1:eth0>{HOST_END}  98 bytes",
        "n1:flannel.1 out  10.244.1.2>10.244.2.2  ttl 63  n1:flannel.1>n2:flannel.1  98 bytes",
        f"n1:eth0 out  {NODES.format('10.244.1.2')}  ttl 64|63  {WIRE}",
        f"n2:eth0 in  {NODES.format('10.244.1.2')}  ttl 64|63  {WIRE}",
        "n2:flannel.1 in  10.244.1.2>10.244.2.2  ttl 63  n1:flannel.1>n2:flannel.1  98 bytes",
        f"n2:cali* out  10.244.1.2>10.244.2.2  ttl 62  {HOST_END}>n2-p1:eth0  98 bytes",
        f"n2-p1:eth0 in  10.244.1.2>10.244.2.2  ttl 62  {HOST_END}>n2-p1:eth0  98 bytes",
    ]


def test_a_pod_is_seen_outside_as_its_node(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "client")[2:] == [
        "n1:eth0 out  192.168.50.11>203.0.113.10  ttl 63  n1:eth0>tor:eth0  98 bytes",
        "tor:eth0 in  192.168.50.11>203.0.113.10  ttl 63  n1:eth0>tor:eth0  98 bytes",
        "tor:eth1 out  192.168.50.11>203.0.113.10  ttl 62  tor:eth1>client:eth0  98 bytes",
        "client:eth0 in  192.168.50.11>203.0.113.10  ttl 62  tor:eth1>client:eth0  98 bytes",
    ]


def test_felix_masquerades_before_flannel(lab: Lab) -> None:
    request = lab.trace("n1-p1", "client").request
    assert request is not None
    (leaving,) = [hop for hop in request.hops if (hop.ns, hop.device, hop.direction) == ("node/n1", "eth0", "out")]
    assert leaving.reasons[0].component == "felix"
    assert "cali-nat-outgoing" in leaving.reasons[0].subject


def test_a_host_outside_is_seen_as_the_tunnel_that_it_came_through(lab: Lab) -> None:
    assert ping_hops(lab, "client", "n2-p1")[2:] == [
        "tor:eth0 out  203.0.113.10>10.244.2.2  ttl 63  tor:eth0>n1:eth0  98 bytes",
        "n1:eth0 in  203.0.113.10>10.244.2.2  ttl 63  tor:eth0>n1:eth0  98 bytes",
        "n1:flannel.1 out  10.244.1.0>10.244.2.2  ttl 62  n1:flannel.1>n2:flannel.1  98 bytes",
        f"n1:eth0 out  {NODES.format('10.244.1.0')}  ttl 64|62  {WIRE}",
        f"n2:eth0 in  {NODES.format('10.244.1.0')}  ttl 64|62  {WIRE}",
        "n2:flannel.1 in  10.244.1.0>10.244.2.2  ttl 62  n1:flannel.1>n2:flannel.1  98 bytes",
        f"n2:cali* out  10.244.1.0>10.244.2.2  ttl 61  {HOST_END}>n2-p1:eth0  98 bytes",
        f"n2-p1:eth0 in  10.244.1.0>10.244.2.2  ttl 61  {HOST_END}>n2-p1:eth0  98 bytes",
    ]


def test_a_node_talks_to_its_own_pod_from_its_own_address(lab: Lab) -> None:
    assert ping_hops(lab, "n1", "n1-p1") == [
        f"n1:cali* out  192.168.50.11>10.244.1.2  ttl 64  {HOST_END}>n1-p1:eth0  98 bytes",
        f"n1-p1:eth0 in  192.168.50.11>10.244.1.2  ttl 64  {HOST_END}>n1-p1:eth0  98 bytes",
    ]


def test_a_node_talks_to_another_nodes_pod_from_its_tunnels_address(lab: Lab) -> None:
    assert ping_hops(lab, "n1", "n2-p1") == [
        "n1:flannel.1 out  10.244.1.0>10.244.2.2  ttl 64  n1:flannel.1>n2:flannel.1  98 bytes",
        f"n1:eth0 out  {NODES.format('10.244.1.0')}  ttl 64|64  {WIRE}",
        f"n2:eth0 in  {NODES.format('10.244.1.0')}  ttl 64|64  {WIRE}",
        "n2:flannel.1 in  10.244.1.0>10.244.2.2  ttl 64  n1:flannel.1>n2:flannel.1  98 bytes",
        f"n2:cali* out  10.244.1.0>10.244.2.2  ttl 63  {HOST_END}>n2-p1:eth0  98 bytes",
        f"n2-p1:eth0 in  10.244.1.0>10.244.2.2  ttl 63  {HOST_END}>n2-p1:eth0  98 bytes",
    ]


def test_the_tunnel_reaches_over_routers() -> None:
    with Lab("racks", cni="canal") as lab:
        assert lab.verify() == []
        assert lab.probe("n1-p1", "n3-p1", 80).result.answered_by == "n3-p1"
