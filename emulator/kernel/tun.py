"""TUN devices: packets of a namespace that a process reads and writes.

Source: Linux Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import fcntl
import os
import struct

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_NO_PI = 0x1, 0x1000  # bare IP packets, without four bytes of packet information before each


def open_tun(name: str) -> int:
    """A descriptor of the caller's namespace's TUN device ``name``, which is made if there is none. Raises OSError."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def make_tun(name: str) -> None:
    """A TUN device that stays when nobody has it open. Raises OSError."""
    descriptor = open_tun(name)
    try:
        fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
    finally:
        os.close(descriptor)
