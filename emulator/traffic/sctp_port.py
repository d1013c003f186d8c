"""An SCTP port that is served: INIT is answered with INIT ACK, out of raw sockets."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Sequence

from emulator.traffic import sctp
from emulator.traffic.loop import READ, Loop

PACKETS_AT_ONCE = 64  # of one socket before the others get their turn

_IP_PKTINFO = 8  # linux/in.h
_PKTINFO6 = struct.Struct("=16sI")  # struct in6_pktinfo: address, interface index
_PKTINFO4 = struct.Struct("=I4s4s")  # struct in_pktinfo: interface index, local address, header destination


def listening_sockets() -> tuple[socket.socket, ...]:
    """One for each address family of the kernel, in the namespace of the calling thread. Raises OSError."""
    sockets = []
    for family in (socket.AF_INET, socket.AF_INET6) if socket.has_ipv6 else (socket.AF_INET,):
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, sctp.PROTOCOL)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sockets.append(sock)
    return tuple(sockets)


class SctpPort:
    """One port. Raw sockets receive every packet of their protocol: those to other ports are left to others."""

    __slots__ = ("_loop", "_port", "_sockets", "hostname")

    def __init__(self, loop: Loop, sockets: Sequence[socket.socket], port: int, hostname: str) -> None:
        self._loop = loop
        self._sockets = tuple(sockets)
        self._port = port
        self.hostname = hostname
        for sock in self._sockets:
            loop.watch(sock.fileno(), READ, lambda _events, sock=sock: self._ready(sock))  # type: ignore[misc]

    def _ready(self, sock: socket.socket) -> None:
        v6 = sock.family == socket.AF_INET6
        for _ in range(PACKETS_AT_ONCE):
            try:
                data, control, _, client = sock.recvmsg(65535, 64)
            except BlockingIOError:
                return
            except OSError:
                if sock.fileno() < 0:
                    return
                continue  # an ICMP error for an answer of ours: the next call tells of a packet again
            heard = sctp.parse(data if v6 or not data else data[(data[0] & 15) * 4 :])
            if heard is None or heard.target_port != self._port or heard.chunk != sctp.INIT or heard.tag:
                continue
            answer = sctp.init_ack(heard, 1 + secrets.randbelow(0xFFFFFFFE))
            try:
                sock.sendmsg((answer,), _from_asked_address(control, v6=v6), 0, (client[0], 0))
            except OSError:
                continue  # the route back is gone, or a rule forbids it: the other side asks again or not

    def close_idle(self, now: float) -> None:
        """Nothing idles here."""

    def close(self) -> None:
        for sock in self._sockets:
            self._loop.forget(sock.fileno())
            sock.close()


def _from_asked_address(control: list[tuple[int, int, bytes]], *, v6: bool) -> list[tuple[int, int, bytes]]:
    """The answer leaves from the address that was asked, as connection tracking insists."""
    for level, kind, data in control:
        if v6 and (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return [(level, kind, _PKTINFO6.pack(_PKTINFO6.unpack_from(data)[0], 0))]
        if not v6 and (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return [(level, kind, _PKTINFO4.pack(0, _PKTINFO4.unpack_from(data)[2], bytes(4)))]
    return []
