"""A TCP handshake and nothing more: what tells whether a connection is allowed, at the least cost."""

from __future__ import annotations

import time
from collections.abc import Callable

from emulator.traffic.errqueue import NetworkError
from emulator.traffic.flows import TcpConnection
from emulator.traffic.loop import READ, WRITE, Loop, Timer
from emulator.traffic.model import Probe


class Knock:
    """One connection of a probe, reset once it is established; as ``TcpExchange`` to whoever waits for it."""

    def __init__(self, loop: Loop, connection: TcpConnection, probe: Probe, ended: Callable[[Knock], None]) -> None:
        self._loop = loop
        self._connection = connection
        self._fd = connection.socket.fileno()
        self._probe = probe
        self._ended = ended
        self._timer: Timer | None = None
        self._started_at = 0
        self._over = False
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
        self._loop.watch(self._fd, READ | WRITE, self._ready)
        self._timer = self._loop.after(self._probe.timeout, self._silent)

    def _ready(self, events: int) -> None:
        if self._over:
            return
        error = self._connection.failure()
        if error is not None:
            self._end(error)
        elif self._connection.connected:
            self.connected_after = self.answered_after = time.perf_counter_ns() - self._started_at
            self._end(None)

    def _silent(self) -> None:
        self._end(self._connection.failure() or NetworkError("dropped", "no answer to SYN"))

    def _end(self, error: NetworkError | None) -> None:
        if self._over:
            return
        self._over = True
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
        self._loop.forget(self._fd)
        self._connection.reset()
        self._ended(self)
