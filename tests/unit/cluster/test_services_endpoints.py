"""EndpointSlices: who is an endpoint of what, in which slice, with which conditions and hints."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.cluster.endpoints import Inputs, endpoint_slices
from emulator.cluster.model import Container, ContainerPort, Node, Pod
from emulator.cluster.services import EndpointPort, EndpointSlice, Service, ServicePort

ZONE = "topology.kubernetes.io/zone"
NODES = tuple(Node(f"n{number}", ("192.0.2.1",), "eth0", 1500, labels={ZONE: "ab"[number % 2]}) for number in range(4))
PORT = ServicePort("", "TCP", 80, 8080)


def pod(name: str, node: str = "n0", app: str = "web", **more: Any) -> Pod:
    number = zlib.crc32(name.encode()) % 65000
    more.setdefault("addresses", (f"10.244.{number // 250}.{number % 250 + 1}",))
    return Pod("default", name, node, labels={"app": app}, **more)


def service(name: str = "web", **more: Any) -> Service:
    given: dict[str, Any] = {"selector": {"app": "web"}, "ports": (PORT,), "cluster_ips": ("10.96.1.1",), **more}
    return Service("default", name, "ClusterIP", **given)


def slices(*pods: Pod, services: tuple[Service, ...] = (), **more: Any) -> tuple[EndpointSlice, ...]:
    return endpoint_slices(Inputs(services or (service(),), pods, NODES, **more))


def test_a_service_without_pods_has_an_empty_slice() -> None:
    (one,) = slices()
    assert (one.endpoints, one.ports, one.service_key) == ((), (), "default/web")
    assert one.name.startswith("web-")
    assert len(one.name) == len("web-") + 5


def test_pods_of_other_labels_and_namespaces_are_none() -> None:
    stranger = msgspec.structs.replace(pod("b"), namespace="other")
    (one,) = slices(pod("a"), stranger, pod("c", app="db"))
    assert [endpoint.pod for endpoint in one.endpoints] == ["default/a"]


def test_a_selector_wants_all_its_labels() -> None:
    picky = service(selector={"app": "web", "tier": "front"})
    assert slices(pod("a"), services=(picky,))[0].endpoints == ()


@pytest.mark.parametrize(
    ("state", "down", "publish", "expected"),
    [
        ({}, (), False, (True, True, False)),
        ({"ready": False}, (), False, (False, False, False)),
        ({"terminating": True}, (), False, (False, True, True)),
        ({"terminating": True, "ready": False}, (), False, (False, False, True)),
        ({}, ("n0",), False, (False, False, False)),
        ({"ready": False}, (), True, (True, False, False)),
        ({"terminating": True}, (), True, (True, True, True)),
    ],
)
def test_conditions(state: dict[str, Any], down: tuple[str, ...], publish: bool, expected: tuple[bool, ...]) -> None:
    (one,) = slices(pod("a", **state), services=(service(publish_not_ready=publish),), down=frozenset(down))
    (endpoint,) = one.endpoints
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == expected


def test_a_named_port_is_each_pods_own() -> None:
    named = service(ports=(ServicePort("web", "TCP", 80, "http"), ServicePort("dns", "UDP", 53, 53)))
    pods = [
        pod(name, containers=(Container("c", tuple(ContainerPort(port, "TCP", "http") for port in ports)),))
        for name, ports in (("a", [8080]), ("b", [9090]), ("c", [8080]), ("d", []))
    ]
    found = {one.ports: [endpoint.pod for endpoint in one.endpoints] for one in slices(*pods, services=(named,))}
    dns = EndpointPort("dns", "UDP", 53)
    assert found == {
        (EndpointPort("web", "TCP", 8080), dns): ["default/a", "default/c"],
        (EndpointPort("web", "TCP", 9090), dns): ["default/b"],
        (dns,): ["default/d"],
    }


def test_a_ports_name_counts_for_its_protocol_only() -> None:
    named = service(ports=(ServicePort("", "UDP", 53, "dns"),))
    tcp = pod("a", containers=(Container("c", (ContainerPort(53, "TCP", "dns"),)),))
    assert slices(tcp, services=(named,))[0].ports == ()


def test_each_family_has_its_slices() -> None:
    both = pod("a", addresses=("10.244.0.2", "fd00::2"))
    found = slices(both, services=(service(families=(6, 4)),))
    assert [(one.family, [endpoint.address for endpoint in one.endpoints]) for one in found] == [
        (6, ["fd00::2"]),
        (4, ["10.244.0.2"]),
    ]


def test_a_host_name_needs_the_services_name_as_subdomain() -> None:
    pods = [
        pod("a", hostname="a", subdomain="web", named_host=True),
        pod("b", hostname="b", subdomain="web"),
        pod("c", hostname="c", subdomain="other", named_host=True),
    ]
    (one,) = slices(*pods, services=(service(headless=True, cluster_ips=()),))
    assert [endpoint.hostname for endpoint in one.endpoints] == ["a", "", ""]


def test_a_pod_without_address_is_no_endpoint_yet() -> None:
    assert slices(pod("a", addresses=()))[0].endpoints == ()


def test_slices_hold_a_hundred_endpoints() -> None:
    pods = [pod(f"p{number}", addresses=(f"10.244.{number // 250}.{number % 250}",)) for number in range(250)]
    found = slices(*pods)
    assert [len(one.endpoints) for one in found] == [100, 100, 50]
    assert len({one.name for one in found}) == 3


class Controller:
    """Endpoints change by change."""

    def __init__(self, *services: Service) -> None:
        self.now: Inputs | None = None
        self.services = services
        self.slices: tuple[EndpointSlice, ...] = ()

    def see(self, *pods: Pod, **more: Any) -> tuple[EndpointSlice, ...]:
        now = Inputs(self.services, pods, NODES, **more)
        self.slices = endpoint_slices(now, self.now, self.slices)
        self.now = now
        return self.slices


def test_what_does_not_change_is_the_same_object() -> None:
    controller = Controller(service(), service("db", selector={"app": "db"}))
    first = controller.see(pod("a"), pod("b", app="db"))
    assert controller.see(pod("a"), pod("b", app="db")) is first
    second = controller.see(pod("a"), pod("b", app="db", ready=False))
    assert second[0] is first[0]
    assert second[1].name == first[1].name
    assert not second[1].endpoints[0].ready
    assert controller.see(pod("a"), pod("b", app="db", ready=False), pod("c", app="x")) is second


def test_an_endpoint_stays_in_its_slice_when_others_go() -> None:
    pods = [pod(f"p{number}", addresses=(f"10.244.{number // 250}.{number % 250}",)) for number in range(250)]
    controller = Controller(service())
    first = controller.see(*pods)
    second = controller.see(*pods[1:])
    assert [len(one.endpoints) for one in second] == [99, 100, 50]
    assert (second[1], second[2]) == (first[1], first[2])
    assert second[1] is first[1]
    third = controller.see(*pods[1:], pod("new"))
    assert [len(one.endpoints) for one in third] == [100, 100, 50], "the fullest with room takes the new one"


def test_the_last_endpoint_leaves_an_empty_slice_behind() -> None:
    controller = Controller(service())
    controller.see(pod("a"))
    (empty,) = controller.see()
    assert (empty.endpoints, empty.ports) == ((), ())
    (again,) = controller.see(pod("b"))
    assert [endpoint.pod for endpoint in again.endpoints] == ["default/b"]


def test_endpoints_follow_a_node_that_goes_down_and_comes_back() -> None:
    pods = (pod("a", "n0"), pod("b", "n1"))
    controller = Controller(service(), service("db", selector={"app": "db"}))
    first = controller.see(*pods)
    second = controller.see(*pods, down=frozenset({"n1"}))
    assert [endpoint.ready for endpoint in second[0].endpoints] == [True, False]
    assert second[1] is first[1]
    assert [endpoint.ready for endpoint in controller.see(*pods)[0].endpoints] == [True, True]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([f"p{number}" for number in range(6)]),
            st.tuples(st.booleans(), st.booleans(), st.sampled_from(["web", "db"]), st.sampled_from(["n0", "n1"])),
        ),
        max_size=6,
    ),
    st.lists(st.frozensets(st.sampled_from(["n0", "n1"])), min_size=6, max_size=6),
)
def test_step_by_step_comes_to_the_same_as_at_once(
    steps: list[dict[str, tuple[bool, bool, str, str]]], downs: list[frozenset[str]]
) -> None:
    services = (service(), service("db", selector={"app": "db"}), service("both", selector={"app": "web"}))
    controller = Controller(*services)
    for step, down in zip(steps, downs, strict=False):
        pods = tuple(
            pod(name, node, app, ready=ready, terminating=ends) for name, (ready, ends, app, node) in step.items()
        )
        found = controller.see(*pods, down=down)
        fresh = endpoint_slices(Inputs(services, pods, NODES, down=down))

        def content(slices: tuple[EndpointSlice, ...]) -> Counter[Any]:
            return Counter((one.service, endpoint) for one in slices for endpoint in one.endpoints)

        assert content(found) == content(fresh)
        assert len({one.name for one in found}) == len(found)


def test_preferring_what_is_close_hints_at_the_own_zone_and_node() -> None:
    pods = (pod("a", "n0"), pod("b", "n1"), pod("c", "n1", ready=False))
    (one,) = slices(*pods, services=(service(distribution="PreferClose"),))
    assert [endpoint.zones for endpoint in one.endpoints] == [("a",), ("b",), ()]
    (one,) = slices(*pods, services=(service(distribution="PreferSameNode"),))
    assert [endpoint.nodes for endpoint in one.endpoints] == [("n0",), ("n1",), ()]
    assert slices(*pods)[0].endpoints[0].zones == ()


AUTO = {"service.kubernetes.io/topology-mode": "Auto"}


@pytest.mark.parametrize(
    ("in_a", "in_b", "hints"),
    [
        (3, 3, {("a", "a"): 3, ("b", "b"): 3}),
        (4, 2, {("a", "a"): 3, ("a", "b"): 1, ("b", "b"): 2}),
        (2, 1, {("a", ""): 2, ("b", ""): 1}),  # two zones would need two each: three are too few
        (1, 0, {("a", ""): 1}),
    ],
)
def test_auto_deals_endpoints_out_in_proportion(in_a: int, in_b: int, hints: dict[tuple[str, str], int]) -> None:
    pods = [pod(f"a{number}", "n0") for number in range(in_a)] + [pod(f"b{number}", "n1") for number in range(in_b)]
    (one,) = slices(*pods, services=(service(annotations=AUTO),))
    found = Counter((endpoint.zone, "".join(endpoint.zones)) for endpoint in one.endpoints)
    assert found == hints


def test_auto_takes_from_each_zone_what_it_has_to_spare() -> None:
    nodes = tuple(Node(f"n{zone}", ("192.0.2.1",), "eth0", 1500, labels={ZONE: zone}) for zone in "abc")
    pods = tuple(pod(f"{zone}{number}", f"n{zone}") for zone in "ab" for number in range(3))
    (one,) = endpoint_slices(Inputs((service(annotations=AUTO),), pods, nodes))
    found = Counter((endpoint.zone, "".join(endpoint.zones)) for endpoint in one.endpoints)
    assert found == {("a", "a"): 2, ("a", "c"): 1, ("b", "b"): 2, ("b", "c"): 1}


def test_auto_counts_the_nodes_that_are_up() -> None:
    pods = tuple(pod(name, node) for name, node in (("a", "n0"), ("b", "n2"), ("c", "n1"), ("d", "n3")))
    controller = Controller(service(annotations=AUTO))
    assert {endpoint.zones for endpoint in controller.see(*pods)[0].endpoints} == {("a",), ("b",)}
    alone = tuple(pod(name, "n0") for name in "ab")
    controller.see(*alone)
    nodes = frozenset({"n1", "n3"})
    assert {endpoint.zones for endpoint in controller.see(*alone, down=nodes)[0].endpoints} == {()}
    hinted = {endpoint.zones for endpoint in controller.see(*alone)[0].endpoints}
    assert hinted == {("a",), ("b",)}, "no pod is on the nodes that came back, and yet"


def test_auto_gives_no_hints_if_a_node_has_no_zone() -> None:
    pods = [pod(f"p{number}", f"n{number % 2}") for number in range(6)]
    nodes = (*NODES, Node("n9", ("192.0.2.9",), "eth0", 1500))
    (one,) = endpoint_slices(Inputs((service(annotations=AUTO),), tuple(pods), nodes))
    assert {endpoint.zones for endpoint in one.endpoints} == {()}


def user_slice(name: str = "mine", **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"port": 80, "name": "a"}, {"name": "any"}],
        "endpoints": [{"addresses": ["192.0.2.1", "192.0.2.2"], "conditions": {"ready": False}, "nodeName": "n1"}],
        **more,
    }


SELECTORLESS = service(selector={}, selects=False)


def test_a_users_slice_is_taken_as_a_proxy_reads_it() -> None:
    (one,) = slices(services=(SELECTORLESS,), given=(user_slice(),))
    assert (one.made_by_us, one.name, one.service, one.ports) == (False, "mine", "web", (EndpointPort("a", "TCP", 80),))
    (endpoint,) = one.endpoints
    assert (endpoint.address, endpoint.node, endpoint.ready, endpoint.serving) == ("192.0.2.1", "n1", False, True)


def test_slices_of_host_names_and_without_label_have_no_effect() -> None:
    nameless = user_slice()
    nameless["metadata"]["labels"] = {}
    assert slices(services=(SELECTORLESS,), given=(user_slice(addressType="FQDN", endpoints=[]), nameless)) == ()


def test_endpoints_of_a_selectorless_service_are_mirrored() -> None:
    old: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "web", "namespace": "default"},
        "subsets": [
            {
                "addresses": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2"}],
                "ports": [{"port": 80}],
            }
        ],
    }
    found = slices(services=(SELECTORLESS,), given=(old,))
    assert [(one.family, [(e.address, e.ready) for e in one.endpoints]) for one in found] == [
        (4, [("192.0.2.1", True), ("192.0.2.2", False)]),
        (6, [("fd00::1", True)]),
    ]
    assert all(one.name.startswith("web-") for one in found)
    skipped = {**old, "metadata": {**old["metadata"], "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}}
    assert slices(services=(SELECTORLESS,), given=(skipped,)) == ()
    assert slices(pod("a"), given=(old,)) == slices(pod("a")), "with a selector, the controller's own count"
