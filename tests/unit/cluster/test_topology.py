"""Topologies: what is filled in, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import HostLocal
from emulator.cluster.kubernetes import node_object
from emulator.cluster.model import Machine, StaticRoute, Topology
from emulator.cluster.topology import load_topology, parse_topology, topology_names
from emulator.errors import NotFound, TopologyError

MINIMAL = """
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor, switch: s1}]
"""


def machine(topology: Topology, name: str) -> Machine:
    return next(one for one in topology.machines if one.name == name)


def addresses(topology: Topology, name: str) -> list[str]:
    return [address for interface in machine(topology, name).interfaces for address in interface.addresses]


def routes(topology: Topology, name: str) -> dict[str, str]:
    return {route.destination: route.via for route in machine(topology, name).routes}


def refusals(text: str) -> list[str]:
    with pytest.raises(TopologyError) as error:
        parse_topology(text, "t.yaml")
    assert all(problem.source == "t.yaml" for problem in error.value.problems)
    return [str(problem) for problem in error.value.problems]


def refusal(text: str) -> str:
    (only,) = refusals(text)
    return only


def test_three_nodes_is_what_the_documentation_draws() -> None:
    topology = load_topology("three-nodes")
    assert [one.name for one in topology.machines] == ["n1", "n2", "n3", "tor", "client"]
    assert addresses(topology, "n1") == ["192.168.50.11/24"]
    assert addresses(topology, "n3") == ["192.168.50.13/24"]
    assert addresses(topology, "tor") == ["192.168.50.1/24", "203.0.113.1/24"]
    assert addresses(topology, "client") == ["203.0.113.10/24"]
    assert routes(topology, "n1") == {"0.0.0.0/0": "192.168.50.1"}
    assert routes(topology, "client") == {"0.0.0.0/0": "203.0.113.1"}
    assert machine(topology, "n2").pods == 3
    assert machine(topology, "client").ports == (80,)
    assert topology.pod_cidrs == ("10.244.0.0/16",)
    assert topology.node_cidrs == ("192.168.50.0/24",)


@pytest.mark.parametrize("name", ["three-nodes", "single-node", "racks", "dual-stack", "ipv6", "fifty-nodes"])
def test_each_shipped_topology_loads_under_its_own_name(name: str) -> None:
    assert name in topology_names()
    assert load_topology(name).name == name


@pytest.mark.parametrize("name", topology_names())
def test_every_cable_has_two_ends_that_know_each_other(name: str) -> None:
    topology = load_topology(name)
    ends = {(one.name, i.name): (i.peer, i.peer_device) for one in topology.machines for i in one.interfaces}
    ends |= {(s.name, p.device): (p.machine, p.machine_device) for s in topology.switches for p in s.ports}
    assert all(ends[far] == near for near, far in ends.items())


@pytest.mark.parametrize("name", topology_names())
def test_macs_and_addresses_are_unique_and_device_names_fit_the_kernel(name: str) -> None:
    topology = load_topology(name)
    interfaces = [interface for one in topology.machines for interface in one.interfaces]
    macs = [interface.mac for interface in interfaces]
    assert len(set(macs)) == len(macs)
    assert all(mac.startswith("02:") for mac in macs)
    behind_nat = {
        interface.peer for one in topology.machines for interface in one.interfaces if interface.name in one.nat
    }
    every = [address for interface in interfaces if interface.peer not in behind_nat for address in interface.addresses]
    assert len(set(every)) == len(every)
    devices = [switch.name for switch in topology.switches]
    devices += [port.device for switch in topology.switches for port in switch.ports]
    assert len(set(devices)) == len(devices)
    assert all(len(device) <= 15 for device in devices)


def test_racks_are_routed_by_the_spine() -> None:
    topology = load_topology("racks")
    assert routes(topology, "tor1") == {
        "192.168.52.0/24": "172.16.0.0",
        "172.16.0.2/31": "172.16.0.0",
        "203.0.113.0/24": "172.16.0.0",
        "0.0.0.0/0": "172.16.0.0",
    }
    assert routes(topology, "spine") == {"192.168.51.0/24": "172.16.0.1", "192.168.52.0/24": "172.16.0.3"}
    assert machine(topology, "n3").labels["topology.kubernetes.io/zone"] == "rack-2"


def test_two_routers_alone_do_not_send_what_they_do_not_know_in_circles() -> None:
    topology = parse_topology(
        """
switches: [{name: s1, cidrs: [192.168.50.0/24]}, {name: s2, cidrs: [203.0.113.0/24]}]
nodes: [{name: n1, switch: s1}]
routers: [{name: tor, switch: s1}, {name: edge, switch: s2}]
links: [{from: tor, to: edge, cidrs: [172.16.0.0/31]}]
""",
        "t.yaml",
    )
    assert routes(topology, "tor") == {"203.0.113.0/24": "172.16.0.1"}
    assert routes(topology, "edge") == {"192.168.50.0/24": "172.16.0.0"}


def test_dual_stack_machines_have_the_same_host_numbers_in_both_families() -> None:
    topology = load_topology("dual-stack")
    assert addresses(topology, "n2") == ["192.168.50.12/24", "fd00:192:168:50::12/64"]
    assert routes(topology, "n2") == {"0.0.0.0/0": "192.168.50.1", "::/0": "fd00:192:168:50::1"}


def test_fifty_nodes_come_from_one_line() -> None:
    topology = load_topology("fifty-nodes")
    assert len(topology.of_kind("node")) == 50
    assert addresses(topology, "n50") == ["192.168.50.60/24"]
    assert sum(node.pods for node in topology.of_kind("node")) == 1000


def test_annotations_of_a_node_reach_its_kubernetes_object() -> None:
    text = MINIMAL.replace("name: n1", "name: n1, annotations: {kube-router.io/rr.client: '42'}")
    topology = parse_topology(text, "t.yaml")
    assert machine(topology, "n1").annotations == {"kube-router.io/rr.client": "42"}
    (node,) = [each for each in assemble(topology, (), HostLocal(topology.pod_cidrs)).nodes if each.name == "n1"]
    assert node_object(node)["metadata"]["annotations"] == {"kube-router.io/rr.client": "42"}


def test_nodes_carry_the_labels_that_kubelet_sets() -> None:
    labels = machine(parse_topology(MINIMAL, "t.yaml"), "n1").labels
    assert labels == {"kubernetes.io/arch": "amd64", "kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux"}


def test_defaults_make_a_short_file_a_whole_cluster() -> None:
    topology = parse_topology(MINIMAL, "my_lab.yaml")
    assert topology.name == "my-lab"
    assert topology.pod_cidrs == ("10.244.0.0/16",)
    assert topology.service_cidrs == ("10.96.0.0/12",)


def test_hosts_are_numbered_from_101_and_explicit_addresses_are_left_out() -> None:
    topology = parse_topology(
        MINIMAL + "hosts: [{name: a, switch: s1}, {name: b, switch: s1, addresses: [192.168.50.101]}]", "t.yaml"
    )
    assert addresses(topology, "b") == ["192.168.50.101/24"]
    assert addresses(topology, "a") == ["192.168.50.102/24"]


def test_quality_of_a_link_impairs_both_directions_and_mtu_is_the_smaller_one() -> None:
    topology = parse_topology(
        """
switches: [{name: s1, cidrs: [192.168.50.0/24], mtu: 9000}]
nodes: [{name: n1}]
routers: [{name: tor, switch: s1}]
links: [{from: s1, to: n1, bandwidth: 100, delay: 5, jitter: 1, loss: 0.5, mtu: 1400}]
""",
        "t.yaml",
    )
    (interface,) = machine(topology, "n1").interfaces
    port = next(port for port in topology.switches[0].ports if port.machine == "n1")
    assert interface.quality == port.quality
    assert (interface.quality.bandwidth, interface.quality.delay, interface.quality.loss) == (100, 5, 0.5)
    assert interface.mtu == port.mtu == 1400
    assert machine(topology, "tor").interfaces[0].mtu == 9000


def test_cabled_switches_are_one_segment() -> None:
    topology = parse_topology(
        """
switches: [{name: s1, cidrs: [192.168.50.0/24]}, {name: s2}]
nodes: [{name: n1, switch: s2}]
routers: [{name: tor, switch: s1}]
links: [{from: s1, to: s2, mtu: 1400}]
""",
        "t.yaml",
    )
    assert routes(topology, "n1") == {"0.0.0.0/0": "192.168.50.1"}
    assert [(port.device, port.machine, port.mtu) for port in topology.switches[0].ports] == [
        ("s1-tor", "tor", 1500),
        ("s1-s2", "s2", 1400),
    ]


def test_long_names_give_short_unique_device_names() -> None:
    names = [f"a-rather-long-name-{n}.example.com" for n in range(3)]
    nodes = ", ".join(f"{{name: {name}, switch: s1}}" for name in names)
    topology = parse_topology(
        f"switches: [{{name: s1, cidrs: [192.168.50.0/24]}}]\nnodes: [{nodes}]\nrouters: [{{name: tor, switch: s1}}]",
        "t",
    )
    devices = [port.device for port in topology.switches[0].ports]
    assert len(set(devices)) == 4
    assert all(len(device) <= 15 and "." not in device for device in devices)


def test_a_node_without_a_router_is_refused_unless_that_is_meant() -> None:
    text = "switches: [{name: s1, cidrs: [192.168.50.0/24]}]\nnodes: [{name: n1, switch: s1}]"
    assert "t.yaml: node n1: has no router on its segment, hence no IPv4 default route" in refusal(text)
    topology = parse_topology(text.replace("switch: s1", "switch: s1, defaultRoute: false"), "t.yaml")
    assert routes(topology, "n1") == {}


def test_explicit_routes_win_over_those_that_follow_from_the_topology() -> None:
    text = MINIMAL.replace(
        "{name: n1, switch: s1}", "{name: n1, switch: s1, routes: [{to: default, via: 192.168.50.12}]}"
    )
    topology = parse_topology(text, "t.yaml")
    assert machine(topology, "n1").routes == (StaticRoute("0.0.0.0/0", "192.168.50.12", "given in the topology"),)


NODES = "{name: n1, switch: s1}, {name: n2, switch: s1}"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: n1", "name: 1", "t.yaml: nodes[0].name: expected a string, got the number 1; put it in quotes"),
        ("name: n1", "nam: n1", 't.yaml: nodes[0].nam: unknown field "nam", did you mean "name"?'),
        ("name: n1", "name: n1, pod: 3", 'node n1: nodes[0].pod: unknown field "pod", did you mean "pods"?'),
        ("name: n1", "name: n2", 'nodes[1].name: Duplicate value: "n2"'),
        ("name: n1", "name: s1", 'Duplicate value: "s1": switches[0] has this name'),
        ("name: n1", "name: ../../x", "nodes[0].name: Invalid value"),
        ("name: n1", "name: a;reboot", "nodes[0].name: Invalid value"),
        ("name: n1", 'name: "n1\\n"', "nodes[0].name: Invalid value"),
        ("name: n1", 'name: "n\'1"', "nodes[0].name: Invalid value"),
        ("name: n1", 'name: ""', "nodes[0].name: Required value"),
        ("name: n1", "name: " + "n" * 64, "must be no more than 63 bytes"),
        ("name: n1", "name: n1, pods: 111", "nodes[0].pods: Invalid value: 111: must be between 0 and 110"),
        ("name: n1", "name: n1, pods: -1", "must be between 0 and 110"),
        ("name: n1", "name: n1, pods: true", "expected a whole number"),
        ("name: n1", "name: n1, asn: 4294967296", "nodes[0].asn: Invalid value"),
        ("name: n1", "name: n1, labels: {a: 'x y'}", "a valid label must be an empty string"),
        ("name: n1", "name: n1, labels: {'a b': x}", "name part must consist of"),
        ("name: n1", "name: n1, annotations: {'a b': x}", "name part must consist of"),
        ("name: n1", 'name: n1, labels: {a: "x\\"\\n"}', "a valid label must be an empty string"),
        ("name: n1", "name: n1, zone: 'a b'", "nodes[0].zone: Invalid value"),
        ("name: n1", "name: n1, addresses: [10.0.0.1]", "is outside the segment (192.168.50.0/24)"),
        ("name: n1", "name: n1, addresses: [192.168.50.0]", "is the network or broadcast address"),
        ("name: n1", "name: n1, addresses: [192.168.50.9/16]", "leave the prefix length out"),
        ("name: n1", "name: n1, addresses: [192.168.50.300]", "must be a valid IP address"),
        ("switch: s1}, {", "switch: s2}, {", 'nodes[0].switch: Invalid value: "s2": there is no switch of this name'),
        ("switch: s1}, {", "switch: n2}, {", "there is no switch of this name"),
        (NODES, "{name: n1}", "node n1: is not linked to anything"),
        (NODES, "{count: 2, name: n, switch: s1}", "must not be given with a count"),
        (NODES, "{count: 1000000000, switch: s1}", "nodes[0].count: Invalid value"),
        (NODES, "{count: 300, switch: s1}", "192.168.50.0/24 has no free address left for node n254"),
        (NODES, "", "nodes: Required value"),
        ("name: s1", "name: all", "is reserved by the kernel"),
        ("name: s1", "name: sixteen-bytes-xx", "it names a Linux bridge"),
        ("192.168.50.0/24", "192.168.50.1/24", "did you mean 192.168.50.0/24?"),
        ("192.168.50.0/24", "10.244.7.0/24", "overlaps 10.244.0.0/16 of podCIDRs"),
        ("192.168.50.0/24", "10.100.0.0/24", "overlaps 10.96.0.0/12 of serviceCIDRs"),
        ("192.168.50.0/24", "127.0.0.0/24", "overlaps 127.0.0.0/8, the loopback"),
        ("192.168.50.0/24", "169.254.1.0/24", "which CNI styles use as gateways"),
        ("cidrs: [192.168.50.0/24]", "cidrs: []", "switch s1: cidrs: Required value"),
        ("cidrs: [192.168.50.0/24]", "cidrs: 192.168.50.0/24", "expected a list, got the string"),
        ("0/24]}", "0/24], mtu: 575}", "must be between 576 and 65535"),
        ("0/24]}", "0/24], mtu: 65536}", "must be between 576 and 65535"),
        ("0/24]}", '0/24, "fd00::/64"], mtu: 1279}', "must be at least 1280: the segment has IPv6"),
    ],
)
def test_a_fault_is_told_with_its_place_and_reason(old: str, new: str, expected: str) -> None:
    assert old in MINIMAL
    assert any(expected in line for line in refusals(MINIMAL.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("podCIDRs: [10.244.0.0/16, 10.245.0.0/16]", "podCIDRs[1]: there is an IPv4 range already"),
        ('podCIDRs: [10.244.0.0/16, "fd00::/56"]', "node n1: has no IPv6 address, but podCIDRs has fd00::/56"),
        ("podCIDRs: [10.96.0.0/16]", 'podCIDRs: Invalid value: "10.96.0.0/16": overlaps 10.96.0.0/12 of serviceCIDRs'),
        ('serviceCIDRs: ["fd00:10:96::/112"]', "there is no IPv6 range in podCIDRs"),
        ("podCIDR: [10.244.0.0/16]", 'unknown field "podCIDR", did you mean "podCIDRs"?'),
        ("links: [{from: n1, to: s9}]", 'links[0].to: Invalid value: "s9": there is no switch, node, router or host'),
        ("links: [{from: n1, to: n1}]", "both ends are the same"),
        ("links: [{from: n1, to: s1, loss: 101}]", "links[0].loss: Invalid value: 101.0: must be between 0 and 100"),
        ("links: [{from: n1, to: s1, loss: -1}]", "must be between 0 and 100"),
        ("links: [{from: n1, to: s1, bandwidth: -5}]", "must be between 0 and 1e+06"),
        ("links: [{from: n1, to: s1, delay: .nan}]", "expected a number"),
        ("links: [{from: n1, to: s1, jitter: 5}]", "must not exceed the delay"),
        ("links: [{from: n1, to: s1, cidrs: [172.16.0.0/31]}]", "belong to the switch"),
        ("links: [{from: n1, to: tor}]", "links[0].cidrs: Required value"),
        ("links: [{from: n1}]", "links[0].to: Required value"),
        ("hosts: [{name: c, switch: s1, ports: [0]}]", "hosts[0].ports[0]: Invalid value: 0"),
        ("hosts: [{name: c, switch: s1, ports: [80, 80]}]", "hosts[0].ports[1]: Duplicate value: 80"),
        ("hosts: [{name: c, switch: s1, addresses: [192.168.50.9]}, {name: d, switch: s1, addresses: [192.168.50.9]}]",
         "c has this address"),
        ("hosts: [{name: c, switch: s1, routes: [{to: 10.0.0.0/8, via: 10.0.0.1}]}]", "is in no subnet"),
        ("hosts: [{name: c, switch: s1, routes: [{to: 10.0.0.0/33, via: x}]}]", "must be a valid CIDR"),
        ("hosts: [{name: c, switch: s1, routes: [{to: '::/0', via: 192.168.50.1}]}]", "is of another family"),
        ("name: Upper", "name: Invalid value"),
    ],
)  # fmt: skip
def test_a_faulty_addition_is_told_with_its_place_and_reason(addition: str, expected: str) -> None:
    assert any(expected in line for line in refusals(MINIMAL + addition))


def test_a_crafted_file_of_many_ranges_is_refused_before_it_costs_time() -> None:
    cidrs = ", ".join(f"10.{a}.{b}.0/24" for a in range(100, 200) for b in range(250))
    assert "switches[0].cidrs: must have at most 8 items" in refusal(MINIMAL.replace("192.168.50.0/24", cidrs))


def test_a_ring_of_switches_is_refused() -> None:
    text = """
switches: [{name: s1, cidrs: [192.168.50.0/24]}, {name: s2}]
nodes: [{name: n1, switch: s1}]
routers: [{name: tor, switch: s1}]
links: [{from: s1, to: s2}, {from: s2, to: s1}]
"""
    assert "closes a loop of switches" in refusal(text)


def test_a_switch_with_too_many_ports_is_refused() -> None:
    hosts = "hosts: [" + ", ".join(f"{{name: h{n}, switch: s1, defaultRoute: false}}" for n in range(990)) + "]"
    links = "links: [" + ", ".join("{from: h0, to: s1}" for _ in range(40)) + "]"
    text = MINIMAL.replace("192.168.50.0/24", "192.168.0.0/16") + hosts + "\n" + links
    assert "switch s1: has 1033 ports, a Linux bridge takes 1023" in refusal(text)


def test_all_faults_of_a_file_are_told_at_once() -> None:
    text = "pods: x\nfoo: 1\nswitches: [{mtu: x}, 5]\nnodes: [{name: n1, switch: s9}]"
    assert len(refusals(text)) == 2  # the top level is read first
    assert len(refusals(text.replace("pods: x\nfoo: 1\n", ""))) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "t.yaml: the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("a: 1\n---\nb: 2", "line 3: a topology file holds one document"),
        ("- 1", "expected a mapping, got a list"),
        ("nodes: [\nx: ]}", "line 2: not valid YAML"),
        ("nodes: []\nnodes: []", 'line 2: key "nodes" is given twice'),
        ("x" * (1 << 20) + "x", "the file is larger than 1048576 bytes"),
        ("[" * 200_000, "nested more than 100 levels deep"),
    ],
)
def test_a_file_that_is_no_topology_is_refused(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(b"name: x\nnodes: \xff\n")
    with pytest.raises(TopologyError, match="line 2: not UTF-8 text"):
        load_topology(path)


def test_a_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    assert load_topology(path).name == "mine"
    assert load_topology(str(path)).name == "mine"


@pytest.mark.parametrize("source", ["three-node", "nope", "../../nope", "/etc/nope.yaml", "a\0b", "."])
def test_a_topology_that_is_not_there_is_not_found(source: str) -> None:
    with pytest.raises(NotFound) as error:
        load_topology(source)
    assert error.value.exit_code == 2
    if source == "three-node":
        assert error.value.message == 'there is no topology "three-node", did you mean "three-nodes"?'
        assert "racks" in error.value.hint


def test_the_same_file_gives_the_same_topology() -> None:
    assert load_topology("racks") == load_topology("racks")
