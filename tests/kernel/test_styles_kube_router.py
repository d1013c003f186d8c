"""kube-router in a real kernel: the hop table of docs/kube-router.md, read from captures by tshark; its peers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from emulator import Lab
from emulator.cluster.topology import parse_topology
from emulator.cni.kube_router import tunnel_device
from emulator.cni.styles import load_style
from emulator.errors import Unsupported
from emulator.kernel.capabilities import probe
from tests.kernel.tshark_hops import ping_hops
from tests.kernel.waiting import eventually

pytestmark = pytest.mark.requires(*load_style("kube-router").requires, "tshark")

PEERS = "annotations: {kube-router.io/peer.ips: 192.168.50.1, kube-router.io/peer.asns: '64513'}"
RACK = """\
name: rack
podCIDRs: [10.244.0.0/16]
pods: 2
switches:
  - {name: s1, cidrs: [192.168.50.0/24]}
  - {name: s2, cidrs: [203.0.113.0/24]}
nodes:
  - {name: n1, switch: s1, %s}
  - {name: n2, switch: s1, %s}
  - {name: n3, switch: s1, %s}
routers: [{name: tor, asn: 64513, switch: s1}]
hosts: [{name: client, switch: s2, addresses: [203.0.113.10]}]
links: [{from: tor, to: s2}]
"""
ROUTED = RACK % (PEERS, PEERS, PEERS)  # the router knows the pod networks by BGP
CLIENT = "annotations: {kube-router.io/rr.client: '42'}"
REFLECTED = RACK % ("annotations: {kube-router.io/rr.server: '42'}", CLIENT, CLIENT)


def racks(asns: tuple[int, int]) -> str:
    """Two racks, an AS each; nodes peer with their rack's router, and routers with the spine."""
    lines = []
    for number in range(1, 5):
        rack = (number + 1) // 2
        peer = f"kube-router.io/peer.ips: 192.168.5{rack}.1, kube-router.io/peer.asns: '6451{rack + 2}'"
        lines.append(f"  - {{name: n{number}, switch: r{rack}, asn: {asns[rack - 1]}, annotations: {{{peer}}}}}")
    return "\n".join(
        [
            "name: racks-bgp",
            "podCIDRs: [10.244.0.0/16]",
            "pods: 1",
            "switches:",
            "  - {name: r1, cidrs: [192.168.51.0/24]}",
            "  - {name: r2, cidrs: [192.168.52.0/24]}",
            "  - {name: s2, cidrs: [203.0.113.0/24]}",
            "nodes:",
            *lines,
            "routers:",
            "  - {name: tor1, asn: 64513, switch: r1}",
            "  - {name: tor2, asn: 64514, switch: r2}",
            "  - {name: spine, asn: 64515, switch: s2}",
            "hosts: [{name: client, switch: s2}]",
            "links:",
            "  - {from: spine, to: tor1, cidrs: [172.16.0.0/31]}",
            "  - {from: spine, to: tor2, cidrs: [172.16.0.2/31]}",
        ]
    )


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(parse_topology(ROUTED, "test"), cni="kube-router", wire_accurate=True) as started:
        yield started


def test_the_kernel_holds_what_was_planned(lab: Lab) -> None:
    assert lab.verify() == []


@pytest.mark.parametrize("topology", ["dual-stack", "ipv6"])
def test_ipv6_is_as_planned_too(topology: str) -> None:
    with Lab(topology, cni="kube-router", wire_accurate=True) as lab:
        assert lab.verify() == []
        assert ping_hops(lab, "n1-p1", "n2-p1", family=6)[3:5] == [
            "n1:eth0 out  fd00:10:244:1::2>fd00:10:244:2::2  ttl 63  n1:eth0>n2:eth0  118 bytes",
            "n2:eth0 in  fd00:10:244:1::2>fd00:10:244:2::2  ttl 63  n1:eth0>n2:eth0  118 bytes",
        ]
        assert lab.probe("n1-p1", "client", 80).result.answered_by == "client"


def test_pods_of_one_node_talk_over_the_bridge(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "n1-p2") == [
        "n1-p1:eth0 out  10.244.1.2>10.244.1.3  ttl 64  n1-p1:eth0>n1-p2:eth0  98 bytes",
        "n1:veth* in  10.244.1.2>10.244.1.3  ttl 64  n1-p1:eth0>n1-p2:eth0  98 bytes",
        "n1:veth* out  10.244.1.2>10.244.1.3  ttl 64  n1-p1:eth0>n1-p2:eth0  98 bytes",
        "n1-p2:eth0 in  10.244.1.2>10.244.1.3  ttl 64  n1-p1:eth0>n1-p2:eth0  98 bytes",
    ]


def test_pods_of_two_nodes_of_a_subnet_talk_without_encapsulation(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "n2-p1") == [
        "n1-p1:eth0 out  10.244.1.2>10.244.2.2  ttl 64  n1-p1:eth0>n1:kube-bridge  98 bytes",
        "n1:veth* in  10.244.1.2>10.244.2.2  ttl 64  n1-p1:eth0>n1:kube-bridge  98 bytes",
        "n1:kube-bridge in  10.244.1.2>10.244.2.2  ttl 64  n1-p1:eth0>n1:kube-bridge  98 bytes",
        "n1:eth0 out  10.244.1.2>10.244.2.2  ttl 63  n1:eth0>n2:eth0  98 bytes",
        "n2:eth0 in  10.244.1.2>10.244.2.2  ttl 63  n1:eth0>n2:eth0  98 bytes",
        "n2:kube-bridge out  10.244.1.2>10.244.2.2  ttl 62  n2:kube-bridge>n2-p1:eth0  98 bytes",
        "n2:veth* out  10.244.1.2>10.244.2.2  ttl 62  n2:kube-bridge>n2-p1:eth0  98 bytes",
        "n2-p1:eth0 in  10.244.1.2>10.244.2.2  ttl 62  n2:kube-bridge>n2-p1:eth0  98 bytes",
    ]


def test_a_pod_is_seen_outside_as_its_node_and_by_nodes_as_itself(lab: Lab) -> None:
    assert ping_hops(lab, "n1-p1", "client")[3:] == [
        "n1:eth0 out  192.168.50.11>203.0.113.10  ttl 63  n1:eth0>tor:eth0  98 bytes",
        "tor:eth0 in  192.168.50.11>203.0.113.10  ttl 63  n1:eth0>tor:eth0  98 bytes",
        "tor:eth1 out  192.168.50.11>203.0.113.10  ttl 62  tor:eth1>client:eth0  98 bytes",
        "client:eth0 in  192.168.50.11>203.0.113.10  ttl 62  tor:eth1>client:eth0  98 bytes",
    ]
    assert ping_hops(lab, "n1-p1", "n2")[-1] == (
        "n2:eth0 in  10.244.1.2>192.168.50.12  ttl 63  n1:eth0>n2:eth0  98 bytes"
    )


def test_a_host_outside_reaches_a_pod_straight_by_its_node(lab: Lab) -> None:
    """The router has learnt each podCIDR from its own node: nothing passes a node that it is not for."""
    assert ping_hops(lab, "client", "n2-p1") == [
        "client:eth0 out  203.0.113.10>10.244.2.2  ttl 64  client:eth0>tor:eth1  98 bytes",
        "tor:eth1 in  203.0.113.10>10.244.2.2  ttl 64  client:eth0>tor:eth1  98 bytes",
        "tor:eth0 out  203.0.113.10>10.244.2.2  ttl 63  tor:eth0>n2:eth0  98 bytes",
        "n2:eth0 in  203.0.113.10>10.244.2.2  ttl 63  tor:eth0>n2:eth0  98 bytes",
        "n2:kube-bridge out  203.0.113.10>10.244.2.2  ttl 62  n2:kube-bridge>n2-p1:eth0  98 bytes",
        "n2:veth* out  203.0.113.10>10.244.2.2  ttl 62  n2:kube-bridge>n2-p1:eth0  98 bytes",
        "n2-p1:eth0 in  203.0.113.10>10.244.2.2  ttl 62  n2:kube-bridge>n2-p1:eth0  98 bytes",
    ]


def test_a_node_talks_to_its_own_pod_from_the_bridge_and_to_others_from_its_address(lab: Lab) -> None:
    assert ping_hops(lab, "n1", "n1-p1")[-1] == (
        "n1-p1:eth0 in  10.244.1.1>10.244.1.2  ttl 64  n1:kube-bridge>n1-p1:eth0  98 bytes"
    )
    assert ping_hops(lab, "n1", "n2-p1")[-1] == (
        "n2-p1:eth0 in  192.168.50.11>10.244.2.2  ttl 63  n2:kube-bridge>n2-p1:eth0  98 bytes"
    )


def test_a_node_whose_bgp_dies_is_forgotten_and_learnt_again(lab: Lab) -> None:
    """Without graceful restart, as kube-router runs by default: the routes go with the session, and no others."""
    lab.fault("daemon-kill", "n2", daemon="bird")
    eventually(lambda: "10.244.2.0/24" not in routes(lab, "n1") and "10.244.2.0/24" not in routes(lab, "tor"))
    assert "10.244.3.0/24" in routes(lab, "n1")
    lab.fault("daemon-start", "n2", daemon="bird")
    eventually(lambda: lab.verify() == [])
    assert lab.probe("client", "n2-p1", 80).result.answered_by == "n2-p1"


def test_clients_learn_each_others_networks_from_a_reflector() -> None:
    with Lab(parse_topology(REFLECTED, "test"), cni="kube-router") as lab:
        assert lab.verify() == []
        assert lab.probe("n2-p1", "n3-p1", 80).result.answered_by == "n3-p1"
        # The reflector is no hop: the next hop that it passes on is the client's own.
        assert "10.244.3.0/24 via 192.168.50.13" in routes(lab, "n2")
        lab.fault("daemon-kill", "n1", daemon="bird")
        eventually(lambda: not re.search(r"10\.244\.[13]\.0/24", routes(lab, "n2")))


def test_racks_with_an_as_each_need_no_overlay() -> None:
    with Lab(parse_topology(racks((64601, 64602)), "test"), cni="kube-router", wire_accurate=True) as lab:
        assert lab.verify() == []
        assert [line.split("  ")[0] + line.split("ttl")[1][:3] for line in ping_hops(lab, "n1-p1", "n3-p1")[3:-2]] == [
            "n1:eth0 out 63",
            "tor1:eth0 in 63",
            "tor1:eth1 out 62",
            "spine:eth1 in 62",
            "spine:eth2 out 61",
            "tor2:eth1 in 61",
            "tor2:eth0 out 60",
            "n3:eth0 in 60",
            "n3:kube-bridge out 59",
        ]
        assert lab.probe("client", "n4-p1", 80).result.source_seen.startswith("203.0.113.")


def test_one_as_in_both_racks_leaves_the_rest_to_the_routers_without_an_overlay() -> None:
    """Nodes hear of each other by iBGP and write no route to a next hop in another subnet: their default route does."""
    with Lab(parse_topology(racks((64512, 64512)), "test"), cni="kube-router:no-overlay") as lab:
        assert lab.verify() == []
        assert "10.244.3.0/24" not in routes(lab, "n1")
        assert lab.probe("n1-p1", "n3-p1", 80).result.source_seen.startswith("10.244.1.2:")


@pytest.mark.skipif(probe(("ipip",))["ipip"].usable, reason="this kernel has ipip")
@pytest.mark.parametrize("style", ["kube-router", "kube-router:full"])
def test_without_ipip_a_tunnel_is_refused_by_name(style: str) -> None:
    with pytest.raises(Unsupported, match="lacks ipip"), Lab("racks", cni=style):
        pass


@pytest.mark.real_kernel
@pytest.mark.requires("ipip")
def test_nodes_of_other_subnets_are_reached_through_a_tunnel() -> None:
    with Lab("racks", cni="kube-router", wire_accurate=True) as lab:
        assert lab.verify() == []
        near, far = (lab.cluster().node(name).addresses[0] for name in ("n1", "n3"))
        tunnel = tunnel_device(far)
        assert f"10.244.3.0/24 dev {tunnel} proto bird scope link src {near}" in routes(lab, "n1")
        assert f"{near} dev {tunnel_device(near)}" in lab.run("n3", "ip", "route", "show", "table", "77").stdout
        wire = f"{near}|10.244.1.2>{far}|10.244.3.2"
        assert [line for line in ping_hops(lab, "n1-p1", "n3-p1") if "|" in line and not line.startswith("spine")] == [
            f"n1:eth0 out  {wire}  ttl 63|63  n1:eth0>tor1:eth0  118 bytes",
            f"tor1:eth0 in  {wire}  ttl 63|63  n1:eth0>tor1:eth0  118 bytes",
            f"tor1:eth1 out  {wire}  ttl 62|63  tor1:eth1>spine:eth1  118 bytes",
            f"tor2:eth1 in  {wire}  ttl 61|63  spine:eth2>tor2:eth1  118 bytes",
            f"tor2:eth0 out  {wire}  ttl 60|63  tor2:eth0>n3:eth0  118 bytes",
            f"n3:eth0 in  {wire}  ttl 60|63  tor2:eth0>n3:eth0  118 bytes",
        ]
        request = lab.trace("n1-p1", "n3-p1").request
        assert request is not None
        assert [(hop.device, hop.packet.ttl) for hop in request.hops if hop.device.startswith("tun-")] == [
            (tunnel, 63),
            (tunnel_device(near), 63),
        ]
        assert request.hops[-1].packet.ttl == 62
        # Table 77: what a pod sends to the node itself goes into the tunnel too.
        to_node = lab.trace("n1-p1", "n3").request
        assert to_node is not None
        assert tunnel in [hop.device for hop in to_node.hops]


def routes(lab: Lab, place: str) -> str:
    return "\n".join(" ".join(line.split()) for line in lab.run(place, "ip", "route").stdout.splitlines())
