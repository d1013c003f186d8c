"""The capture process: every frame on every device of a lab's namespaces into one pcapng.

Run as ``python -m emulator.capture.sniffer`` in the mount and process namespaces of the lab. It is spoken to in lines
of JSON::

    stdin   {"output": PATH | FD | "-", "namespaces": [{"ns": "node/n1", "netns": "/run/netns/n1", "devices": null}],
             "snaplen": BYTES, "duration": SECONDS, "max_packets": N, "max_bytes": N, "ring": BYTES, "crowd": N}
    stdout  {"ready": true, "missing": [NS, ...]}          every packet sent from now on is seen, none from before
    stdin   {"add": {"ns": ..., "netns": ..., "devices": ...}}
    stdout  {"added": NS, "missing": BOOLEAN}
    stdin   {"remove": NS}                                    what it holds is kept; its namespace is let go
    stdout  {"removed": NS}
    stdin   {"stop": true}                                    or end of file, or SIGTERM
    stdout  {"captured": N, "lost": N, "bytes": N, "ended": WHY, "per_namespace": {NS: {"captured": N, "lost": N}}}

Only ``output`` and ``namespaces`` are needed. With output ``-`` the pcapng goes to standard output, flushed as it
comes, and the status lines to standard error. An inherited descriptor may be given by its number. ``devices`` names the
only devices wanted; without it all but the loopback are taken. ``crowd`` is how many namespaces may be expected in all.
A namespace whose file under ``/run/netns`` has gone is let go by itself within half a second.

Frames are first copied from the shared rings, whole blocks at a time, and made into pcapng blocks when no ring is
waiting: bursts land in our memory rather than on the floor. That backlog is bounded; beyond it the rings fill, and
what the kernel then drops is counted and said.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
from collections import deque
from functools import partial
from typing import Any

from emulator.capture import blocks
from emulator.capture.ring import (
    ARPHRD_LOOPBACK,
    PACKET,
    PACKET_OUTGOING,
    PACKET_RECEPTION,
    STATUS_CSUM_NOT_READY,
    STATUS_VLAN_TPID_VALID,
    STATUS_VLAN_VALID,
    NamespaceMissing,
    Ring,
    close_rings,
    open_rings,
    ring_shape,
    settle,
)

SNAPLEN = 262144  # bytes, as tcpdump and dumpcap
BACKLOG = 256 * 1024 * 1024  # bytes copied from the rings and not yet written
CHUNK = 1024 * 1024  # bytes per write to a file
LOOK_AFTER = 0.25  # seconds between two looks for vanished namespaces
ETHERNET_LIKE = (1, ARPHRD_LOOPBACK)  # sll_hatype of devices whose frames start with an Ethernet header
NOT_WANTED = -1


class Source:
    """One namespace under capture: its ring, and which of its devices has which interface number in the file."""

    def __init__(self, ns: str, netns: str, devices: list[str] | None, ring: Ring) -> None:
        self.ns, self.netns, self.devices, self.ring = ns, netns, devices, ring
        self.interfaces: dict[int, int] = {}
        self.captured = 0
        self.lost = 0
        self.gone = False  # its file was missing at the last look
        self.since = 0  # ns since the epoch: what is older is left out


class Sniffer:
    """The state of one capture: what is captured from, and what has been written."""

    def __init__(self, request: dict[str, Any]) -> None:
        output = request["output"]
        self.streaming = output == "-" or isinstance(output, int)
        if output == "-":
            self.output, self.status = 1, 2
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self.output = output if isinstance(output, int) else os.open(output, flags, 0o600)
            self.status = 1
        self.snaplen = int(request.get("snaplen") or SNAPLEN)
        self.max_packets = int(request.get("max_packets") or 0)
        self.max_bytes = int(request.get("max_bytes") or 0)
        duration = float(request.get("duration") or 0)
        self.deadline = time.monotonic() + duration if duration else 0.0
        self.sources: dict[int, Source] = {}
        self.finished: list[Source] = []
        self.backlog: deque[tuple[Source, bytes]] = deque()
        self.waiting = 0  # bytes in the backlog
        self.tails: dict[tuple[int, int, int], bytes] = {}
        self.interfaces = 0
        self.captured = 0
        self.written = 0
        self.ended = ""
        self.epoll = select.epoll()
        uname = os.uname()
        self.parts = [blocks.section_header("cnilab", f"{uname.sysname} {uname.release}")]
        self.size = len(self.parts[0])
        listed = request["namespaces"]
        self.shape = ring_shape(max(len(listed), int(request.get("crowd") or 0)), int(request.get("ring") or 0))
        missing = self.add(listed)
        # Before all listen a packet would be seen at some of its hops only: that is no part of the capture.
        listening = time.time_ns()
        for source in self.sources.values():
            source.since = listening
        self.flush()
        self.say({"ready": True, "missing": missing})

    def say(self, message: dict[str, Any]) -> None:
        """One status line."""
        os.write(self.status, json.dumps(message).encode() + b"\n")

    def add(self, wanted: list[dict[str, Any]]) -> list[str]:
        """Start to listen in namespaces; those that are not there are returned."""
        listening = {source.ns for source in self.sources.values()}
        fresh = [each for each in wanted if each["ns"] not in listening]
        missing = []
        for each, ring in zip(fresh, open_rings([partial(self._ring, each) for each in fresh]), strict=True):
            if isinstance(ring, Ring):
                self.sources[ring.fileno()] = Source(each["ns"], each["netns"], each.get("devices"), ring)
                self.epoll.register(ring.fileno(), select.EPOLLIN)
            elif isinstance(ring, NamespaceMissing):
                missing.append(each["ns"])
            else:
                raise ring
        return missing

    def _ring(self, wanted: dict[str, Any]) -> Ring:
        loopback = "lo" in (wanted.get("devices") or ())
        return Ring(wanted["netns"], self.shape, self.snaplen, loopback=loopback)

    def release(self, source: Source) -> None:
        """Stop listening in a namespace, keeping what it has seen."""
        source.ring.freeze()
        settle()
        self._drain(source)
        # Names are asked of the socket: convert while it is open.
        while any(waiting is source for waiting, _ in self.backlog):
            self.convert()
        self.epoll.unregister(source.ring.fileno())
        del self.sources[source.ring.fileno()]
        source.ring.close()
        self.finished.append(source)

    def _drain(self, source: Source) -> None:
        for block in source.ring.rest():
            self.backlog.append((source, block))
            self.waiting += len(block)
        source.lost += source.ring.lost()

    def release_vanished(self) -> None:
        """Let go of namespaces whose file has been removed: our socket would keep them, and their devices, alive."""
        for source in list(self.sources.values()):
            if os.path.exists(source.netns):
                source.gone = False
            elif source.gone:
                self.release(source)
            else:
                source.gone = True  # let go at the second look: the file may be missing for a moment only

    def take(self, timeout: float) -> None:
        """Copy what the rings hold, waiting at most ``timeout`` seconds for something to be there."""
        for fd, _ in self.epoll.poll(timeout):
            source = self.sources.get(fd)
            if source is None:
                continue
            for block in source.ring.take():
                self.backlog.append((source, block))
                self.waiting += len(block)

    def convert(self) -> None:
        """Make the oldest block of the backlog into pcapng blocks."""
        source, block = self.backlog.popleft()
        self.waiting -= len(block)
        packets, at = int.from_bytes(block[12:16], sys.byteorder), int.from_bytes(block[16:20], sys.byteorder)
        append, unpack, pack = self.parts.append, PACKET.unpack_from, blocks.PACKET_HEAD.pack
        known, tails, since, size, taken = source.interfaces.get, self.tails, source.since, 0, 0
        for _ in range(packets):
            step, seconds, nanoseconds, captured, length, status, mac, tci, tpid, protocol, index, hardware, kind = (
                unpack(block, at)
            )
            interface = known(index)
            if interface is None:
                interface = self._interface(source, index)
            stamp = seconds * 1_000_000_000 + nanoseconds
            if interface != NOT_WANTED and stamp >= since:
                frame = block[at + mac : at + mac + captured]
                if hardware not in ETHERNET_LIKE:
                    # A device without Ethernet (tunl0): zero MACs keep one link type in the whole file.
                    frame = bytes(12) + protocol.to_bytes(2, sys.byteorder) + frame
                    captured, length = captured + 14, length + 14
                if status & STATUS_VLAN_VALID:
                    tag = tpid if status & STATUS_VLAN_TPID_VALID else 0x8100
                    frame = frame[:12] + tag.to_bytes(2, "big") + tci.to_bytes(2, "big") + frame[12:]
                    captured, length = len(frame), length + 4
                shape = (captured, kind, status & STATUS_CSUM_NOT_READY)
                tail = tails.get(shape)
                if tail is None:
                    tail = self._tail(shape)
                total = 28 + captured + len(tail)
                append(pack(6, total, interface, stamp >> 32, stamp & 0xFFFFFFFF, captured, length))
                append(frame)
                append(tail)
                size += total
                taken += 1
            at += step
        self.size += size
        source.captured += taken
        self.captured += taken

    def _interface(self, source: Source, index: int) -> int:
        name = source.ring.device_name(index)
        if source.devices is not None and name not in source.devices:
            number = NOT_WANTED
        else:
            number = self.interfaces
            self.interfaces += 1
            part = blocks.interface(f"{os.path.basename(source.netns)}:{name}", source.ns, self.snaplen)
            self.parts.append(part)
            self.size += len(part)
        source.interfaces[index] = number
        return number

    def _tail(self, shape: tuple[int, int, int]) -> bytes:
        captured, kind, pending = shape
        if kind == PACKET_OUTGOING:
            flags = blocks.FLAG_OUTBOUND
        else:
            flags = blocks.FLAG_INBOUND | PACKET_RECEPTION.get(kind, 0) << blocks.RECEPTION_SHIFT
        tail = blocks.packet_tail(captured, flags, blocks.CHECKSUM_PENDING.encode() if pending else b"")
        self.tails[shape] = tail
        return tail

    def flush(self) -> None:
        """Write what has been converted."""
        data = memoryview(b"".join(self.parts))
        self.parts.clear()
        self.written += len(data)
        self.size = 0
        try:
            while data:
                data = data[os.write(self.output, data) :]
        except BrokenPipeError:
            self.ended = self.ended or "reader gone"

    def over(self) -> bool:
        """Whether a limit of the request has been reached."""
        if self.deadline and time.monotonic() >= self.deadline:
            self.ended = "duration"
        elif self.max_packets and self.captured >= self.max_packets:
            self.ended = "max_packets"
        elif self.max_bytes and self.written + self.size >= self.max_bytes:
            self.ended = "max_bytes"
        return bool(self.ended)

    def finish(self) -> None:
        """Take what the rings still hold, close the file, and say what was captured and lost."""
        sources = list(self.sources.values())
        for source in sources:
            source.ring.freeze()
        settle()
        for source in sources:
            self._drain(source)
        while self.backlog:
            self.convert()
        now, per_namespace = time.time_ns(), dict[str, dict[str, int]]()
        for source in self.finished + sources:
            row = per_namespace.setdefault(source.ns, {"captured": 0, "lost": 0})
            row["captured"] += source.captured
            row["lost"] += source.lost
            number = max(source.interfaces.values(), default=NOT_WANTED)
            if number != NOT_WANTED:
                self.parts.append(blocks.statistics(number, now, source.captured, source.lost))
        self.flush()
        lost = sum(row["lost"] for row in per_namespace.values())
        self.say(
            {
                "captured": self.captured,
                "lost": lost,
                "bytes": self.written,
                "ended": self.ended or "stop",
                "per_namespace": per_namespace,
            }
        )
        close_rings([source.ring for source in sources])

    def run(self, control: int) -> None:
        """Capture until told to stop."""
        self.epoll.register(control, select.EPOLLIN)
        os.set_blocking(control, False)
        look = time.monotonic() + LOOK_AFTER
        pending = b""
        while not self.over():
            now = time.monotonic()
            wait = 0.0 if self.backlog else max(0.0, min(look, self.deadline or look) - now)
            if self.waiting < BACKLOG:
                self.take(wait)
            try:
                data = os.read(control, 65536)
            except BlockingIOError:
                data = None
            if data is not None:
                *lines, pending = (pending + data).split(b"\n")
                if not all(self.obey(json.loads(line)) for line in lines if line.strip()) or not data:
                    return
            if self.backlog:
                self.convert()
            if self.size >= CHUNK or (self.size and not self.backlog):
                self.flush()
            if now >= look:
                look = now + LOOK_AFTER
                self.release_vanished()

    def obey(self, message: dict[str, Any]) -> bool:
        """Carry out one line of control; False means stop."""
        if "add" in message:
            missing = self.add([message["add"]])
            self.say({"added": message["add"]["ns"], "missing": bool(missing)})
        elif "remove" in message:
            for source in list(self.sources.values()):
                if source.ns == message["remove"]:
                    self.release(source)
            self.say({"removed": message["remove"]})
        return not message.get("stop")


class Stopped(BaseException):
    """SIGTERM."""


def _on_terminate(_signal: int, _frame: object) -> None:
    raise Stopped


def _first_line(control: int) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(control, 1)  # one at a time: what follows belongs to the control loop
        if not byte:
            break
        line += byte
    request: dict[str, Any] = json.loads(line)
    return request


def main() -> int:
    """The process. Exit status 0, or 1 with one line on standard error."""
    gc.disable()  # nothing here makes cycles, and a collection over a large backlog would stall the rings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command that started us; it sends stop
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        sniffer = Sniffer(_first_line(0))
    except (OSError, ValueError, KeyError) as error:
        print(f"capture cannot start: {error}", file=sys.stderr)
        return 1
    except Stopped:
        return 0
    try:
        sniffer.run(0)
    except Stopped:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        sniffer.finish()
    except OSError as error:
        print(f"capture cannot be written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
