"""Segments behind NAT, and the address that a kubelet is told: emulator.cluster.topology_segments, assemble."""

from __future__ import annotations

import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import HostLocal
from emulator.cluster.model import Topology
from emulator.cluster.topology import load_topology, parse_topology
from emulator.errors import TopologyError
from emulator.plan.model import IptablesRules
from emulator.plan.underlay import underlay

TEXT = """
name: nat
switches:
  - {name: a, cidrs: [10.0.2.0/24], nat: true}
  - {name: b, cidrs: [10.0.2.0/24], nat: true}
  - {name: s, cidrs: [192.168.56.0/24]}
  - {name: out, cidrs: [203.0.113.0/24]}
nodes:
  - {name: n1, switch: a, addresses: [10.0.2.15]}
  - {name: n2, switch: b, addresses: [10.0.2.15]}
routers:
  - {name: ra, switch: a}
  - {name: rb, switch: b}
hosts:
  - {name: far, switch: out, defaultRoute: false}
links:
  - {from: n1, to: s}
  - {from: n2, to: s}
  - {from: ra, to: out}
  - {from: rb, to: out}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, "t.yaml")
    return [str(problem) for problem in caught.value.problems]


def node_addresses(topology: Topology) -> dict[str, tuple[str, ...]]:
    cluster = assemble(topology, (), HostLocal(topology.pod_cidrs))
    return {node.name: (*node.addresses, node.device) for node in cluster.nodes}


def test_machines_behind_nat_share_an_address_and_have_their_own_router() -> None:
    topology = parse_topology(TEXT, "t.yaml")
    machines = {machine.name: machine for machine in topology.machines}
    for name, router in (("n1", "ra"), ("n2", "rb")):
        assert machines[name].interfaces[0].addresses == ("10.0.2.15/24",)
        assert [(route.destination, route.via) for route in machines[name].routes] == [("0.0.0.0/0", "10.0.2.1")]
        assert machines[name].routes[0].why.startswith(router)
    assert topology.node_cidrs == ("10.0.2.0/24", "192.168.56.0/24")


def test_nobody_has_a_route_to_what_is_behind_nat() -> None:
    other = TEXT.replace("b, cidrs: [10.0.2.0/24]", "b, cidrs: [10.0.3.0/24]").replace("b, addresses: [10.0.2.15]", "b")
    for text in (TEXT, other):
        topology = parse_topology(text, "t.yaml")
        routes = {machine.name: [route.destination for route in machine.routes] for machine in topology.machines}
        assert routes["ra"] == routes["rb"] == routes["far"] == []


def test_only_the_router_masquerades_and_only_what_comes_from_behind_it() -> None:
    topology = parse_topology(TEXT, "t.yaml")
    rules = [item for item in underlay(topology) if isinstance(item, IptablesRules)]
    assert [(item.ns, item.table) for item in rules] == [("router/ra", "nat"), ("router/rb", "nat")]
    (rule,) = rules[0].chains[0].rules
    assert rule.args == ("-s", "10.0.2.0/24", "!", "-o", "eth0", "-j", "MASQUERADE")


def test_without_nat_the_same_subnet_twice_is_refused() -> None:
    (problem,) = problems(TEXT.replace("b, cidrs: [10.0.2.0/24], nat: true", "b, cidrs: [10.0.2.0/24]"))
    assert 'Invalid value: "10.0.2.0/24": overlaps 10.0.2.0/24' in problem


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("{name: s, cidrs: [192.168.56.0/24]}", "{name: s, cidrs: [10.0.0.0/16]}", "the switches behind NAT"),
        ("name: nat\n", "name: nat\npodCIDRs: [10.0.0.0/16]\n", "the switches behind NAT"),
        ("a, cidrs: [10.0.2.0/24]", "a, cidrs: [10.0.2.0/24, 10.0.2.128/25]", "overlaps 10.0.2.0/24 of switch a"),
        ("  - {name: ra, switch: a}\n", "  - {name: ra, switch: a}\n  - {name: rc, switch: a}\n", "this one has 2"),
        ("  - {from: ra, to: out}\n", "", "its router ra leads to no segment that is not behind NAT"),
        ("{from: n1, to: s}", "{from: n1, to: b}", "overlaps 10.0.2.0/24 of n1, towards a"),
        ("{from: n1, to: s}", "{from: a, to: s}", "is not that of switch a, with which it is one segment"),
    ],
)
def test_what_cannot_be_behind_nat_is_refused(old: str, new: str, reason: str) -> None:
    assert old in TEXT
    assert any(reason in problem for problem in problems(TEXT.replace(old, new))), problems(TEXT.replace(old, new))


def test_a_kubelet_takes_the_interface_of_the_default_route_unless_told() -> None:
    assert node_addresses(parse_topology(TEXT, "t.yaml"))["n1"] == ("10.0.2.15", "eth0")
    told = TEXT.replace("{name: n1, switch: a,", "{name: n1, nodeIP: 192.168.56.11, switch: a,")
    assert node_addresses(parse_topology(told, "t.yaml")) == {
        "n1": ("192.168.56.11", "eth1"),
        "n2": ("10.0.2.15", "eth0"),
    }


def test_the_shipped_cluster_of_vagrant_is_known_by_its_private_addresses() -> None:
    assert node_addresses(load_topology("vagrant"))["n3"] == ("192.168.56.13", "eth1")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("192.168.56.99", "the node's own addresses are 10.0.2.15, 192.168.56.11"),
        ("eth1", "must be an IP address, or an IPv4 and an IPv6 address"),
        ('"192.168.56.11,10.0.2.15"', "must be an IP address, or an IPv4 and an IPv6 address"),
    ],
)
def test_a_node_ip_that_the_node_has_not_is_refused(given: str, reason: str) -> None:
    (problem,) = problems(TEXT.replace("{name: n1, switch: a,", f"{{name: n1, nodeIP: {given}, switch: a,"))
    assert "nodeIP" in problem
    assert reason in problem
