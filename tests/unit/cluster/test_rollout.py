"""How pods become ready, end and roll: steps of the assembly, nobody's clock involved."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import HostLocal
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster, Pod
from emulator.cluster.podspec import RollingUpdate, Strategy
from emulator.cluster.rollout import Population, next_step, share
from emulator.cluster.topology import parse_topology
from emulator.cluster.workload_status import progress, workload_numbers
from emulator.errors import ManifestError

TOPOLOGY = parse_topology(
    """
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}, {name: n3, switch: s1}]
routers: [{name: tor, switch: s1}]
""",
    "t.yaml",
)
SLOW = {"readinessProbe": {"httpGet": {"port": 80}, "initialDelaySeconds": 5}}
LINGERING = {"lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}


def workload(kind: str, *, version: int = 1, spec: Any = None, container: Any = None, **fields: Any) -> dict[str, Any]:
    one = {"name": "c", "image": f"web:{version}", **(container or {})}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [one], **(spec or {})}}
    body = {"selector": {"matchLabels": {"app": "web"}}, "template": template, **fields}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web"}, "spec": body}


class Steps:
    """One assembly after another."""

    def __init__(self) -> None:
        self.ipam = HostLocal(TOPOLOGY.pod_cidrs)
        self.cluster: Cluster | None = None

    def step(self, *objects: Any, **news: Any) -> list[Pod]:
        self.given = validate_objects(objects)
        return self.again(**news)

    def again(self, **news: Any) -> list[Pod]:
        self.cluster = assemble(TOPOLOGY, self.given, self.ipam, self.cluster, **news)
        return list(self.cluster.pods)

    def settle(self, *objects: Any) -> list[Pod]:
        pods = self.step(*objects)
        for _ in range(50):
            if not self.cluster.rolling:  # type: ignore[union-attr]
                return pods
            pods = self.again()
        raise AssertionError(self.cluster.rolling)  # type: ignore[union-attr]


def versions(pods: list[Pod]) -> list[str]:
    return sorted(pod.containers[0].image[4:] + ("x" if pod.terminating else "") for pod in pods)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.mark.parametrize(
    ("value", "up", "number"),
    [(3, True, 3), ("25%", True, 3), ("25%", False, 2), ("0%", True, 0), (None, True, 0), ("100%", False, 10)],
)
def test_shares(value: Any, up: bool, number: int) -> None:
    assert share(value, 10, up=up) == number


def rolling(surge: Any, unavailable: Any) -> Strategy:
    return Strategy("RollingUpdate", RollingUpdate(max_surge=surge, max_unavailable=unavailable))


@pytest.mark.parametrize(
    ("desired", "strategy", "sizes", "available", "expected"),
    [
        (4, Strategy(), {}, {}, {"new": 4}),
        (4, Strategy(), {"old": 4}, {"old": 4}, {"old": 3, "new": 1}),
        (4, Strategy(), {"old": 3, "new": 1}, {"old": 3, "new": 0}, {"old": 3, "new": 2}),
        (4, Strategy(), {"old": 3, "new": 2}, {"old": 3, "new": 2}, {"old": 1, "new": 2}),
        (1, Strategy(), {"old": 1}, {"old": 1}, {"old": 1, "new": 1}),
        (1, Strategy(), {"old": 1, "new": 1}, {"old": 1, "new": 1}, {"old": 0, "new": 1}),
        (3, rolling(0, 1), {"old": 3}, {"old": 3}, {"old": 2, "new": 0}),
        (3, rolling(0, 0), {"old": 3}, {"old": 3}, {"old": 2, "new": 0}),  # else nothing could move
        (3, rolling(1, 0), {"old": 3}, {"old": 3}, {"old": 3, "new": 1}),
        (3, rolling(1, 0), {"old": 3, "new": 1}, {"old": 3, "new": 0}, {"old": 3, "new": 1}),
        (3, rolling(1, 0), {"old": 3}, {"old": 2}, {"old": 3, "new": 1}),
        (3, rolling(1, 1), {"old": 3}, {"old": 2}, {"old": 2, "new": 1}),  # what does not work may go
        (2, Strategy(), {"old": 0, "new": 4}, {"new": 4}, {"old": 0, "new": 2}),
        (0, Strategy(), {"old": 3}, {"old": 3}, {"old": 0, "new": 0}),
        (3, Strategy("Recreate"), {"old": 3}, {"old": 3}, {"old": 0, "new": 0}),
    ],
)
def test_the_next_step_of_a_deployment(
    desired: int, strategy: Strategy, sizes: dict[str, int], available: dict[str, int], expected: dict[str, int]
) -> None:
    pods = {name: Population(number) for name, number in available.items()}
    assert next_step(desired, strategy, "new", sizes, pods) == expected


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 12),
    st.one_of(st.integers(0, 5), st.sampled_from(["0%", "25%", "100%"])),
    st.one_of(st.integers(0, 5), st.sampled_from(["0%", "25%", "100%"])),
    st.integers(0, 12),
    st.data(),
)
def test_a_rollout_keeps_its_promises_and_ends(
    desired: int, surge: Any, unavailable: Any, start: int, data: st.DataObject
) -> None:
    strategy = rolling(surge, unavailable)
    least = desired - max(min(share(unavailable, desired, up=False), desired), not share(surge, desired, up=True))
    most = max(desired + share(surge, desired, up=True), start)
    sizes, ready = {"old": start}, {"old": start}
    for _ in range(200):
        before = sum(ready.values())
        following = next_step(desired, strategy, "new", sizes, {name: Population(n) for name, n in ready.items()})
        assert sum(following.values()) <= most
        ready = {name: min(size, ready.get(name, 0)) for name, size in following.items()}
        assert sum(ready.values()) >= min(least, before)
        if following == sizes and ready == sizes:
            break
        sizes = following
        late = sizes["new"] - ready.get("new", 0)  # some of the new ones become ready, at least one
        ready["new"] = ready.get("new", 0) + (data.draw(st.integers(1, late)) if late else 0)
    assert sizes == {"old": 0, "new": desired}


def test_a_deployment_rolls_in_steps_that_wait_for_readiness(steps: Steps) -> None:
    steps.step(workload("Deployment", replicas=4, container=SLOW))
    assert not any(pod.ready for pod in steps.again())
    steps.again(readiness={pod.key: True for pod in steps.again()})
    pods = steps.step(workload("Deployment", replicas=4, version=2, container=SLOW))
    assert versions(pods) == ["1", "1", "1", "2"]
    pods = steps.again()
    assert versions(pods) == ["1", "1", "1", "2", "2"]
    assert steps.again() == pods, "and now it waits"
    new = {pod.key: True for pod in pods if pod.containers[0].image == "web:2"}
    assert versions(steps.again(readiness=new)) == ["1", "2", "2"]


def test_an_old_pod_that_dies_in_a_rollout_comes_back_as_it_was(steps: Steps) -> None:
    steps.settle(workload("Deployment", replicas=4))
    pods = steps.step(workload("Deployment", replicas=4, version=2, container=SLOW))
    old = next(pod for pod in pods if pod.containers[0].image == "web:1")
    pods = steps.again(gone=(old.key,))
    assert old.key not in {pod.key for pod in pods}
    assert versions(pods).count("1") == 3


def test_going_back_takes_the_old_replica_set_up_again(steps: Steps) -> None:
    first = steps.settle(workload("Deployment", replicas=4))
    steps.step(workload("Deployment", replicas=4, version=2, container=SLOW))
    back = steps.settle(workload("Deployment", replicas=4))
    assert versions(back) == ["1"] * 4
    assert len({pod.key for pod in first} & {pod.key for pod in back}) == 3


def test_a_paused_deployment_does_not_roll_but_scales(steps: Steps) -> None:
    steps.settle(workload("Deployment", replicas=2))
    assert versions(steps.settle(workload("Deployment", replicas=3, version=2, paused=True))) == ["1"] * 3


def test_recreate_waits_for_the_last_old_pod(steps: Steps) -> None:
    recreate: dict[str, Any] = {"strategy": {"type": "Recreate"}, "replicas": 2}
    steps.settle(workload("Deployment", container=LINGERING, **recreate))
    pods = steps.step(workload("Deployment", version=2, **recreate))
    assert versions(pods) == ["1x", "1x"]
    assert versions(steps.again(ended=(pods[0].key,))) == ["1x"]
    assert versions(steps.again(ended=(pods[1].key,))) in (["2", "2"], [])
    assert versions(steps.again()) == ["2", "2"]


def test_what_has_to_be_ready_for_a_while_is_available_later(steps: Steps) -> None:
    (pod,) = steps.step(workload("Deployment", minReadySeconds=5))
    assert (pod.ready, pod.available) == (True, False)
    (pod,) = steps.again(available=(pod.key,))
    assert pod.available
    (pod,) = steps.again(readiness={pod.key: False})
    assert not pod.available


def test_a_stateful_set_rolls_from_its_end_one_by_one(steps: Steps) -> None:
    steps.settle(workload("StatefulSet", replicas=3))
    pods = steps.step(workload("StatefulSet", replicas=3, version=2, container=SLOW))
    assert [(pod.name, pod.containers[0].image) for pod in sorted(pods, key=lambda pod: pod.name)] == [
        ("web-0", "web:1"), ("web-1", "web:1"), ("web-2", "web:2")]  # fmt: skip
    assert versions(steps.again()) == ["1", "1", "2"]
    assert versions(steps.again(readiness={"default/web-2": True})) == ["1", "2", "2"]


def test_a_stateful_set_rolls_down_to_its_partition(steps: Steps) -> None:
    update: dict[str, Any] = {"updateStrategy": {"rollingUpdate": {"partition": 2}}}
    steps.settle(workload("StatefulSet", replicas=3, **update))
    assert versions(steps.settle(workload("StatefulSet", replicas=3, version=2, **update))) == ["1", "1", "2"]


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
def test_on_delete_leaves_it_to_whoever_deletes(steps: Steps, kind: str) -> None:
    update: dict[str, Any] = {"updateStrategy": {"type": "OnDelete"}}
    update |= {"replicas": 3} if kind == "StatefulSet" else {}
    first = steps.settle(workload(kind, **update))
    assert versions(steps.settle(workload(kind, version=2, **update))) == ["1", "1", "1"]
    assert versions(steps.again(gone=(first[0].key,))) == ["1", "1", "2"]


def test_ordered_pods_are_made_one_after_another_and_parallel_ones_at_once(steps: Steps) -> None:
    assert len(steps.step(workload("StatefulSet", replicas=3, container=SLOW))) == 1
    assert len(steps.again()) == 1
    assert len(steps.again(readiness={"default/web-0": True})) == 2
    parallel = workload("StatefulSet", replicas=3, container=SLOW, podManagementPolicy="Parallel")
    assert len(Steps().step(parallel)) == 3


def test_a_stateful_set_shrinks_from_its_end_one_by_one(steps: Steps) -> None:
    steps.settle(workload("StatefulSet", replicas=3))
    assert [pod.name for pod in steps.step(workload("StatefulSet", replicas=1))] == ["web-0", "web-1"]
    assert [pod.name for pod in steps.again()] == ["web-0"]


def test_a_daemon_set_has_one_node_without_it_at_a_time(steps: Steps) -> None:
    steps.settle(workload("DaemonSet"))
    pods = steps.step(workload("DaemonSet", version=2, container=SLOW))
    assert versions(pods) == ["1", "1", "2"]
    assert versions(steps.again()) == ["1", "1", "2"]
    new = next(pod.key for pod in pods if pod.containers[0].image == "web:2")
    assert versions(steps.again(readiness={new: True})) == ["1", "2", "2"]


def test_two_daemons_on_one_node_are_refused(steps: Steps) -> None:
    update: dict[str, Any] = {"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}
    with pytest.raises(ManifestError, match=r"spec.updateStrategy.rollingUpdate.maxSurge: two pods"):
        steps.step(workload("DaemonSet", **update))


def test_a_lingering_pod_keeps_name_and_address_until_it_has_ended(steps: Steps) -> None:
    (pod,) = steps.step(workload("Deployment", container=LINGERING))
    both = steps.again(gone=(pod.key,))
    assert [one.terminating for one in both] == [True, False]
    assert both[0].addresses == pod.addresses != both[1].addresses
    assert [one.key for one in steps.again(ended=(pod.key,))] == [both[1].key]


def test_a_daemon_s_successor_waits_for_its_node(steps: Steps) -> None:
    first = steps.settle(workload("DaemonSet", container=LINGERING))
    assert len(steps.again(gone=(first[0].key,))) == 3
    after = steps.again(ended=(first[0].key,))
    assert sorted(pod.node for pod in after) == ["n1", "n2", "n3"]
    assert not any(pod.terminating for pod in after)


def test_nobody_waits_for_a_node_that_is_down(steps: Steps) -> None:
    (pod,) = steps.step(workload("Deployment", container=LINGERING))
    assert not any(one.terminating for one in steps.again(gone=(pod.key,), down=(pod.node,)))


def test_a_smaller_replica_set_loses_what_is_not_ready_first(steps: Steps) -> None:
    pods = steps.settle(workload("Deployment", replicas=3))
    steps.again(readiness={pods[0].key: False})
    assert [pod.key for pod in steps.step(workload("Deployment", replicas=2))] == [pod.key for pod in pods[1:]]


@pytest.mark.parametrize(
    ("container", "spec", "seconds"),
    [
        ({}, {}, 0),
        (LINGERING, {}, 5),
        (LINGERING, {"terminationGracePeriodSeconds": 2}, 2),
        ({"lifecycle": {"preStop": {"exec": {"command": ["sleep", "7"]}}}}, {}, 7),
        ({"lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "sleep 3"]}}}}, {}, 3),
        ({"lifecycle": {"preStop": {"exec": {"command": ["nginx", "-s", "quit"]}}}}, {}, 0),
        ({"args": ["netexec", "--delay-shutdown=9"]}, {}, 9),
        ({"args": ["netexec", "--delay-shutdown=90"], **LINGERING}, {}, 30),
        ({"args": ["netexec", "--delay-shutdown", "4"], **LINGERING}, {}, 9),
    ],
    ids=str,
)
def test_how_long_a_pod_goes_on(steps: Steps, container: Any, spec: Any, seconds: float) -> None:
    (pod,) = steps.step(workload("Deployment", container=container, spec=spec))
    assert pod.grace == seconds


def test_what_rollout_status_says(steps: Steps) -> None:
    manifest = workload("Deployment", replicas=4, version=2, container=SLOW)
    steps.settle(workload("Deployment", replicas=4))

    def said() -> tuple[bool, str]:
        assert steps.cluster is not None
        return progress(steps.given[0], workload_numbers(steps.cluster, steps.given[0]))

    assert said() == (True, 'deployment "web" successfully rolled out')
    steps.step(manifest)
    waiting = 'Waiting for deployment "web" rollout to finish:'
    assert said() == (False, f"{waiting} 1 out of 4 new replicas have been updated...")
    for _ in range(20):
        pods = steps.again()
        if versions(pods).count("2") == 4:
            break
        steps.again(readiness={pod.key: True for pod in pods})
    old = versions(pods).count("1")
    text = f"{old} old replicas are pending termination..." if old else "of 4 updated replicas are available..."
    assert text in said()[1]
    for _ in range(5):
        steps.again(readiness={pod.key: True for pod in steps.again()})
    assert said() == (True, 'deployment "web" successfully rolled out')
