"""Scenario files: found, decoded and checked; whatever is wrong has its place in the file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.errors import NotFound, ScenarioError
from emulator.scenario.load import find_scenarios, load_scenario, parse_scenario, scenario_names, walk
from emulator.scenario.model import Scenario

FLOW = "{id: a, from: n1-p1, to: n2-p1}"


def scenario(steps: str = f"[{{flow: {FLOW}}}]", more: str = "") -> str:
    return f"name: x\ntitle: X\n{more}\nsteps: {steps}\n"


def faults(text: str) -> list[tuple[str, str]]:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "x.yaml")
    assert all(problem.source == "x.yaml" for problem in caught.value.problems)
    return [(problem.path, problem.reason) for problem in caught.value.problems]


def test_a_scenario_says_what_it_means() -> None:
    flow = "{id: a, from: n1-p1, to: n2-p1, protocol: tcp, port: 80, dontFragment: true, expect: {ttl: {calico: 62}}}"
    loaded = parse_scenario(scenario(f"[{{flow: {flow}}}]"), "x.yaml").scenario
    assert loaded.topology == "three-nodes"
    assert loaded.wire_accurate
    found = loaded.steps[0].flow
    assert found is not None
    assert (found.source, found.target, found.port, found.dont_fragment) == ("n1-p1", "n2-p1", 80, True)
    assert found.expect.ttl == {"calico": 62.0}


@pytest.mark.parametrize("name", scenario_names())
def test_shipped_scenarios_are_found_by_name_and_load(name: str) -> None:
    (path,) = find_scenarios(name)
    loaded = load_scenario(path).scenario
    assert name.rpartition("/")[2] == loaded.name
    assert loaded.description


def test_steps_within_streams_are_walked_too() -> None:
    inner = f"{{flow: {FLOW}}}"
    stream = f"{{id: s, from: a, to: b, rate: 1, during: [{inner}, {{wait: {{seconds: 1}}}}]}}"
    loaded = parse_scenario(scenario(f"[{{stream: {stream}}}]"), "x.yaml").scenario
    assert [where for where, _ in walk(loaded.steps)] == [
        "steps[0]",
        "steps[0].stream.during[0]",
        "steps[0].stream.during[1]",
    ]


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("", "", "holds 0 YAML documents"),
        ("a: 1\n---\nb: 2\n", "", "holds 2 YAML documents"),
        ("name: x\n  y: [", "", "line 2"),
        ("title: X\nsteps: []\n", "name", "Required value"),
        (scenario(more="nmae: y"), "nmae", 'did you mean "name"?'),
        (scenario("[]"), "steps", "at least one step"),
        (scenario("[{}]"), "steps[0]", "exactly one thing, not nothing"),
        (scenario(f"[{{flow: {FLOW}, wait: {{seconds: 1}}}}]"), "steps[0]", "exactly one thing, not flow and wait"),
        (scenario(f"[{{flow: {FLOW}}}, {{flow: {FLOW}}}]"), "steps[1].flow.id", "'a' is used twice"),
        (scenario("[{flow: {id: A B, from: a, to: b}}]"), "steps[0].flow.id", "lowercase"),
        (scenario("[{flow: {id: a, to: b}}]"), "steps[0].flow.from", "Required value"),
        (scenario("[{flow: {id: a, from: a, to: b, protocol: tcp}}]"), "steps[0].flow.port", "between 1 and 65535"),
        (scenario("[{flow: {id: a, from: a, to: b, count: 0}}]"), "steps[0].flow.count", "between 1 and 10000"),
        (scenario("[{flow: {id: a, from: a, to: b, size: -1}}]"), "steps[0].flow.size", "between 0 and 1000000"),
        (scenario("[{flow: {id: a, from: a, to: b, expect: {tlt: 1}}}]"), "steps[0].flow.expect.tlt", "ttl"),
        (scenario("[{fault: {kind: flood, target: n1}}]"), "steps[0].fault.kind", "Invalid enum value 'flood'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, path: str, reason: str) -> None:
    found = faults(text)
    assert any(where.endswith(path) and reason in why for where, why in found), found


@pytest.mark.parametrize("packet", ["IP(dst=", "exit()", "__import__('os')"])
def test_a_packet_that_is_none_is_told_with_its_place(packet: str) -> None:
    with pytest.raises(ScenarioError, match=r"x.yaml: x steps\[0\].send.packet: "):
        parse_scenario(scenario(f'[{{send: {{id: a, from: a, to: b, packet: "{packet}"}}}}]'), "x.yaml")


def test_everything_that_is_wrong_is_told_at_once() -> None:
    text = scenario("[{flow: {id: a, from: a, to: b, count: 0, size: -1}}, {}]")
    assert [where for where, _ in faults(text)] == ["steps[0].flow.size", "steps[0].flow.count", "steps[1]"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../../x.yaml"])
def test_paths_may_not_lead_out_of_the_folder_above(tmp_path: Path, name: str) -> None:
    file = tmp_path / "theme" / "x.yaml"
    file.parent.mkdir()
    file.write_text(scenario())
    with pytest.raises(ScenarioError, match="leads out"):
        load_scenario(str(file)).beside(name)


def test_paths_lie_beside_the_scenario_or_in_the_folder_above(tmp_path: Path) -> None:
    file = tmp_path / "theme" / "x.yaml"
    file.parent.mkdir()
    file.write_text(scenario(more="topology: ./topologies/t.yaml"))
    loaded = load_scenario(str(file))
    assert loaded.topology() == str(tmp_path / "theme" / "topologies" / "t.yaml")
    assert loaded.beside("../other/web.yaml") == str(tmp_path / "other" / "web.yaml")


def test_a_bare_topology_is_a_shipped_one() -> None:
    assert parse_scenario(scenario(more="topology: racks"), "x.yaml").topology() == "racks"


def test_an_unknown_scenario_is_answered_with_a_near_one() -> None:
    with pytest.raises(NotFound) as caught:
        find_scenarios("conectivity/cros-node")
    assert "connectivity/cross-node" in caught.value.hint


def test_a_folder_means_every_scenario_below_it_but_no_manifest_or_topology(tmp_path: Path) -> None:
    for name in ("a/x.yaml", "b.yaml", "manifests/web.yaml", "a/topologies/t.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(scenario())
    assert find_scenarios(str(tmp_path)) == [str(tmp_path / "a/x.yaml"), str(tmp_path / "b.yaml")]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        load_scenario(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match="not UTF-8"):
        load_scenario(str(tmp_path / "binary.yaml"))


WORDS = [
    "name", "title", "steps", "topology", "flow", "stream", "id", "from", "to", "port", "protocol", "size", "count",
    "expect", "ttl", "path", "verdict", "during", "rate", "fault", "kind", "target", "churn", "wait", "seconds", "send",
    "packet", "replay", "pcap", "apply", "delete", "requires", "styles", "seed", "flannel", "default", "tcp",
]  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([*WORDS, "../../x", "a;reboot", 'a"b', "a\nb", "a\0b", "\ud800", "x" * 300, "IP(dst='{n1}')"])
    | st.text(max_size=20)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner),
    max_leaves=30,
)


def loads_or_is_refused(text: str) -> None:
    with contextlib.suppress(ScenarioError):
        assert isinstance(parse_scenario(text, "x.yaml").scenario, Scenario)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=VALUES)
def test_no_structure_gives_anything_but_a_scenario_error(value: Any) -> None:
    loads_or_is_refused(json.dumps(value))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=2), max_size=3))
def test_no_list_of_steps_gives_anything_but_a_scenario_error(steps: Any) -> None:
    loads_or_is_refused(json.dumps({"name": "x", "title": "X", "steps": steps}))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200))
def test_no_text_gives_anything_but_a_scenario_error(text: str) -> None:
    loads_or_is_refused(text)
