"""Every corner case of NetworkPolicy with real packets, in both address families, under every enforcing style.

The verdicts are written by hand (tests/policy/corner_cases.py), so each case also tests the evaluator. A style's cases
share one lab, in which each begins where the one before left it. Enforced is what the API says: ``policy_mode="spec"``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from emulator.errors import ApplyError, ManifestError
from emulator.kernel import registry
from emulator.lab.verdicts import Ask, Cell, MatrixWish
from emulator.policy.model import Family
from tests.policy.corner_cases import BASE, CASES, Addresses, Case, Step, policy, questions
from tests.policy.site import Site
from tests.policy.styles import enforcing, topology_for
from tests.policy.worlds import NODES, pod

pytestmark = pytest.mark.requires("netns", "veth", "iptables", "ipset", "ip", "mnexec")

CLOSED_PORT = 9


class Place(NamedTuple):
    """A style's lab, and the addresses by which pods of other nodes know each node."""

    site: Site
    seen: dict[str, tuple[str, ...]]

    @property
    def lab(self) -> Lab:
        return self.site.lab

    def addresses(self) -> Addresses:
        cluster = self.lab.cluster()
        found = {pod.key: pod.addresses for pod in cluster.pods}
        found |= {node.name: node.addresses for node in cluster.nodes}
        (host,) = cluster.topology.of_kind("host")
        found[host.name] = tuple(one.partition("/")[0] for link in host.interfaces for one in link.addresses)
        return Addresses(found | self.seen, cluster.topology.pod_cidrs)

    def families(self) -> tuple[Family, ...]:
        return tuple(6 if ":" in cidr else 4 for cidr in self.lab.cluster().topology.pod_cidrs)

    def wrong(self, step: Step) -> list[str]:
        """What packets say otherwise, once things are as the step has them."""
        self.site.become(step.state(self.addresses()))
        return self.answers(step.open, step.shut)

    def answers(self, open: str = "", shut: str = "") -> list[str]:
        """What packets say otherwise."""
        families = self.families()
        wanted = dict.fromkeys(questions(open, families), True) | dict.fromkeys(questions(shut, families), False)
        asks = list(wanted)
        found = self.site.faults(asks, list(wanted.values())) if asks else []
        return [told(asks[number], cell, wanted[asks[number]]) for number, cell in found]


def told(ask: Ask, cell: Cell, expected: bool) -> str:
    where = f"{ask.source} -> {ask.target} {ask.protocol} {ask.port} by IPv{ask.family}"
    first = f", at first {cell.first}" if cell.first else ""
    return f"{where}: {cell.verdict} {cell.detail}{first}; should be {'let in' if expected else 'denied'}"


@pytest.fixture(scope="module", params=enforcing())
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    with Lab(topology_for(request.param), request.param, dns="off", policy_mode="spec") as lab:
        site = Site(lab, request.param)
        site.become(BASE)
        yield Place(site, {f"seen of {node}": tuple(_seen(lab, node)) for node in NODES})
    patch.undo()


def _seen(lab: Lab, node: str) -> Iterator[str]:
    """The node's own addresses on the way to a pod of another node, as its kernel chooses them."""
    far = next(pod for pod in lab.cluster().pods if pod.node != node)
    for address in far.addresses:
        printed = lab.run(node, "ip", "-o", "route", "get", address).stdout
        yield printed.split(" src ")[1].split()[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_packets_get_the_verdict_of_the_api(place: Place, case: Case) -> None:
    wrong = [f"step {number}: {line}" for number, step in enumerate(case.steps) for line in place.wrong(step)]
    assert not wrong, "\n".join(wrong)


def test_a_services_port_of_a_node_is_not_the_nodes_own(place: Place) -> None:
    """Policies judge behind the translation, by an address that the API does not define, so neither answer is wrong."""
    (closed,) = [case.steps[0] for case in CASES if case.name == "a_masqueraded_sender_is_its_node"]
    assert place.wrong(closed) == []
    taken = place.lab.matrix(MatrixWish(asks=tuple(questions(closed.shut, place.families()))))
    assert {(cell.allowed, cell.specification, cell.wrong) for cell in taken.cells} == {(False, "either", False)}


def test_an_error_about_an_allowed_packet_passes_a_closed_egress(place: Place) -> None:
    """A port where nobody listens, of a pod that may send nothing: its ICMP error is related to what it got."""
    shut = policy("{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}")
    assert place.wrong(Step((shut,), "y/mon>x/web", "x/web>y/mon")) == []
    for family in place.families():
        result = place.lab.probe("pod/y/mon", "pod/x/web", CLOSED_PORT, "udp", family=family).result
        assert result.verdict == "refused"
        assert result.reporter in place.addresses().by_place["x/web"]


def test_a_terminating_pod_stays_subject_and_peer_until_it_has_ended_and_then_leaves_all_sets(place: Place) -> None:
    leaving = pod("x", "leaving", "n2", {"app": "leaving", "role": "friend"}, ("",) * 5)
    leaving["spec"]["containers"][0]["lifecycle"] = {"preStop": {"sleep": {"seconds": 25}}}
    friends = "[{from: [{podSelector: {matchLabels: {role: friend}}}]}]"
    rules = (
        policy(f"{{podSelector: {{matchLabels: {{app: web}}}}, ingress: {friends}}}"),
        policy(f"{{podSelector: {{matchLabels: {{app: leaving}}}}, ingress: {friends}}}", name="q"),
    )
    verdicts = ("x/leaving>x/web", "y/mon>x/leaving z/far>x/leaving x/db>x/web")
    assert place.wrong(Step((*rules, leaving), *verdicts)) == []
    addresses = place.addresses().by_place["x/leaving"]
    assert _mentioned(place.lab, addresses) == list(addresses)
    place.lab.delete("pod", "leaving", "x")
    assert [one.terminating for one in place.lab.cluster().pods if one.key == "x/leaving"] == [True]
    assert place.answers(*verdicts) == []
    place.lab.delete("pod", "leaving", "x", grace_period=0)
    del place.site.objects["Pod", "x", "leaving"]
    assert _mentioned(place.lab, addresses) == []


def _mentioned(lab: Lab, addresses: Sequence[str]) -> list[str]:
    """Those of the addresses that any node's sets or rules hold."""
    script = "ipset save; iptables-save -t filter; ip6tables-save -t filter; nft list ruleset"
    printed = "".join(lab.run(node, "sh", "-c", script).stdout for node in NODES)
    return [one for one in addresses if re.search(rf"(?<![\w.:]){re.escape(one)}(?![\w.:])", printed)]


@pytest.mark.parametrize("place", ["calico"], indirect=True)
def test_an_address_that_comes_back_inherits_nothing(place: Place) -> None:
    """Calico gives a pod the address that it asks for; elsewhere one comes back when hundreds of others are used up."""
    friends = policy(
        "{podSelector: {matchLabels: {app: web}}, "
        "ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: friend}}}]}]}"
    )
    old = pod("z", "old", "n2", {"role": "friend"}, ("",) * 5)
    assert place.wrong(Step((friends, old), "z/old>x/web", "z/far>x/web")) == []
    address = place.addresses().by_place["z/old"]
    heir = pod("z", "heir", "n2", {}, ("",) * 5)
    heir["metadata"]["annotations"] = {"cni.projectcalico.org/ipAddrs": str(list(address)).replace("'", '"')}
    assert place.wrong(Step((friends,), "", "z/far>x/web")) == []
    assert place.wrong(Step((friends, heir), "", "z/heir>x/web")) == []
    assert place.addresses().by_place["z/heir"] == address


# kindnetd judges both ends on the node that a connection meets first, and keeps records: test_policy_kindnet.py
@pytest.mark.parametrize("place", [style for style in enforcing() if style != "kindnet"], indirect=True)
def test_a_denied_packet_is_counted_where_its_pod_is(place: Place) -> None:
    """Egress on the node of the source, ingress on that of the destination, as the rules' counters tell."""
    web = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}"
    db = "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}"
    for rule, where, elsewhere in ((web, "n1", "n2"), (db, "n2", "n1")):
        place.site.become(Step((policy(rule),)).state(place.addresses()))
        for family in place.families():
            before = {node: _denials(place.lab, node, family) for node in NODES}
            assert place.site.faults(list(questions("x/web>x/db", (family,))), [False]) == []
            after = {node: _denials(place.lab, node, family) for node in NODES}
            assert after[where] > before[where], (rule, family)
            assert after[elsewhere] == before[elsewhere], (rule, family)


def _denials(lab: Lab, node: str, family: Family) -> int:
    """The packets that a node's rules have dropped or rejected."""
    program = "iptables" if family == 4 else "ip6tables"
    script = f"{program} -t filter -nvxL; nft list ruleset {'ip' if family == 4 else 'ip6'}"
    printed = lab.run(node, "sh", "-c", script).stdout
    dropping = r"^\s*(\d+)\s+\d+\s+(?:DROP|REJECT)\s|counter packets (\d+) bytes \d+ (?:drop|reject)\b"
    return sum(int(found[1] or found[2]) for found in re.finditer(dropping, printed, re.MULTILINE))


def test_a_refused_policy_leaves_the_one_before_in_force(place: Place) -> None:
    held = policy(
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}"
    )
    assert place.wrong(Step((held,), "x/db>x/web", "y/mon>x/web")) == []
    worse = deepcopy(held)
    worse["spec"]["ingress"] = [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 80, "endPort": 79}]}]
    with pytest.raises(ManifestError, match="endPort"):
        place.lab.apply(worse)
    assert place.answers("x/db>x/web", "y/mon>x/web") == []
    assert place.lab.verify() == []


def _has_sets(style: str) -> bool:
    enforcer = load_style(style).enforcer("spec")
    return enforcer is not None and "ipset" in enforcer.requires


@pytest.mark.parametrize("place", [style for style in enforcing() if _has_sets(style)], indirect=True)
def test_rules_that_the_kernel_refuses_leave_everything_closed_that_was_and_are_told(place: Place) -> None:
    """A set of that name, and of another type, is there already."""
    closed = policy("{podSelector: {matchLabels: {app: web}}}", name="closed")
    opening = policy(
        "{podSelector: {matchLabels: {app: web}}, "
        "ingress: [{from: [{namespaceSelector: {matchLabels: {team: y}}, podSelector: {matchLabels: {app: mon}}}]}]}"
    )
    assert place.wrong(Step((closed,), "x/web>y/mon", "y/mon>x/web x/db>x/web")) == []
    before = _sets(place.lab)
    assert place.wrong(Step((closed, opening), "y/mon>x/web", "x/db>x/web")) == []
    name = min(_sets(place.lab) - before)
    assert place.wrong(Step((closed,), "", "y/mon>x/web")) == []
    place.lab.run("n1", "ipset", "create", name, "bitmap:port", "range", "0-9")
    with pytest.raises(ApplyError, match=re.escape(name)):
        place.lab.apply(opening)
    assert place.answers("x/web>y/mon", "y/mon>x/web x/db>x/web") == []
    place.lab.run("n1", "ipset", "destroy", name)
    assert place.lab.verify() == []
    assert place.wrong(Step((closed, opening), "y/mon>x/web", "x/db>x/web")) == []


def _sets(lab: Lab) -> set[str]:
    return set(lab.run("n1", "ipset", "list", "-n").stdout.split())
