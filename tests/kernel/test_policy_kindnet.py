"""kindnet's network policies with real packets: what its agent lets begin, what goes on, and what is without it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from emulator.lab.verdicts import Ask
from emulator.policy.kindnet import AGENT, REQUIRED
from emulator.policy.kindnet_rules import QUEUE, TABLE
from emulator.policy.model import Family
from emulator.scenario.policy_explain import explain_request
from emulator.traffic.model import ProbeResult
from tests.policy.worlds import policy as network_policy

pytestmark = pytest.mark.requires(*load_style("kindnet").requires, *REQUIRED["iptables"])

TCP, FAMILIES = 80, pytest.mark.parametrize("family", [4, 6])
policy = partial(network_policy, "default", "p")


@pytest.fixture(scope="module", params=["faithful", "spec"])
def started(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab("dual-stack", cni="kindnet", policy_mode=request.param) as found:
        found.mode = request.param  # type: ignore[attr-defined]  # for the tests that differ
        yield found


@pytest.fixture
def lab(started: Lab) -> Iterator[Lab]:
    yield started
    started.delete("networkpolicies", "p")


@pytest.fixture
def faithful(lab: Lab) -> bool:
    return bool(lab.mode == "faithful")  # type: ignore[attr-defined]


def pod(name: str, port: int, protocol: str, **labels: str) -> dict[str, Any]:
    ports = [{"containerPort": port, "protocol": protocol}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "agnhost", "ports": ports}]},
    }


def probe(lab: Lab, source: str, target: str, family: int, port: int = TCP, protocol: Any = "tcp") -> ProbeResult:
    return lab.probe(source, target, port, protocol, family=family, timeout=0.7).result


@FAMILIES
def test_what_the_agent_denies_is_dropped_and_recorded_with_its_policy(lab: Lab, family: Family) -> None:
    lab.apply(policy())
    assert probe(lab, "n1-p1", "n2-p1", family).verdict == "dropped"
    told = explain_request(lab, Ask("pod/default/n1-p1", "pod/default/n2-p1", "tcp", TCP, family), "kindnet")
    assert told.stopped is not None
    assert (told.stopped.ns, told.stopped.hook, told.stopped.action) == ("node/n1", "POSTROUTING", "drop")
    assert told.stopped.component == "kindnetd (stand-in)"
    assert told.stopped.why == "ingress of default/n2-p1: no rule allows it, isolated by NetworkPolicy default/p"
    (place, line), *_ = told.records
    assert place == "node/n1"
    assert line.endswith(f" at postrouting: {told.stopped.why}")


@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_what_rules_allow_begins_and_is_answered(lab: Lab, family: int, protocol: Any) -> None:
    block = "10.244.2.0/24" if family == 4 else "fd00:10:244:2::/64"
    ports = [{"protocol": protocol.upper(), "port": 80, "endPort": 82}]
    lab.apply(policy(ingress=[{"from": [{"ipBlock": {"cidr": block}}], "ports": ports}]))
    if protocol != "sctp":
        assert probe(lab, "n2-p1", "n1-p1", family, protocol=protocol).verdict == "delivered"
    assert probe(lab, "n3-p1", "n1-p1", family, protocol=protocol).verdict == "dropped"
    assert probe(lab, "n2-p1", "n1-p1", family, port=79, protocol=protocol).verdict == "dropped"


@FAMILIES
def test_pods_of_one_node_are_judged(lab: Lab, family: int) -> None:
    lab.apply(policy())
    assert probe(lab, "n1-p1", "n1-p2", family).verdict == "dropped"


@FAMILIES
def test_echo_is_judged_and_neighbours_are_found_all_the_same(lab: Lab, family: int) -> None:
    lab.apply(policy(policyTypes=["Ingress", "Egress"]))
    assert not lab.probe("n1-p1", "n2-p1", protocol="icmp", family=family, timeout=0.7).reached
    lab.apply(policy(ingress=[{}], egress=[{}], policyTypes=["Ingress", "Egress"]))
    assert lab.probe("n1-p1", "n2-p1", protocol="icmp", family=family).reached


@FAMILIES
def test_the_own_node_reaches_its_pods_and_another_does_not(lab: Lab, family: int) -> None:
    lab.apply(policy())
    assert probe(lab, "node/n1", "n1-p1", family).verdict == "delivered"
    assert probe(lab, "node/n2", "n1-p1", family).verdict == "dropped"


@FAMILIES
def test_a_pod_reaches_its_own_node_only_if_the_api_is_to_be_followed(lab: Lab, faithful: bool, family: int) -> None:
    lab.apply(policy(policyTypes=["Egress"]))
    # Nobody serves the port there: what gets through is refused
    assert probe(lab, "n1-p1", "node/n1", family).verdict == ("dropped" if faithful else "refused")


@pytest.mark.parametrize("port", [TCP, 53])
def test_a_live_connection_outlasts_a_policy_unless_it_is_dns(lab: Lab, port: int) -> None:
    options: dict[str, Any] = {"count": 30, "interval": 0.05}
    lab.apply(pod("server", port, "UDP"))
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(Lab.connect(lab.name).probe, "n1-p1", "server", port, "udp", **options)
        time.sleep(0.4)
        lab.apply(policy())
        assert probe(lab, "n1-p2", "server", 4, port, "udp").verdict == "dropped"
        result = live.result().result
    lab.delete("pods", "server", grace_period=0)
    assert result.sent == 30
    assert (result.received == 30) == (port != 53), result.received
    assert result.received > 3


def test_a_new_pod_is_judged_by_its_first_packet_on(lab: Lab) -> None:
    """Who pings it before it is there never gets an answer out of it, though nothing but the policy forbids."""
    lab.apply(policy(podSelector={"matchLabels": {"late": "yes"}}))
    lab.apply(pod("late", TCP, "TCP", late="yes"))
    (before,) = (found.addresses[0] for found in lab.cluster().pods if found.name == "late")
    lab.delete("pods", "late", grace_period=0)
    address = str(ip_address(before) + 1)  # host-local goes on from the last one
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(
            Lab.connect(lab.name).probe, "n1-p1", address, protocol="icmp", count=600, interval=0.002, timeout=0.2
        )
        lab.apply(pod("late", TCP, "TCP", late="yes"))
        result = early.result().result
    (after,) = (found.addresses[0] for found in lab.cluster().pods if found.name == "late")
    lab.delete("pods", "late", grace_period=0)
    assert (after, result.sent, result.received) == (address, 600, 0)


def test_without_the_agent_everything_passes_and_every_answer_says_so(lab: Lab) -> None:
    lab.apply(policy())
    assert probe(lab, "n1-p1", "n1-p2", 4).verdict == "dropped"
    lab.fault("daemon-kill", "n1", daemon=AGENT)
    assert probe(lab, "n1-p1", "n1-p2", 4).verdict == "delivered"
    (line,) = [line for line in lab.warnings if AGENT in line]
    assert "no policy holds there: the queue's packets pass (bypass)" in line
    lab.apply(policy(ingress=[]))  # the next change starts it again
    lab.delete("networkpolicies", "p")
    lab.apply(policy())
    assert probe(lab, "n1-p1", "n1-p2", 4).verdict == "dropped"


def test_rules_and_agents_are_as_planned(lab: Lab) -> None:
    lab.apply(policy())
    assert lab.verify() == []
    assert {item["state"] for item in lab.status().daemons if item["name"] == AGENT} == {"running"}


@pytest.mark.real_kernel
@pytest.mark.requires("nft-queue")
def test_where_nftables_can_queue_the_real_table_does_it() -> None:
    with Lab("single-node", cni="kindnet") as lab:
        lab.apply(policy())
        listed = lab.run("n1", "nft", "list", "table", "inet", TABLE).stdout
        pods = [found.key for found in lab.cluster().pods]
        assert f"ip daddr @podips-v4 queue flags bypass to {QUEUE}" in listed
        assert lab.probe(pods[0], pods[1], TCP, timeout=2.0).result.verdict == "dropped"
        told = explain_request(lab, Ask(f"pod/{pods[0]}", f"pod/{pods[1]}", "tcp", TCP, 4), "kindnet")
        assert told.stopped is not None
        assert told.stopped.place.startswith(f"nft inet {TABLE} postrouting")
        assert told.records
        lab.apply(policy(ingress=[{}]))
        assert lab.probe(pods[0], pods[1], TCP, timeout=2.0).result.verdict == "delivered"  # SYN ACK has the label
        assert lab.verify() == []
