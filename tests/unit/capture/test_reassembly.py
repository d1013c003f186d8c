"""Datagrams that nodes put together from fragments and cut again: one journey for the datagram, whatever its form."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layer

from emulator.capture.follow import Followed, follow
from emulator.capture.model import Direction, Event, Journey

L2 = Ether(src="0a:00:00:00:00:01", dst="0a:00:00:00:00:02")
DATA = bytes(range(256)) * 8
POD, NODE, TARGET = "10.244.1.2", "192.168.50.11", "203.0.113.10"


class Trip:
    """Sightings, ten nanoseconds apart."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def see(self, place: str, direction: Direction, *layers: Layer) -> Trip:
        ns, _, device = place.rpartition(":")
        for each in layers:
            frame = bytes(each)
            self.events.append(Event(len(self.events) * 10, ns, device, direction, frame, len(frame)))
        return self

    def followed(self) -> Followed:
        return follow(self.events)


def ping(*, ttl: int = 64, source: str = POD, target: str = TARGET, ident: int = 7, echo: int = 10) -> Layer:
    return L2 / IP(src=source, dst=target, id=ident, ttl=ttl) / ICMP(id=echo, seq=1) / DATA[:1400]


def pieces(packet: Layer, size: int = 1376) -> list[Layer]:
    return [L2 / each for each in fragment(packet[IP], fragsize=size)]


def ping6(*, label: int = 5, ttl: int = 64, echo: int = 10) -> Layer:
    return L2 / IPv6(src="fd00::2", dst="fd01::2", fl=label, hlim=ttl) / ICMPv6EchoRequest(id=echo, seq=1, data=DATA)


def pieces6(packet: Layer, ident: int, size: int = 1400) -> list[Layer]:
    header = packet[IPv6]
    plain = (
        IPv6(src=header.src, dst=header.dst, fl=header.fl, hlim=header.hlim)
        / IPv6ExtHdrFragment(id=ident)
        / header.payload
    )
    return [L2 / each for each in fragment6(plain, size)]


def places(journey: Journey) -> list[str]:
    return [f"{hop.ns}:{hop.device}" for hop in journey.hops]


def masqueraded() -> Trip:
    """The pod sends fragments, its node sends the datagram whole, the router cuts it again."""
    trip = Trip()
    for place, direction in (("pod:eth0", "out"), ("n1:veth1", "in")):
        trip.see(place, direction, *pieces(ping()))  # type: ignore[arg-type]
    trip.see("n1:cni0", "in", ping())
    out = ping(ttl=63, source=NODE, echo=999)
    trip.see("n1:eth0", "out", out).see("tor:eth0", "in", out)
    again = pieces(ping(ttl=62, source=NODE, echo=999))
    return trip.see("tor:eth1", "out", *again).see("client:eth0", "in", *again)


def test_the_whole_datagram_belongs_to_the_journey_of_its_first_fragment() -> None:
    lead, second, recut = masqueraded().followed().journeys
    assert places(lead) == [
        "pod:eth0",
        "n1:veth1",
        "n1:cni0",
        "n1:eth0",
        "tor:eth0",
        "tor:eth1",
        "client:eth0",
    ]
    assert places(second) == ["pod:eth0", "n1:veth1"]
    assert places(recut) == ["tor:eth1", "client:eth0"]
    assert [each.about for each in (lead, second, recut)] == [lead.id] * 3
    assert {each.kind for each in (lead, second, recut)} == {"fragment"}


def test_nothing_of_a_reassembled_datagram_is_uncorrelated() -> None:
    assert masqueraded().followed().uncorrelated == []


def test_reassembly_and_cutting_are_changes() -> None:
    lead = masqueraded().followed().journeys[0]
    changed = [{each.field for each in hop.changes} for hop in lead.hops]
    assert [number for number, fields in enumerate(changed) if "more_fragments" in fields] == [2, 5]
    assert {"source", "icmp_id", "ttl"} <= changed[3]


def test_a_whole_packet_that_no_fragments_came_for_is_not_taken_for_theirs() -> None:
    """Equal to the letter but for one byte of its payload."""
    trip = Trip().see("pod:eth0", "out", *pieces(ping())).see("n1:veth1", "in", *pieces(ping()))
    other = ping()
    other[ICMP].remove_payload()
    trip.see("n1:cni0", "in", other / (b"!" + DATA[1:1400]))
    followed = trip.followed()
    assert len(followed.uncorrelated) == 1


def test_a_datagram_is_whole_only_where_all_its_fragments_came_in() -> None:
    first, second = pieces(ping())
    elsewhere = Trip().see("pod:eth0", "out", first, second).see("n2:veth1", "in", first, second)
    assert len(elsewhere.see("n1:cni0", "in", ping()).followed().uncorrelated) == 1
    missing = Trip().see("pod:eth0", "out", first, second).see("n1:veth1", "in", first)
    assert len(missing.see("n1:cni0", "in", ping()).followed().uncorrelated) == 1


def test_fragments_that_came_by_two_ways_are_put_together_nowhere() -> None:
    first, second = pieces(ping())
    trip = Trip().see("pod:eth0", "out", first, second).see("n1:veth1", "in", first).see("n2:veth1", "in", second)
    assert len(trip.see("n2:cni0", "in", ping()).followed().uncorrelated) == 1


def test_fragments_may_come_in_any_order() -> None:
    trip = Trip().see("pod:eth0", "out", *pieces(ping())).see("n1:veth1", "in", *reversed(pieces(ping())))
    followed = trip.see("n1:cni0", "in", ping()).followed()
    assert [len(each.hops) for each in followed.journeys] == [3, 2]


def test_the_same_pieces_go_on_when_the_node_that_put_them_together_cuts_again() -> None:
    """Flannel, pod to pod: whole on the bridge, the same pieces into the tunnel."""
    trip = Trip().see("pod:eth0", "out", *pieces(ping())).see("n1:veth1", "in", *pieces(ping()))
    trip.see("n1:cni0", "in", ping()).see("n1:flannel.1", "out", *pieces(ping(ttl=63)))
    lead, second = trip.followed().journeys
    assert places(lead) == ["pod:eth0", "n1:veth1", "n1:cni0", "n1:flannel.1"]
    assert places(second) == ["pod:eth0", "n1:veth1", "n1:flannel.1"]


def test_pieces_cut_at_other_places_name_the_datagram() -> None:
    trip = Trip().see("pod:eth0", "out", *pieces(ping())).see("n1:veth1", "in", *pieces(ping()))
    trip.see("n1:eth0", "out", *pieces(ping(ttl=63, source=NODE), 800))
    lead, second, other = trip.followed().journeys
    assert places(lead) == ["pod:eth0", "n1:veth1", "n1:eth0"]
    assert (places(second), places(other)) == (["pod:eth0", "n1:veth1"], ["n1:eth0"])
    assert other.about == lead.id


def test_a_packet_that_a_router_cuts_goes_on_in_its_first_piece() -> None:
    trip = Trip().see("pod:eth0", "out", ping()).see("tor:eth0", "in", ping())
    trip.see("tor:eth1", "out", *pieces(ping(ttl=63))).see("client:eth0", "in", *pieces(ping(ttl=63)))
    lead, second = trip.followed().journeys
    assert places(lead) == ["pod:eth0", "tor:eth0", "tor:eth1", "client:eth0"]
    assert places(second) == ["tor:eth1", "client:eth0"]
    assert (lead.kind, lead.about, second.kind, second.about) == ("packet", 0, "fragment", lead.id)


def test_fragments_of_one_flow_are_not_mixed_up() -> None:
    trip = Trip()
    for ident in (7, 8):
        trip.see("pod:eth0", "out", *pieces(ping(ident=ident))).see("n1:veth1", "in", *pieces(ping(ident=ident)))
    trip.see("n1:eth0", "out", ping(ident=8, ttl=63), ping(ident=7, ttl=63))
    journeys = trip.followed().journeys
    assert [(each.hops[0].packet.ip_id, len(each.hops)) for each in journeys] == [(7, 3), (7, 2), (8, 3), (8, 2)]


def test_ipv6_datagrams_are_told_apart_by_what_they_hold() -> None:
    """New identifications, the same flow label, the same places to cut: only the content says which is which."""
    trip = Trip()
    for number in (1, 2):
        one = ping6()
        one[ICMPv6EchoRequest].data = bytes([number]) + DATA
        trip.see("pod:eth0", "out", *pieces6(one, number)).see("n1:veth1", "in", *pieces6(one, number))
    for number in (2, 1):
        one = ping6(ttl=63)
        one[ICMPv6EchoRequest].data = bytes([number]) + DATA
        trip.see("n1:eth0", "out", *pieces6(one, 90 + number))
    journeys = trip.followed().journeys
    assert [len(each.hops) for each in journeys] == [3, 3, 3, 3]
    leads = [each for each in journeys if not each.hops[0].packet.fragment_offset]
    assert [{hop.packet.digest for hop in each.hops} for each in leads] == [
        {each.hops[0].packet.digest} for each in leads
    ]


def test_ipv4_datagrams_that_hold_the_same_are_told_apart_by_their_identification() -> None:
    trip = Trip()
    for ident in (7, 8):
        trip.see("pod:eth0", "out", *pieces(ping(ident=ident))).see("n1:veth1", "in", *pieces(ping(ident=ident)))
    trip.see("n1:eth0", "out", *pieces(ping(ident=8, ttl=63), 800), *pieces(ping(ident=7, ttl=63), 800))
    journeys = {each.id: each for each in trip.followed().journeys}
    for each in journeys.values():
        assert each.hops[0].packet.ip_id == journeys[each.about].hops[0].packet.ip_id
        assert len({hop.packet.ip_id for hop in each.hops}) == 1


@pytest.mark.parametrize("seen_whole", [True, False], ids=["seen whole", "never seen whole"])
def test_ipv6_pieces_keep_their_journeys_under_a_new_identification(seen_whole: bool) -> None:
    trip = Trip().see("pod:eth0", "out", *pieces6(ping6(), 1)).see("n1:veth1", "in", *pieces6(ping6(), 1))
    if seen_whole:
        trip.see("n1:cni0", "in", ping6())
    trip.see("n1:eth0", "out", *pieces6(ping6(ttl=63), 99)).see("n2:eth0", "in", *pieces6(ping6(ttl=63), 99))
    followed = trip.followed()
    assert followed.uncorrelated == []
    lead, second = followed.journeys
    assert places(lead) == ["pod:eth0", "n1:veth1", *(["n1:cni0"] if seen_whole else []), "n1:eth0", "n2:eth0"]
    assert places(second) == ["pod:eth0", "n1:veth1", "n1:eth0", "n2:eth0"]


def test_the_pieces_of_an_echo_reply_are_not_those_of_its_request() -> None:
    """Their bytes are the same, and IPv6 gives each cutting a new identification."""
    request = ping6()
    reply = L2 / IPv6(src="fd01::2", dst="fd00::2", fl=5, hlim=64) / ICMPv6EchoReply(id=10, seq=1, data=DATA)
    trip = Trip().see("a:eth0", "out", *pieces6(request, 1)).see("b:eth0", "in", *pieces6(request, 1))
    trip.see("b:eth0", "out", *pieces6(reply, 2)).see("a:eth0", "in", *pieces6(reply, 2))
    journeys = trip.followed().journeys
    assert [len(each.hops) for each in journeys] == [2, 2, 2, 2]
    assert [each.about for each in journeys] == [1, 1, 3, 3]


def test_fragments_inside_a_tunnel_are_put_together_behind_it() -> None:
    def outer(inner: Layer) -> Layer:
        return L2 / IP(src=NODE, dst="192.168.50.12") / UDP(sport=40000, dport=8472) / VXLAN(vni=1, flags=8) / inner

    trip = Trip().see("pod:eth0", "out", *pieces(ping())).see("n1:eth0", "out", *map(outer, pieces(ping(ttl=63))))
    trip.see("n2:eth0", "in", *map(outer, pieces(ping(ttl=63)))).see("n2:flannel.1", "in", *pieces(ping(ttl=63)))
    lead, _ = trip.see("n2:cni0", "out", ping(ttl=62)).followed().journeys
    assert places(lead)[-2:] == ["n2:flannel.1", "n2:cni0"]


def test_fragments_cut_at_the_snap_length_are_left_alone() -> None:
    trip = Trip().see("pod:eth0", "out", *pieces(ping())).see("n1:veth1", "in", *pieces(ping()))
    short = [Event(e.time, e.ns, e.device, e.direction, e.frame[:100], e.length) for e in trip.events]
    assert len(follow(short).journeys) == 2
