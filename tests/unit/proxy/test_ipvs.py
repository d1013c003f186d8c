"""kube-proxy's ipvs mode: what the golden files cannot show."""

from __future__ import annotations

import msgspec
import pytest

from emulator.cluster.services import Endpoint, Ingress
from emulator.errors import UserError
from emulator.plan.model import AnyObject, IpSet, IptablesRules, IpvsServers
from emulator.proxy import ipvs
from tests.golden.service_constructs import SETTINGS, backends, base_cluster, on, service


def planned(made: object, *endpoints: Endpoint, node: int = 0, **settings: object) -> list[AnyObject]:
    slices = (backends(made, *endpoints),) if endpoints else ()  # type: ignore[arg-type]
    cluster = msgspec.structs.replace(base_cluster(), services=(made,), slices=slices)
    return list(ipvs.load(msgspec.structs.replace(SETTINGS, **settings)).node(cluster, cluster.nodes[node]))


def test_iptables_rules_do_not_grow_with_services() -> None:
    services = tuple(service(f"s{number}", cluster_ips=(f"10.96.1.{number}",)) for number in range(1, 50))
    cluster = msgspec.structs.replace(
        base_cluster(), services=services, slices=tuple(backends(each, on("n1", 2)) for each in services)
    )
    many = ipvs.load(SETTINGS).node(cluster, cluster.nodes[0])

    def rules(items: list[AnyObject]) -> list[int]:
        return [sum(len(chain.rules) for chain in item.chains) for item in items if isinstance(item, IptablesRules)]

    assert rules(list(many)) == rules(planned(services[0], on("n1", 2)))


def test_a_node_outside_the_source_ranges_is_kept_out_of_the_balancer() -> None:
    made = service(type="LoadBalancer", load_balancer=(Ingress("203.0.113.1"),), source_ranges=("192.168.50.11/32",))
    found = [
        [rule.args for chain in item.chains if chain.name == "KUBE-IPVS-OUT-FILTER" for rule in chain.rules]
        for node in (0, 1)
        for item in planned(made, on("n1", 2), node=node)
        if isinstance(item, IptablesRules) and item.table == "filter" and item.family == 4
    ]

    assert found[0] == []
    assert [" ".join(args) for args in found[1]] == [
        "-s 203.0.113.1 -m ipvs --vaddr 203.0.113.1 --vproto tcp --vport 80 -j DROP"
    ]


def test_a_local_policy_without_local_endpoints_falls_back_on_all() -> None:
    items = planned(service(internal_policy="Local"), on("n2", 2))
    (servers,) = (item for item in items if isinstance(item, IpvsServers) and item.family == 4)

    assert [each.address for each in servers.servers["TCP 10.96.0.41:80"].servers] == ["10.244.1.2"]


def test_names_of_ipv6_sets_fit() -> None:
    names = [item.name for item in planned(service(), on("n1", 2)) if isinstance(item, IpSet)]

    assert len(names) == len(set(names)) == 34
    assert max(map(len, names)) <= 31
    assert "KUBE-6-LOAD-BALANCER-SOURCE-CID" in names


@pytest.mark.parametrize("hostile", ["10.244.0.2,tcp -exist", "10.244.0.2\nflush", "example.com", ""])
def test_hostile_addresses_are_refused(hostile: str) -> None:
    with pytest.raises(UserError, match="no IP address"):
        planned(service(), Endpoint(address=hostile, node="n1"))
    with pytest.raises(UserError, match="no IP address"):
        planned(service(external_ips=(hostile,)), on("n1", 2))
