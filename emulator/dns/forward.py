"""Questions for others: CoreDNS' ``forward . /etc/resolv.conf { max_concurrent 1000 }`` and ``cache 30``.

A question goes out as a real packet from the pod that was asked, over the protocol that it came by, each from a socket
of its own while it waits (idle ones are used again for ten seconds). An upstream server has two seconds, then the next
one is asked, for five seconds in all; then the answer is SERVFAIL (coredns ``plugin/forward``, ``plugin/pkg/proxy``).
Nothing is ever forwarded twice by us: the upstream server in the topology forwards nothing, and our own addresses are
never asked, so no question goes round (CoreDNS finds such a ring by its ``loop`` plugin, and stops).
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence

from emulator.dns.message import Query, Rr, Sections, received
from emulator.kernel.syscalls import inside
from emulator.traffic.loop import READ, WRITE, Loop, Timer

TRY_SECONDS = 2.0  # for one server to answer
ALL_SECONDS = 5.0  # after which no further server is tried
REFUSALS = 2  # ICMP port unreachable or RST from every server, so often, ends it early
IDLE_SECONDS = 10.0  # for which a socket is kept for the next question
AT_ONCE = 1000  # max_concurrent of kubeadm's Corefile; more are refused
CACHE_SECONDS = 30  # the most, of answers and denials: `cache 30`
CACHE_LEAST = 5  # seconds that an answer is kept even if its TTL is shorter
SERVFAIL_SECONDS = 5
CACHE_SIZE = 9984  # answers

Answered = Callable[[Sections], None]
CacheKey = tuple[tuple[str, ...], int, bool, bool]


class Forwarder:
    """What one CoreDNS pod asks others."""

    def __init__(self, loop: Loop, netns: str, servers: Sequence[str]) -> None:
        self._loop = loop
        self._netns = netns
        self._servers = tuple(servers)
        self._idle: dict[str, deque[tuple[float, socket.socket]]] = {}
        self._under_way: set[_Exchange] = set()
        self._cache: dict[CacheKey, tuple[float, float, Sections]] = {}
        self.asked = 0

    def ask(self, query: Query, wire: bytes, tcp: bool, answered: Answered) -> None:
        """Have ``wire``, which holds ``query``, answered by others. ``answered`` may be called at once."""
        key = (query.labels, query.rdtype, query.wants_dnssec, bool(query.flags & 0x0010))
        if (known := self._cached(key)) is not None:
            answered(known)
            return
        if not self._servers or len(self._under_way) >= AT_ONCE:
            # Without a resolver to forward to, no plugin of CoreDNS takes the question.
            answered(Sections("REFUSED"))
            return

        def keep(sections: Sections) -> None:
            answered(self._remember(key, sections))

        self.asked += 1
        exchange = _Exchange(self, wire, tcp, keep)
        self._under_way.add(exchange)
        exchange.begin()

    def close(self) -> None:
        """Give up everything under way, and close all sockets."""
        for exchange in list(self._under_way):
            exchange.abandon()
        self._under_way.clear()
        for sockets in self._idle.values():
            for _, sock in sockets:
                sock.close()
        self._idle.clear()

    def _cached(self, key: CacheKey) -> Sections | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        stored, until, sections = entry
        now = time.monotonic()
        if now >= until:
            del self._cache[key]
            return None
        return _with_ttl(sections, int(until - stored) - int(now - stored))

    def _remember(self, key: CacheKey, sections: Sections) -> Sections:
        """The answer as it goes to the client: with the TTL that the cache gives it."""
        if sections.truncated or sections.rcode not in ("NOERROR", "NXDOMAIN", "SERVFAIL"):
            return sections
        if sections.rcode == "SERVFAIL":
            seconds = SERVFAIL_SECONDS
        else:
            negative = sections.rcode == "NXDOMAIN" or not sections.answer
            records = [*sections.answer, *sections.authority, *sections.additional]
            lowest = min((rr.ttl for rr in records), default=CACHE_SECONDS if not negative else CACHE_LEAST)
            minima = [rr.rdata.minimum for rr in sections.authority if rr.rdata.rdtype == 6] if negative else []  # type: ignore[attr-defined]
            seconds = min(CACHE_SECONDS, max(CACHE_LEAST, min([lowest, *minima])))
        now = time.monotonic()
        while len(self._cache) >= CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        self._cache[key] = (now, now + seconds, sections)
        return _with_ttl(sections, seconds)

    # For exchanges

    @property
    def servers(self) -> tuple[str, ...]:
        """The resolvers, in an order of chance (``policy random``)."""
        return tuple(random.sample(self._servers, len(self._servers)))

    @property
    def loop(self) -> Loop:
        """What everything waits with."""
        return self._loop

    def connect(self, server: str, tcp: bool) -> socket.socket:
        """A socket to a server, from the pod's namespace. Raises OSError."""
        idle = self._idle.get(server)
        while idle and not tcp:
            since, sock = idle.popleft()
            if time.monotonic() - since < IDLE_SECONDS:
                return sock
            sock.close()
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        with inside(self._netns):
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            sock.connect((server, 53))
        except BlockingIOError:
            pass
        except OSError:
            sock.close()
            raise
        return sock

    def give_back(self, server: str, sock: socket.socket) -> None:
        """Nothing is under way on this UDP socket any more."""
        self._idle.setdefault(server, deque()).append((time.monotonic(), sock))
        self._loop.after(IDLE_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        now = time.monotonic()
        for sockets in self._idle.values():
            while sockets and now - sockets[0][0] >= IDLE_SECONDS:
                sockets.popleft()[1].close()

    def over(self, exchange: _Exchange) -> None:
        """The exchange has ended."""
        self._under_way.discard(exchange)


class _Exchange:
    """One question on its way, from server to server until one answers."""

    def __init__(self, forwarder: Forwarder, wire: bytes, tcp: bool, answered: Answered) -> None:
        self._forwarder = forwarder
        self._question = wire[2:]
        self._tcp = tcp
        self._answered = answered
        self._servers = forwarder.servers
        self._tries = 0
        self._refusals = 0
        self._end = time.monotonic() + ALL_SECONDS
        self._sock: socket.socket | None = None
        self._server = ""
        self._id = 0
        self._output = b""
        self._input = bytearray()
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Ask the next server; SERVFAIL if the time is over or all of them refuse."""
        while True:
            if time.monotonic() >= self._end or self._refusals >= REFUSALS * len(self._servers):
                self._finish(Sections("SERVFAIL"))
                return
            self._server = self._servers[self._tries % len(self._servers)]
            self._tries += 1
            self._id = random.getrandbits(16)
            message = self._id.to_bytes(2) + self._question
            try:
                self._sock = self._forwarder.connect(self._server, self._tcp)
                if self._tcp:
                    self._output = len(message).to_bytes(2) + message
                    self._input.clear()
                else:
                    self._sock.send(message)
            except OSError:
                self._refusals += 1
                self._drop()
                continue
            loop = self._forwarder.loop
            loop.watch(self._sock.fileno(), READ | (WRITE if self._tcp else 0), self._ready)
            self._timer = loop.after(TRY_SECONDS, self._silence)
            return

    def abandon(self) -> None:
        """End without an answer."""
        self._drop()

    def _silence(self) -> None:
        self._drop()
        self.begin()

    def _ready(self, events: int) -> None:
        if self._sock is None:
            return
        try:
            if self._tcp:
                self._move(events)
                return
            while True:
                data = self._sock.recv(65535)
                if self._took(data):
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._refusals += 1 if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET) else 0
            self._drop()
            # A network that says no at once must not have us ask again and again at once.
            self._timer = self._forwarder.loop.after(0.1, self.begin)

    def _move(self, events: int) -> None:
        """Send and receive over TCP."""
        assert self._sock is not None
        if self._output and events & WRITE:
            sent = self._sock.send(self._output)
            self._output = self._output[sent:]
            if not self._output:
                self._forwarder.loop.change(self._sock.fileno(), READ)
        if events & ~WRITE:
            data = self._sock.recv(65535)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed")
            self._input += data
            if len(self._input) >= 2 and len(self._input) >= 2 + int.from_bytes(self._input[:2]):
                self._took(bytes(self._input[2:]))

    def _took(self, data: bytes) -> bool:
        """Whether these bytes answer the question; others are ignored, as they may be forged."""
        try:
            number, sections = received(data)
        except ValueError:
            return False
        if number != self._id:
            return False
        self._finish(sections)
        return True

    def _finish(self, sections: Sections) -> None:
        if self._sock is not None and not self._tcp:
            self._forwarder.loop.forget(self._sock.fileno())
            self._forwarder.give_back(self._server, self._sock)
            self._sock = None
        self._drop()
        self._forwarder.over(self)
        self._answered(sections)

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sock is not None:
            self._forwarder.loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None


def _with_ttl(sections: Sections, seconds: int) -> Sections:
    """Every record with the time that the cache has left for the answer (coredns ``plugin/cache``)."""

    def aged(records: Sequence[Rr]) -> list[Rr]:
        return [rr._replace(ttl=seconds) for rr in records]

    return sections._replace(
        answer=aged(sections.answer), authority=aged(sections.authority), additional=aged(sections.additional)
    )
