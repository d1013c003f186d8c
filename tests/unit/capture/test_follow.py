"""Sightings to journeys: what belongs together, what does not, and what changed on the way."""

from __future__ import annotations

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, LLC, Dot3, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layer

from emulator.capture.follow import follow
from emulator.capture.model import Direction, Event, Journey

MS = 1_000_000
L2 = Ether(src="0a:00:00:00:00:01", dst="0a:00:00:00:00:02")


def at(time: int, place: str, direction: Direction, layers: Layer) -> Event:
    ns, _, device = place.rpartition(":")
    frame = bytes(layers)
    return Event(time, ns, device, direction, frame, len(frame))


def udp(ttl: int = 64, ident: int = 7, data: bytes = b"nonce", source: str = "10.244.1.2", port: int = 4000) -> Layer:
    return L2 / IP(src=source, dst="10.244.2.2", ttl=ttl, id=ident) / UDP(sport=port, dport=80) / data


def walk(packet: Layer, start: int = 0) -> list[Event]:
    routed = packet.copy()
    routed[1].ttl -= 1
    return [
        at(start, "pod/default/a:eth0", "out", packet),
        at(start + 10, "node/n1:veth1", "in", packet),
        at(start + 20, "node/n1:eth0", "out", routed),
    ]


def places(journey: Journey) -> list[str]:
    return [f"{hop.ns}:{hop.device}" for hop in journey.hops]


def fields(journey: Journey, hop: int) -> dict[str, tuple[str, str]]:
    return {change.field: (change.before, change.after) for change in journey.hops[hop].changes}


def test_a_packet_keeps_its_identity_through_routing_and_encapsulation() -> None:
    inner = udp(ttl=63)
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    outer = ether / IP(src="192.168.0.1", dst="192.168.0.2") / UDP(sport=5, dport=8472) / VXLAN(vni=1, flags=8) / inner
    events = [*walk(udp())[:2], at(30, "node/n1:flannel.1", "out", inner), at(40, "node/n1:eth0", "out", outer)]
    (journey,) = follow(events).journeys
    assert places(journey) == ["pod/default/a:eth0", "node/n1:veth1", "node/n1:flannel.1", "node/n1:eth0"]
    assert fields(journey, 2) == {"ttl": ("64", "63")}
    assert fields(journey, 3)["tunnel"] == ("", "vxlan 192.168.0.1 → 192.168.0.2 vni 1")
    assert int(fields(journey, 3)["length"][1]) - int(fields(journey, 3)["length"][0]) == 50
    assert [hop.elapsed for hop in journey.hops] == [0, 10, 30, 40]


def test_a_packet_keeps_its_identity_through_source_nat() -> None:
    events = walk(udp())
    events[2] = at(20, "node/n1:eth0", "out", udp(ttl=63, source="192.168.0.1", port=61000))
    (journey,) = follow(events).journeys
    assert fields(journey, 2)["source"] == ("10.244.1.2", "192.168.0.1")
    assert fields(journey, 2)["source_port"] == ("4000", "61000")


def test_an_echo_keeps_its_identity_when_nat_changes_its_identifier() -> None:
    one = L2 / IP(src="10.0.0.1", ttl=64, id=3) / ICMP(id=10, seq=1) / b"data"
    two = L2 / IP(src="10.9.9.9", ttl=63, id=3) / ICMP(id=999, seq=1) / b"data"
    (journey,) = follow([at(0, "n:a", "out", one), at(5, "m:b", "out", two)]).journeys
    assert fields(journey, 1)["icmp_id"] == ("10", "999")


def test_events_are_taken_in_order_of_time_not_of_the_file() -> None:
    (journey,) = follow(reversed(walk(udp()))).journeys
    assert places(journey) == ["pod/default/a:eth0", "node/n1:veth1", "node/n1:eth0"]


def test_at_one_instant_what_goes_out_comes_first() -> None:
    packet = udp()
    (journey,) = follow([at(5, "node/n1:veth1", "in", packet), at(5, "pod/default/a:eth0", "out", packet)]).journeys
    assert journey.hops[0].direction == "out"


def test_different_payloads_with_identification_zero_are_different_packets() -> None:
    events = walk(udp(ident=0, data=b"one")) + walk(udp(ident=0, data=b"two"), start=5)
    assert [len(journey.hops) for journey in follow(events).journeys] == [3, 3]


def test_payloads_tell_packets_apart_that_overtake_each_other() -> None:
    one, two = udp(ident=0, data=b"one"), udp(ident=0, data=b"two")
    sent = [at(0, "n:a", "out", one), at(5, "n:a", "out", two)]
    arrived = [at(10, "m:b", "in", two), at(30, "m:b", "in", one)]
    assert [[hop.time for hop in each.hops] for each in follow(sent + arrived).journeys] == [[0, 30], [5, 10]]


def test_a_retransmission_is_another_packet() -> None:
    segment = L2 / IP(src="10.0.0.1", id=1) / TCP(sport=1, dport=2, seq=9) / b"x"
    again = L2 / IP(src="10.0.0.1", id=2) / TCP(sport=1, dport=2, seq=9) / b"x"
    journeys = follow(walk(segment) + walk(again, start=200 * MS)).journeys
    assert [len(journey.hops) for journey in journeys] == [3, 3]


def test_an_equal_packet_from_the_origin_begins_a_new_journey() -> None:
    journeys = follow(walk(udp(ident=0)) + walk(udp(ident=0), start=200 * MS)).journeys
    assert [journey.hops[0].time for journey in journeys] == [0, 200 * MS]
    assert [len(journey.hops) for journey in journeys] == [3, 3]


def test_the_hops_behind_a_loss_belong_to_the_retransmission() -> None:
    lost, again = walk(udp(ident=0))[:2], walk(udp(ident=0), start=300 * MS)
    assert [len(journey.hops) for journey in follow(lost + again).journeys] == [2, 3]


def test_equal_packets_in_flight_at_once_do_not_overtake_each_other() -> None:
    first, second = walk(udp(ident=0)), walk(udp(ident=0), start=5)
    journeys = follow(first + second).journeys
    assert [[hop.time for hop in journey.hops] for journey in journeys] == [[0, 10, 20], [5, 15, 25]]


def test_a_slow_link_does_not_cut_a_journey() -> None:
    events = walk(udp())
    events[2] = at(900 * MS, "node/n1:eth0", "out", udp(ttl=63))
    assert len(follow(events).journeys) == 1
    assert len(follow(events, stall=100 * MS).journeys) == 2


def test_a_ttl_never_rises_on_the_way() -> None:
    journeys = follow([at(0, "n:a", "out", udp(ttl=5)), at(1, "m:b", "out", udp(ttl=64))]).journeys
    assert len(journeys) == 2


def test_an_echoed_datagram_is_another_packet() -> None:
    """On one bridge no TTL tells them apart, and both may carry identification 0."""
    there = udp(ident=0)
    back = L2 / IP(src="10.244.2.2", dst="10.244.1.2", ttl=64, id=0) / UDP(sport=80, dport=4000) / b"nonce"
    events = [
        at(0, "pod/default/a:eth0", "out", there),
        at(1, "pod/default/b:eth0", "in", there),
        at(2, "pod/default/b:eth0", "out", back),
        at(3, "pod/default/a:eth0", "in", back),
    ]
    assert [len(journey.hops) for journey in follow(events).journeys] == [2, 2]


def test_arp_and_neighbour_discovery_are_kept_apart() -> None:
    events = [
        at(0, "n:a", "out", L2 / ARP(pdst="10.0.0.9")),
        at(1, "m:b", "in", L2 / ARP(pdst="10.0.0.9")),
        at(2, "n:a", "out", L2 / IPv6() / ICMPv6ND_NS(tgt="fd00::1")),
    ]
    journeys = follow(events).journeys
    assert [(journey.kind, len(journey.hops)) for journey in journeys] == [("neighbour", 2), ("neighbour", 1)]


def test_equal_group_reports_of_two_machines_are_two_packets() -> None:
    """The same group, identification 0: nothing but the address tells them apart."""
    report = b"\x22\x00" + bytes(14)
    one, two = (
        L2 / IP(src=source, dst="224.0.0.22", id=0, ttl=1, proto=2) / report for source in ("10.1.0.1", "10.2.0.1")
    )
    journeys = follow([at(0, "n1:cni0", "out", one), at(5, "n2:cni0", "out", two), at(9, "a:eth0", "in", one)]).journeys
    assert [(journey.kind, len(journey.hops)) for journey in journeys] == [("neighbour", 2), ("neighbour", 1)]


def test_an_icmp_error_points_at_the_packet_that_it_quotes() -> None:
    probe = udp(ident=1234)
    error = L2 / IP(src="10.244.1.1", dst="10.244.1.2") / ICMP(type=11) / probe[IP].copy()
    followed = follow([*walk(probe), at(1 * MS, "node/n1:veth1", "out", error)])
    about, of = followed.journeys
    assert (of.kind, of.about) == ("error", about.id)


def test_an_icmp_error_is_one_journey_although_nat_rewrites_what_it_quotes() -> None:
    one = (
        L2
        / IP(src="9.9.9.9", dst="192.168.0.1", id=5)
        / ICMP(type=3, code=3)
        / IP(src="192.168.0.1", id=77)
        / UDP(sport=61000)
    )
    two = (
        L2
        / IP(src="9.9.9.9", dst="10.244.1.2", id=5, ttl=63)
        / ICMP(type=3, code=3)
        / IP(src="10.244.1.2", id=77)
        / UDP(sport=4000)
    )
    assert len(follow([at(0, "h:a", "out", one), at(1, "n:b", "out", two)]).journeys) == 1


def test_fragments_are_packets_of_their_own_that_name_their_datagram() -> None:
    pieces = [
        L2 / IP(id=5, flags="MF") / UDP(sport=1, dport=2) / bytes(16),
        L2 / IP(id=5, frag=3, proto=17) / bytes(8),
    ]
    events = [event for number, piece in enumerate(pieces) for event in walk(piece, start=number)]
    first, second = follow(events).journeys
    assert [len(first.hops), len(second.hops)] == [3, 3]
    assert (first.kind, first.about, second.about) == ("fragment", first.id, first.id)


def test_what_is_no_packet_or_came_from_nowhere_is_uncorrelated() -> None:
    spanning_tree = at(0, "n:a", "out", Dot3(src="02:00:00:00:00:01", dst="01:80:c2:00:00:00") / LLC())
    stray = at(1, "n:a", "in", udp())
    assert follow([spanning_tree, stray]).uncorrelated == [spanning_tree, stray]
    assert follow([stray], complete=False).uncorrelated == []


def test_journeys_are_numbered_from_where_the_caller_says() -> None:
    assert [journey.id for journey in follow(walk(udp()), first_id=41).journeys] == [41]
