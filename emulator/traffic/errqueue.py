"""ICMP errors as a socket learns of them: the error queue of ip(7) and ipv6(7), IP_RECVERR.

The queue tells what errno does not: whether a RST or an ICMP message ended a connection, which code the message
had, the MTU that it named, and which router sent it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import NamedTuple

from emulator.traffic.model import Verdict

# linux/in.h, linux/in6.h: not in Python's socket module
IP_MTU_DISCOVER = 10
IP_RECVERR = 11
IP_MTU = 14
IPV6_MTU_DISCOVER = 23
IPV6_MTU = 24
IPV6_RECVERR = 25
PMTUDISC_DONT = 0
PMTUDISC_PROBE = 3

# linux/errqueue.h, struct sock_extended_err: __u32 ee_errno; __u8 ee_origin, ee_type, ee_code, ee_pad;
# __u32 ee_info, ee_data; behind it the offender's sockaddr.
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_ORIGIN_LOCAL, _ORIGIN_ICMP, _ORIGIN_ICMP6 = 1, 2, 3

_UNREACHABLE = 3  # ICMP type (RFC 792)
_TIME_EXCEEDED = 11
_FRAG_NEEDED = 4  # code of type 3 (RFC 1191)
_UNREACHABLE_CODES = {
    0: "net unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    5: "source route failed",
    6: "net unknown",
    7: "host unknown",
    9: "net administratively prohibited",
    10: "host administratively prohibited",
    11: "net unreachable for this type of service",
    12: "host unreachable for this type of service",
    13: "administratively prohibited",  # RFC 1812
}
_UNREACHABLE6, _TOO_BIG6, _TIME_EXCEEDED6, _PARAMETER6 = 1, 2, 3, 4  # RFC 4443
_UNREACHABLE6_CODES = {
    0: "no route to destination",
    1: "administratively prohibited",
    2: "beyond the scope of the source address",
    3: "address unreachable",
    4: "port unreachable",
    5: "source address failed the policy",
    6: "route rejected",
}


class NetworkError(NamedTuple):
    """Why a packet did not arrive. ``reporter`` is empty if the sending host itself says so; ``mtu`` 0 if unsaid."""

    verdict: Verdict
    detail: str
    reporter: str = ""
    mtu: int = 0


def enable(sock: socket.socket) -> None:
    """Have the kernel queue the ICMP errors of this socket."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def disable(sock: socket.socket) -> None:
    """Treat ICMP errors as any application's socket does."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 0)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 0)


def take(sock: socket.socket) -> tuple[NetworkError, bytes] | None:
    """The next queued error and what it quotes of our packet (from the L4 payload on; raw sockets: from the L4 header
    on), or None. Raises nothing."""
    try:
        quoted, control, _, _ = sock.recvmsg(65535, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, data in control:
        if (level, kind) in ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)):
            return decode(data), quoted
    return NetworkError("unreachable", "an error without a description"), quoted


def decode(data: bytes) -> NetworkError:
    """A ``struct sock_extended_err`` and the address behind it."""
    number, origin, kind, code, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
    reporter = _address(data[_EXTENDED_ERROR.size :])
    if origin == _ORIGIN_ICMP:
        return icmp_error(kind, code, info, reporter)
    if origin == _ORIGIN_ICMP6:
        return icmp6_error(kind, code, info, reporter)
    return local_error(number, info)


def icmp_error(kind: int, code: int, mtu: int, reporter: str) -> NetworkError:
    """What an ICMPv4 error means for a probe."""
    if kind == _UNREACHABLE and code == _FRAG_NEEDED:
        return NetworkError("unreachable", f"frag needed, mtu {mtu}, from {reporter}", reporter, mtu)
    if kind == _UNREACHABLE:
        name = _UNREACHABLE_CODES.get(code, f"unreachable code {code}")
        return NetworkError("refused" if code == 3 else "unreachable", f"{name}, from {reporter}", reporter)
    if kind == _TIME_EXCEEDED:
        name = "time exceeded" if code == 0 else "fragment reassembly time exceeded"
        return NetworkError("unreachable", f"{name}, from {reporter}", reporter)
    return NetworkError("unreachable", f"ICMP type {kind} code {code}, from {reporter}", reporter)


def icmp6_error(kind: int, code: int, mtu: int, reporter: str) -> NetworkError:
    """What an ICMPv6 error means for a probe."""
    if kind == _TOO_BIG6:
        return NetworkError("unreachable", f"packet too big, mtu {mtu}, from {reporter}", reporter, mtu)
    if kind == _UNREACHABLE6:
        name = _UNREACHABLE6_CODES.get(code, f"unreachable code {code}")
        return NetworkError("refused" if code == 4 else "unreachable", f"{name}, from {reporter}", reporter)
    if kind == _TIME_EXCEEDED6:
        name = "time exceeded" if code == 0 else "fragment reassembly time exceeded"
        return NetworkError("unreachable", f"{name}, from {reporter}", reporter)
    return NetworkError("unreachable", f"ICMPv6 type {kind} code {code}, from {reporter}", reporter)


def local_error(number: int, mtu: int = 0) -> NetworkError:
    """What an errno of the sending host means for a probe."""
    if number == errno.EMSGSIZE:
        return NetworkError("unreachable", f"message too long: path MTU {mtu}" if mtu else "message too long", "", mtu)
    if number == errno.ECONNREFUSED:
        return NetworkError("refused", "connection refused (RST)")
    if number == errno.ECONNRESET:
        return NetworkError("refused", "connection reset (RST)")
    if number in (errno.EPERM, errno.EACCES):
        # What netfilter's OUTPUT drops, sendmsg(2) reports as EPERM.
        return NetworkError("dropped", "dropped by a rule in the sender's own namespace")
    if number == errno.ENETUNREACH:
        return NetworkError("unreachable", "no route at the sender")
    if number == errno.EHOSTUNREACH:
        return NetworkError("unreachable", "no answer to neighbour discovery, or no route at the sender")
    if number == errno.ENOBUFS:
        # One table for all namespaces of a kernel, and a dense matrix on one bridge fills it.
        return NetworkError("unreachable", "the kernel's neighbour table is full (net.ipv4.neigh.default.gc_thresh3)")
    if number == errno.ETIMEDOUT:
        return NetworkError("dropped", "connection timed out")
    return NetworkError("unreachable", f"{os.strerror(number)} at the sender")


def path_mtu(sock: socket.socket) -> int:
    """What the kernel holds for the MTU towards a connected socket's peer, 0 if unknown."""
    try:
        if sock.family == socket.AF_INET6:
            return sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
        return sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
    except OSError:
        return 0


def _address(sockaddr: bytes) -> str:
    if len(sockaddr) >= 8:
        (family,) = struct.unpack_from("=H", sockaddr)
        if family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, sockaddr[4:8])
        if family == socket.AF_INET6 and len(sockaddr) >= 24:
            return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24])
    return "an unknown sender"
