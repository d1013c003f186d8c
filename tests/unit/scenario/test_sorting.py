"""Which packets are a flow's requests and replies."""

from __future__ import annotations

from typing import Any

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
