"""Probes: requests, their answers, and the verdict.

A TCP probe sends two pipelined requests on each connection, ``/hostname`` and ``/clientip``, so that one round trip
tells who answered and whose address it saw; with a size, a third one whose body comes back. Anything that a server says
counts as an answer, whether it speaks HTTP or not.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter

from emulator.kernel.syscalls import inside
from emulator.traffic import agnhost, errqueue, http1
from emulator.traffic.errqueue import NetworkError
from emulator.traffic.flows import DatagramFlow, TcpConnection, error_of
from emulator.traffic.freshports import FreshPorts
from emulator.traffic.loop import ERROR, READ, WRITE, Loop, Timer
from emulator.traffic.model import Probe, ProbeResult, Verdict

AT_ONCE = 32  # probes started before those under way are looked after: more would wait on each other's system calls
_BLOCK = (
    bytes(range(251)) * 261
)  # bytes of a sized TCP probe; a prime period, so that a shifted piece never looks right
_SILENCE = NetworkError("dropped", "no answer")


class Tally:
    """What a probe has seen so far."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.sent = 0
        self.times: list[float] = []
        self.connect_times: list[float] = []
        self.answers: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.answered_by = ""
        self.source_seen = ""
        self.detail = ""
        self.error: NetworkError | None = None
        self.local_address = ""
        self.local_port = 0

    def answered(self, nanoseconds: int, hostname: str, client: str) -> None:
        """One more answer."""
        self.times.append(nanoseconds / 1000)
        if hostname:
            self.answers[hostname] += 1
            self.answered_by = self.answered_by or hostname
        if client:
            self.sources[agnhost.host_of(client)] += 1
            self.source_seen = self.source_seen or client

    def failed(self, error: NetworkError) -> None:
        """One more error; a silence does not hide what was said before."""
        if self.error is None or error.verdict != "dropped":
            self.error = error

    def result(self) -> ProbeResult:
        """The verdict."""
        error = self.error or _SILENCE
        verdict: Verdict = "delivered" if self.times else error.verdict
        detail = self.detail or ("" if self.times and error.verdict == "dropped" else error.detail)
        return ProbeResult(
            id=self.probe.id,
            verdict=verdict,
            sent=self.sent,
            received=len(self.times),
            times=tuple(self.times),
            answered_by=self.answered_by,
            source_seen=self.source_seen,
            detail=detail,
            connect_times=tuple(self.connect_times),
            answers=dict(self.answers),
            sources=dict(self.sources),
            local_address=self.local_address,
            local_port=self.local_port,
            reporter=error.reporter,
            mtu=error.mtu,
        )


class DatagramProbe:
    """``count`` UDP datagrams or pings. ``done`` is called once, with the result."""

    def __init__(self, loop: Loop, ports: FreshPorts, probe: Probe, done: Callable[[ProbeResult], None]) -> None:
        self._loop = loop
        self._ports = ports
        self._probe = probe
        self._done = done
        self._tally = Tally(probe)
        self._flows: list[DatagramFlow] = []
        self._sent_at: list[int] = []
        self._open: set[int] = set()
        self._pacer: Timer | None = None
        self._deadline: Timer | None = None
        self._finished = False

    def open(self) -> None:
        """Make the sockets; the thread is inside the probe's namespace. Raises OSError."""
        for _ in range(self._probe.count if self._probe.new_flow else 1):
            self._flows.append(DatagramFlow(self._probe, self._ports))

    def start(self) -> None:
        """Send the first request, or all of them, and wait."""
        first = self._flows[0]
        self._tally.local_address, self._tally.local_port = first.local_address, first.local_port
        for index, flow in enumerate(self._flows):
            self._loop.watch(flow.socket.fileno(), READ, lambda events, index=index: self._ready(index, events))  # type: ignore[misc]
        self._send_next()

    def fail(self, error: NetworkError) -> None:
        """End without having sent anything more."""
        self._tally.failed(error)
        self._finish()

    def _send_next(self) -> None:
        number = len(self._sent_at)
        flow = self._flows[number if self._probe.new_flow else 0]
        self._sent_at.append(time.perf_counter_ns())
        self._open.add(number)
        self._tally.sent += 1
        error = flow.send()
        last = len(self._sent_at) == self._probe.count
        if self._probe.interval and not last:
            self._pacer = self._loop.after(self._probe.interval, self._send_next)
        if self._deadline is not None:
            self._deadline.cancel()
        if last or not self._probe.interval:
            self._deadline = self._loop.after(self._probe.timeout, self._silent)
        if error is not None:
            self._close(number, error)

    def _ready(self, index: int, events: int) -> None:
        if self._finished:
            return
        flow = self._flows[index]
        if events & READ:
            for echo in flow.answers():
                self._answered(index if self._probe.new_flow else echo.number, echo.hostname, echo.client)
                if self._finished:
                    return
        if events & ERROR:
            for number, error in list(flow.failures()):
                if self._probe.new_flow:
                    self._close(index, error)
                else:
                    self._close(number if number is not None else min(self._open, default=-1), error)
                if self._finished:
                    return

    def _answered(self, number: int, hostname: str, client: str) -> None:
        if number in self._open:
            self._tally.answered(time.perf_counter_ns() - self._sent_at[number], hostname, client)
            self._close(number, None)

    def _close(self, number: int, error: NetworkError | None) -> None:
        """Request ``number`` has its answer, or its error."""
        if error is not None:
            self._tally.failed(error)
        self._open.discard(number)
        if self._open or self._finished:
            return
        if len(self._sent_at) == self._probe.count:
            self._finish()
        elif not self._probe.interval:
            # Not from here: a route that is missing fails in the call itself, `count` calls deep.
            self._loop.soon(self._continue)

    def _continue(self) -> None:
        if not self._finished and not self._open and len(self._sent_at) < self._probe.count:
            self._send_next()

    def _silent(self) -> None:
        """The timeout of the last request sent: there may be others left to send, at once now."""
        if self._finished:
            return
        if len(self._sent_at) == self._probe.count:
            self._tally.failed(_SILENCE)
            self._finish()
            return
        while len(self._sent_at) < self._probe.count and not self._finished:
            self._send_next()

    def _finish(self) -> None:
        self._finished = True
        for timer in (self._pacer, self._deadline):
            if timer is not None:
                timer.cancel()
        for flow in self._flows:
            self._loop.forget(flow.socket.fileno())
            flow.close()
        self._done(self._tally.result())


class TcpProbe:
    """``count`` connections, each asking who answers. ``done`` is called once, with the result."""

    def __init__(self, loop: Loop, ports: FreshPorts, probe: Probe, done: Callable[[ProbeResult], None]) -> None:
        self._loop = loop
        self._ports = ports
        self._probe = probe
        self._done = done
        self._tally = Tally(probe)
        self._opened: list[TcpConnection] = []
        self._open: set[TcpExchange] = set()
        self._pacer: Timer | None = None
        self._given_up = False
        self._finished = False

    def open(self) -> None:
        """Make the first socket; the thread is inside the probe's namespace. Raises OSError."""
        self._opened.append(TcpConnection(self._probe, self._ports))

    def start(self) -> None:
        """Connect it."""
        self._send_next()

    def fail(self, error: NetworkError) -> None:
        """End without having sent anything more."""
        self._tally.failed(error)
        self._given_up = True
        self._end_if_done()

    def _send_next(self) -> None:
        try:
            if not self._opened:
                with inside(self._probe.netns):
                    self.open()
            exchange = TcpExchange(self._loop, self._opened.pop(), self._probe, self._ended)
        except OSError as error:
            self.fail(error_of(error))
            return
        self._tally.sent += 1
        self._open.add(exchange)
        if self._probe.interval and self._tally.sent < self._probe.count:
            self._pacer = self._loop.after(self._probe.interval, self._send_next)
        exchange.start()

    def _ended(self, exchange: TcpExchange) -> None:
        self._open.discard(exchange)
        if not self._tally.local_port:
            self._tally.local_address, self._tally.local_port = exchange.local_address, exchange.local_port
        if exchange.connected_after:
            self._tally.connect_times.append(exchange.connected_after / 1000)
        if exchange.error is None:
            self._tally.answered(exchange.answered_after, exchange.hostname, exchange.client)
            self._tally.detail = self._tally.detail or exchange.detail
        else:
            self._tally.failed(exchange.error)
        if not self._probe.interval and self._tally.sent < self._probe.count and not self._given_up:
            if exchange.error is not None and exchange.error.verdict == "dropped":
                # One silence is enough to wait for.
                while self._tally.sent < self._probe.count and not self._given_up:
                    self._send_next()
            elif not self._open:
                self._loop.soon(self._send_next)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not self._open and not self._finished and (self._given_up or self._tally.sent >= self._probe.count):
            self._finished = True
            if self._pacer is not None:
                self._pacer.cancel()
            self._done(self._tally.result())


class TcpExchange:
    """One connection of a probe. When ``ended`` is called, either ``error`` is set or there was an answer.

    ``connected_after`` and ``answered_after`` are nanoseconds: SYN to established, request to whole answer.
    """

    def __init__(
        self, loop: Loop, connection: TcpConnection, probe: Probe, ended: Callable[[TcpExchange], None]
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._socket = connection.socket
        self._fd = self._socket.fileno()
        self._probe = probe
        self._ended = ended
        self._request = memoryview(_request(probe))
        self._body_sent = 0
        self._buffer = bytearray()
        self._expected = ["hostname", "client"] + (["body"] if probe.size else [])
        self._body_checked = -1
        self._progress = 0
        self._connected_at = 0
        self._started_at = 0
        self._events = READ | WRITE
        self._timer: Timer | None = None
        self.local_address = ""
        self.local_port = connection.local_port
        self.hostname = ""
        self.client = ""
        self.detail = ""
        self.connected_after = 0
        self.answered_after = 0
        self.error: NetworkError | None = None

    def start(self) -> None:
        """Send the SYN."""
        self._started_at = time.perf_counter_ns()
        error = self._connection.connect()
        if error is not None:
            self._loop.soon(lambda: self._end(error))
            return
        self.local_address = self._connection.local_address
        # Through veth pairs the handshake is over when connect(2) returns, and nothing needs to be waited for.
        self._loop.watch(self._fd, self._events, self._ready)
        self._timer = self._loop.after(self._probe.timeout, self._silent)
        self._write()

    def _ready(self, events: int) -> None:
        if events & ERROR:
            error = self._connection.failure()
            if error is not None:
                self._end(error)
                return
        if self._connected_at == 0 or events & WRITE:
            self._write()
        if self.error is None and self._connected_at and events & ~WRITE:
            self._read()

    def _write(self) -> None:
        try:
            while self._request:
                self._request = self._request[self._socket.send(self._request) :]
                if self._connected_at == 0:
                    self._connected()
            while self._body_sent < self._probe.size:
                offset = self._body_sent % len(_BLOCK)
                piece = memoryview(_BLOCK)[offset : offset + self._probe.size - self._body_sent]
                self._body_sent += self._socket.send(piece)
            events = READ
        except BlockingIOError:
            events = READ | WRITE
        except OSError as error:
            if self._connected_at == 0:
                # This call has taken the error off the socket: nobody else will be told.
                self._end(self._connection.failure() or errqueue.local_error(error.errno or 0))
                return
            events = READ  # reset meanwhile: the event that follows says so
        if events != self._events:
            self._events = events
            self._loop.change(self._fd, events)

    def _connected(self) -> None:
        self._connected_at = time.perf_counter_ns()
        self.connected_after = self._connected_at - self._started_at
        # From here on an ICMP error is for TCP to judge, as in any application.
        errqueue.disable(self._socket)

    def _read(self) -> None:
        try:
            data = self._socket.recv(262144)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(errqueue.local_error(error.errno or 0))
            return
        if not data:
            self._closed_by_peer()
            return
        self._buffer += data
        try:
            self._take_answers()
        except ValueError as error:
            self._answered(f"answered, but {error}")

    def _take_answers(self) -> None:
        while self._expected and self._buffer:
            if self._body_checked >= 0:
                if not self._check_body():
                    return
                continue
            mark = bytes(self._buffer)
            head = http1.take_response(self._buffer)
            if head is None:
                return
            if head.status != 200:
                self._answered(f"HTTP {head.status}")
                return
            if head.length < 0:
                self._answered("answered, but by another server than expected")
                return
            if self._expected[0] == "body":
                if head.length != self._probe.size:
                    self._answered(f"answered, but with {head.length} of {self._probe.size} bytes")
                    return
                self._body_checked = 0
                continue
            if len(self._buffer) < head.length:
                self._buffer[:] = mark  # wait for the rest
                return
            text = bytes(self._buffer[: head.length]).decode("utf-8", "replace")
            del self._buffer[: head.length]
            if self._expected.pop(0) == "hostname":
                self.hostname = text.strip() if len(text) < 256 and text.strip().isprintable() else ""
            else:
                self.client = text.strip() if len(text) < 64 else ""
        if not self._expected:
            self._answered("")

    def _check_body(self) -> bool:
        """Compare what came back with what was sent; False ends the exchange."""
        while self._buffer:
            offset = self._body_checked % len(_BLOCK)
            expected = _BLOCK[offset : offset + min(len(self._buffer), self._probe.size - self._body_checked)]
            if not self._buffer.startswith(expected) or not expected:
                self._end(NetworkError("dropped", f"the payload came back changed after byte {self._body_checked}"))
                return False
            del self._buffer[: len(expected)]
            self._body_checked += len(expected)
            if self._body_checked == self._probe.size:
                self._expected.pop(0)
                return True
        return False

    def _answered(self, detail: str) -> None:
        if self._probe.size and self._expected:
            # Only the payload's return is what a sized probe asked for.
            self._end(NetworkError("dropped", detail))
            return
        self.detail = detail
        self.answered_after = time.perf_counter_ns() - self._connected_at
        self._end(None)

    def _closed_by_peer(self) -> None:
        if self.hostname or self._buffer:
            self._answered("closed after its first answer")
        else:
            self._end(NetworkError("refused", "connected, then closed without an answer"))

    def _silent(self) -> None:
        if self._body_sent + self._body_checked > self._progress:
            self._progress = self._body_sent + self._body_checked
            self._timer = self._loop.after(self._probe.timeout, self._silent)
            return
        if self._connected_at == 0:
            error = self._connection.failure() or NetworkError("dropped", "no answer to SYN")
        elif self._probe.size:
            error = NetworkError(
                "dropped", f"connected, {max(self._body_checked, 0)} of {self._probe.size} bytes came back"
            )
        elif self.hostname or self._buffer:
            self._answered("its answer is not complete")
            return
        else:
            error = NetworkError("dropped", "connected, then no answer")
        self._end(error)

    def _end(self, error: NetworkError | None) -> None:
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
        self._loop.forget(self._fd)
        self._connection.close()
        self._ended(self)


class Prober:
    """Runs the probes of every request, a bounded number of them at once."""

    def __init__(self, loop: Loop, ports: FreshPorts, at_most: int) -> None:
        self._loop = loop
        self._ports = ports
        self._at_most = at_most
        self._queue: deque[tuple[Probe, Callable[[ProbeResult], None]]] = deque()
        self._running = 0
        self._scheduled = False

    def run(self, probes: tuple[Probe, ...], done: Callable[[list[ProbeResult]], None]) -> None:
        """Send them; ``done`` gets the results, in the order of ``probes``, when all have theirs."""
        if not probes:
            done([])
            return
        results: list[ProbeResult | None] = [None] * len(probes)
        left = len(probes)

        def collect(index: int) -> Callable[[ProbeResult], None]:
            def take(result: ProbeResult) -> None:
                nonlocal left
                results[index] = result
                left -= 1
                self._running -= 1
                if left == 0:
                    done([result for result in results if result is not None])
                self._schedule()

            return take

        # One entry into a namespace serves all of its probes that start together.
        for index in sorted(range(len(probes)), key=lambda index: probes[index].netns):
            self._queue.append((probes[index], collect(index)))
        self._schedule()

    def _schedule(self) -> None:
        if self._queue and not self._scheduled and self._running < self._at_most:
            self._scheduled = True
            self._loop.soon(self._start_some)

    def _start_some(self) -> None:
        self._scheduled = False
        batch: list[DatagramProbe | TcpProbe] = []
        for _ in range(min(AT_ONCE, len(self._queue), self._at_most - self._running)):
            probe, done = self._queue.popleft()
            kind = TcpProbe if probe.protocol == "tcp" else DatagramProbe
            batch.append(kind(self._loop, self._ports, probe, done))
            self._running += 1
        for netns, group in groupby(batch, key=attrgetter("_probe.netns")):
            _open_and_start(netns, list(group))
        self._schedule()


def _open_and_start(netns: str, probes: list[DatagramProbe | TcpProbe]) -> None:
    failed: list[tuple[DatagramProbe | TcpProbe, OSError]] = []
    ready = []
    try:
        with inside(netns):
            for probe in probes:
                try:
                    probe.open()
                    ready.append(probe)
                except OSError as error:
                    failed.append((probe, error))
    except OSError as error:
        failed += [(probe, error) for probe in probes if probe not in ready]
    for probe, reason in failed:
        probe.fail(error_of(reason))
    for probe in ready:
        probe.start()


def _request(probe: Probe) -> bytes:
    host = agnhost.host_port((probe.target, probe.port))
    head = f"HTTP/1.1\r\nHost: {host}\r\n"
    requests = f"GET /hostname {head}\r\nGET /clientip {head}\r\n"
    if probe.size:
        requests += f"POST {agnhost.BYTES_PATH} {head}Content-Length: {probe.size}\r\n\r\n"
    return requests.encode()
