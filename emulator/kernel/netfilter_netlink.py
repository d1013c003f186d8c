"""Questions to the kernel's netfilter by netlink, in the namespace that the socket was made in.

For what is asked so often, or answered at such length, that a tool or a general decoder would take most of the time.

Sources: Linux include/uapi/linux/netfilter/nfnetlink.h, netlink(7).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

from emulator.kernel.netlink import HEADER, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, TIMEOUT

NETLINK_NETFILTER = 12
RECEIVE = 1 << 18  # bytes: more than the kernel puts into one part of a dump
NFGENMSG = 4  # bytes between the netlink header and the attributes
_CODE = struct.Struct("=i")  # of struct nlmsgerr: a negative errno, or 0


def opened() -> socket.socket:
    """A netlink socket in this thread's namespace."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    made.settimeout(TIMEOUT)
    return made


def close_beside(done: socket.socket) -> None:
    """Close a socket of :func:`opened` without waiting for it. As long as the kernel has parts of an nftables
    transaction to free in that namespace, closing waits until no processor can be using them (nft_rcv_nl_event in
    net/netfilter/nf_tables_api.c), 10 to 30 ms."""
    threading.Thread(target=done.close, name="close-netlink").start()


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def request(subsystem: int, kind: int, flags: int, family: int, attributes: bytes) -> bytes:
    """One message to a subsystem of netfilter."""
    body = struct.pack("=BBH", family, 0, 0) + attributes
    return HEADER.pack(HEADER.size + len(body), subsystem << 8 | kind, NLM_F_REQUEST | flags, 1, 0) + body


def answers(asked: socket.socket, message: bytes) -> Iterator[memoryview]:
    """The attributes of each message of the answer, to its end. Raises OSError with what the kernel says."""
    asked.send(message)
    while True:
        part = memoryview(asked.recv(RECEIVE))
        offset = 0
        while offset + HEADER.size <= len(part):
            length, kind, _flags, _number, _port = HEADER.unpack_from(part, offset)
            body = part[offset + HEADER.size : offset + length]
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                (code,) = _CODE.unpack_from(body) if len(body) >= _CODE.size else (0,)
                if code:
                    raise OSError(-code, os.strerror(-code))
                return
            yield body[NFGENMSG:]
            offset += (length + 3) & ~3
