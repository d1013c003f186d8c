"""Every shipped scenario, under every style: its expectations hold, every packet is followed, and the hop lists are
those of the golden captures.

Golden captures are written anew, after a change that is meant, by::

    UPDATE_GOLDEN=1 pytest tests/kernel/test_scenarios.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from emulator.capture.follow import follow
from emulator.capture.pcapng import read, write_annotated
from emulator.compare.golden import hop_lists, same_way, speaking

sys.path.insert(0, str(Path(__file__).parent))
from shipped_runs import SCENARIOS, STYLES, outcome

CAPTURES = Path(__file__).parents[2] / "captures"
CASES = [pytest.param(name, style, marks=_marks) for name in SCENARIOS for style in STYLES for _marks in [
    pytest.mark.requires("bird") if style == "calico" else ()]]  # fmt: skip


@pytest.mark.parametrize(("scenario", "style"), CASES)
def test_expectations_hold(scenario: str, style: str) -> None:
    results = outcome(scenario, style).results
    assert results
    assert [check for result in results for check in result.checks if not check.met] == []
    assert any(result.checks for result in results)


@pytest.mark.parametrize(("scenario", "style"), CASES)
def test_capture_is_complete_and_every_packet_is_followed(scenario: str, style: str) -> None:
    meta = outcome(scenario, style).meta
    assert meta.captured > 0
    assert meta.lost == 0
    assert meta.uncorrelated == 0


@pytest.mark.parametrize(("scenario", "style"), CASES)
def test_hop_lists_are_the_golden_ones(scenario: str, style: str) -> None:
    done = outcome(scenario, style)
    folder = CAPTURES / scenario
    golden = folder / f"{style.replace(':', '-')}.hops"
    if os.environ.get("UPDATE_GOLDEN"):
        _write(folder, golden, done)
    assert hop_lists(done.journeys) == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize(("scenario", "style"), CASES)
def test_golden_capture_holds_the_packets_of_its_hop_list(scenario: str, style: str) -> None:
    """The file beside the list is what the list was made from: following it finds the same ways."""
    done = outcome(scenario, style)
    file = CAPTURES / scenario / f"{style.replace(':', '-')}.pcapng"
    followed = follow(read(file)).journeys
    for item in speaking(done.journeys):
        assert any(same_way(item.journey, journey) for journey in followed), f"{item.flow} {item.direction}"


def _write(folder: Path, golden: Path, done: object) -> None:
    from emulator.scenario.run import Outcome

    assert isinstance(done, Outcome)
    folder.mkdir(parents=True, exist_ok=True)
    golden.write_text(hop_lists(done.journeys), encoding="utf-8")
    chosen = [item.journey for item in speaking(done.journeys)]
    wanted = {(hop.time, hop.ns, hop.device, hop.direction) for journey in chosen for hop in journey.hops}
    events = [event for event in done.events if (event.time, event.ns, event.device, event.direction) in wanted]
    write_annotated(golden.with_suffix(".pcapng"), chosen, events)
