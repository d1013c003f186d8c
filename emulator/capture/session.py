"""Start and stop capture processes from the lab process.

The sniffer is a process of its own so that a busy lab cannot make it lose packets. It is told what to do in lines of
JSON (:mod:`emulator.capture.sniffer`) and ends with our end of its standard input, however we end.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from emulator.errors import DaemonError
from emulator.kernel.netns import netns_path

CAPTURES = Path("/run/cnilab/captures")  # in the lab's private tmpfs: gone with the lab
MAX_BYTES = 256 * 1024 * 1024  # bytes of a capture file, unless asked otherwise: it is held in memory
START_TIMEOUT = 20.0  # seconds; it takes 0.06 on an idle machine
STOP_TIMEOUT = 60.0  # seconds; what is left in the rings is written first

Namespaces = Mapping[str, Sequence[str]] | Iterable[str]


class CaptureStats(msgspec.Struct, frozen=True):
    """How a capture ended: the file (empty if it was streamed), packets taken, packets that the kernel dropped for want
    of room, bytes written, why it ended (``stop``, ``duration``, ``max_packets``, ``max_bytes``, ``reader gone``), and
    the first two per namespace."""

    path: str
    captured: int
    lost: int
    bytes: int
    ended: str
    per_namespace: dict[str, dict[str, int]]


def start(
    namespaces: Namespaces,
    *,
    output: int | None = None,
    directory: Path = CAPTURES,
    snaplen: int = 0,
    duration: float = 0.0,
    max_packets: int = 0,
    max_bytes: int = MAX_BYTES,
    ring: int = 0,
    crowd: int = 0,
) -> CaptureHandle:
    """Capture in ``namespaces`` of the plan, or in those devices of them that a mapping names; none named: all.

    Returns once every socket listens: what is sent from then on is seen. ``output`` streams the pcapng to a descriptor
    instead of a file. Limits of 0 are none; ``snaplen``, ``ring``, ``max_bytes`` are bytes, ``duration`` seconds.
    ``crowd`` is how many namespaces may come to be captured. Raises DaemonError if the process does not start, or none
    of the namespaces is there.
    """
    devices = dict(namespaces) if isinstance(namespaces, Mapping) else dict.fromkeys(namespaces, ())
    path = ""
    if output is None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(suffix=".pcapng", dir=directory)
        os.close(descriptor)
    request = {
        "output": path if output is None else output,
        "namespaces": [_wanted(ns, chosen) for ns, chosen in devices.items()],
        "snaplen": snaplen,
        "duration": duration,
        "max_packets": max_packets,
        "max_bytes": max_bytes,
        "ring": ring,
        "crowd": crowd,
    }
    return CaptureHandle(request, path, () if output is None else (output,))


def _wanted(ns: str, devices: Sequence[str]) -> dict[str, Any]:
    return {"ns": ns, "netns": netns_path(ns), "devices": list(devices) or None}


class CaptureHandle:
    """A running capture. ``missing`` are the namespaces that were not there at its start. Thread-safe."""

    def __init__(self, request: dict[str, Any], path: str, descriptors: tuple[int, ...]) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._buffer = b""
        self._stats: CaptureStats | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "emulator.capture.sniffer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=descriptors,
            bufsize=0,
        )
        try:
            self._send(request)
            self.missing: list[str] = self._answer("ready", START_TIMEOUT)["missing"]
            if self.missing and len(self.missing) == len(request["namespaces"]):
                raise DaemonError(f"there is nothing to capture: none of {', '.join(self.missing)} exists")
        except BaseException:
            self.discard()
            raise

    @property
    def pid(self) -> int:
        """The process id of the sniffer."""
        return self._process.pid

    def add(self, ns: str, devices: Sequence[str] = ()) -> bool:
        """Capture in one more namespace, from when this returns; False if it is not there, or the capture has ended."""
        with self._lock:
            if self._stats is not None:
                return False
            self._send({"add": _wanted(ns, devices)})
            return not self._answer("added", START_TIMEOUT).get("missing", True)

    def remove(self, ns: str) -> None:
        """Let go of a namespace that is about to be deleted: an open capture keeps it, and its devices, alive."""
        with self._lock:
            if self._stats is None:
                self._send({"remove": ns})
                self._answer("removed", START_TIMEOUT)

    def stop(self) -> CaptureStats:
        """End the capture with everything that was sent until now. Stopping again returns the same."""
        with self._lock:
            if self._stats is None:
                self._send({"stop": True})
                self._answer("captured", STOP_TIMEOUT)
            assert self._stats is not None
            self._end()
            return self._stats

    def discard(self) -> None:
        """End the capture, however it stands, and remove its file."""
        self._process.kill()
        self._end()
        if self.path:
            Path(self.path).unlink(missing_ok=True)

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()
        self._errors.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            pass  # it has ended by itself; its last words are still to be read

    def _answer(self, key: str, timeout: float) -> dict[str, Any]:
        """The next status line that holds ``key``, or the closing one if the capture ended by itself."""
        deadline = time.monotonic() + timeout
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                message: dict[str, Any] = json.loads(line)
                if "captured" in message:
                    self._stats = msgspec.convert({"path": self.path, **message}, CaptureStats)
                if key in message or self._stats is not None:
                    return message
                continue
            assert self._process.stdout is not None
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise DaemonError(f"the capture did not answer within {timeout:g} seconds", log=self._last_words())
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise DaemonError("the capture process died", log=self._last_words())
            self._buffer += data

    def _last_words(self) -> tuple[str, ...]:
        self._errors.seek(0)
        return tuple(self._errors.read().decode(errors="replace").splitlines()[-10:])
