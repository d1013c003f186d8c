"""Answers to DNS questions as plain data, before they become bytes."""

from __future__ import annotations

from typing import Literal, NamedTuple

Rcode = Literal["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS"]
Labels = tuple[str, ...]

AS_ASKED = ""  # the owner of a record is the question's name, in the question's spelling


class Srv(NamedTuple):
    """SRV data (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str


class Soa(NamedTuple):
    """SOA data (RFC 1035, 3.3.13); times in seconds."""

    mname: str
    rname: str
    serial: int
    refresh: int
    retry: int
    expire: int
    minimum: int


class Record(NamedTuple):
    """A resource record of class IN. Names are absolute, without the final dot.

    ``data`` is an address (A, AAAA), a name (CNAME, NS, PTR), the text (TXT), or a :class:`Srv` or :class:`Soa`.
    """

    owner: str
    kind: str
    ttl: int
    data: str | Srv | Soa


class Answer(NamedTuple):
    """``authoritative`` sets AA. ``chase``: the last record is a CNAME to this name, which only the upstream resolver
    knows; its records belong behind that one."""

    rcode: Rcode = "NOERROR"
    answer: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    authoritative: bool = True
    chase: str = ""


def labels_of(name: str) -> Labels:
    """The labels of a name in lower case; dots at the end do not matter."""
    return tuple(label for label in name.lower().split(".") if label)
