"""A packet's headers as a row of blocks, outermost first, each marked if it changed since the hop before.

::

    eth | ip | ttl | VXLAN | eth | ip | ttl | ICMP          depth 0 up to the tunnel, depth 1 inside it

Marks are found by comparing the two packets here, not taken from :class:`emulator.capture.model.Change`: a block is
marked exactly if what it shows differs from what the block before showed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from emulator.capture.model import Packet, Tunnel
from emulator.compare.path import same_tunnel

Layer = Literal["eth", "ip", "ttl", "tunnel", "l4"]

ICMP_NAMES = {
    0: "echo reply",
    3: "unreachable",
    4: "source quench",
    5: "redirect",
    8: "echo request",
    11: "time exceeded",
}
ICMPV6_NAMES = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
}
FRAGMENTATION_NEEDED = 4  # code of ICMP type 3 (RFC 1191)


class Part(NamedTuple):
    """One value in a block. ``was`` is its value at the hop before, if that was another."""

    text: str
    was: str = ""


class Block(NamedTuple):
    """One header. ``change`` is empty, ``changed``, ``added`` (was not there before) or ``removed`` (is no longer)."""

    layer: Layer
    label: str
    parts: tuple[Part, ...]
    change: Literal["", "changed", "added", "removed"]
    depth: int

    @property
    def text(self) -> str:
        """``ttl 63``, ``10.244.1.2 → 10.244.2.2``."""
        return " ".join(part for part in (self.label, " → ".join(part.text for part in self.parts)) if part)


def blocks(packet: Packet, before: Packet | None) -> tuple[Block, ...]:
    """The headers of ``packet``. ``before`` is the packet at the previous hop, None at the first."""
    found: list[Block] = []
    tunnel, outer = packet.tunnel, before.tunnel if before else None
    depth = 0
    if tunnel:
        known = outer if outer and same_tunnel(outer, tunnel) else None
        found += _tunnel(tunnel, known, first=before is None)
        depth = 1
    elif outer:
        label = f"{outer.kind.upper()}{f' vni {outer.vni}' if outer.vni else ''}"
        found.append(Block("tunnel", label, (Part(f"−{outer.overhead} B"),), "removed", 0))
    found += _inner(packet, before, depth)
    return tuple(found)


def arrow(packet: Packet, *, ports: bool = False) -> str:
    """``10.244.1.2 → 10.244.2.2``, with the ports where they matter, or the summary of what has no addresses."""
    if not packet.source:
        return packet.summary
    if not ports or not packet.target_port:
        return f"{packet.source} → {packet.target}"
    return f"{_socket(packet.source, packet.source_port)} → {_socket(packet.target, packet.target_port)}"


def _socket(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _tunnel(tunnel: Tunnel, before: Tunnel | None, *, first: bool) -> list[Block]:
    added = before is None and not first
    eth = (tunnel.source_mac, tunnel.target_mac)
    eth_before = (before.source_mac, before.target_mac) if before else None
    found = []
    if any(eth) and eth != eth_before:
        found.append(_pair("eth", "", eth, eth_before, 0, added=added))
    found.append(
        _pair(
            "ip", "", (tunnel.source, tunnel.target), (before.source, before.target) if before else None, 0, added=added
        )
    )
    flags = " DF" if tunnel.dont_fragment else ""
    found.append(
        _one(
            "ttl",
            "ttl",
            f"{tunnel.ttl}{flags}",
            f"{before.ttl}{flags}" if before else None,
            0,
            added=added,
            was=str(before.ttl) if before else "",
        )
    )
    ports = f"udp {tunnel.source_port} → {tunnel.target_port} " if tunnel.target_port else ""
    label = f"{ports}{tunnel.kind.upper()}{f' vni {tunnel.vni}' if tunnel.vni else ''}"
    found.append(Block("tunnel", label, (Part(f"+{tunnel.overhead} B"),), "added" if added else "", 0))
    return found


def _inner(packet: Packet, before: Packet | None, depth: int) -> list[Block]:
    found = []
    eth = (packet.source_mac, packet.target_mac)
    eth_before = (before.source_mac, before.target_mac) if before else None
    if any(eth) and eth != eth_before:
        found.append(_pair("eth", "", eth, eth_before, depth))
    if packet.version:
        addresses = (packet.source, packet.target)
        found.append(_pair("ip", "", addresses, (before.source, before.target) if before else None, depth))
        label = "ttl" if packet.version == 4 else "hop limit"
        found.append(
            _one("ttl", label, _ttl(packet), _ttl(before) if before else None, depth, was=_old_ttl(packet, before))
        )
    found.append(_one("l4", "", _l4(packet), _l4(before) if before else None, depth))
    return found


def _pair(
    layer: Layer, label: str, now: tuple[str, str], before: tuple[str, str] | None, depth: int, *, added: bool = False
) -> Block:
    # What a MAC address was is at the hop above; repeated here it would only make the block twice as wide.
    told = before if before and layer != "eth" else now
    parts = tuple(Part(text, was if was != text else "") for text, was in zip(now, told, strict=True))
    return Block(layer, label, parts, "added" if added else "changed" if before and before != now else "", depth)


def _one(
    layer: Layer, label: str, now: str, before: str | None, depth: int, *, added: bool = False, was: str = ""
) -> Block:
    moved = before is not None and before != now
    change: Literal["", "changed", "added"] = "added" if added else "changed" if moved else ""
    return Block(layer, label, (Part(now, (was or before or "") if moved else ""),), change, depth)


def _ttl(packet: Packet) -> str:
    return f"{packet.ttl}{_flags(packet)}"


def _old_ttl(packet: Packet, before: Packet | None) -> str:
    """What the TTL was, without the flags that are still the same."""
    return str(before.ttl) if before and _flags(before) == _flags(packet) else ""


def _flags(packet: Packet) -> str:
    text = " DF" if packet.dont_fragment else ""
    if packet.more_fragments or packet.fragment_offset:
        text += f" fragment at {packet.fragment_offset}{'…' if packet.more_fragments else ''}"
    return text


def _l4(packet: Packet) -> str:
    if packet.protocol in ("icmp", "icmpv6"):
        names = ICMP_NAMES if packet.protocol == "icmp" else ICMPV6_NAMES
        name = names.get(packet.icmp_type, f"type {packet.icmp_type}")
        if packet.protocol == "icmp" and packet.icmp_type == 3 and packet.icmp_code == FRAGMENTATION_NEEDED:
            name = "fragmentation needed"
        return f"ICMP {name}" + (f" mtu {packet.icmp_mtu}" if packet.icmp_mtu else "")
    if packet.protocol in ("tcp", "udp"):
        if packet.fragment_offset:  # only the first fragment has ports
            return f"{packet.protocol.upper()} {packet.payload} B"
        flags = f" {packet.tcp_flags}" if packet.tcp_flags else ""
        return f"{packet.protocol.upper()} {packet.source_port} → {packet.target_port}{flags}"
    return packet.summary or f"protocol {packet.protocol}"
