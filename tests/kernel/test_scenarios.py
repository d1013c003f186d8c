"""Every shipped scenario, under every style: its expectations hold, every packet is followed, and the hop lists are
those of the golden captures.

Golden captures are written anew, after a change that is meant, by::

    UPDATE_GOLDEN=1 pytest tests/kernel/test_scenarios.py
"""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import pytest

from emulator.capture.follow import follow
from emulator.capture.pcapng import read, write_annotated
from emulator.cni.styles import load_style
from emulator.compare.compare import compare, load_run
from emulator.compare.golden import hop_lists, pieces_of, same_way, speaking
from emulator.scenario.run import Outcome
from emulator.scenario.rundir import RunDirectory
from emulator.scenario.series import run_series
from tests.kernel.shipped_runs import CASES, SCENARIOS, loaded, outcome, styles_of

CAPTURES = Path(__file__).parents[2] / "captures"
CAPTURE = ".pcapng.gz"  # Wireshark opens it as it is
LARGEST = 20_000  # bytes of a golden capture: they live in the repository


def golden(scenario: str, style: str, suffix: str) -> Path:
    return CAPTURES / scenario / f"{style.replace(':', '-')}{suffix}"


@pytest.mark.parametrize(("scenario", "style"), CASES)
def test_expectations_hold(scenario: str, style: str) -> None:
    results = outcome(scenario, style).results
    assert [(result.flow, check) for result in results for check in result.checks if not check.met] == []
    assert all(result.checks for result in results)


@pytest.mark.parametrize(("scenario", "style"), CASES)
def test_capture_is_complete_and_every_packet_is_followed(scenario: str, style: str) -> None:
    found = outcome(scenario, style)
    assert found.meta.captured > 0
    assert found.meta.lost == 0
    assert found.meta.uncorrelated == 0, follow(found.events).uncorrelated


@pytest.mark.parametrize(("scenario", "style"), CASES)
def test_hop_lists_are_the_golden_ones(scenario: str, style: str) -> None:
    done = outcome(scenario, style)
    if os.environ.get("UPDATE_GOLDEN"):
        write_golden(scenario, style, done)
    assert hop_lists(done.journeys, done.pieces) == golden(scenario, style, ".hops").read_text(encoding="utf-8")


@pytest.mark.parametrize(("scenario", "style"), CASES)
def test_golden_capture_holds_the_packets_of_its_hop_list(scenario: str, style: str) -> None:
    """The file beside the list is what the list was made from: following it finds the same ways."""
    file = golden(scenario, style, CAPTURE)
    followed = follow(read(file)).journeys
    for item in speaking(outcome(scenario, style).journeys):
        assert any(same_way(item, journey) for journey in followed), f"{item.flow} {item.direction}"
    assert file.stat().st_size < LARGEST


def test_every_golden_capture_belongs_to_a_shipped_scenario() -> None:
    expected = {
        golden(scenario, style, suffix)
        for scenario in SCENARIOS
        for style in styles_of(scenario, full=True)
        for suffix in (".hops", CAPTURE)
    }
    found = {path for suffix in (".hops", CAPTURE) for path in CAPTURES.rglob(f"*{suffix}")}
    others = {CAPTURES / "runs", CAPTURES / "conflist"}  # test_conflist_lab.py has the latter
    assert {path for path in found if others.isdisjoint(path.parents)} == expected


def _needed(scenario: str) -> list[str]:
    styles = {feature for style in styles_of(scenario) for feature in load_style(style).requires}
    return sorted({*styles, *loaded(scenario).scenario.requires})


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, marks=pytest.mark.requires(*_needed(scenario)))
        for scenario in SCENARIOS
        if scenario.startswith("connectivity/")
    ],
)
def test_every_difference_between_styles_is_put_down_to_objects_of_their_plans(scenario: str, tmp_path: Path) -> None:
    run, styles = RunDirectory(tmp_path), styles_of(scenario)
    done = [outcome(scenario, style) for style in styles]
    for style, each in zip(styles, done, strict=True):
        run.add(loaded(scenario).scenario.name, style, each)
    run.finish(
        command=(), topology="", scenarios=[scenario], styles=[each.meta for each in done], seed=1,
        wire_accurate=True, programs={},
    )  # fmt: skip

    unexplained = [
        (flow.flow, row.label, column.column.key, cell.value)
        for flow in compare(load_run(tmp_path)).flows
        for row in flow.rows
        for column, cell in zip(flow.columns, row.cells, strict=True)
        if row.differs and cell.value and not cell.because
    ]

    assert unexplained == []


@pytest.mark.requires("vxlan", "iptables")
def test_a_flow_beside_a_stream_claims_none_of_its_hook_passes() -> None:
    passes = {result.flow: result.hook_passes for result in outcome("connectivity/node-crash", "flannel").results}
    assert passes["during"] == {}
    assert set(passes["after"]) == {"node/n1", "node/n2"}


@pytest.mark.requires("vxlan", "iptables")
def test_a_style_that_cannot_carry_the_topology_is_a_column_with_its_reason(tmp_path: Path) -> None:
    series = run_series([loaded("connectivity/racks")], ["flannel", "flannel:host-gw"], tmp_path)
    assert not series.all_met
    comparison = compare(load_run(tmp_path))
    assert [column.key for column in comparison.columns] == ["flannel", "flannel:host-gw"]
    for flow in comparison.flows:
        ran, refused = flow.columns
        assert ran.result is not None
        assert refused.result is None
        assert "flannel:host-gw needs all nodes on one L2 segment" in refused.missing
        assert "\n" not in refused.missing


def write_golden(scenario: str, style: str, done: Outcome) -> None:
    """The normalised hop lists, and the packets that they were made from."""
    list_file = golden(scenario, style, ".hops")
    list_file.parent.mkdir(parents=True, exist_ok=True)
    list_file.write_text(hop_lists(done.journeys, done.pieces), encoding="utf-8")
    spoken = speaking(done.journeys)
    chosen = [item.journey for item in spoken]
    chosen += [piece for item in spoken for piece in pieces_of(item, done.pieces)]
    wanted = {(hop.time, hop.ns, hop.device, hop.direction) for journey in chosen for hop in journey.hops}
    events = [event for event in done.events if (event.time, event.ns, event.device, event.direction) in wanted]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "capture"
        write_annotated(plain, chosen, events)
        golden(scenario, style, CAPTURE).write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
