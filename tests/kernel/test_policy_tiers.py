"""Calico's own policies and the cluster-wide ones by packets: under Felix every pod gets what the evaluator expects."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from emulator import Lab
from emulator.cluster.manifests import parse
from emulator.cluster.topology import parse_topology
from emulator.kernel import registry
from emulator.lab.records import ProbeRequest
from emulator.policy.compile import compile_policies
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import Flow, Verdict, pod_end
from emulator.policy.model import Family
from tests.policy.judging import BASE
from tests.policy.worlds import PORTS, TOPOLOGY, Object

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "iptables", "ipset", "ip", "mnexec")

PATIENCE, SILENCE = 3.0, 0.4  # seconds, for what should be let in and for what should not
FAMILIES: tuple[Family, ...] = (4, 6)


def calico(kind: str, name: str, spec: str, namespace: str = "") -> str:
    where = f", namespace: {namespace}" if namespace else ""
    return f"apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}{where}}}\nspec: {spec}\n---\n"


def cluster_wide(name: str, spec: str) -> str:
    head = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n"
    return f"{head}metadata: {{name: {name}}}\nspec: {spec}\n---\n"


def kubernetes(spec: str) -> str:
    head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
    return f"{head}metadata: {{name: p, namespace: x}}\nspec: {spec}\n---\n"


CASES = {
    "pass to the next tier": calico("Tier", "first", "{order: 10}")
    + calico("GlobalNetworkPolicy", "t", "{tier: first, ingress: [{action: Pass, protocol: TCP}, {action: Log}]}")
    + kubernetes("{ingress: [{from: [{namespaceSelector: {matchLabels: {team: y}}}]}]}"),
    "order and negated selector": calico(
        "GlobalNetworkPolicy",
        "g",
        "{order: 10, selector: app == 'a', ingress: [{action: Deny, protocol: UDP},"
        " {action: Allow, source: {notSelector: tier == 'ya'}}]}",
    ),
    "namespaced, notPorts": calico(
        "NetworkPolicy",
        "a",
        "{selector: app == 'a', ingress: [{action: Allow, protocol: TCP,"
        " source: {selector: app == 'a', namespaceSelector: all()}, destination: {notPorts: [81]}}]}",
        "x",
    )
    + calico(
        "NetworkPolicy",
        "b",
        "{egress: [{action: Allow, destination: {notSelector: app == 'b', namespaceSelector: \"team != 'z'\"}}]}",
        "y",
    ),
    "network set and service account": (
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: g, labels: {role: office}}\n"
        "spec: {nets: [10.244.0.0/17]}\n---\n"
    )
    + calico(
        "GlobalNetworkPolicy",
        "s",
        "{selector: app == 'b', ingress: [{action: Allow, source: {selector: role == 'office'}},"
        " {action: Allow, source: {serviceAccounts: {names: [default]}}, protocol: 132}],"
        " egress: [{action: Allow, protocol: UDP, destination: {ports: ['50:60']}}, {action: Pass}]}",
    ),
    "admin and baseline": cluster_wide(
        "a",
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: ["
        "{action: Accept, from: [{namespaces: {matchLabels: {team: y}}}],"
        " protocols: [{tcp: {destinationPort: {number: 80}}}]},"
        "{action: Pass, from: [{pods: {podSelector: {matchLabels: {app: a}}}}]},"
        "{action: Deny, from: [{namespaces: {matchLabels: {team: z}}}]}]}",
    )
    + cluster_wide(
        "b",
        "{tier: Baseline, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny,"
        " to: [{networks: [10.244.0.0/16]}], protocols: [{udp: {destinationPort: {range: {start: 53, end: 80}}}}]}]}",
    )
    + kubernetes("{ingress: []}"),
    "named port of any protocol": cluster_wide(
        "a",
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}],"
        " protocols: [{destinationNamedPort: web}]}]}",
    ),
}


def pods() -> list[Object]:
    """Those of ``BASE``; on the pods ``a`` the name ``web`` is TCP 80, on ``b`` UDP 53."""
    found = deepcopy(list(BASE))
    for one in found:
        if one["kind"] == "Pod":
            ports = one["spec"]["containers"][0]["ports"]
            ports[0 if one["metadata"]["name"] == "a" else 3]["name"] = "web"
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    with Lab(parse_topology(TOPOLOGY, "policies.yaml"), "calico", dns="off", policy_mode="spec") as running:
        running.apply(*pods())
        yield running
    patch.undo()


@pytest.mark.parametrize("case", CASES)
def test_packets_obey_tiers(lab: Lab, case: str) -> None:
    objects = parse(CASES[case], namespaces=("x", "y", "z")).objects
    lab.apply(*(one for one in BASE if one["kind"] == "Namespace"), *objects)
    try:
        wrong, verdicts = observed(lab)
    finally:
        for one in reversed(objects):
            group = one["apiVersion"].rpartition("/")[0]
            lab.delete(f"{one['kind']}.{group}", one["metadata"]["name"], one["metadata"].get("namespace", "default"))
    assert wrong == []
    assert {verdict.allowed for verdict in verdicts} == {True, False}


def observed(lab: Lab) -> tuple[list[str], list[Verdict]]:
    """What packets say otherwise than the evaluator, and what that said."""
    cluster = lab.cluster()
    compiled = compile_policies(cluster)
    asked: list[tuple[Flow, Verdict]] = []
    requests: list[ProbeRequest] = []
    for source in cluster.pods:
        for target in cluster.pods:
            for family in FAMILIES:
                ends = pod_end(source, family), pod_end(target, family)
                assert ends[0] is not None
                assert ends[1] is not None
                for protocol, port in PORTS:
                    flow = Flow(ends[0], ends[1], protocol, port)
                    verdict = evaluate(compiled, flow)
                    kind: Any = protocol.lower()
                    patience = PATIENCE if verdict.allowed else SILENCE
                    asked.append((flow, verdict))
                    requests.append(
                        ProbeRequest(f"pod/{source.key}", ends[1].address, port, kind, timeout=patience, family=family)
                    )
    answers = lab.probes(requests)
    wrong = [
        f"{flow.source.name} -> {flow.destination.name} {flow.protocol} {flow.port}: {answer.result.verdict}, {verdict}"
        for (flow, verdict), answer in zip(asked, answers, strict=True)
        if verdict.allowed != (answer.result.verdict == "delivered")
    ]
    return wrong, [verdict for _, verdict in asked]
