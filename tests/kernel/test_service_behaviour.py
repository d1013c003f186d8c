"""Every behaviour of a Service that packets show, in both modes of kube-proxy, under Flannel and under Calico: who
answers, which source address it sees, refusal (RST or ICMP) or silence.

One lab for each style and mode; all requests of the table are in flight at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from emulator.cni.styles import load_style
from emulator.lab import Lab, ProbeAnswer, ProbeRequest
from emulator.proxy.model import Proxy, ProxyMode, ProxySettings
from emulator.proxy.modes import load_proxy
from emulator.traffic.model import Protocol

TOPOLOGY = Path(__file__).parent / "topologies" / "zones.yaml"
PATIENCE = 1.6  # s: an ICMP error that finds the client's socket busy counts with the second SYN, 1 s later
MANY = 40  # connections: one of three endpoints is left out once in 3.7 million times
STYLES = ("flannel", "calico")
MODES: tuple[ProxyMode, ...] = ("iptables", "nftables")


def _proxy(mode: ProxyMode) -> Proxy:
    proxy = load_proxy(mode, ProxySettings(pod_cidrs=(), service_cidrs=()))
    assert proxy is not None
    return proxy


CASES = [
    pytest.param(f"{style}+{mode}", marks=pytest.mark.requires(*load_style(style).requires, *_proxy(mode).requires))
    for style in STYLES
    for mode in MODES
]
GRACE = {"preStop": {"sleep": {"seconds": 300}}}


def pod(name: str, node: str, app: str, *, lifecycle: Any = None, **container: Any) -> dict[str, Any]:
    ports = [{"name": "web", "containerPort": 8080}, {"name": "u", "containerPort": 8080, "protocol": "UDP"}]
    made = {
        "name": "web",
        "image": "web",
        "ports": ports,
        **({"lifecycle": lifecycle} if lifecycle else {}),
        **container,
    }
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 300, "containers": [made]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}}, "spec": spec}


def service(name: str, number: int, app: str, *, ports: Any = None, **spec: Any) -> dict[str, Any]:
    """The Service at 10.96.1.NUMBER."""
    body = {"clusterIP": f"10.96.1.{number}", "ports": ports or [{"port": 80, "targetPort": 8080}], **spec}
    body |= {"selector": {"app": app}} if app else {}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def node_port(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080, "nodePort": number}], **more}


STICKY = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
UNREADY = {"readinessProbe": {"httpGet": {"port": 8080}, "initialDelaySeconds": 3600}}
OBJECTS = [
    pod("one", "n2", "one"),
    pod("a1", "n1", "three"),
    pod("a2", "n2", "three"),
    pod("a3", "n3", "three"),
    pod("half-1", "n1", "half"),
    pod("half-2", "n2", "half", **UNREADY),
    pod("late", "n3", "late", **UNREADY),
    pod("drain-1", "n1", "drain", lifecycle=GRACE),
    pod("drain-2", "n2", "drain", lifecycle=GRACE, **UNREADY),
    pod("mixed-1", "n1", "mixed", lifecycle=GRACE),
    pod("mixed-2", "n2", "mixed"),
    service("one", 1, "one", **node_port(30001, externalIPs=["192.168.50.11"])),
    service("three", 2, "three"),
    service("same-node", 3, "three", trafficDistribution="PreferSameNode"),
    service("same-zone", 4, "three", trafficDistribution="PreferSameZone"),
    service("inside-local", 5, "one", internalTrafficPolicy="Local"),
    service("outside-local", 6, "one", **node_port(30002, externalTrafficPolicy="Local")),
    service(
        "empty",
        7,
        "nobody",
        type="NodePort",
        ports=[{"name": "t", "port": 80, "nodePort": 30003}, {"name": "u", "port": 53, "protocol": "UDP"}],
    ),
    service("sticky", 8, "three", **STICKY),
    service("half", 9, "half"),
    service("late", 10, "late"),
    service("published", 11, "late", publishNotReadyAddresses=True),
    service("drain", 12, "drain"),
    service("drain-local", 13, "drain", internalTrafficPolicy="Local"),
    service("mixed", 14, "mixed"),
    service(
        "balanced",
        15,
        "one",
        type="LoadBalancer",
        ports=[{"port": 81, "targetPort": 8080, "nodePort": 30004}],
        loadBalancerSourceRanges=["203.0.113.10/32"],
    ),
    service("abroad", 16, ""),
    service(
        "udp",
        17,
        "one",
        type="NodePort",
        ports=[{"port": 80, "targetPort": "u", "protocol": "UDP", "nodePort": 30005}],
    ),
    service("named", 18, "one", ports=[{"port": 80, "targetPort": "web"}]),
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "abroad-1", "labels": {"kubernetes.io/service-name": "abroad"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["203.0.113.20"]}],
    },
]
BALANCER = "192.168.50.13"  # n3's: routed there without any announcement

Expected = str | dict[str, str]


class Row(NamedTuple):
    """A request and what must come of it. ``by``: the pods that answer, all of them and nobody else. ``seen``: the
    client's address there, ``itself`` or an address by style. Values may differ by style or by mode."""

    name: str
    source: str
    target: str
    port: int = 80
    by: str = ""
    seen: Expected = ""
    verdict: Expected = "delivered"
    detail: Expected = ""
    protocol: Protocol = "tcp"
    connections: int = 1


NODE_1 = {"flannel": "10.244.1.0", "calico": "192.168.50.11"}  # n1 towards other nodes' pods
ON_NODE_2 = {"flannel": "10.244.2.1", "calico": "192.168.50.12"}  # n2 towards its own pods
REFUSED = {"flannel": "port unreachable, from 10.244.1.1", "calico": "port unreachable, from 192.168.50.11"}
REFUSED_2 = {"flannel": "port unreachable, from 10.244.2.1", "calico": "port unreachable, from 192.168.50.12"}

ROWS = (
    # Which endpoints
    Row("all endpoints have their turn", "n1-p1", "10.96.1.2", by="a1 a2 a3", seen="itself", connections=MANY),
    Row("the same for a node", "n1", "10.96.1.2", by="a1 a2 a3", connections=MANY),
    Row("hints: same node", "n2-p1", "10.96.1.3", by="a2", seen="itself", connections=MANY // 2),
    Row("hints: same zone", "n2-p1", "10.96.1.4", by="a1 a2", seen="itself", connections=MANY // 2),
    Row("hints: the only one of its zone", "n3-p1", "10.96.1.4", by="a3", seen="itself", connections=MANY // 2),
    Row("pods that are not ready get nothing", "n3-p1", "10.96.1.9", by="half-1", connections=MANY // 2),
    Row("no ready pod is no endpoint", "n3-p1", "10.96.1.10", verdict="refused", detail="port unreachable"),
    Row("not ready, and published", "n3-p1", "10.96.1.11", by="late"),
    Row("all terminate: those that serve are used", "n3-p1", "10.96.1.12", by="drain-1", connections=MANY // 2),
    Row("the same with policy Local", "n1-p1", "10.96.1.13", by="drain-1", connections=5),
    Row("one terminates: it gets nothing", "n3-p1", "10.96.1.14", by="mixed-2", connections=MANY // 2),
    Row("an endpoint outside", "n1-p1", "10.96.1.16", by="stranger", seen="192.168.50.11"),
    Row("named target port", "n3-p1", "10.96.1.18", by="one", seen="itself"),
    # ClusterIP: whose address
    Row("ClusterIP from a pod elsewhere", "n1-p1", "10.96.1.1", by="one", seen="itself"),
    Row("ClusterIP from a pod here", "n2-p1", "10.96.1.1", by="one", seen="itself"),
    Row("ClusterIP from a node elsewhere", "n1", "10.96.1.1", by="one", seen=NODE_1),
    Row("ClusterIP from the endpoint's node", "n2", "10.96.1.1", by="one", seen=ON_NODE_2),
    Row("ClusterIP from the endpoint itself", "one", "10.96.1.1", by="one", seen=ON_NODE_2),
    Row("UDP", "n1-p1", "10.96.1.17", by="one", seen="itself", protocol="udp"),
    Row("UDP from a node", "n1", "10.96.1.17", by="one", seen=NODE_1, protocol="udp"),
    # internalTrafficPolicy
    Row("internal Local, an endpoint here", "n2-p1", "10.96.1.5", by="one", seen="itself"),
    Row("internal Local, none here", "n1-p1", "10.96.1.5", verdict="dropped"),
    Row("internal Local, none here, from the node", "n1", "10.96.1.5", verdict="dropped"),
    # Node ports
    Row("node port, the endpoint's node", "client", "n2", 30001, by="one", seen=ON_NODE_2),
    Row("node port, another node", "client", "n1", 30001, by="one", seen=NODE_1),
    Row("node port, UDP", "client", "n1", 30005, by="one", seen=NODE_1, protocol="udp"),
    Row("node port, asked by a pod", "n1-p1", "n1", 30001, by="one", seen=NODE_1),
    Row("node port, another node asked by a pod", "n3-p1", "n1", 30001, by="one", seen=NODE_1),
    Row("node port, asked by the node", "n1", "n1", 30001, by="one", seen=NODE_1),
    Row(
        "node port on localhost",
        "n1",
        "127.0.0.1",
        30001,
        by="one",
        verdict={"iptables": "delivered", "nftables": "refused"},
        detail={"nftables": "RST"},
    ),
    Row("node port that no Service has", "client", "n1", 30999, verdict="refused", detail="RST"),
    Row("external Local, the endpoint's node", "client", "n2", 30002, by="one", seen="itself"),
    Row("external Local, another node", "client", "n1", 30002, verdict="dropped"),
    Row("external Local, another node, asked by its pod", "n1-p1", "n1", 30002, by="one", seen="itself"),
    Row("external Local, another node, asked by itself", "n1", "n1", 30002, by="one", seen=NODE_1),
    Row("external Local binds no ClusterIP", "n1-p1", "10.96.1.6", by="one", seen="itself"),
    Row("external IP", "client", "192.168.50.11", by="one", seen=NODE_1),
    Row("external IP, asked by a pod", "n1-p1", "192.168.50.11", by="one", seen=NODE_1),
    # Balancer's address, source ranges
    Row("balancer, a source in its ranges", "client", BALANCER, 81, by="one"),
    Row("balancer, another source", "stranger", BALANCER, 81, verdict="dropped"),
    Row("balancer, a pod that is in no range", "n1-p1", BALANCER, 81, verdict="dropped"),
    Row("source ranges bind no node port", "stranger", "n1", 30004, by="one", seen=NODE_1),
    Row("source ranges bind no ClusterIP", "n1-p1", "10.96.1.15", 81, by="one", seen="itself"),
    # Nobody there
    Row("no endpoints", "n1-p1", "10.96.1.7", verdict="refused", detail=REFUSED),
    Row("no endpoints, UDP", "n2-p1", "10.96.1.7", 53, verdict="refused", detail=REFUSED_2, protocol="udp"),
    Row("no endpoints, from a node", "n3", "10.96.1.7", verdict="refused"),
    Row("no endpoints, node port", "client", "n1", 30003, verdict="refused", detail="from 192.168.50.11"),
    Row(
        "undefined port of a ClusterIP",
        "n1-p1",
        "10.96.1.1",
        99,
        verdict={"iptables": "unreachable", "nftables": "refused"},
        detail={"iptables": "net unreachable, from 192.168.50.1", "flannel+nftables": "from 10.244.1.1"},
    ),
    Row(
        "address that no Service has",
        "n2-p1",
        "10.96.77.77",
        verdict={"iptables": "unreachable", "nftables": "dropped"},
        detail={"iptables": "net unreachable, from 192.168.50.1"},
    ),
    Row("a host outside does not know ClusterIPs", "client", "10.96.1.1", verdict="unreachable"),
    # Affinity
    Row("affinity, a pod", "n1-p1", "10.96.1.8", seen="itself", connections=MANY // 2),
    Row("affinity, a node", "n2", "10.96.1.8", connections=MANY // 2),
)  # fmt: skip


class Ran(NamedTuple):
    """A lab and what came of the table's rows."""

    lab: Lab
    answers: dict[str, ProbeAnswer]


@pytest.fixture(scope="module", params=CASES)
def ran(request: pytest.FixtureRequest) -> Iterator[Ran]:
    with Lab(str(TOPOLOGY), request.param, OBJECTS) as lab:
        path = "/api/v1/namespaces/default/services/balanced"
        balanced = lab.client.call("GET", path)
        balanced["status"] = {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}
        lab.client.call("PUT", f"{path}/status", balanced)
        for name in ("drain-1", "drain-2", "mixed-1"):
            lab.delete("pod", name)
        requests = [
            ProbeRequest(row.source, row.target, row.port, row.protocol, row.connections, timeout=PATIENCE)
            for row in ROWS
        ]
        yield Ran(lab, dict(zip((row.name for row in ROWS), lab.probes(requests), strict=True)))


def expected(value: Expected, spec: str) -> str:
    if isinstance(value, str):
        return value
    style, _, mode = spec.partition("+")
    return next((value[key] for key in (spec, style, mode) if key in value), "")


@pytest.mark.parametrize("row", ROWS, ids=[row.name.replace(" ", "-") for row in ROWS])
def test_service_behaves(ran: Ran, row: Row, request: pytest.FixtureRequest) -> None:
    spec = request.node.callspec.params["ran"]
    answer = ran.answers[row.name]
    result = answer.result

    verdict = expected(row.verdict, spec)
    assert result.verdict == verdict, result
    assert expected(row.detail, spec) in result.detail
    if verdict != "delivered":
        assert result.received == 0
        return
    assert result.received == row.connections
    if row.by:
        assert set(result.answers) == set(row.by.split())
    else:
        assert len(result.answers) == 1  # affinity: always the same, whoever it was
    seen = expected(row.seen, spec)
    if seen:
        assert set(result.sources) == {result.local_address if seen == "itself" else seen}


def test_open_connection_outlives_its_endpoint(ran: Ran, tmp_path: Path) -> None:
    """TCP entries are never deleted: who is connected stays so when the endpoint goes."""
    answered, gone = tmp_path / "answered", tmp_path / "gone"
    script = (
        "import os, signal, socket, time\n"
        "signal.alarm(60)\n"
        "s = socket.create_connection(('10.96.1.9', 80), 5)\n"
        "def ask():\n"
        "    s.sendall(b'GET /hostname HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "    return s.recv(999).decode().split()[-1]\n"
        "print(ask(), flush=True)\n"
        f"open({str(answered)!r}, 'w').close()\n"
        f"while not os.path.exists({str(gone)!r}): time.sleep(0.01)\n"
        "print(ask())\n"
    )
    told: list[str] = []
    thread = threading.Thread(
        target=lambda: told.extend(ran.lab.run("n2-p1", "/usr/bin/python3", "-c", script).stdout.split())
    )
    with ran.lab.capture("n2-p1") as capture:
        thread.start()
        while not answered.exists():
            assert thread.is_alive(), f"no first answer: {told}"
            time.sleep(0.01)
        ran.lab.ready("half-1", value=False)
        refused = ran.lab.probe("n2-p1", "10.96.1.9", 80, timeout=PATIENCE)
        gone.touch()
        thread.join(20)
    ran.lab.ready("half-1")

    assert told == ["half-1", "half-1"]
    assert refused.result.verdict == "refused"
    assert capture.stats.lost == 0


def test_silence_is_a_syn_that_is_sent_again(ran: Ran) -> None:
    with ran.lab.capture("n1-p1") as capture:
        assert ran.lab.probe("n1-p1", "10.96.1.5", 80, timeout=PATIENCE).result.verdict == "dropped"

    first = [journey.hops[0].packet for journey in capture.journeys() if journey.kind == "packet"]
    assert [(each.target, each.tcp_flags) for each in first if each.protocol == "tcp"] == [("10.96.1.5", "SYN")] * 2
