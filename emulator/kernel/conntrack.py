"""Entries of the connection tracking, read and deleted in a namespace."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
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

    def body(conntrack: Any) -> list[Entry]:
        return [
            entry
            for family in FAMILIES
            # The kernel sends those of the protocol alone (since 5.8), and of the family that the filter is of.
            for message in conntrack.dump(tuple_orig=NFCTAttrTuple(family=family, proto=socket.IPPROTO_UDP))
            if message["nfgen_family"] == family
            for entry in _entry(family, message)
        ]

    return _inside(ns, body)


def forget(ns: str, entries: Iterable[Entry]) -> int:
    """Delete UDP entries; those that are gone already do not matter. Returns how many were deleted.

    Raises ApplyError.
    """

    def body(conntrack: Any) -> int:
        deleted = 0
        for entry in entries:
            try:
                list(conntrack.entry("del", tuple_orig=_tuple(entry)))
                deleted += 1
            except NetlinkError as error:
                if error.code != GONE:
                    raise
        return deleted

    return _inside(ns, body)


def _inside(ns: str, body: Callable[[Any], T]) -> T:
    try:
        with inside(netns_path(ns)):  # to the end: pyroute2 opens the socket when it is first used
            conntrack = NFCTSocket()
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
