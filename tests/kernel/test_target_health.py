"""A cloud's load balancer follows the answers that its targets give to its health checks: when, and when not."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from emulator import Lab
from emulator.capture.decode import decode
from emulator.lab.records import ProbeRequest
from tests.kernel.balanced import lab_with_quick_checks, pod
from tests.kernel.waiting import eventually

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec", "nft-program", "nft-nat")

INTERVAL, BAD = 0.25, 3  # s between checks, and failures in a row that it takes
USUAL = "{interval: 1, timeout: 1, healthyThreshold: 2, unhealthyThreshold: 2}"
HURRY = f"{{interval: {INTERVAL}, timeout: {INTERVAL}, healthyThreshold: 2, unhealthyThreshold: {BAD}}}"
NODE_PORT, LOCAL_PORT, HEALTH_PORT = 30080, 30081, 30100


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three nodes behind the balancer. web may use all of them; local only n1 and n2, where its pods are."""
    with lab_with_quick_checks("cloud", "flannel", USUAL, HURRY, tmp_path_factory.mktemp("labs")) as lab:
        lab.apply(
            pod("p", "n1"),
            pod("q", "n2"),
            service("web", ports=[{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]),
            service(
                "local",
                externalTrafficPolicy="Local",
                healthCheckNodePort=HEALTH_PORT,
                ports=[{"port": 80, "targetPort": 8080, "nodePort": LOCAL_PORT, "protocol": "UDP"}],
            ),
        )
        yield lab


def service(name: str, **spec: Any) -> dict[str, Any]:
    body = {"type": "LoadBalancer", "selector": {"app": "web"}, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def targets(lab: Lab, port: int) -> set[str]:
    """The nodes that the rules in the kernel send to."""
    listing = lab.run("tor", "nft", "list", "chain", "ip", "balancer", "listeners").stdout
    nodes = {"192.168.50.11": "n1", "192.168.50.12": "n2", "192.168.50.13": "n3"}
    return {name for address, name in nodes.items() if f"dnat to {address}:{port}" in listing}


def test_checks_are_packets_of_the_balancers_own_address(running: Lab) -> None:
    with running.capture("n3:eth0") as capture:
        time.sleep(3 * INTERVAL)
    seen = [decode(event.frame, event.length) for event in capture.events() if event.direction == "in"]
    packets = [packet for packet in seen if packet.source == "192.168.50.1"]
    assert {packet.target for packet in packets if packet.target_port} == {"192.168.50.13"}
    asked = {packet.target_port for packet in packets}
    assert {NODE_PORT, HEALTH_PORT} <= asked, (
        "TCP for policy Cluster, HTTP for policy Local, even where only UDP is served"
    )


def test_all_nodes_serve_policy_cluster_and_those_with_an_endpoint_policy_local(running: Lab) -> None:
    assert targets(running, NODE_PORT) == {"n1", "n2", "n3"}
    assert targets(running, LOCAL_PORT) == {"n1", "n2"}
    assert running.verify() == []


def test_a_node_without_power_takes_connections_along_until_it_has_failed_so_many_checks(running: Lab) -> None:
    request = ProbeRequest(source="client", target="lb/local", port=80, protocol="udp", timeout=0.3)
    with running.stream(request, rate=100) as stream:
        time.sleep(0.2)
        before = time.monotonic()
        running.fault("node-crash", "n2")
        eventually(lambda: targets(running, NODE_PORT) == {"n1", "n3"})
        took = time.monotonic() - before
        assert targets(running, LOCAL_PORT) == {"n1"}
        time.sleep(0.2)
    assert took >= (BAD - 1) * INTERVAL * 0.9, "one failure is not enough"
    assert stream.result.received, "some of it got through"
    answer = running.probe("client", "lb/web", protocol="tcp", port=80, count=20).result
    assert (answer.received, set(answer.answers)) == (20, {"p"})
    running.fault("node-return", "n2")
    eventually(
        lambda: targets(running, NODE_PORT) == {"n1", "n2", "n3"} and targets(running, LOCAL_PORT) == {"n1", "n2"}
    )


def test_a_node_whose_rules_for_services_are_gone_refuses_and_gets_nothing_more(running: Lab) -> None:
    running.fault("flush", "n3", table="nat")
    eventually(lambda: targets(running, NODE_PORT) == {"n1", "n2"})
    told = "the load balancer's target default/web:80/TCP n3 (192.168.50.13:30080) is unhealthy: connection refused"
    assert told in running.status().notices
    assert running.probe("client", "lb/web", protocol="tcp", port=80, count=20).result.received == 20
    running.fault("flush", "n3", table="nat", mend=True)
    eventually(lambda: targets(running, NODE_PORT) == {"n1", "n2", "n3"})


def test_a_dead_kube_proxy_closes_its_health_port_and_leaves_its_rules(running: Lab) -> None:
    running.fault("proxy-stop", "n1")
    assert running.status().faults == ("the service proxy of n1 does not run",)
    eventually(lambda: targets(running, LOCAL_PORT) == {"n2"})
    assert targets(running, NODE_PORT) == {"n1", "n2", "n3"}, "node ports of policy Cluster answer as before"
    before = running.run("n1", "iptables-save", "-t", "nat").stdout
    running.apply(pod("r", "n3"))
    strip = re.compile(r"\[\d+:\d+\]|^#.*$", re.M)
    assert strip.sub("", running.run("n1", "iptables-save", "-t", "nat").stdout) == strip.sub("", before)
    assert running.verify() == []
    running.delete("pod", "r")
    running.fault("proxy-stop", "n1", mend=True)
    eventually(lambda: targets(running, LOCAL_PORT) == {"n1", "n2"})
    assert running.verify() == []


def test_a_node_whose_last_endpoint_is_not_ready_says_503(running: Lab) -> None:
    before = time.monotonic()
    running.ready("p", value=False)
    eventually(lambda: targets(running, LOCAL_PORT) == {"n2"})
    assert time.monotonic() - before >= (BAD - 1) * INTERVAL * 0.9, "nobody tells the balancer: it has to ask"
    assert any("default/local:80/UDP n1" in line and "HTTP 503" in line for line in running.status().notices)
    running.ready("q", value=False)
    eventually(lambda: targets(running, LOCAL_PORT) == {"n1", "n2", "n3"})  # all fail: all get traffic
    running.ready("p", "q")
    eventually(lambda: targets(running, LOCAL_PORT) == {"n1", "n2"})


def test_without_its_checker_a_balancer_stays_as_it_is(running: Lab) -> None:
    running.fault("daemon-kill", "tor", daemon="health-checker")
    running.ready("p", value=False)
    time.sleep((BAD + 1) * INTERVAL)
    assert targets(running, LOCAL_PORT) == {"n1", "n2"}
    running.fault("daemon-start", "tor", daemon="health-checker")
    eventually(lambda: targets(running, LOCAL_PORT) == {"n2"})
    running.ready("p")
    eventually(lambda: targets(running, LOCAL_PORT) == {"n1", "n2"})
    assert running.verify() == []
