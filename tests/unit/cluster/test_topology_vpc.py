"""emulator.cluster.topology_vpc: the ``vpc`` section, and what is wrong with one."""

from __future__ import annotations

import pytest

from emulator.cluster.model import NatGateway, RouteTable, VpcRoute
from emulator.cluster.topology import load_topology, parse_topology
from emulator.errors import TopologyError

GOOD = """\
name: cloud
switches:
  - {name: pub, cidrs: [10.0.0.0/24]}
  - {name: prv, cidrs: [10.0.1.0/24]}
  - {name: out, cidrs: [203.0.113.0/24]}
nodes: [{name: n1, switch: prv}]
routers: [{name: isp}]
hosts: [{name: client, switch: out}]
links: [{from: isp, to: pub}, {from: isp, to: prv}, {from: isp, to: out}]
vpc:
  cidrs: [10.0.0.0/16]
  subnets:
    - {switch: pub, routeTable: public}
    - {switch: prv, routeTable: private, zone: a}
  routeTables:
    - {name: public, routes: [{to: default, target: igw}]}
    - {name: private, routes: [{to: default, target: nat}]}
  internetGateway: {router: isp, cidr: 198.51.100.0/24}
  natGateways: [{name: nat, subnet: pub}]
"""


def test_a_vpc_is_read_as_written() -> None:
    vpc = parse_topology(GOOD, "test").vpc
    assert vpc is not None
    assert [(subnet.name, subnet.cidr, subnet.route_table) for subnet in vpc.subnets] == [
        ("pub", "10.0.0.0/24", "public"),
        ("prv", "10.0.1.0/24", "private"),
    ]
    assert vpc.route_tables[0] == RouteTable("public", (VpcRoute("0.0.0.0/0", "igw"),))
    assert vpc.nat_gateways == (NatGateway("nat", "pub"),)
    assert (vpc.warm_enis, vpc.warm_ips, vpc.router) == (1, 0, "")


def test_a_topology_without_the_section_has_none() -> None:
    assert load_topology("three-nodes").vpc is None


def test_a_subnet_may_be_larger_than_its_switch() -> None:
    vpc = load_topology("fifty-nodes").vpc
    assert vpc is not None
    assert (vpc.subnets[0].cidr, vpc.cidrs) == ("192.168.48.0/20", ("192.168.48.0/20",))


def test_a_node_is_in_its_subnets_zone_unless_it_has_its_own() -> None:
    label = "topology.kubernetes.io/zone"
    (node,) = parse_topology(GOOD, "test").of_kind("node")
    assert node.labels[label] == "a"
    (node,) = parse_topology(GOOD.replace("switch: prv}]", "switch: prv, zone: b}]"), "test").of_kind("node")
    assert node.labels[label] == "b"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("{switch: pub, routeTable: public}", "{switch: pubb, routeTable: public}", 'did you mean "pub"'),
        ("    - {switch: prv, routeTable: private, zone: a}\n", "", "switch prv has nodes and is not one of them"),
        ("{switch: pub, routeTable: public}", "{switch: pub}", "vpc.subnets[0].routeTable"),
        ("routeTable: public}", "routeTable: pubic}", 'no route table of this name, did you mean "public"'),
        ("target: igw", "target: isp", "no gateway of this name"),
        ("target: nat}", "target: natt}", 'did you mean "nat"'),
        ("cidrs: [10.0.0.0/16]\n", "cidrs: [10.1.0.0/16]\n", "10.0.0.0/24 is in none of the VPC's CIDRs"),
        ("cidrs: [10.0.0.0/16]\n", "cidrs: [10.0.0.0/8]\n", "must be an IPv4 range of /16 to /28"),
        ('cidrs: [10.0.0.0/16]\n', 'cidrs: ["fd00::/64"]\n', "must be an IPv4 range"),
        ("{switch: pub, routeTable: public}", "{switch: pub, cidr: 10.0.2.0/24, routeTable: public}", "does not hold"),
        ("{switch: pub, routeTable: public}", "{switch: pub, cidr: 10.0.0.0/23, routeTable: public}", "overlaps"),
        ("198.51.100.0/24", "203.0.113.0/24", "vpc.internetGateway.cidr"),
        ("router: isp, cidr", "router: ips, cidr", "no router of this name"),
        ("{name: nat, subnet: pub}", "{name: isp, subnet: pub}", "share one set of names"),
        ("{name: nat, subnet: pub}", "{name: nat, subnet: out}", "no subnet of this name"),
        ("{name: nat, subnet: pub}", "{name: nat, subnet: pub, address: 10.0.9.9}", "must be an address of"),
        ("{name: nat, subnet: pub}", "{name: nat, subnet: pub, ip: x}", "unknown field"),
        ("  natGateways:", "  warmENITarget: -1\n  natGateways:", "must be between 0 and 500"),
        ("  natGateways:", "  noSourceDestCheck: [n9]\n  natGateways:", "no node or host of this name"),
        ("to: default, target: igw", "to: 10.0.0.300/8, target: igw", "vpc.routeTables[0].routes[0].to"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, fault: str) -> None:
    assert old in GOOD
    with pytest.raises(TopologyError) as caught:
        parse_topology(GOOD.replace(old, new), "test")
    assert fault in str(caught.value)
