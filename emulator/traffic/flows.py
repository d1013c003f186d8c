"""Client sockets: one UDP or ICMP flow, or one TCP connection, from a namespace to a target.

A flow numbers its requests and tells answers and ICMP errors apart by that number; what they mean for a probe or a
stream is decided there (probes.py, streams.py). Each is *opened* with the thread inside the namespace and used from
anywhere afterwards.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from emulator.traffic import agnhost, errqueue
from emulator.traffic.errqueue import NetworkError
from emulator.traffic.freshports import FreshPorts, NoFreshPort
from emulator.traffic.model import Probe

PING_SIZE = 56  # bytes of data: what ping sends
BIND_ATTEMPTS = 64  # ports in a row that something else may hold

_SOL_RAW, _ICMP_FILTER = 255, 1  # linux/icmp.h
_ICMP6_FILTER = 1  # linux/icmpv6.h, level IPPROTO_ICMPV6
_ECHO, _ECHO_REPLY = 8, 0
_ECHO6, _ECHO_REPLY6 = 128, 129
_ECHO_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, id, sequence
_PATTERN = bytes(range(256)) * 256

_flow_numbers = itertools.count(1)


class Echo(NamedTuple):
    """An answer to request ``number``. ``hostname`` and ``client`` are empty where the protocol does not tell."""

    number: int
    hostname: str
    client: str


class Failure(NamedTuple):
    """An error about request ``number``, or about the flow as a whole (None)."""

    number: int | None
    error: NetworkError


class DatagramFlow:
    """A connected UDP or raw ICMP socket. :meth:`close` must be called."""

    def __init__(self, probe: Probe, ports: FreshPorts) -> None:
        """Open it; the calling thread is inside the namespace. Raises OSError."""
        self.probe = probe
        self.sent = 0
        self._v6 = ":" in probe.target
        self._icmp = probe.protocol == "icmp"
        self._flow = next(_flow_numbers)
        family = socket.AF_INET6 if self._v6 else socket.AF_INET
        if self._icmp:
            protocol = socket.IPPROTO_ICMPV6 if self._v6 else socket.IPPROTO_ICMP
            self.socket = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        else:
            self.socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._filter()
            errqueue.enable(self.socket)
            set_options(self.socket, probe)
            self.local_port = self._bind(ports)
            self.socket.connect(socket_address(probe, 0 if self._icmp else probe.port))
            self.local_address = str(self.socket.getsockname()[0])
        except OSError:
            self.socket.close()
            raise

    def send(self) -> NetworkError | None:
        """Send the next request; the error if it did not even leave. Its number is what :attr:`sent` was before."""
        number = self.sent
        self.sent += 1
        request = self._request(number)
        for _ in range(3):
            try:
                self.socket.send(request)
                return None
            except BlockingIOError:
                return NetworkError("dropped", "the sender's queue is full")
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    # The kernel also queues what it just told us.
                    queued = errqueue.take(self.socket)
                    mtu = queued[0].mtu if queued else 0
                    return errqueue.local_error(errno.EMSGSIZE, mtu or errqueue.path_mtu(self.socket))
                # A connected socket reports the ICMP error for an earlier request here, once. That error is still in
                # the queue with its number, and this request has not been sent.
                if error.errno not in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPROTO):
                    return errqueue.local_error(error.errno or 0)
                reason = errqueue.local_error(error.errno)
        return reason

    def answers(self) -> Iterator[Echo]:
        """The answers that have arrived."""
        while True:
            try:
                data = self.socket.recv(65535)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EBADF:
                    return
                continue  # a pending ICMP error, which failures() tells in full
            echo = self._echo(data)
            if echo is not None:
                yield echo

    def failures(self) -> Iterator[Failure]:
        """The errors that have arrived."""
        while True:
            taken = errqueue.take(self.socket)
            if taken is None:
                # Clears what is pending without a queue entry, or epoll would report it for ever.
                self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                return
            error, quoted = taken
            known, number = self._quoted(quoted)
            if known:
                yield Failure(number, error)

    def close(self) -> None:
        self.socket.close()

    def _filter(self) -> None:
        if self._icmp and self._v6:
            words = [0xFFFFFFFF] * 8  # a set bit: the type is not passed
            words[_ECHO_REPLY6 >> 5] &= ~(1 << (_ECHO_REPLY6 & 31))
            self.socket.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
        elif self._icmp:
            self.socket.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", 0xFFFFFFFF & ~(1 << _ECHO_REPLY)))

    def _bind(self, ports: FreshPorts) -> int:
        if not self._icmp:
            return bind(self.socket, self.probe, ports)
        if self.probe.source:
            self.socket.bind((self.probe.source, 0))
        return self.probe.source_port or fresh_port(self.probe, ports)

    def _request(self, number: int) -> bytes:
        if not self._icmp:
            return agnhost.udp_probe((self._flow & 0xFFF) << 20 | number & 0xFFFFF, self.probe.size)
        size = self.probe.size or PING_SIZE
        data = _PATTERN[:size]
        sequence = (number + 1) & 0xFFFF
        if self._v6:
            # Raw ICMPv6 sockets have their checksum filled in by the kernel (RFC 3542 3.1).
            return _ECHO_HEADER.pack(_ECHO6, 0, 0, self.local_port, sequence) + data
        checksum = internet_checksum(_ECHO_HEADER.pack(_ECHO, 0, 0, self.local_port, sequence) + data)
        return _ECHO_HEADER.pack(_ECHO, 0, checksum, self.local_port, sequence) + data

    def _echo(self, data: bytes) -> Echo | None:
        if not self._icmp:
            answer = agnhost.parse_udp_echo(data)
            if answer is None and self.probe.knock:
                return Echo(self.sent - 1, "", "")  # who speaks something else has received it, too
            if answer is None or answer.nonce >> 20 != self._flow & 0xFFF:
                return None
            return Echo(self._unwrap(answer.nonce, 0xFFFFF), answer.hostname, answer.client)
        # A raw IPv4 socket receives the IP header too.
        header = 0 if self._v6 or not data else (data[0] & 15) * 4
        number = self._ping_number(data[header:])
        return None if number is None else Echo(number, "", "")

    def _quoted(self, quoted: bytes) -> tuple[bool, int | None]:
        """Whether a quotation in an ICMP error is of this flow, and of which request if it is long enough to tell."""
        if not self._icmp:
            nonce = agnhost.parse_udp_probe(quoted)
            return True, None if nonce is None else self._unwrap(nonce, 0xFFFFF)
        if len(quoted) < _ECHO_HEADER.size:
            return True, None
        number = self._ping_number(quoted)
        return number is not None, number

    def _ping_number(self, message: bytes) -> int | None:
        if len(message) < _ECHO_HEADER.size:
            return None
        _, _, _, identifier, sequence = _ECHO_HEADER.unpack_from(message)
        return self._unwrap((sequence - 1) & 0xFFFF, 0xFFFF) if identifier == self.local_port else None

    def _unwrap(self, low: int, mask: int) -> int:
        """The latest request sent whose number ends in ``low``."""
        last = self.sent - 1
        return last - ((last - low) & mask)


def set_options(sock: socket.socket, probe: Probe) -> None:
    """TTL and fragmentation as the probe asks for. Raises OSError."""
    if sock.family == socket.AF_INET6:
        if probe.ttl:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, probe.ttl)
        if probe.dont_fragment:
            sock.setsockopt(socket.IPPROTO_IPV6, errqueue.IPV6_MTU_DISCOVER, errqueue.PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1)
        return
    if probe.ttl:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, probe.ttl)
    if probe.dont_fragment:
        # PROBE and not DO: a path MTU learnt by an earlier probe must not keep this one from asking the path again.
        sock.setsockopt(socket.IPPROTO_IP, errqueue.IP_MTU_DISCOVER, errqueue.PMTUDISC_PROBE)
    elif probe.allow_fragments:
        sock.setsockopt(socket.IPPROTO_IP, errqueue.IP_MTU_DISCOVER, errqueue.PMTUDISC_DONT)


def bind(sock: socket.socket, probe: Probe, ports: FreshPorts) -> int:
    """Bind to the probe's source and to a port that was not used lately; returns the port. Raises OSError."""
    address = probe.source or ("::" if sock.family == socket.AF_INET6 else "0.0.0.0")
    if probe.source_port:
        sock.bind((address, probe.source_port))
        return probe.source_port
    for _ in range(BIND_ATTEMPTS):
        port = fresh_port(probe, ports)
        try:
            sock.bind((address, port))
            return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no free source port in {probe.netns}")


def fresh_port(probe: Probe, ports: FreshPorts) -> int:
    """A port, or ICMP id, that the probe's sender has not used lately. Raises NoFreshPort."""
    return ports.take(probe.netns, probe.protocol, sender=probe.source or probe.sender, fresh=probe.fresh)


def socket_address(probe: Probe, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The socket address; ``fe80::1%eth0`` is resolved in the namespace that the thread is in."""
    address, _, device = probe.target.partition("%")
    if ":" not in address:
        return address, port
    return address, port, 0, socket.if_nametoindex(device) if device else 0


def internet_checksum(data: bytes) -> int:
    """RFC 1071, in network byte order."""
    if len(data) % 2:
        data += b"\0"
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class TcpConnection:
    """A TCP socket on its way to being connected. :meth:`close` must be called."""

    def __init__(self, probe: Probe, ports: FreshPorts) -> None:
        """Make and bind it; the calling thread is inside the namespace. Raises OSError."""
        family = socket.AF_INET6 if ":" in probe.target else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            errqueue.enable(self.socket)
            set_options(self.socket, probe)
            self.local_port = bind(self.socket, probe, ports)
            self._target = socket_address(probe, probe.port)
        except OSError:
            self.socket.close()
            raise

    def connect(self) -> NetworkError | None:
        """Send the SYN; the error if it cannot even be sent."""
        number = self.socket.connect_ex(self._target)
        return None if number in (0, errno.EINPROGRESS) else errqueue.local_error(number)

    @property
    def local_address(self) -> str:
        try:
            return str(self.socket.getsockname()[0])
        except OSError:
            return ""

    def failure(self) -> NetworkError | None:
        """Why the connection failed, if it did: the ICMP error from the queue, else the socket's errno."""
        taken = errqueue.take(self.socket)
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if taken is not None:
            return taken[0]
        return errqueue.local_error(number) if number else None

    @property
    def connected(self) -> bool:
        """Whether the handshake is over."""
        try:
            self.socket.getpeername()
        except OSError:
            return False
        return True

    def reset(self) -> None:
        """Close it with RST, so that neither end nor a firewall between them remembers it for long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


def error_of(error: OSError) -> NetworkError:
    """What an OSError from opening a socket means for a probe."""
    if isinstance(error, NoFreshPort):
        return NetworkError("unreachable", str(error))
    if error.errno == errno.EADDRNOTAVAIL:
        return NetworkError("unreachable", "the sender does not have that address")
    if error.errno in (errno.ENOENT, errno.EMFILE, errno.ENFILE, errno.EADDRINUSE):
        return NetworkError("unreachable", f"{os.strerror(error.errno)} at the sender")
    return errqueue.local_error(error.errno or 0)
