"""One change after the other, each of them whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from emulator.errors import ApplyError, ManifestError, NotFound, UserError
from emulator.lab.admission import Conflict, Forbidden
from emulator.lab.runtime import Runtime
from emulator.lab.store import Ref, ref_of


def pod(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "x", "ports": [{"containerPort": 80}]}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}


def namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def deployment(name: str, replicas: int, ns: str = "default") -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": pod("x")["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": ns},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


def pod_ref(name: str, ns: str = "default") -> Ref:
    return Ref("", "Pod", ns, name)


def state(runtime: Runtime) -> tuple[Any, ...]:
    """Everything that a failed change must not touch."""
    return runtime.cluster, runtime.plan, runtime.store.version, runtime.store.all(), runtime.down_nodes


@pytest.mark.parametrize(
    "error", [ApplyError("no buffer space"), OSError(5, "input/output error"), RuntimeError("a bug")]
)
def test_change_that_the_kernel_refuses_leaves_cluster_plan_and_store_as_they_were(
    runtime: Runtime, machinery: Any, error: Exception
) -> None:
    before = state(runtime)
    machinery.refusal = error
    with pytest.raises(type(error)):
        runtime.apply([pod("web")])
    assert state(runtime) == before


def test_addresses_of_a_refused_change_are_free_again(runtime: Runtime, machinery: Any) -> None:
    machinery.refusal = ApplyError("no")
    with pytest.raises(ApplyError):
        runtime.apply([pod("web", nodeName="n1")])
    machinery.refusal = None
    runtime.apply([pod("web", nodeName="n1")])
    assert runtime.current.pods[-1].addresses == ("10.244.1.3",)  # the next one after n1-p1's


def test_lab_that_could_not_be_undone_refuses_every_change_and_says_why(runtime: Runtime, machinery: Any) -> None:
    error = ApplyError("half-wired")
    error.broken = True  # type: ignore[attr-defined]
    machinery.refusal = error
    with pytest.raises(ApplyError):
        runtime.apply([pod("web")])
    machinery.refusal = None
    for change in (
        lambda: runtime.apply([pod("web")]),
        lambda: runtime.delete([pod_ref("n1-p1")]),
        lambda: runtime.crash(["n1"]),
        lambda: runtime.plug("n1", "eth0", up=False),
    ):
        with pytest.raises(UserError, match="broken: half-wired"):
            change()


def test_manifests_are_applied_all_or_none(runtime: Runtime) -> None:
    before = state(runtime)
    with pytest.raises(ManifestError):
        runtime.apply([pod("good"), pod("Bad_Name")])
    assert state(runtime) == before


def test_more_pods_than_a_node_takes_are_all_refused(runtime: Runtime) -> None:
    before = state(runtime)
    with pytest.raises(ManifestError, match="Too many pods"):
        runtime.apply([pod(f"p{number}", nodeName="n1") for number in range(300)])
    assert state(runtime) == before


def test_generated_names_of_thousands_of_pods_do_not_collide(runtime: Runtime) -> None:
    with pytest.raises(ManifestError, match="Too many pods"):  # and not "already exists"
        runtime.apply([deployment("many", 3000)])


def test_pod_of_the_topology_that_is_deleted_comes_back_as_another(runtime: Runtime) -> None:
    old = runtime.store.get(pod_ref("n1-p1"))
    version = runtime.store.version
    runtime.delete([pod_ref("n1-p1")])
    new = runtime.store.get(pod_ref("n1-p1"))
    assert old is not None
    assert new is not None
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["status"]["podIP"] != old["status"]["podIP"]
    events = [(event.type, event.ref.name) for event in runtime.store.watch(version, time.monotonic())]
    assert events == [("DELETED", "n1-p1"), ("ADDED", "n1-p1")]


def test_pod_of_a_deployment_that_is_deleted_is_replaced_under_another_name(runtime: Runtime) -> None:
    runtime.apply([deployment("web", 2)])
    first = {item.name for item in runtime.current.pods if item.owner.startswith("ReplicaSet/")}
    runtime.delete([pod_ref(min(first))])
    second = {item.name for item in runtime.current.pods if item.owner.startswith("ReplicaSet/")}
    assert len(second) == 2
    assert len(first & second) == 1


def test_namespace_takes_its_objects_and_pods_along(runtime: Runtime) -> None:
    runtime.apply([namespace("shop"), deployment("web", 2, "shop"), pod("cart", "shop")])
    runtime.delete([Ref("", "Namespace", "", "shop")])
    assert [obj["metadata"]["name"] for obj in runtime.store.all() if obj["metadata"].get("namespace") == "shop"] == []
    assert {item.namespace for item in runtime.current.pods} == {"default"}
    assert runtime.store.get(Ref("", "Namespace", "", "shop")) is None


def test_namespace_and_its_objects_may_be_named_in_any_order(runtime: Runtime) -> None:
    objects = [namespace("shop"), deployment("web", 1, "shop")]
    runtime.apply(objects)
    assert len(runtime.delete([ref_of(obj) for obj in objects])) == 2


@pytest.mark.parametrize("name", ["default", "kube-system"])
def test_initial_namespace_cannot_be_deleted(runtime: Runtime, name: str) -> None:
    with pytest.raises(Forbidden):
        runtime.delete([Ref("", "Namespace", "", name)])


def test_nodes_belong_to_the_topology(runtime: Runtime) -> None:
    with pytest.raises(Forbidden):
        runtime.delete([Ref("", "Node", "", "n1")])
    with pytest.raises(Forbidden):
        runtime.apply([{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9"}}])


def test_deletion_with_an_unknown_name_deletes_nothing(runtime: Runtime) -> None:
    runtime.apply([pod("web")])
    before = state(runtime)
    with pytest.raises(NotFound):
        runtime.delete([pod_ref("web"), pod_ref("nobody")])
    assert state(runtime) == before


def test_what_a_client_read_and_sends_back_changes_nothing(runtime: Runtime) -> None:
    runtime.apply([pod("web"), deployment("app", 1)])
    version = runtime.store.version
    for ref in (pod_ref("web"), Ref("apps", "Deployment", "default", "app")):
        held = runtime.store.get(ref)
        assert held is not None
        runtime.apply([held])
    assert runtime.store.version == version


def test_pod_keeps_its_identity_and_address_when_its_labels_change(runtime: Runtime) -> None:
    runtime.apply([pod("web")])
    before = runtime.store.get(pod_ref("web"))
    labelled = pod("web")
    labelled["metadata"]["labels"] = {"tier": "front"}
    (outcome,) = runtime.apply([labelled])
    after = runtime.store.get(pod_ref("web"))
    assert outcome.action == "configured"
    assert before is not None
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["podIP"] == before["status"]["podIP"]
    assert after["metadata"]["labels"] == {"tier": "front"}


def test_pod_says_who_serves_it(runtime: Runtime) -> None:
    real = pod("real")
    real["spec"]["containers"][0]["command"] = ["sh", "-c", "sleep 1"]
    runtime.apply([pod("web"), real])
    served = {}
    for name in ("web", "real"):
        held = runtime.store.get(pod_ref(name))
        assert held is not None
        served[name] = held["metadata"]["annotations"]["cnilab.dev/served-by"]
    assert served == {"web": "cnilab", "real": "sh"}


def test_owner_reference_names_the_uid_of_the_owner_that_is_there(runtime: Runtime) -> None:
    stateful = deployment("db", 1)
    stateful["kind"] = "StatefulSet"
    stateful["spec"]["serviceName"] = "db"
    runtime.apply([stateful])
    owner, owned = runtime.store.get(Ref("apps", "StatefulSet", "default", "db")), runtime.store.get(pod_ref("db-0"))
    assert owner is not None
    assert owned is not None
    assert owned["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]


# Updates


def test_update_from_an_old_version_is_a_conflict(runtime: Runtime) -> None:
    runtime.apply([pod("web")])
    with pytest.raises(Conflict):
        runtime.update(pod_ref("web"), lambda known: known or {}, "1")


def test_pod_made_from_a_template_cannot_be_updated_alone(runtime: Runtime) -> None:
    with pytest.raises(Forbidden, match="template"):
        runtime.update(pod_ref("n1-p1"), lambda known: known or {})


# Faults


def ready(runtime: Runtime, ref: Ref) -> str:
    held = runtime.store.get(ref)
    assert held is not None
    return next(str(item["status"]) for item in held["status"]["conditions"] if item["type"] == "Ready")


def test_crashed_node_is_not_ready_until_it_returns(runtime: Runtime) -> None:
    node = Ref("", "Node", "", "n2")
    runtime.crash(["n2"])
    assert (ready(runtime, node), ready(runtime, pod_ref("n2-p1"))) == ("Unknown", "False")
    assert ready(runtime, Ref("", "Node", "", "n1")) == "True"
    runtime.revive(["n2"])
    assert (ready(runtime, node), ready(runtime, pod_ref("n2-p1"))) == ("True", "True")


def test_node_that_crashes_leaves_the_plan_in_force_and_its_pods_are_not_served(
    runtime: Runtime, machinery: Any
) -> None:
    runtime.crash(["n2"])
    _, new, _ = machinery.reached[-1]
    assert "node/n2" not in new.plan.fragments
    assert [item.name for item in new.pods] == ["n1-p1"]
    assert "node/n2" not in {machine.ns for machine in new.machines}


def test_only_nodes_crash(runtime: Runtime) -> None:
    with pytest.raises(NotFound, match="no node 'tor'"):
        runtime.crash(["tor"])


def test_cable_is_pulled_at_its_far_end_and_remembered(runtime: Runtime, machinery: Any) -> None:
    runtime.plug("n1", "eth0", up=False)
    assert machinery.links == [("s1", "s1-n1", False)]
    assert runtime.unplugged == {("n1", "eth0")}
    runtime.plug("n1", "eth0", up=True)
    assert runtime.unplugged == frozenset()


def test_cable_of_a_node_that_is_down_cannot_be_plugged(runtime: Runtime) -> None:
    runtime.crash(["n1"])
    with pytest.raises(UserError, match="n1 is down"):
        runtime.plug("n1", "eth0", up=True)


# Routes of daemons


def awaited(machinery: Any) -> set[tuple[str, str]]:
    _, _, routes = machinery.reached[-1]
    return {(route.ns, route.destination) for route in routes}


@pytest.fixture
def calico(make_runtime: Callable[[str], Runtime]) -> Runtime:
    return make_runtime("calico")


def test_start_awaits_the_routes_of_all_nodes(calico: Runtime, machinery: Any) -> None:
    assert {ns for ns, _ in awaited(machinery)} >= {"node/n1", "node/n2"}


def test_change_within_a_block_awaits_nothing(calico: Runtime, machinery: Any) -> None:
    calico.apply([pod("web", nodeName="n1")])
    assert awaited(machinery) == set()


def test_new_block_is_awaited_where_it_must_arrive(calico: Runtime, machinery: Any) -> None:
    calico.apply([pod(f"p{number}", nodeName="n1") for number in range(70)])  # a block holds 64
    assert {ns for ns, _ in awaited(machinery)} >= {"node/n2"}


@pytest.mark.parametrize("how", ["crash", "unplug", "dead daemon"])
def test_routes_of_a_node_that_is_cut_off_are_not_awaited(calico: Runtime, machinery: Any, how: str) -> None:
    if how == "crash":
        calico.crash(["n1"])
    elif how == "unplug":
        calico.plug("n1", "eth0", up=False)
    else:
        machinery.dead = [{"place": "node/n1", "name": "bird", "state": "died"}]
    calico.apply([pod(f"p{number}", nodeName="n1") for number in range(70)])
    assert awaited(machinery) == set()
