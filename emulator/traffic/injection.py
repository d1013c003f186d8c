"""Replayed captures and hand-made packets, sent by a process of their own.

Scapy takes longer to import than a hundred pods take to probe, and a replay may last minutes: neither may hold up the
engine. ``python -m emulator.traffic.injector`` reads one :class:`Injection` from its standard input, enters the
namespace, sends, and writes one answer.
"""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import sys
from collections.abc import Mapping

import msgspec

from emulator.errors import CnilabError, DaemonError, NotFound, Problem, ScenarioError, UserError
from emulator.traffic import expression as expressions
from emulator.traffic.model import InjectionReport


class Injection(msgspec.Struct, frozen=True):
    """What to send from where. Either ``expression`` or ``capture`` (a path) is set."""

    netns: str
    device: str
    parent: int
    expression: str = ""
    capture: str = ""
    rewrite: dict[str, str] = {}
    source: str = ""
    speed: float = 1.0
    count: int = 1
    interval: float = 0.0


class Refusal(msgspec.Struct, frozen=True):
    """Nothing (more) could be sent: which part is wrong, and why. ``users`` if the input is at fault."""

    part: str
    reason: str
    users: bool = True


_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")

Answer = tuple[InjectionReport | None, Refusal | None]


def replay(
    capture: str,
    netns: str,
    *,
    device: str = "eth0",
    rewrite: Mapping[str, str] | None = None,
    speed: float = 1.0,
    source: str = "",
    timeout: float = 600.0,
) -> InjectionReport:
    """Send the packets of a pcap or pcapng file from a namespace.

    ``rewrite`` maps captured IP and MAC addresses to new ones. ``speed`` 2.0 is twice as fast as captured, 0 as fast as
    can be. With ``source``, only packets that came from that (captured) IP address are sent. IP packets take the
    namespace's own routing and neighbours; anything else goes out of ``device`` as a frame. Raises NotFound for a file
    or a namespace, UserError for a file that is no capture, DaemonError if it lasts longer than ``timeout`` seconds.
    """
    if not os.path.isfile(capture):
        raise NotFound(f"there is no capture {capture}")
    if speed < 0:
        raise UserError(f"speed {speed} is below 0")
    addresses = {_address(old): _address(new) for old, new in (rewrite or {}).items()}
    for old, new in addresses.items():
        if _kind(old) != _kind(new):
            raise UserError(f"cannot rewrite {old} to {new}: they are of different kinds")
    injection = Injection(
        netns, device, os.getpid(), capture=os.path.abspath(capture), rewrite=addresses, speed=speed, source=source
    )
    report, refusal = _run(injection, timeout)
    if report is None:
        assert refusal is not None
        if refusal.users:
            raise UserError(f"cannot replay {refusal.part}: {refusal.reason}")
        raise CnilabError(f"cannot replay {capture} in {netns}: {refusal.reason}")
    return report


def send(
    netns: str,
    expression: str,
    *,
    device: str = "eth0",
    count: int = 1,
    interval: float = 0.0,
    origin: str = "<expression>",
    subject: str = "",
    timeout: float = 60.0,
) -> InjectionReport:
    """Send the packets of a scapy expression (expression.py) ``count`` times, ``interval`` seconds apart.

    ``origin`` and ``subject`` say in errors where the expression stands. A packet that begins with IP takes the
    namespace's own routing, and the kernel fills in its IP checksum and length; one that begins with Ether goes out of
    ``device`` byte by byte. Raises ScenarioError for the expression, NotFound for the namespace, DaemonError if
    it lasts longer than ``timeout`` seconds.
    """
    expressions.parse(expression, origin, subject)
    if count < 1 or interval < 0:
        raise UserError(f"count {count} and interval {interval} must be positive")
    injection = Injection(netns, device, os.getpid(), expression=expression, count=count, interval=interval)
    report, refusal = _run(injection, timeout)
    if report is None:
        assert refusal is not None
        if refusal.users:
            raise ScenarioError([Problem(origin, subject, refusal.part, refusal.reason)])
        raise CnilabError(f"cannot send from {netns}: {refusal.reason}")
    return report


def _kind(address: str) -> int:
    """4 and 6 for IP addresses, 0 for a MAC address."""
    return 0 if _MAC.fullmatch(address) else ipaddress.ip_address(address).version


def _address(text: str) -> str:
    """An IP or MAC address as scapy writes it. Raises UserError."""
    if _MAC.fullmatch(text):
        return text.lower()
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise UserError(f"{text!r} is neither an IP nor a MAC address") from error


def _run(injection: Injection, timeout: float) -> Answer:
    if not os.path.exists(injection.netns):
        raise NotFound(f"there is no network namespace {injection.netns}")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "emulator.traffic.injector"],
            input=msgspec.msgpack.encode(injection),
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DaemonError(f"sending packets from {injection.netns} took longer than {timeout:.0f} s") from error
    if done.returncode:
        lines = tuple(done.stderr.decode("utf-8", "replace").splitlines()[-20:])
        raise DaemonError(f"sending packets from {injection.netns} failed (exit code {done.returncode})", log=lines)
    answer: Answer = msgspec.msgpack.decode(done.stdout, type=Answer)
    return answer
