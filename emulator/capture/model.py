"""Captured packets, decoded, and what one packet went through.

An :class:`Event` is one sighting of one frame on one device. A :class:`Hop` is that sighting with its headers
decoded, compared with the hop before, and explained. A :class:`Journey` is every hop of one packet, in order
of time.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Direction = Literal["in", "out"]


class Event(msgspec.Struct, frozen=True):
    """``time`` in ns since the epoch; ``frame`` the captured bytes from the Ethernet header on (perhaps cut at
    the snap length), ``length`` its size in bytes on the wire. ``direction`` as the namespace sees it."""

    time: int
    ns: str
    device: str
    direction: Direction
    frame: bytes
    length: int


class Tunnel(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outer headers of an encapsulated packet. ``kind`` is ``vxlan`` (``ipip``, ... later); ``overhead`` in bytes."""

    kind: str
    source: str
    target: str
    ttl: int
    overhead: int
    source_mac: str = ""
    target_mac: str = ""
    source_port: int = 0
    target_port: int = 0
    vni: int = 0
    dont_fragment: bool = False
    udp_checksum: int = 0


class Packet(msgspec.Struct, frozen=True, omit_defaults=True):
    """The headers that matter, innermost packet first; ``tunnel`` holds the outer ones.

    ``protocol`` is ``arp``, ``icmp``, ``icmpv6``, ``tcp``, ``udp``, ... or the IP protocol number as text. ``length`` is
    the whole frame in bytes, ``payload`` the L4 payload in bytes. Fields that the protocol lacks stay at zero.
    """

    source_mac: str
    target_mac: str
    length: int
    protocol: str
    version: int = 0
    source: str = ""
    target: str = ""
    ttl: int = 0
    ip_id: int = 0
    dont_fragment: bool = False
    fragment_offset: int = 0
    more_fragments: bool = False
    source_port: int = 0
    target_port: int = 0
    tcp_flags: str = ""
    tcp_seq: int = 0
    tcp_ack: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    icmp_id: int = 0
    icmp_seq: int = 0
    icmp_mtu: int = 0
    payload: int = 0
    digest: int = 0
    summary: str = ""
    tunnel: Tunnel | None = None


class Change(msgspec.Struct, frozen=True):
    """A header field that differs from the hop before: ``ttl``, ``source_mac``, ``tunnel``, ..."""

    field: str
    before: str
    after: str


class Reason(msgspec.Struct, frozen=True):
    """The plan object that explains a hop: its description, who makes it in the real system, and why."""

    subject: str
    component: str
    why: str


class Hop(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sighting of the packet. ``elapsed`` in ns since the journey's first hop."""

    time: int
    elapsed: int
    ns: str
    device: str
    direction: Direction
    packet: Packet
    changes: tuple[Change, ...] = ()
    reasons: tuple[Reason, ...] = ()


class Journey(msgspec.Struct, frozen=True, omit_defaults=True):
    """One packet from its first to its last hop. ``id`` is also the ``epb_packetid`` in the pcapng."""

    id: int
    hops: tuple[Hop, ...]
