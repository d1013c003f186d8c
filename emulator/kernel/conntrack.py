"""Entries of the connection tracking, read and deleted in a namespace.

They are read by hand: a busy node has thousands of them (each flow through a VXLAN tunnel has one of its own), and
pyroute2 takes 80 µs to decode one.

Sources: Linux include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c
(ctnetlink_alloc_filter).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from emulator.errors import ApplyError
from emulator.kernel.netfilter_netlink import answers, attribute, opened, request
from emulator.kernel.netlink import NLM_F_DUMP, attributes
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.proxy.conntrack import Entry

GONE = 2  # ENOENT
FAMILIES = (socket.AF_INET, socket.AF_INET6)

NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET = 1, 1
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_FILTER = 1, 2, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_FILTER_ORIG_FLAGS = 1
BY_PROTOCOL = 1 << 3  # CTA_FILTER_F_CTA_PROTO_NUM
NESTED = 0x8000
_PORT = struct.Struct("!H")

T = TypeVar("T")


def udp_entries(ns: str, families: Iterable[int] = (4, 6)) -> list[Entry]:
    """The UDP entries of a namespace (by its name in the plan), of these IP versions: for each the kernel goes through
    its whole table. Raises ApplyError."""
    try:
        with inside(netns_path(ns)):
            asked = opened()
        with asked:
            return [
                entry
                for version in families
                for body in answers(asked, _udp_only(socket.AF_INET6 if version == 6 else socket.AF_INET))
                for entry in _entry(body)
            ]
    except OSError as error:
        raise ApplyError(f"failed to look through the connection tracking of {ns}: {error}") from error


def forget(ns: str, entries: Collection[Entry]) -> int:
    """Delete UDP entries; those that are gone already do not matter. Returns how many were deleted.

    Raises ApplyError.
    """
    deleted = 0
    for family in FAMILIES:
        mine = [entry for entry in entries if (":" in entry.target) == (family == socket.AF_INET6)]
        if mine:
            deleted += _inside(ns, family, partial(_delete, mine))
    return deleted


def _udp_only(family: int) -> bytes:
    """The request for the UDP entries of a family; since Linux 5.8 the kernel leaves the others out."""
    protocol = attribute(CTA_PROTO_NUM, bytes([socket.IPPROTO_UDP]))
    tuple_orig = attribute(CTA_TUPLE_ORIG | NESTED, attribute(CTA_TUPLE_PROTO | NESTED, protocol))
    flags = attribute(CTA_FILTER_ORIG_FLAGS, struct.pack("=I", BY_PROTOCOL))
    wanted = tuple_orig + attribute(CTA_FILTER | NESTED, flags)
    return request(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET, NLM_F_DUMP, family, wanted)


def _delete(entries: Iterable[Entry], conntrack: Any) -> int:
    deleted = 0
    for entry in entries:
        try:
            list(conntrack.entry("del", tuple_orig=_tuple(entry)))
            deleted += 1
        except NetlinkError as error:
            if error.code != GONE:
                raise
    return deleted


def _inside(ns: str, family: int, body: Callable[[Any], T]) -> T:
    try:
        with inside(netns_path(ns)):  # to the end: pyroute2 opens the socket when it is first used
            conntrack = NFCTSocket(nfgen_family=family)
            try:
                return body(conntrack)
            finally:
                conntrack.close()
    except (NetlinkError, OSError) as error:
        raise ApplyError(f"failed to look through the connection tracking of {ns}: {error}") from error


def _entry(body: memoryview) -> Iterator[Entry]:
    """The entry of a message if it is a UDP one: an older kernel sends all."""
    found = attributes(body, 0)
    number, source, source_port, target, target_port = _ends(found[CTA_TUPLE_ORIG])
    if number == socket.IPPROTO_UDP:
        _, reply_source, reply_port, _, _ = _ends(found[CTA_TUPLE_REPLY])
        yield Entry(source, source_port, target, target_port, reply_source, reply_port)


def _ends(tuple_: memoryview) -> tuple[int, str, int, str, int]:
    """Protocol, source and target of one direction."""
    parts = attributes(tuple_, 0)
    protocol = attributes(parts[CTA_TUPLE_PROTO], 0)
    number = protocol[CTA_PROTO_NUM][0]
    if number != socket.IPPROTO_UDP:
        return number, "", 0, "", 0
    source, target = attributes(parts[CTA_TUPLE_IP], 0).values()  # CTA_IP_V4_SRC, _DST, or those of IPv6
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    (source_port,), (target_port,) = (
        _PORT.unpack_from(protocol[kind]) for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT)
    )
    return number, socket.inet_ntop(family, source), source_port, socket.inet_ntop(family, target), target_port


def _tuple(entry: Entry) -> Any:
    return NFCTAttrTuple(
        family=socket.AF_INET6 if ":" in entry.source else socket.AF_INET,
        saddr=entry.source,
        daddr=entry.target,
        proto=socket.IPPROTO_UDP,
        sport=entry.source_port,
        dport=entry.target_port,
    )
