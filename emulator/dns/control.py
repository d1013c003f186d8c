"""The frames between the lab process and the DNS process: msgpack behind a 4-byte length, over a socket pair.

Requests are answered in their order, each by one :class:`Done` or :class:`Failed` with its id. Once an answer is there,
what was asked for is in force: the next packet that a server gets is answered by it.
"""

from __future__ import annotations

import struct
from typing import Any, Literal

import msgspec

from emulator.cluster.services import EndpointSlice, Service

_LENGTH = struct.Struct("!I")


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """A namespace in which port 53 is served. ``netns`` is a path. ``cluster``: as CoreDNS, foreign names go on to the
    resolvers ``forward``; ``upstream``: as the resolver outside. ``addresses`` are its own."""

    ns: str
    netns: str
    role: Literal["cluster", "upstream"]
    addresses: tuple[str, ...] = ()
    forward: tuple[str, ...] = ()


class Request(msgspec.Struct, frozen=True, tag=True):
    """What every request has: an id that its answer repeats."""

    id: int


class Update(Request, frozen=True, omit_defaults=True):
    """What changed in the cluster. ``namespaces`` None: nothing."""

    services: tuple[Service, ...] = ()
    gone_services: tuple[tuple[str, str], ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    gone_slices: tuple[tuple[str, str], ...] = ()
    namespaces: tuple[str, ...] | None = None


class Serve(Request, frozen=True, omit_defaults=True):
    """Serve in these places too, or differently than before. ``records`` are those of the resolver outside."""

    places: tuple[Place, ...]
    records: dict[str, tuple[str, ...]] = {}


class Stop(Request, frozen=True):
    """Close the sockets in these namespaces of the plan."""

    ns: tuple[str, ...]


class Count(Request, frozen=True):
    """Asks for :class:`Counters` of each place."""


class Counters(msgspec.Struct, frozen=True):
    """Of one place since it is served: questions that came, those that were passed on, what came back by rcode."""

    ns: str
    questions: int
    forwarded: int
    rcodes: dict[str, int]


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is so."""

    id: int
    value: Any = None
    notices: tuple[str, ...] = ()


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It could not be done."""

    id: int
    message: str


AnyRequest = Update | Serve | Stop | Count
AnyReply = Done | Failed

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
