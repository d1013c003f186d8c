"""Datagrams that a machine puts together from their fragments, and cuts again.

Connection tracking sees whole datagrams only (nf_defrag_ipv4, nf_defrag_ipv6). So a node that has it reassembles what
it forwards, on the way in, and cuts again on the way out what does not fit the device::

    veth in   piece ─┐                                           ┌─ piece   cut again: at the same places, or at others
    veth in   piece ─┴─▶ whole datagram ─▶ cni0 in, eth0 out ... ┴─ piece   (IPv6: always under a new identification)

The whole datagram may be seen on a device in between, or not at all. Nothing in it says which fragments it was made
of: so when all pieces have come into a namespace they are put together here too, and what leaves that namespace is
compared with the result.

Sources: net/ipv4/ip_fragment.c, net/ipv6/netfilter/nf_conntrack_reasm.c, net/bridge/br_netfilter_hooks.c (bridged
packets too), ip_do_fragment in net/ipv4/ip_output.c, ip6_fragment in net/ipv6/ip6_output.c.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

from emulator.capture.identity import PORTS, Piece, whole_key

CROWD = 1024  # datagrams in the making before those that never became whole are forgotten

Owner = TypeVar("Owner")


class Assembled(NamedTuple, Generic[Owner]):
    """A datagram as one namespace has put it together at ``time`` (ns): its bytes above the IP header, and whom each
    piece (offset, size) belongs to."""

    time: int
    kind: int
    protocol: int
    ident: int
    content: bytes
    owners: dict[tuple[int, int], Owner]

    @property
    def lead(self) -> Owner:
        """Whom the first piece belongs to."""
        return next(owner for (offset, _), owner in self.owners.items() if not offset)

    def holds(self, piece: Piece) -> bool:
        """Whether ``piece`` can have been cut from this datagram."""
        if (piece.kind, piece.protocol) != (self.kind, self.protocol):
            return False
        # IPv6 draws a new identification for each cutting.
        return (piece.kind != 0x0800 or piece.ident == self.ident) and is_part(piece, self.content)


def is_part(piece: Piece, content: bytes) -> bool:
    """Whether ``piece`` holds what stands at its place in ``content``, apart from what NAT may change."""
    end = piece.offset + len(piece.data)
    if not piece.data or end > len(content) or (end == len(content)) == piece.more:
        return False
    skip = 0 if piece.offset else PORTS.get(piece.protocol, 0)
    return content[piece.offset + skip : end] == piece.data[skip:]


class Reassembly(Generic[Owner]):
    """What has been put together where, for at most ``stall`` ns."""

    def __init__(self, stall: int) -> None:
        self._stall = stall
        self._making: dict[Hashable, tuple[int, dict[int, tuple[Piece, Owner]]]] = {}
        self._made: dict[str, list[Assembled[Owner]]] = {}
        self._by_key: dict[Hashable, list[Assembled[Owner]]] = {}

    def arrived(self, ns: str, pair: bytes, piece: Piece, owner: Owner, time: int) -> None:
        """A piece came into a namespace; ``pair`` are its addresses."""
        if not piece.data:
            return  # cut at the snap length
        key = (ns, piece.kind, piece.protocol, piece.ident, pair)
        begun, pieces = self._making.get(key, (time, {}))
        if time - begun > self._stall:
            pieces = {}
        pieces[piece.offset] = (piece, owner)
        self._making[key] = (time, pieces)
        content = _content(pieces)
        if content is None:
            if len(self._making) > CROWD:
                self._forget(time)
            return
        del self._making[key]
        owners = {(offset, len(each.data)): whose for offset, (each, whose) in sorted(pieces.items())}
        made = Assembled(time, piece.kind, piece.protocol, piece.ident, content, owners)
        self._made.setdefault(ns, []).append(made)
        identity = whole_key(piece.kind, piece.protocol, pieces[0][0].flow, content)
        self._by_key.setdefault((ns, identity), []).append(made)

    def whole(self, ns: str, key: Hashable, time: int) -> list[Assembled[Owner]]:
        """The datagrams put together in ``ns`` of which a whole packet with that identity may be a sighting."""
        if not self._by_key:
            return []
        found = self._by_key.get((ns, key), [])
        found[:] = [each for each in found if time - each.time <= self._stall]
        return list(found)

    def cut_from(self, ns: str, piece: Piece, time: int) -> list[Assembled[Owner]]:
        """The datagrams put together in ``ns`` that a piece on its way out may have been cut from."""
        found = self._made.get(ns, [])
        found[:] = [each for each in found if time - each.time <= self._stall]
        return [each for each in found if each.holds(piece)]

    def _forget(self, time: int) -> None:
        self._making = {key: value for key, value in self._making.items() if time - value[0] <= self._stall}


def _content(pieces: dict[int, tuple[Piece, Owner]]) -> bytes | None:
    """The datagram's bytes above the IP header; None while some are missing."""
    parts, at = [], 0
    while at in pieces:
        piece = pieces[at][0]
        parts.append(piece.data)
        at += len(piece.data)
        if not piece.more:
            return b"".join(parts)
    return None
