"""SCTP's first two packets, held against scapy's own reading of them."""

from __future__ import annotations

import pytest
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck

from emulator.traffic import sctp


def test_init_is_what_scapy_makes_of_it_checksum_included() -> None:
    packet = sctp.init(40000, 9999, 0x01020304)
    read = SCTP(packet)
    assert (read.sport, read.dport, read.tag) == (40000, 9999, 0)
    assert read[SCTPChunkInit].init_tag == 0x01020304
    again = SCTP(packet)
    del again.chksum
    assert bytes(again) == packet


def test_answer_carries_the_tag_of_the_question() -> None:
    heard = sctp.parse(sctp.init(40000, 9999, 7))
    assert heard is not None
    packet = sctp.init_ack(heard, 11)
    read = SCTP(packet)
    assert (read.sport, read.dport, read.tag) == (9999, 40000, 7)
    assert read[SCTPChunkInitAck].init_tag == 11
    again = SCTP(packet)
    del again.chksum
    assert bytes(again)[:12] == packet[:12]


@pytest.mark.parametrize("length", range(32))
def test_cut_packets_are_nothing(length: int) -> None:
    assert sctp.parse(sctp.init(1, 2, 3)[:length]) is None


def test_damaged_packet_is_nothing() -> None:
    packet = bytearray(sctp.init(1, 2, 3))
    packet[20] ^= 1
    assert sctp.parse(bytes(packet)) is None


def test_quotation_of_eight_bytes_tells_the_ports() -> None:
    packet = sctp.init(40000, 9999, 7)
    assert sctp.quoted(packet[:8]) == (40000, 9999, 0)
    assert sctp.quoted(packet) == (40000, 9999, 7)
    assert sctp.quoted(b"") == (0, 0, 0)
