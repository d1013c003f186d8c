from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emulator.compare.run import load_run
from emulator.errors import InputError, NotFound
from emulator.plan.model import Plan
from emulator.plan.render import as_json

META: dict[str, Any] = {
    "schema": "cnilab.run/v1",
    "started": "2025-10-09T08:53:20Z",
    "command": ["cnilab", "run"],
    "topology": "three-nodes",
    "scenarios": ["s"],
    "styles": [{"style": "flannel", "title": "Flannel"}],
    "kernel": "6.1",
    "seed": 1,
    "offloads": "off",
}
RESULT: dict[str, Any] = {
    "scenario": "s",
    "style": "flannel",
    "flow": "ping",
    "title": "ping",
    "source": "a",
    "target": "b",
    "source_ns": "pod/default/a",
    "target_address": "10.244.2.2",
    "protocol": "icmp",
    "verdict": "delivered",
}


def run_at(directory: Path, meta: object = META, results: str = json.dumps(RESULT), hops: str = "") -> Path:
    (directory / "meta.json").write_text(json.dumps(meta))
    (directory / "results.jsonl").write_text(results)
    (directory / "hops.jsonl").write_text(hops)
    return directory


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = load_run(run_at(tmp_path))
    assert run.meta.topology == "three-nodes"
    assert [result.flow for result in run.results] == ["ping"]
    assert run.journeys == {}


def test_no_such_directory_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no run directory") as caught:
        load_run(tmp_path / "none")
    assert "cnilab run" in caught.value.hint


@pytest.mark.parametrize("name", ["meta.json", "results.jsonl", "hops.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (run_at(tmp_path) / name).unlink()
    with pytest.raises(NotFound, match=name):
        load_run(tmp_path)


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    run_at(tmp_path, results=f"{json.dumps(RESULT)}\n\n{json.dumps(RESULT | {'verdict': 'maybe'})}\n")
    with pytest.raises(InputError, match=r"results\.jsonl: line 3: .*\$\.verdict"):
        load_run(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_broken_metadata_is_an_input_error(tmp_path: Path, text: str) -> None:
    (run_at(tmp_path) / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"meta\.json"):
        load_run(tmp_path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"schema.*cnilab\.run/v9"):
        load_run(run_at(tmp_path, META | {"schema": "cnilab.run/v9"}))


@pytest.mark.parametrize("style", ["../../etc", "..", "", ".hidden"])
def test_a_style_that_leads_out_of_the_run_is_refused(tmp_path: Path, style: str) -> None:
    with pytest.raises(InputError, match="is not a style name"):
        load_run(run_at(tmp_path, META | {"styles": [{"style": style, "title": ""}]}))


def test_a_result_of_an_unknown_style_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'weave' is not in meta"):
        load_run(run_at(tmp_path, results=json.dumps(RESULT | {"style": "weave"})))


def test_broken_hops_are_found_when_they_are_asked_for(tmp_path: Path) -> None:
    run = load_run(run_at(tmp_path, hops='{"scenario": 1}\n'))
    with pytest.raises(InputError, match=r"hops\.jsonl: line 1"):
        _ = run.journeys


def test_a_journey_without_hops_is_refused(tmp_path: Path) -> None:
    journey = {
        "scenario": "s",
        "style": "flannel",
        "flow": "ping",
        "direction": "request",
        "index": 0,
        "journey": {"id": 1, "hops": []},
    }
    run = load_run(run_at(tmp_path, hops=json.dumps(journey)))
    with pytest.raises(InputError, match="has no hops"):
        _ = run.journeys


def test_plans_are_read_by_style_and_scenario(tmp_path: Path) -> None:
    run = load_run(run_at(tmp_path))
    scenario = run.results[0].scenario
    place = tmp_path / "flannel" / scenario
    place.mkdir(parents=True)
    plan = Plan(style="flannel", topology="three-nodes", fragments={})
    (place / "plan.json").write_bytes(as_json(plan))
    assert run.plan("flannel", scenario) == plan
    with pytest.raises(NotFound, match="no style 'calico'"):
        run.plan("calico", scenario)


def test_a_broken_plan_is_an_input_error_with_its_file(tmp_path: Path) -> None:
    run = load_run(run_at(tmp_path))
    scenario = run.results[0].scenario
    (tmp_path / "flannel" / scenario).mkdir(parents=True)
    (tmp_path / "flannel" / scenario / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan\.json"):
        run.plan("flannel", scenario)


@pytest.mark.parametrize("scenario", ["../..", "..", "other"])
def test_a_scenario_that_is_not_of_the_run_has_no_plan(tmp_path: Path, scenario: str) -> None:
    with pytest.raises(NotFound, match="no scenario"):
        load_run(run_at(tmp_path)).plan("flannel", scenario)
