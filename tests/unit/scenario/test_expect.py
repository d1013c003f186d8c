"""Expectations: each can hold and each can fail, per style where it differs."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from emulator.capture.model import Hop, Journey, Packet, Reason, Tunnel
from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import HostLocal
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.compare.records import Check
from emulator.lab.records import ProbeAnswer
from emulator.scenario.expect import flow_checks, fragments, longest_outage, path_matches, stream_checks
from emulator.scenario.model import Expect, StreamExpect, for_style
from emulator.traffic.model import LossWindow, ProbeResult, StreamReport

TOPOLOGY = """\
podCIDRs: [10.244.0.0/16]
pods: 1
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor, switch: s1}]
"""
VXLAN = Tunnel(kind="vxlan", source="192.168.50.1", target="192.168.50.2", ttl=64, overhead=50)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    topology = parse_topology(TOPOLOGY, "t.yaml")
    return assemble(topology, [], HostLocal(topology.pod_cidrs))


def packet(
    ttl: int = 64, source: str = "10.244.1.2", tunnel: Tunnel | None = None, protocol: str = "icmp", **more: Any
) -> Packet:
    return Packet(
        source_mac="",
        target_mac="",
        length=98,
        protocol=protocol,
        version=4,
        source=source,
        target="10.244.2.2",
        ttl=ttl,
        tunnel=tunnel,
        **more,
    )


def journey(*packets: Packet, places: str = "", number: int = 1, kind: Any = "packet", about: int = 0) -> Journey:
    named = places.split() or [f"node/n{index}:eth0" for index in range(len(packets))]
    hops = tuple(
        Hop(index, index, place.rpartition(":")[0], place.rpartition(":")[2], "out", each)
        for index, (place, each) in enumerate(zip(named, packets, strict=True))
    )
    return Journey(number, hops, kind, about)


def told(found: Journey, reason: Reason) -> Journey:
    """``found`` with a reason at its second hop."""
    first, second, *rest = found.hops
    return replace(found, hops=(first, replace(second, reasons=(reason,)), *rest))


REQUEST = journey(
    packet(64),
    packet(63, tunnel=VXLAN),
    packet(62, source="192.168.50.11"),
    places="pod/default/n1-p1:eth0 node/n1:eth0 pod/default/n2-p1:eth0",
)
REQUEST = told(REQUEST, Reason("KUBE-SEP-X rule 2", "kube-proxy", "load balancing picked 10.244.2.2"))
QUESTION = journey(
    packet(64, protocol="udp", target_port=53),
    packet(63, protocol="udp", target_port=53),
    places="pod/default/n1-p1:eth0 node/n1:eth0",
)
REPLY = told(REQUEST, Reason("KUBE-SEP-X rule 2", "conntrack", "a reply is translated back"))
RESULT = ProbeResult(
    id="a", verdict="delivered", sent=3, received=3, times=(100.0, 5000.0, 9000.0), answered_by="n2-p1",
    detail="fragmentation needed, MTU 1400", source_seen="192.168.50.11:40000", answers={"n2-p1": 2, "n3-p1": 1},
)  # fmt: skip
ANSWER = ProbeAnswer(
    source="pod/default/n1-p1", target="pod/default/n2-p1", source_ns="pod/default/n1-p1",
    target_ns="pod/default/n2-p1", address="10.244.2.2", protocol="icmp", port=0, result=RESULT,
)  # fmt: skip


def check(
    cluster: Cluster, expect: Expect, style: str = "flannel", requests: tuple[Journey, ...] = (REQUEST,)
) -> Check:
    replies, others = (REPLY,) if requests else (), (QUESTION, replace(QUESTION, hops=QUESTION.hops[1:]))
    (found,) = flow_checks(expect, style, cluster, ANSWER, requests, 2, replies, others)
    return found


CASES: list[tuple[str, Any, Any]] = [
    ("verdict", "delivered", "dropped"),
    ("ttl", 62, 63),
    ("source", "192.168.50.11", "10.244.1.2"),
    ("source", "n1:eth0", "n2:eth0"),
    ("source", "n1", "sender"),
    ("encapsulation", "vxlan", "none"),
    ("overhead", 50, 0),
    ("path", ["n1-p1:eth0", "...", "n2-p1:eth0"], ["n1-p1:eth0", "n2-p1:eth0"]),
    ("reply_path", ["n1-p1:eth0", "...", "n2-p1:eth0"], []),
    ("answered_by", "n2-p1", "n1-p1"),
    ("received", 3, 2),
    ("detail", "1400", "1450"),
    ("fragments", 2, 1),
    ("takes_at_least", 5, 5.1),
    ("client_seen", "n1:eth0", "n2:eth0"),
    ("client_seen", "192.168.50.11", "sender"),
    ("answered_by", "n2-*", "n1-*"),
    ("servers", 2, 1),
    ("servers_at_least", 2, 3),
    ("rules", ["KUBE-SEP-X rule 2", "load balancing"], ["KUBE-SEP-X", "KUBE-SEP-Y"]),
    ("reply_rules", ["translated back"], ["KUBE-SVC"]),
    ("questions", 1, 2),
]


@pytest.mark.parametrize(("field", "right", "wrong"), CASES)
def test_each_expectation_can_hold_and_can_fail(cluster: Cluster, field: str, right: Any, wrong: Any) -> None:
    assert check(cluster, Expect(**{field: right})).met
    assert not check(cluster, Expect(**{field: wrong})).met


def test_every_expectation_is_covered() -> None:
    assert {field for field, _, _ in CASES} == set(Expect.__struct_fields__)


@pytest.mark.parametrize("field", ["ttl", "source", "encapsulation", "overhead", "path"])
def test_what_no_packet_shows_does_not_hold(cluster: Cluster, field: str) -> None:
    value = {name: right for name, right, _ in CASES}[field]
    found = check(cluster, Expect(**{field: value}), requests=())
    assert (found.met, found.observed) == (False, "no packet seen")


def test_nothing_of_a_lost_packet_counts_as_unfragmented() -> None:
    assert fragments([], [REQUEST]) == 0


def test_sender_is_the_address_that_the_packet_left_with(cluster: Cluster) -> None:
    kept = journey(packet(64), packet(62), places="pod/default/n1-p1:eth0 pod/default/n2-p1:eth0")
    assert check(cluster, Expect(source="sender"), requests=(kept,)).met
    assert not check(cluster, Expect(source="sender")).met


def test_a_check_shows_what_was_wanted_and_what_was_seen(cluster: Cluster) -> None:
    assert check(cluster, Expect(answered_by="n1-p1")) == Check("answeredBy: n1-p1", "n2-p1", False)
    assert check(cluster, Expect(ttl=62)) == Check("ttl: 62", "62", True)


def test_an_expectation_for_other_styles_is_no_check(cluster: Cluster) -> None:
    assert flow_checks(Expect(ttl={"calico": 1}), "flannel", cluster, ANSWER, (REQUEST,), 1) == ()


@pytest.mark.parametrize(
    ("style", "value"),
    [("flannel", 1), ("flannel:host-gw", 2), ("flannel:directrouting", 1), ("calico", 3), ("calico:bgp", 3)],
)
def test_the_most_exact_value_of_a_style_holds(style: str, value: int) -> None:
    assert for_style({"flannel": 1, "flannel:host-gw": 2, "default": 3}, style) == value


def test_a_plain_value_holds_for_all_styles() -> None:
    assert for_style(["a", "b"], "weave") == ["a", "b"]


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        (["a:eth0", "n1:veth1", "n1:cni0"], True),
        (["a:eth0", "n1:*", "n1:*"], True),
        (["...", "n1:cni0"], True),
        (["a:eth0", "..."], True),
        (["..."], True),
        (["a:eth0", "...", "n1:veth1", "...", "n1:cni0"], True),
        (["a:eth0", "n1:veth1"], False),
        (["a:eth0", "n1:veth1", "n1:cni0", "n1:eth0"], False),
        (["n1:veth1", "n1:cni0"], False),
        (["...", "n2:*", "..."], False),
        ([], False),
    ],
)
def test_paths_fit_patterns(pattern: list[str], fits: bool) -> None:
    way = journey(packet(), packet(), packet(), places="pod/default/a:eth0 node/n1:veth1 node/n1:cni0")
    assert path_matches(pattern, way) is fits


def test_pods_of_other_namespaces_and_switches_are_named_in_full() -> None:
    way = journey(packet(), packet(), places="pod/shop/cart:eth0 underlay:s1-n1")
    assert path_matches(["shop/cart:eth0", "underlay:s1-n1"], way)


def test_pieces_are_counted_where_there_are_most() -> None:
    """Split by the pod, whole in the node, split in three by a router."""
    part, whole = packet(more_fragments=True), packet()
    lead = journey(part, whole, part, places="a:eth0 n1:cni0 tor:eth1", kind="fragment", about=1)
    second = journey(packet(fragment_offset=8), places="a:eth0", number=2, kind="fragment", about=1)
    more = [
        journey(packet(fragment_offset=offset), places="tor:eth1", number=offset, kind="fragment", about=1)
        for offset in (8, 16)
    ]
    other = journey(part, places="tor:eth1", number=99, kind="fragment", about=99)
    assert fragments([lead], [lead, second]) == 2
    assert fragments([lead], [lead, second, *more, other]) == 3
    assert fragments([REQUEST], [REQUEST, *more, other]) == len(more)


def report(*lost: tuple[int, int, float], sent: int = 100) -> StreamReport:
    windows = tuple(LossWindow(first, last, 0.0, milliseconds) for first, last, milliseconds in lost)
    gone = sum(window.last - window.first + 1 for window in windows)
    return StreamReport(id="s", sent=sent, received=sent - gone, duration=1.0, lost=windows)


@pytest.mark.parametrize(
    ("expect", "good", "bad"),
    [
        (StreamExpect(lost_at_least=5), report((10, 14, 50.0)), report((10, 13, 40.0))),
        (StreamExpect(lost_at_most=0), report(), report((10, 10, 10.0))),
        (StreamExpect(outage_at_least=0.5), report((1, 9, 500.0)), report((1, 9, 300.0), (20, 25, 300.0))),
        (StreamExpect(outage_at_most=0.5), report((1, 9, 500.0), (20, 25, 300.0)), report((1, 9, 501.0))),
        (StreamExpect(recovers=True), report((1, 9, 500.0)), report((90, 99, 500.0))),
        (StreamExpect(recovers=False), report((0, 99, 500.0)), report()),
    ],
)
def test_each_expectation_of_a_stream_can_hold_and_can_fail(
    expect: StreamExpect, good: StreamReport, bad: StreamReport
) -> None:
    assert [check.met for check in stream_checks(expect, "flannel", good)] == [True]
    assert [check.met for check in stream_checks(expect, "flannel", bad)] == [False]


def test_the_longest_outage_is_in_seconds() -> None:
    assert longest_outage(report((1, 2, 300.0), (5, 9, 1500.0))) == 1.5
    assert longest_outage(report()) == 0.0
