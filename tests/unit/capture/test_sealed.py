"""Encrypted packets: what can be said of them, and which packet each one carries, if that is certain."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet as Layer

from emulator.capture.decode import decode
from emulator.capture.follow import follow
from emulator.capture.model import Direction, Event, Journey
from emulator.capture.wireguard import may_hold

WIRE = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
HANDSHAKE = b"\x01\0\0\0" + bytes(144)


def seen(time: int, place: str, direction: Direction, frame: bytes) -> Event:
    ns, _, device = place.rpartition(":")
    return Event(time, ns, device, direction, frame, len(frame))


def plain(number: int, size: int = 56, ttl: int = 63) -> bytes:
    """A ping of 28 + ``size`` bytes as a tunnel device without Ethernet shows it."""
    packet = IP(src="10.244.1.2", dst="10.244.2.2", ttl=ttl, id=number) / ICMP(id=9, seq=number) / bytes(size)
    return bytes(12) + b"\x08\x00" + bytes(packet)


def data(counter: int, size: int) -> bytes:
    """A transport data message with ``size`` encrypted bytes, never twice the same."""
    return struct.pack("<IIQ", 4, 77, counter) + bytes([counter % 256]) * (size + 16)


def wire(payload: bytes, source: str = "192.168.50.11", target: str = "192.168.50.12", port: int = 51820) -> bytes:
    ip: Layer = IPv6(src=source, dst=target) if ":" in source else IP(src=source, dst=target)
    return bytes(WIRE / ip / UDP(sport=port, dport=port) / payload)


def through(start: int, inner: bytes, outer: bytes) -> list[Event]:
    """The sightings of one packet that passes the tunnel."""
    return [
        *lost(start, inner, outer),
        seen(start + 30, "node/n2:eth0", "in", outer),
        seen(start + 40, "node/n2:flannel-wg", "in", inner),
    ]


def lost(start: int, inner: bytes, outer: bytes) -> list[Event]:
    return [seen(start, "node/n1:flannel-wg", "out", inner), seen(start + 10, "node/n1:eth0", "out", outer)]


def wrapped(journey: Journey) -> list[tuple[str, str, int]]:
    """Each hop's place, encapsulation and overhead."""
    return [
        (f"{hop.ns}:{hop.device}", hop.packet.tunnel.kind, hop.packet.tunnel.overhead)
        if hop.packet.tunnel
        else (f"{hop.ns}:{hop.device}", "", 0)
        for hop in journey.hops
    ]


def test_an_encrypted_packet_is_a_hop_of_the_packet_that_it_carries() -> None:
    (journey,) = follow(through(0, plain(1), wire(data(0, 96)))).journeys
    assert wrapped(journey) == [
        ("node/n1:flannel-wg", "", 0),
        ("node/n1:eth0", "wireguard", 72),  # 60 bytes, and 12 from 84 to 96
        ("node/n2:eth0", "wireguard", 72),
        ("node/n2:flannel-wg", "", 0),
    ]
    hop = journey.hops[1].packet
    assert hop.tunnel is not None
    assert (hop.source, hop.target, hop.ttl, hop.length) == ("10.244.1.2", "10.244.2.2", 63, 170)
    assert (hop.tunnel.source, hop.tunnel.target, hop.tunnel.target_port) == ("192.168.50.11", "192.168.50.12", 51820)
    assert [change.field for change in journey.hops[1].changes] == ["length", "tunnel"]


def test_over_ipv6_it_is_twenty_bytes_more() -> None:
    outer = wire(data(0, 96), "fd00::11", "fd00::12", 51821)
    (journey,) = follow(through(0, plain(1), outer)).journeys
    assert wrapped(journey)[1] == ("node/n1:eth0", "wireguard", 92)


def test_another_port_counts_where_both_ends_have_it() -> None:
    (journey,) = follow(through(0, plain(1), wire(data(0, 96), port=4500))).journeys
    assert wrapped(journey)[1][1] == "wireguard"


def test_order_and_size_tell_packets_apart() -> None:
    events = [
        *through(0, plain(1), wire(data(0, 96))),
        *through(5, plain(2, 600), wire(data(1, 640))),
        *through(1000, plain(3), wire(data(2, 96))),
    ]
    journeys = follow(events).journeys
    assert [hop.packet.icmp_seq for journey in journeys for hop in journey.hops] == [1] * 4 + [2] * 4 + [3] * 4
    assert all(wrapped(journey)[1][1] == "wireguard" for journey in journeys)


def test_of_two_packets_only_one_of_which_was_encrypted_neither_is_taken() -> None:
    events = [
        seen(0, "node/n1:flannel-wg", "out", plain(1)),
        *lost(100, plain(2), wire(data(0, 96))),
    ]
    journeys = follow(events).journeys
    assert [len(journey.hops) for journey in journeys] == [1, 1, 1]
    assert journeys[2].hops[0].packet.summary == "WireGuard transport data, 96 bytes encrypted, counter 0"


def test_what_came_out_at_the_far_end_tells_which_one_was_encrypted() -> None:
    events = [
        seen(0, "node/n1:flannel-wg", "out", plain(1)),
        *through(100, plain(2), wire(data(0, 96))),
    ]
    first, second = follow(events).journeys
    assert [len(journey.hops) for journey in (first, second)] == [1, 4]
    assert second.hops[1].packet.icmp_seq == 2


def test_a_packet_that_is_lost_on_the_wire_is_followed_as_far_as_it_was_seen() -> None:
    events = [*lost(0, plain(1), wire(data(0, 96))), *through(100, plain(2), wire(data(1, 96)))]
    first, second = follow(events).journeys
    assert [place for place, _, _ in wrapped(first)] == ["node/n1:flannel-wg", "node/n1:eth0"]
    assert len(second.hops) == 4


def test_sightings_that_contradict_the_order_are_not_believed() -> None:
    one, two = through(0, plain(1), wire(data(0, 96))), through(1, plain(2), wire(data(1, 96)))
    late = seen(90, "node/n2:flannel-wg", "in", plain(1))
    journeys = follow([*one[:-1], late, *two]).journeys
    assert all(tunnel == "" for journey in journeys for _, tunnel, _ in wrapped(journey))


def test_keepalives_and_handshakes_carry_nothing() -> None:
    events = [
        seen(0, "node/n1:flannel-wg", "out", plain(1, size=0)),
        seen(10, "node/n1:eth0", "out", wire(HANDSHAKE)),
        seen(20, "node/n1:eth0", "out", wire(data(0, 0))),
    ]
    journeys = follow(events).journeys
    assert [journey.hops[0].packet.summary for journey in journeys][1:] == [
        "WireGuard handshake initiation",
        "WireGuard keepalive, counter 0",
    ]


def test_a_tunnel_that_shows_its_content_is_left_alone() -> None:
    inner = plain(1)
    bare = bytes(WIRE / IP(src="192.168.50.11", dst="192.168.50.12") / UDP(sport=8285, dport=8285) / inner[14:])
    (journey,) = follow(through(0, inner, bare)).journeys
    assert wrapped(journey)[1][1] == "udp"


@pytest.mark.parametrize(
    ("size", "packet", "fits"),
    [(96, 84, True), (96, 96, True), (96, 80, False), (96, 97, False), (1420, 1420, True), (1420, 1409, True),
     (1420, 1408, False)],
)  # fmt: skip
def test_padding_is_to_sixteen_bytes_but_never_beyond_the_mtu(size: int, packet: int, fits: bool) -> None:
    assert may_hold(size, packet) is fits


def test_other_datagrams_are_no_messages() -> None:
    for payload, port in ((b"\x04\0\0\1" + bytes(44), 51820), (b"\x01\0\0\0" + bytes(20), 51820), (b"\x04\0", 51820)):
        frame = wire(payload, port=port)
        assert decode(frame, len(frame)).summary.startswith("UDP 51820")
