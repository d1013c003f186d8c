"""Before anything is built: names that never exist, styles that cannot carry the network, kernels that lack a part."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from emulator.errors import ManifestError, NotFound, ScenarioError, TopologyError, Unsupported
from emulator.kernel import capabilities
from emulator.scenario import preflight as module
from emulator.scenario.load import find_scenarios, load_scenario, parse_scenario, scenario_names
from emulator.scenario.preflight import preflight

WEB = """\
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: web
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web}]}
"""


@pytest.fixture(autouse=True)
def kernel_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "require", lambda names: None)


def run(folder: Path, steps: str, more: str = "", style: str = "flannel") -> None:
    text = f"name: x\ntitle: X\n{more}\nsteps: {steps}\n"
    preflight(parse_scenario(text, str(folder / "x.yaml")), style)


def flow(source: str = "n1-p1", target: str = "n2-p1", more: str = "") -> str:
    return f"{{flow: {{id: a, from: {source}, to: {target}{more}}}}}"


def meant_for(name: str) -> list[str]:
    """The styles that a shipped scenario names, but for those that a file of the user's makes; else some, unless only
    tunnels reach across its topology."""
    (path,) = find_scenarios(name)
    limits = [style for style in load_scenario(path).scenario.styles if style != "conflist"]
    return limits or (["flannel"] if name.endswith("/racks") else ["flannel", "flannel:host-gw", "calico"])


@pytest.mark.parametrize(("name", "style"), [(name, style) for name in scenario_names() for style in meant_for(name)])
def test_shipped_scenarios_name_what_exists(name: str, style: str) -> None:
    (path,) = find_scenarios(name)
    preflight(load_scenario(path), style)


@pytest.mark.parametrize(
    ("steps", "path", "reason"),
    [
        (f"[{flow('n1-p9')}]", "steps[0].flow.from", "there is no pod or machine 'n1-p9'; did you mean"),
        (f"[{flow(target='clinet')}]", "steps[0].flow.to", "did you mean client"),
        (f"[{flow('10.244.1.2')}]", "steps[0].flow.from", "packets are sent from pods and machines"),
        (f"[{flow(more=', family: 6')}]", "steps[0].flow.to", "no common IPv6 address family"),
        (f"[{flow(target='2001:db8::1')}]", "steps[0].flow.to", "no common address family"),
        ("[{fault: {kind: node-crash, target: n9}}]", "steps[0].fault.target", "'n9'"),
        ("[{fault: {kind: node-crash, target: n1-p1}}]", "steps[0].fault.target", "is not a machine"),
        ("[{churn: {target: n1}}]", "steps[0].churn.target", "is not a pod"),
        ("[{wait: {from: n1-p1, to: web-0}}]", "steps[0].wait.to", "'web-0'"),
        ("[{send: {id: a, from: x, to: n1, packet: IP()}}]", "steps[0].send.from", "'x'"),
        ("[{replay: {id: a, from: n1, to: y, pcap: a.pcap}}]", "steps[0].replay.to", "'y'"),
        (
            f"[{{stream: {{id: s, from: n1, to: n2, rate: 1, during: [{flow('z')}]}}}}]",
            "steps[0].stream.during[0].flow.from",
            "'z'",
        ),
    ],
)
def test_a_place_that_never_exists_is_told_with_its_field(tmp_path: Path, steps: str, path: str, reason: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        run(tmp_path, steps)
    assert [problem.path for problem in caught.value.problems] == [path]
    assert reason in caught.value.problems[0].reason


def test_pods_that_are_applied_later_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(WEB)
    run(tmp_path, f"[{{apply: [web.yaml]}}, {flow(target='web-1')}]")
    with pytest.raises(ScenarioError, match="web-2"):
        run(tmp_path, f"[{{apply: [web.yaml]}}, {flow(target='web-2')}]")


def test_pods_of_manifests_and_objects_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(WEB)
    run(tmp_path, f"[{flow('web-0', 'web-1')}]", "manifests: [web.yaml]")
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: solo}, spec: {containers: [{name: a, image: b}]}}"
    run(tmp_path, f"[{flow('solo')}]", f"objects: [{pod}]")


def test_an_object_may_be_applied_again(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(WEB)
    (tmp_path / "more.yaml").write_text(WEB.replace("replicas: 2", "replicas: 3"))
    run(tmp_path, f"[{{apply: [more.yaml]}}, {flow(target='web-2')}]", "manifests: [web.yaml]")


def test_wrong_manifests_are_the_manifests_fault(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(WEB.replace("replicas: 2", "replicas: -2"))
    with pytest.raises(ManifestError, match="replicas"):
        run(tmp_path, f"[{flow()}]", "manifests: [web.yaml]")


def test_an_unknown_style_or_topology_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        run(tmp_path, f"[{flow()}]", style="flanel")
    with pytest.raises((NotFound, TopologyError)):
        run(tmp_path, f"[{flow()}]", "topology: four-nodes")


def test_a_style_that_cannot_carry_the_network_is_unsupported(tmp_path: Path) -> None:
    run(tmp_path, f"[{flow()}]", "topology: racks", "flannel")
    with pytest.raises(Unsupported, match="one L2 segment"):
        run(tmp_path, f"[{flow()}]", "topology: racks", "flannel:host-gw")


def test_what_the_kernel_lacks_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(names: Collection[str]) -> dict[str, capabilities.Feature]:
        return {name: capabilities.Feature(name, "no", "not there") for name in names}

    monkeypatch.setattr(module, "require", lambda names: capabilities.require(names, probe))
    with pytest.raises(Unsupported, match="netem"):
        run(tmp_path, f"[{flow('nobody')}]", "requires: [netem]")


def test_an_unknown_requirement_is_a_mistake_in_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "require", capabilities.require)
    with pytest.raises(ScenarioError, match="'netme' is no kernel feature"):
        run(tmp_path, f"[{flow()}]", "requires: [netme]")
