"""Single chains of nftables, asked for by netlink in the namespace that this thread is in.

``nft list chain`` reads all chains and sets of the table first: with 10,000 Services seconds for each chain, where the
kernel answers in microseconds. Messages: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Literal

from emulator.kernel.netlink import attributes

NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES = 12, 10
GET_CHAIN, GET_RULE = 4, 7
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK = 1, 3, 4
RULE_TABLE, RULE_CHAIN = 1, 2
FAMILIES = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
HEADER = struct.Struct("=IHHII")
CODE = struct.Struct("=i")  # of struct nlmsgerr: a negative errno, or 0
PAYLOAD = HEADER.size + 4  # behind struct nfgenmsg
TIMEOUT = 10.0  # seconds for one answer


class ChainReader:
    """A netlink socket. A context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.settimeout(TIMEOUT)

    def __enter__(self) -> ChainReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def hooked(self, family: Literal["ip", "ip6"], table: str, chain: str) -> bool | None:
        """Whether the chain is a base chain; None if there is none of that name. Raises OSError."""
        request = _message(GET_CHAIN, NLM_F_ACK, family, {CHAIN_TABLE: table, CHAIN_NAME: chain})
        try:
            answers = list(self._ask(request))
        except FileNotFoundError:
            return None
        return any(CHAIN_HOOK in attributes(body, PAYLOAD) for body in answers)

    def rules(self, family: Literal["ip", "ip6"], table: str, chain: str) -> int:
        """How many rules the chain has; 0 if there is none of that name. Raises OSError."""
        return sum(1 for _ in self._ask(_message(GET_RULE, NLM_F_DUMP, family, {RULE_TABLE: table, RULE_CHAIN: chain})))

    def _ask(self, request: bytes) -> Iterator[bytes]:
        """The messages of the answer."""
        self._socket.send(request)
        while True:
            data = self._socket.recv(1 << 17)
            place = 0
            while place < len(data):
                length, kind, _, _, _ = HEADER.unpack_from(data, place)
                body = data[place : place + length]
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    code = -CODE.unpack_from(body, HEADER.size)[0]
                    if code > 0 and not (kind == NLMSG_DONE and code == errno.ENOENT):
                        raise OSError(code, os.strerror(code))
                    return
                yield body
                place += (length + 3) & ~3


def _message(kind: int, flags: int, family: Literal["ip", "ip6"], names: dict[int, str]) -> bytes:
    body = bytes((FAMILIES[family], 0, 0, 0))
    for number, name in names.items():
        value = name.encode() + b"\0"
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    whole = HEADER.size + len(body)
    return HEADER.pack(whole, NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_REQUEST | flags, 1, 0) + body
