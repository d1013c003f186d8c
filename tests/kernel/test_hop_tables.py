"""What each style does to a packet, device by device: the hop tables of real Flannel and Calico clusters hold on what
tshark reads from a capture.

Expected values are written out, as measured on real ones; only MACs, which look random, are asked of the kernel.
Sources: flannel's pkg/backend/vxlan and hostgw, Calico's dataplane_linux.go and felix/rules/nat.go; RFC 7348.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.lab.lab import Lab
from tests.kernel.dissection import Bench, Row, addresses, same_table, wrapped

# three-nodes, but the router sends all pods' traffic to n1: for packets from outside.
TOPOLOGY = Path(__file__).parents[2] / "scenarios/connectivity/topologies/routed-pods.yaml"
REQUEST = "icmp.type == 8"
N1, N2, CLIENT = "192.168.50.11", "192.168.50.12", "203.0.113.10"
EE = "ee:ee:ee:ee:ee:ee"
PING = 98  # bytes of a frame: 14 Ethernet, 20 IPv4, 8 ICMP, 56 data
VXLAN = 50  # bytes: 14 inner Ethernet, 20 IPv4, 8 UDP, 8 VXLAN

NEEDED = {
    "flannel": ("vxlan", "bridge", "iptables", "tshark"),
    "flannel:host-gw": ("bridge", "iptables", "tshark"),
    "calico": ("iptables", "ipset", "bird", "tshark"),
}
ALL = [pytest.param(style, marks=pytest.mark.requires(*needed)) for style, needed in NEEDED.items()]
BRIDGED = ALL[:2]
UNWRAPPED = ALL[1:]
TUNNEL = ALL[:1]
ROUTED = ALL[2:]


_benches: dict[str, tuple[Lab, Bench]] = {}


@pytest.fixture(scope="module", autouse=True)
def _stop_labs() -> Iterator[None]:
    yield
    for lab, _ in _benches.values():
        lab.stop()
    _benches.clear()


@pytest.fixture
def bench(style: str, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The bench of a style, built once and shared by the tests of this file."""
    if style not in _benches:
        lab = Lab(TOPOLOGY, cni=style, wire_accurate=True)
        lab.__enter__()
        made = Bench(lab, tmp_path_factory.mktemp("captures"), REQUEST)
        _benches[style] = (lab, made)
        made.seen("n1-p1", "n2-p1")  # the first packet of all, so that this capture has the ARP
    return _benches[style][1]


# Pod to pod on another node


CROSS_NODE = {
    "flannel": [
        Row("default_n1-p1:eth0", "out", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:veth*", "in", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:cni0", "in", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:flannel.1", "out", ("n1:flannel.1 > n2:flannel.1",), (63,), PING),
        *(
            Row(hop, direction, ("n1:eth0 > n2:eth0", "n1:flannel.1 > n2:flannel.1"), (64, 63), PING + VXLAN)
            for hop, direction in (("n1:eth0", "out"), ("underlay:s1-n1", "in"), ("underlay:s1-n2", "out"),
                                   ("n2:eth0", "in"))
        ),
        Row("n2:flannel.1", "in", ("n1:flannel.1 > n2:flannel.1",), (63,), PING),
        Row("n2:cni0", "out", ("n2:cni0 > n2-p1:eth0",), (62,), PING),
        Row("n2:veth*", "out", ("n2:cni0 > n2-p1:eth0",), (62,), PING),
        Row("default_n2-p1:eth0", "in", ("n2:cni0 > n2-p1:eth0",), (62,), PING),
    ],
    "flannel:host-gw": [
        Row("default_n1-p1:eth0", "out", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:veth*", "in", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:cni0", "in", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:eth0", "out", ("n1:eth0 > n2:eth0",), (63,), PING),
        Row("underlay:s1-n1", "in", ("n1:eth0 > n2:eth0",), (63,), PING),
        Row("underlay:s1-n2", "out", ("n1:eth0 > n2:eth0",), (63,), PING),
        Row("n2:eth0", "in", ("n1:eth0 > n2:eth0",), (63,), PING),
        Row("n2:cni0", "out", ("n2:cni0 > n2-p1:eth0",), (62,), PING),
        Row("n2:veth*", "out", ("n2:cni0 > n2-p1:eth0",), (62,), PING),
        Row("default_n2-p1:eth0", "in", ("n2:cni0 > n2-p1:eth0",), (62,), PING),
    ],
    "calico": [
        Row("default_n1-p1:eth0", "out", (f"n1-p1:eth0 > {EE}",), (64,), PING),
        Row("n1:cali*", "in", (f"n1-p1:eth0 > {EE}",), (64,), PING),
        Row("n1:eth0", "out", ("n1:eth0 > n2:eth0",), (63,), PING),
        Row("underlay:s1-n1", "in", ("n1:eth0 > n2:eth0",), (63,), PING),
        Row("underlay:s1-n2", "out", ("n1:eth0 > n2:eth0",), (63,), PING),
        Row("n2:eth0", "in", ("n1:eth0 > n2:eth0",), (63,), PING),
        Row("n2:cali*", "out", (f"{EE} > n2-p1:eth0",), (62,), PING),
        Row("default_n2-p1:eth0", "in", (f"{EE} > n2-p1:eth0",), (62,), PING),
    ],
}  # fmt: skip


@pytest.mark.parametrize("style", ALL)
def test_a_packet_between_nodes_takes_these_hops(style: str, bench: Bench) -> None:
    same_table(bench.requests("n1-p1", "n2-p1"), CROSS_NODE[style], bench.macs)


@pytest.mark.parametrize("style", ALL)
def test_pods_see_each_others_own_addresses(style: str, bench: Bench) -> None:
    pods = {"calico": "10.244.0.0 > 10.244.0.64"}.get(style, "10.244.1.2 > 10.244.2.2")
    assert addresses(bench.requests("n1-p1", "n2-p1")) == [pods]


@pytest.mark.parametrize("style", TUNNEL)
def test_the_tunnel_is_flannels(style: str, bench: Bench) -> None:
    found = wrapped(bench.requests("n1-p1", "n2-p1"))
    assert len(found) == 4
    for each in found:
        assert each.addresses[0] == f"{N1} > {N2}"
        assert (each.vni, each.target_port) == ("1", 8472)
        assert each.ttl[0] == 64
        assert each.df[0] is False
        assert each.checksum != 0
        assert each.checksum_good
        assert 32768 <= each.source_port <= 60999  # net.ipv4.ip_local_port_range


@pytest.mark.parametrize("style", TUNNEL)
def test_packets_of_one_flow_leave_by_one_outer_port(style: str, bench: Bench) -> None:
    found = wrapped(bench.requests("n1-p1", "n2-p1", count=3))
    assert len(found) == 12
    assert len({each.source_port for each in found}) == 1


@pytest.mark.parametrize("style", UNWRAPPED)
def test_without_a_tunnel_the_wire_carries_pod_addresses(style: str, bench: Bench) -> None:
    found = bench.requests("n1-p1", "n2-p1")
    assert wrapped(found) == []
    assert {len(each.addresses) for each in found} == {1}


# Neighbours


@pytest.mark.parametrize("style", ROUTED)
def test_the_node_answers_arp_for_calicos_gateway(style: str, bench: Bench) -> None:
    tshark, _ = bench.seen("n1-p1", "n2-p1")
    asked = tshark.rows("arp.opcode == 1 && arp.dst.proto_ipv4 == 169.254.1.1", "frame.interface_name")
    assert ["default_n1-p1:eth0"] in asked
    answers = tshark.rows("arp.opcode == 2", "frame.interface_name", "arp.src.proto_ipv4", "arp.src.hw_mac")
    assert ["default_n1-p1:eth0", "169.254.1.1", EE] in answers


@pytest.mark.parametrize("style", BRIDGED)
def test_the_bridge_answers_arp_for_flannels_gateway(style: str, bench: Bench) -> None:
    tshark, _ = bench.seen("n1-p1", "n2-p1")
    answers = tshark.rows("arp.opcode == 2", "frame.interface_name", "arp.src.proto_ipv4", "arp.src.hw_mac")
    assert ["default_n1-p1:eth0", "10.244.1.1", bench.macs.of("n1:cni0")] in answers


@pytest.mark.parametrize("style", TUNNEL)
def test_no_arp_goes_through_the_tunnel(style: str, bench: Bench) -> None:
    """flanneld has written every neighbour and forwarding entry: nothing is asked and nothing flooded."""
    tshark, _ = bench.seen("n1-p1", "n2-p1")
    assert tshark.rows("vxlan", "frame.number")
    assert tshark.rows("arp", "frame.number")
    assert tshark.rows("vxlan && arp", "frame.number") == []
    assert tshark.rows('arp && frame.interface_name contains "flannel"', "frame.number") == []


# Same node


@pytest.mark.parametrize("style", BRIDGED)
def test_a_bridge_hands_the_frame_over_as_it_is(style: str, bench: Bench) -> None:
    macs = ("n1-p1:eth0 > n1-p2:eth0",)
    table = [
        Row("default_n1-p1:eth0", "out", macs, (64,), PING),
        Row("n1:veth*", "in", macs, (64,), PING),
        Row("n1:veth*", "out", macs, (64,), PING),
        Row("default_n1-p2:eth0", "in", macs, (64,), PING),
    ]
    same_table(bench.requests("n1-p1", "n1-p2"), table, bench.macs)


@pytest.mark.parametrize("style", ROUTED)
def test_calico_routes_between_pods_of_a_node(style: str, bench: Bench) -> None:
    table = [
        Row("default_n1-p1:eth0", "out", (f"n1-p1:eth0 > {EE}",), (64,), PING),
        Row("n1:cali*", "in", (f"n1-p1:eth0 > {EE}",), (64,), PING),
        Row("n1:cali*", "out", (f"{EE} > n1-p2:eth0",), (63,), PING),
        Row("default_n1-p2:eth0", "in", (f"{EE} > n1-p2:eth0",), (63,), PING),
    ]
    same_table(bench.requests("n1-p1", "n1-p2"), table, bench.macs)


# Pod to the outside


@pytest.mark.parametrize("style", ALL)
def test_the_outside_sees_the_nodes_address(style: str, bench: Bench) -> None:
    found = bench.requests("n1-p1", "client")
    pod = "10.244.0.0" if style == "calico" else "10.244.1.2"
    assert addresses(found) == [f"{pod} > {CLIENT}", f"{N1} > {CLIENT}"]
    by_hop = {(each.hop, each.direction): each for each in found}
    leaving, arriving = by_hop["n1:eth0", "out"], by_hop["client:eth0", "in"]
    assert (leaving.addresses, leaving.ttl, leaving.length) == ((f"{N1} > {CLIENT}",), (63,), PING)
    assert leaving.macs == (bench.macs.pair("n1:eth0 > tor:eth0"),)
    assert (arriving.addresses, arriving.ttl) == ((f"{N1} > {CLIENT}",), (62,))
    assert wrapped(found) == []


@pytest.mark.parametrize("style", ALL)
def test_the_answer_from_outside_reaches_the_pod_under_its_own_address(style: str, bench: Bench) -> None:
    tshark, _ = bench.seen("n1-p1", "client")
    replies = tshark.sightings("icmp.type == 0")
    pod = "10.244.0.0" if style == "calico" else "10.244.1.2"
    assert addresses(replies) == [f"{CLIENT} > {N1}", f"{CLIENT} > {pod}"]
    assert (replies[-1].hop, replies[-1].ttl) == ("default_n1-p1:eth0", (62,))


# Node to pod


@pytest.mark.parametrize(
    ("style", "source"),
    [
        pytest.param("flannel", "10.244.1.1", marks=ALL[0].marks),
        pytest.param("flannel:host-gw", "10.244.1.1", marks=ALL[1].marks),
        pytest.param("calico", N1, marks=ALL[2].marks),
    ],
)
def test_a_pod_sees_its_own_node_by_the_address_of_the_route(style: str, source: str, bench: Bench) -> None:
    found = bench.requests("n1", "n1-p1")
    assert {each.addresses[-1].split(" > ")[0] for each in found} == {source}
    assert (found[-1].hop, found[-1].ttl) == ("default_n1-p1:eth0", (64,))


@pytest.mark.parametrize(
    ("style", "source"),
    [
        pytest.param("flannel", "10.244.1.0", marks=ALL[0].marks),  # flannel.1's, a /32
        pytest.param("flannel:host-gw", N1, marks=ALL[1].marks),
        pytest.param("calico", N1, marks=ALL[2].marks),
    ],
)
def test_a_pod_sees_another_node_by_the_address_of_the_device_that_led_there(
    style: str, source: str, bench: Bench
) -> None:
    found = bench.requests("n1", "n2-p1")
    assert {each.addresses[-1].split(" > ")[0] for each in found} == {source}
    assert (found[-1].hop, found[-1].ttl) == ("default_n2-p1:eth0", (63,))
    assert bool(wrapped(found)) is (style == "flannel")


# From outside to a pod, by way of n1


@pytest.mark.parametrize("style", ALL)
def test_a_pod_on_the_node_that_was_asked_sees_the_client(style: str, bench: Bench) -> None:
    found = bench.requests("client", "n1-p1")
    assert {each.addresses[-1].split(" > ")[0] for each in found} == {CLIENT}
    assert (found[-1].hop, found[-1].ttl) == ("default_n1-p1:eth0", (62,))


@pytest.mark.parametrize(
    ("style", "source"),
    [
        pytest.param("flannel", "10.244.1.0", marks=ALL[0].marks),  # masqueraded to the address of flannel.1
        pytest.param("flannel:host-gw", N1, marks=ALL[1].marks),
        pytest.param("calico", CLIENT, marks=ALL[2].marks),
    ],
)
def test_a_pod_on_another_node_sees_what_the_style_makes_of_the_client(style: str, source: str, bench: Bench) -> None:
    found = bench.requests("client", "n2-p1")
    assert found[0].addresses[-1].startswith(f"{CLIENT} > ")
    assert found[-1].addresses[-1].startswith(f"{source} > ")
    assert (found[-1].hop, found[-1].ttl) == ("default_n2-p1:eth0", (61,))


# The largest packets


@pytest.mark.parametrize(
    ("style", "mtu", "payload"),
    [
        pytest.param("flannel", 1450, 1422, marks=ALL[0].marks),
        pytest.param("flannel:host-gw", 1500, 1472, marks=ALL[1].marks),
        pytest.param("calico", 1500, 1472, marks=ALL[2].marks),
    ],
)
def test_the_largest_ping_fills_the_wire_and_one_byte_more_stays_in_the_pod(
    style: str, mtu: int, payload: int, bench: Bench
) -> None:
    shown = bench.lab.run("n1-p1", "ip", "link", "show", "eth0").stdout
    assert f" mtu {mtu} " in shown
    largest = bench.requests("n1-p1", "n2-p1", size=payload, dont_fragment=True)
    assert {each.length for each in largest if each.hop in ("n1:eth0", "n2:eth0")} == {1514}
    tshark, answer = bench.seen("n1-p1", "n2-p1", size=payload + 1, dont_fragment=True)
    assert answer.result.verdict == "unreachable"
    assert tshark.sightings(REQUEST) == []
