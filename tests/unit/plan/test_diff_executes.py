"""emulator.plan.diff, executed on a model of the kernel: every step finds what it needs, and the end is the new plan.

The model knows what the applier relies on: nothing is added where its namespace, device or bridge is missing, nothing
twice, nothing is removed or replaced that is not there, and what stands on a namespace or device vanishes with it.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from emulator.plan.build import build
from emulator.plan.diff import Operation, diff, equivalent, sysctl_device
from emulator.plan.model import (
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    Daemon,
    FdbEntry,
    Impairment,
    Key,
    Namespace,
    Neighbour,
    Offloads,
    Plan,
    Route,
    Sysctl,
    Veth,
    Vxlan,
)


class Kernel:
    """What is there, by key."""

    def __init__(self) -> None:
        self.objects: dict[Key, AnyObject] = {}

    def devices(self) -> set[tuple[str, str]]:
        links = [item for item in self.objects.values() if isinstance(item, (Veth, Bridge, Vxlan))]
        return {(item.ns, item.name) for item in links} | {
            (item.peer_ns, item.peer) for item in links if isinstance(item, Veth)
        }

    def execute(self, steps: list[Operation]) -> None:
        for step in steps:
            key = step.subject.key
            if step.verb == "add":
                lingers = isinstance(step.subject, Sysctl)  # a parameter cannot be unset, and may be set again
                assert lingers or key not in self.objects, f"added twice: {step.subject}"
                self.check_needs(step.subject)
                self.objects[key] = step.subject
            elif step.verb == "replace":
                assert key in self.objects, f"replaced, and not there: {step.subject}"
                self.objects[key] = step.subject
            else:
                assert key in self.objects, f"removed, and not there: {step.subject}"
                del self.objects[key]
                self.collect()

    def check_needs(self, item: AnyObject) -> None:
        if isinstance(item, Namespace):
            return
        for ns in {item.ns, item.peer_ns if isinstance(item, Veth) else item.ns}:
            assert ("namespace", ns) in self.objects, f"no namespace for {item}"
        missing = needs(item) - self.devices()
        assert not missing, f"no device {missing} for {item}"

    def collect(self) -> None:
        """Drop what stands on something that is gone."""
        while True:
            devices = self.devices()
            orphans = [
                key
                for key, item in self.objects.items()
                if not isinstance(item, (Namespace, Daemon))
                and (
                    ("namespace", item.ns) not in self.objects
                    or (isinstance(item, Veth) and ("namespace", item.peer_ns) not in self.objects)
                    or needs(item) - devices
                )
            ]
            if not orphans:
                return
            for key in orphans:
                del self.objects[key]


def needs(item: AnyObject) -> set[tuple[str, str]]:
    """The devices without which an object cannot be."""
    if isinstance(item, BridgePort):
        return {(item.ns, item.device), (item.ns, item.bridge)}
    if isinstance(item, (Address, Neighbour, FdbEntry, Offloads, Impairment)):
        return {(item.ns, item.device)}
    if isinstance(item, Vxlan):
        return {(item.ns, item.underlay)}
    if isinstance(item, Route) and item.device:
        return {(item.ns, item.device)}
    if isinstance(item, Sysctl) and sysctl_device(item.name):
        return {(item.ns, sysctl_device(item.name))}
    return set()


def go(kernel: Kernel, old: Plan | None, new: Plan) -> None:
    kernel.execute(diff(old, new))
    wanted = {item.key: item for item in new if not (isinstance(item, Route) and item.learned)}
    have = {key: item for key, item in kernel.objects.items() if key in wanted or not isinstance(item, Sysctl)}
    assert have.keys() == wanted.keys()
    assert all(equivalent(item, wanted[key]) for key, item in have.items())


SPECS = ("flannel", "flannel:host-gw", "calico")
TOPOLOGIES = ("three-nodes", "dual-stack", "ipv6", "single-node", "racks")


@pytest.mark.parametrize(("old", "new"), [*permutations(SPECS, 2)])
def test_one_style_becomes_another(planned: Any, old: str, new: str) -> None:
    kernel, before, after = Kernel(), planned(old).plan, planned(new).plan
    go(kernel, None, before)
    go(kernel, before, after)
    go(kernel, after, before)


@pytest.mark.parametrize(("old", "new"), [*permutations(TOPOLOGIES, 2)])
def test_one_topology_becomes_another(planned: Any, old: str, new: str) -> None:
    kernel, before, after = Kernel(), planned("flannel", old).plan, planned("flannel", new).plan
    go(kernel, None, before)
    go(kernel, before, after)


@pytest.mark.parametrize("spec", SPECS)
def test_pods_come_and_go_and_come_back_elsewhere(planned: Any, manifest: Any, spec: str) -> None:
    kernel, state = Kernel(), planned(spec, wire_accurate=True)
    go(kernel, None, state.plan)
    for objects, gone in (
        ((manifest("a", "n1"), manifest("b", "n2")), ()),
        ((manifest("a", "n1"), manifest("b", "n2")), ("default/a",)),  # dies, and returns with another address
        ((manifest("a", "n3"), manifest("b", "n2")), ("default/a",)),  # returns on another node
        ((manifest("b", "n2"),), ()),
        ((), ()),
    ):
        following = state.then(objects=objects, gone=gone)
        go(kernel, state.plan, following.plan)
        state = following


def test_offloads_are_switched_off_and_on_again(planned: Any) -> None:
    made = planned("flannel")
    accurate = build(made.cluster, made.style, wire_accurate=True)
    kernel = Kernel()
    go(kernel, None, made.plan)
    go(kernel, made.plan, accurate)
    go(kernel, accurate, made.plan)
