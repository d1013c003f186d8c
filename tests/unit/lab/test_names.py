"""What people call things."""

from __future__ import annotations

import pytest

from emulator.cluster.model import Cluster, Interface, Machine, Pod, Topology
from emulator.cluster.services import Ingress, Service, ServicePort
from emulator.errors import NotFound, UserError
from emulator.lab.names import common_address, resolve, resolve_target, service_port, split_port


def machine(name: str, kind: str, *addresses: str) -> Machine:
    interface = Interface("eth0", "02:00:00:00:00:01", addresses, 1500, "s1", f"s1-{name}")
    return Machine(name, kind, (interface,))  # type: ignore[arg-type]


MACHINES = (
    machine("n1", "node", "192.168.50.11/24"),
    machine("client", "host", "203.0.113.10/24"),
    machine("web", "host", "203.0.113.11/24"),
)
PODS = (
    Pod("default", "web-0", "n1", ("10.244.1.2", "fd00::2")),
    Pod("default", "web", "n1", ("10.244.1.3",)),
    Pod("shop", "cart", "n1", ("10.244.1.4",)),
)
SERVICES = (
    Service("default", "web", "ClusterIP", (4,), ("10.96.0.20",), ports=(ServicePort("", "TCP", 80, 8080),)),
    Service(
        "shop",
        "cart",
        "LoadBalancer",
        (4,),
        ("10.96.0.21",),
        ports=(
            ServicePort("http", "TCP", 80, "http"),
            ServicePort("dns", "UDP", 53, 53),
            ServicePort("t", "TCP", 53, 53),
        ),
        load_balancer=(Ingress("203.0.113.200"),),
    ),
    Service("default", "peers", "ClusterIP", (4,), headless=True),
)
CLUSTER = Cluster(Topology("t", MACHINES, (), (), (), ()), (), PODS, {}, services=SERVICES)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("web-0", "pod/default/web-0"),
        ("default/web-0", "pod/default/web-0"),
        ("pod/web-0", "pod/default/web-0"),
        ("pod/shop/cart", "pod/shop/cart"),
        ("shop/cart", "pod/shop/cart"),
        ("n1", "node/n1"),
        ("node/n1", "node/n1"),
        ("host/web", "host/web"),
        ("10.244.1.2", "10.244.1.2"),
        ("fd00:0::2", "fd00::2"),
    ],
)
def test_name_means_one_place(text: str, label: str) -> None:
    assert resolve(CLUSTER, text).label == label


def test_pod_comes_before_a_machine_of_the_same_name() -> None:
    assert resolve(CLUSTER, "web").label == "pod/default/web"
    assert resolve(CLUSTER, "host/web").label == "host/web"


@pytest.mark.parametrize(
    ("text", "label", "address", "port"),
    [
        ("service/web", "service/default/web", "10.96.0.20", ""),
        ("svc/shop/cart", "service/shop/cart", "10.96.0.21", ""),
        ("service/shop/cart:http", "service/shop/cart", "10.96.0.21", "http"),
        ("lb/shop/cart", "lb/shop/cart", "203.0.113.200", ""),
    ],
)
def test_service_is_a_place_without_a_namespace_of_its_own(text: str, label: str, address: str, port: str) -> None:
    found = resolve(CLUSTER, text)

    assert (found.label, found.ns, found.addresses, found.port) == (label, "", (address,), port)


@pytest.mark.parametrize(
    ("text", "port", "protocol", "found"),
    [
        ("service/web", 0, "tcp", ("TCP", 80)),
        ("service/web", 80, "tcp", ("TCP", 80)),
        ("service/shop/cart:http", 0, "tcp", ("TCP", 80)),
        ("service/shop/cart", 53, "udp", ("UDP", 53)),
        ("service/shop/cart", 0, "udp", ("UDP", 53)),
    ],
)
def test_port_of_a_service_by_number_by_name_or_because_it_is_the_only_one(
    text: str, port: int, protocol: str, found: tuple[str, int]
) -> None:
    each = service_port(resolve(CLUSTER, text), port, protocol)

    assert (each.protocol, each.port) == found


@pytest.mark.parametrize(
    ("text", "port", "protocol"),
    [("service/shop/cart", 0, "tcp"), ("service/web", 81, "tcp"), ("service/web:x", 0, "tcp")],
)
def test_port_that_a_service_does_not_have_or_has_twice_is_refused(text: str, port: int, protocol: str) -> None:
    with pytest.raises(UserError, match=r"none|more than one"):
        service_port(resolve(CLUSTER, text), port, protocol)


@pytest.mark.parametrize("text", ["service/peers", "lb/web"])
def test_service_without_such_an_address_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        resolve(CLUSTER, text)


def test_name_of_a_port_stays_with_its_service() -> None:
    assert split_port("service/web:http") == ("service/web:http", 0)
    assert split_port("service/web:80") == ("service/web", 80)


@pytest.mark.parametrize(
    "text", ["service/", "service/nope", "web-1", "node/client", "shop/web-0", "pod/", "", "../x", "a;b"]
)
def test_unknown_name_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        resolve(CLUSTER, text)


def test_near_name_is_suggested() -> None:
    with pytest.raises(NotFound) as caught:
        resolve(CLUSTER, "clent")
    assert "client" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("web-0", ("web-0", 0)),
        ("web-0:80", ("web-0", 80)),
        ("10.0.0.1:443", ("10.0.0.1", 443)),
        ("fd00::1", ("fd00::1", 0)),
        ("[fd00::1]:80", ("fd00::1", 80)),
        ("[fd00::1]", ("fd00::1", 0)),
    ],
)
def test_port_is_split_off(text: str, parts: tuple[str, int]) -> None:
    assert split_port(text) == parts


@pytest.mark.parametrize("text", ["a:0", "a:65536", "a:x", "a:", "[fd00::1]80", "[fd00::1", "a:٣"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        split_port(text)


def test_common_address_prefers_the_targets_first_and_respects_families() -> None:
    dual, four = resolve(CLUSTER, "web-0"), resolve(CLUSTER, "shop/cart")
    assert common_address(dual, dual) == "10.244.1.2"
    assert common_address(dual, dual, 6) == "fd00::2"
    with pytest.raises(UserError, match="no common IPv6"):
        common_address(four, dual, 6)


@pytest.mark.parametrize(
    ("text", "name", "service"),
    [
        ("web.default.svc", "web.default.svc", "default/web"),
        ("CART.shop.svc.cluster.local.", "CART.shop.svc.cluster.local.", "shop/cart"),
        ("web.default.svc.example", "web.default.svc.example", ""),
        ("nobody.default.svc", "nobody.default.svc", ""),
        ("www.example.com", "www.example.com", ""),
        ("web.", "web.", ""),
        ("_http._tcp.web", "_http._tcp.web", ""),
        ("dns/web", "web", ""),
        ("dns/web-0", "web-0", ""),
    ],
)
def test_dns_names_are_targets(text: str, name: str, service: str) -> None:
    place = resolve_target(CLUSTER, text)
    assert (place.name, place.label, place.ns, place.addresses) == (name, name, "", ())
    assert (place.service.key if place.service is not None else "") == service


@pytest.mark.parametrize("text", ["web", "web-0", "n1", "shop/cart", "service/web", "10.244.1.2", "lb/shop/cart"])
def test_places_are_no_dns_names(text: str) -> None:
    assert resolve_target(CLUSTER, text) == resolve(CLUSTER, text)


@pytest.mark.parametrize("text", ["web-9", "10.244.1.999", "a..b", "shop/a.b", ".web", "a.b c", f"{'a' * 64}.b"])
def test_what_is_neither_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        resolve_target(CLUSTER, text)


def test_dns_names_are_checked() -> None:
    with pytest.raises(UserError, match="is no DNS name"):
        resolve_target(CLUSTER, "dns/a..b")
