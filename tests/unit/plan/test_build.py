"""emulator.plan.build: fragments, and which of them a change leaves alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import pytest

from emulator.cluster.model import Cluster, Node
from emulator.plan.build import build, duplicates
from emulator.plan.model import Bridge, File, Namespace, Offloads, Plan, Veth, Vxlan

STYLES = ("flannel", "flannel:host-gw", "flannel:directrouting", "calico")


@pytest.mark.parametrize("spec", STYLES)
def test_there_is_a_fragment_for_the_underlay_each_node_and_each_pod(planned: Any, spec: str) -> None:
    made = planned(spec)
    pods = [f"pod/{pod.key}" for pod in made.cluster.pods]
    assert list(made.plan.fragments) == ["underlay", "node/n1", "node/n2", "node/n3", *pods]


@pytest.mark.parametrize("spec", STYLES)
def test_no_two_objects_claim_one_key(planned: Any, spec: str) -> None:
    assert duplicates(planned(spec, wire_accurate=True).plan) == []


def test_two_objects_of_one_key_are_found_and_both_named() -> None:
    one, other = (Bridge(ns="node/n1", name="cni0", mtu=mtu) for mtu in (1500, 1400))
    assert duplicates(Plan(style="", topology="", fragments={"a": (one,), "b": (other,)})) == [(one, other)]


def test_the_far_end_of_a_veth_counts_as_a_device() -> None:
    one, other = (Veth(ns=f"pod/d/{name}", name="eth0", mtu=1500, peer_ns="node/n1", peer="veth1") for name in "ab")
    assert duplicates(Plan(style="", topology="", fragments={"a": (one, other)})) == [(one, other)]


@pytest.mark.parametrize("spec", STYLES)
def test_the_same_cluster_gives_the_same_plan(planned: Any, spec: str) -> None:
    assert planned(spec).plan == planned(spec).plan


def test_an_unchanged_pod_keeps_its_very_fragment(planned: Any, manifest: Any) -> None:
    before = planned("flannel")
    after = before.then(objects=(manifest("extra", node="n2"),))
    assert set(after.plan.fragments) - set(before.plan.fragments) == {"pod/default/extra"}
    remade = [key for key, old in before.plan.fragments.items() if after.plan.fragments[key] is not old]
    assert remade == ["node/n2"]


def test_a_rebuilt_plan_equals_one_built_from_scratch(planned: Any, manifest: Any) -> None:
    for spec in STYLES:
        before = planned(spec)
        after = before.then(objects=(manifest("extra", node="n2"),))
        assert after.plan == build(after.cluster, after.style)
        shrunk = after.then()
        assert shrunk.plan == build(shrunk.cluster, shrunk.style)


def test_pods_are_planned_anew_when_their_node_changes(planned: Any) -> None:
    for spec in STYLES:
        made = planned(spec)
        smaller = msgspec.structs.replace(made.cluster.nodes[0], mtu=1400)
        cluster = msgspec.structs.replace(made.cluster, nodes=(smaller, *made.cluster.nodes[1:]))
        assert build(cluster, made.style, previous=(made.cluster, made.plan)) == build(cluster, made.style)


def test_nothing_is_reused_from_a_plan_of_another_accuracy(planned: Any) -> None:
    made = planned("flannel")
    accurate = build(made.cluster, made.style, wire_accurate=True, previous=(made.cluster, made.plan))
    assert any(isinstance(item, Offloads) for item in accurate)


def test_wire_accurate_switches_off_the_offloads_of_every_device(planned: Any) -> None:
    made = planned("flannel", wire_accurate=True)
    devices = {(item.ns, item.name) for kind in (Veth, Bridge, Vxlan) for item in made.of(kind)}
    devices |= {(item.peer_ns, item.peer) for item in made.of(Veth)}
    assert {(item.ns, item.device) for item in made.of(Offloads)} == devices


def test_a_pod_on_the_hosts_network_has_no_namespace(planned: Any, manifest: Any) -> None:
    agent = manifest("agent")
    agent["spec"]["hostNetwork"] = True
    made = planned("flannel", objects=(agent,))
    assert "pod/default/agent" not in {item.ns for item in made.of(Namespace)}


class Refusing:
    """An enforcer that has one file in each node, and one of the style's own in another form."""

    def __init__(self, kept: Collection[str] = ()) -> None:
        self.kept = set(kept)
        self.asked: list[str] = []

    def node(self, cluster: Cluster, node: Node) -> tuple[File, ...]:
        self.asked.append(node.name)
        return (File(ns=node.ns, path="/etc/policies", content=""), File(ns=node.ns, path=CONFLIST, content="policed"))

    def keeps(self, node: Node) -> bool:
        return node.name in self.kept


CONFLIST = "/etc/cni/net.d/10-flannel.conflist"


def test_what_an_enforcer_makes_takes_the_place_of_the_styles_own(planned: Any) -> None:
    made = planned("flannel")
    plan = build(made.cluster, made.style, enforcer=Refusing())
    assert duplicates(plan) == []
    (found,) = [item for item in plan if isinstance(item, File) and item.path == CONFLIST and item.ns == "node/n1"]
    assert found.content == "policed"


def test_only_nodes_whose_policies_changed_are_planned_anew(planned: Any) -> None:
    made = planned("flannel")
    first = build(made.cluster, made.style, enforcer=Refusing())
    enforcer = Refusing({"n1", "n3"})
    second = build(made.cluster, made.style, enforcer=enforcer, previous=(made.cluster, first))
    assert enforcer.asked == ["n2"]
    assert second.fragments["policy/n1"] is first.fragments["policy/n1"]
    assert second.fragments["node/n1"] is first.fragments["node/n1"]
    assert second == first
