"""Which endpoints a node uses: policies, readiness, terminating ones, hints."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Ingress, Service, ServicePort
from emulator.proxy.endpoints import (
    choose,
    externally_accessible,
    local_ready,
    proxied,
    same_everywhere,
    slices_by_service,
    targets,
    uses_cluster,
    uses_local,
)

PORT = ServicePort(name="p80", protocol="TCP", port=80, target=8080)
NODE_PORT = ServicePort(name="p80", protocol="TCP", port=80, target=8080, node_port=30080)


def service(**fields: Any) -> Service:
    return Service(
        **{"namespace": "ns1", "name": "svc1", "type": "ClusterIP", "cluster_ips": ("10.96.0.5",), "ports": (PORT,)}
        | fields
    )


def slice_of(*endpoints: Endpoint, name: str = "a", ports: tuple[EndpointPort, ...] = ()) -> EndpointSlice:
    return EndpointSlice(
        namespace="ns1",
        name=name,
        service="svc1",
        family=4,
        ports=ports or (EndpointPort(name="p80", protocol="TCP", port=8080),),
        endpoints=endpoints,
    )


def ready(number: int, node: str = "n1", **fields: Any) -> Endpoint:
    return Endpoint(address=f"10.244.0.{number}", node=node, **fields)


def ending(number: int, node: str = "n1") -> Endpoint:
    return ready(number, node, ready=False, terminating=True)


def unready(number: int, node: str = "n1") -> Endpoint:
    return ready(number, node, ready=False, serving=False)


LOCAL_INSIDE = {"internal_policy": "Local"}
LOCAL_OUTSIDE = {"type": "NodePort", "external_policy": "Local", "ports": (NODE_PORT,)}
CASES: dict[str, tuple[dict[str, Any], list[Endpoint], str, str, bool]] = {
    # Service, endpoints, last octets of the cluster list and of the local list as n1 sees them, usable anywhere
    "no endpoint": ({}, [], "", "", False),
    "ready ones, wherever they are": ({}, [ready(1), ready(2, "n2")], "1 2", "", True),
    "one that is not ready is left out": ({}, [ready(1), unready(2)], "1", "", True),
    "none ready": ({}, [unready(1)], "", "", False),
    "an ending one is left out while another is ready": ({}, [ready(1, "n2"), ending(2)], "1", "", True),
    "ending ones serve when no other does": ({}, [ending(1), ending(2, "n2"), unready(3)], "1 2", "", True),
    "an ending one that serves no more": ({}, [ready(1, ready=False, serving=False, terminating=True)], "", "", False),
    "internal Local": (LOCAL_INSIDE, [ready(1), ready(2, "n2")], "", "1", True),
    "internal Local, none here": (LOCAL_INSIDE, [ready(2, "n2")], "", "", True),
    "internal Local, an ending one here, a ready one elsewhere": (
        LOCAL_INSIDE,
        [ending(1), ready(2, "n2")],
        "",
        "1",
        True,
    ),
    "external Local has the cluster list too": (LOCAL_OUTSIDE, [ready(1), ready(2, "n2")], "1 2", "1", True),
    "external Local without anything external": ({"external_policy": "Local"}, [ready(1)], "1", "", True),
    "external Local, none here": (LOCAL_OUTSIDE, [ready(2, "n2")], "2", "", True),
    "external Local, only ending ones": (LOCAL_OUTSIDE, [ending(1), ending(2, "n2")], "1 2", "1", True),
    "zone hints": ({}, [ready(1, zones=("z1",)), ready(2, zones=("z2",))], "1", "", True),
    "a zone hint is missing": ({}, [ready(1, zones=("z1",)), ready(2)], "1 2", "", True),
    "no hint for this zone": ({}, [ready(1, zones=("z2",)), ready(2, zones=("z3",))], "1 2", "", True),
    "hints of those that are not ready do not count": ({}, [ready(1, zones=("z1",)), unready(2)], "1", "", True),
    "node hints": ({}, [ready(1, nodes=("n1",)), ready(2, "n2", nodes=("n2",))], "1", "", True),
    "node hints go before zone hints": (
        {},
        [ready(1, nodes=("n1",), zones=("z1",)), ready(2, nodes=("n2",), zones=("z1",))],
        "1",
        "",
        True,
    ),
    "zone hints if no node hint is for here": (
        {},
        [ready(1, nodes=("n2",), zones=("z1",)), ready(2, nodes=("n3",), zones=("z2",))],
        "1",
        "",
        True,
    ),
    "ending ones have no topology": (
        {},
        [ending(1), ready(2, ready=False, terminating=True, zones=("z2",))],
        "1 2",
        "",
        True,
    ),
    "the local list ignores hints": (
        LOCAL_OUTSIDE,
        [ready(1, zones=("z2",)), ready(2, "n2", zones=("z1",))],
        "2",
        "1",
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_node_uses(case: str) -> None:
    fields, endpoints, cluster, local, anywhere = CASES[case]
    subject = service(**fields)
    (port,) = subject.ports
    candidates = targets([slice_of(*endpoints)], port)

    choice = choose(candidates, subject, port, 4, "n1", {"topology.kubernetes.io/zone": "z1"})

    assert [each.address for each in choice.cluster] == [f"10.244.0.{octet}" for octet in cluster.split()]
    assert [each.address for each in choice.local] == [f"10.244.0.{octet}" for octet in local.split()]
    assert choice.anywhere is anywhere
    assert {each.address for each in choice.reachable} == {each.address for each in (*choice.cluster, *choice.local)}


def test_reachable_is_the_union_without_doubles() -> None:
    subject = service(**LOCAL_OUTSIDE)
    found = targets(
        [slice_of(ready(1, zones=("z2",)), ready(2, "n2", zones=("z1",)), ready(3, zones=("z1",)))], NODE_PORT
    )

    choice = choose(found, subject, NODE_PORT, 4, "n1", {"topology.kubernetes.io/zone": "z1"})

    assert [each.text for each in choice.reachable] == ["10.244.0.2:8080", "10.244.0.3:8080", "10.244.0.1:8080"]


def test_targets_are_those_of_the_ports_name_and_protocol_each_once_sorted_as_text() -> None:
    other = EndpointPort(name="p80", protocol="UDP", port=5353)
    slices = [
        slice_of(ready(9), ready(10)),
        slice_of(ready(9), name="b"),
        slice_of(ready(1), name="c", ports=(other,)),
        slice_of(ready(1), name="d", ports=(EndpointPort(name="p81", protocol="TCP", port=81),)),
        slice_of(ready(2), name="e", ports=(EndpointPort(name="p80", protocol="TCP", port=9090),)),
    ]

    assert [each.text for each in targets(slices, PORT)] == ["10.244.0.10:8080", "10.244.0.2:9090", "10.244.0.9:8080"]


def test_an_address_that_a_new_pod_took_over_is_the_new_pods() -> None:
    for slices in ([slice_of(ending(1), ready(1))], [slice_of(ready(1)), slice_of(ending(1), name="b")]):
        (found,) = targets(slices, PORT)
        assert found.endpoint.ready


def test_text_of_an_ipv6_target_has_brackets() -> None:
    slices = [
        EndpointSlice(
            namespace="ns1",
            name="six",
            service="svc1",
            family=6,
            ports=(EndpointPort(name="p80", protocol="TCP", port=80),),
            endpoints=(Endpoint(address="fd00::1"),),
        )
    ]
    assert [each.text for each in targets(slices, PORT)] == ["[fd00::1]:80"]


@pytest.mark.parametrize(
    ("fields", "port", "accessible", "cluster", "local"),
    [
        ({}, PORT, False, True, False),
        ({"internal_policy": "Local"}, PORT, False, False, True),
        ({"internal_policy": "Local"}, NODE_PORT, True, True, True),
        ({"external_ips": ("192.0.2.1",)}, PORT, True, True, False),
        ({"external_ips": ("2001:db8::1",)}, PORT, False, True, False),
        ({"load_balancer": (Ingress("192.0.2.1"),), "external_policy": "Local"}, PORT, True, True, True),
        ({"load_balancer": (Ingress("192.0.2.1", proxy=True),), "external_policy": "Local"}, PORT, False, True, False),
    ],
)
def test_which_lists_a_port_uses(
    fields: dict[str, Any], port: ServicePort, accessible: bool, cluster: bool, local: bool
) -> None:
    subject = service(**fields)
    assert externally_accessible(subject, port, 4) is accessible
    assert uses_cluster(subject, port, 4) is cluster
    assert uses_local(subject, port, 4) is local


def test_nodes_agree_unless_policies_or_hints_tell_them_apart() -> None:
    plain, hinted = targets([slice_of(ready(1))], PORT), targets([slice_of(ready(1, zones=("z1",)))], PORT)
    assert same_everywhere(service(), PORT, 4, plain)
    assert not same_everywhere(service(), PORT, 4, hinted)
    assert not same_everywhere(service(internal_policy="Local"), PORT, 4, plain)


def test_headless_and_external_name_services_are_not_proxied() -> None:
    assert proxied(service())
    assert not proxied(service(headless=True, cluster_ips=()))
    assert not proxied(service(type="ExternalName", cluster_ips=(), external_name="example.com"))


@pytest.mark.parametrize("value", ["", "mine"])
def test_a_service_that_is_labelled_for_another_proxy_is_left_to_it(value: str) -> None:
    labelled = service(labels={"service.kubernetes.io/service-proxy-name": value})
    assert not proxied(labelled)
    assert proxied(labelled, "mine") == (value == "mine")
    assert not proxied(labelled, "kube-router")


def test_a_service_that_is_labelled_as_headless_is_not_proxied() -> None:
    assert not proxied(service(labels={"service.kubernetes.io/headless": ""}))


def test_slices_are_found_by_service_and_family() -> None:
    one = slice_of(ready(1))
    assert slices_by_service([one]) == {("ns1/svc1", 4): [one]}


def test_local_ready_endpoints_are_counted_once_over_all_ports() -> None:
    ports = (PORT, ServicePort(name="p81", protocol="TCP", port=81, target=81))
    both = tuple(EndpointPort(name=each.name, protocol="TCP", port=8080) for each in ports)
    slices = [slice_of(ready(1), ready(2, "n2"), unready(3), ending(4), ready(5), ports=both)]
    assert local_ready(service(ports=ports), slices, "n1") == 2
    assert local_ready(service(ports=ports), slices, "n2") == 1
    assert local_ready(service(ports=ports), slices, "n3") == 0
