"""Which UDP entries are stale: by the flow's original target, and by where its answers would come from."""

from __future__ import annotations

import pytest

from emulator.cluster.model import Cluster, Topology
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Ingress, Service, ServicePort
from emulator.proxy.conntrack import Entry, served, stale

PORTS = (ServicePort("dns", "UDP", 53, 8053, 30053), ServicePort("tcp", "TCP", 53, 8053))
ENDPOINTS = (
    Endpoint("10.244.1.2"),
    Endpoint("10.244.1.3", ready=False, serving=True, terminating=True),
    Endpoint("10.244.1.4", ready=False, serving=False),
)
DNS = Service(
    "kube-system",
    "dns",
    "LoadBalancer",
    (4,),
    ("10.96.0.10",),
    ports=PORTS,
    external_ips=("198.51.100.1",),
    load_balancer=(Ingress("203.0.113.9"),),
)
EMPTY = Service("default", "empty", "ClusterIP", (4,), ("10.96.0.11",), ports=(ServicePort("", "UDP", 53, 53),))
HEADLESS = Service("default", "none", "ClusterIP", (4,), headless=True, ports=(ServicePort("", "UDP", 53, 53),))
SLICE = EndpointSlice(
    "kube-system",
    "dns-abcde",
    "dns",
    4,
    (EndpointPort("dns", "UDP", 8053), EndpointPort("tcp", "TCP", 8053)),
    ENDPOINTS,
)
CLUSTER = Cluster(Topology("t", (), (), (), (), ()), (), (), {}, services=(DNS, EMPTY, HEADLESS), slices=(SLICE,))


def flow(target: str, port: int, replier: str, reply_port: int = 8053) -> Entry:
    return Entry("10.244.3.3", 4000, target, port, replier, reply_port)


@pytest.mark.parametrize("target", ["10.96.0.10", "198.51.100.1", "203.0.113.9"])
@pytest.mark.parametrize(
    ("replier", "gone"),
    [("10.244.1.2", False), ("10.244.1.3", False), ("10.244.1.4", True), ("10.244.9.9", True)],
)
def test_flow_to_a_service_stays_as_long_as_its_endpoint_serves(target: str, replier: str, gone: bool) -> None:
    entry = flow(target, 53, replier)

    assert list(stale([entry], served(CLUSTER))) == ([entry] if gone else [])


def test_node_port_counts_whatever_the_address() -> None:
    kept, lost = flow("192.168.50.11", 30053, "10.244.1.2"), flow("192.168.50.12", 30053, "10.244.9.9")

    assert list(stale([kept, lost], served(CLUSTER))) == [lost]


def test_endpoint_that_answers_from_another_port_is_none() -> None:
    entry = flow("10.96.0.10", 53, "10.244.1.2", 53)

    assert list(stale([entry], served(CLUSTER))) == [entry]


def test_flow_to_a_service_without_any_endpoint_goes() -> None:
    entry = flow("10.96.0.11", 53, "10.244.1.2", 53)

    assert list(stale([entry], served(CLUSTER))) == [entry]


@pytest.mark.parametrize(("target", "port"), [("10.96.0.10", 54), ("10.244.1.2", 8053), ("8.8.8.8", 53)])
def test_flow_to_anything_else_is_left_alone(target: str, port: int) -> None:
    assert not list(stale([flow(target, port, target, port)], served(CLUSTER)))


def test_nothing_is_known_where_there_is_no_udp() -> None:
    assert served(Cluster(CLUSTER.topology, (), (), {}, services=(HEADLESS,))).empty
    assert not served(CLUSTER).empty
