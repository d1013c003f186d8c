"""The listening sockets of every pod, in one process: TCP answers HTTP, UDP answers datagrams, as agnhost netexec;
SCTP answers INIT with INIT ACK, out of raw sockets (``emulator.traffic.sctp``).

Each port is one dual-stack socket (``[::]``), or an IPv4 one where the kernel has no IPv6. A wildcard UDP socket would
answer from whichever address routing prefers; with IPV6_PKTINFO the answer leaves from the address that was asked,
which conntrack, and the client's connected socket, insist on.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime

from emulator.kernel.syscalls import inside
from emulator.traffic import agnhost, http1
from emulator.traffic.loop import READ, WRITE, Loop
from emulator.traffic.model import FixedAnswer, Server
from emulator.traffic.sctp_port import SctpPort, listening_sockets

BACKLOG = 1024
LARGEST_DATAGRAM = 65535  # bytes
CONNECTIONS_PER_SERVER = 1024  # of one port; the one that was idle longest makes room
HEAD_SECONDS = 10.0  # for a request to arrive whole, body excepted
IDLE_SECONDS = 75.0  # between requests, or between pieces of a body
SWEEP_SECONDS = 2.0  # how often vanished namespaces and idle connections are looked for
OUTPUT_LIMIT = 262144  # bytes that wait for a slow reader before we stop reading from it
DATAGRAMS_AT_ONCE = 64  # of one socket before the others get their turn

_IP_PKTINFO = 8  # linux/in.h
_PKTINFO6 = struct.Struct("=16sI")  # struct in6_pktinfo: address, interface index
_PKTINFO4 = struct.Struct("=I4s4s")  # struct in_pktinfo: interface index, local address, header destination
_MAPPED = "::ffff:"


class NoNamespace(Exception):
    """The network namespace of a server does not exist."""


class Servers:
    """All of them. ``notice`` is told what could not be done as asked."""

    def __init__(self, loop: Loop, notice: Callable[[str], None]) -> None:
        self._loop = loop
        self._notice = notice
        self._served: dict[str, _Served] = {}
        self._sweeping = False

    def serve(self, server: Server) -> None:
        """Listen as ``server`` says. Ports that are open already stay open. Raises NoNamespace."""
        identity = _identity(server.netns)
        if identity is None:
            raise NoNamespace(f"{server.ns}: there is no network namespace {server.netns}")
        served = self._served.get(server.ns)
        if served is not None and served.identity != identity:
            self.stop(server.ns)
            served = None
        if served is None:
            served = self._served[server.ns] = _Served(server, identity)
        wanted = self._known(server)
        for port in set(served.ports) - wanted:
            served.ports.pop(port).close()
        served.server = server
        missing = sorted(wanted - set(served.ports))
        if missing:
            with inside(server.netns):
                sockets = [(port, self._listen(server, *port)) for port in missing]
            for port, opened in sockets:
                if opened:
                    served.ports[port] = self._port(port, opened, server.hostname)
        for open_port in served.ports.values():
            open_port.hostname = server.hostname
        for answer in server.fixed:
            fixed_port = served.ports.get(_fixed_port(answer))
            if isinstance(fixed_port, _TcpPort):
                fixed_port.fixed = answer
        if not self._sweeping:
            self._sweeping = True
            self._loop.after(SWEEP_SECONDS, self._sweep)

    def stop(self, ns: str) -> None:
        """Close what one namespace serves, connections included; harmless if it serves nothing."""
        served = self._served.pop(ns, None)
        if served is not None:
            for port in served.ports.values():
                port.close()

    def _port(
        self, port: tuple[int, str], sockets: Sequence[socket.socket], hostname: str
    ) -> _TcpPort | _UdpPort | SctpPort:
        if port[1] == "SCTP":
            return SctpPort(self._loop, sockets, port[0], hostname)
        return (_UdpPort if port[1] == "UDP" else _TcpPort)(self._loop, sockets[0], hostname)

    def _known(self, server: Server) -> set[tuple[int, str]]:
        wanted = set()
        for number, protocol in server.ports:
            if protocol in ("TCP", "UDP", "SCTP") and 0 < number < 65536:
                wanted.add((number, protocol))
            else:
                reason = "only TCP, UDP and SCTP are served"
                self._notice(f"{server.ns}: nothing answers on {protocol} port {number}: {reason}")
        return wanted | {_fixed_port(answer) for answer in server.fixed}

    def _listen(self, server: Server, port: int, protocol: str) -> tuple[socket.socket, ...]:
        """The sockets that serve a port; none, and a notice, where that is not possible."""
        try:
            return listening_sockets() if protocol == "SCTP" else (_listening_socket(port, protocol),)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                # A process of the pod's own has the port: it is the one to answer.
                reason = "another process listens there"
            elif error.errno in (errno.EMFILE, errno.ENFILE):
                reason = "no more files may be opened (ulimit -n)"
            else:
                reason = error.strerror or str(error)
            self._notice(f"{server.ns}: {protocol} port {port} is not served: {reason}")
            return ()

    def _sweep(self) -> None:
        """Close what serves a namespace whose name is gone, or names another one by now: our own sockets would keep
        the old one alive."""
        for ns, served in list(self._served.items()):
            if _identity(served.server.netns) != served.identity:
                self.stop(ns)
        now = time.monotonic()
        for served in self._served.values():
            for port in served.ports.values():
                port.close_idle(now)
        self._sweeping = bool(self._served)
        if self._sweeping:
            self._loop.after(SWEEP_SECONDS, self._sweep)


class _Served:
    """What one namespace serves; ``identity`` is device and inode of the namespace."""

    __slots__ = ("identity", "ports", "server")

    def __init__(self, server: Server, identity: tuple[int, int]) -> None:
        self.server = server
        self.identity = identity
        self.ports: dict[tuple[int, str], _TcpPort | _UdpPort | SctpPort] = {}


class _UdpPort:
    """One UDP socket that answers."""

    __slots__ = ("_loop", "_sock", "_v6", "hostname")

    def __init__(self, loop: Loop, sock: socket.socket, hostname: str) -> None:
        self._loop = loop
        self._sock = sock
        self._v6 = sock.family == socket.AF_INET6
        self.hostname = hostname
        loop.watch(sock.fileno(), READ, self._ready)

    def _ready(self, events: int) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                datagram, control, _, client = self._sock.recvmsg(LARGEST_DATAGRAM, 64)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error for an answer of ours: the next call tells of a datagram again
            answer = agnhost.udp_answer(datagram, self.hostname, plain(client))
            if answer is None:
                continue
            try:
                self._sock.sendmsg((answer,), self._from_asked_address(control), 0, client)
            except OSError:
                continue  # the route back is gone, or a rule forbids it: UDP does not retry

    def _from_asked_address(self, control: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
        for level, kind, data in control:
            # Index 0: routing decides on the way back, as for the real image, which knows of addresses only.
            if self._v6 and (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                return [(level, kind, _PKTINFO6.pack(_PKTINFO6.unpack_from(data)[0], 0))]
            if not self._v6 and (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                return [(level, kind, _PKTINFO4.pack(0, _PKTINFO4.unpack_from(data)[2], bytes(4)))]
        return []

    def close_idle(self, now: float) -> None:
        """Nothing idles here."""

    def close(self) -> None:
        self._loop.forget(self._sock.fileno())
        self._sock.close()


class _TcpPort:
    """One listening socket and its connections, the longest idle one first."""

    __slots__ = ("_loop", "_sock", "connections", "fixed", "hostname")

    def __init__(self, loop: Loop, sock: socket.socket, hostname: str) -> None:
        self._loop = loop
        self._sock = sock
        self.hostname = hostname
        self.fixed: FixedAnswer | None = None
        self.connections: OrderedDict[int, _Connection] = OrderedDict()
        loop.watch(sock.fileno(), READ, self._ready)

    def _ready(self, events: int) -> None:
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                sock, client = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._make_room()
                return
            sock.setblocking(False)
            if len(self.connections) >= CONNECTIONS_PER_SERVER:
                next(iter(self.connections.values())).close()
            self.connections[sock.fileno()] = _Connection(self._loop, sock, plain(client), self)

    def _make_room(self) -> None:
        """No descriptor is free: give up the longest idle connection, or wait; the kernel queues who connects."""
        if self.connections:
            next(iter(self.connections.values())).close()
            return
        self._loop.change(self._sock.fileno(), 0)
        self._loop.after(0.1, self._resume)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.change(self._sock.fileno(), READ)

    def close_idle(self, now: float) -> None:
        for connection in [connection for connection in self.connections.values() if connection.deadline < now]:
            connection.close()

    def close(self) -> None:
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        for connection in list(self.connections.values()):
            connection.close()


class _Connection:
    """One client's requests, answered in order."""

    __slots__ = (
        "_client",
        "_closing",
        "_events",
        "_fd",
        "_loop",
        "_output",
        "_port",
        "_reader",
        "_request",
        "_sock",
        "deadline",
    )

    def __init__(self, loop: Loop, sock: socket.socket, client: tuple[str, int], port: _TcpPort) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._client = client
        self._port = port
        self._reader = http1.RequestReader()
        self._output = bytearray()
        self._closing = False
        self._events = READ
        self._request: http1.Request | None = None
        self.deadline = time.monotonic() + HEAD_SECONDS
        loop.watch(self._fd, READ, self._ready)

    def _ready(self, events: int) -> None:
        if events & ~WRITE and not self._closing:
            self._read()
        if self._sock.fileno() >= 0:
            self._flush()

    def _read(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._closing = True
            return
        inside_head = self._reader.waiting and not self._reader.in_body
        try:
            for item in self._reader.feed(data):
                if not isinstance(item, bytes):
                    self._answer(item)
                elif self._request is not None and self._request.target == agnhost.BYTES_PATH and not self._port.fixed:
                    self._output += item
                if self._request is not None and not self._request.keep_alive and not self._reader.in_body:
                    self._closing = True
                    break
        except http1.BadRequest as error:
            self._output += http1.response(error.status, f"{error}\n".encode(), keep_alive=False)
            self._closing = True
        now = time.monotonic()
        if not self._reader.waiting or self._reader.in_body:
            self.deadline = now + IDLE_SECONDS
        elif not inside_head:
            # Counted from a head's first byte: one that arrives byte by byte gains no time.
            self.deadline = now + HEAD_SECONDS
        if self._fd in self._port.connections:
            self._port.connections.move_to_end(self._fd)

    def _answer(self, request: http1.Request) -> None:
        self._request = request
        if request.expects_continue:
            self._output += b"HTTP/1.1 100 Continue\r\n\r\n"
        fixed = self._port.fixed
        if fixed is not None:
            self._output += http1.response(
                fixed.status,
                fixed.body.encode(),
                keep_alive=request.keep_alive,
                head_only=request.method == "HEAD",
                headers=fixed.headers,
            )
        elif request.method == "POST" and request.target == agnhost.BYTES_PATH:
            self._output += http1.response_head(200, request.length, keep_alive=request.keep_alive)
        else:
            now = datetime.now().astimezone().isoformat(sep=" ")
            answer = agnhost.http_answer(
                request.method, request.target, request.headers, self._port.hostname, self._client, now
            )
            body = b"" if answer.status in (204, 304) else answer.body
            self._output += http1.response(
                answer.status,
                body,
                keep_alive=request.keep_alive,
                head_only=request.method == "HEAD",
                headers=answer.headers,
            )

    def _flush(self) -> None:
        if self._output:
            try:
                sent = self._sock.send(self._output)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            del self._output[:sent]
        if self._closing and not self._output:
            self.close()
            return
        events = (WRITE if self._output else 0) | (
            READ if len(self._output) < OUTPUT_LIMIT and not self._closing else 0
        )
        if events != self._events:
            self._events = events
            self._loop.change(self._fd, events)

    def close(self) -> None:
        self._port.connections.pop(self._fd, None)
        self._loop.forget(self._fd)
        self._sock.close()


def plain(address: tuple[str, int] | tuple[str, int, int, int]) -> tuple[str, int]:
    """Address and port without what a dual-stack socket adds: an IPv4 address is not written as an IPv6 one."""
    host, port = address[0], address[1]
    return (host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host), port


def _identity(netns: str) -> tuple[int, int] | None:
    try:
        status = os.stat(netns)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _fixed_port(answer: FixedAnswer) -> tuple[int, str]:
    return answer.port, f"TCP{answer.family}"


def _listening_socket(port: int, protocol: str) -> socket.socket:
    """``TCP4`` and ``TCP6`` are of one family alone."""
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    try:
        sock = socket.socket(socket.AF_INET if protocol == "TCP4" else socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(protocol == "TCP6"))
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind(("::" if sock.family == socket.AF_INET6 else "0.0.0.0", port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
