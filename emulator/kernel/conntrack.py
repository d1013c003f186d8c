"""Entries of the connection tracking, read and deleted in a namespace."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, TypeVar

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from emulator.errors import ApplyError
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.proxy.conntrack import Entry

GONE = 2  # ENOENT
FAMILIES = (socket.AF_INET, socket.AF_INET6)

T = TypeVar("T")


def udp_entries(ns: str) -> list[Entry]:
    """The UDP entries of a namespace (by its name in the plan). Raises ApplyError."""
    found = []
    for family in FAMILIES:
        found += _inside(ns, family, partial(_dump, family))
    return found


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


def _dump(family: int, conntrack: Any) -> list[Entry]:
    wanted = NFCTAttrTuple(family=family, proto=socket.IPPROTO_UDP)  # the kernel leaves others out (since 5.8)
    return [entry for message in conntrack.dump(tuple_orig=wanted) for entry in _entry(family, message)]


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


def _entry(family: int, message: Any) -> list[Entry]:
    original = NFCTAttrTuple.from_netlink(family, message.get_attr("CTA_TUPLE_ORIG"))
    reply = NFCTAttrTuple.from_netlink(family, message.get_attr("CTA_TUPLE_REPLY"))
    if original.proto != socket.IPPROTO_UDP:
        return []
    return [Entry(original.saddr, original.sport, original.daddr, original.dport, reply.saddr, reply.sport)]


def _tuple(entry: Entry) -> Any:
    return NFCTAttrTuple(
        family=socket.AF_INET6 if ":" in entry.source else socket.AF_INET,
        saddr=entry.source,
        daddr=entry.target,
        proto=socket.IPPROTO_UDP,
        sport=entry.source_port,
        dport=entry.target_port,
    )
