"""What makes two sightings sightings of one packet: a key that survives NAT, routing and encapsulation.

======== =========================================================================================
IPv4     identification, protocol, and of the layer above
IPv6     flow label, protocol, and of the layer above (there is no identification)
TCP      sequence and acknowledgement numbers, flags, payload size
UDP      payload size and digest: a datagram with DF set may carry identification 0, so probes hold a nonce
ICMP     type, code, sequence number, payload size and digest
errors   type, code, and the quoted packet's identification: NAT rewrites the rest of the quotation
pieces   identification, offset, size and digest of each fragment
IGMP     the whole packet: each machine reports the same groups
ARP      the whole message
======== =========================================================================================

Left out on purpose, as NAT changes them: addresses, ports, the ICMP echo identifier, checksums. Left out as routers
change them: TTL and MACs. The innermost packet counts, so a tunnel packet has the key of what it carries.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import NamedTuple
from zlib import crc32

from emulator.capture.decode import BARE_PORT, EXTENSION_HEADERS, VLAN_TAGS, VXLAN_PORTS

IGMP = 2

_V4 = struct.Struct("!BxHHHBB")
_V6 = struct.Struct("!IHBB")
_TCP = struct.Struct("!IIBB")
_ICMP_ERRORS = {1: (3, 5, 11, 12), 58: (1, 2, 3, 4)}
_BARE = struct.pack("!HH", BARE_PORT, BARE_PORT)
PORTS = {6: 20, 17: 8, 1: 8, 58: 8, 132: 12}  # the header that a first fragment holds: NAT may change it


class Piece(NamedTuple):
    """What a fragment holds of its datagram: ``data`` from byte ``offset`` above the IP header on, and whether there is
    more to come. ``data`` is empty if the frame was cut at the snap length.

    ``kind`` is the EtherType, ``flow`` what identifies the packet rather than the datagram: in IPv6 the flow label, in
    IPv4 there is but one identification.
    """

    kind: int
    protocol: int
    ident: int
    flow: int
    offset: int
    more: bool
    data: bytes


class Identity(NamedTuple):
    """``key`` is equal for all sightings of one packet; ``ttl`` and ``tunnelled`` tell those on one device apart.

    ``pair`` is its source and target address, one behind the other: an echoed datagram has its request's key, but
    the pair turned round. ``piece`` is what a fragment holds, None for a whole packet.
    """

    key: Hashable
    ttl: int
    tunnelled: bool
    pair: bytes = b""
    piece: Piece | None = None

    @property
    def turned(self) -> bytes:
        """The pair of an answer to this packet."""
        half = len(self.pair) // 2
        return self.pair[half:] + self.pair[:half]


def identify(frame: bytes) -> Identity | None:
    """The identity of the packet in a frame; None for what is neither IP nor ARP, or is cut within its headers."""
    try:
        return _identify(frame)
    except (struct.error, IndexError):
        return None


def _identify(frame: bytes) -> Identity | None:
    kind, at, tunnelled = frame[12] << 8 | frame[13], 14, False
    while True:
        while kind in VLAN_TAGS:
            kind, at = frame[at + 2] << 8 | frame[at + 3], at + 4
        if kind == 0x0800:
            first, total, ident, fragment, ttl, protocol = _V4.unpack_from(frame, at)
            if first >> 4 != 4 or first & 15 < 5:
                return None
            l4 = at + (first & 15) * 4
            end = at + total if total else len(frame)
            fragment &= 0x3FFF
            flow = ident
        elif kind == 0x86DD:
            word, size, protocol, ttl = _V6.unpack_from(frame, at)
            if word >> 28 != 6:
                return None
            ident, fragment, l4 = word & 0xFFFFF, 0, at + 40
            flow = ident
            end = l4 + size if size else len(frame)
            while protocol in EXTENSION_HEADERS or protocol == 44:
                if protocol == 44:
                    fragment = int.from_bytes(frame[l4 + 2 : l4 + 4], "big") & 0xFFF9
                    ident = int.from_bytes(frame[l4 + 4 : l4 + 8], "big")
                step = (
                    8
                    if protocol == 44
                    else (frame[l4 + 1] + (2 if protocol == 51 else 1)) * (4 if protocol == 51 else 8)
                )
                protocol, l4 = frame[l4], l4 + step
        elif kind == 0x0806:
            message = frame[at + 6 : at + 28]
            return Identity(("arp", message), 0, tunnelled) if len(message) == 22 else None
        else:
            return None

        if not tunnelled and not fragment & 0x1FFF:
            if protocol == 17 and len(frame) - l4 >= 28 and frame[l4 : l4 + 4] == _BARE and frame[l4 + 8] >> 4 == 4:
                tunnelled, at, kind = True, l4 + 8, 0x0800
                continue
            if protocol == 17 and len(frame) - l4 >= 30 and frame[l4 + 8] & 8:
                if frame[l4 + 2] << 8 | frame[l4 + 3] in VXLAN_PORTS:
                    tunnelled, at = True, l4 + 30
                    kind = frame[at - 2] << 8 | frame[at - 1]
                    continue
            elif protocol in (4, 41) and not fragment:
                tunnelled, at, kind = True, l4, 0x0800 if protocol == 4 else 0x86DD
                continue
        pair = frame[at + 12 : at + 20] if kind == 0x0800 else frame[at + 8 : at + 40]
        piece = None
        if fragment:
            offset = (fragment & 0x1FFF) * 8 if kind == 0x0800 else fragment & 0xFFF8
            more = bool(fragment & (0x2000 if kind == 0x0800 else 1))
            piece = Piece(kind, protocol, ident, flow, offset, more, frame[l4:end] if end <= len(frame) else b"")
        key = _key(frame, kind, protocol, ident, fragment, l4, end)
        return Identity((key, pair) if protocol == IGMP else key, ttl, tunnelled, pair, piece)


def whole_key(kind: int, protocol: int, flow: int, content: bytes) -> Hashable:
    """The key of an unfragmented packet that holds ``content`` above its IP header; see :class:`Piece`."""
    return _key(content, kind, protocol, flow, 0, 0, len(content))


def content_of_ipv4(frame: bytes) -> bytes:
    """What an IPv4 packet holds above its header."""
    start, total = 14 + (frame[14] & 15) * 4, frame[16] << 8 | frame[17]
    return frame[start : 14 + total if total else len(frame)]


def _key(frame: bytes, kind: int, protocol: int, ident: int, fragment: int, l4: int, end: int) -> Hashable:
    size = end - l4
    if fragment:
        # The bits left are the more-fragments flag and the offset; a first piece starts with ports that NAT may change.
        first = not fragment & (0x1FFF if kind == 0x0800 else 0xFFF8)
        skip = PORTS.get(protocol, 0) if first else 0
        return (kind, protocol, ident, fragment, size, crc32(frame[l4 + skip : end]))
    if protocol == 6:
        sequence, acknowledged, offset, flags = _TCP.unpack_from(frame, l4 + 4)
        return (kind, 6, ident, sequence, acknowledged, flags, size - (offset >> 4) * 4)
    if protocol == 132:  # ports and, with them, the checksum may change; the verification tag does not
        return (kind, 132, ident, size, frame[l4 + 4 : l4 + 8], crc32(frame[l4 + 12 : end]))
    if protocol == 17:
        return (kind, 17, ident, size, crc32(frame[l4 + 8 : end]))
    if protocol in _ICMP_ERRORS:
        type_and_code = frame[l4] << 8 | frame[l4 + 1]
        if frame[l4] in _ICMP_ERRORS[protocol]:
            quoted = l4 + 8
            # IPv6: the flow label; IPv4: the identification.
            about = frame[quoted + 1 : quoted + 4] if protocol == 58 else frame[quoted + 4 : quoted + 6]
            return (kind, protocol, ident, type_and_code, size, about)
        return (kind, protocol, ident, type_and_code, size, frame[l4 + 6 : l4 + 8], crc32(frame[l4 + 8 : end]))
    return (kind, protocol, ident, size, crc32(frame[l4:end]))
