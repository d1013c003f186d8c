"""Streams: one request after another at a constant rate, whatever becomes of them, to see when a path was broken.

A pod that dies and returns, a node that crashes, a route that BGP has to find anew: each shows as a window of requests
without answers, measured from the first request that was lost to the next that was answered.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable

from emulator.kernel.syscalls import inside
from emulator.traffic.errqueue import NetworkError
from emulator.traffic.exchange import TcpExchange
from emulator.traffic.flows import DatagramFlow, TcpConnection, error_of
from emulator.traffic.freshports import FreshPorts
from emulator.traffic.loop import ERROR, READ, Loop, Timer
from emulator.traffic.model import LossWindow, Probe, StreamReport

FASTEST = 10_000.0  # requests a second; more than one thread can answer anyway
MOST_REQUESTS = 1_000_000  # of one stream: as many as the nonce of a UDP probe can number


class StreamError(Exception):
    """A stream cannot be started or stopped as asked."""


class Streams:
    """Those that run, by name."""

    def __init__(self, loop: Loop, ports: FreshPorts) -> None:
        self._loop = loop
        self._ports = ports
        self._running: dict[str, _DatagramStream | _TcpStream] = {}

    def start(self, name: str, probe: Probe, rate: float) -> None:
        """Begin at once. Raises OSError if the socket cannot be made, StreamError for a bad name or rate."""
        if name in self._running:
            raise StreamError(f"a stream {name} is running already")
        if not 0 < rate <= FASTEST:
            raise StreamError(f"rate {rate} is not between 0 and {FASTEST:.0f} a second")
        if probe.protocol == "sctp":
            raise StreamError("a stream is of TCP, UDP or ICMP: SCTP is only asked whether it is let in")
        kind = _TcpStream if probe.protocol == "tcp" else _DatagramStream
        self._running[name] = kind(self._loop, self._ports, name, probe, rate)

    def stop(self, name: str, grace: float, done: Callable[[StreamReport], None]) -> None:
        """Send nothing more, wait ``grace`` seconds for answers under way, report. Raises StreamError if none has
        that name."""
        if name not in self._running:
            raise StreamError(f"no stream {name} is running")
        stream = self._running.pop(name)
        stream.pause()

        def finish() -> None:
            done(stream.finish())

        self._loop.after(grace, finish)


class Record:
    """What a stream has seen. Times are seconds on the monotonic clock, from the stream's start."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.sent_at: list[float] = []
        self.answered: list[bool] = []
        self.round_trips: list[float] = []
        self.latest = -1
        self.out_of_order = 0
        self.duplicated = 0
        self.changes: list[tuple[float, str]] = []
        self.errors: Counter[str] = Counter()

    def sent(self) -> int:
        """One more request leaves now; returns its number."""
        self.sent_at.append(time.monotonic() - self.began)
        self.answered.append(False)
        return len(self.sent_at) - 1

    def received(self, number: int, hostname: str) -> None:
        """The answer to a request is here."""
        if not 0 <= number < len(self.sent_at):
            return
        if self.answered[number]:
            self.duplicated += 1
            return
        now = time.monotonic() - self.began
        self.answered[number] = True
        self.round_trips.append(now - self.sent_at[number])
        if number < self.latest:
            self.out_of_order += 1
        self.latest = max(self.latest, number)
        if hostname and (not self.changes or self.changes[-1][1] != hostname):
            self.changes.append((round(now, 6), hostname))

    def failed(self, error: NetworkError) -> None:
        """An error came back."""
        self.errors[error.detail] += 1

    def report(self, name: str, ended: float, local_address: str, local_port: int) -> StreamReport:
        """All of it; ``ended`` is when the last request could have left."""
        return StreamReport(
            id=name,
            sent=len(self.sent_at),
            received=sum(self.answered),
            duration=ended,
            lost=tuple(loss_windows(self.sent_at, self.answered, ended)),
            out_of_order=self.out_of_order,
            duplicated=self.duplicated,
            changes=tuple(self.changes),
            errors=dict(self.errors),
            median=statistics.median(self.round_trips) * 1e6 if self.round_trips else 0.0,
            local_address=local_address,
            local_port=local_port,
        )


def loss_windows(sent_at: list[float], answered: list[bool], ended: float) -> list[LossWindow]:
    """Each run of requests without an answer, with the time from its first one to the next that was answered."""
    windows = []
    first = -1
    for number in range(len(sent_at) + 1):
        over = number == len(sent_at)
        if not over and not answered[number]:
            first = number if first < 0 else first
        elif first >= 0:
            until = ended if over else sent_at[number]
            windows.append(
                LossWindow(first, number - 1, round(sent_at[first], 6), round((until - sent_at[first]) * 1000, 3))
            )
            first = -1
    return windows


class _Pacer:
    """Calls ``send`` at a constant rate; when the thread was late, the missed calls follow at once."""

    def __init__(self, loop: Loop, rate: float, send: Callable[[], None]) -> None:
        self._loop = loop
        self._period = 1.0 / rate
        self._send = send
        self._next = time.monotonic()
        self._left = MOST_REQUESTS
        self._timer: Timer | None = None
        self._tick()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._left = 0

    def _tick(self) -> None:
        now = time.monotonic()
        while self._next <= now and self._left:
            self._left -= 1
            self._next += self._period
            self._send()
        if self._left:
            self._timer = self._loop.at(self._next, self._tick)


class _DatagramStream:
    """UDP or ICMP: one flow for all requests."""

    def __init__(self, loop: Loop, ports: FreshPorts, name: str, probe: Probe, rate: float) -> None:
        self._loop = loop
        self._name = name
        with inside(probe.netns):
            self._flow = DatagramFlow(probe, ports)
        self._record = Record()
        self._ended = 0.0
        loop.watch(self._flow.socket.fileno(), READ, self._ready)
        self._pacer = _Pacer(loop, rate, self._send)

    def _send(self) -> None:
        self._record.sent()
        error = self._flow.send()
        if error is not None:
            self._record.failed(error)

    def _ready(self, events: int) -> None:
        if events & READ:
            for echo in self._flow.answers():
                self._record.received(echo.number, echo.hostname)
        if events & ERROR:
            for failure in self._flow.failures():
                self._record.failed(failure.error)

    def pause(self) -> None:
        self._pacer.stop()
        self._ended = time.monotonic() - self._record.began

    def finish(self) -> StreamReport:
        self._loop.forget(self._flow.socket.fileno())
        self._flow.close()
        return self._record.report(self._name, self._ended, self._flow.local_address, self._flow.local_port)


class _TcpStream:
    """TCP: a connection for each request, given up after the probe's timeout."""

    def __init__(self, loop: Loop, ports: FreshPorts, name: str, probe: Probe, rate: float) -> None:
        self._loop = loop
        self._ports = ports
        self._name = name
        self._probe = probe
        self._record = Record()
        self._ended = 0.0
        self._local = ("", 0)
        self._finished = False
        self._pacer = _Pacer(loop, rate, self._send)

    def _send(self) -> None:
        number = self._record.sent()
        try:
            with inside(self._probe.netns):
                connection = TcpConnection(self._probe, self._ports)
        except OSError as error:
            self._record.failed(error_of(error))
            return

        def ended(exchange: TcpExchange) -> None:
            if self._finished:
                return
            if exchange.error is None:
                self._record.received(number, exchange.hostname)
            else:
                self._record.failed(exchange.error)

        exchange = TcpExchange(self._loop, connection, self._probe, ended)
        exchange.start()
        if not self._local[1]:
            self._local = (exchange.local_address, exchange.local_port)

    def pause(self) -> None:
        self._pacer.stop()
        self._ended = time.monotonic() - self._record.began

    def finish(self) -> StreamReport:
        self._finished = True
        return self._record.report(self._name, self._ended, *self._local)
