"""A connection tracking table that is full: filled up with entries of connections that nobody has.

The limit, ``net.netfilter.nf_conntrack_max``, is the whole kernel's: namespaces other than the first see it read-only.
What is compared with it is each namespace's own number of entries. So a node's table gets full as it does in
real life, by entries; the kernel drops what would need one more, and says so in its log.

The entries are of established TCP connections within 198.18.0.0/15, which RFC 2544 reserves for measurements; such
are never evicted early. They bear a mark, by which they are taken away again.

Sources: Linux net/netfilter/nf_conntrack_core.c (__nf_conntrack_alloc, early_drop), nf_conntrack_standalone.c,
include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

from emulator.errors import ApplyError, Unsupported
from emulator.kernel.netlink import (
    HEADER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    TIMEOUT,
)
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside

MOST = 1 << 20  # entries: an entry takes the kernel about 320 bytes
LIMIT = Path("/proc/sys/net/netfilter/nf_conntrack_max")
MARK = 0x0CF1_1ED0  # cnilab's own: of no other entry
LIFETIME = 86400  # seconds
AT_ONCE = 128  # entries in a message to the kernel: as many refusals fit into the socket's buffer

NETLINK_NETFILTER = 12
NEW, DELETE = 1 << 8, 1 << 8 | 2  # IPCTNL_MSG_CT_NEW, _DELETE of NFNL_SUBSYS_CTNETLINK
ORIGINAL, REPLY, STATUS, PROTOINFO, TIMEOUT_LEFT, MARKED, MARK_MASK = 1, 2, 3, 4, 7, 8, 21  # enum ctattr_type
ASSURED, CONFIRMED, ESTABLISHED = 1 << 2, 1 << 3, 3
NESTED = 0x8000
SOURCE, TARGET = socket.inet_aton("198.18.0.0"), socket.inet_aton("198.19.255.254")
PORTS = 1 << 15  # of each source address, from the highest bit on
_ERROR = struct.Struct("=i")


def fill(ns: str) -> int:
    """Fill the table of a namespace (by its name in the plan); returns how many entries that took.

    Raises Unsupported where there is no limit, or one that would take too much memory, and ApplyError.
    """
    most = int(LIMIT.read_text()) if LIMIT.exists() else 0
    if not 0 < most <= MOST:
        raise Unsupported(
            f"the connection tracking of {ns} cannot be filled: this kernel's limit is {most or 'none'}",
            hint=f"set net.netfilter.nf_conntrack_max to {MOST} or less, as root in the first namespace",
        )
    made = 0
    with _opened(ns) as opened:
        while made <= most:
            opened.send(b"".join(_entry(number) for number in range(made, made + AT_ONCE)))
            refused = _refusals(opened, ns)
            made += AT_ONCE - refused
            if refused:
                return made
    return made


def free(ns: str) -> None:
    """Take those entries away. Raises ApplyError."""
    body = struct.pack("=BBH", 0, 0, 0) + _attribute(MARKED, _number(MARK)) + _attribute(MARK_MASK, _number(0xFFFFFFFF))
    with _opened(ns) as opened:
        opened.send(HEADER.pack(HEADER.size + len(body), DELETE, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body)
        opened.settimeout(TIMEOUT)
        (code,) = _ERROR.unpack_from(opened.recv(1 << 16), HEADER.size)
        if code and -code != errno.ENOENT:
            raise ApplyError(f"failed to empty the connection tracking of {ns}: {os.strerror(-code)}")


def _opened(ns: str) -> socket.socket:
    try:
        with inside(netns_path(ns)):
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise ApplyError(f"failed to reach the connection tracking of {ns}: {error}") from error


def _refusals(opened: socket.socket, ns: str) -> int:
    """How many entries of the last batch the kernel had no room for: it answers within send(2)."""
    refused = 0
    while True:
        try:
            data = opened.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return refused
        offset = 0
        while offset + HEADER.size + _ERROR.size <= len(data):
            length, kind, *_ = HEADER.unpack_from(data, offset)
            (code,) = _ERROR.unpack_from(data, offset + HEADER.size)
            if kind == NLMSG_ERROR and code:
                if -code != errno.ENOMEM:
                    raise ApplyError(f"failed to fill the connection tracking of {ns}: {os.strerror(-code)}")
                refused += 1
            offset += (length + 3) & ~3


def _entry(number: int) -> bytes:
    """The message that makes the entry of that number; errors alone are answered."""
    source = struct.pack("!I", int.from_bytes(SOURCE) + number // PORTS)
    port = struct.pack("!H", PORTS + number % PORTS)
    return b"".join((_HEAD, source, _TO, port, _THERE, source, _BACK, port, _REST))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _number(value: int) -> bytes:
    return struct.pack("!I", value)


def _tuple(kind: int, source: bytes, target: bytes, source_port: bytes, target_port: bytes) -> bytes:
    addresses = _attribute(1, source) + _attribute(2, target)
    protocol = _attribute(1, bytes([socket.IPPROTO_TCP])) + _attribute(2, source_port) + _attribute(3, target_port)
    return _attribute(kind | NESTED, _attribute(1 | NESTED, addresses) + _attribute(2 | NESTED, protocol))


def _template() -> tuple[bytes, ...]:
    """A message in the pieces between its variable parts: source, port, source, port."""
    source, port, discard = b"\xaa\xbb\xcc\xdd", b"\xee\xff", struct.pack("!H", 9)
    body = b"".join(
        (
            struct.pack("=BBH", socket.AF_INET, 0, 0),
            _tuple(ORIGINAL, source, TARGET, port, discard),
            _tuple(REPLY, TARGET, source, discard, port),
            _attribute(STATUS, _number(ASSURED | CONFIRMED)),
            _attribute(TIMEOUT_LEFT, _number(LIFETIME)),
            _attribute(PROTOINFO | NESTED, _attribute(1 | NESTED, _attribute(1, bytes([ESTABLISHED])))),
            _attribute(MARKED, _number(MARK)),
        )
    )
    flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL
    whole = HEADER.pack(HEADER.size + len(body), NEW, flags, 1, 0) + body
    pieces = []
    for variable in (source, port, source, port):
        piece, _, whole = whole.partition(variable)
        pieces.append(piece)
    return (*pieces, whole)


_HEAD, _TO, _THERE, _BACK, _REST = _template()
