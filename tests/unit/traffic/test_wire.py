from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.traffic import wire
from emulator.traffic.model import Probe, ProbeResult, Server, probe_problem

PROBE = Probe("p", "/run/netns/a", "10.0.0.1", "tcp", 80)


@pytest.mark.parametrize(
    "request_",
    [
        wire.Serve(1, (Server("pod/default/a", "/run/netns/a", "a", ((80, "TCP"),)),)),
        wire.Stop(2, ("pod/default/a",)),
        wire.RunProbes(3, (PROBE, PROBE)),
        wire.StartStream(4, "s", PROBE, 10.0),
        wire.StopStream(5, "s", 0.2),
    ],
)
def test_requests_survive_the_wire(request_: wire.AnyRequest) -> None:
    (body,) = wire.Unframer().feed(wire.frame(request_))
    assert wire.decode_request(body) == request_


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 30), max_size=20))
def test_frames_are_the_same_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(struct.pack("!I", len(body)) + body for body in bodies)
    unframer, found = wire.Unframer(), []
    for cut in [*cuts, len(data)]:
        found += list(unframer.feed(data[:cut]))
        data = data[cut:]
    assert found == bodies


def test_frame_of_an_absurd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than"):
        list(wire.Unframer().feed(b"\xff\xff\xff\xff"))


@given(st.binary(max_size=60))
def test_what_is_no_request_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        wire.decode_request(b"\xc1" + body)


def test_results_come_back_as_they_were_made() -> None:
    result = ProbeResult("p", "delivered", 2, 2, (1.5, 2.5), "web-0", "10.0.0.2:4", answers={"web-0": 2})
    (body,) = wire.Unframer().feed(wire.frame(wire.Done(7, [result])))
    reply = wire.decode_reply(body)
    assert isinstance(reply, wire.Done)
    assert msgspec.convert(reply.value, list[ProbeResult]) == [result]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"protocol": "icmp", "port": 0}, ""),
        ({"port": 0}, "port 0"),
        ({"port": 65536}, "port 65536"),
        ({"count": 0}, "count 0"),
        ({"size": -1}, "size -1"),
        ({"size": 1 << 31}, "size"),
        ({"protocol": "udp", "size": 5}, "at least 16 bytes"),
        ({"protocol": "udp", "size": 16}, ""),
        ({"timeout": 0}, "timeout"),
        ({"dont_fragment": True, "allow_fragments": True}, "exclude"),
        ({"ttl": 256}, "ttl 256"),
        ({"source_port": 70000}, "source port"),
        ({"source_port": 1000, "count": 2}, "cannot all leave"),
    ],
)
def test_probe_that_no_packet_can_be_made_of_is_told_why(change: dict[str, object], problem: str) -> None:
    found = probe_problem(msgspec.structs.replace(PROBE, **change))
    assert problem in found
    assert bool(found) == bool(problem)
