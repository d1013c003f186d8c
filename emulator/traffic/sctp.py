"""The first half of an SCTP association (RFC 9260): INIT, and INIT ACK or ABORT in answer, by hand over raw sockets.

Kernels without the module have no SCTP sockets, while their netfilter knows the protocol's ports and states. So a probe
sends an INIT of its own making, and where a port is served a raw socket answers it as an endpoint would. Nobody goes on
to COOKIE ECHO: that INIT ACK came back says all that a probe asks. Connection tracking takes such a packet for valid
only with the right checksum and verification tag (net/netfilter/nf_conntrack_proto_sctp.c).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PROTOCOL = 132  # IANA
INIT, INIT_ACK, ABORT = 1, 2, 6  # chunk types
TAG_REFLECTED = 1  # the T bit of ABORT: the tag is that of the packet which it answers

_COMMON = struct.Struct("!HHI4s")  # source port, destination port, verification tag, checksum
_CHUNK = struct.Struct("!BBH")  # type, flags, length in bytes, these four included
_INIT = struct.Struct("!IIHHI")  # initiate tag, a_rwnd, outbound streams, inbound streams, initial TSN
_WINDOW = 65535  # a_rwnd, bytes
_STREAMS = 10
_COOKIE = struct.pack("!HH4s", 7, 8, b"none")  # State Cookie: INIT ACK must carry one


class Heard(NamedTuple):
    """A packet's ports, its verification tag, its first chunk's type, and the initiate tag of INIT and INIT ACK."""

    source_port: int
    target_port: int
    tag: int
    chunk: int
    initiate: int


def init(source_port: int, target_port: int, initiate: int) -> bytes:
    """An association's first packet. ``initiate`` is the tag that its answer will carry; not 0."""
    return _packet(source_port, target_port, 0, INIT, _INIT.pack(initiate, _WINDOW, _STREAMS, _STREAMS, initiate))


def init_ack(heard: Heard, initiate: int) -> bytes:
    """The answer of an endpoint that listens."""
    body = _INIT.pack(initiate, _WINDOW, _STREAMS, _STREAMS, initiate) + _COOKIE
    return _packet(heard.target_port, heard.source_port, heard.initiate, INIT_ACK, body)


def parse(packet: bytes) -> Heard | None:
    """A packet from its common header on; None if it is none, or damaged."""
    if len(packet) < _COMMON.size + _CHUNK.size:
        return None
    source_port, target_port, tag, checksum = _COMMON.unpack_from(packet)
    if checksum != _checksum(packet):
        return None
    kind = packet[_COMMON.size]
    at = _COMMON.size + _CHUNK.size
    initiate = 0
    if kind in (INIT, INIT_ACK):
        if len(packet) < at + _INIT.size:
            return None
        (initiate,) = struct.unpack_from("!I", packet, at)
    return Heard(source_port, target_port, tag, kind, initiate)


def quoted(packet: bytes) -> tuple[int, int, int]:
    """Source port, target port and initiate tag (0: not there) of one of our INITs as an ICMP error quotes it."""
    ports = struct.unpack_from("!HH", packet) if len(packet) >= 4 else (0, 0)
    at = _COMMON.size + _CHUNK.size
    (initiate,) = struct.unpack_from("!I", packet, at) if len(packet) >= at + 4 else (0,)
    return ports[0], ports[1], initiate


def _packet(source_port: int, target_port: int, tag: int, kind: int, body: bytes) -> bytes:
    chunk = _CHUNK.pack(kind, 0, _CHUNK.size + len(body)) + body
    bare = _COMMON.pack(source_port, target_port, tag, bytes(4)) + chunk
    return _COMMON.pack(source_port, target_port, tag, _checksum(bare)) + chunk


def _checksum(packet: bytes) -> bytes:
    """CRC32c over the packet with a checksum of zero, as it stands in the header (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in packet[:8] + bytes(4) + packet[12:]:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(crc)
    return tuple(table)


_TABLE = _table()
