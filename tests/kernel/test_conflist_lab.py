"""A lab whose pods are wired by real plugins is a lab like any other."""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from emulator.capture.follow import follow
from emulator.capture.model import Event
from emulator.capture.pcapng import read, write_annotated
from emulator.compare.golden import hop_lists, speaking
from emulator.compare.records import FlowJourney
from emulator.errors import PluginError, UserError
from emulator.lab import Lab
from emulator.scenario.load import find_scenarios, load_scenario
from emulator.scenario.run import Outcome, run_scenario

pytestmark = pytest.mark.requires("cni-plugins", "iptables", "bridge-nf")

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "scenarios" / "conflist"
GOLDEN = ROOT / "captures" / "conflist"
PICKY = """\
#!/usr/bin/env python3
import json, os, sys
config = json.load(sys.stdin)
command = os.environ["CNI_COMMAND"]
if command == "VERSION":
    print('{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}')
elif command == "ADD":
    if "K8S_POD_NAME=web" in os.environ["CNI_ARGS"]:
        print('{"code": 100, "msg": "not this one"}')
        sys.exit(1)
    json.dump(config["prevResult"], sys.stdout)
"""
LISTS = ("10-bridge", "20-ptp", "30-chain")


def spec(name: str) -> str:
    return f"conflist={SHIPPED / name}.conflist"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("single-node", cni=spec("10-bridge")) as running:
        yield running


def addresses(lab: Lab) -> dict[str, tuple[str, ...]]:
    return {pod.name: pod.addresses for pod in lab.cluster().pods}


def test_the_api_tells_the_addresses_that_plugins_gave(lab: Lab) -> None:
    (pod,) = lab.get("pods", "n1-p1")
    assert pod["status"]["podIP"] == "10.244.1.2"
    assert lab.status().style == "conflist:10-bridge"
    assert lab.verify() == []


def test_pods_reach_each_other_and_the_outside(lab: Lab) -> None:
    assert lab.probe("n1-p1", "n1-p2", 80).reached
    assert lab.probe("n1-p1", "client", 80).result.source_seen.startswith("192.168.50.11:")


def test_hops_on_devices_of_plugins_say_so(lab: Lab) -> None:
    request = lab.trace("n1-p1", "n1-p2").request
    assert request is not None
    assert request.verdict == "delivered"
    assert [hop.reasons[0].component for hop in request.hops] == ["bridge plugin"] * 4
    assert request.hops[1].reasons[0].why == "made by plugin bridge, a port of cni0"


def test_a_pod_that_comes_back_is_attached_anew_and_the_old_one_detached(lab: Lab) -> None:
    before = addresses(lab)
    lab.delete("pod", "n1-p3")
    after = addresses(lab)
    assert after["n1-p3"] not in before.values()  # host-local goes round
    assert {name: after[name] for name in ("n1-p1", "n1-p2")} == {name: before[name] for name in ("n1-p1", "n1-p2")}
    assert lab.probe("n1-p1", "n1-p3", 80).reached
    assert lab.status().plugin_problems == ()
    assert lab.verify() == []


def test_a_label_that_changes_leaves_the_attachment_alone(lab: Lab) -> None:
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"a": "1"}}}
    manifest["spec"] = {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}
    lab.apply(manifest)
    given = addresses(lab)["web"]
    calls = lab.logs("n1", "cni")["node/n1/cni"].count("ADD")
    lab.apply({**manifest, "metadata": {"name": "web", "labels": {"a": "2"}}})
    assert addresses(lab)["web"] == given
    assert lab.logs("n1", "cni")["node/n1/cni"].count("ADD") == calls
    lab.delete("pod", "web")


def test_check_goes_through_every_pod(lab: Lab) -> None:
    assert [finding["pod"] for finding in lab.plugins("CHECK")] == ["default/n1-p1", "default/n1-p2", "default/n1-p3"]
    assert lab.plugins("CHECK", "n1-p2") == [{"node": "n1", "pod": "default/n1-p2", "complaints": [], "skipped": ""}]
    with pytest.raises(UserError, match="no pod that CNI plugins attach"):
        lab.plugins("CHECK", "n1")


def test_a_node_that_returns_attaches_its_pods_anew() -> None:
    with Lab("three-nodes", cni=spec("10-bridge")) as lab:
        lab.fault("node-crash", "n2")
        lab.fault("node-return", "n2")
        assert addresses(lab)["n2-p1"] == ("10.244.2.2",)
        assert lab.probe("n2-p1", "n2-p2", 80).reached
        assert lab.verify() == []
        assert lab.status().plugin_problems == ()


def test_a_change_that_plugins_refuse_leaves_the_lab_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "10-picky.conflist"
    network = json.loads((SHIPPED / "10-bridge.conflist").read_text())
    network["plugins"].append({"type": "picky"})
    file.write_text(json.dumps(network))
    (tmp_path / "picky").write_text(PICKY)
    (tmp_path / "picky").chmod(0o755)
    with Lab("single-node", cni=f"conflist={file};/usr/lib/cni:{tmp_path}") as lab:
        before = addresses(lab)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}}
        with pytest.raises(
            PluginError, match="pod default/web on n1: plugin picky, ADD: failed with code 100: not this"
        ):
            lab.apply({**pod, "spec": {"containers": [{"name": "c", "image": "i"}]}})
        assert addresses(lab) == before
        assert lab.verify() == []
        assert lab.status().plugin_problems == ()
        assert lab.probe("n1-p1", "n1-p2", 80).reached


def test_labs_of_other_styles_have_no_plugins_to_run() -> None:
    with Lab("single-node", cni="flannel") as lab, pytest.raises(UserError, match="attached by CNI plugins"):
        lab.plugins("STATUS")


# ---------------------------------------------------------------- shipped scenarios


def ran(scenario: str, name: str) -> Outcome:
    (path,) = find_scenarios(f"conflist/{scenario}")
    return run_scenario(load_scenario(path), spec(name))


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("scenario", ["one-node", "no-routes-between-nodes"])
def test_expectations_of_the_shipped_scenarios_hold(scenario: str, name: str) -> None:
    done = ran(scenario, name)
    assert [(result.flow, check) for result in done.results for check in result.checks if not check.met] == []
    assert {result.style for result in done.results} == {f"conflist:{name}"}
    assert (done.meta.lost, done.meta.uncorrelated) == (0, 0)


def test_hop_lists_are_the_golden_ones_and_the_golden_capture_holds_their_packets() -> None:
    done = ran("one-node", "10-bridge")
    lists, capture = GOLDEN / "one-node.hops", GOLDEN / "one-node.pcapng.gz"
    spoken = speaking(done.journeys)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        lists.write_text(settled(spoken), encoding="utf-8")
        write_capture(capture, spoken, done.events)
    assert settled(spoken) == lists.read_text(encoding="utf-8")
    journeys = follow(read(capture)).journeys
    for item in spoken:
        ways = [without_reasons(msgspec.structs.replace(item, journey=each)) for each in journeys]
        assert without_reasons(item) in ways, f"{item.flow} {item.direction}"


def settled(journeys: Sequence[FlowJourney]) -> str:
    """Hop lists in which MACs and host ends of cables, which plugins choose anew each time, are numbered."""
    return "\n".join(_numbered(hop_lists([item])) for item in journeys)


def without_reasons(item: FlowJourney) -> str:
    return _numbered("\n".join(line for line in hop_lists([item]).splitlines() if not line.startswith("      ")))


def _numbered(text: str) -> str:
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        kind = "mac" if ":" in match[0] else "veth"
        same = [name for name in numbers.values() if name.startswith(kind)]
        return numbers.setdefault(match[0], f"{kind}#{len(same) + 1}")

    return re.sub(r"\bveth[0-9a-f]{8}\b|\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", number, text)


def write_capture(file: Path, journeys: Sequence[FlowJourney], events: Sequence[Event]) -> None:
    """The packets of the journeys, as the other golden captures hold them."""
    wanted = {(hop.time, hop.ns, hop.device, hop.direction) for item in journeys for hop in item.journey.hops}
    chosen = [event for event in events if (event.time, event.ns, event.device, event.direction) in wanted]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "capture"
        write_annotated(plain, [item.journey for item in journeys], chosen)
        file.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
