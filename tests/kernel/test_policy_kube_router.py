"""kube-router's network policies with real packets: who is refused where, at once, and by which rule."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from emulator.traffic.model import ProbeResult
from tests.policy.worlds import policy

pytestmark = pytest.mark.requires(*load_style("kube-router").requires)

TCP, FAMILIES = 80, pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module", params=["faithful", "spec"])
def started(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab("dual-stack", cni="kube-router", policy_mode=request.param) as found:
        found.mode = request.param  # type: ignore[attr-defined]  # for the tests that differ
        yield found


@pytest.fixture
def lab(started: Lab) -> Iterator[Lab]:
    yield started
    started.delete("networkpolicies", "p")


@pytest.fixture
def faithful(lab: Lab) -> bool:
    return bool(lab.mode == "faithful")  # type: ignore[attr-defined]


def put(lab: Lab, **spec: Any) -> None:
    lab.apply(policy("default", "p", **spec))


def probe(lab: Lab, source: str, target: str, family: int, port: int = TCP) -> ProbeResult:
    return lab.probe(source, target, port, family=family).result


def rejected(lab: Lab, node: str, family: int) -> int:
    """How many packets the REJECT rules of the node's pods have had."""
    tool = "iptables" if family == 4 else "ip6tables"
    text = lab.run(node, tool, "-t", "filter", "-L", "-v", "-n", "-x").stdout
    return sum(int(found[1]) for found in re.finditer(r"^\s*(\d+)\s+\d+\s+REJECT\s", text, re.MULTILINE))


@FAMILIES
def test_ingress_is_refused_at_once_on_the_destinations_node(lab: Lab, family: int) -> None:
    put(lab)
    before = {node: rejected(lab, node, family) for node in ("n1", "n2")}
    result = probe(lab, "n1-p1", "n2-p1", family)
    after = {node: rejected(lab, node, family) for node in ("n1", "n2")}
    assert (result.verdict, result.detail.partition(",")[0]) == ("refused", "port unreachable")
    assert result.reporter in lab.cluster().node("n2").addresses
    assert after["n1"] == before["n1"]
    assert after["n2"] > before["n2"]


@FAMILIES
def test_egress_is_refused_on_the_sources_node(lab: Lab, family: int) -> None:
    put(lab, policyTypes=["Egress"])
    before = {node: rejected(lab, node, family) for node in ("n1", "n2")}
    assert probe(lab, "n1-p1", "n2-p1", family).verdict == "refused"
    after = {node: rejected(lab, node, family) for node in ("n1", "n2")}
    assert after["n1"] > before["n1"]
    assert after["n2"] == before["n2"]


@FAMILIES
def test_pods_of_one_node_are_judged_on_the_bridge(lab: Lab, family: int) -> None:
    put(lab)
    assert probe(lab, "n1-p1", "n1-p2", family).verdict == "refused"


@FAMILIES
def test_what_rules_allow_passes_and_nothing_beside_it(lab: Lab, family: int) -> None:
    block = "192.168.50.0/24" if family == 4 else "fd00:10:244:2::/64"
    others = {"ipBlock": {"cidr": "10.244.2.0/24" if family == 4 else block, "except": []}}
    put(lab, ingress=[{"from": [others], "ports": [{"port": 80, "endPort": 82}]}])
    assert probe(lab, "n2-p1", "n1-p1", family).verdict == "delivered"
    assert probe(lab, "n3-p1", "n1-p1", family).verdict == "refused"
    assert probe(lab, "n2-p1", "n1-p1", family, port=79).verdict == "refused"


@FAMILIES
def test_the_own_node_reaches_its_pods_and_another_does_not(lab: Lab, family: int) -> None:
    put(lab)
    assert probe(lab, "node/n1", "n1-p1", family).verdict == "delivered"
    assert probe(lab, "node/n2", "n1-p1", family).verdict == "refused"


@FAMILIES
def test_echo_requests_pass_unless_the_api_is_to_be_followed(lab: Lab, faithful: bool, family: int) -> None:
    put(lab)
    assert lab.probe("n1-p1", "n2-p1", protocol="icmp", family=family).reached == faithful


@FAMILIES
def test_a_pod_reaches_its_own_node_only_if_the_api_is_to_be_followed(lab: Lab, faithful: bool, family: int) -> None:
    put(lab, policyTypes=["Egress"])
    result = lab.probe("n1-p1", "node/n1", TCP, family=family).result
    unreachable = result.verdict == "refused" and result.detail.startswith("port unreachable")
    assert unreachable == faithful, result


@FAMILIES
def test_among_the_pods_of_a_policy_of_both_types_ingress_rules_open_egress(
    lab: Lab, faithful: bool, family: int
) -> None:
    put(lab, ingress=[{}], policyTypes=["Ingress", "Egress"])
    assert (probe(lab, "n1-p1", "n2-p1", family).verdict == "delivered") == faithful


@FAMILIES
def test_a_connection_survives_the_policy_that_would_refuse_it(lab: Lab, family: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        options: dict[str, Any] = {"count": 30, "interval": 0.05, "family": family}
        live = pool.submit(Lab.connect(lab.name).probe, "n1-p1", "n2-p1", TCP, "udp", **options)
        time.sleep(0.4)
        put(lab)
        assert probe(lab, "n1-p1", "n2-p1", family).verdict == "refused"
        result = live.result().result
    assert (result.sent, result.received) == (30, 30)


@FAMILIES
def test_the_kernel_holds_what_was_planned(lab: Lab, family: int) -> None:
    put(lab, ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}])
    assert lab.verify() == []
