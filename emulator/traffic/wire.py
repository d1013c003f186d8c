"""The frames between the lab process and the traffic engine: msgpack behind a 4-byte length, over a socket pair.

Every request carries an id and gets exactly one :class:`Done` or :class:`Failed` with that id, in any order.
:class:`Hello` and :class:`Notice` come unasked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from emulator.traffic.model import Probe, Server

LARGEST_FRAME = 256 << 20  # bytes: a million probes with their addresses; anything larger is a broken peer
_LENGTH = struct.Struct("!I")


class Request(msgspec.Struct, frozen=True, tag=True):
    """What every request has: an id that its answer repeats."""

    id: int


class Serve(Request, frozen=True):
    """Listen as ``servers`` say; what their namespaces served before and do not any more is closed."""

    servers: tuple[Server, ...]


class Stop(Request, frozen=True):
    """Close the servers of these namespaces of the plan."""

    ns: tuple[str, ...]


class RunProbes(Request, frozen=True):
    """Send these probes at once; the answer is a list of ``ProbeResult`` in the same order."""

    probes: tuple[Probe, ...]


class StartStream(Request, frozen=True):
    """Repeat ``probe`` ``rate`` times a second until :class:`StopStream` with the same ``stream``."""

    stream: str
    probe: Probe
    rate: float


class StopStream(Request, frozen=True):
    """End a stream; the answer is its ``StreamReport``. ``grace`` seconds are left for answers under way."""

    stream: str
    grace: float


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The engine is ready. ``files`` is how many descriptors it may open."""

    files: int


class Notice(msgspec.Struct, frozen=True, tag=True):
    """Something that a user may want to know and that no request waits for."""

    text: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer to a request; what ``value`` holds depends on the request."""

    id: int
    value: Any = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A request could not be done. ``kind`` is the name of a class of ``emulator.errors``."""

    id: int
    kind: str
    message: str


AnyRequest = Serve | Stop | RunProbes | StartStream | StopStream
AnyReply = Hello | Notice | Done | Failed

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_replies: msgspec.msgpack.Decoder[AnyReply] = msgspec.msgpack.Decoder(AnyReply)


def frame(message: AnyRequest | AnyReply) -> bytes:
    """One message, ready to be sent."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def decode_request(body: bytes) -> AnyRequest:
    """Raises msgspec.DecodeError for anything else than a request."""
    return _requests.decode(body)


def decode_reply(body: bytes) -> AnyReply:
    """Raises msgspec.DecodeError for anything else than a reply."""
    return _replies.decode(body)


class Unframer:
    """Cuts a byte stream into message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that ``data`` completes. Raises ValueError if a length is beyond :data:`LARGEST_FRAME`."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > LARGEST_FRAME:
                raise ValueError(f"a frame of {length} bytes is larger than {LARGEST_FRAME}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield body
