from __future__ import annotations

from emulator.capture.model import Direction, Hop, Journey, Packet, Reason, Tunnel
from emulator.compare.path import path_of

PACKET = Packet(
    source_mac="aa:aa:aa:aa:aa:aa",
    target_mac="bb:bb:bb:bb:bb:bb",
    length=98,
    protocol="icmp",
    version=4,
    source="10.244.1.2",
    target="10.244.2.2",
    ttl=64,
)


def tunnel(ttl: int = 64, vni: int = 1) -> Tunnel:
    return Tunnel(kind="vxlan", source="192.0.2.1", target="192.0.2.2", ttl=ttl, overhead=50, vni=vni, target_port=8472)


def seen(
    ns: str,
    device: str,
    direction: Direction = "in",
    *,
    ttl: int = 64,
    outer: Tunnel | None = None,
    source: str = "10.244.1.2",
    reasons: tuple[Reason, ...] = (),
) -> Hop:
    packet = Packet(
        source_mac=PACKET.source_mac,
        target_mac=PACKET.target_mac,
        length=98,
        protocol="icmp",
        version=4,
        source=source,
        target="10.244.2.2",
        ttl=ttl,
        tunnel=outer,
    )
    return Hop(0, 0, ns, device, direction, packet, (), reasons)


def way(*hops: Hop) -> Journey:
    return Journey(
        1,
        tuple(
            Hop(n, n * 1_000, h.ns, h.device, h.direction, h.packet, h.changes, h.reasons) for n, h in enumerate(hops)
        ),
    )


def test_every_sighting_is_one_traversal() -> None:
    path = path_of(way(seen("pod/d/a", "eth0", "out"), seen("node/n1", "veth1"), seen("node/n1", "veth1", "out")))
    assert path.traversals == 3
    assert path.per_namespace == (("pod/d/a", 1), ("node/n1", 2))


def test_the_way_keeps_a_namespace_that_is_entered_twice() -> None:
    path = path_of(
        way(seen("node/n1", "eth0"), seen("underlay", "s1"), seen("underlay", "s2"), seen("node/n1", "eth0"))
    )
    assert path.namespaces == ("node/n1", "underlay", "node/n1")


def test_routed_hops_are_what_the_ttl_lost() -> None:
    path = path_of(way(seen("a", "x", ttl=64), seen("b", "x", ttl=63), seen("c", "x", ttl=63), seen("d", "x", ttl=62)))
    assert (path.routed, path.first_ttl, path.last_ttl) == (2, 64, 62)


def test_routers_under_a_tunnel_are_counted_apart() -> None:
    path = path_of(
        way(seen("a", "x", outer=tunnel(64)), seen("b", "x", outer=tunnel(63)), seen("c", "x", outer=tunnel(62)))
    )
    assert (path.routed, path.outer_routed) == (0, 2)


def test_a_tunnel_seen_on_many_devices_is_one_encapsulation() -> None:
    path = path_of(
        way(
            seen("a", "v"),
            seen("a", "e", outer=tunnel()),
            seen("s", "p", outer=tunnel(63)),
            seen("b", "e", outer=tunnel(63)),
            seen("b", "v"),
        )
    )
    assert len(path.encapsulations) == 1
    assert path.encapsulation_bytes == 50


def test_a_packet_that_is_encapsulated_again_pays_twice() -> None:
    path = path_of(way(seen("a", "e", outer=tunnel()), seen("b", "v"), seen("b", "e", outer=tunnel(vni=2))))
    assert path.encapsulation_bytes == 100


def test_the_receiver_sees_the_rewritten_source() -> None:
    path = path_of(way(seen("pod/d/a", "eth0"), seen("host/c", "eth0", source="192.0.2.1")))
    assert (path.source_sent, path.source_seen) == ("10.244.1.2", "192.0.2.1")


def test_routes_of_pods_do_not_explain_the_way_between_nodes() -> None:
    default = Reason("route 0.0.0.0/0 via 10.244.1.1 dev eth0", "bridge", "")
    learned = Reason("route 10.244.2.0/26 via 192.0.2.2 dev eth0", "bird", "by BGP")
    fdb = Reason("fdb aa:aa:aa:aa:aa:aa dst 192.0.2.2", "flanneld", "")
    path = path_of(
        way(seen("pod/d/a", "eth0", reasons=(default,)), seen("node/n1", "eth0", reasons=(fdb, learned, learned)))
    )
    assert [(route.ns, route.reason.component) for route in path.routes] == [("node/n1", "bird")]


def test_a_connected_route_is_told_by_its_address() -> None:
    connected = Reason("address 10.244.2.1/24 dev cni0", "bridge plugin", "the pods' gateway")
    path = path_of(way(seen("node/n2", "cni0", "out", reasons=(connected,))))
    assert [route.reason.component for route in path.routes] == ["bridge plugin"]


def test_time_is_from_the_first_hop_to_the_last() -> None:
    assert path_of(way(seen("a", "x"), seen("b", "x"), seen("c", "x"))).elapsed == 2.0
