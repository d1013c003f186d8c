"""Which packets are a flow's requests and replies."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from emulator.capture.model import Hop, Journey, Packet
from emulator.lab.records import ProbeAnswer
from emulator.lab.tracing import sort_journeys
from emulator.traffic.model import ProbeResult

POD, TARGET = "10.244.1.2", "10.244.2.2"
ANSWER = ProbeAnswer(
    source="pod/default/a", target="pod/default/b", source_ns="pod/default/a", target_ns="pod/default/b",
    address=TARGET, protocol="icmp", port=0, result=ProbeResult(id="x", verdict="delivered", sent=1, received=1),
)  # fmt: skip


def journey(number: int, source: str, target: str, icmp_type: int, *, kind: Any = "packet", **more: Any) -> Journey:
    packet = Packet("", "", 98, "icmp", 4, source, target, 64, icmp_type=icmp_type, **more)
    ends = [("pod/default/a", "out"), ("pod/default/b", "in")]
    if target == POD:
        ends = [("pod/default/b", "out"), ("pod/default/a", "in")]
    hops = tuple(Hop(index, index, ns, "eth0", direction, packet) for index, (ns, direction) in enumerate(ends))  # type: ignore[arg-type]
    return Journey(number, hops, kind)


def test_requests_and_replies_are_told_by_their_ends() -> None:
    request, reply = journey(1, POD, TARGET, 8), journey(2, TARGET, POD, 0)
    assert sort_journeys([request, reply], ANSWER) == ([request], [reply], ())


def test_a_further_fragment_is_neither_although_its_icmp_type_reads_as_echo_reply() -> None:
    piece = journey(3, TARGET, POD, 0, kind="fragment", fragment_offset=1480)
    assert sort_journeys([piece], ANSWER) == ([], [], (piece,))


def lost(number: int, source: str, target: str, **more: Any) -> Journey:
    """A packet that left pod b and did not get far; what it was on the way is of no account."""
    packet = Packet("", "", 98, "icmp", 4, source, target, 64, icmp_type=0, **more)
    hops = (Hop(0, 0, "pod/default/b", "eth0", "out", packet), Hop(1, 1, "node/n2", "eth1", "out", packet))
    return Journey(number, hops)


def test_a_reply_that_got_lost_is_one_if_none_arrived() -> None:
    request, gone = journey(1, POD, TARGET, 8, icmp_id=7), lost(2, TARGET, POD, icmp_id=7)
    assert sort_journeys([request, gone], ANSWER) == ([request], [gone], ())
    reply = journey(3, TARGET, POD, 0, icmp_id=7)
    assert sort_journeys([request, gone, reply], ANSWER) == ([request], [reply], (gone,))


def test_what_answers_another_request_is_no_lost_reply() -> None:
    request = journey(1, POD, TARGET, 8, icmp_id=7)
    for other in (lost(2, TARGET, POD, icmp_id=8), lost(2, TARGET, "10.244.1.9", icmp_id=7)):
        assert sort_journeys([request, other], ANSWER) == ([request], [], (other,))
    unheard = Journey(1, request.hops[:1])
    assert sort_journeys([unheard, lost(2, TARGET, POD, icmp_id=7)], ANSWER)[1] == []


def test_others_between_the_same_two_are_told_by_their_port() -> None:
    """BIRD calls port 179 of a node, and so does a probe."""
    answer = replace(ANSWER, protocol="tcp", port=179, result=replace(ANSWER.result, local_port=40000))
    mine, birds = (
        Journey(number, tuple(replace_packet(hop, port) for hop in journey(number, POD, TARGET, 0).hops))
        for number, port in ((1, 40000), (2, 50000))
    )
    assert sort_journeys([birds, mine], answer) == ([mine], [], (birds,))
    end = Packet("", "", 87, "tcp", 4, TARGET, POD, 64, source_port=179, target_port=50000)  # of BIRD's old connection
    told = Journey(3, (Hop(2, 2, "pod/default/b", "eth0", "out", end), Hop(3, 3, "pod/default/a", "eth0", "in", end)))
    assert sort_journeys([mine, told], answer) == ([mine], [], (told,))
    assert sort_journeys([birds], answer) == ([birds], [], ())  # translated before it was seen


def ends(number: int, source: str, target: str, direction: str) -> Journey:
    """A TCP packet seen at node n1 only, as it leaves or comes back."""
    (address, _, port), (other, _, theirs) = source.rpartition(":"), target.rpartition(":")
    packet = Packet("", "", 74, "tcp", 4, address, other, 64, source_port=int(port), target_port=int(theirs))
    return Journey(number, (Hop(number, 0, "node/n1", "eth0", direction, packet),))  # type: ignore[arg-type]


def test_requests_that_were_translated_before_they_were_seen_are_told_by_the_source_that_the_server_saw() -> None:
    """A node that asks a Service: iptables' OUTPUT has put the endpoint's address in."""
    result = ProbeResult(id="x", verdict="delivered", sent=1, received=1, source_seen="10.244.1.0:4711", local_port=99)
    answer = replace(ANSWER, source_ns="node/n1", address="10.96.0.80", protocol="tcp", port=80, result=result)
    request, reply = (
        ends(1, "10.244.1.0:4711", "10.244.2.2:8080", "out"),
        ends(2, "10.244.2.2:8080", "10.244.1.0:4711", "in"),
    )
    other = ends(3, "10.244.1.0:4712", "10.244.2.2:8080", "out")
    assert sort_journeys([request, reply, other], answer) == ([request], [reply], (other,))
    six = replace(answer, result=replace(result, source_seen="[fd00::1]:4711"))
    request = ends(1, "fd00::1:4711", "fd00::2:8080", "out")
    assert sort_journeys([request], six) == ([request], [], ())
    unheard = replace(answer, result=replace(result, source_seen=""))
    assert sort_journeys([reply, other], unheard) == ([], [], (reply, other))


def replace_packet(hop: Hop, port: int) -> Hop:
    packet = Packet("", "", 74, "tcp", 4, POD, TARGET, 64, source_port=port, target_port=179)
    return Hop(hop.time, hop.elapsed, hop.ns, hop.device, hop.direction, packet)
