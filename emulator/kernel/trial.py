"""Find out what the kernel can do by doing it, in a namespace that is thrown away.

A version number or a config file proves nothing (a distribution may leave the module in a package that is not
installed); an attempt does. One child process is forked, leaves for new namespaces (through a user namespace where the
user is not root), makes the attempts there and reports through a pipe. It ends, and the kernel removes what it made.

    parent ── fork ──▶ child: unshare(user? net mnt) ─▶ RTM_NEWLINK, RTM_NEWQDISC, ... ─▶ errno
       ▲                                                                                   │
       └───────────────────────────── pipe: name, reason ──────────────────────────────────┘
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from emulator.kernel import programs, restrictions, syscalls

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
NOBODY = 65534  # the user without rights
PR_SET_DUMPABLE = 4

CHILDREN = 3
NOT_PERMITTED = "not permitted"  # how the reason starts where rights are lacking
ALL = ""  # stands for every trial in a child's answers
TRIALS_TIMEOUT = 60.0  # seconds, for all trials together; an emulated machine that loads modules needs ten


class Missing(Exception):
    """The feature is not there; the text says how that showed."""


class Bench:
    """What trials work with: sockets in the new namespaces, and how many queueing disciplines were tried."""

    handles = 0

    @cached_property
    def route(self) -> socket.socket:
        """A rtnetlink socket."""
        return _netlink(NETLINK_ROUTE)

    @cached_property
    def netfilter(self) -> socket.socket:
        """An nfnetlink socket."""
        return _netlink(NETLINK_NETFILTER)

    @cached_property
    def generic(self) -> socket.socket:
        """A generic netlink socket."""
        return _netlink(NETLINK_GENERIC)


Trial = Callable[[Bench], None]


def _netlink(protocol: int) -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise Missing(f"netlink protocol {protocol}: {error.strerror}") from error


def run(trials: Mapping[str, Trial], *, unprivileged: bool = False) -> dict[str, str]:
    """Make all attempts in throw-away children; for each, the reason why it is missing, or "" where it works.

    ``unprivileged``: as a user without rights would, even if we are root. Never raises for a missing feature: if not
    even the namespaces can be had, that is every trial's reason.
    """
    # Several children, as some attempts only wait for the kernel (RCU) for tens of milliseconds.
    names = list(trials)
    count = min(CHILDREN, len(names) // 8 + 1) if names else 0
    children = [_start({name: trials[name] for name in names[i::count]}, unprivileged) for i in range(count)]
    answers: dict[str, str] = {}
    end = time.monotonic() + TRIALS_TIMEOUT
    for i, (child, reader) in enumerate(children):
        try:
            text = _read_all(reader, end - time.monotonic())
        finally:
            os.close(reader)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        told: dict[str, str] = dict(json.loads(line) for line in text.splitlines())
        failed = told.pop(ALL, "the attempt ended early")
        answers |= {name: told.get(name, failed) for name in names[i::count]}
    return {name: answers[name] for name in names}


def _start(trials: Mapping[str, Trial], unprivileged: bool) -> tuple[int, int]:
    """Fork a child for these trials: its process id, and where its answers can be read."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            _in_child(trials, writer, unprivileged)
            status = 0
        finally:
            os._exit(status)  # no exit handlers, nothing flushed: all that is the parent's
    os.close(writer)
    return child, reader


def _read_all(fd: int, timeout: float) -> str:
    chunks, end = [], time.monotonic() + timeout
    while (left := end - time.monotonic()) > 0 and select.select([fd], [], [], left)[0]:
        chunk = os.read(fd, 65536)
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks).decode()


def _in_child(trials: Mapping[str, Trial], writer: int, unprivileged: bool) -> None:
    def tell(name: str, reason: str) -> None:
        os.write(writer, (json.dumps([name, reason]) + "\n").encode())

    try:
        syscalls.die_with_parent(signal.SIGKILL)
        silence = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(silence, fd)
        os.environ["PATH"] = programs.search_path()
        enter_namespaces(unprivileged)
    except OSError as error:
        told = restrictions.explain(error, "make the namespaces of a lab")
        tell(ALL, ": ".join(told) if told else str(error))
        return
    bench = Bench()
    for name, trial in trials.items():
        try:
            trial(bench)
        except Missing as missing:
            tell(name, str(missing))
        except PermissionError as error:
            tell(name, f"{NOT_PERMITTED}: {error.strerror or error}")
        except OSError as error:
            tell(name, error.strerror or str(error))
        else:
            tell(name, "")


def enter_namespaces(unprivileged: bool) -> None:
    """Leave for new net and mount namespaces, as root of a new user namespace where that is the only way."""
    if unprivileged and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # A change of user clears "dumpable", and /proc/self/uid_map would then belong to root.
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    try:
        if unprivileged:
            raise PermissionError
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    except PermissionError:
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
