"""What happens to pods by itself: readiness, graceful ends and rollouts, on paper."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from emulator.cluster.addons import kubernetes_service
from emulator.cluster.topology import load_topology
from emulator.errors import ApplyError, NotFound
from emulator.lab.api import Api
from emulator.lab.runtime import Runtime
from emulator.lab.store import Ref
from emulator.lab.timers import Timers

PATIENCE = 10.0  # seconds for what takes a few milliseconds


def workload(kind: str = "Deployment", *, version: int = 1, replicas: int = 1, **container: Any) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": f"web:{version}", **container}]},
    }
    body = {"selector": {"matchLabels": {"app": "web"}}, "template": template, "replicas": replicas}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web"}, "spec": body}


def service(name: str = "web") -> dict[str, Any]:
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


LINGERING: dict[str, Any] = {"lifecycle": {"preStop": {"sleep": {"seconds": 3600}}}, "args": ["--delay-shutdown=3600"]}


@pytest.fixture
def runtime(make_runtime: Callable[[str], Runtime]) -> Any:
    made = make_runtime("flannel")
    made.start([])
    yield made
    made.close()


def web(runtime: Runtime) -> list[dict[str, Any]]:
    return [pod for pod in runtime.store.select("", "Pod", "default") if pod["metadata"]["labels"].get("app") == "web"]


def ask(runtime: Runtime, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> Any:
    return Api(runtime, []).handle(method, path, body, {"Content-Type": content_type})


def test_timers_fire_in_order_and_not_once_cancelled() -> None:
    fired: list[str] = []
    done = threading.Event()

    def fire(keys: list[str]) -> None:
        fired.extend(keys)
        if "last" in fired:
            done.set()

    timers: Timers[str] = Timers(fire)
    timers.set("last", 0.5)  # far enough from "moved" for a machine that stops in between
    timers.set("never", 0.01)
    timers.set("moved", 3600)
    timers.set("moved", 0.02)
    timers.set("first", 0)
    timers.cancel("never")
    assert done.wait(PATIENCE)
    assert fired == ["first", "moved", "last"]
    timers.set("late", 0.01)
    timers.close()
    time.sleep(0.05)
    assert "late" not in fired


def test_delete_options_say_how_long_a_pod_may_take(runtime: Runtime) -> None:
    runtime.apply([workload(**LINGERING)])
    (pod,) = web(runtime)
    path = f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}"
    assert ask(runtime, "DELETE", f"{path}?gracePeriodSeconds=-1")[0] == 422
    assert ask(runtime, "DELETE", path, b'{"gracePeriodSeconds": "soon"}')[0] == 422
    assert ask(runtime, "DELETE", path)[0] == 200
    grace = {one["metadata"]["name"]: one["metadata"].get("deletionGracePeriodSeconds") for one in web(runtime)}
    assert sorted(grace.values(), key=str) == [30, None]
    assert grace[pod["metadata"]["name"]] == 30
    assert ask(runtime, "DELETE", path, b'{"gracePeriodSeconds": 0}')[0] == 200
    assert [one["metadata"].get("deletionGracePeriodSeconds") for one in web(runtime)] == [None]


def test_a_terminating_pod_keeps_its_identity(runtime: Runtime) -> None:
    runtime.apply([workload("StatefulSet", **LINGERING)])
    ref = Ref("", "Pod", "default", "web-0")
    before = runtime.store.get(ref)
    assert before is not None
    version = runtime.store.version
    runtime.delete([ref])
    after = runtime.store.get(ref)
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    types = [event.type for event in runtime.store.watch(version, time.monotonic()) if event.ref == ref]
    assert types == ["MODIFIED"]
    runtime.delete([ref], grace=0)
    types = [event.type for event in runtime.store.watch(version, time.monotonic()) if event.ref == ref]
    assert types == ["MODIFIED", "DELETED", "ADDED"]


def test_the_status_of_a_pod_is_patched(runtime: Runtime) -> None:
    runtime.apply([workload("StatefulSet"), service()])
    path = "/api/v1/namespaces/default/pods/web-0/status"
    patch = b'{"status": {"conditions": [{"type": "Ready", "status": "False"}]}}'
    code, pod = ask(runtime, "PATCH", path, patch, "application/strategic-merge-patch+json")
    assert code == 200
    assert {one["type"]: one["status"] for one in pod["status"]["conditions"]}["Ready"] == "False"
    (part,) = [one for one in runtime.current.slices if one.service == "web"]
    assert not part.endpoints[0].ready
    assert ask(runtime, "PATCH", path, b"[]", "application/merge-patch+json")[0] == 400
    assert ask(runtime, "POST", path, patch)[0] == 405
    assert ask(runtime, "PUT", "/api/v1/namespaces/default/pods/web-9/status", b"{}")[0] == 404
    assert ask(runtime, "PUT", "/apis/apps/v1/namespaces/default/statefulsets/web/status", b"{}")[0] == 403


def test_workloads_have_their_numbers(runtime: Runtime) -> None:
    runtime.apply([workload(replicas=2)])
    (deployment,) = runtime.store.select("apps", "Deployment")
    assert deployment["status"] == {"replicas": 2, "readyReplicas": 2, "availableReplicas": 2, "updatedReplicas": 2}
    runtime.set_ready({f"default/{web(runtime)[0]['metadata']['name']}": False})
    (deployment,) = runtime.store.select("apps", "Deployment")
    assert deployment["status"]["readyReplicas"] == 1
    assert deployment["status"]["unavailableReplicas"] == 1
    with pytest.raises(NotFound):
        runtime.progress_of(Ref("apps", "Deployment", "default", "other"))


def test_a_step_that_the_kernel_refuses_stops_the_rollout_and_is_told(runtime: Runtime, machinery: Any) -> None:
    runtime.apply([workload(replicas=1)])
    reach = machinery.reach

    def refuse_the_second(*args: Any) -> None:
        reach(*args)
        machinery.refusal = ApplyError("no more of this")

    machinery.reach = refuse_the_second
    runtime.apply([workload(replicas=1, version=2)])
    assert "the rollout of default/Deployment/web does not go on: no more of this" in runtime.stuck
    assert len(web(runtime)) == 2
    machinery.refusal, machinery.reach = None, reach
    runtime.apply([service()])
    assert runtime.stuck == ""
    assert [pod["spec"]["containers"][0]["image"] for pod in web(runtime)] == ["web:2"]


def test_addons_come_with_the_first_service_and_the_users_own_stay(make_runtime: Callable[..., Runtime]) -> None:
    addons = [kubernetes_service(load_topology("three-nodes")), workload()]
    runtime = make_runtime("flannel", addons=addons)
    assert runtime.store.select("", "Service") == []
    runtime.apply([service()])
    assert [one["metadata"]["name"] for one in runtime.store.select("", "Service")] == ["kubernetes", "web"]
    assert len(web(runtime)) == 1
    runtime.delete([Ref("apps", "Deployment", "default", "web"), Ref("", "Service", "default", "kubernetes")])
    assert web(runtime) == [], "what an administrator deletes stays deleted"
    assert runtime.store.get(Ref("", "Service", "default", "kubernetes")) is not None, "but not the API server's own"
