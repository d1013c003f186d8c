"""pcapng's blocks as bytes: what the sniffer's hot path and the file writer both emit.

Source: draft-ietf-opsawg-pcapng. Blocks are little-endian; every interface is Ethernet with nanosecond stamps
(``if_tsresol`` 9). Nothing here imports more than ``struct``: the sniffer has to start quickly.

::

    section header ─ interface block (n1:eth0) ─ packet ─ packet ─ interface block (n1:cni0) ─ packet ─ ... ─ statistics

An interface block may stand anywhere before the first packet that refers to it, so devices that appear during
the capture get theirs when their first packet is seen.
"""

from __future__ import annotations

import struct

SECTION_HEADER = 0x0A0D0D0A
INTERFACE = 0x00000001
SIMPLE_PACKET = 0x00000003
INTERFACE_STATISTICS = 0x00000005
ENHANCED_PACKET = 0x00000006
BYTE_ORDER_MAGIC = 0x1A2B3C4D

OPTION_COMMENT = 1
OPTION_EPB_FLAGS = 2
OPTION_EPB_PACKETID = 5

LINKTYPE_ETHERNET = 1
NANOSECONDS = 9  # if_tsresol: the exponent of ten, negative

FLAG_INBOUND = 0b01  # epb_flags, bits 0-1
FLAG_OUTBOUND = 0b10
RECEPTION_SHIFT = 2  # epb_flags, bits 2-4: 1 unicast, 2 multicast, 3 broadcast, 4 promiscuous

CHECKSUM_PENDING = "checksum not filled in yet: left to the device (offload)"

PACKET_HEAD = struct.Struct("<IIIIIII")  # type, length, interface, time high, time low, captured, on the wire


def option(code: int, value: bytes) -> bytes:
    """One option, padded to 32 bits. Values longer than its 16-bit length allows are cut."""
    value = value[:65535]
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def section_header(application: str, system: str = "", comment: str = "") -> bytes:
    """The block that opens a file: which program wrote it, on which system."""
    body = struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)
    if comment:
        body += option(OPTION_COMMENT, comment.encode())
    if system:
        body += option(3, system.encode())
    body += option(4, application.encode())
    return _block(SECTION_HEADER, body + option(0, b""))


def interface(name: str, description: str, snaplen: int = 262144) -> bytes:
    """One hop: ``name`` is ``<netns file>:<device>``, ``description`` the plan's name of the namespace."""
    body = struct.pack("<HHI", LINKTYPE_ETHERNET, 0, snaplen)
    body += option(2, name.encode()) + option(3, description.encode()) + option(9, bytes([NANOSECONDS]))
    return _block(INTERFACE, body + option(0, b""))


def packet_tail(captured: int, flags: int, comment: bytes = b"", packet_id: int = 0) -> bytes:
    """All of an enhanced packet block that follows its ``captured`` bytes of frame: padding, options, length.

    A ``packet_id`` of 0 stands for none.
    """
    tail = bytes(-captured % 4)
    if comment:
        tail += option(OPTION_COMMENT, comment)
    tail += option(OPTION_EPB_FLAGS, struct.pack("<I", flags))
    if packet_id:
        tail += option(OPTION_EPB_PACKETID, struct.pack("<Q", packet_id))
    tail += option(0, b"")
    return tail + struct.pack("<I", PACKET_HEAD.size + captured + len(tail) + 4)


def packet(
    interface_id: int, time: int, frame: bytes, length: int, flags: int, comment: str = "", packet_id: int = 0
) -> bytes:
    """One sighting: ``time`` in ns since the epoch, ``length`` in bytes on the wire."""
    tail = packet_tail(len(frame), flags, comment.encode(), packet_id)
    total = PACKET_HEAD.size + len(frame) + len(tail)
    head = PACKET_HEAD.pack(
        ENHANCED_PACKET, total, interface_id, time >> 32, time & 0xFFFFFFFF, len(frame), max(length, len(frame))
    )
    return head + frame + tail


def statistics(interface_id: int, time: int, received: int, lost: int) -> bytes:
    """What an interface's capture took in, and what the kernel had to drop for want of buffer space."""
    body = struct.pack("<III", interface_id, time >> 32, time & 0xFFFFFFFF)
    body += option(4, struct.pack("<Q", received)) + option(5, struct.pack("<Q", lost))
    return _block(INTERFACE_STATISTICS, body + option(0, b""))
