"""One TCP connection of a probe: from the SYN to the answer, or to what went wrong.

Two requests are pipelined, ``/hostname`` and ``/clientip``, so that one round trip tells who answered and whose address
it saw; with a size, a third one whose body comes back. Anything that a server says counts as an answer, whether it
speaks HTTP or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from emulator.traffic import agnhost, errqueue, http1
from emulator.traffic.errqueue import NetworkError
from emulator.traffic.flows import TcpConnection
from emulator.traffic.loop import ERROR, READ, WRITE, Loop, Timer
from emulator.traffic.model import Probe

# The bytes of a sized probe; a prime period, so that a shifted piece never looks right.
_BLOCK = bytes(range(251)) * 261


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


def _request(probe: Probe) -> bytes:
    host = agnhost.host_port((probe.target, probe.port))
    head = f"HTTP/1.1\r\nHost: {host}\r\n"
    requests = f"GET /hostname {head}\r\nGET /clientip {head}\r\n"
    if probe.size:
        requests += f"POST {agnhost.BYTES_PATH} {head}Content-Length: {probe.size}\r\n\r\n"
    return requests.encode()
