from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from emulator.capture.model import Hop, Journey, Packet, Tunnel
from emulator.compare.compare import compare, compare_runs
from emulator.compare.comparison import Comparison, Row
from emulator.compare.records import RUN_SCHEMA, Check, FlowJourney, FlowResult, Observed, RunMeta, StyleMeta
from emulator.compare.rows import headline
from emulator.compare.run import Run
from emulator.traffic.model import Verdict


def style(name: str, **fields: object) -> StyleMeta:
    return StyleMeta(style=name, title=name.title(), **fields)  # type: ignore[arg-type]


def result(name: str, verdict: Verdict | Observed = "delivered", **fields: object) -> FlowResult:
    return FlowResult(
        scenario="s",
        style=name,
        flow="ping",
        title="a to b",
        source="a",
        target="b",
        source_ns="pod/d/a",
        target_address="10.0.0.2",
        protocol="icmp",
        verdict=verdict,
        **fields,  # type: ignore[arg-type]
    )


def packet(name: str, index: int, ttls: list[int], *, overhead: int = 0, later: int = 1_000) -> FlowJourney:
    """A packet seen once per TTL, each time in another namespace; in a tunnel at the second sighting."""
    hops = []
    for number, ttl in enumerate(ttls):
        tunnel = Tunnel("vxlan", "192.0.2.1", "192.0.2.2", 64, overhead) if overhead and number == 1 else None
        seen = Packet("", "", 98, "icmp", 4, "10.0.0.1", "10.0.0.2", ttl, tunnel=tunnel)
        ns = "pod/d/a" if not number else f"node/n{number}"
        hops.append(Hop(number * later, number * later, ns, "eth0", "in", seen))
    return FlowJourney("s", name, "ping", "request", index, Journey(index, tuple(hops)))


def run(styles: list[StyleMeta], results: list[FlowResult], journeys: list[FlowJourney], name: str = "run") -> Run:
    meta = RunMeta(
        schema=RUN_SCHEMA,
        started="",
        command=(),
        topology="t",
        scenarios=("s",),
        styles=tuple(styles),
        kernel="",
        seed=1,
        offloads="off",
    )
    made = Run(Path(name), meta, tuple(results))
    grouped: dict[tuple[str, str, str], tuple[FlowJourney, ...]] = {}
    for item in journeys:
        key = (item.scenario, item.style, item.flow)
        grouped[key] = (*grouped.get(key, ()), item)
    made.journeys = grouped
    return made


def row(comparison: Comparison, label: str) -> Row:
    return next(row for row in comparison.flows[0].rows if row.label == label)


def values(comparison: Comparison, label: str) -> list[str]:
    return [cell.value for cell in row(comparison, label).cells]


TWO = [style("flannel"), style("calico")]


def test_rows_differ_exactly_where_values_do() -> None:
    compared = compare(
        run(
            TWO,
            [result("flannel"), result("calico")],
            [packet("flannel", 0, [64, 63, 62], overhead=50), packet("calico", 0, [64, 63])],
        )
    )
    assert values(compared, "device traversals") == ["3", "2"]
    assert row(compared, "device traversals").differs
    assert row(compared, "encapsulation on the wire").differs
    assert not row(compared, "verdict").differs


def test_times_are_never_a_difference() -> None:
    compared = compare(
        run(
            TWO,
            [result("flannel", times=(90.0, 10.0, 20.0)), result("calico", times=(1.0,))],
            [packet("flannel", 0, [64, 63]), packet("calico", 0, [64, 63], later=9_000)],
        )
    )
    assert values(compared, "median round trip") == ["20.0 µs", "1.0 µs"]
    assert values(compared, "median one way") == ["1.0 µs", "9.0 µs"]
    assert not row(compared, "median round trip").differs
    assert not row(compared, "median one way").differs


def test_encapsulated_bytes_are_summed_over_every_packet_of_the_flow() -> None:
    packets = [packet("flannel", index, [64, 63, 62], overhead=50) for index in range(3)]
    compared = compare(run([style("flannel")], [result("flannel")], packets))
    assert values(compared, "encapsulation, whole flow") == ["150 B"]


def test_how_many_packets_tcp_makes_is_no_difference_and_what_a_tunnel_adds_to_each_is() -> None:
    def compared(overhead: int, protocol: str) -> Comparison:
        results = [msgspec.structs.replace(result(name), protocol=protocol) for name in ("flannel", "calico")]
        few = [packet("flannel", index, [64, 63, 62], overhead=50) for index in range(2)]
        many = [packet("calico", index, [64, 63, 62], overhead=overhead) for index in range(3)]
        return compare(run(TWO, results, [*few, *many]))

    assert values(compared(50, "tcp"), "encapsulation, whole flow") == ["100 B", "150 B"]
    assert not row(compared(50, "tcp"), "encapsulation, whole flow").differs
    assert row(compared(20, "tcp"), "encapsulation, whole flow").differs
    assert row(compared(50, "icmp"), "encapsulation, whole flow").differs


def test_the_first_request_is_drawn_whatever_the_order_in_the_file() -> None:
    packets = [packet("flannel", 1, [64, 63, 62]), packet("flannel", 0, [64, 63])]
    compared = compare(run([style("flannel")], [result("flannel")], packets))
    assert values(compared, "device traversals") == ["2"]


def test_a_lost_packet_has_no_time_and_no_receiver() -> None:
    compared = compare(run([style("flannel")], [result("flannel", "dropped")], [packet("flannel", 0, [64, 63])]))
    assert values(compared, "TTL at the receiver") == ["never arrived"]
    assert values(compared, "source seen by the receiver") == ["never arrived"]
    assert compared.flows[0].columns[0].one_way is None


def test_hook_passes_are_summed_and_told_per_namespace() -> None:
    passes = {"node/n2": {"forward": 1}, "node/n1": {"prerouting": 2, "forward": 3}}
    compared = compare(run([style("flannel")], [result("flannel", hook_passes=passes)], []))
    assert values(compared, "netfilter hook passes") == ["6 · n1: 5 · n2: 1"]


def test_a_style_that_could_not_run_is_an_error_not_a_difference() -> None:
    styles = [style("flannel"), style("calico", error="no BIRD here")]
    compared = compare(run(styles, [result("flannel")], [packet("flannel", 0, [64, 63])]))
    assert compared.flows[0].differences == 0
    assert compared.flows[0].columns[1].missing == "did not run: no BIRD here"
    assert [(notice.level, notice.subject) for notice in compared.warnings] == [("error", "Calico")]


def test_lost_packets_and_labels_are_warnings() -> None:
    compared = compare(run([style("flannel", lost=3, labels=("loss by nft",))], [result("flannel")], []))
    assert [notice.level for notice in compared.warnings] == ["lost", "label"]


def test_expectations_are_counted_and_failures_told() -> None:
    checks = (Check("delivered", "delivered", True), Check("TTL is 61", "62", False))
    compared = compare(run([style("flannel")], [result("flannel", checks=checks)], []))
    assert compared.met == (1, 2)
    assert compared.flows[0].columns[0].passed is False
    assert row(compared, "expectations met").cells[0].detail == "✗ TTL is 61: observed 62"


def test_what_is_expected_of_a_style_is_no_difference_between_networks() -> None:
    one, two = (Check("delivered", "delivered", True),), (Check("ttl: 62", "62", True), Check("x", "x", True))
    compared = compare(run(TWO, [result("flannel", checks=one), result("calico", checks=two)], []))
    assert values(compared, "expectations met") == ["1 of 1", "2 of 2"]
    assert not row(compared, "expectations met").differs


def test_that_a_stream_was_interrupted_is_a_difference_and_for_how_long_is_noise() -> None:
    whole: dict[str, Any] = {"convergence": 0.0, "sent": 100, "received": 100, "detail": "0 of 100 lost"}
    some: dict[str, Any] = {"convergence": 0.5, "sent": 100, "received": 50, "detail": "50 of 100 lost"}
    compared = compare(run(TWO, [result("flannel", **whole), result("calico", **some)], []))
    assert values(compared, "requests of the stream answered") == ["all", "some"]
    assert row(compared, "requests of the stream answered").differs
    assert values(compared, "what the stream lost") == ["0 of 100 lost", "50 of 100 lost"]
    assert not row(compared, "what the stream lost").differs
    assert "what came back" not in [each.label for each in compared.flows[0].rows]

    alike = compare(run(TWO, [result("flannel", **some), result("calico", **(some | {"received": 20}))], []))
    assert not row(alike, "requests of the stream answered").differs


def test_how_what_was_read_is_judged_is_no_difference() -> None:
    good, bad = (Check("present: default", "default", True),), (Check("present: default", "none", False),)
    compared = compare(
        run(TWO, [result("flannel", "observed", checks=good), result("calico", "observed", checks=bad)], [])
    )
    assert values(compared, "verdict") == ["as expected", "otherwise"]
    assert not row(compared, "verdict").differs


def test_two_runs_stand_side_by_side_style_by_style() -> None:
    before = run([style("flannel")], [result("flannel")], [packet("flannel", 0, [64, 63])], "before")
    after = run(TWO, [result("flannel"), result("calico")], [packet("flannel", 0, [64, 63, 62])], "after")
    compared = compare_runs(before, after)
    assert [column.title for column in compared.columns] == ["A: before", "B: after"]
    assert [flow.under for flow in compared.flows] == ["Flannel", "Calico"]
    assert values(compared, "device traversals") == ["2", "3"]
    assert compared.flows[1].columns[0].missing == "this run has no such style"


def test_a_run_equals_itself() -> None:
    one = run(TWO, [result("flannel"), result("calico")], [packet("flannel", 0, [64, 63])])
    compared = compare_runs(one, one)
    assert sum(flow.differences for flow in compared.flows) == 0
    assert [name for name, _ in compared.runs] == ["run (1)", "run (2)"]


def test_an_address_that_differs_by_style_is_not_in_the_headline() -> None:
    here, there = result("flannel"), msgspec.structs.replace(result("calico"), target_address="10.0.0.9")
    assert headline(compare(run(TWO, [here, there], [])).flows[0]) == "s · a → b · ICMP · one packet"
    assert headline(compare(run(TWO, [here], [])).flows[0]) == "s · a → b (10.0.0.2) · ICMP · one packet"


def test_a_source_that_was_not_rewritten_is_the_same_under_every_style() -> None:
    other = msgspec.structs.replace(result("calico"), source_seen="10.0.0.1")
    compared = compare(
        run(TWO, [result("flannel"), other], [packet(name, 0, [64, 63]) for name in ("flannel", "calico")])
    )
    assert values(compared, "source seen by the receiver") == ["10.0.0.1, its own"] * 2


def test_a_flow_that_was_not_seen_differs_in_its_verdict_only() -> None:
    results = [result("flannel", "unreachable", detail="message too long"), result("calico", pod_mtu=0)]
    compared = compare(run(TWO, results, [packet("calico", 0, [64, 63])]))
    assert [row.label for row in compared.flows[0].rows if row.differs] == ["verdict"]


def test_a_packet_lost_on_the_way_is_not_a_fast_one() -> None:
    packets = [packet("flannel", 0, [64, 63, 62]), packet("flannel", 1, [64, 63], later=1)]
    compared = compare(run([style("flannel")], [result("flannel")], packets))
    assert compared.flows[0].columns[0].one_way == 2.0


def test_flows_of_one_scenario_stand_together_whatever_the_order_of_results() -> None:
    def flow(scenario: str, name: str, under: str) -> FlowResult:
        return msgspec.structs.replace(result(under), scenario=scenario, flow=name)

    results = [
        flow("one", "a", "flannel"),
        flow("two", "b", "flannel"),
        flow("one", "a", "calico"),
        flow("one", "c", "calico"),
    ]
    one = run(TWO, results, [])
    assert [(each.scenario, each.flow) for each in compare(one).flows] == [("one", "a"), ("one", "c"), ("two", "b")]
    assert [(each.flow, each.under) for each in compare_runs(one, one).flows] == [
        ("a", "Flannel"),
        ("a", "Calico"),
        ("c", "Calico"),
        ("b", "Flannel"),
    ]
