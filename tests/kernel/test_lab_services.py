"""Services in a running lab: what the store shows of them, and how endpoints follow pods that come, go and roll."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator import Lab
from emulator.errors import ManifestError, NotFound, UserError
from emulator.kernel import registry
from tests.kernel.waiting import PATIENCE, eventually

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec")


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("labs")
    patch.setenv(registry.BASE_VARIABLE, str(path))
    yield path
    patch.undo()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("three-nodes", "flannel") as running:
        yield running


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    body = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def workload(kind: str = "Deployment", *, replicas: int = 2, version: str = "1", spec: Any = None, **more: Any) -> Any:
    container: dict[str, Any] = {"name": "c", "image": f"web:{version}", "ports": [{"containerPort": 8080}]}
    container |= (spec or {}).pop("container", {}) if spec else {}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container], **(spec or {})}}
    body = {"selector": {"matchLabels": {"app": "web"}}, "template": template, **more}
    body |= {} if kind == "DaemonSet" else {"replicas": replicas}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web"}, "spec": body}


def endpoints(lab: Lab, name: str = "web") -> dict[str, tuple[bool, bool, bool]]:
    """Of each pod: ready, serving, terminating."""
    slices = lab.get("endpointslices", selector=f"kubernetes.io/service-name={name}")
    return {
        one["targetRef"]["name"]: tuple(one["conditions"][word] for word in ("ready", "serving", "terminating"))
        for part in slices
        for one in part["endpoints"]
    }


def pods(lab: Lab) -> dict[str, str]:
    """The image of each pod of the workload."""
    found = lab.get("pods", selector="app=web")
    return {pod["metadata"]["name"]: pod["spec"]["containers"][0]["image"] for pod in found}


def test_the_first_service_brings_the_clusters_own(lab: Lab) -> None:
    assert lab.get("services", namespace="") == []
    lab.apply(service())
    (own,) = lab.get("services", "kubernetes")
    assert own["spec"]["clusterIP"] == "10.96.0.1"
    lab.delete("service", "kubernetes")
    assert lab.get("services", "kubernetes"), "the API server makes it again"


def test_a_service_is_shown_with_all_that_it_left_out(lab: Lab) -> None:
    lab.apply(service(type="NodePort", externalTrafficPolicy="Local"))
    (found,) = lab.get("services", "web")
    spec = found["spec"]
    assert re.fullmatch(r"10\.(9[6-9]|10\d|11[01])\.\d+\.\d+", spec["clusterIP"])
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")
    assert (spec["sessionAffinity"], spec["internalTrafficPolicy"]) == ("None", "Cluster")
    assert 30086 <= spec["ports"][0]["nodePort"] <= 32767
    assert found["status"] == {"loadBalancer": {}}


def test_a_service_keeps_its_addresses_for_life_and_gives_them_back(lab: Lab) -> None:
    lab.apply(service(type="NodePort"))
    before = lab.get("services", "web")[0]["spec"]
    assert lab.apply(service(type="NodePort"))[0]["action"] == "unchanged"
    lab.apply(service(type="LoadBalancer", ports=[{"port": 81}]))
    after = lab.get("services", "web")[0]["spec"]
    assert after["clusterIP"] == before["clusterIP"]
    assert after["ports"][0]["nodePort"] == before["ports"][0]["nodePort"]
    with pytest.raises(ManifestError, match="provided IP is already allocated"):
        lab.apply(service("other", clusterIP=before["clusterIP"]))
    with pytest.raises(ManifestError, match="provided port is already allocated"):
        lab.apply(service("other", type="NodePort", ports=[{"port": 1, "nodePort": after["ports"][0]["nodePort"]}]))
    lab.delete("service", "web")
    lab.apply(service("other", clusterIP=before["clusterIP"]))
    assert lab.get("services", "other")[0]["spec"]["clusterIP"] == before["clusterIP"]


def test_a_patch_of_the_type_alone_drops_what_only_the_old_type_had(lab: Lab) -> None:
    lab.apply(service(type="NodePort"))
    path = "/api/v1/namespaces/default/services/web"
    held = lab.client.call("GET", path)
    held["spec"]["type"] = "ClusterIP"
    after = lab.client.call("PUT", path, held)
    assert "nodePort" not in after["spec"]["ports"][0]
    assert after["spec"]["clusterIP"] == held["spec"]["clusterIP"]


def test_a_load_balancers_address_comes_by_the_status_and_stays(lab: Lab) -> None:
    lab.apply(service(type="LoadBalancer"))
    path = "/api/v1/namespaces/default/services/web"
    held = lab.client.call("GET", path)
    held["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.10", "ipMode": "Proxy"}]}}
    lab.client.call("PUT", f"{path}/status", held)
    lab.apply(service(type="LoadBalancer", ports=[{"port": 82}]))
    (balanced,) = [one for one in lab.cluster().services if one.name == "web"]
    assert [(one.address, one.proxy) for one in balanced.load_balancer] == [("192.0.2.10", True)]
    held["status"]["loadBalancer"]["ingress"][0]["ip"] = "nowhere"
    with pytest.raises(UserError, match=r"status.loadBalancer.ingress\[0\].ip: Invalid value"):
        lab.client.call("PUT", f"{path}/status", held)


def test_endpoints_are_shown_and_go_with_their_service(lab: Lab) -> None:
    lab.apply(workload(), service())
    addresses = {pod["status"]["podIP"] for pod in lab.get("pods", selector="app=web")}
    (slice_,) = lab.get("endpointslices", selector="kubernetes.io/service-name=web")
    assert {address for one in slice_["endpoints"] for address in one["addresses"]} == addresses
    assert slice_["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "endpointslice-controller.k8s.io"
    (old,) = lab.get("endpoints", "web")
    assert {one["ip"] for one in old["subsets"][0]["addresses"]} == addresses
    lab.delete("service", "web")
    assert lab.get("endpointslices", selector="kubernetes.io/service-name=web") == []
    assert [one for one in lab.get("endpoints") if one["metadata"]["name"] == "web"] == []


def test_readiness_decides_who_is_an_endpoint(lab: Lab) -> None:
    lab.apply(workload("StatefulSet"), service())
    lab.ready("web-1", value=False)
    assert endpoints(lab) == {"web-0": (True, True, False), "web-1": (False, False, False)}
    (pod,) = lab.get("pods", "web-1")
    assert {c["type"]: c["status"] for c in pod["status"]["conditions"]}["Ready"] == "False"
    assert not pod["status"]["containerStatuses"][0]["ready"]
    path = "/api/v1/namespaces/default/pods/web-1/status"
    pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    lab.client.call("PUT", path, pod)
    assert endpoints(lab)["web-1"] == (True, True, False)
    with pytest.raises(NotFound):
        lab.ready("web-9")


def test_a_pod_becomes_ready_after_its_probes_delay(lab: Lab) -> None:
    probe = {"httpGet": {"port": 8080}, "initialDelaySeconds": 1}
    started = time.monotonic()
    lab.apply(workload(spec={"container": {"readinessProbe": probe}}, replicas=1), service())
    assert [state[0] for state in endpoints(lab).values()] == [False]
    eventually(lambda: [state[0] for state in endpoints(lab).values()] == [True])
    assert time.monotonic() - started >= 1


def test_pods_of_a_node_that_is_down_are_no_endpoints(lab: Lab) -> None:
    lab.apply(workload("DaemonSet"), service())
    lab.fault("node-crash", "n2")
    nodes = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in lab.get("pods", selector="app=web")}
    assert {nodes[name] for name, state in endpoints(lab).items() if state[0]} == {"n1", "n3"}
    lab.fault("node-return", "n2")
    assert {nodes[name] for name, state in endpoints(lab).items() if state[0]} == {"n1", "n2", "n3"}


GRACE = {"container": {"lifecycle": {"preStop": {"sleep": {"seconds": 2}}}}}


def test_a_deleted_pod_serves_until_its_time_is_over_while_its_successor_is_there(lab: Lab) -> None:
    lab.apply(workload(spec=dict(GRACE), replicas=1), service())
    (name,) = pods(lab)
    lab.delete("pod", name)
    assert len(pods(lab)) == 2
    assert endpoints(lab)[name] == (False, True, True)
    (pod,) = lab.get("pods", name)
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 30
    assert pod["metadata"]["deletionTimestamp"]
    assert lab.probe("n1-p1", name, 8080, timeout=4.0).reached
    eventually(lambda: name not in pods(lab))
    assert list(endpoints(lab).values()) == [(True, True, False)]
    assert lab.verify() == []


def test_a_pod_that_takes_no_time_ends_at_once(lab: Lab) -> None:
    lab.apply(workload(replicas=1), service())
    (name,) = pods(lab)
    lab.delete("pod", name)
    assert name not in pods(lab)
    assert len(pods(lab)) == 1


@pytest.mark.parametrize("again", [False, True])
def test_grace_period_zero_ends_a_pod_at_once(lab: Lab, again: bool) -> None:
    lab.apply(workload(spec=dict(GRACE), replicas=1))
    (name,) = pods(lab)
    if again:
        lab.delete("pod", name)
    lab.delete("pod", name, grace_period=0)
    assert name not in pods(lab)
    assert len(pods(lab)) == 1
    assert lab.verify() == []


def test_a_stateful_pods_successor_waits_for_its_name(lab: Lab) -> None:
    lab.apply(workload("StatefulSet", spec=dict(GRACE), replicas=1), service())
    (before,) = lab.get("pods", "web-0")
    lab.delete("pod", "web-0")
    assert lab.get("pods", "web-0")[0]["metadata"]["uid"] == before["metadata"]["uid"]
    assert endpoints(lab) == {"web-0": (False, True, True)}
    eventually(lambda: endpoints(lab) == {"web-0": (True, True, False)})
    assert lab.get("pods", "web-0")[0]["metadata"]["uid"] != before["metadata"]["uid"]


def test_a_lone_pod_that_was_deleted_stays_until_its_time_is_over(lab: Lab) -> None:
    spec = workload(spec=dict(GRACE))["spec"]["template"]["spec"]
    lab.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alone"}, "spec": spec})
    lab.delete("pod", "alone")
    (pod,) = lab.get("pods", "alone")
    assert pod["metadata"]["deletionTimestamp"]
    eventually(lambda: "alone" not in [one["metadata"]["name"] for one in lab.get("pods")])


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
def test_a_rollout_of_pods_that_are_ready_at_once_is_over_when_apply_returns(lab: Lab, kind: str) -> None:
    lab.apply(workload(kind, replicas=4), service())
    lab.apply(workload(kind, replicas=4, version="2"))
    assert set(pods(lab).values()) == {"web:2"}
    assert lab.rollout(kind, "web")[0]
    assert endpoints(lab).keys() == pods(lab).keys()
    assert lab.verify() == []


def test_a_rollout_never_has_fewer_ready_pods_than_it_may(lab: Lab) -> None:
    probe = {"readinessProbe": {"httpGet": {"port": 8080}, "initialDelaySeconds": 1}}
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
    lab.apply(workload(replicas=3, spec={"container": probe}, strategy=strategy), service())
    lab.wait_rollout("deployment", "web", timeout=PATIENCE)
    ready: list[int] = []
    total: list[int] = []
    over = threading.Event()

    def watch() -> None:
        watcher = Lab.connect(lab.name)
        while not over.is_set():
            states = endpoints(watcher)
            ready.append(sum(state[0] for state in states.values()))
            total.append(len(states))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        lab.apply(workload(replicas=3, version="2", spec={"container": probe}, strategy=strategy))
        done, message = lab.rollout("deployment", "web")
        assert not done
        assert "Waiting for deployment" in message
        lab.wait_rollout("deployment", "web", timeout=PATIENCE)
    finally:
        over.set()
        thread.join()
    assert set(pods(lab).values()) == {"web:2"}
    assert min(ready) == 2
    assert max(total) <= 4


def test_recreate_ends_the_old_pods_before_it_makes_new_ones(lab: Lab) -> None:
    lab.apply(workload(replicas=2, spec=dict(GRACE), strategy={"type": "Recreate"}), service())
    lab.apply(workload(replicas=2, version="2", spec=dict(GRACE), strategy={"type": "Recreate"}))
    assert set(pods(lab).values()) == {"web:1"}
    assert set(endpoints(lab).values()) == {(False, True, True)}
    lab.wait_rollout("deployment", "web", timeout=PATIENCE)
    assert set(pods(lab).values()) == {"web:2"}


def test_a_pod_that_never_gets_ready_stops_the_rollout(lab: Lab) -> None:
    lab.apply(workload("StatefulSet", replicas=3))
    probe = {"readinessProbe": {"httpGet": {"port": 8080}, "initialDelaySeconds": 1000}}
    lab.apply(workload("StatefulSet", replicas=3, version="2", spec={"container": probe}))
    assert pods(lab) == {"web-0": "web:1", "web-1": "web:1", "web-2": "web:2"}
    lab.ready("web-2")
    assert pods(lab) == {"web-0": "web:1", "web-1": "web:2", "web-2": "web:2"}
    with pytest.raises(UserError, match="is not over after"):
        lab.wait_rollout("statefulset", "web", timeout=0.2)
