"""Frames to headers, with scapy as the second opinion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layer
from scapy.packet import Raw

from emulator.capture.decode import decode
from emulator.capture.identity import identify
from emulator.capture.model import Packet

A, B = "0a:00:00:00:00:01", "0a:00:00:00:00:02"
ETHER = Ether(src=A, dst=B)
V4 = IP(src="10.244.1.2", dst="10.244.2.2", ttl=63, id=7)
V6 = IPv6(src="fd00::1", dst="fd00::2", hlim=63, fl=0x12345)


def parse(layers: Layer) -> Packet:
    frame = bytes(layers)
    return decode(frame, len(frame))


def vxlan(inner: Layer, port: int = 8472) -> Layer:
    outer = IP(src="192.168.0.1", dst="192.168.0.2", ttl=64, id=99)
    return (
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / outer
        / UDP(sport=41000, dport=port)
        / VXLAN(vni=5, flags=8)
        / inner
    )


SUMMARIES: list[tuple[Layer, str]] = [
    (ETHER / V4 / ICMP(type=8, id=5, seq=1), "ICMP echo request id 5 seq 1"),
    (ETHER / V4 / ICMP(type=0, id=5, seq=1), "ICMP echo reply id 5 seq 1"),
    (ETHER / V4 / TCP(sport=41234, dport=80, flags="S"), "TCP 41234 → 80 [SYN]"),
    (ETHER / V4 / TCP(sport=80, dport=41234, flags="PA") / b"12345", "TCP 80 → 41234 [PSH,ACK] 5 bytes"),
    (ETHER / V4 / UDP(sport=1000, dport=53) / b"abc", "UDP 1000 → 53 3 bytes"),
    (ETHER / V4 / ICMP(type=3, code=3) / V4 / UDP(), "ICMP port unreachable"),
    (ETHER / IP(proto=2) / Raw(b"\x22" + bytes(7)), "IGMP membership report"),
    (ETHER / V4 / ICMP(type=11, code=0) / V4 / UDP(), "ICMP time exceeded"),
    (ETHER / V6 / ICMPv6EchoRequest(id=5, seq=1), "ICMPv6 echo request id 5 seq 1"),
    (ETHER / V6 / ICMPv6ND_NS(tgt="fd00::9"), "ICMPv6 neighbour solicitation for fd00::9"),
    (ETHER / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2"), "ARP who has 10.0.0.2? tell 10.0.0.1"),
    (ETHER / ARP(op=2, hwsrc=A, psrc="10.0.0.1", pdst="10.0.0.2"), f"ARP 10.0.0.1 is at {A}"),
    (ETHER / IP(proto=132) / b"1234", "SCTP, cut short"),
    (ETHER / V4 / SCTP(sport=1000, dport=9999) / SCTPChunkInit(init_tag=7), "SCTP 1000 → 9999 [INIT]"),
    (ETHER / V4 / SCTP(sport=9999, dport=1000) / SCTPChunkInitAck(init_tag=7), "SCTP 9999 → 1000 [INIT ACK]"),
    (ETHER / IP(proto=33) / b"1234", "IP protocol 33"),
    (Ether(src=A, dst=B, type=0x88CC) / b"lldp", "EtherType 0x88cc"),
]


@pytest.mark.parametrize(("layers", "summary"), SUMMARIES, ids=[summary for _, summary in SUMMARIES])
def test_a_packet_is_told_in_one_line(layers: Layer, summary: str) -> None:
    assert parse(layers).summary == summary


def test_ipv4_header_fields_are_read_with_options_and_without_padding() -> None:
    packet = parse(
        ETHER
        / IP(src="1.2.3.4", dst="4.3.2.1", ttl=9, id=77, flags="DF", options=[IPOption_Router_Alert()])
        / UDP(sport=1, dport=2)
        / b"hi"
        / Raw()
    )
    assert (packet.version, packet.source, packet.target, packet.ttl, packet.ip_id) == (4, "1.2.3.4", "4.3.2.1", 9, 77)
    assert (packet.dont_fragment, packet.source_port, packet.target_port, packet.payload) == (True, 1, 2, 2)
    padded = bytes(ETHER / V4 / UDP() / b"hi").ljust(60, b"\0")
    assert decode(padded, 60).payload == 2
    assert decode(padded, 60).digest == parse(ETHER / V4 / UDP() / b"hi").digest


def test_padding_is_not_taken_for_a_transport_header() -> None:
    frame = bytes(ETHER / IP(proto=6) / bytes(4)).ljust(60, b"\x11")
    assert decode(frame, 60).summary == "TCP, cut short"


def test_vlan_tags_are_skipped_and_the_outer_one_is_kept() -> None:
    packet = parse(ETHER / Dot1Q(vlan=7) / Dot1Q(vlan=8) / V4 / UDP(dport=9))
    assert (packet.vlan, packet.target_port) == (7, 9)


@pytest.mark.parametrize("port", [8472, 4789, 6784])
def test_vxlan_gives_the_inner_packet_and_the_outer_headers_as_its_tunnel(port: int) -> None:
    inner = ETHER / V4 / TCP(sport=5, dport=80, seq=1234)
    packet = parse(vxlan(inner, port))
    assert (packet.source, packet.ttl, packet.tcp_seq, packet.source_mac) == ("10.244.1.2", 63, 1234, A)
    assert packet.length == len(inner) + 50
    assert packet.tunnel is not None
    assert (packet.tunnel.kind, packet.tunnel.vni, packet.tunnel.overhead, packet.tunnel.ttl) == ("vxlan", 5, 50, 64)
    assert (packet.tunnel.source, packet.tunnel.target) == ("192.168.0.1", "192.168.0.2")
    assert (packet.tunnel.source_port, packet.tunnel.target_port) == (41000, port)
    assert packet.tunnel.udp_checksum != 0


def test_vxlan_over_ipv6_adds_seventy_bytes() -> None:
    inner = ETHER / V4 / UDP()
    tunnel = parse(ETHER / V6 / UDP(dport=8472) / VXLAN(vni=1, flags=8) / inner).tunnel
    assert tunnel is not None
    assert tunnel.overhead == 70


def test_udp_on_a_vxlan_port_without_the_flag_is_plain_udp() -> None:
    packet = parse(ETHER / V4 / UDP(sport=1, dport=8472) / bytes(60))
    assert packet.tunnel is None
    assert packet.summary == "UDP 1 → 8472 60 bytes"


def test_ip_in_ip_is_a_tunnel_of_twenty_bytes() -> None:
    packet = parse(Ether(src=A, dst=B) / IP(src="192.168.0.1", dst="192.168.0.2") / V4 / ICMP(id=3))
    assert packet.tunnel is not None
    assert (packet.tunnel.kind, packet.tunnel.overhead, packet.tunnel.source_mac) == ("ipip", 20, A)
    assert (packet.source, packet.icmp_id) == ("10.244.1.2", 3)


def test_fragments_are_told_apart() -> None:
    first = parse(ETHER / IP(id=5, flags="MF") / UDP(sport=1, dport=2) / bytes(16))
    later = parse(ETHER / IP(id=5, frag=3, proto=17) / bytes(8))
    assert (first.more_fragments, first.fragment_offset, first.target_port) == (True, 0, 2)
    assert (later.more_fragments, later.fragment_offset, later.payload) == (False, 24, 8)
    assert later.summary == "UDP fragment at byte 24"


def test_ipv6_extension_headers_and_fragments_are_passed() -> None:
    packet = parse(ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(id=9, offset=2, m=1, nh=17) / bytes(16))
    assert (packet.protocol, packet.ip_id, packet.fragment_offset, packet.more_fragments) == ("udp", 9, 16, True)
    assert (packet.ttl, packet.flow_label) == (63, 0x12345)


def test_fragmentation_needed_names_the_mtu_and_quotes_the_packet() -> None:
    quoted = IP(src="10.244.1.2", dst="10.244.2.2", id=4242) / TCP(sport=1000, dport=80, seq=77)
    packet = parse(ETHER / V4 / ICMP(type=3, code=4, nexthopmtu=1450) / bytes(quoted)[:28])
    assert (packet.icmp_mtu, packet.summary) == (1450, "ICMP fragmentation needed (MTU 1450)")
    assert packet.quoted is not None
    assert (packet.quoted.ip_id, packet.quoted.source_port, packet.quoted.tcp_seq) == (4242, 1000, 77)


def test_packet_too_big_names_the_mtu_and_quotes_the_packet() -> None:
    packet = parse(ETHER / V6 / ICMPv6PacketTooBig(mtu=1430) / V6 / UDP(sport=7, dport=8))
    assert packet.icmp_mtu == 1430
    assert packet.quoted is not None
    assert packet.quoted.target_port == 8


def _scapy(frame: bytes) -> dict[str, Any]:
    layers = Ether(frame)
    ip = layers.getlayer(IP) or layers.getlayer(IPv6)
    l4 = ip.getlayer(TCP) or ip.getlayer(UDP)
    return {
        "source": ip.src,
        "target": ip.dst,
        "ttl": ip.ttl if isinstance(ip, IP) else ip.hlim,
        "source_port": l4.sport,
        "target_port": l4.dport,
        "source_mac": layers.src,
        "payload": len(l4.payload),
    }


ports = st.integers(1, 65535).filter(lambda port: port not in (8472, 4789, 6784))


@settings(max_examples=60, deadline=None)
@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(1, 255), ports, st.binary(max_size=40), st.booleans())
def test_decoding_agrees_with_scapy(source: Any, target: Any, ttl: int, port: int, data: bytes, tcp: bool) -> None:
    l4 = TCP(sport=port, dport=4000) if tcp else UDP(sport=port, dport=4000)
    frame = bytes(ETHER / IP(src=str(source), dst=str(target), ttl=ttl) / l4 / data)
    packet = decode(frame, len(frame))
    assert {name: getattr(packet, name) for name in _scapy(frame)} == _scapy(frame)


FRAMES = [bytes(layers) for layers, _ in SUMMARIES] + [
    bytes(vxlan(ETHER / V4 / TCP())),
    bytes(ETHER / V4 / V4 / ICMP()),
    bytes(ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(nh=58) / ICMPv6EchoRequest()),
    bytes(ETHER / V4 / ICMP(type=3, code=4) / V4 / TCP()),
]


@st.composite
def damaged(draw: Callable[..., Any]) -> bytes:
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(0, 4))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(0, len(frame)))])


@settings(max_examples=400, deadline=None)
@given(damaged() | st.binary(max_size=100))
def test_no_frame_however_damaged_makes_decoding_fail(frame: bytes) -> None:
    packet = decode(frame, len(frame))
    assert packet.payload >= 0
    assert packet.summary
    identify(frame)
