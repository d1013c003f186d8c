"""Matrices, explanations and checks of policies on real packets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from emulator import Lab
from emulator.lab.verdicts import Ask, Cell, MatrixWish, PortWish
from emulator.scenario.load import find_scenarios, load_scenario
from emulator.scenario.policy_explain import explain_request
from emulator.scenario.policy_labs import policy_lab, topology_for

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("iptables", "ipset")]

ENFORCING = ("calico", "canal", "kube-router", "kindnet")
RECIPES = ("deny-all", "allow-namespace", "three-tiers", "egress-cidr", "named-ports")
PORTS = (PortWish("tcp", 80), PortWish("udp", 80), PortWish("sctp", 9999), PortWish("tcp", 8080))


def deny(name: str, **spec: object) -> dict[str, object]:
    metadata = {"name": name, "namespace": "shop"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module", params=ENFORCING)
def recipe(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, str]]:
    """A shop under every recipe at once: many policies, many reasons."""
    manifest = Path(find_scenarios("policy/deny-all")[0]).parent / "manifests" / "shop.yaml"
    with Lab("three-nodes", cni=request.param, manifests=[manifest]) as lab:
        for name in RECIPES[1:]:
            (path,) = find_scenarios(f"policy/{name}")
            lab.apply(*load_scenario(path).scenario.objects)
        yield lab, request.param


def test_packets_do_what_policies_say_and_both_windows_are_told(recipe: tuple[Lab, str]) -> None:
    lab, _ = recipe
    taken = lab.matrix(MatrixWish(groups=("pods", "nodes"), ports=PORTS))
    assert [cell for cell in taken.cells if cell.wrong] == []
    assert {cell.verdict for cell in taken.cells} >= {"allowed"}
    assert any(not cell.allowed for cell in taken.cells)
    assert taken.rounds[0].window == 0.1
    assert all(cell.window in (0.1, 1.0) for cell in taken.cells)
    assert taken.opened > 0


def test_denials_are_told_apart_as_the_enforcer_makes_them(recipe: tuple[Lab, str]) -> None:
    lab, style = recipe
    taken = lab.matrix(MatrixWish(ports=PORTS))
    denied = {cell.verdict for cell in taken.cells if not cell.allowed}
    assert denied == ({"refused"} if style == "kube-router" else {"dropped"})


def test_every_denied_request_names_its_policy_and_its_rule(recipe: tuple[Lab, str]) -> None:
    lab, style = recipe
    taken = lab.matrix(MatrixWish(groups=("pods", "nodes"), ports=PORTS))
    denied = [cell for cell in taken.cells if not cell.allowed]
    silent = []
    for cell in _one_of_each_kind(denied):
        told = explain_request(lab, Ask(cell.source, cell.target, cell.protocol, cell.port, cell.family), style)
        if told.stopped is None:
            silent.append((cell.source, cell.target, cell.port, told.journey and told.journey.verdict))
            continue
        assert told.stopped.action == ("reject" if style == "kube-router" else "drop")
        assert told.policies or cell.deviation is not None
        pod = cell.egress.pod if cell.egress is not None and not cell.egress.allowed else ""
        if pod and cell.deviation is None:  # judged on its own node: egress there, ingress where the target is
            node = next(each.node for each in lab.cluster().pods if each.key == pod)
            assert told.stopped.ns == f"node/{node}"
    assert silent == []


def _one_of_each_kind(cells: list[Cell]) -> list[Cell]:
    """Requests whose kind of ends, protocol and reasons differ: all of them would take a minute."""
    found: dict[object, Cell] = {}
    for cell in cells:
        ends = (cell.source.split("/")[0], cell.target.split("/")[0])
        whose = [(one.reason, one.allowed) for one in (cell.egress, cell.ingress) if one is not None]
        found.setdefault((ends, cell.protocol, str(whose), cell.deviation is not None), cell)
    return list(found.values())


@pytest.mark.requires("vxlan")
def test_policies_that_nobody_enforces_are_a_known_deviation() -> None:
    with Lab("three-nodes", cni="flannel") as lab:
        policy = deny("deny", podSelector={})
        lab.apply({**policy, "metadata": {"name": "deny", "namespace": "default"}})
        taken = lab.matrix(MatrixWish(ports=(PortWish("tcp", 80),)))
        assert all(cell.allowed and not cell.wrong for cell in taken.cells)
        assert any(cell.deviation is not None and cell.deviation.unenforced for cell in taken.cells)
        assert any("NO POLICY IS ENFORCED" in line for line in lab.warnings)


@pytest.mark.requires("vxlan")
def test_meddling_rule_is_found_out(tmp_path: Path) -> None:
    """What no policy explains is wrong, after the second window, and fails the check."""
    with Lab("three-nodes", cni="flannel") as lab:
        lab.fault("filter", "n2", at="forward", protocol="tcp", port=80)
        taken = lab.matrix(MatrixWish(sources=("n1-p1",), targets=("n1-p2", "n2-p1"), ports=(PortWish("tcp", 80),)))
        near, far = taken.cells
        assert (near.verdict, near.wrong, near.window) == ("allowed", False, 0.1)
        assert (far.verdict, far.wrong, far.window) == ("dropped", True, 1.0)
        assert len(taken.rounds) == 2


def test_ports_are_served_only_for_the_time_of_the_requests() -> None:
    with Lab("single-node", cni="calico") as lab:
        place = lab.cluster().pods[0]
        wish = MatrixWish(sources=(f"pod/{place.key}",), ports=(PortWish("tcp", 4711), PortWish("udp", 4711)))
        assert all(cell.allowed for cell in lab.matrix(wish).cells)
        assert lab.probe("node/n1", f"pod/{place.key}", 4711).result.verdict == "refused"
        assert lab.probe("node/n1", f"pod/{place.key}", 80).reached


def test_limits_on_icmp_errors_are_as_before() -> None:
    with Lab("single-node", cni="calico") as lab:

        def masks() -> str:
            return lab.run("n1", "cat", "/proc/sys/net/ipv4/icmp_ratemask", "/proc/sys/net/ipv6/icmp/ratemask").stdout

        before = masks()
        lab.matrix(MatrixWish(ports=(PortWish("tcp", 80),)))
        assert masks() == before != ""


def cnilab(*argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from emulator.cli import main; main()", *map(str, argv)]
    return subprocess.run(command, text=True, capture_output=True, timeout=100, check=False)


def test_check_passes_fails_and_writes_for_ci(tmp_path: Path) -> None:
    manifest = Path(find_scenarios("policy/deny-all")[0]).parent / "manifests" / "shop.yaml"
    policy = tmp_path / "deny.json"
    policy.write_text(json.dumps(deny("deny", podSelector={})))
    junit = tmp_path / "junit.xml"
    done = cnilab("policy", "check", manifest, policy, "--cni", "kube-router", "--junit", junit, "--json")
    assert done.returncode == 0, done.stderr
    (style,) = json.loads(done.stdout)["styles"]
    assert style["wrong"] == 0
    assert style["as_specified"] + style["deviating"] == style["requests"] > 0
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    assert suite is not None
    assert int(suite.get("tests", "0")) == style["requests"] + style["unjudged"]


def test_what_has_no_way_is_no_difference_where_there_are_no_policies_either() -> None:
    manifest = Path(find_scenarios("policy/deny-all")[0]).parent / "manifests" / "shop.yaml"
    done = cnilab("policy", "check", manifest, "--cni", "flannel", "--json")
    assert done.returncode == 0, done.stderr
    (style,) = json.loads(done.stdout)["styles"]
    assert style["wrong"] == 0
    assert style["unjudged"] > 0  # the host outside, which knows no route to pods


def test_bad_policy_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    policy = tmp_path / "bad.json"
    policy.write_text(json.dumps(deny("bad", podSelector={}, ingress=[{"ports": [{"endPort": 90}]}])))
    done = cnilab("policy", "check", policy)
    assert done.returncode == 2
    assert "endPort" in done.stderr


def test_topology_gives_its_pods_only_where_manifests_have_none() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}}
    assert all(machine.pods == 0 for machine in topology_for("three-nodes", [pod]).machines)
    assert any(machine.pods for machine in topology_for("three-nodes", [deny("x")]).machines)


def test_what_has_no_way_without_policies_is_not_judged(tmp_path: Path) -> None:
    policy = tmp_path / "deny.json"
    policy.write_text(json.dumps({**deny("deny", podSelector={}), "metadata": {"name": "deny"}}))
    with policy_lab("calico", [str(policy)]) as held:
        checked = held.take(MatrixWish(groups=("pods", "hosts"), ports=(PortWish("tcp", 80),)))
    assert checked.wrong == ()
    assert {cell.source for cell in checked.unjudged} == {"host/client"}
