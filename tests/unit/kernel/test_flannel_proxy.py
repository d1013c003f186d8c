"""emulator.kernel.flannel_proxy: what it does to a packet, by proxy_amd64.c."""

from __future__ import annotations

import json

from scapy.layers.inet import ICMP, IP, TCP, UDP

from emulator.kernel.flannel_proxy import Configuration, aged, net_unreachable, next_hop, read_configuration


def configuration(*routes: tuple[str, str]) -> Configuration:
    return read_configuration(
        json.dumps({"device": "flannel0", "address": "10.244.1.0", "listen": ["10.0.0.1", 8285], "routes": routes})
    )


def packet(ttl: int = 63, target: str = "10.244.2.7") -> bytes:
    return bytes(IP(src="10.244.1.2", dst=target, ttl=ttl, id=7) / UDP(sport=1, dport=2) / b"x")


def test_the_longest_route_is_taken() -> None:
    made = configuration(("10.244.0.0/16", "10.0.0.9"), ("10.244.2.0/24", "10.0.0.2"))
    assert next_hop(packet(), made) == "10.0.0.2"
    assert next_hop(packet(target="10.244.3.7"), made) == "10.0.0.9"
    assert next_hop(packet(target="10.245.0.1"), made) == ""


def test_one_is_taken_from_the_ttl_and_the_checksum_still_holds() -> None:
    for ttl in range(2, 256):
        assert aged(packet(ttl)) == packet(ttl - 1)


def test_a_packet_whose_time_is_over_vanishes_in_silence() -> None:
    assert aged(packet(1)) == b""


def test_a_packet_without_a_route_is_answered() -> None:
    offender = bytes(IP(src="10.244.1.2", dst="10.244.9.9", ttl=63) / TCP(sport=5, dport=6))
    answer = IP(net_unreachable(offender, "10.244.1.0"))
    assert (answer.src, answer.dst, answer.ttl) == ("10.244.1.0", "10.244.1.2", 8)
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 0)
    assert bytes(answer[ICMP].payload) == offender[:28]
    del answer.chksum, answer[ICMP].chksum
    assert bytes(answer) == net_unreachable(offender, "10.244.1.0"), "both checksums are right"


def test_icmp_and_later_fragments_are_not_answered() -> None:
    assert net_unreachable(bytes(IP(dst="10.244.9.9") / ICMP()), "10.244.1.0") == b""
    assert net_unreachable(bytes(IP(dst="10.244.9.9", frag=3, proto=17) / b"12345678"), "10.244.1.0") == b""
