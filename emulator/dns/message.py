"""DNS messages on the wire (RFC 1035, EDNS of RFC 6891), as CoreDNS reads and writes them.

dnspython takes names and data apart and puts them together. Around it: what is not worth an answer, what is refused,
and how an answer is fitted into the size that the client takes. As in miekg/dns, on which CoreDNS stands: an answer
that fits is not compressed; else it is; what does not fit even then is left out, and TC says so.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from io import BytesIO
from typing import NamedTuple

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.SOA
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV

from emulator.dns.records import Answer, Labels, Rcode, Record, Soa, Srv

HEADER = struct.Struct("!HHHHHH")
LONGEST_NAME = 255  # bytes (RFC 1035, 2.3.4)
RECORDS = 10_000  # remembered in the form that goes onto the wire
SMALLEST_UDP = 512  # bytes of a message without EDNS (RFC 1035, 4.2.1)
LARGEST = 65535

_QR, _AA, _TC, _RD, _RA, _CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
_IN = dns.rdataclass.IN
_QUESTION = struct.Struct("!HH")  # type, class
_LENGTHS = [bytes((length,)) for length in range(64)]  # before each label
_FIXED = struct.Struct("!HHIH")  # type, class, TTL, length of the data
_OPT = struct.Struct("!BHHIH")
# dnspython's record classes have no types of their own
_A: Callable[..., dns.rdata.Rdata] = dns.rdtypes.IN.A.A
_AAAA: Callable[..., dns.rdata.Rdata] = dns.rdtypes.IN.AAAA.AAAA
_SRV: Callable[..., dns.rdata.Rdata] = dns.rdtypes.IN.SRV.SRV
_SOA: Callable[..., dns.rdata.Rdata] = dns.rdtypes.ANY.SOA.SOA
_TXT: Callable[..., dns.rdata.Rdata] = dns.rdtypes.ANY.TXT.TXT
_CNAME: Callable[..., dns.rdata.Rdata] = dns.rdtypes.ANY.CNAME.CNAME
_NS: Callable[..., dns.rdata.Rdata] = dns.rdtypes.ANY.NS.NS
_PTR: Callable[..., dns.rdata.Rdata] = dns.rdtypes.ANY.PTR.PTR
_RCODES = {"NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5, "BADVERS": 16}


class Query(NamedTuple):
    """A question that deserves an answer. ``labels`` are its name in lower case, ``size`` the largest answer over UDP.

    ``plain``: its bytes hold nothing that differs each time (no EDNS options), so that the same bytes will come again.
    """

    id: int
    flags: int
    name: dns.name.Name
    labels: Labels
    kind: str
    rdtype: int
    rdclass: int
    edns: bool
    wants_dnssec: bool
    size: int
    plain: bool


class Rr(NamedTuple):
    """A record ready for the wire; without an ``owner`` it is the question's name as it was asked."""

    owner: dns.name.Name | None
    ttl: int
    rdata: dns.rdata.Rdata
    data: bytes = b""  # of the record, uncompressed, if that is known already


class Sections(NamedTuple):
    """An answer ready for the wire."""

    rcode: Rcode = "NOERROR"
    answer: Sequence[Rr] = ()
    authority: Sequence[Rr] = ()
    additional: Sequence[Rr] = ()
    authoritative: bool = False
    recursion: bool = False
    truncated: bool = False


class Rendered(NamedTuple):
    """An answer's bytes behind the id. ``rows`` are the address records, of which ``keep`` fit, in any order."""

    head: bytes
    rows: tuple[bytes, ...] = ()
    keep: int = 0
    tail: bytes = b""

    def with_id(self, number: bytes) -> bytes:
        """The message, its addresses in random order (CoreDNS' loadbalance)."""
        if len(self.rows) < 2:
            return number + self.head + b"".join(self.rows[: self.keep]) + self.tail
        return number + self.head + b"".join(random.sample(self.rows, self.keep)) + self.tail


def read(data: bytes) -> Query | bytes | None:
    """The question of a message; the refusal to send if it cannot be answered; None if it deserves silence.

    As miekg/dns' default accept function and CoreDNS' server: answers are ignored, other operations not implemented,
    anything but one question a format error, other classes than IN refused.
    """
    if len(data) < HEADER.size:
        return None
    number, flags, questions, answers, authorities, additions = HEADER.unpack_from(data)
    if flags & _QR:
        return None
    opcode = flags >> 11 & 15
    if opcode != 0:
        return refusal(number, flags, "NOTIMP")
    if questions != 1 or answers > 1 or authorities > 1 or additions > 2:
        return refusal(number, flags, "FORMERR")
    ordinary = not answers and not authorities and additions <= 1
    if ordinary and (query := _common(data, number, flags, edns=bool(additions))) is not None:
        return query
    try:
        message = dns.message.from_wire(data)
        question = message.question[0]
    except (dns.exception.DNSException, IndexError, ValueError):
        return refusal(number, flags, "FORMERR")
    edns = message.edns >= 0
    size = max(SMALLEST_UDP, message.payload) if edns else SMALLEST_UDP
    query = Query(
        id=number,
        flags=flags,
        name=question.name,
        labels=lower(question.name),
        kind=dns.rdatatype.to_text(question.rdtype),
        rdtype=question.rdtype,
        rdclass=question.rdclass,
        edns=edns,
        wants_dnssec=bool(message.ednsflags & dns.flags.DO) if edns else False,
        size=size,
        plain=not message.options and additions <= 1 and not answers and not authorities,
    )
    if message.edns > 0:
        return _whole(query, Sections("BADVERS"))
    if question.rdclass != _IN or question.rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR):
        return _whole(query, Sections("REFUSED"))
    return query


def _common(data: bytes, number: int, flags: int, *, edns: bool) -> Query | None:
    """A question as resolvers send it, in a fifth of dnspython's time: one name without pointers, class IN,
    and nothing behind it, or EDNS version 0 without options. None for whatever is not exactly that."""
    end, labels = HEADER.size, []
    last = len(data) - 5  # the root's label, type and class come behind
    while end <= last and 0 < (length := data[end]) < 64:
        labels.append(data[end + 1 : end + 1 + length])
        end += 1 + length
    if end > last or data[end] or end - HEADER.size >= LONGEST_NAME:
        return None
    rdtype, rdclass = _QUESTION.unpack_from(data, end + 1)
    kind, known = _type(rdtype)
    rest = data[end + 5 :]
    size, dnssec = SMALLEST_UDP, False
    if rdclass != _IN or rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR) or len(rest) != edns * _OPT.size:
        return None
    if edns:
        root, option, payload, extended, length = _OPT.unpack(rest)
        if root or option != dns.rdatatype.OPT or extended >> 16 or length:
            return None
        size, dnssec = max(SMALLEST_UDP, payload), bool(extended & dns.flags.DO)
    return Query(
        id=number,
        flags=flags,
        name=dns.name.Name([*labels, b""]),
        labels=tuple([label.lower().decode("latin-1") for label in labels]),
        kind=kind,
        rdtype=known,
        rdclass=_IN,
        edns=edns,
        wants_dnssec=dnssec,
        size=size,
        plain=True,
    )


@cache
def _type(number: int) -> tuple[str, int]:
    """A type's name, and itself as dnspython has it."""
    return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(number)), dns.rdatatype.RdataType.make(number)


def lower(name: dns.name.Name) -> Labels:
    """The labels of an absolute name in lower case (ASCII only, RFC 4343), without the root's."""
    return tuple(label.lower().decode("latin-1") for label in name.labels[:-1])


def refusal(number: int, flags: int, rcode: Rcode) -> bytes:
    """An answer that is a header and no more."""
    return HEADER.pack(number, _QR | flags & 0x7800 | flags & _RD | _RCODES[rcode], 0, 0, 0, 0)


def question_for(name: str, kind: str, number: int, size: int = 0) -> bytes:
    """A query with RD set, with EDNS if a ``size`` is given. Raises ValueError for what cannot be a name."""
    try:
        message = dns.message.make_query(
            dns.name.from_text(name), kind, use_edns=0 if size else -1, payload=size or 1232, id=number
        )
    except dns.exception.DNSException as error:
        raise ValueError(f"{name!r} is no domain name: {error}") from None
    return message.to_wire()


def prepared(answer: Answer) -> Sections:
    """An answer's records ready for the wire. Raises ValueError for a name that cannot be sent (a label too long)."""
    try:
        return Sections(
            answer.rcode,
            [_rr(record) for record in answer.answer],
            [_rr(record) for record in answer.authority],
            [_rr(record) for record in answer.additional],
            authoritative=answer.authoritative,
        )
    except dns.exception.DNSException as error:
        raise ValueError(str(error)) from None


def received(data: bytes) -> tuple[int, Sections]:
    """Id and content of an answer from another server. Raises ValueError if it is none, or not whole."""
    try:
        message = dns.message.from_wire(data, ignore_trailing=True)
    except (dns.exception.DNSException, IndexError, ValueError) as error:
        raise ValueError(f"no DNS message: {error}") from None
    if not message.flags & dns.flags.QR:
        raise ValueError("a question, not an answer")
    names = {number: name for name, number in _RCODES.items()}
    rcode: Rcode = names.get(message.rcode(), "SERVFAIL")  # type: ignore[assignment]
    parts = [
        [Rr(rrset.name, rrset.ttl, rdata) for rrset in section for rdata in rrset]
        for section in (message.answer, message.authority, message.additional)
    ]
    answer, authority, additional = parts
    recursion, truncated = bool(message.flags & dns.flags.RA), bool(message.flags & dns.flags.TC)
    return message.id, Sections(rcode, answer, authority, additional, recursion=recursion, truncated=truncated)


def render(query: Query, sections: Sections, limit: int) -> Rendered:
    """The answer's bytes, at most ``limit``."""
    question = _wire(query.name) + struct.pack("!HH", query.rdtype, query.rdclass)
    option = _option(query, sections)
    everything = [*sections.answer, *sections.authority, *sections.additional]
    plain = [_bytes(rr, query.name) for rr in everything]
    size = HEADER.size + len(question) + sum(map(len, plain)) + len(option)
    counts = (len(sections.answer), len(sections.authority), len(sections.additional))
    if size <= limit:
        return _assembled(query, sections, question, plain, counts, option, dropped=False)
    packed = _compressed(query, everything)
    room = limit - HEADER.size - len(question) - len(option)
    fits = 0
    for row in packed:
        room -= len(row)
        if room < 0:
            break
        fits += 1
    kept = [0, 0, 0]
    for index, count in enumerate(counts):
        kept[index] = min(count, max(0, fits - sum(counts[:index])))
    return _assembled(query, sections, question, packed, (kept[0], kept[1], kept[2]), option, fits < len(packed))


def _assembled(
    query: Query,
    sections: Sections,
    question: bytes,
    rows: Sequence[bytes],
    counts: tuple[int, int, int],
    option: bytes,
    dropped: bool,
) -> Rendered:
    answers = len(sections.answer)
    first = next((i for i, rr in enumerate(sections.answer) if rr.rdata.rdtype == query.rdtype), answers)
    if query.kind not in ("A", "AAAA") or any(rr.rdata.rdtype != query.rdtype for rr in sections.answer[first:]):
        first = answers
    shuffled = rows[first:answers]
    flags = _QR | query.flags & (_RD | _CD) | _RCODES[sections.rcode] & 15
    flags |= (_AA if sections.authoritative else 0) | (_RA if sections.recursion else 0)
    flags |= _TC if dropped or sections.truncated else 0
    header = HEADER.pack(0, flags, 1, counts[0], counts[1], counts[2] + bool(option))
    keep = max(0, counts[0] - first)
    tail = rows[answers : answers + counts[1] + counts[2]] if counts[0] == answers else ()
    head = header[2:] + question + b"".join(rows[: min(first, counts[0])])
    return Rendered(head, tuple(shuffled), keep, b"".join(tail) + option)


def _whole(query: Query, sections: Sections) -> bytes:
    return render(query, sections, LARGEST).with_id(query.id.to_bytes(2))


def _option(query: Query, sections: Sections) -> bytes:
    if not query.edns:
        return b""
    flags = (_RCODES[sections.rcode] >> 4) << 24 | (0x8000 if query.wants_dnssec else 0)
    return _OPT.pack(0, dns.rdatatype.OPT, query.size, flags, 0)


def _bytes(rr: Rr, asked: dns.name.Name) -> bytes:
    data = rr.data or rr.rdata.to_wire() or b""
    return _wire(rr.owner or asked) + _FIXED.pack(rr.rdata.rdtype, rr.rdata.rdclass, rr.ttl, len(data)) + data


def _wire(name: dns.name.Name) -> bytes:
    return b"".join([_LENGTHS[len(label)] + label for label in name.labels])


def _compressed(query: Query, records: Iterable[Rr]) -> list[bytes]:
    """Each record with pointers to the names before it, as it stands in a message behind the question."""
    file = BytesIO()
    file.write(bytes(HEADER.size))
    seen: dict[dns.name.Name, int] = {}
    query.name.to_wire(file, seen)
    file.write(bytes(4))
    rows = []
    for rr in records:
        start = file.tell()
        (rr.owner or query.name).to_wire(file, seen)
        fixed = file.tell()
        file.write(bytes(_FIXED.size))
        rr.rdata.to_wire(file, seen)
        end = file.tell()
        file.seek(fixed)
        file.write(_FIXED.pack(rr.rdata.rdtype, rr.rdata.rdclass, rr.ttl, end - fixed - _FIXED.size))
        file.seek(start)
        rows.append(file.read(end - start))
    return rows


@lru_cache(RECORDS)
def _rr(record: Record) -> Rr:
    owner = _name(record.owner) if record.owner else None
    rdata = _rdata(record.kind, record.data)
    return Rr(owner, record.ttl, rdata, rdata.to_wire() or b"")


def _rdata(kind: str, data: str | Srv | Soa) -> dns.rdata.Rdata:
    if isinstance(data, Srv):
        target = _name(data.target)
        return _SRV(_IN, dns.rdatatype.SRV, data.priority, data.weight, data.port, target)
    if isinstance(data, Soa):
        mname, rname = _name(data.mname), _name(data.rname)
        return _SOA(_IN, dns.rdatatype.SOA, mname, rname, *data[2:])
    match kind:
        case "A":
            return _A(_IN, dns.rdatatype.A, data)
        case "AAAA":
            return _AAAA(_IN, dns.rdatatype.AAAA, data)
        case "TXT":
            return _TXT(_IN, dns.rdatatype.TXT, [data.encode()])
        case "CNAME":
            return _CNAME(_IN, dns.rdatatype.CNAME, _name(data))
        case "NS":
            return _NS(_IN, dns.rdatatype.NS, _name(data))
        case "PTR":
            return _PTR(_IN, dns.rdatatype.PTR, _name(data))
    raise ValueError(f"no data of type {kind} is made here")


@lru_cache(RECORDS)
def _name(text: str) -> dns.name.Name:
    """An absolute name. Raises DNSException for what cannot be one."""
    if not text.isascii() or text in ("", "@") or "\\" in text or text.endswith("."):
        return dns.name.from_text(text)
    return dns.name.Name([*(label.encode() for label in text.split(".")), b""])
