"""A NETLINK_ROUTE socket that takes requests by the hundred, and tells which of them the kernel refused.

Set-up time is made of round trips and of encoding. So many messages go into one sendmsg(2): the kernel works
through the buffer in order, a refused message does not stop those behind it, and only the last one asks for an
acknowledgement (errors are always reported, so silence about the others means that they were accepted). Extended
acknowledgements carry the kernel's own words, and only the header of the request is sent back.

Sources: netlink(7), rtnetlink(7), Linux Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from emulator.kernel.syscalls import inside
from emulator.plan.model import AnyObject

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP = 0x300

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_ACK_TLVS = 0x200  # in an acknowledgement: attributes follow
NLM_F_DUMP_INTR = 0x10  # the table changed while it was dumped
NLMSGERR_ATTR_MSG = 1
NLA_TYPE_MASK = 0x3FFF  # the two high bits say "nested" and "network byte order"

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
ATTRIBUTE = struct.Struct("=HH")  # length, type

SEND_LIMIT = 128 * 1024  # bytes in one sendmsg: the kernel copies them into one buffer, bounded by SO_SNDBUF (212,992)
RECEIVE_BUFFER = 1024 * 1024  # bytes: room for an error about every message of a full buffer
RECEIVE_SIZE = 256 * 1024  # bytes: the largest skb of a dump is well below
TIMEOUT = 30.0  # seconds: the kernel answers in the same call; this only guards against a bug of ours


@dataclass(slots=True)
class Request:
    """One message: ``payload`` is what follows the netlink header. ``subject`` is the object that it is about."""

    type: int
    flags: int
    payload: bytes
    subject: AnyObject | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the kernel did not carry out: errno, and its own words if it gave any."""

    request: Request
    errno: int
    detail: str

    @property
    def reason(self) -> str:
        """``Invalid argument (Nexthop has invalid gateway)``."""
        text = os.strerror(self.errno)
        return f"{text} ({self.detail})" if self.detail else text


def attributes(data: bytes | memoryview, offset: int, end: int | None = None) -> dict[int, memoryview]:
    """The attributes between two offsets of a message, by number; a repeated one counts once, the last."""
    view = memoryview(data)
    end = len(view) if end is None else end
    found: dict[int, memoryview] = {}
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(view, offset)
        if length < 4:
            break
        found[kind & NLA_TYPE_MASK] = view[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


class Channel:
    """A socket in one network namespace (a path or descriptor; None: the one that the thread is in)."""

    def __init__(self, netns: str | int | None = None, groups: int = 0) -> None:
        if netns is None:
            self._socket = _open(groups)
        else:
            with inside(netns):
                self._socket = _open(groups)
        self._sequence = 0

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, requests: Sequence[Request]) -> list[Refusal]:
        """Have the kernel carry out the requests in order; return those that it refused."""
        refusals: list[Refusal] = []
        start = 0
        while start < len(requests):
            size = 0
            stop = start
            while stop < len(requests) and (stop == start or size + len(requests[stop].payload) + 20 <= SEND_LIMIT):
                size += len(requests[stop].payload) + 20
                stop += 1
            refusals += self._submit(requests[start:stop])
            start = stop
        return refusals

    def _submit(self, requests: Sequence[Request]) -> list[Refusal]:
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(requests)
        parts: list[bytes] = []
        for sequence, request in enumerate(requests, first):
            flags = request.flags | NLM_F_REQUEST | (NLM_F_ACK if sequence == last else 0)
            length = HEADER.size + len(request.payload)
            parts.append(HEADER.pack(length, request.type, flags, sequence, 0))
            parts.append(request.payload)
            if length & 3:
                parts.append(bytes(-length & 3))
        self._socket.send(b"".join(parts))
        refusals: list[Refusal] = []
        while True:
            for kind, flags, sequence, body in self._receive():
                if kind != NLMSG_ERROR or not first <= sequence <= last:
                    continue
                error = -int(struct.unpack_from("=i", body)[0])
                if error:
                    refusals.append(Refusal(requests[sequence - first], error, _words(flags, body)))
                if sequence == last:
                    return refusals

    def dump(self, kind: int, payload: bytes) -> Iterator[memoryview]:
        """The messages of a table, each without its netlink header.

        A table that changed meanwhile is read again (five times at most, then taken as it is).
        """
        for attempt in range(5):
            messages, torn = self._dump(kind, payload)
            if not torn or attempt == 4:
                return iter(messages)
        raise AssertionError("unreachable")

    def _dump(self, kind: int, payload: bytes) -> tuple[list[memoryview], bool]:
        self._sequence += 1
        length = HEADER.size + len(payload)
        header = HEADER.pack(length, kind, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0)
        self._socket.send(header + payload + bytes(-length & 3))
        messages: list[memoryview] = []
        torn = False
        while True:
            for got, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                torn = torn or bool(flags & NLM_F_DUMP_INTR)
                if got == NLMSG_DONE:
                    return messages, torn
                if got == NLMSG_ERROR:
                    error = -int(struct.unpack_from("=i", body)[0])
                    raise OSError(error, f"netlink dump {kind}: {os.strerror(error)}")
                messages.append(body)

    def notifications(self) -> Iterator[tuple[int, memoryview]]:
        """What waits in the socket of a channel that joined multicast groups: (type, body) pairs."""
        for kind, _, _, body in self._receive():
            yield kind, body

    def _receive(self) -> Iterator[tuple[int, int, int, memoryview]]:
        data = memoryview(self._socket.recv(RECEIVE_SIZE))
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset + HEADER.size : offset + length]
            offset += (length + 3) & ~3


def _open(groups: int) -> socket.socket:
    """A bound NETLINK_ROUTE socket of the current namespace."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        opened.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        opened.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        opened.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        opened.settimeout(TIMEOUT)
        opened.bind((0, groups))
    except BaseException:
        opened.close()
        raise
    return opened


def _words(flags: int, body: memoryview) -> str:
    """The kernel's message in an extended acknowledgement, if there is one."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    text = attributes(body, 4 + HEADER.size).get(NLMSGERR_ATTR_MSG)
    return bytes(text).rstrip(b"\0").decode(errors="replace") if text is not None else ""


def link_indexes(channel: Channel) -> dict[str, int]:
    """Every device of the channel's namespace, by name."""
    found: dict[str, int] = {}
    for body in channel.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)):
        name = attributes(body, _IFINFO.size).get(IFLA_IFNAME)
        if name is not None:
            found[bytes(name).rstrip(b"\0").decode()] = int(_IFINFO.unpack_from(body)[2])
    return found


RTM_GETLINK = 18
IFLA_IFNAME = 3
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
