"""NFQUEUE by netlink: packets that netfilter hands to user space, and what is to become of them.

Nothing but the standard library: a daemon without site packages uses it.

Sources: Linux include/uapi/linux/netfilter/nfnetlink_queue.h, nfnetlink.h, nfnetlink_conntrack.h,
net/netfilter/nfnetlink_queue.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_NETFILTER = 12
SUBSYSTEM = 3  # NFNL_SUBSYS_QUEUE
PACKET, VERDICT, CONFIG = 0, 1, 2
CONNTRACK, GET_STATS = 1, 5  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET_STATS
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

NFQA_CFG_CMD, NFQA_CFG_PARAMS, NFQA_CFG_QUEUE_MAXLEN, NFQA_CFG_MASK, NFQA_CFG_FLAGS = 1, 2, 3, 4, 5
BIND, COPY_PACKET = 1, 2
FAIL_OPEN, GSO = 1, 4  # NFQA_CFG_F_*
NFQA_PACKET_HDR, NFQA_VERDICT_HDR, NFQA_MARK, NFQA_PAYLOAD, NFQA_CT = 1, 2, 3, 10, 11
CTA_LABELS, LABEL_BYTES = 22, 16
DROP, ACCEPT, REPEAT = 0, 1, 4  # repeat: once more through the same hook

BUFFER = 8 << 20  # bytes; without root in the first user namespace the kernel gives less
SO_RCVBUFFORCE = 33
RECEIVE = 1 << 16
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


class Queued(NamedTuple):
    """A packet that waits for its verdict: its number, the hook's number, its mark, its first bytes from the IP header
    on."""

    number: int
    hook: int
    mark: int
    data: bytes


class Queue:
    """Queue ``number`` of this thread's network namespace, bound. Raises OSError: EPERM, or EBUSY where another
    process has it.

    ``copied`` bytes of each packet are given; up to ``waiting`` packets wait in the kernel. ``flags``: with GSO the
    kernel does not cut large packets up first; with FAIL_OPEN packets pass that find the queue full.
    """

    def __init__(self, number: int, *, copied: int, waiting: int, flags: int) -> None:
        self._number = number
        self._sequence = 0
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self.socket.bind((0, 0))
        self._ask(_attribute(NFQA_CFG_CMD, struct.pack("!BxH", BIND, 0)))
        self._ask(
            _attribute(NFQA_CFG_PARAMS, struct.pack("!IB", copied, COPY_PACKET))
            + _attribute(NFQA_CFG_QUEUE_MAXLEN, struct.pack("!I", waiting))
            + _attribute(NFQA_CFG_FLAGS, struct.pack("!I", flags))
            + _attribute(NFQA_CFG_MASK, struct.pack("!I", flags))
        )
        self.socket.setblocking(False)

    def packets(self) -> Iterator[Queued]:
        """What waits by now. Raises OSError (ENOBUFS) if some did not fit into the socket's buffer since the last
        time; the rest can be asked for again."""
        while True:
            try:
                data = self.socket.recv(RECEIVE)
            except BlockingIOError:
                return
            for kind, body in _messages(data):
                if kind == SUBSYSTEM << 8 | PACKET:
                    yield _queued(body)

    def verdict(self, number: int, verdict: int, *, label: int = -1, mark: int = -1) -> None:
        """Let a packet go on, or drop it. ``label``: the connection's label of that number is set, and no other; the
        kernel ignores that unless it is built with CONFIG_NETFILTER_NETLINK_GLUE_CT and :meth:`load_labels` was called
        once. ``mark``: the packet's new one."""
        attributes = _attribute(NFQA_VERDICT_HDR, struct.pack("!II", verdict, number))
        if label >= 0:
            labels = _attribute(CTA_LABELS, label_bits(label))
            attributes += _attribute(NFQA_CT | NLA_F_NESTED, labels)
        if mark >= 0:
            attributes += _attribute(NFQA_MARK, struct.pack("!I", mark))
        self._send(VERDICT, attributes, 0)

    def load_labels(self) -> None:
        """Have the kernel load the module that reads labels in verdicts (nf_conntrack_netlink), by any question to
        it."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as asking:
            body = struct.pack("!BBH", socket.AF_INET, 0, 0)
            head = _HEADER.pack(_HEADER.size + len(body), CONNTRACK << 8 | GET_STATS, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
            asking.send(head + body)
            asking.recv(RECEIVE)

    def _ask(self, attributes: bytes) -> None:
        """A configuration message, and its acknowledgement."""
        self._send(CONFIG, attributes, NLM_F_ACK)
        while True:
            for kind, body in _messages(self.socket.recv(RECEIVE)):
                if kind == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return

    def _send(self, kind: int, attributes: bytes, flags: int) -> None:
        self._sequence += 1
        body = struct.pack("!BBH", 0, 0, self._number) + attributes
        length = _HEADER.size + len(body)
        self.socket.send(_HEADER.pack(length, SUBSYSTEM << 8 | kind, NLM_F_REQUEST | flags, self._sequence, 0) + body)


def label_bits(label: int) -> bytes:
    """The connection labels of which only that one is set, as the kernel keeps them: an array of its own long words."""
    return (1 << label).to_bytes(LABEL_BYTES, "little")


def overrun(error: OSError) -> bool:
    """Whether the error says that the socket's buffer was full."""
    return error.errno == errno.ENOBUFS


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += max(length + 3 & ~3, _HEADER.size)


def _queued(body: bytes) -> Queued:
    number, hook, mark, payload = 0, 0, 0, b""
    offset = 4  # struct nfgenmsg
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        value = body[offset + _ATTRIBUTE.size : offset + length]
        if kind & NLA_TYPE_MASK == NFQA_PACKET_HDR:
            number, _, hook = struct.unpack_from("!IHB", value)
        elif kind & NLA_TYPE_MASK == NFQA_MARK:
            (mark,) = struct.unpack("!I", value)
        elif kind & NLA_TYPE_MASK == NFQA_PAYLOAD:
            payload = value
        offset += max(length + 3 & ~3, _ATTRIBUTE.size)
    return Queued(number, hook, mark, payload)
