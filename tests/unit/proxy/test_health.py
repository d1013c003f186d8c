"""What kube-proxy answers to load balancers, on health check node ports and on its own."""

from __future__ import annotations

import json

from emulator.cluster.model import Cluster, Node, Topology
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort
from emulator.proxy.health import HealthCheck, health_answer, health_checks, own_answer

SERVICE = Service(
    namespace="ns1",
    name="svc1",
    type="LoadBalancer",
    cluster_ips=("10.96.0.5",),
    external_policy="Local",
    health_port=30999,
    ports=(ServicePort(name="", protocol="TCP", port=80, target=80, node_port=30080),),
)
NODES = tuple(Node(name=name, addresses=(), device="eth0", mtu=1500) for name in ("n1", "n2"))


def cluster() -> Cluster:
    slices = EndpointSlice(
        namespace="ns1",
        name="a",
        service="svc1",
        family=4,
        ports=(EndpointPort(name="", protocol="TCP", port=80),),
        endpoints=(Endpoint("10.244.0.1", node="n1"), Endpoint("10.244.0.2", node="n1")),
    )
    topology = Topology("t", (), (), ("10.244.0.0/16",), ("10.96.0.0/12",), ())
    return Cluster(topology=topology, nodes=NODES, pods=(), namespaces={}, services=(SERVICE,), slices=(slices,))


def answers_for_the_service(node: Node) -> list[HealthCheck]:
    return [check for check in health_checks(cluster(), node) if check.service]


def test_node_with_ready_endpoints_says_200_and_how_many() -> None:
    (check,) = answers_for_the_service(NODES[0])
    assert (check.port, check.family, check.answer.status) == (30999, 4, 200)
    assert dict(check.answer.headers)["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert json.loads(check.answer.body) == {
        "service": {"namespace": "ns1", "name": "svc1"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }


def test_node_without_says_503() -> None:
    (check,) = answers_for_the_service(NODES[1])
    assert check.answer.status == 503
    assert json.loads(check.answer.body)["localEndpoints"] == 0


def test_sick_proxy_says_503_whatever_there_is() -> None:
    answer = health_answer(SERVICE, 2, healthy=False)
    assert answer.status == 503
    assert json.loads(answer.body)["serviceProxyHealthy"] is False


def test_the_proxys_own_port_says_whether_it_works() -> None:
    (own,) = [check for check in health_checks(cluster(), NODES[1]) if not check.service]
    assert (own.port, own.family, own.answer.status) == (10256, 4, 200)
    assert own_answer(healthy=False).status == 503
