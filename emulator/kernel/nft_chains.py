"""Single chains of nftables, asked for by netlink in the namespace that this thread is in.

``nft list chain`` reads all chains and sets of the table first: with 10,000 Services seconds for each chain, where the
kernel answers in microseconds. Messages: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import socket
from typing import Literal

from emulator.kernel.netfilter_netlink import answers, attribute, opened, request
from emulator.kernel.netlink import NLM_F_ACK, NLM_F_DUMP, attributes

NFNL_SUBSYS_NFTABLES = 10
GET_CHAIN, GET_RULE = 4, 7
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK = 1, 3, 4
RULE_TABLE, RULE_CHAIN = 1, 2
Family = Literal["ip", "ip6", "inet"]
FAMILIES: dict[Family, int] = {"ip": socket.AF_INET, "ip6": socket.AF_INET6, "inet": 1}  # NFPROTO_INET


class ChainReader:
    """A netlink socket. A context manager."""

    def __init__(self) -> None:
        self._socket = opened()

    def __enter__(self) -> ChainReader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def hooked(self, family: Family, table: str, chain: str) -> bool | None:
        """Whether the chain is a base chain; None if there is none of that name. Raises OSError."""
        asked = _message(GET_CHAIN, NLM_F_ACK, family, {CHAIN_TABLE: table, CHAIN_NAME: chain})
        try:
            found = list(answers(self._socket, asked))
        except FileNotFoundError:
            return None
        return any(CHAIN_HOOK in attributes(body, 0) for body in found)

    def rules(self, family: Family, table: str, chain: str) -> int:
        """How many rules the chain has; 0 if there is none of that name. Raises OSError."""
        asked = _message(GET_RULE, NLM_F_DUMP, family, {RULE_TABLE: table, RULE_CHAIN: chain})
        try:
            return sum(1 for _ in answers(self._socket, asked))
        except FileNotFoundError:
            return 0


def _message(kind: int, flags: int, family: Family, names: dict[int, str]) -> bytes:
    texts = b"".join(attribute(number, name.encode() + b"\0") for number, name in names.items())
    return request(NFNL_SUBSYS_NFTABLES, kind, flags, FAMILIES[family], texts)
