"""Captured packets, decoded, and what one packet went through.

An :class:`Event` is one sighting of one frame on one device. A :class:`Hop` is that sighting with its headers
decoded, compared with the hop before, and explained. A :class:`Journey` is every hop of one packet, in order
of time.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Direction = Literal["in", "out"]
Kind = Literal["packet", "neighbour", "error", "fragment"]


class Event(msgspec.Struct, frozen=True):
    """``time`` in ns since the epoch; ``frame`` the captured bytes from the Ethernet header on (perhaps cut at
    the snap length), ``length`` its size in bytes on the wire. ``direction`` as the namespace sees it.

    ``promiscuous``: the frame came in although it is addressed to another machine, as on every bridge port.
    ``packet_id`` and ``comment`` are what the file says of the packet, if anything.
    """

    time: int
    ns: str
    device: str
    direction: Direction
    frame: bytes
    length: int
    promiscuous: bool = False
    packet_id: int = 0
    comment: str = ""


class Tunnel(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outer headers of an encapsulated packet.

    ``kind`` is ``vxlan``, ``ipip``, ``sit``, ``ip6tnl``, ``udp`` (the bare packet in a datagram) or ``wireguard``
    (told by order and size, not by content: :mod:`emulator.capture.sealed`); ``overhead`` in bytes.
    """

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

    ``protocol`` is ``arp``, ``icmp``, ``icmpv6``, ``tcp``, ``udp``, ... or the IP protocol number as text. ``length``
    is the whole frame in bytes, tunnel included; ``payload`` the L4 payload in bytes, as the headers state it.
    ``digest`` is a CRC of that payload as far as it was captured. Fields that the protocol lacks stay at zero.

    ARP fills ``source`` and ``target`` with the sender's and the target's protocol address and ``arp_operation``
    (1 request, 2 reply). An ICMP error holds the packet that it is about in ``quoted``, as far as it is quoted.
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
    vlan: int = 0
    flow_label: int = 0
    arp_operation: int = 0
    quoted: Packet | None = None


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
    """One sighting of the packet. ``elapsed`` in ns since the journey's first hop; ``promiscuous`` as in the event."""

    time: int
    elapsed: int
    ns: str
    device: str
    direction: Direction
    packet: Packet
    changes: tuple[Change, ...] = ()
    reasons: tuple[Reason, ...] = ()
    promiscuous: bool = False


class Journey(msgspec.Struct, frozen=True, omit_defaults=True):
    """One packet from its first to its last hop. ``id`` is also the ``epb_packetid`` in the pcapng.

    ``kind`` tells apart what is not a payload packet: ``neighbour`` (ARP, NDP, MLD: link-local housekeeping, often
    flooded, so that its hops form a tree), ``error`` (an ICMP error; ``about`` is the id of the journey of the packet
    that it quotes, 0 for none) and ``fragment`` (``about`` is the id of the journey of the datagram's first fragment,
    its own for that one; a packet that a router cuts on its way stays a ``packet``, and its further pieces name it).
    ``verdict`` says in words how it ended, if that was asked for. ``copies`` is how many hops were left out since a
    switch had flooded them to machines that the packet was not for.
    """

    id: int
    hops: tuple[Hop, ...]
    kind: Kind = "packet"
    about: int = 0
    verdict: str = ""
    copies: int = 0
