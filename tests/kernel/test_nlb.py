"""A Network Load Balancer in a VPC: its health checks, its zones, and what the death of a zone's only node does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from emulator import Lab
from emulator.capture.decode import decode
from emulator.cluster.nlb import PREFIX
from tests.kernel.balanced import lab_with_quick_checks, pod
from tests.kernel.waiting import eventually

pytestmark = pytest.mark.requires(
    "netns", "veth", "ip", "mnexec", "nft-program", "nft-nat", "iptables", "ipset", "ipset-program", "ttl-target"
)

USUAL, HURRY = "{interval: 1, timeout: 1,", "{interval: 0.25, timeout: 0.25,"
ZONE_A, ZONE_B = "10.0.31.254", "10.0.47.254"  # of zonal; crossed has those before
CROSSED_A = "10.0.31.253"
NODE_PORT = 30080


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """n1 alone is in zone a; n2 and n3 are in zone b. A pod on n1 and one on n3."""
    with lab_with_quick_checks("nlb", "aws-vpc", USUAL, HURRY, tmp_path_factory.mktemp("labs")) as lab:
        lab.apply(
            pod("p", "n1"),
            pod("q", "n3"),
            service("zonal", nodePort=NODE_PORT),
            service("crossed", ("cross-zone-load-balancing-enabled", "true"), ("nlb-target-type", "ip")),
        )
        yield lab


def service(name: str, *annotations: tuple[str, str], **port: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": 8080, **port}]
    body = {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": ports}
    metadata = {"name": name, "annotations": {PREFIX + key: text for key, text in annotations}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": body}


def asked(lab: Lab, address: str, count: int = 6) -> Any:
    return lab.probe("bastion", address, protocol="tcp", port=80, count=count, timeout=0.5).result


def test_checks_come_from_the_address_in_the_targets_zone(running: Lab) -> None:
    with running.capture("n1:eth0", "n3:eth0") as capture:
        time.sleep(1.0)
    seen = [(event, decode(event.frame, event.length)) for event in capture.events() if event.direction == "in"]
    checks = {(event.ns, packet.source) for event, packet in seen if packet.target_port == NODE_PORT}
    assert checks == {("node/n1", ZONE_A), ("node/n3", ZONE_B)}


def test_by_node_ports_the_node_sees_the_client_and_pods_see_the_node(running: Lab) -> None:
    answer = asked(running, ZONE_A)
    assert (answer.received, set(answer.sources)) == (6, {"10.0.16.11"})
    assert running.verify() == []


def test_by_ip_pods_see_the_balancer_and_may_be_its_clients(running: Lab) -> None:
    assert set(asked(running, CROSSED_A).sources) == {CROSSED_A}
    own = running.probe("p", CROSSED_A, protocol="tcp", port=80, count=6, timeout=0.5).result
    assert own.received == 6


def test_a_pod_that_the_balancer_sends_back_to_its_own_node_hears_nothing(running: Lab) -> None:
    own = running.probe("n1-p1", ZONE_A, protocol="tcp", port=80, timeout=0.5).result
    assert own.verdict == "dropped"
    other = running.probe("n2-p1", ZONE_A, protocol="tcp", port=80, timeout=0.5).result
    assert other.verdict == "delivered"


def test_without_its_only_node_a_zone_is_silent_and_the_other_serves(running: Lab) -> None:
    running.fault("node-crash", "n1")
    eventually(lambda: f"ip daddr {ZONE_A} tcp" not in running.run("vpc", "nft", "list", "table", "ip", "nlb").stdout)
    assert asked(running, ZONE_A, 1).verdict == "dropped"
    assert asked(running, ZONE_B).answers == {"q": 6}
    assert asked(running, CROSSED_A).answers == {"q": 6}, "cross-zone: zone a's address sends to zone b"
    running.fault("node-return", "n1")
    eventually(lambda: asked(running, ZONE_A).received == 6)
    eventually(lambda: set(asked(running, CROSSED_A, 12).answers) == {"p", "q"})
    assert running.verify() == []
