"""The few system calls that Python 3.11 does not wrap: namespaces, mounts, prctl.

Each raises OSError with the call and its object in the message, so that a failure can be reported as it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

_libc = ctypes.CDLL(None, use_errno=True)

# sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# sys/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 0x2

# sys/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15

# sys/socket.h, linux/sockios.h, net/if.h
_AF_INET, _SOCK_DGRAM, _SOCK_CLOEXEC = 2, 2, 0x80000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``flags`` for new ones (unshare(2))."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(fd: int, kind: int = 0) -> None:
    """Enter the namespace behind ``fd``; ``kind`` 0 takes any (setns(2)). Applies to this thread only."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), f"setns(fd {fd})")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); empty strings stand for NULL."""
    result = _libc.mount(
        source.encode() or None,
        target.encode(),
        fstype.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, f"mount {fstype or source} on {target}")


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(flags)), f"umount {target}")


def die_with_parent(signal: int) -> None:
    """Have the kernel send us ``signal`` when the thread that forked us ends (PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(ctypes.c_int(PR_SET_PDEATHSIG), ctypes.c_ulong(signal), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def set_hostname(name: str) -> None:
    """sethostname(2) in the current UTS namespace."""
    data = name.encode()
    _check(_libc.sethostname(data, ctypes.c_size_t(len(data))), f"sethostname({name})")


def link_up(device: str) -> None:
    """Set a network device of the current namespace up, by the old ioctl: no netlink, no import of socket."""
    fd = _libc.socket(_AF_INET, _SOCK_DGRAM | _SOCK_CLOEXEC, 0)
    if fd < 0:
        _check(fd, "socket(AF_INET)")
    try:
        request = bytearray(40)  # struct ifreq: 16 bytes of name, then the flags as a short
        request[: len(device)] = device.encode()
        fcntl.ioctl(fd, _SIOCGIFFLAGS, request)
        flags = int.from_bytes(request[16:18], "little") | _IFF_UP
        request[16:18] = flags.to_bytes(2, "little")
        fcntl.ioctl(fd, _SIOCSIFFLAGS, bytes(request))
    finally:
        os.close(fd)


@contextmanager
def inside(netns: str | int) -> Iterator[None]:
    """Run the body with this thread in the network namespace at a path or descriptor, then come back.

    Sockets made meanwhile stay in that namespace for good.
    """
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = netns if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(there, CLONE_NEWNET)
        finally:
            if not isinstance(netns, int):
                os.close(there)
        try:
            yield
        finally:
            setns(here, CLONE_NEWNET)
    finally:
        os.close(here)
