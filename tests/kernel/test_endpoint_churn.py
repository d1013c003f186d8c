"""Two hundred pods of a Service are replaced under constant traffic: how many connections fail.

With readiness and graceful ends none does: a new pod gets connections once it is ready, an old one none from the moment
that it is being deleted, and it serves until then. The count is kept as the test's property ``failed_connections``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from emulator.cni.styles import load_style
from emulator.lab import Lab, ProbeRequest

REPLACED, AT_ONCE = 200, 20
REPLICAS = 2 * AT_ONCE
RATE = 100.0  # connections a second
ASKED = 40  # connections after each step, to see who answers
CASES = [
    pytest.param("flannel+iptables", marks=pytest.mark.requires(*load_style("flannel").requires, "iptables")),
    pytest.param("calico+nftables", marks=pytest.mark.requires(*load_style("calico").requires, "nft-program")),
]
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"clusterIP": "10.96.0.80", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
}


def deployment() -> dict[str, Any]:
    container = {
        "name": "web",
        "image": "web",
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"port": 8080}, "initialDelaySeconds": 1},
        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
    }
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}
    spec = {"replicas": REPLICAS, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}


def states(lab: Lab) -> dict[str, bool]:
    """Whether each pod that is not being deleted is ready."""
    found = {}
    for pod in lab.get("pods", selector="app=web"):
        if "deletionTimestamp" not in pod["metadata"]:
            conditions = {each["type"]: each["status"] for each in pod["status"]["conditions"]}
            found[pod["metadata"]["name"]] = conditions["Ready"] == "True"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("style", CASES)
def test_no_connection_fails_while_pods_are_replaced_with_grace(
    style: str, record_property: Callable[[str, object], None]
) -> None:
    with Lab("three-nodes", style, [SERVICE, deployment()]) as lab:
        lab.wait_rollout("deployment", "web")
        gone: set[str] = set()
        with lab.stream(ProbeRequest("n1-p1", "service/web", 80, "tcp", timeout=5.0), RATE) as stream:
            while len(gone) < REPLACED:
                before = states(lab)
                leaving = sorted(before)[:AT_ONCE]
                assert all(before.values())
                assert gone.isdisjoint(before)
                lab.client.call("POST", "/cnilab/v1/delete", [["", "Pod", "default", name] for name in leaving])
                gone.update(leaving)
                # Of the others only: those that leave have been deleted, those that come are not ready.
                asked = [
                    ProbeRequest(source, "service/web", 80, "tcp", ASKED, timeout=5.0) for source in ("n2-p1", "n3")
                ]
                for answer in lab.probes(asked):
                    assert answer.result.received == ASKED
                    assert set(answer.result.answers) <= set(before) - set(leaving) | {
                        name for name, ready in states(lab).items() if ready
                    }
                    assert gone.isdisjoint(answer.result.answers)
                lab.wait_rollout("deployment", "web")

        failed = stream.result.sent - stream.result.received
        record_property("failed_connections", failed)
        assert len(gone) == REPLACED
        assert stream.result.sent > 500
        assert failed == 0, f"{failed} of {stream.result.sent} connections failed: {stream.result}"
        assert lab.verify() == []
