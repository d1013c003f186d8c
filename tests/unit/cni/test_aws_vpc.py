"""emulator.cni.aws_vpc and the VPC beneath it: names, rules and numbers of the real ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emulator.cluster.kubernetes import node_object
from emulator.cluster.topology import load_topology, parse_topology
from emulator.cni.styles import load_style
from emulator.cni.vpc_fabric import lay_fabric, port_name
from emulator.errors import ManifestError, UserError
from emulator.plan.iptables import rule_text
from emulator.plan.model import (
    Address,
    File,
    IpSet,
    IptablesRules,
    Neighbour,
    PolicyRule,
    Route,
    Sysctl,
    Veth,
)

MODES = ("aws-vpc", "aws-vpc:prefix", "aws-vpc:external-snat", "aws-vpc:no-connmark")
SMALL = """\
name: small
switches: [{name: s1, cidrs: [10.0.0.0/24]}]
nodes:
  - {name: n1, switch: s1, pods: 5, labels: {node.kubernetes.io/instance-type: t3.small}}
  - {name: n2, switch: s1, pods: 1}
routers: [{name: tor, switch: s1}]
"""


@pytest.fixture
def small(planned: Any) -> Any:
    """Five pods on a t3.small: the fourth and fifth have addresses of eth1."""
    return planned("aws-vpc", SMALL)


def rules(made: Any, ns: str, table: str) -> list[str]:
    """Chains and jumps of one table, as iptables-save prints them but for its spelling."""
    found = [item for item in made.of(IptablesRules, ns) if item.table == table]
    lines = [f"{jump.chain} {rule_text(jump.rule)}" for item in found for jump in item.jumps]
    return lines + [
        f"{chain.name} {rule_text(rule)}" for item in found for chain in item.chains for rule in chain.rules
    ]


# Pods


def test_a_host_end_is_named_by_the_hash_of_namespace_and_pod(small: Any) -> None:
    veth = small.one(Veth, "pod/default/n1-p1")
    assert (veth.name, veth.peer_ns, veth.peer) == ("eth0", "node/n1", "eni4592fd35277")


def test_a_pod_has_a_host_address_and_a_gateway_that_it_never_asks_for(small: Any) -> None:
    ns = "pod/default/n1-p1"
    (pod,) = [pod for pod in small.cluster.pods if pod.name == "n1-p1"]
    assert small.one(Address, ns).address == f"{pod.addresses[0]}/32"
    assert small.one(Route, ns, destination="169.254.1.1/32").scope == "link"
    assert small.one(Route, ns, destination="0.0.0.0/0").via == "169.254.1.1"
    neighbour = small.one(Neighbour, ns)
    assert (neighbour.address, neighbour.mac) == ("169.254.1.1", small.one(Veth, ns).peer_mac)


def test_every_pod_has_rule_512_and_a_route_in_main(small: Any) -> None:
    (pod,) = [pod for pod in small.cluster.pods if pod.name == "n1-p1"]
    rule = small.one(PolicyRule, "node/n1", destination=f"{pod.addresses[0]}/32")
    assert (rule.priority, rule.table) == (512, 254)
    route = small.one(Route, "node/n1", destination=f"{pod.addresses[0]}/32")
    assert (route.device, route.scope, route.table) == ("eni4592fd35277", "link", 254)


def test_only_pods_of_secondary_interfaces_have_rule_1536(small: Any) -> None:
    by_name = {pod.name: pod.addresses[0] for pod in small.cluster.pods}
    found = [rule for rule in small.of(PolicyRule, "node/n1") if rule.priority == 1536]
    assert [(rule.source, rule.table) for rule in found] == [(f"{by_name[pod]}/32", 2) for pod in ("n1-p4", "n1-p5")]


# Nodes


def test_a_secondary_interface_has_its_address_without_the_subnets_route_and_a_table(small: Any) -> None:
    node = small.cluster.node("n1")
    eni = node.enis[1]
    veth = small.one(Veth, "node/n1", name="eth1")
    assert (veth.peer_ns, veth.peer, veth.mac) == ("router/vpc", "n1-eth1", eni.mac)
    address = small.one(Address, "node/n1", device="eth1")
    assert (address.address, address.prefix_route) == (f"{eni.address}/24", False)
    routes = [route for route in small.of(Route, "node/n1") if route.table == 2]
    assert [(route.destination, route.via, route.device, route.scope) for route in routes] == [
        ("10.0.0.1/32", "", "eth1", "link"),
        ("0.0.0.0/0", "10.0.0.1", "eth1", "global"),
    ]
    assert small.one(PolicyRule, "node/n1", source=f"{eni.address}/32").priority == 32765


def test_the_third_interfaces_table_is_3(small: Any) -> None:
    assert {route.table for route in small.of(Route, "node/n1") if route.device == "eth2"} == {3}


def test_marked_packets_leave_by_the_main_table_before_the_pods_own(small: Any) -> None:
    rule = small.one(PolicyRule, "node/n1", fwmark=0x80)
    assert (rule.priority, rule.fwmask, rule.table) == (1024, 0x80, 254)


def test_what_leaves_the_vpc_gets_the_primary_address(small: Any) -> None:
    assert rules(small, "node/n1", "nat") == [
        'POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0',
        'PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0',
        'PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --mask 0x80',
        'AWS-SNAT-CHAIN-0 -d 10.0.0.0/24 -m comment --comment "AWS SNAT CHAIN" -j RETURN',
        (
            'AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL'
            " -j SNAT --to-source 10.0.0.11 --random-fully"
        ),
        'AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/24 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN',
        'AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80',
    ]


def test_what_comes_to_the_node_itself_is_marked_for_the_way_back(small: Any) -> None:
    assert rules(small, "node/n1", "mangle") == [
        (
            'PREROUTING -m comment --comment "AWS, primary ENI" -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in'
            " -j CONNMARK --set-mark 0x80/0x80"
        ),
        'PREROUTING -m comment --comment "AWS, primary ENI" -i eni+ -j CONNMARK --restore-mark --mask 0x80',
        'PREROUTING -m comment --comment "AWS, primary ENI" -i vlan+ -j CONNMARK --restore-mark --mask 0x80',
    ]


def test_without_node_port_support_nothing_is_marked_on_its_way_in(planned: Any) -> None:
    made = planned("aws-vpc:no-connmark", SMALL)
    assert rules(made, "node/n1", "mangle") == [
        'PREROUTING -m comment --comment "AWS, primary ENI" -i eni+ -j CONNMARK --restore-mark --mask 0x80'
    ]
    assert rules(made, "node/n1", "nat") == rules(planned("aws-vpc", SMALL), "node/n1", "nat")


def test_the_mode_without_marks_is_labelled() -> None:
    assert "AWS_VPC_CNI_NODE_PORT_SUPPORT=false" in load_style("aws-vpc:no-connmark").title


def test_with_external_snat_nothing_is_translated_on_the_node(planned: Any) -> None:
    made = planned("aws-vpc:external-snat", SMALL)
    assert rules(made, "node/n1", "nat") == []
    assert made.one(PolicyRule, "node/n1", fwmark=0x80).priority == 1024  # NodePorts still need it


def test_the_primary_interface_filters_loosely(small: Any) -> None:
    assert small.one(Sysctl, "node/n1", name="net/ipv4/conf/eth0/rp_filter").value == "2"


def test_frames_are_jumbo_from_the_pod_to_the_vpc(small: Any) -> None:
    found = {veth.mtu for veth in small.of(Veth) if "node/n1" in (veth.ns, veth.peer_ns)}
    assert found == {9001}
    configuration = json.loads(small.one(File, "node/n1").content)
    assert configuration["plugins"][0] == {**configuration["plugins"][0], "type": "aws-cni", "mtu": "9001"}


def test_a_link_that_the_topology_makes_smaller_stays_so(planned: Any) -> None:
    made = planned("aws-vpc", SMALL.replace("[10.0.0.0/24]}", "[10.0.0.0/24], mtu: 1450}"))
    assert {veth.mtu for veth in made.of(Veth) if "node/n1" in (veth.ns, veth.peer_ns)} == {1450}


@pytest.mark.parametrize("spec", MODES)
def test_each_mode_has_a_title_of_its_own(spec: str) -> None:
    assert [load_style(other).title for other in MODES].count(load_style(spec).title) == 1


def test_with_prefixes_pods_have_addresses_of_a_block(planned: Any) -> None:
    made = planned("aws-vpc:prefix", SMALL)
    block = made.cluster.node("n1").enis[0].prefixes[0]
    assert block == "10.0.0.16/28"
    assert [pod.addresses[0] for pod in made.cluster.pods_on("n1")] == [f"10.0.0.{n}" for n in range(16, 21)]
    assert made.one(Route, "router/vpc", destination=block).device == "n1-eth0"


def test_another_pod_leaves_the_vpc_alone_until_an_interface_is_needed(planned: Any) -> None:
    made = planned("aws-vpc", SMALL)
    web = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "default"}}
    spec = {"nodeName": "n2", "containers": [{"name": "web", "image": "web"}]}
    after = made.then(objects=({**web, "spec": spec},))
    assert after.plan.fragments["router/vpc"] == made.plan.fragments["router/vpc"]


def test_a_nodes_object_tells_its_type_and_limit_and_no_pod_cidr(small: Any) -> None:
    node = node_object(small.cluster.node("n2"))
    assert node["metadata"]["labels"]["node.kubernetes.io/instance-type"] == "m5.large"
    assert (node["status"]["capacity"], node["spec"]) == ({"pods": "29"}, {})


# The fabric


def test_the_switch_becomes_the_vpcs_router_and_the_rack_router_its_gateway(small: Any) -> None:
    topology = small.cluster.topology
    assert topology.switches == ()
    machines = {machine.name: machine for machine in topology.machines}
    assert [(each.name, each.peer) for each in machines["vpc"].interfaces] == [
        ("n1-eth0", "n1"),
        ("n2-eth0", "n2"),
        ("tor-eth0", "tor"),
    ]
    assert machines["tor"].interfaces[0].addresses == ("169.254.100.2/30",)
    assert [(route.destination, route.via) for route in machines["tor"].routes] == [("10.0.0.0/24", "169.254.100.1")]
    assert small.one(Route, "node/n1", destination="0.0.0.0/0", table=254).via == "10.0.0.1"


def test_the_gateways_link_keeps_ethernets_mtu(small: Any) -> None:
    (veth,) = [each for each in small.of(Veth) if "router/tor" in (each.ns, each.peer_ns)]
    assert (veth.mtu, veth.peer_mtu) == (1500, 0)


def test_preparing_twice_changes_nothing(small: Any) -> None:
    assert lay_fabric(small.cluster.topology) is small.cluster.topology


def test_the_mapping_service_answers_and_knows_every_mac(small: Any) -> None:
    eni = small.cluster.node("n1").enis[1]
    assert small.one(Sysctl, "router/vpc", name="net/ipv4/conf/n1-eth1/proxy_arp").value == "1"
    assert small.one(Neighbour, "router/vpc", device="n1-eth1").mac == eni.mac
    assert small.one(Address, "router/vpc", device="lo").address == "10.0.0.1/32"
    assert not [item for item in small.of(Sysctl, "router/vpc") if "tor-eth0" in item.name]


def test_addresses_are_routed_to_their_interface_and_the_rest_of_the_vpc_nowhere(small: Any) -> None:
    eni = small.cluster.node("n1").enis[1]
    route = small.one(Route, "router/vpc", destination=eni.prefixes[0])
    assert (route.via, route.device) == (eni.address, "n1-eth1")
    assert small.one(Route, "router/vpc", destination="10.0.0.0/24").type == "blackhole"
    assert small.one(Route, "router/vpc", destination="0.0.0.0/0").via == "169.254.100.2"


def test_the_fabric_gives_the_ttl_back(small: Any) -> None:
    assert rules(small, "router/vpc", "mangle") == ["PREROUTING -j TTL --ttl-inc 1"]


def test_an_interface_sends_from_its_own_addresses_only(small: Any) -> None:
    eni = small.cluster.node("n1").enis[1]
    members = small.one(IpSet, "router/vpc", name="eni-n1-eth1").members
    assert set(members) == {eni.address, *(prefix.removesuffix("/32") for prefix in eni.prefixes)}
    assert "VPC-SOURCE-CHECK -i n1-eth1 -m set ! --match-set eni-n1-eth1 src -j DROP" in rules(
        small, "router/vpc", "raw"
    )
    assert "VPC-DEST-CHECK -o n1-eth1 -m set ! --match-set eni-n1-eth1 dst -j DROP" in rules(
        small, "router/vpc", "filter"
    )


def test_subnets_with_different_gateways_have_route_tables_of_their_own(planned: Any) -> None:
    made = planned("aws-vpc", "racks")
    defaults = {route.table: route.device for route in made.of(Route, "router/vpc") if route.destination == "0.0.0.0/0"}
    assert defaults == {101: "tor1-eth0", 102: "tor2-eth0"}
    looked_up = {rule.iif: rule.table for rule in made.of(PolicyRule, "router/vpc")}
    assert (looked_up["n1-eth0"], looked_up["n3-eth0"]) == (101, 102)
    assert {rule.priority for rule in made.of(PolicyRule, "router/vpc")} == {33000}  # after main: the local routes


def test_an_internet_gateway_translates_one_to_one_and_nothing_else_gets_out(planned: Any) -> None:
    made = planned("aws-vpc", "vpc")
    assert rules(made, "router/igw", "nat")[2:] == [
        "IGW-IN -i eth1 -d 198.51.100.10/32 -j DNAT --to-destination 10.0.0.101",
        "IGW-IN -i eth1 -d 198.51.100.11/32 -j DNAT --to-destination 10.0.0.4",
        "IGW-OUT -o eth1 -s 10.0.0.101/32 -j SNAT --to-source 198.51.100.10",
        "IGW-OUT -o eth1 -s 10.0.0.4/32 -j SNAT --to-source 198.51.100.11",
    ]
    assert rules(made, "router/igw", "filter")[-1] == "IGW-KNOWN -j DROP"
    assert made.one(Route, "router/isp", destination="198.51.100.0/24").device
    assert not [route for route in made.of(Route, "router/isp") if route.destination.startswith("10.")]


def test_private_subnets_leave_by_the_nat_gateway(planned: Any) -> None:
    made = planned("aws-vpc", "vpc")
    private = made.one(Route, "router/vpc", destination="0.0.0.0/0", table=102)
    assert (private.via, private.device) == ("10.0.0.4", "nat-a-eth0")
    assert rules(made, "router/nat-a", "nat") == [
        "POSTROUTING -j NAT-GATEWAY",
        "NAT-GATEWAY -o eth0 -j SNAT --to-source 10.0.0.4 --random-fully",
    ]
    assert not [rule for rule in rules(made, "router/vpc", "raw") if "nat-a" in rule]  # it forwards others' packets


def test_a_zone_is_its_subnets(planned: Any) -> None:
    made = planned("aws-vpc", "vpc")
    zones = [node.labels["topology.kubernetes.io/zone"] for node in made.cluster.nodes]
    assert zones == ["eu-west-1a", "eu-west-1b", "eu-west-1b"]


@pytest.mark.parametrize(
    ("machine", "device", "port"),
    [("n1", "eth0", "n1-eth0"), ("a.b", "eth0", "a-b-eth0-"), ("a-very-long-name", "eth1", "a-very-lon-")],
)
def test_port_names_fit_a_device(machine: str, device: str, port: str) -> None:
    assert port_name(machine, device).startswith(port)
    assert len(port_name(machine, device)) <= 15


def test_ports_of_alike_names_differ() -> None:
    assert len({port_name("a.b", "eth0"), port_name("a-b", "eth0"), port_name("a.b", "eth1")}) == 3


# What is refused


@pytest.mark.parametrize("name", ["dual-stack", "ipv6"])
def test_ipv6_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=f"aws-vpc carries IPv4 only, and topology {name} has IPv6"):
        load_style("aws-vpc").prepare(load_topology(name))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("10.0.0.0/24", "10.0.0.0/29", "cannot be a VPC's subnet"),
        ("[10.0.0.0/24]", "[10.0.0.0/24, 10.0.1.0/24]", "2 CIDRs in place of one"),
        ("{name: n2, switch: s1, pods: 1}", "{name: n2, switch: s1, addresses: [10.0.0.3]}", "first four addresses"),
    ],
)
def test_what_no_vpc_is_like_is_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        lay_fabric(parse_topology(SMALL.replace(old, new), "test"))


def test_a_node_with_two_cables_is_refused() -> None:
    text = SMALL.replace("[{name: s1,", "[{name: s2, cidrs: [10.9.0.0/24]}, {name: s1,")
    with pytest.raises(UserError, match="node n2 on one switch and nothing else"):
        lay_fabric(parse_topology(text + "links: [{from: n2, to: s2}, {from: tor, to: s2}]", "test"))


def aws_node(value: str) -> dict[str, Any]:
    env = [{"name": "AWS_VPC_CNI_NODE_PORT_SUPPORT", "value": value}]
    labels = {"k8s-app": "aws-node"}
    spec = {"hostNetwork": True, "containers": [{"name": "aws-node", "image": "amazon-k8s-cni", "env": env}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "aws-node", "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


@pytest.mark.parametrize(("value", "marks"), [("false", False), ("0", False), ("true", True), ("", True)])
def test_aws_nodes_manifest_says_whether_nodeports_are_marked(planned: Any, value: str, marks: bool) -> None:
    made = planned("aws-vpc", SMALL, objects=(aws_node(value),))
    (mangle,) = [item for item in made.of(IptablesRules, "node/n1") if item.table == "mangle"]
    assert any("--set-mark" in jump.rule.args for jump in mangle.jumps) is marks
    assert ("AWS_VPC_CNI_NODE_PORT_SUPPORT=false" in mangle.why) is not marks


def test_what_is_no_truth_value_is_refused(planned: Any) -> None:
    with pytest.raises(ManifestError, match="must be true or false"):
        planned("aws-vpc", SMALL, objects=(aws_node("no"),))
