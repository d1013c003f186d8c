"""Packets made with scapy: from a parsed expression, or from a capture with its addresses rewritten.

Importing this module imports scapy, which takes a third of a second and reads the routes of the network namespace that
the thread is in: hand-made packets get the source address that the pod itself would use.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scapy.error import Scapy_Exception
from scapy.fields import IP6Field, IPField, _FieldContainer
from scapy.layers import dhcp, dns, inet, inet6, l2, ntp, sctp, vxlan
from scapy.packet import Packet, Padding, Raw
from scapy.utils import PcapReader

from emulator.traffic.expression import Layer

MOST_PACKETS = 10_000  # of one expression: dst="10.0.0.0/8" stands for sixteen million

_MODULES = (l2, inet, inet6, vxlan, sctp, dns, dhcp, ntp)
_BUILTIN = {"Raw": Raw, "Padding": Padding}
_ARP_ADDRESSES = frozenset({"psrc", "pdst"})  # their kind depends on other fields of the packet
# struct.error and scapy's own come for values that a field cannot hold; what a field's code raises is not documented.
_BUILD_ERRORS = (Exception,)


class BadPacket(Exception):
    """No packet can be made. ``part`` is the layer or the field that is wrong."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part}: {reason}")
        self.part = part
        self.reason = reason


class Sendable(NamedTuple):
    """Bytes for a socket: with ``target`` an IP packet for a raw socket of that family, without one a whole frame."""

    data: bytes
    target: str = ""


class Captured(NamedTuple):
    """A packet of a capture: seconds since the first one, and what to send or why it cannot be sent."""

    offset: float
    packet: Sendable | None
    refusal: str = ""


def build(tree: Layer) -> Iterator[Sendable]:
    """The packets that an expression stands for: several if a field holds a list, a range or a prefix.

    Raises BadPacket.
    """
    packet = _layer(tree)
    if not isinstance(packet, inet.IP | inet6.IPv6 | l2.Ether | l2.Dot3):
        raise BadPacket(tree.name, "a packet begins with IP, IPv6, Ether or Dot3")
    if isinstance(packet, l2.Ether | l2.Dot3) and "dst" not in packet.fields:
        raise BadPacket(tree.name, "a frame needs a dst: neighbours are only looked up for packets that begin with IP")
    try:
        for number, one in enumerate(packet):
            if number == MOST_PACKETS:
                raise BadPacket(tree.name, f"stands for more than {MOST_PACKETS} packets")
            yield sendable(one)
    except BadPacket:
        raise
    except _BUILD_ERRORS as error:
        raise BadPacket(tree.name, f"cannot be built: {error}") from error


def sendable(packet: Packet) -> Sendable:
    """The bytes of one packet, and where its first header says that it goes. Raises whatever scapy raises."""
    if isinstance(packet, inet.IP | inet6.IPv6):
        return Sendable(bytes(packet), str(packet.dst))
    return Sendable(bytes(packet))


def read_capture(path: Path, rewrite: Mapping[str, str], source: str = "") -> Iterator[Captured]:
    """The packets of a pcap or pcapng file, addresses rewritten and checksums made right.

    ``rewrite`` maps IP and MAC addresses in lower case, in every header of a packet, tunnelled ones and those quoted by
    ICMP included. With ``source``, packets from other IP addresses (as captured) are left out. Raises BadPacket if the
    file is no capture.
    """
    first = 0.0
    try:
        with PcapReader(str(path)) as reader:
            for number, packet in enumerate(reader):
                first = first if number else float(packet.time)
                captured = _rewritten(packet, rewrite, source)
                if captured is not None:
                    yield Captured(max(0.0, float(packet.time) - first), *captured)
    except (Scapy_Exception, EOFError) as error:
        raise BadPacket(path.name, f"not a capture that can be read: {error}") from error


def _layer(tree: Layer) -> Packet:
    kind = _BUILTIN.get(tree.name) or next(
        (found for module in _MODULES if (found := getattr(module, tree.name, None)) is not None), None
    )
    if kind is None:
        raise BadPacket(tree.name, "this version of scapy does not know it")
    known = {field.name: field for field in kind.fields_desc}
    arguments: dict[str, Any] = {}
    for name, value in tree.arguments:
        if name not in known:
            raise BadPacket(f"{tree.name}.{name}", f"no such field; it has {', '.join(known)}")
        _check_address(tree.name, known[name], value)
        arguments[name] = _value(value)
    try:
        packet = kind(**arguments)
    except _BUILD_ERRORS as error:
        raise BadPacket(tree.name, f"cannot be made: {error}") from error
    return packet / _layer(tree.payload) if tree.payload is not None else packet


def _value(value: object) -> Any:
    if isinstance(value, Layer):
        return _layer(value)
    if isinstance(value, list | tuple):
        return type(value)(_value(item) for item in value)
    return value


def _check_address(layer: str, field: Any, value: object) -> None:
    """Scapy would ask the name service for whatever is not an address."""
    if isinstance(field, _FieldContainer):
        field = field.fld
    if not isinstance(field, IPField | IP6Field) and field.name not in _ARP_ADDRESSES:
        return
    for item in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(item, str):
            continue
        try:
            ipaddress.ip_network(item, strict=False)
        except ValueError as error:
            raise BadPacket(f"{layer}.{field.name}", f"{item!r} is no address") from error


def _rewritten(packet: Packet, rewrite: Mapping[str, str], source: str) -> tuple[Sendable | None, str] | None:
    """A packet of a capture, ready to be sent; None if it is to be left out."""
    network = packet.getlayer(inet.IP) or packet.getlayer(inet6.IPv6)
    if source and (network is None or str(network.src) != source):
        return None
    if packet.wirelen is not None and packet.wirelen > len(packet.original):
        return None, "cut at the capture's snap length"
    try:
        for layer in list(_layers(packet)):
            _rewrite_layer(layer, rewrite)
        if network is None:
            if not isinstance(packet, l2.Ether):
                return None, f"neither IP nor Ethernet: {packet.name}"
            return Sendable(bytes(packet)), ""
        padding = network.getlayer(Padding)
        if padding is not None and padding.underlayer is not None:
            padding.underlayer.remove_payload()
        return sendable(network), ""
    except _BUILD_ERRORS as error:
        return None, f"cannot be rebuilt: {error}"


def _layers(packet: Packet) -> Iterator[Packet]:
    layer: Packet = packet
    while layer and layer.name != "NoPayload":
        yield layer
        layer = layer.payload


def _rewrite_layer(layer: Packet, rewrite: Mapping[str, str]) -> None:
    before = (str(layer.fields.get("src", "")), str(layer.fields.get("dst", "")))
    for name in ("src", "dst", "hwsrc", "hwdst", "psrc", "pdst", "lladdr", "tgt"):
        value = layer.fields.get(name)
        if isinstance(value, str) and value.lower() in rewrite:
            layer.setfieldval(name, rewrite[value.lower()])
    if not isinstance(layer, inet.IP | inet6.IPv6):
        return
    after = (str(layer.fields["src"]), str(layer.fields["dst"]))
    if isinstance(layer, inet.IP):
        del layer.chksum
    _correct_transport(layer, before, after)


def _correct_transport(network: Packet, before: tuple[str, str], after: tuple[str, str]) -> None:
    """Have the checksum behind an IP header computed anew; of a fragment, whose rest is elsewhere, only changed by what
    the addresses changed (RFC 1624)."""
    transport = network.payload
    while isinstance(transport, inet6._IPv6ExtHdr):
        transport = transport.payload
    name = "chksum" if "chksum" in transport.fields else "cksum" if "cksum" in transport.fields else ""
    if not name or isinstance(transport, inet.IP):
        return
    if isinstance(transport, inet.UDP) and transport.chksum == 0 and isinstance(network, inet.IP):
        return  # none was used
    fragment = isinstance(network, inet.IP) and (network.frag or network.flags.MF)
    quoted = isinstance(network, inet.IPerror | inet6.IPerror6)
    if not fragment and not quoted and not network.haslayer(inet6.IPv6ExtHdrFragment):
        transport.delfieldval(name)
    elif isinstance(transport, inet.TCP | inet.UDP) or isinstance(network, inet6.IPv6):
        transport.setfieldval(name, adjusted_checksum(transport.getfieldval(name), before, after))


def adjusted_checksum(checksum: int, before: tuple[str, ...], after: tuple[str, ...]) -> int:
    """A checksum over a pseudo header whose addresses were ``before`` and are ``after`` (RFC 1624, equation 3)."""
    total = ~checksum & 0xFFFF
    for old, new in zip(before, after, strict=True):
        for word in _words(old):
            total += ~word & 0xFFFF
        for word in _words(new):
            total += word
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _words(address: str) -> list[int]:
    packed = ipaddress.ip_address(address).packed
    return [int.from_bytes(packed[index : index + 2], "big") for index in range(0, len(packed), 2)]
