"""Who gets which ClusterIP and node port: families, bands, what stays and what is refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.cluster.service_records import Held, carried_over, service_records
from emulator.cluster.services import Service
from emulator.errors import ManifestError

V4, V6 = "10.96.0.0/12", "fd00:10:96::/112"
DUAL = (V4, V6)


def service(name: str = "web", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    body = {"selector": {"app": "web"}, "ports": [{"port": 80}], **spec}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {key: value for key, value in body.items() if value is not ...},
    }


class Cluster:
    """Services change by change."""

    def __init__(self, *cidrs: str) -> None:
        self.cidrs = cidrs or (V4,)
        self.held: list[Held] = []

    def apply(self, *manifests: dict[str, Any]) -> dict[str, Service]:
        records = service_records(manifests, self.cidrs, self.held)
        self.held = [Held(*pair) for pair in zip(manifests, records, strict=True)]
        return {record.name: record for record in records}

    def refusal(self, *manifests: dict[str, Any]) -> tuple[str, str, str]:
        with pytest.raises(ManifestError) as error:
            self.apply(*manifests)
        (problem,) = error.value.problems
        return problem.subject, problem.path, problem.reason


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_plain_service_gets_one_address_of_the_upper_band(cluster: Cluster) -> None:
    record = cluster.apply(service())["web"]
    assert (record.families, record.family_policy) == ((4,), "SingleStack")
    offset = int(ip_address(record.cluster_ips[0])) - int(ip_network(V4).network_address)
    assert 256 < offset < ip_network(V4).num_addresses - 1
    assert record.ports[0].target == 80
    assert not record.allocated_ports


def test_the_same_name_gets_the_same_address_whatever_else_there_is() -> None:
    alone = Cluster().apply(service())["web"].cluster_ips
    assert Cluster().apply(service("a"), service(), service("z"))["web"].cluster_ips == alone


def test_a_small_range_is_used_up_and_then_refused() -> None:
    cluster = Cluster("10.0.0.0/28")
    names = [f"s{number}" for number in range(12)]  # 14 addresses, two of them reserved
    found = cluster.apply(*(service(name) for name in names))
    assert len({record.cluster_ips for record in found.values()}) == 12
    subject, path, reason = cluster.refusal(*(service(name) for name in [*names, "more"]))
    assert (subject, path) == ("Service default/more", "spec.clusterIPs")
    assert "range is full (10.0.0.0/28)" in reason


def test_reserved_addresses_are_their_owners_alone(cluster: Cluster) -> None:
    for address in ("10.96.0.1", "10.96.0.10"):
        _, path, reason = cluster.refusal(service(clusterIP=address))
        assert path == "spec.clusterIPs"
        assert reason.endswith(f"failed to allocate IP {address}: provided IP is already allocated")
    found = cluster.apply(service("kubernetes"), service("kube-dns", "kube-system"))
    assert found["kubernetes"].cluster_ips == ("10.96.0.1",)
    assert found["kube-dns"].cluster_ips == ("10.96.0.10",)


@pytest.mark.parametrize("address", ["10.95.0.1", "10.96.0.0", "10.111.255.255", "192.0.2.1"])
def test_an_address_outside_of_the_range_is_refused(cluster: Cluster, address: str) -> None:
    _, path, reason = cluster.refusal(service(clusterIP=address))
    assert path == "spec.clusterIPs"
    assert f"the provided IP ({address}) is not in the valid range. The range of valid IPs is {V4}" in reason


def test_two_services_cannot_have_one_address_or_node_port(cluster: Cluster) -> None:
    one = service("a", clusterIP="10.96.0.77", type="NodePort", ports=[{"port": 80, "nodePort": 30080}])
    subject, path, reason = cluster.refusal(one, service("b", clusterIP="10.96.0.77"))
    assert (subject, path) == ("Service default/b", "spec.clusterIPs")
    assert "provided IP is already allocated" in reason
    two = service("b", type="NodePort", ports=[{"port": 1, "name": "x"}, {"port": 2, "name": "y", "nodePort": 30080}])
    _, path, reason = cluster.refusal(one, two)
    assert (path, reason) == ("spec.ports[1].nodePort", "Invalid value: 30080: provided port is already allocated")
    assert cluster.held == []


def test_who_names_an_address_gets_it_before_who_does_not(cluster: Cluster) -> None:
    chosen = cluster.apply(service("a"))["a"].cluster_ips[0]
    found = Cluster().apply(service("a"), service("b", clusterIP=chosen))
    assert found["b"].cluster_ips == (chosen,)
    assert found["a"].cluster_ips != (chosen,)


def test_an_unchanged_service_is_the_same_record(cluster: Cluster) -> None:
    first = cluster.apply(service("a"), service("b"))
    second = cluster.apply(service("a"), service("b", ports=[{"port": 81}]))
    assert second["a"] is first["a"]
    assert second["b"].cluster_ips == first["b"].cluster_ips


def test_a_service_that_changes_does_not_lose_its_address_to_another(cluster: Cluster) -> None:
    before = cluster.apply(service("a", type="NodePort"))["a"]
    changed = service("a", type="NodePort", ports=[{"port": 81}])
    subject, _, _ = cluster.refusal(service("b", clusterIP=before.cluster_ips[0]), changed)
    assert subject == "Service default/b"
    wish = service("b", type="NodePort", ports=[{"port": 80, "nodePort": before.ports[0].node_port}])
    assert cluster.refusal(wish, changed)[0] == "Service default/b"


def test_what_is_given_back_can_be_had_again(cluster: Cluster) -> None:
    address = cluster.apply(service("a"))["a"].cluster_ips[0]
    cluster.apply()
    assert cluster.apply(service("b", clusterIP=address))["b"].cluster_ips == (address,)


def test_node_ports_follow_their_port_s_name_and_go_with_the_type(cluster: Cluster) -> None:
    ports = [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]
    before = cluster.apply(service(type="NodePort", ports=ports))["web"]
    assert len(set(before.allocated_ports)) == 2
    assert all(30086 <= port <= 32767 for port in before.allocated_ports)
    swapped = cluster.apply(service(type="NodePort", ports=[{**ports[1], "port": 90}, ports[0]]))["web"]
    assert [port.node_port for port in swapped.ports] == [port.node_port for port in reversed(before.ports)]
    assert cluster.apply(service(ports=ports))["web"].allocated_ports == ()


def test_one_port_of_two_protocols_has_one_node_port(cluster: Cluster) -> None:
    ports = [{"port": 53, "name": "tcp"}, {"port": 53, "name": "udp", "protocol": "UDP"}]
    record = cluster.apply(service(type="NodePort", ports=ports))["web"]
    assert record.ports[0].node_port == record.ports[1].node_port


def test_a_load_balancer_may_do_without_node_ports_but_not_without_its_health_check(cluster: Cluster) -> None:
    spec: dict[str, Any] = {
        "type": "LoadBalancer",
        "allocateLoadBalancerNodePorts": False,
        "externalTrafficPolicy": "Local",
    }
    record = cluster.apply(service(**spec))["web"]
    assert record.ports[0].node_port == 0
    assert record.health_port
    assert cluster.apply(service(**{**spec, "externalTrafficPolicy": "Cluster"}))["web"].health_port == 0


def test_the_health_check_port_is_immutable(cluster: Cluster) -> None:
    spec: dict[str, Any] = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    cluster.apply(service(healthCheckNodePort=30500, **spec))
    _, path, reason = cluster.refusal(service(healthCheckNodePort=30501, **spec))
    assert (path, reason) == ("spec.healthCheckNodePort", "Forbidden: field is immutable")


def test_node_ports_run_out(cluster: Cluster) -> None:
    full = [
        service(f"s{number}", type="NodePort", ports=[{"port": port + 1, "name": f"p{port}"} for port in range(256)])
        for number in range(11)
    ]
    with pytest.raises(ManifestError, match="failed to allocate a nodePort: range is full"):
        cluster.apply(*full)


@pytest.mark.parametrize(
    ("spec", "families", "policy"),
    [
        ({}, (4,), "SingleStack"),
        ({"ipFamilyPolicy": "PreferDualStack"}, (4, 6), "PreferDualStack"),
        ({"ipFamilyPolicy": "RequireDualStack"}, (4, 6), "RequireDualStack"),
        ({"ipFamilies": ["IPv6"]}, (6,), "SingleStack"),
        ({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"}, (6, 4), "PreferDualStack"),
        ({"clusterIP": "fd00:10:96::99"}, (6,), "SingleStack"),
        ({"clusterIP": "None"}, (4,), "SingleStack"),
        ({"clusterIP": "None", "selector": ...}, (4, 6), "RequireDualStack"),
    ],
    ids=str,
)
def test_families_on_a_dual_stack_cluster(spec: dict[str, Any], families: tuple[int, ...], policy: str) -> None:
    record = Cluster(*DUAL).apply(service(**spec))["web"]
    assert (record.families, record.family_policy) == (families, policy)
    assert [ip_address(text).version for text in record.cluster_ips] == list(() if record.headless else families)


def test_families_on_a_single_stack_cluster(cluster: Cluster) -> None:
    assert cluster.apply(service(ipFamilyPolicy="PreferDualStack"))["web"].families == (4,)
    assert cluster.apply(service("h", clusterIP="None", selector=...))["h"].families == (4, 6)
    _, path, reason = cluster.refusal(service("x", ipFamilyPolicy="RequireDualStack"))
    assert path == "spec.ipFamilyPolicy"
    assert "this cluster is not configured for dual-stack services" in reason
    assert cluster.refusal(service("x", ipFamilies=["IPv6"]))[1:] == (
        "spec.ipFamilies[0]",
        'Invalid value: "IPv6": not configured on this cluster',
    )
    _, path, reason = cluster.refusal(service("x", clusterIP="fd00::5"))
    assert (path, reason) == (
        "spec.clusterIPs[0]",
        'Invalid value: ["fd00::5"]: IPv6 is not configured on this cluster',
    )


def test_two_addresses_need_a_dual_stack_policy() -> None:
    spec: dict[str, Any] = {"clusterIP": "10.96.0.50", "clusterIPs": ["10.96.0.50", "fd00:10:96::50"]}
    _, path, reason = Cluster(*DUAL).refusal(service(**spec))
    assert path == "spec.ipFamilyPolicy"
    assert "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified" in reason
    record = Cluster(*DUAL).apply(service(ipFamilyPolicy="PreferDualStack", **spec))["web"]
    assert record.cluster_ips == ("10.96.0.50", "fd00:10:96::50")


def test_a_service_is_upgraded_and_downgraded_by_its_policy() -> None:
    cluster = Cluster(*DUAL)
    (first,) = cluster.apply(service())["web"].cluster_ips
    up = cluster.apply(service(ipFamilyPolicy="RequireDualStack"))["web"]
    assert (up.cluster_ips[0], len(up.cluster_ips)) == (first, 2)
    assert cluster.apply(service())["web"].cluster_ips == up.cluster_ips, "no policy: the one that it has"
    down = cluster.apply(service(ipFamilyPolicy="SingleStack"))["web"]
    assert (down.cluster_ips, down.families) == ((first,), (4,))


@pytest.mark.parametrize("change", [{"clusterIP": "10.96.0.99"}, {"clusterIP": "None"}])
def test_an_address_may_not_change_once_set(cluster: Cluster, change: dict[str, Any]) -> None:
    cluster.apply(service())
    _, path, reason = cluster.refusal(service(**change))
    assert path == "spec.clusterIPs[0]"
    assert reason.endswith("may not change once set")


def test_a_headless_service_gets_no_address_later(cluster: Cluster) -> None:
    cluster.apply(service(clusterIP="None"))
    assert cluster.apply(service())["web"].headless, "what is left out stays as it is"
    assert cluster.refusal(service(clusterIP="10.96.0.99"))[1] == "spec.clusterIPs[0]"


def test_an_external_name_holds_nothing_and_may_become_a_service(cluster: Cluster) -> None:
    name = service(type="ExternalName", externalName="example.com", selector=..., ports=...)
    (before,) = cluster.apply(service())["web"].cluster_ips
    assert cluster.apply(name)["web"].cluster_ips == ()
    assert cluster.apply(name, service("b", clusterIP=before))["b"].cluster_ips == (before,)
    after = cluster.apply(service(), service("b", clusterIP=before))["web"]
    assert after.cluster_ips not in ((), (before,))


def test_a_load_balancers_class_may_not_change(cluster: Cluster) -> None:
    cluster.apply(service(type="LoadBalancer", loadBalancerClass="a.example/one"))
    assert (
        cluster.refusal(service(type="LoadBalancer", loadBalancerClass="a.example/two"))[1] == "spec.loadBalancerClass"
    )


def test_a_new_type_drops_what_only_the_old_one_had() -> None:
    held = service(
        type="LoadBalancer",
        clusterIP="10.96.0.5",
        ports=[{"port": 80, "nodePort": 30080}],
        externalTrafficPolicy="Local",
        healthCheckNodePort=30500,
        allocateLoadBalancerNodePorts=True,
    )
    changed = {**held, "spec": {**held["spec"], "type": "ClusterIP"}}
    after = carried_over(changed, held)["spec"]
    assert after["ports"] == [{"port": 80}]
    assert not {"externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts"} & after.keys()
    moved = {**held, "spec": {**changed["spec"], "ports": [{"port": 80, "nodePort": 30081}]}}
    assert carried_over(moved, held)["spec"]["ports"] == [{"port": 80, "nodePort": 30081}], "a wish, and a fault"


@st.composite
def _steps(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Services that come, change and go, in a range that is nearly too small."""
    names = st.sampled_from([f"s{number}" for number in range(8)])
    address = st.one_of(st.just(...), st.integers(1, 14).map(lambda host: f"10.0.0.{host}"), st.just("None"))
    port = st.one_of(st.just(0), st.integers(30000, 30003))

    def made(name: str, address: Any, kind: str, node_port: int) -> dict[str, Any]:
        kind = "ClusterIP" if address == "None" else kind
        number = {"nodePort": node_port} if node_port and kind != "ClusterIP" else {}
        local = {"externalTrafficPolicy": "Local"} if kind == "LoadBalancer" else {}
        return service(name, clusterIP=address, type=kind, ports=[{"port": 80, **number}], **local)

    one = st.builds(made, names, address, st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]), port)
    step = st.lists(one, max_size=8, unique_by=lambda thing: thing["metadata"]["name"])
    return draw(st.lists(step, min_size=1, max_size=5))


@settings(max_examples=200, deadline=None)
@given(_steps())
def test_nothing_ever_has_two_owners(steps: list[list[dict[str, Any]]]) -> None:
    cluster = Cluster("10.0.0.0/28")
    for step in steps:
        before = {held.record.key: held.record for held in cluster.held}
        try:
            found = cluster.apply(*step).values()
        except ManifestError:
            assert {held.record.key: held.record for held in cluster.held} == before
            continue
        addresses = [address for record in found for address in record.cluster_ips]
        ports = [port for record in found for port in record.allocated_ports]
        assert len(addresses) == len(set(addresses))
        assert len(ports) == len(set(ports))
        assert all(ip_address(text) in ip_network("10.0.0.0/28") for text in addresses)
        assert not {"10.0.0.1", "10.0.0.10", "10.0.0.0", "10.0.0.15"} & set(addresses)
        for record in found:
            old = before.get(record.key)
            if old is not None and not record.headless:
                assert record.cluster_ips == old.cluster_ips
