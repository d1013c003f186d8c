from __future__ import annotations

import errno
import socket
import struct

import pytest

from emulator.traffic import errqueue


def queued(number: int, origin: int, kind: int, code: int, info: int, offender: bytes) -> bytes:
    return struct.pack("=IBBBBII", number, origin, kind, code, 0, info, 0) + offender


V4 = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes([192, 168, 50, 1]))
V6 = struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, "fd00::1"), 0)


@pytest.mark.parametrize(
    ("data", "verdict", "detail", "mtu"),
    [
        (queued(111, 2, 3, 3, 0, V4), "refused", "port unreachable, from 192.168.50.1", 0),
        (queued(101, 2, 3, 0, 0, V4), "unreachable", "net unreachable, from 192.168.50.1", 0),
        (queued(113, 2, 3, 13, 0, V4), "unreachable", "administratively prohibited, from 192.168.50.1", 0),
        (queued(90, 2, 3, 4, 1450, V4), "unreachable", "frag needed, mtu 1450, from 192.168.50.1", 1450),
        (queued(113, 2, 11, 0, 0, V4), "unreachable", "time exceeded, from 192.168.50.1", 0),
        (queued(111, 3, 1, 4, 0, V6), "refused", "port unreachable, from fd00::1", 0),
        (queued(113, 3, 1, 3, 0, V6), "unreachable", "address unreachable, from fd00::1", 0),
        (queued(90, 3, 2, 0, 1430, V6), "unreachable", "packet too big, mtu 1430, from fd00::1", 1430),
        (queued(113, 3, 3, 0, 0, V6), "unreachable", "time exceeded, from fd00::1", 0),
        (queued(90, 1, 0, 0, 1500, b""), "unreachable", "message too long: path MTU 1500", 1500),
        (queued(111, 2, 3, 3, 0, b""), "refused", "port unreachable, from an unknown sender", 0),
    ],
)
def test_queued_error_is_a_verdict_with_its_sender(data: bytes, verdict: str, detail: str, mtu: int) -> None:
    error = errqueue.decode(data)
    assert (error.verdict, error.detail, error.mtu) == (verdict, detail, mtu)


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        (errno.ECONNREFUSED, "refused"),
        (errno.ECONNRESET, "refused"),
        (errno.EPERM, "dropped"),
        (errno.ETIMEDOUT, "dropped"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.EINVAL, "unreachable"),
    ],
)
def test_errno_of_the_sender_is_a_verdict(number: int, verdict: str) -> None:
    assert errqueue.local_error(number).verdict == verdict
