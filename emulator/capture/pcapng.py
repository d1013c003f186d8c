"""Capture files: events to pcapng, and pcapng or classic pcap to events.

Our files hold one interface per hop, named ``<netns file>:<device>`` (``n1:cni0``) and described by the plan's name
of the namespace (``node/n1``), so both are found again. Files of other programs are read too, in either byte order
and with any resolution of time; their namespace is empty and the device is the interface's name. Gzipped files are
unpacked, as Wireshark does.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from emulator.capture import blocks
from emulator.capture.model import Direction, Event, Hop, Journey
from emulator.errors import InputError, Problem
from emulator.kernel.netns import netns_file

CLASSIC = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}  # magic -> ns per unit of the fraction
RAW_LINKS = (12, 14, 101)  # LINKTYPE_RAW and what BSDs called it: the packet starts with the IP header
COOKED_LINK = 113  # LINKTYPE_LINUX_SLL, of captures on the "any" device
OLD_PACKET = 0x00000002
GZIP = b"\x1f\x8b"
LARGEST_UNPACKED = 1024 * 1024 * 1024  # bytes: a small gzipped file can hold anything


class _Interface(NamedTuple):
    ns: str
    device: str
    link: int
    snaplen: int
    to_ns: Callable[[int], int]


def _refuse(source: str, place: str, reason: str) -> InputError:
    return InputError([Problem(source, "capture", place, reason)], hint="A pcapng or pcap file is expected.")


def write(path: str | Path, events: Iterable[Event]) -> None:
    """Write events in the order given."""
    _write(path, ((event, event.comment, event.packet_id) for event in events))


def write_annotated(path: str | Path, journeys: Iterable[Journey], events: Iterable[Event]) -> None:
    """Write all events by time; those of a journey carry its id, and a comment that says what happened at the hop."""
    notes: dict[tuple[int, str, str, Direction], tuple[str, int]] = {}
    for journey in journeys:
        for number, hop in enumerate(journey.hops, start=1):
            notes[hop.time, hop.ns, hop.device, hop.direction] = (note(journey, number, hop), journey.id)

    def noted() -> Iterator[tuple[Event, str, int]]:
        for event in sorted(events, key=lambda each: (each.time, each.direction == "in")):
            comment, number = notes.get((event.time, event.ns, event.device, event.direction), ("", 0))
            yield event, "\n".join(part for part in (comment, event.comment) if part), number

    _write(path, noted())


def note(journey: Journey, number: int, hop: Hop) -> str:
    """A hop in words: its place in the journey, what changed, why, and, at the last, how it ended."""
    lines = [f"packet {journey.id}, hop {number} of {len(journey.hops)}: {hop.packet.summary}"]
    lines += [f"{each.field}: {each.before or '-'} → {each.after or '-'}" for each in hop.changes]
    lines += [f"{each.subject} ({each.component}): {each.why}" for each in hop.reasons]
    if journey.verdict and number == len(journey.hops):
        lines.append(journey.verdict)
    return "\n".join(lines)


def _write(path: str | Path, entries: Iterable[tuple[Event, str, int]]) -> None:
    interfaces: dict[tuple[str, str], int] = {}
    with open(path, "wb") as file:
        file.write(blocks.section_header("cnilab"))
        for event, comment, number in entries:
            hop = (event.ns, event.device)
            if hop not in interfaces:
                interfaces[hop] = len(interfaces)
                name = f"{netns_file(event.ns)}:{event.device}" if event.ns else event.device
                file.write(blocks.interface(name, event.ns))
            flags = blocks.FLAG_OUTBOUND if event.direction == "out" else blocks.FLAG_INBOUND
            if event.promiscuous:
                flags |= 4 << blocks.RECEPTION_SHIFT
            file.write(blocks.packet(interfaces[hop], event.time, event.frame, event.length, flags, comment, number))


def read(path: str | Path) -> Iterator[Event]:
    """The packets of a capture file, in file order. Raises InputError, with the place, if it is none or damaged."""
    source = str(path)
    data = _load(path)
    if len(data) < 4:
        raise _refuse(source, "", "the file is empty" if not data else "the file is too short")
    try:
        if data[:4] == b"\x0a\x0d\x0d\x0a":
            yield from _pcapng(data, source)
        elif (order := _classic_order(data)) is not None:
            yield from _classic(data, order, source)
        else:
            raise _refuse(source, "byte 0", "neither pcapng nor pcap")
    except (struct.error, IndexError, OverflowError) as error:
        raise _refuse(source, "", f"damaged: {error}") from error


def losses(path: str | Path) -> dict[str, int]:
    """Packets that the capture of each namespace lost, as the file's statistics blocks say."""
    source, names, lost = str(path), list[str](), dict[str, int]()
    data = _load(path)
    try:
        for kind, order, body, _ in _blocks(data, source):
            if kind == blocks.SECTION_HEADER:
                names.clear()
            elif kind == blocks.INTERFACE:
                names.append(_interface(body, order, len(names)).ns)
            elif kind == blocks.INTERFACE_STATISTICS:
                number = struct.unpack_from(order + "I", body)[0]
                for value in _options(body, 12, order, 5):
                    lost[names[number]] = lost.get(names[number], 0) + struct.unpack(order + "Q", value)[0]
    except (struct.error, IndexError) as error:
        raise _refuse(source, "", f"damaged: {error}") from error
    return lost


def _load(path: str | Path) -> bytes:
    """The bytes of a file, unpacked if it is gzipped, as Wireshark does it too."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise _refuse(str(path), "", error.strerror or str(error)) from error
    if data[:2] != GZIP:
        return data
    unpacker = zlib.decompressobj(wbits=31)
    try:
        data = unpacker.decompress(data, LARGEST_UNPACKED)
    except zlib.error as error:
        raise _refuse(str(path), "", f"damaged: {error}") from error
    if not unpacker.eof:
        reason = (
            f"more than {LARGEST_UNPACKED} bytes unpacked" if unpacker.unconsumed_tail else "the file ends too soon"
        )
        raise _refuse(str(path), "", reason)
    return data


def _blocks(data: bytes, source: str) -> Iterator[tuple[int, str, bytes, int]]:
    """Type, byte order, body and offset of each block."""
    at, order = 0, "<"
    while at < len(data):
        if len(data) - at < 12:
            raise _refuse(source, f"byte {at}", "the file ends within a block")
        if data[at : at + 4] == b"\x0a\x0d\x0d\x0a":
            if data[at + 8 : at + 12] == b"\x4d\x3c\x2b\x1a":
                order = "<"
            elif data[at + 8 : at + 12] == b"\x1a\x2b\x3c\x4d":
                order = ">"
            else:
                raise _refuse(source, f"byte {at}", "not a section header of pcapng")
        kind, length = struct.unpack_from(order + "II", data, at)
        if length < 12 or length % 4:
            raise _refuse(source, f"byte {at}", f"a block of {length} bytes cannot be")
        if at + length > len(data):
            raise _refuse(source, f"byte {at}", "the file ends within a block")
        if struct.unpack_from(order + "I", data, at + length - 4)[0] != length:
            raise _refuse(source, f"byte {at}", "the two lengths of a block differ")
        yield kind, order, data[at + 8 : at + length - 4], at
        at += length


def _options(body: bytes, at: int, order: str, wanted: int) -> Iterator[bytes]:
    while len(body) - at >= 4:
        code, length = struct.unpack_from(order + "HH", body, at)
        if code == 0:
            return
        if code == wanted:
            yield body[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4


def _first(body: bytes, at: int, order: str, wanted: int) -> bytes:
    return next(_options(body, at, order, wanted), b"")


def _interface(body: bytes, order: str, number: int) -> _Interface:
    link, _, snaplen = struct.unpack_from(order + "HHI", body)
    name = _first(body, 8, order, 2).decode(errors="replace") or f"if{number}"
    description = _first(body, 8, order, 3).decode(errors="replace")
    resolution = (_first(body, 8, order, 9) or b"\x06")[0]
    offset = _first(body, 8, order, 14)
    seconds = struct.unpack(order + "q", offset)[0] * 1_000_000_000 if len(offset) == 8 else 0
    units: int = 2 ** (resolution & 0x7F) if resolution & 0x80 else 10 ** int(resolution)
    _, colon, device = name.partition(":")
    ours = bool(colon and description)

    def to_ns(ticks: int) -> int:
        return ticks * 1_000_000_000 // units + seconds

    return _Interface(description if ours else "", device if ours else name, link, snaplen, to_ns)


def _pcapng(data: bytes, source: str) -> Iterator[Event]:
    interfaces: list[_Interface] = []
    for kind, order, body, at in _blocks(data, source):
        if kind == blocks.SECTION_HEADER:
            interfaces.clear()
        elif kind == blocks.INTERFACE:
            interfaces.append(_interface(body, order, len(interfaces)))
        elif kind in (blocks.ENHANCED_PACKET, OLD_PACKET):
            # The old packet block has a drop count in the upper half of the interface's field.
            number, high, low, captured, length = struct.unpack_from(order + "IIIII", body)
            if kind == OLD_PACKET:
                number = struct.unpack_from(order + "H", body)[0]
            if number >= len(interfaces):
                raise _refuse(source, f"byte {at}", f"a packet of interface {number}, which is not described")
            if 20 + captured > len(body):
                raise _refuse(source, f"byte {at}", "a packet that is longer than its block")
            hop, options = interfaces[number], 20 + captured + -captured % 4
            flags = int.from_bytes(_first(body, options, order, 2)[:4], "little" if order == "<" else "big")
            identifier = int.from_bytes(_first(body, options, order, 5)[:8], "little" if order == "<" else "big")
            comment = "\n".join(each.decode(errors="replace") for each in _options(body, options, order, 1))
            frame, length, direction = _ethernet(body[20 : 20 + captured], length, hop.link, source, at)
            if flags & 3:
                direction = "out" if flags & 3 == blocks.FLAG_OUTBOUND else "in"
            yield Event(
                hop.to_ns(high << 32 | low),
                hop.ns,
                hop.device,
                direction,
                frame,
                length,
                flags >> blocks.RECEPTION_SHIFT & 7 == 4,
                identifier if kind == blocks.ENHANCED_PACKET else 0,
                comment,
            )
        elif kind == blocks.SIMPLE_PACKET:
            if not interfaces:
                raise _refuse(source, f"byte {at}", "a packet before any interface")
            length = struct.unpack_from(order + "I", body)[0]
            captured = min(length, interfaces[0].snaplen or length, len(body) - 4)
            frame, length, direction = _ethernet(body[4 : 4 + captured], length, interfaces[0].link, source, at)
            yield Event(0, interfaces[0].ns, interfaces[0].device, direction, frame, length)


def _classic_order(data: bytes) -> str | None:
    for order in "<>":
        if struct.unpack_from(order + "I", data)[0] in CLASSIC:
            return order
    return None


def _classic(data: bytes, order: str, source: str) -> Iterator[Event]:
    magic, _, _, _, _, _, link = struct.unpack_from(order + "IHHiIII", data)
    at = 24
    while at < len(data):
        if len(data) - at < 16:
            raise _refuse(source, f"byte {at}", "the file ends within a packet's header")
        seconds, fraction, captured, length = struct.unpack_from(order + "IIII", data, at)
        if at + 16 + captured > len(data):
            raise _refuse(source, f"byte {at}", "the file ends within a packet")
        frame, length, direction = _ethernet(data[at + 16 : at + 16 + captured], length, link & 0xFFFF, source, at)
        yield Event(seconds * 1_000_000_000 + fraction * CLASSIC[magic], "", "if0", direction, frame, length)
        at += 16 + captured


def _ethernet(frame: bytes, length: int, link: int, source: str, at: int) -> tuple[bytes, int, Direction]:
    """The frame with an Ethernet header, its length with it, and its direction as far as the link type tells."""
    if link == blocks.LINKTYPE_ETHERNET:
        return frame, length, "in"
    if link in RAW_LINKS:
        kind = b"\x86\xdd" if frame[:1] and frame[0] >> 4 == 6 else b"\x08\x00"
        return bytes(12) + kind + frame, length + 14, "in"
    if link == COOKED_LINK and len(frame) >= 16:
        direction: Direction = "out" if frame[1] == 4 else "in"
        return bytes(6) + frame[6:12] + frame[14:], length - 2, direction
    raise _refuse(
        source, f"byte {at}", f"link type {link} is not supported: only Ethernet, raw IP and Linux cooked are"
    )
