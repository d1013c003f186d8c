"""What a VPC holds for its Network Load Balancers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emulator.balancer.health import CHECKER_CONFIG
from emulator.balancer.load import load_balancer
from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate_objects
from emulator.cluster.nlb import PREFIX
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.errors import Unsupported
from emulator.plan.build import build
from emulator.plan.model import Address, File, IptablesRules, NftRules, Plan, PolicyRule
from tests.unit.balancer.test_announcing import CLOUD, planned, pod

TOPOLOGY = (Path(__file__).parents[3] / "scenarios/services/topologies/nlb.yaml").read_text()
A, B = "10.0.31.254", "10.0.47.254"  # of the first internal one in both zones


def service(name: str = "web", *annotations: tuple[str, str], **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80, "targetPort": 8080, "nodePort": 30080}]
    body = {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": ports, **spec}
    metadata = {"name": name, "annotations": {PREFIX + key: text for key, text in annotations}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": body}


def laid(*objects: dict[str, Any], unfit: tuple[str, ...] = ()) -> Plan:
    """The plan, once all targets have passed their checks, but those whose names hold one of ``unfit``."""
    style = load_style("aws-vpc")
    topology = style.prepare(parse_topology(TOPOLOGY, "nlb.yaml"))
    cluster = assemble(topology, list(validate_objects(list(objects))), style.ipam(topology))
    balancer = load_balancer(parse_topology(TOPOLOGY, "nlb.yaml"), style)
    assert balancer is not None
    balancer.check(cluster)
    names = [each["name"] for each in asked(build(cluster, style, balancer=balancer))]
    health = {name: "unhealthy: x" if any(word in name for word in unfit) else "healthy" for name in names}
    return build(msgspec.structs.replace(cluster, target_health=health), style, balancer=balancer)


def asked(plan: Plan) -> list[dict[str, Any]]:
    return [
        each
        for item in plan
        if isinstance(item, File) and (item.ns, item.path) == ("router/vpc", CHECKER_CONFIG)
        for each in json.loads(item.content)["targets"]
    ]


def rules(plan: Plan, chain: str) -> list[str]:
    (table,) = (item for item in plan if isinstance(item, NftRules) and item.name == "nlb")
    return [rule for one in table.hooks if one.name == chain for rule in one.rules]


def test_each_zone_sends_to_its_own_nodes() -> None:
    assert rules(laid(service()), "listeners") == [
        f'ip daddr {A} tcp dport 80 dnat to 10.0.16.11:30080 comment "default/web"',
        (
            f"ip daddr {B} tcp dport 80 jhash ip saddr . tcp sport mod 2 seed 0x1 0 dnat to 10.0.32.11:30080 "
            'comment "default/web"'
        ),
        (
            f"ip daddr {B} tcp dport 80 jhash ip saddr . tcp sport mod 2 seed 0x1 1 dnat to 10.0.32.12:30080 "
            'comment "default/web"'
        ),
    ]


def test_across_zones_every_address_sends_to_all() -> None:
    plan = laid(service("web", ("cross-zone-load-balancing-enabled", "true")))
    assert len(rules(plan, "listeners")) == 6


def test_a_zone_without_a_healthy_target_is_silent_unless_there_is_none_anywhere() -> None:
    assert [rule for rule in rules(laid(service(), unfit=("n1",)), "listeners") if A in rule] == []
    assert len(rules(laid(service(), unfit=("n1", "n2", "n3")), "listeners")) == 3
    assert rules(laid(service()), "silence")[0].endswith("ct state new drop")


def test_by_ip_pods_are_targets_and_see_the_balancer() -> None:
    plan = laid(service("web", ("nlb-target-type", "ip")), pod("p", "n2"))
    (rule,) = rules(plan, "listeners")
    assert rule.startswith(f"ip daddr {B} tcp dport 80 dnat to 10.0.32.")
    assert rules(plan, "sources") == [
        f"meta l4proto tcp ct original ip daddr {address} ct original proto-dst 80 ct status dnat snat to {address} "
        'comment "default/web"'
        for address in (A, B)
    ]


def test_with_the_clients_address_preserved_nothing_is_done_to_the_source() -> None:
    assert rules(laid(service()), "sources") == []
    kept = service("web", ("nlb-target-type", "ip"), ("target-group-attributes", "preserve_client_ip.enabled=true"))
    assert rules(laid(kept, pod("p", "n2")), "sources") == []


def test_a_sticky_client_is_hashed_by_its_address_alone() -> None:
    plan = laid(service("web", ("target-group-attributes", "stickiness.enabled=true,stickiness.type=source_ip")))
    assert "jhash ip saddr mod 2" in rules(plan, "listeners")[1]


def test_source_ranges_are_heeded() -> None:
    (first, _) = rules(laid(service(loadBalancerSourceRanges=["203.0.113.0/25"])), "allowed")
    assert first == f'ip daddr {A} tcp dport 80 ip saddr != {{ 203.0.113.0/25 }} drop comment "default/web"'


def test_answers_leave_by_the_route_table_of_the_balancers_subnet() -> None:
    plan = laid(service("web", ("scheme", "internet-facing")))
    assert rules(plan, "ways")[0] == "ct original ip daddr 10.0.0.254 ct mark set 0x65"
    found = {
        item.fwmark: (item.priority, item.table)
        for item in plan
        if isinstance(item, PolicyRule) and item.ns == "router/vpc" and item.fwmark
    }
    assert found == {0x65: (32900, 101), 0x66: (32900, 102)}


def test_the_internet_gateway_knows_public_addresses_both_ways() -> None:
    plan = laid(service("web", ("scheme", "internet-facing")))
    nat = next(
        item for item in plan if isinstance(item, IptablesRules) and item.ns == "router/igw" and item.table == "nat"
    )
    words = [" ".join(rule.args) for chain in nat.chains for rule in chain.rules]
    assert "-i eth1 -d 198.51.100.254/32 -j DNAT --to-destination 10.0.0.254" in words
    assert "-o eth1 -s 10.0.0.254/32 -j SNAT --to-source 198.51.100.254" in words


def test_the_addresses_are_the_fabrics_own() -> None:
    found = {
        item.address for item in laid(service()) if isinstance(item, Address) and "Load Balancer" in item.component
    }
    assert found == {f"{A}/32", f"{B}/32"}


def test_targets_are_asked_from_their_zones_address_by_the_controllers_defaults() -> None:
    local = service("web", externalTrafficPolicy="Local", healthCheckNodePort=30100)
    found = {each["address"]: each for each in asked(laid(local))}
    assert (found["10.0.16.11"]["source"], found["10.0.32.12"]["source"]) == (A, B)
    one = found["10.0.16.11"]
    assert (one["protocol"], one["port"], one["path"], one["codes"]) == ("http", 30100, "/healthz", [200, 399])


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ([], ("tcp", 30080, "")),
        ([("healthcheck-protocol", "http"), ("healthcheck-path", "/live")], ("http", 30080, "/live")),
        ([("healthcheck-port", "9000")], ("tcp", 9000, "")),
        ([("healthcheck-protocol", "http"), ("healthcheck-port", "traffic-port")], ("http", 30080, "/")),
    ],
)
def test_annotations_say_how_to_ask(annotations: list[tuple[str, str]], expected: tuple[str, int, str]) -> None:
    one = asked(laid(service("web", *annotations)))[0]
    assert (one["protocol"], one["port"], one["path"]) == expected


def test_passing_packets_through_is_refused_by_name() -> None:
    written = "{kind: cloud, machine: tor, targets: passthrough, addresses: [198.51.100.0/28]}"
    with pytest.raises(Unsupported, match="targets: passthrough is not possible under aws-vpc"):
        planned(written, style="aws-vpc")


def test_a_topology_for_every_style_needs_no_vpc() -> None:
    cluster, _ = planned(CLOUD, service(), style="aws-vpc")
    assert [one.address for one in cluster.services[0].load_balancer] == ["192.168.50.254"]


def test_nothing_is_left_of_a_balancer_without_services() -> None:
    assert not [item for item in laid() if isinstance(item, NftRules)]
