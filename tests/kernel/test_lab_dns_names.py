"""Probes by DNS name: resolved by the sender's own resolver, with packets, before anything else is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from emulator.errors import NotFound, UserError
from emulator.lab import Lab, ProbeRequest

pytestmark = [pytest.mark.requires("iptables", "vxlan")]


def pod(name: str, node: str, **more: Any) -> dict[str, Any]:
    container = {"name": "web", "image": "web", "ports": [{"containerPort": 8080}]}
    metadata = {"name": name, "labels": {"app": "web"}}
    spec = {"nodeName": node, "containers": [container], **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def service(name: str, **more: Any) -> dict[str, Any]:
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], **more}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    objects = [service("web", clusterIP="10.96.0.80"), service("pods", clusterIP="None"), pod("a", "n2")]
    with Lab(manifests=objects) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "port", "questions"),
    [
        ("web.default.svc", 0, 6),  # ndots:5: two search domains are tried in vain, each for A and AAAA
        ("web.default.svc.cluster.local", 80, 8),
        ("web.default.svc.cluster.local.", 0, 2),
        ("dns/web", 80, 2),
    ],
)
def test_service_is_reached_by_its_name(lab: Lab, name: str, port: int, questions: int) -> None:
    with lab.capture("n1-p1") as capture:
        answer = lab.probe("n1-p1", name, port)

    assert (answer.address, answer.port, answer.protocol) == ("10.96.0.80", 80, "tcp")
    assert answer.result.answered_by == "a"
    assert answer.target == name.removeprefix("dns/")
    assert answer.lookup is not None
    assert answer.lookup.questions == questions
    first = [each.hops[0] for each in capture.journeys()]
    asked = [hop.packet.target for hop in first if hop.direction == "out" and hop.packet.target_port == 53]
    assert asked == ["10.96.0.10"] * questions


def test_headless_name_leads_to_the_pod(lab: Lab) -> None:
    (found,) = lab.get("pods", "a")
    answer = lab.probe("n1-p1", "pods.default.svc", 8080)

    assert answer.address == found["status"]["podIP"]
    assert answer.target_ns == "pod/default/a"
    assert answer.result.answered_by == "a"
    assert lab.probe("n1-p1", "pods.default.svc").protocol == "icmp"  # a port of the Service's is none of the pod's


def test_name_that_does_not_exist_is_a_verdict_and_others_go_their_way(lab: Lab) -> None:
    lost, found = lab.probes(
        [ProbeRequest("n1-p1", "nobody.default.svc", 80, "tcp"), ProbeRequest("n1-p1", "dns/web", 80, "tcp")]
    )

    assert (lost.result.verdict, lost.result.sent, lost.address) == ("unreachable", 0, "")
    assert "could not resolve nobody.default.svc" in lost.result.detail
    assert found.result.answered_by == "a"


def test_stream_goes_to_what_the_name_meant_at_its_start(lab: Lab) -> None:
    with lab.stream(ProbeRequest("n1-p1", "web.default.svc", 80, "tcp"), rate=50) as stream:
        while lab.probe("n1-p1", "n2-p1").result.verdict != "delivered":
            pass

    assert (stream.target, stream.address) == ("web.default.svc", "10.96.0.80")
    assert stream.result.received > 0
    with pytest.raises(UserError, match="could not resolve"):
        lab.stream(ProbeRequest("n1-p1", "nobody.default.svc", 80, "tcp"), rate=50).__enter__()


def test_trace_of_a_name_shows_the_service_and_the_questions(lab: Lab) -> None:
    trace = lab.trace("n1-p1", "web.default.svc", 80)

    assert trace.request is not None
    assert trace.request.hops[0].packet.target == "10.96.0.80"
    assert any(journey.hops[0].packet.target_port == 53 for journey in trace.others)


def test_without_anybody_to_ask_it_is_an_error(lab: Lab) -> None:
    with pytest.raises(UserError, match=r"node/n1 has no DNS server to ask for web\.default\.svc"):
        lab.probe("n1", "web.default.svc")
    with pytest.raises(NotFound, match=r"10\.244\.1\.999"):
        lab.probe("n1-p1", "10.244.1.999")
    with pytest.raises(UserError, match="is no DNS name"):
        lab.probe("n1-p1", "dns/a..b")
    with Lab("single-node", dns="off", manifests=[service("web")]) as silent:
        with pytest.raises(UserError, match="has no DNS server") as caught:
            silent.probe("n1-p1", "web.default.svc")
        assert "--dns on" in caught.value.hint
