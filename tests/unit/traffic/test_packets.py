from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP

from emulator.traffic.expression import parse
from emulator.traffic.packets import adjusted_checksum, build

addresses = st.ip_addresses(v=4).map(str)


@given(addresses, addresses, addresses, addresses, st.binary(min_size=1, max_size=40))
def test_checksum_adjusted_for_new_addresses_equals_one_computed_anew(
    old_source: str, old_target: str, source: str, target: str, payload: bytes
) -> None:
    def checksum(source: str, target: str) -> int:
        return int(IP(bytes(IP(src=source, dst=target) / UDP(sport=1, dport=2) / payload)).payload.chksum)

    adjusted = adjusted_checksum(checksum(old_source, old_target), (old_source, old_target), (source, target))
    expected = checksum(source, target)
    # 0 and 0xffff are the same number in one's complement; UDP sends the latter (RFC 768).
    assert adjusted == expected or {adjusted, expected} == {0, 0xFFFF}


def test_expression_becomes_the_packet_that_scapy_would_make() -> None:
    (packet,) = build(
        parse('IP(src="10.0.0.1", dst="10.0.0.2", id=7) / UDP(sport=1, dport=53) / DNS(qd=DNSQR(qname="a"))')
    )
    again = IP(packet.data)
    assert packet.target == "10.0.0.2"
    assert (again.id, again.dport, again.qd[0].qname) == (7, 53, b"a.")


def test_tunnelled_packet_is_built_from_the_outside_in() -> None:
    text = (
        'IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=8472) / VXLAN(vni=1, flags=8)'
        ' / Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="10.244.0.2", dst="10.244.1.2") / ICMP()'
    )
    (packet,) = build(parse(text))
    assert len(packet.data) == 20 + 8 + 8 + 14 + 20 + 8
