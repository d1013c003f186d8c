"""The process that sends replayed and hand-made packets from one namespace: see injection.py.

Whatever begins with an IP header goes through a raw socket (IP_HDRINCL, IPV6_HDRINCL), so the namespace's routing, its
output rules and its neighbour discovery apply as to any packet of the pod's own. The kernel fills in an IPv4 header's
checksum and total length, and its id and source if they are zero; everything else stays. A frame goes out of the device
as it is.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from emulator.kernel.syscalls import CLONE_NEWNET, die_with_parent, setns
from emulator.traffic import expression
from emulator.traffic.errqueue import local_error
from emulator.traffic.injection import Answer, Injection, Refusal
from emulator.traffic.model import InjectionReport

QUEUE_PATIENCE = 50  # times a millisecond that a full device queue is waited for


class Outlet:
    """The sockets of one namespace, made when first needed."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._sockets: dict[int, socket.socket] = {}

    def send(self, data: bytes, target: str) -> str:
        """Send one packet; returns why it was refused, empty if it was not."""
        try:
            sock, address = self._outlet(target)
        except OSError as error:
            return f"{self._device}: {error.strerror}"
        for _ in range(QUEUE_PATIENCE):
            try:
                if address is None:
                    sock.send(data)
                else:
                    sock.sendto(data, address)
                return ""
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EAGAIN):
                    return local_error(error.errno or 0).detail
            time.sleep(0.001)
        return "the device's queue stays full"

    def _outlet(self, target: str) -> tuple[socket.socket, tuple[str, int] | None]:
        family = socket.AF_PACKET if not target else socket.AF_INET6 if ":" in target else socket.AF_INET
        sock = self._sockets.get(family)
        if sock is None:
            if family == socket.AF_PACKET:
                # Protocol 0: it receives nothing.
                sock = socket.socket(family, socket.SOCK_RAW, 0)
                sock.bind((self._device, 0))
            else:
                sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            self._sockets[family] = sock
        return sock, (target, 0) if target else None


def inject(injection: Injection) -> Answer:
    """Enter the namespace, for good, and send."""
    try:
        fd = os.open(injection.netns, os.O_RDONLY)
        setns(fd, CLONE_NEWNET)
    except OSError as error:
        return None, Refusal(injection.netns, error.strerror or str(error), users=False)
    # Only here, as importing scapy reads the routes of the namespace.
    from emulator.traffic.packets import BadPacket

    outlet = Outlet(injection.device)
    refusals: Counter[str] = Counter()
    sent = 0
    began = time.monotonic()
    try:
        for due, packet, refusal in _schedule(injection):
            wait = began + due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            reason = refusal if packet is None else outlet.send(*packet)
            if reason:
                refusals[reason] += 1
            else:
                sent += 1
    except BadPacket as error:
        return None, Refusal(error.part, error.reason)
    seconds = round(time.monotonic() - began, 6)
    return InjectionReport(sent, sum(refusals.values()), seconds, dict(refusals)), None


def _schedule(injection: Injection) -> Iterator[tuple[float, tuple[bytes, str] | None, str]]:
    """(seconds from the start, packet, why there is none) of each."""
    from emulator.traffic.packets import build, read_capture

    if injection.expression:
        made = list(build(expression.parse(injection.expression)))
        for number in range(injection.count):
            for packet in made:
                yield number * injection.interval, packet, ""
        return
    for captured in read_capture(Path(injection.capture), injection.rewrite, injection.source):
        due = captured.offset / injection.speed if injection.speed else 0.0
        yield due, captured.packet, captured.refusal


def main() -> None:
    """Do what standard input says; answer on standard output."""
    die_with_parent(signal.SIGKILL)
    injection = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Injection)
    if os.getppid() != injection.parent:
        return  # it ended before it could be bound to us
    answer = inject(injection)
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
