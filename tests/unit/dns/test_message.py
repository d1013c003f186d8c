from __future__ import annotations

from unittest.mock import patch

import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.dns.message import Query, prepared, question_for, read, received, render
from emulator.dns.records import AS_ASKED, Answer, Record, Soa, Srv

SOA = Record("cluster.local", "SOA", 30, Soa("ns.dns.cluster.local", "hostmaster.cluster.local", 7, 1, 2, 3, 30))


def asked(name: str = "Web.Default.svc.cluster.local", kind: str = "A", size: int = 0) -> tuple[bytes, Query]:
    wire = dns.message.make_query(name, kind, use_edns=0 if size else -1, payload=size or 1232).to_wire()
    query = read(wire)
    assert isinstance(query, Query)
    return wire, query


def answered(
    answer: Answer, kind: str = "A", size: int = 0, name: str = "Web.Default.svc.cluster.local"
) -> dns.message.Message:
    wire, query = asked(name, kind, size)
    message = dns.message.from_wire(render(query, prepared(answer), query.size).with_id(wire[:2]))
    assert message.id == int.from_bytes(wire[:2])
    return message


def test_the_spelling_of_the_question_is_kept_in_the_answer() -> None:
    message = answered(Answer(answer=(Record(AS_ASKED, "A", 30, "10.96.1.1"),)))
    assert message.question[0].name.to_text() == "Web.Default.svc.cluster.local."
    assert message.answer[0].to_text() == "Web.Default.svc.cluster.local. 30 IN A 10.96.1.1"


def test_flags_are_those_of_coredns() -> None:
    message = answered(Answer(answer=(Record(AS_ASKED, "A", 30, "10.96.1.1"),)))
    assert message.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD  # no RA: the zone is not recursion


def test_a_denial_carries_the_soa() -> None:
    message = answered(Answer("NXDOMAIN", authority=(SOA,)))
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert message.authority[0].to_text() == (
        "cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 1 2 3 30"
    )


def test_srv_with_additional_records() -> None:
    target = "web.default.svc.cluster.local"
    message = answered(
        Answer(
            answer=(Record(AS_ASKED, "SRV", 30, Srv(0, 100, 80, target)),),
            additional=(Record(target, "A", 30, "10.96.1.1"), Record(target, "AAAA", 30, "fd00::1")),
        ),
        "SRV",
    )
    assert message.answer[0][0].to_text() == f"0 100 80 {target}."
    assert [rrset.to_text() for rrset in message.additional] == [
        f"{target}. 30 IN A 10.96.1.1",
        f"{target}. 30 IN AAAA fd00::1",
    ]


def many(count: int, kind: str = "A") -> Answer:
    return Answer(answer=tuple(Record(AS_ASKED, kind, 30, f"10.244.{n // 250}.{n % 250 + 1}") for n in range(count)))


def test_what_does_not_fit_is_left_out_and_said() -> None:
    message = answered(many(200))
    assert message.flags & dns.flags.TC
    # 12 bytes of header, the question's 35, and 16 for each address
    assert len(message.answer[0]) == (512 - 12 - 35) // 16
    whole = answered(many(200), size=4096)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 200


def test_what_fits_is_not_compressed_and_what_does_not_is() -> None:
    wire, query = asked(size=1232)
    small = render(query, prepared(many(2)), query.size).with_id(wire[:2])
    assert small.lower().count(b"\x03web\x07default") == 3
    large = render(query, prepared(many(40)), query.size).with_id(wire[:2])
    assert large.lower().count(b"\x03web\x07default") == 1
    assert len(dns.message.from_wire(large).answer[0]) == 40


def test_the_same_addresses_come_in_another_order_each_time() -> None:
    wire, query = asked()
    rendered = render(query, prepared(many(6)), query.size)
    orders = {
        tuple(item.to_text() for item in dns.message.from_wire(rendered.with_id(wire[:2])).answer[0]) for _ in range(60)
    }
    assert len(orders) > 20
    assert {frozenset(order) for order in orders} == {frozenset(next(iter(orders)))}


def test_those_left_out_differ_too() -> None:
    wire, query = asked()
    rendered = render(query, prepared(many(200)), query.size)
    seen = {item.to_text() for _ in range(100) for item in dns.message.from_wire(rendered.with_id(wire[:2])).answer[0]}
    assert len(seen) > 150


def test_aliases_stay_in_front_of_addresses() -> None:
    alias = Record(AS_ASKED, "CNAME", 30, "b.example")
    addresses = tuple(Record("b.example", "A", 30, f"192.0.2.{n}") for n in range(1, 40))
    for size in (0, 4096):
        wire, query = asked("a.example", "A", size)
        rendered = render(query, prepared(Answer(answer=(alias, *addresses))), query.size)
        for _ in range(20):
            message = dns.message.from_wire(rendered.with_id(wire[:2]))
            assert message.answer[0].to_text() == "a.example. 30 IN CNAME b.example."
            assert message.answer[1].name.to_text() == "b.example."


def test_edns_is_answered_with_edns() -> None:
    message = answered(many(1), size=1400)
    assert (message.edns, message.payload) == (0, 1400)
    assert answered(many(1)).edns == -1


def test_a_later_version_of_edns_is_refused() -> None:
    wire = dns.message.make_query("a.example", "A", use_edns=1).to_wire()
    reply = read(wire)
    assert isinstance(reply, bytes)
    assert dns.message.from_wire(reply).rcode() == dns.rcode.BADVERS


@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (dns.message.make_query("a.example", "A", "CH").to_wire(), dns.rcode.REFUSED),
        (dns.message.make_query("cluster.local", "AXFR").to_wire(), dns.rcode.REFUSED),
        (b"\x12\x34\x10\x00" + bytes(8), dns.rcode.NOTIMP),  # STATUS
        (b"\x12\x34\x01\x00" + bytes(8), dns.rcode.FORMERR),  # no question
        (b"\x12\x34\x01\x00\x00\x02" + bytes(6), dns.rcode.FORMERR),  # two
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x40abc", dns.rcode.FORMERR),
        (b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\xc0\x0c\x00\x01\x00\x01", dns.rcode.FORMERR),  # points to itself
    ],
    ids=["class", "transfer", "status", "no-question", "two-questions", "label-type", "pointer-loop"],
)
def test_what_cannot_be_answered_is_refused(wire: bytes, rcode: dns.rcode.Rcode) -> None:
    reply = read(wire)
    assert isinstance(reply, bytes)
    assert reply[:2] == wire[:2]
    assert reply[3] & 15 == rcode
    assert reply[2] & 0x80
    if reply[5]:
        assert reply[12:] == wire[12:]  # the question as it was, or none


@pytest.mark.parametrize("wire", [b"", b"\x12", bytes(11), b"\x12\x34\x81\x80" + bytes(8)])
def test_what_is_no_question_gets_no_answer(wire: bytes) -> None:
    assert read(wire) is None


QUESTION = question_for("web.default.svc.cluster.local", "A", 7, 1232)


@settings(max_examples=400)
@given(st.one_of(st.binary(max_size=600), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=6)))
def test_no_bytes_are_too_strange(change: bytes | list[tuple[int, int]]) -> None:
    wire = bytearray(QUESTION)
    if isinstance(change, bytes):
        wire = bytearray(change)
    else:
        for place, value in change:
            wire[place % len(wire)] = value
    reply = read(bytes(wire))
    if isinstance(reply, Query):
        rendered = render(reply, prepared(many(3)), reply.size).with_id(bytes(wire[:2]))
        assert dns.message.from_wire(rendered).id == reply.id
    elif reply is not None:
        assert reply[2] & 0x80
    try:
        received(bytes(wire))
    except ValueError:
        pass


def test_a_name_that_no_message_can_hold_is_an_error_by_name() -> None:
    with pytest.raises(ValueError, match=r"label"):
        prepared(Answer(answer=(Record(AS_ASKED, "CNAME", 30, "x" * 64 + ".example"),)))
    with pytest.raises(ValueError, match=r"no domain name"):
        question_for("a..b", "A", 1)


QUESTIONS = [
    question_for(name, kind, 7, size)
    for name in (
        "web.default.svc.cluster.local",
        "WWW.Example.com",
        ".",
        ".".join(("x" * 63, "y" * 63, "z" * 63, "w" * 61)),
    )
    for kind in ("A", "SRV", "TYPE65280", "AXFR")
    for size in (0, 400, 1232)
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(QUESTIONS),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3),
    st.binary(max_size=14),
)
def test_the_quick_way_reads_what_dnspython_reads(wire: bytes, changes: list[tuple[int, int]], more: bytes) -> None:
    data = bytearray(wire)
    for place, value in changes:
        if place < len(data):
            data[place] = value
        else:
            del data[place % (len(data) + 1) :]  # cut short
    with patch("emulator.dns.message._common", return_value=None):
        expected = read(bytes(data + more))

    assert read(bytes(data + more)) == expected
