"""Port 53 of one namespace, UDP and TCP: a CoreDNS pod, or the resolver outside the cluster.

Each is one dual-stack socket (``[::]``, an IPv4 one where the kernel has no IPv6) whose UDP answers leave from the
address that was asked. Most questions are the same few bytes again and again: their answers are kept until the zone
changes.
"""

from __future__ import annotations

import errno
import random
import socket
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from emulator.dns.control import Counters, Place
from emulator.dns.forward import Forwarder
from emulator.dns.message import LARGEST, Query, Rendered, Sections, prepared, question_for, read, refusal, render
from emulator.dns.records import Answer
from emulator.kernel.syscalls import inside
from emulator.traffic.loop import READ, WRITE, Loop

PORT = 53
BACKLOG = 256
DATAGRAMS_AT_ONCE = 64  # of one socket before the others get their turn
CONNECTIONS = 512  # of one place; the one that was idle longest makes room
IDLE_SECONDS = 10.0  # of a TCP connection
OUTPUT_LIMIT = 1 << 20  # bytes that wait for a slow reader before its connection ends
KEPT = 20_000  # answers
RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")

_IP_PKTINFO = 8  # linux/in.h
_PKTINFO6 = struct.Struct("=16sI")  # struct in6_pktinfo
_PKTINFO4 = struct.Struct("=I4s4s")  # struct in_pktinfo

Lookup = Callable[[tuple[str, ...], str], Answer | None]
Reply = Callable[[bytes], None]


class Answers:
    """Answers by the question's bytes behind the id, over UDP; all forgotten when the zone changes."""

    def __init__(self) -> None:
        self.kept: dict[bytes, Rendered] = {}

    def keep(self, question: bytes, answer: Rendered) -> None:
        """Remember an answer."""
        if len(self.kept) >= KEPT:
            self.kept.clear()
        self.kept[question] = answer

    def forget(self) -> None:
        """The zone has changed."""
        self.kept.clear()


class Server:
    """One place. ``lookup`` answers for it what it knows, ``answers`` may be shared by all that know the same."""

    def __init__(self, loop: Loop, place: Place, lookup: Lookup, answers: Answers) -> None:
        """Raises OSError if the namespace or the port cannot be had."""
        self._loop = loop
        self._lookup = lookup
        self._answers = answers
        self.place = place
        self._forwarder = Forwarder(loop, place.netns, [one for one in place.forward if one not in place.addresses])
        self.questions = 0
        self._rcodes: Counter[int] = Counter()
        self._connections: OrderedDict[int, _Connection] = OrderedDict()
        with inside(place.netns):
            self._udp = _listening(socket.SOCK_DGRAM)
            try:
                self._tcp = _listening(socket.SOCK_STREAM)
            except OSError:
                self._udp.close()
                raise
        self._v6 = self._udp.family == socket.AF_INET6
        loop.watch(self._udp.fileno(), READ, self._datagrams)
        loop.watch(self._tcp.fileno(), READ, self._accept)

    def close(self) -> None:
        """Close every socket in the namespace."""
        for sock in (self._udp, self._tcp):
            self._loop.forget(sock.fileno())
            sock.close()
        for connection in list(self._connections.values()):
            connection.close()
        self._forwarder.close()

    def counters(self) -> Counters:
        """What came and went so far."""
        names = {RCODES[code] if code < len(RCODES) else str(code): number for code, number in self._rcodes.items()}
        return Counters(self.place.ns, self.questions, self._forwarder.asked, names)

    # UDP

    def _datagrams(self, events: int) -> None:
        kept, sock, rcodes = self._answers.kept, self._udp, self._rcodes
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                data, control, _, client = sock.recvmsg(LARGEST, 64)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error for an answer of ours: the next call tells of a datagram again
            self.questions += 1
            known = kept.get(data[2:])
            if known is not None:
                self._send(known.with_id(data[:2]), control, client)
                rcodes[known.head[1] & 15] += 1
                continue
            self._answer(data, lambda message, c=control, a=client: self._send(message, c, a), tcp=False)  # type: ignore[misc]

    def _send(self, message: bytes, control: list[tuple[int, int, bytes]], client: tuple[str, int]) -> None:
        try:
            self._udp.sendmsg((message,), self._from_asked_address(control), 0, client)
        except OSError:
            pass  # the route back is gone, a rule forbids it, or we were closed meanwhile: UDP does not retry

    def _from_asked_address(self, control: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
        for level, kind, data in control:
            if self._v6 and (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                return [(level, kind, _PKTINFO6.pack(_PKTINFO6.unpack_from(data)[0], 0))]
            if not self._v6 and (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                return [(level, kind, _PKTINFO4.pack(0, _PKTINFO4.unpack_from(data)[2], bytes(4)))]
        return []

    # Either

    def _answer(self, data: bytes, reply: Reply, *, tcp: bool) -> None:
        query = read(data)
        if query is None:
            return
        if isinstance(query, bytes):
            self._rcodes[query[3] & 15] += 1
            reply(query)
            return
        number, limit = data[:2], LARGEST if tcp else query.size

        def finish(sections: Sections, *, keep: bool = False) -> None:
            rendered = render(query, sections, limit)
            if keep and not tcp and query.plain:
                self._answers.keep(data[2:], rendered)
            self._rcodes[rendered.head[1] & 15] += 1
            reply(rendered.with_id(number))

        try:
            found = self._lookup(query.labels, query.kind)
            if found is None:
                self._forwarder.ask(query, data, tcp, finish)
            elif found.chase:
                self._chase(query, found, tcp, finish)
            else:
                sections = prepared(found)
                finish(sections._replace(recursion=not sections.authoritative), keep=True)
        except ValueError:  # a name in the cluster's objects that no message can hold
            self._rcodes[2] += 1
            reply(refusal(query.id, query.flags, "SERVFAIL"))

    def _chase(self, query: Query, found: Answer, tcp: bool, finish: Callable[[Sections], None]) -> None:
        """Ask upstream for what an alias leads to; whatever comes, the alias is an answer (backend_lookup.go)."""
        wire = question_for(found.chase, query.kind, random.getrandbits(16), query.size if query.edns else 0)
        target = read(wire)
        assert isinstance(target, Query), "we made it"
        ours = prepared(found)

        def behind(theirs: Sections) -> None:
            finish(ours._replace(answer=[*ours.answer, *theirs.answer], truncated=theirs.truncated))

        inside_the_cluster = self._lookup(target.labels, query.kind)
        if inside_the_cluster is not None:
            behind(prepared(inside_the_cluster))
        else:
            self._forwarder.ask(target, wire, tcp, behind)

    # TCP

    def _accept(self, events: int) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                sock, _ = self._tcp.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._connections:
                    next(iter(self._connections.values())).close()
                return
            sock.setblocking(False)
            if len(self._connections) >= CONNECTIONS:
                next(iter(self._connections.values())).close()
            self._connections[sock.fileno()] = _Connection(self._loop, sock, self)

    def close_idle(self, now: float) -> None:
        """End connections over which nothing came for a while."""
        for connection in [one for one in self._connections.values() if one.deadline < now]:
            connection.close()

    def took(self, connection: _Connection, data: bytes) -> None:
        """A question came over TCP."""
        self.questions += 1
        self._connections.move_to_end(connection.fd)
        self._answer(data, connection.send, tcp=True)

    def gone(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._connections.pop(connection.fd, None)


class _Connection:
    """One client over TCP: questions behind their length, answered as answers come (RFC 7766)."""

    def __init__(self, loop: Loop, sock: socket.socket, server: Server) -> None:
        self._loop = loop
        self._sock = sock
        self._server = server
        self._input = bytearray()
        self._output = bytearray()
        self._events = READ
        self.fd = sock.fileno()
        self.deadline = time.monotonic() + IDLE_SECONDS
        loop.watch(self.fd, READ, self._ready)

    def send(self, message: bytes) -> None:
        """Answer, if the client is still there."""
        if self._sock.fileno() >= 0:
            self._output += len(message).to_bytes(2) + message
            self._flush()

    def close(self) -> None:
        """End it."""
        if self._sock.fileno() >= 0:
            self._loop.forget(self.fd)
            self._sock.close()
            self._server.gone(self)

    def _ready(self, events: int) -> None:
        if self._sock.fileno() < 0:
            return
        if events & WRITE:
            self._flush()
        if events & ~WRITE and self._sock.fileno() >= 0:
            try:
                data = self._sock.recv(65535)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self._input += data
            while len(self._input) >= 2 and self._sock.fileno() >= 0:
                end = 2 + int.from_bytes(self._input[:2])
                if len(self._input) < end:
                    return
                message = bytes(self._input[2:end])
                del self._input[:end]
                self.deadline = time.monotonic() + IDLE_SECONDS
                self._server.took(self, message)

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._output)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._output[:sent]
        if len(self._output) > OUTPUT_LIMIT:
            self.close()
            return
        events = READ | (WRITE if self._output else 0)
        if events != self._events:
            self._events = events
            self._loop.change(self.fd, events)


def _listening(kind: int) -> socket.socket:
    """A socket on port 53 of the namespace that this thread is in. Raises OSError."""
    try:
        sock = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        v6 = sock.family == socket.AF_INET6
        if v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind(("::" if v6 else "0.0.0.0", PORT))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
