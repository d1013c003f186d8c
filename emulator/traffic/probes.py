"""Probes: how many requests, how far apart, and the verdict on what came back."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter

from emulator.kernel.syscalls import inside
from emulator.traffic import agnhost
from emulator.traffic.errqueue import NetworkError
from emulator.traffic.exchange import TcpExchange
from emulator.traffic.flows import DatagramFlow, TcpConnection, error_of
from emulator.traffic.freshports import FreshPorts
from emulator.traffic.knock import Knock
from emulator.traffic.loop import ERROR, READ, Loop, Timer
from emulator.traffic.model import Probe, ProbeResult, Verdict
from emulator.traffic.sctp_flow import SctpFlow

AT_ONCE = 32  # probes started before those under way are looked after: more would wait on each other's system calls
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
    """``count`` UDP datagrams, pings or SCTP INITs. ``done`` is called once, with the result."""

    def __init__(self, loop: Loop, ports: FreshPorts, probe: Probe, done: Callable[[ProbeResult], None]) -> None:
        self._loop = loop
        self._ports = ports
        self._probe = probe
        self._done = done
        self._tally = Tally(probe)
        self._flows: list[DatagramFlow | SctpFlow] = []
        self._sent_at: list[int] = []
        self._open: set[int] = set()
        self._pacer: Timer | None = None
        self._deadline: Timer | None = None
        self._finished = False

    def open(self) -> None:
        """Make the sockets; the thread is inside the probe's namespace. Raises OSError."""
        for _ in range(self._probe.count if self._probe.new_flow else 1):
            kind = SctpFlow if self._probe.protocol == "sctp" else DatagramFlow
            self._flows.append(kind(self._probe, self._ports))

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
        self._open: set[TcpExchange | Knock] = set()
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
            kind = Knock if self._probe.knock else TcpExchange
            exchange = kind(self._loop, self._opened.pop(), self._probe, self._ended)
        except OSError as error:
            self.fail(error_of(error))
            return
        self._tally.sent += 1
        self._open.add(exchange)
        if self._probe.interval and self._tally.sent < self._probe.count:
            self._pacer = self._loop.after(self._probe.interval, self._send_next)
        exchange.start()

    def _ended(self, exchange: TcpExchange | Knock) -> None:
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
