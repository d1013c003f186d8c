"""kube-router's own service proxy under a kernel that has ip_vs: one lab, every kind of request."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from emulator import Lab
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.kernel import registry
from emulator.proxy.kube_router import KubeRouterProxy

pytestmark = [
    pytest.mark.real_kernel,
    pytest.mark.requires(*load_style("kube-router").requires, *KubeRouterProxy.requires),
]

TOPOLOGY = """\
name: pair
podCIDRs: [10.244.0.0/16]
pods: 0
switches:
  - {name: s1, cidrs: [192.168.50.0/24]}
  - {name: s2, cidrs: [203.0.113.0/24]}
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor, switch: s1}]
hosts: [{name: client, switch: s2, addresses: [203.0.113.10]}]
links: [{from: tor, to: s2}]
"""
N1, N2, CLIENT = "192.168.50.11", "192.168.50.12", "203.0.113.10"


def pod(name: str, node: str, **labels: str) -> dict[str, Any]:
    container = {"name": "c", "image": "nginx", "ports": [{"containerPort": 8080}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [container]},
    }


def service(name: str, number: int, selector: dict[str, str], **spec: Any) -> dict[str, Any]:
    """A Service at 10.96.0.<number>, node port 30000 + number if it has any."""
    notes = {f"kube-router.io/service.{word}": value for word, value in spec.pop("notes", {}).items()}
    port: dict[str, Any] = {"port": 80, "targetPort": 8080}
    if spec.get("type") == "NodePort":
        port["nodePort"] = 30000 + number
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": notes},
        "spec": {"clusterIP": f"10.96.0.{number}", "selector": selector, "ports": [port], **spec},
    }


WEB, ONE, TWO = {"app": "web"}, {"app": "web", "at": "n1"}, {"app": "web", "at": "n2"}
OBJECTS = [
    pod("web-1", "n1", **ONE),
    pod("web-2", "n2", **TWO),
    pod("a1", "n1"),
    pod("a2", "n2"),
    service("web", 50, WEB, type="NodePort"),
    service("one", 51, ONE, type="NodePort"),
    service("two", 52, TWO, type="NodePort", externalIPs=["198.51.100.7"]),
    service("local", 53, TWO, type="NodePort", externalTrafficPolicy="Local"),
    service("inside", 54, WEB, internalTrafficPolicy="Local"),
    service("sticky", 55, WEB, sessionAffinity="ClientIP"),
    service("empty", 56, {"app": "nobody"}),
    service("mirror", 57, ONE, notes={"hairpin": ""}),
    service("hashed", 58, WEB, notes={"scheduler": "sh"}),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    with Lab(parse_topology(TOPOLOGY, "test"), "kube-router", OBJECTS, dns="off") as running:
        yield running
    patch.undo()


def asked(lab: Lab, source: str, target: str, port: int, count: int = 1) -> tuple[str, dict[str, int], set[str]]:
    """The verdict, how often each pod answered, and the addresses that they saw."""
    result = lab.probe(source, target, port, count=count, timeout=3.0).result
    return result.verdict, result.answers, set(result.sources)


def test_it_is_the_styles_own_proxy(lab: Lab) -> None:
    status = lab.status()

    assert status.choices["proxy"] == KubeRouterProxy.title
    assert not [line for line in (*status.labels, *status.notices) if "kube-proxy" in line]


def test_cluster_ip_takes_turns_and_keeps_the_pods_address(lab: Lab) -> None:
    for source in ("a1", "a2"):
        own = lab.get("pods", source)[0]["status"]["podIP"]
        assert asked(lab, source, "10.96.0.50", 80, 4) == ("delivered", {"web-1": 2, "web-2": 2}, {own})
    for source, address in (("n1", N1), ("n2", N2)):  # not the Service's own, which the node has too
        assert asked(lab, source, "10.96.0.50", 80, 2) == ("delivered", {"web-1": 1, "web-2": 1}, {address})


def test_node_port_shows_the_client_to_pods_of_the_node_and_the_node_to_others(lab: Lab) -> None:
    assert asked(lab, "client", N1, 30051) == ("delivered", {"web-1": 1}, {CLIENT})
    assert asked(lab, "client", N1, 30052) == ("delivered", {"web-2": 1}, {N1})
    assert asked(lab, "a1", N2, 30052) == ("delivered", {"web-2": 1}, {lab.get("pods", "a1")[0]["status"]["podIP"]})


def test_external_policy_local_keeps_the_source_and_is_refused_where_no_endpoint_is(lab: Lab) -> None:
    assert asked(lab, "client", N2, 30053) == ("delivered", {"web-2": 1}, {CLIENT})
    assert asked(lab, "client", N1, 30053)[0] == "refused"


def test_internal_policy_local_stays_on_the_node(lab: Lab) -> None:
    assert asked(lab, "a1", "10.96.0.54", 80, 3)[:2] == ("delivered", {"web-1": 3})
    assert asked(lab, "a2", "10.96.0.54", 80, 3)[:2] == ("delivered", {"web-2": 3})


def test_external_ip_is_served_by_every_node(lab: Lab) -> None:
    assert asked(lab, "a1", "198.51.100.7", 80)[:2] == ("delivered", {"web-2": 1})


def test_a_pod_reaches_itself_only_through_an_annotated_service_and_sees_its_address(lab: Lab) -> None:
    assert asked(lab, "web-1", "10.96.0.57", 80) == ("delivered", {"web-1": 1}, {"10.96.0.57"})
    assert asked(lab, "web-1", "10.96.0.51", 80)[0] == "dropped"


def test_a_service_address_refuses_other_ports_and_has_the_node_answer_ping(lab: Lab) -> None:
    assert asked(lab, "a1", "10.96.0.50", 81)[0] == "refused"
    assert lab.probe("a1", "10.96.0.50").result.verdict == "delivered"


def test_nothing_behind_a_service_is_refused(lab: Lab) -> None:
    assert asked(lab, "a1", "10.96.0.56", 80)[0] == "refused"


@pytest.mark.parametrize("number", [55, 58], ids=["session-affinity", "source-hashing"])
def test_a_client_keeps_its_endpoint(number: int, lab: Lab) -> None:
    for source in ("a1", "a2"):
        answers = asked(lab, source, f"10.96.0.{number}", 80, 4)[1]
        assert list(answers.values()) == [4]


def test_an_endpoint_that_goes_is_gone_at_once_and_the_kernel_holds_what_was_planned(lab: Lab) -> None:
    """The last test: a pod is missing from then on."""
    assert asked(lab, "a1", "10.96.0.50", 80, 2)[1] == {"web-1": 1, "web-2": 1}
    gone = ip_address(lab.get("pods", "web-2")[0]["status"]["podIP"]).packed.hex().upper()
    assert gone in lab.run("n1", "cat", "/proc/net/ip_vs").stdout

    lab.delete("pod", "web-2", grace_period=0)

    assert gone not in lab.run("n1", "cat", "/proc/net/ip_vs").stdout  # though IPVS remembers connections to it
    assert lab.verify() == []
    assert asked(lab, "a1", "10.96.0.50", 80, 4)[1] == {"web-1": 4}
    assert asked(lab, "a1", "10.96.0.52", 80)[0] == "refused"
