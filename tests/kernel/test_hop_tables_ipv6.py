"""The hop tables over IPv6: the hop limit counts as the TTL does, the tunnel costs 20 bytes more, and neighbour
discovery takes ARP's place. On a cluster with both families and on one without IPv4."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.lab.lab import Lab
from tests.kernel.dissection import Bench, Row, addresses, same_table, wrapped

REQUEST = "icmpv6.type == 128"
PING = 118  # bytes of a frame: 14 Ethernet, 40 IPv6, 8 ICMPv6, 56 data
VXLAN = 70  # bytes: 14 inner Ethernet, 40 IPv6, 8 UDP, 8 VXLAN
N1, N2, CLIENT = "fd00:192:168:50::11", "fd00:192:168:50::12", "2001:db8:113::10"
EE = "ee:ee:ee:ee:ee:ee"
GATEWAY = "fe80::ecee:eeff:feee:eeee"  # of Calico: ee:ee:ee:ee:ee:ee as an interface identifier (RFC 4291, appendix A)

NEEDED = {
    "flannel": ("vxlan", "bridge", "iptables", "tshark"),
    "flannel:host-gw": ("bridge", "iptables", "tshark"),
    "calico": ("iptables", "ipset", "bird", "tshark"),
}


def cases(*styles: str) -> list[object]:
    """Each style on both clusters; host-gw, a plain route either way, on one."""
    return [
        pytest.param(topology, style, marks=pytest.mark.requires("ipv6", *NEEDED[style]))
        for style in styles
        for topology in ("dual-stack", "ipv6")
        if (topology, style) != ("dual-stack", "flannel:host-gw")
    ]


ALL = cases("flannel", "flannel:host-gw", "calico")
TUNNEL = cases("flannel")
BRIDGED = cases("flannel", "flannel:host-gw")
ROUTED = cases("calico")

_benches: dict[tuple[str, str], tuple[Lab, Bench]] = {}


@pytest.fixture(scope="module", autouse=True)
def _stop_labs() -> Iterator[None]:
    yield
    for lab, _ in _benches.values():
        lab.stop()
    _benches.clear()


@pytest.fixture
def bench(topology: str, style: str, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    if (topology, style) not in _benches:
        lab = Lab(topology, cni=style, wire_accurate=True)
        lab.__enter__()
        made = Bench(lab, tmp_path_factory.mktemp("captures"), REQUEST, family=6)
        _benches[topology, style] = (lab, made)
        made.seen("n1-p1", "n2-p1")  # the first packet of all, so that this capture has the neighbour discovery
    return _benches[topology, style][1]


CROSS_NODE = {
    "flannel": [
        Row("default_n1-p1:eth0", "out", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:veth*", "in", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:cni0", "in", ("n1-p1:eth0 > n1:cni0",), (64,), PING),
        Row("n1:flannel-v6.1", "out", ("n1:flannel-v6.1 > n2:flannel-v6.1",), (63,), PING),
        *(
            Row(hop, direction, ("n1:eth0 > n2:eth0", "n1:flannel-v6.1 > n2:flannel-v6.1"), (64, 63), PING + VXLAN)
            for hop, direction in (("n1:eth0", "out"), ("underlay:s1-n1", "in"), ("underlay:s1-n2", "out"),
                                   ("n2:eth0", "in"))
        ),
        Row("n2:flannel-v6.1", "in", ("n1:flannel-v6.1 > n2:flannel-v6.1",), (63,), PING),
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


@pytest.mark.parametrize(("topology", "style"), ALL)
def test_a_packet_between_nodes_takes_these_hops(topology: str, style: str, bench: Bench) -> None:
    same_table(bench.requests("n1-p1", "n2-p1"), CROSS_NODE[style], bench.macs)


@pytest.mark.parametrize(("topology", "style"), TUNNEL)
def test_the_tunnel_goes_over_ipv6(topology: str, style: str, bench: Bench) -> None:
    found = wrapped(bench.requests("n1-p1", "n2-p1"))
    assert len(found) == 4
    for each in found:
        assert each.addresses == (f"{N1} > {N2}", "fd00:10:244:1::2 > fd00:10:244:2::2")
        assert (each.vni, each.target_port, each.ttl[0]) == ("1", 8472, 64)
        assert each.checksum_good  # over IPv6 it may not be left out (RFC 8200, 8.1)
        assert 32768 <= each.source_port <= 60999


@pytest.mark.parametrize(("topology", "style"), TUNNEL)
def test_no_neighbour_discovery_goes_through_the_tunnel(topology: str, style: str, bench: Bench) -> None:
    tshark, _ = bench.seen("n1-p1", "n2-p1")
    assert tshark.rows("vxlan", "frame.number")
    assert tshark.rows("vxlan && (icmpv6.type == 135 || icmpv6.type == 136)", "frame.number") == []


@pytest.mark.parametrize(("topology", "style"), ROUTED)
def test_the_node_answers_for_calicos_link_local_gateway(topology: str, style: str, bench: Bench) -> None:
    tshark, _ = bench.seen("n1-p1", "n2-p1")
    answers = tshark.rows(
        "icmpv6.type == 136", "frame.interface_name", "icmpv6.nd.na.target_address", "icmpv6.opt.linkaddr"
    )
    assert ["default_n1-p1:eth0", GATEWAY, EE] in answers


@pytest.mark.parametrize(("topology", "style"), BRIDGED)
def test_the_bridge_answers_for_flannels_gateway(topology: str, style: str, bench: Bench) -> None:
    tshark, _ = bench.seen("n1-p1", "n2-p1")
    answers = tshark.rows(
        "icmpv6.type == 136", "frame.interface_name", "icmpv6.nd.na.target_address", "icmpv6.opt.linkaddr"
    )
    assert ["default_n1-p1:eth0", "fd00:10:244:1::1", bench.macs.of("n1:cni0")] in answers


@pytest.mark.parametrize(("topology", "style"), BRIDGED)
def test_a_bridge_hands_the_frame_over_as_it_is(topology: str, style: str, bench: Bench) -> None:
    macs = ("n1-p1:eth0 > n1-p2:eth0",)
    table = [
        Row("default_n1-p1:eth0", "out", macs, (64,), PING),
        Row("n1:veth*", "in", macs, (64,), PING),
        Row("n1:veth*", "out", macs, (64,), PING),
        Row("default_n1-p2:eth0", "in", macs, (64,), PING),
    ]
    same_table(bench.requests("n1-p1", "n1-p2"), table, bench.macs)


@pytest.mark.parametrize(("topology", "style"), ROUTED)
def test_calico_routes_between_pods_of_a_node(topology: str, style: str, bench: Bench) -> None:
    table = [
        Row("default_n1-p1:eth0", "out", (f"n1-p1:eth0 > {EE}",), (64,), PING),
        Row("n1:cali*", "in", (f"n1-p1:eth0 > {EE}",), (64,), PING),
        Row("n1:cali*", "out", (f"{EE} > n1-p2:eth0",), (63,), PING),
        Row("default_n1-p2:eth0", "in", (f"{EE} > n1-p2:eth0",), (63,), PING),
    ]
    same_table(bench.requests("n1-p1", "n1-p2"), table, bench.macs)


@pytest.mark.parametrize(("topology", "style"), ALL)
def test_the_outside_sees_the_nodes_address(topology: str, style: str, bench: Bench) -> None:
    found = bench.requests("n1-p1", "client")
    pod = "fd00:10:244::" if style == "calico" else "fd00:10:244:1::2"
    assert addresses(found) == [f"{pod} > {CLIENT}", f"{N1} > {CLIENT}"]
    by_hop = {(each.hop, each.direction): each for each in found}
    assert by_hop["n1:eth0", "out"].ttl == (63,)
    assert by_hop["client:eth0", "in"].ttl == (62,)


@pytest.mark.parametrize(("topology", "style"), ALL)
def test_a_pod_sees_nodes_with_the_hop_limit_that_routing_leaves(topology: str, style: str, bench: Bench) -> None:
    local, remote = bench.requests("n1", "n1-p1"), bench.requests("n1", "n2-p1")
    assert (local[-1].hop, local[-1].ttl) == ("default_n1-p1:eth0", (64,))
    assert (remote[-1].hop, remote[-1].ttl) == ("default_n2-p1:eth0", (63,))
    sources = {each.addresses[-1].split(" > ")[0] for each in remote}
    assert sources == ({"fd00:10:244:1::"} if style == "flannel" else {N1})


@pytest.mark.parametrize(("topology", "style"), ALL)
def test_the_largest_ping_fills_the_wire_and_one_byte_more_stays_in_the_pod(
    topology: str, style: str, bench: Bench
) -> None:
    mtu, payload = (1430, 1382) if style == "flannel" else (1500, 1452)
    assert f" mtu {mtu} " in bench.lab.run("n1-p1", "ip", "link", "show", "eth0").stdout
    largest = bench.requests("n1-p1", "n2-p1", size=payload, dont_fragment=True)
    assert {each.length for each in largest if each.hop in ("n1:eth0", "n2:eth0")} == {1514}
    tshark, answer = bench.seen("n1-p1", "n2-p1", size=payload + 1, dont_fragment=True)
    assert answer.result.verdict == "unreachable"
    assert tshark.sightings(REQUEST) == []
