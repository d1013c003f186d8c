"""A packet that a node let wait for an address which nobody had is not given to the pod that takes the address, where
rules judge who may talk to it; where none do, it is, as on a real node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from itertools import count

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from emulator.lab.records import ProbeRequest
from emulator.traffic.model import ProbeResult
from tests.policy.corner_cases import policy

pytestmark = pytest.mark.requires(*load_style("kube-router").requires)

NAMES = count()


@pytest.fixture(scope="module", params=["flannel", "kube-router"])
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lab(style: str) -> Iterator[Lab]:
    with Lab("dual-stack", cni=style, policy_mode="spec") as found:
        yield found


def waited(lab: Lab, family: int, labels: dict[str, str]) -> tuple[str, str, ProbeResult]:
    """A pod, its address, and what becomes of a datagram that was sent there a moment before the pod was. Its node
    looks for the address by ARP or NDP for three seconds."""
    taken = (ip_address(one) for pod in lab.cluster().pods_on("n1") for one in pod.addresses)
    address = str(max(one for one in taken if one.version == family) + 1)
    name = f"late{next(NAMES)}"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lab.probes, [ProbeRequest("n2-p1", address, 80, "udp", timeout=4.0)])
        wait_until_sought(lab, address)
        lab.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "nodeName": "n1",
                    "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}],
                },
            }
        )
        assert [one.name for one in lab.cluster().pods if address in one.addresses] == [name]
        (answer,) = asked.result()
    return f"pod/default/{name}", address, answer.result


def wait_until_sought(lab: Lab, address: str) -> None:
    deadline = time.monotonic() + 3
    while "INCOMPLETE" not in lab.run("n1", "ip", "neigh", "show", address).stdout:
        assert time.monotonic() < deadline, f"n1 never looked for {address}"
        time.sleep(0.01)


@pytest.mark.parametrize("family", [4, 6])
def test_what_waited_for_a_pod_is_judged_before_the_pod_gets_it(lab: Lab, style: str, family: int) -> None:
    lab.apply(policy("{podSelector: {matchLabels: {app: shut}}, policyTypes: [Ingress]}", "default"))
    pod, address, result = waited(lab, family, {"app": "shut"})
    if style == "flannel":  # which enforces nothing: the pod got it, whether or not somebody listened yet
        assert result.verdict == "delivered" or result.reporter == address, result
    else:
        assert result.verdict == "unreachable", result
        assert result.reporter in lab.cluster().node("n1").addresses
    # A pod that is there is asked at once
    verdict = lab.probe("n2-p1", pod, 80, family=family).result.verdict
    assert verdict == ("delivered" if style == "flannel" else "refused")
