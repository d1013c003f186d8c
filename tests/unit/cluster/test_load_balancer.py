"""Which address a Service of type LoadBalancer gets, and why it may get none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emulator.cluster.load_balancer import with_addresses
from emulator.cluster.model import AddressRange, LoadBalancer, Topology
from emulator.cluster.services import Ingress, Service
from emulator.cluster.topology import parse_topology
from emulator.errors import TopologyError

V4 = AddressRange("192.0.2.1", "192.0.2.3")
V6 = AddressRange("2001:db8::1", "2001:db8::1")
L2 = LoadBalancer(kind="metallb-l2", ranges=(V4, V6), service_class="metallb.io/l2")
SITE = Topology("t", (), (), (), (), (), load_balancer=L2)


def service(name: str, **fields: Any) -> Service:
    families = fields.pop("families", (4,))
    return Service(namespace="default", name=name, type=fields.pop("type", "LoadBalancer"), families=families, **fields)


def given(*services: Service, before: tuple[Service, ...] = ()) -> dict[str, list[str]]:
    found, _ = with_addresses(services, SITE, before)
    return {one.name: [each.address for each in one.load_balancer] for one in found}


def reasons(*services: Service) -> tuple[str, ...]:
    return with_addresses(services, SITE)[1]


def test_the_first_free_addresses_are_given_in_order() -> None:
    assert given(service("a"), service("b")) == {"a": ["192.0.2.1"], "b": ["192.0.2.2"]}


def test_without_a_balancer_everything_stays_as_it_is() -> None:
    services = (service("a"),)
    assert with_addresses(services, msgspec.structs.replace(SITE, load_balancer=None)) == (services, ())


def test_who_asks_for_an_address_gets_it_before_those_who_do_not() -> None:
    wanted = service("b", load_balancer_ip="192.0.2.1")
    assert given(service("a"), wanted) == {"a": ["192.0.2.2"], "b": ["192.0.2.1"]}


@pytest.mark.parametrize("prefix", ["metallb.io", "metallb.universe.tf"])
def test_the_annotation_asks_too(prefix: str) -> None:
    assert given(service("a", annotations={f"{prefix}/loadBalancerIPs": "192.0.2.3"})) == {"a": ["192.0.2.3"]}


def test_what_a_service_has_it_keeps_though_others_come_first() -> None:
    before, _ = with_addresses((service("b"),), SITE)
    assert given(service("a"), service("b"), before=before) == {"a": ["192.0.2.2"], "b": ["192.0.2.1"]}


def test_an_unchanged_service_is_the_same_object() -> None:
    before, _ = with_addresses((service("a"),), SITE)
    assert with_addresses(before, SITE, before)[0][0] is before[0]


def test_another_wish_moves_a_service() -> None:
    before, _ = with_addresses((service("a"),), SITE)
    assert given(service("a", load_balancer_ip="192.0.2.2"), before=before) == {"a": ["192.0.2.2"]}


def test_a_service_that_is_no_load_balancer_any_more_frees_its_address() -> None:
    before, _ = with_addresses((service("a"),), SITE)
    assert given(service("a", type="NodePort"), service("b"), before=before) == {"a": [], "b": ["192.0.2.1"]}


def test_one_too_many_is_pending_and_told_why() -> None:
    services = [service(name) for name in "abcd"]
    assert given(*services)["d"] == []
    assert reasons(*services) == ("Service default/d is pending: there is no free IPv4 address in 192.0.2.1-192.0.2.3",)


def test_another_class_is_somebody_elses() -> None:
    theirs = service("a", load_balancer_class="example.com/theirs", load_balancer=(Ingress("198.51.100.7"),))
    assert given(theirs, service("b", load_balancer_class="metallb.io/l2")) == {
        "a": ["198.51.100.7"],
        "b": ["192.0.2.1"],
    }


def test_both_families_are_served() -> None:
    both = service("a", families=(6, 4), family_policy="RequireDualStack")
    assert given(both) == {"a": ["2001:db8::1", "192.0.2.1"]}


def test_prefer_is_content_with_one_family_and_require_is_not() -> None:
    taken = service("t", families=(6,))
    prefers = service("p", families=(4, 6), family_policy="PreferDualStack")
    requires = service("r", families=(4, 6), family_policy="RequireDualStack")
    assert given(taken, prefers, requires) == {"t": ["2001:db8::1"], "p": ["192.0.2.1"], "r": []}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"load_balancer_ip": "10.0.0.1"}, "10.0.0.1 is not in 192.0.2.1-192.0.2.3"),
        ({"load_balancer_ip": "2001:db8::1"}, "does not match the ipFamilies"),
        ({"annotations": {"metallb.io/loadBalancerIPs": "here"}}, "the annotation loadBalancerIPs is 'here'"),
        ({"annotations": {"metallb.io/address-pool": "gold"}}, "there is no address pool 'gold'"),
        (
            {"load_balancer_ip": "192.0.2.1", "annotations": {"metallb.io/loadBalancerIPs": "192.0.2.1"}},
            "both spec.loadBalancerIP and the annotation",
        ),
    ],
)
def test_what_cannot_be_had_is_told(fields: dict[str, Any], reason: str) -> None:
    (told,) = reasons(service("a", **fields))
    assert reason in told


def test_an_address_is_not_shared() -> None:
    shared = {"annotations": {"metallb.io/allow-shared-ip": "key"}, "load_balancer_ip": "192.0.2.1"}
    (told,) = reasons(service("a", **shared), service("b", **shared))
    assert told == (
        "Service default/b is pending: 192.0.2.1 is default/a's "
        "(sharing one by the annotation allow-shared-ip is not emulated)"
    )


def test_many_services_are_served_in_order() -> None:
    wide = LoadBalancer(kind="metallb-bgp", ranges=(AddressRange("10.0.0.0", "10.0.255.255"),))
    found, pending = with_addresses(
        tuple(service(f"s{number}") for number in range(5000)), msgspec.structs.replace(SITE, load_balancer=wide)
    )
    assert not pending
    assert len({one.load_balancer[0].address for one in found}) == 5000


TOPOLOGY = """
switches: [{name: s1, cidrs: [192.168.50.0/24]}, {name: s2, cidrs: [192.168.60.0/24]}]
nodes: [{name: n1, switch: s1}, {name: n2, switch: s2}]
routers: [{name: tor, asn: 64513}, {name: edge, switch: s2}]
hosts: [{name: client, switch: s2}]
links: [{from: tor, to: s1}, {from: tor, to: s2}]
loadBalancer: """


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("{kind: f5, addresses: [192.0.2.0/28]}", 'loadBalancer.kind: Unsupported value: "f5"'),
        ("{kind: metallb-bgp, addresses: []}", "loadBalancer.addresses: must have 1 to 64 items"),
        ("{kind: metallb-bgp, addresses: [192.0.2.1]}", "must be a CIDR, or two addresses with a dash between"),
        ("{kind: metallb-bgp, addresses: [192.0.2.9-192.0.2.1]}", "must be of the last one's family, and not above"),
        ("{kind: metallb-bgp, addresses: [192.0.2.0/28, 192.0.2.8-192.0.2.20]}", "overlaps 192.0.2.0-192.0.2.15"),
        ("{kind: metallb-bgp, addresses: [10.244.3.0/28]}", "overlaps 10.244.0.0/16 of podCIDRs"),
        ("{kind: metallb-bgp, addresses: [192.168.50.10-192.168.50.20]}", "node n1 has 192.168.50.11"),
        ("{kind: metallb-bgp, addresses: [127.0.0.0/28]}", "must not be loopback"),
        ("{kind: metallb-bgp, addresses: [192.0.2.0/28], holdTime: 2}", "must be between 3 and 65535 seconds"),
        (
            "{kind: metallb-bgp, addresses: [192.0.2.0/28], peers: [edge]}",
            "there is no router with an asn of this name",
        ),
        ("{kind: metallb-bgp, addresses: [192.0.2.0/28], machine: tor}", "machine: Forbidden: is for kind cloud only"),
        ("{kind: metallb-l2, addresses: [192.168.50.200-192.168.50.210]}", "node n2 is not on this subnet"),
        ("{kind: metallb-l2, addresses: [192.168.50.200/30], nodes: [n9]}", "there is no node of this name"),
        ("{kind: cloud, addresses: [192.0.2.0/28]}", "machine: Required value"),
        ("{kind: cloud, addresses: [192.0.2.0/28], machine: client}", "there is no router of this name"),
        ("{kind: cloud, addresses: [192.0.2.0/28], machine: tor, targets: host}", 'Unsupported value: "host"'),
        (
            "{kind: cloud, addresses: [192.168.60.200/30], machine: tor, targets: passthrough}",
            "one that passes packets through does not",
        ),
        (
            "{kind: cloud, addresses: [192.168.50.200/30], machine: edge, preserveClientIP: true}",
            "it is not the default gateway of node n1",
        ),
        ("{kind: cloud, addresses: [192.0.2.0/28], machine: tor, targets: passthrough, ipMode: Proxy}", "keep both"),
        ("{kind: cloud, adresses: [192.0.2.0/28]}", 'did you mean "addresses"?'),
    ],
)
def test_a_section_that_cannot_work_is_refused(written: str, fault: str) -> None:
    with pytest.raises(TopologyError) as refused:
        parse_topology(TOPOLOGY + written, "t.yaml")
    assert fault in str(refused.value)


def test_nodes_narrow_who_must_be_on_the_link() -> None:
    topology = parse_topology(TOPOLOGY + "{kind: metallb-l2, addresses: [192.168.50.200/30], nodes: [n1]}", "t.yaml")
    assert topology.load_balancer is not None
    assert topology.load_balancer.nodes == ("n1",)
