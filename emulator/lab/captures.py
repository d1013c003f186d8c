"""The captures of a running lab: which of them listen where, while namespaces come and go beneath them."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from emulator.capture import session
from emulator.errors import CnilabError, NotFound
from emulator.lab.records import CaptureStats

CHUNK = 64 * 1024  # bytes
HEARTBEAT = 1.0  # seconds after which a silent stream is looked at: its reader may have gone
SPARE = 64  # namespaces that may be born while a capture runs, beyond those that it begins with
ENDED_AT_BOUND = {
    "max_bytes": "its file reached the size bound",
    "max_packets": "it reached the bound of packets",
    "duration": "its time was over",
    "reader gone": "its reader went away",
}

Hops = Mapping[str, Sequence[str]]


@dataclass(eq=False)
class _Running:
    """One capture: what was asked for (namespace to devices), and where it listens now."""

    handle: session.CaptureHandle
    hops: Hops
    everywhere: bool
    listening: set[str] = field(default_factory=set)

    def wants(self, ns: str) -> bool:
        return self.everywhere or ns in self.hops


class Captures:
    """Starts and ends captures, and keeps them where they should be. Any thread may call any method; those that start
    a capture must not run beside a change of the lab, or they miss what it makes."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self._files: dict[str, str] = {}
        self._lock = threading.Lock()
        self._names = 0

    def start(self, hops: Hops, *, everywhere: bool) -> str:
        """Begin to capture; the name of the capture. ``everywhere``: also in namespaces that are made meanwhile."""
        return self._add(session.start(hops, crowd=len(hops) + SPARE), hops, everywhere=everywhere)

    def stop(self, name: str) -> CaptureStats:
        """End a capture; its file stays until it has been fetched."""
        running = self._pop(name)
        if running is None:
            raise NotFound(f"there is no capture {name!r}")
        ended = running.handle.stop()
        with self._lock:
            self._files[name] = ended.path
        return CaptureStats(
            captured=ended.captured,
            lost=ended.lost,
            bytes=ended.bytes,
            cut=ENDED_AT_BOUND.get(ended.ended, ""),
            missing=tuple(running.handle.missing),
            per_namespace=ended.per_namespace,
        )

    def file(self, name: str) -> Iterator[bytes]:
        """The file of an ended capture, once: it is removed as it has been read."""
        with self._lock:
            path = self._files.pop(name, None)
        if path is None:
            raise NotFound(f"there is no ended capture {name!r}")

        def pieces() -> Iterator[bytes]:
            try:
                with open(path, "rb") as file:
                    while piece := file.read(CHUNK):
                        yield piece
            finally:
                os.unlink(path)

        return pieces()

    def live(self, hops: Hops, seconds: float = 0.0, *, everywhere: bool) -> Iterator[bytes]:
        """A capture as it is taken; it ends after ``seconds`` (0: never) and when the generator is closed. Empty pieces
        come while nothing is seen."""
        read, write = os.pipe()
        try:
            handle = session.start(hops, output=write, duration=seconds, crowd=len(hops) + SPARE)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        name = self._add(handle, hops, everywhere=everywhere)

        def pieces() -> Iterator[bytes]:
            try:
                while True:
                    if not select.select([read], [], [], HEARTBEAT)[0]:
                        yield b""
                        continue
                    piece = os.read(read, CHUNK)
                    if not piece:
                        return
                    yield piece
            finally:
                os.close(read)
                self._pop(name)
                handle.discard()

        return pieces()

    def born(self, ns: str) -> None:
        """A namespace has been made. Whoever still listens in one of that name listens to a dead one."""
        self.let_go(ns)
        self.take_in(ns)

    def take_in(self, ns: str) -> None:
        """A namespace is there: whoever wants its packets listens from now on, unless he does already."""
        for running in self._all():
            if running.wants(ns) and ns not in running.listening:
                try:
                    if running.handle.add(ns, running.hops.get(ns, ())):
                        running.listening.add(ns)
                except (CnilabError, OSError):
                    continue  # a capture that has died says so when it is ended; no change of the lab fails of it

    def let_go(self, ns: str) -> None:
        """A namespace goes, or has gone: an open capture would keep it alive."""
        for running in self._all():
            if ns in running.listening:
                running.listening.discard(ns)
                try:
                    running.handle.remove(ns)
                except (CnilabError, OSError):
                    continue  # a dead capture holds nothing

    def _add(self, handle: session.CaptureHandle, hops: Hops, *, everywhere: bool) -> str:
        running = _Running(handle, hops, everywhere, set(hops) - set(handle.missing))
        with self._lock:
            self._names += 1
            name = f"c{self._names}"
            self._running[name] = running
        return name

    def _pop(self, name: str) -> _Running | None:
        with self._lock:
            return self._running.pop(name, None)

    def _all(self) -> list[_Running]:
        with self._lock:
            return list(self._running.values())
