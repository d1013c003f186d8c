"""An SCTP probe's end: INITs out of a raw socket, and what comes back."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator

from emulator.traffic import errqueue, sctp
from emulator.traffic.errqueue import NetworkError
from emulator.traffic.flows import Echo, Failure, fresh_port, set_options, socket_address
from emulator.traffic.freshports import FreshPorts
from emulator.traffic.model import Probe


class SctpFlow:
    """A raw socket that is connected to a probe's target; the same verbs as ``DatagramFlow``. Its INITs share a source
    port, and each has a tag of its own by which its answer is known. :meth:`close` must be called."""

    def __init__(self, probe: Probe, ports: FreshPorts) -> None:
        """Open it; the calling thread is inside the namespace. Raises OSError."""
        self.probe = probe
        self.sent = 0
        self._v6 = ":" in probe.target
        self._tag = 1 + secrets.randbelow(0x7FFF0000)
        family = socket.AF_INET6 if self._v6 else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, sctp.PROTOCOL)
        try:
            errqueue.enable(self.socket)
            set_options(self.socket, probe)
            if probe.source:
                self.socket.bind((probe.source, 0))
            # A raw socket holds no port: that nobody else has this one, the counter sees to
            self.local_port = probe.source_port or fresh_port(probe, ports)
            self.socket.connect(socket_address(probe, 0))
            self.local_address = str(self.socket.getsockname()[0])
        except OSError:
            self.socket.close()
            raise

    def send(self) -> NetworkError | None:
        """Send the next INIT; the error if it did not even leave. Its number is what :attr:`sent` was before."""
        number = self.sent
        self.sent += 1
        try:
            self.socket.send(sctp.init(self.local_port, self.probe.port, self._tag + number))
        except BlockingIOError:
            return NetworkError("dropped", "the sender's queue is full")
        except OSError as error:
            return errqueue.local_error(error.errno or 0)
        return None

    def answers(self) -> Iterator[Echo]:
        """The INIT ACKs that have arrived."""
        while True:
            try:
                data = self.socket.recv(65535)
            except BlockingIOError:
                return
            except OSError:
                if self.socket.fileno() < 0:
                    return
                continue  # a pending ICMP error, which failures() tells in full
            # A raw IPv4 socket receives the IP header too, and each one every packet of its protocol
            heard = sctp.parse(data if self._v6 or not data else data[(data[0] & 15) * 4 :])
            if (
                heard is not None
                and (heard.source_port, heard.target_port) == (self.probe.port, self.local_port)
                and heard.chunk == sctp.INIT_ACK
                and 0 <= heard.tag - self._tag < self.sent
            ):
                yield Echo(heard.tag - self._tag, "", "")

    def failures(self) -> Iterator[Failure]:
        """The errors that have arrived."""
        while True:
            taken = errqueue.take(self.socket)
            if taken is None:
                # Clears what is pending without a queue entry, or epoll would report it for ever
                self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                return
            error, packet = taken
            source_port, target_port, tag = sctp.quoted(packet)
            if (source_port, target_port) == (self.local_port, self.probe.port):
                number = tag - self._tag
                yield Failure(number if 0 <= number < self.sent else None, error)

    def close(self) -> None:
        self.socket.close()
