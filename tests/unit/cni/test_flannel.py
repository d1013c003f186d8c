"""emulator.cni.flannel: what flanneld and its plugins put where (names and numbers of the real ones)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emulator.cni.flannel_network import vtep_mac
from emulator.errors import UserError
from emulator.plan.iptables import rule_text
from emulator.plan.model import (
    Address,
    Bridge,
    BridgePort,
    FdbEntry,
    File,
    IptablesRules,
    Neighbour,
    Route,
    Sysctl,
    Veth,
    Vxlan,
)

TUNNELS = ("flannel", "flannel:directrouting")


def topology(mtu: int) -> str:
    return f"""\
name: small-mtu
podCIDRs: [10.244.0.0/16]
switches:
  - {{name: s1, cidrs: [192.168.50.0/24], mtu: {mtu}}}
nodes:
  - {{name: n1, switch: s1}}
  - {{name: n2, switch: s1}}
routers: [{{name: tor, switch: s1}}]
"""


def test_the_tunnel_has_vni_1_on_port_8472_and_50_bytes_less(planned: Any) -> None:
    tunnel = planned("flannel").one(Vxlan, "node/n1")
    assert (tunnel.name, tunnel.vni, tunnel.port, tunnel.mtu) == ("flannel.1", 1, 8472, 1450)
    assert (tunnel.local, tunnel.underlay, tunnel.learning) == ("192.168.50.11", "eth0", False)


def test_the_tunnel_has_the_subnets_base_as_a_host_address(planned: Any) -> None:
    assert planned("flannel").one(Address, "node/n1", device="flannel.1").address == "10.244.1.0/32"


def test_each_peer_is_a_neighbour_an_fdb_entry_and_an_onlink_route(planned: Any) -> None:
    made = planned("flannel")
    mac = vtep_mac(made.cluster.node("n2"), 4)
    assert made.one(Neighbour, "node/n1", address="10.244.2.0").mac == mac
    assert made.one(FdbEntry, "node/n1", mac=mac).remote == "192.168.50.12"
    route = made.one(Route, "node/n1", destination="10.244.2.0/24")
    assert (route.via, route.device, route.onlink, route.protocol) == ("10.244.2.0", "flannel.1", True, "boot")
    assert len(made.of(FdbEntry, "node/n1")) == 2


def test_macs_are_unicast_locally_administered_and_differ(planned: Any) -> None:
    made = planned("flannel")
    macs = [item.mac for item in made.of(Vxlan)]
    assert len(set(macs)) == 3
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)


@pytest.mark.parametrize(
    ("spec", "mtu"), [("flannel", 1450), ("flannel:directrouting", 1450), ("flannel:host-gw", 1500)]
)
def test_pods_and_bridge_have_the_mtu_that_fits_the_backend(planned: Any, spec: str, mtu: int) -> None:
    made = planned(spec)
    assert {item.mtu for item in made.of(Veth) if item.ns.startswith("pod/")} == {mtu}
    assert made.one(Bridge, "node/n1").mtu == mtu
    assert f"FLANNEL_MTU={mtu}" in made.one(File, "node/n1", path="/run/flannel/subnet.env").content


def test_host_gw_routes_by_the_peers_own_address_without_any_tunnel(planned: Any) -> None:
    made = planned("flannel:host-gw")
    route = made.one(Route, "node/n1", destination="10.244.2.0/24")
    assert (route.via, route.device, route.onlink) == ("192.168.50.12", "eth0", False)
    assert made.of(Vxlan) == made.of(FdbEntry) == made.of(Neighbour) == []


def test_direct_routing_uses_the_tunnel_between_subnets_only(planned: Any) -> None:
    made = planned("flannel:directrouting", "racks")
    nodes = made.cluster.nodes
    near = next(node for node in nodes[1:] if node.subnets == nodes[0].subnets)
    far = next(node for node in nodes[1:] if node.subnets != nodes[0].subnets)
    assert made.one(Route, nodes[0].ns, destination=near.pod_ranges[0]).via == near.addresses[0]
    assert made.one(Route, nodes[0].ns, destination=far.pod_ranges[0]).device == "flannel.1"
    assert len(made.of(FdbEntry, nodes[0].ns)) == sum(node.subnets != nodes[0].subnets for node in nodes)
    assert made.one(Vxlan, nodes[0].ns).mtu == 1450


def test_host_gw_refuses_nodes_behind_routers(planned: Any) -> None:
    with pytest.raises(UserError, match="one L2 segment"):
        planned("flannel:host-gw", "racks")


def test_a_pod_has_the_default_and_the_cluster_network_by_the_bridge(planned: Any) -> None:
    made = planned("flannel")
    pod = made.cluster.pods[0]
    routes = {item.destination: (item.via, item.device) for item in made.of(Route, pod.ns)}
    assert routes == {"10.244.0.0/16": ("10.244.1.1", "eth0"), "0.0.0.0/0": ("10.244.1.1", "eth0")}
    assert made.one(Address, pod.ns).address == f"{pod.addresses[0]}/24"
    assert made.one(Address, "node/n1", device="cni0").address == "10.244.1.1/24"


def test_the_host_end_is_a_hairpin_port_of_cni0(planned: Any) -> None:
    made = planned("flannel")
    veth = made.one(Veth, made.cluster.pods[0].ns)
    assert veth.peer.startswith("veth")
    assert len(veth.peer) == len("veth") + 8
    port = made.one(BridgePort, "node/n1", device=veth.peer)
    assert (port.bridge, port.hairpin) == ("cni0", True)


def test_masquerade_rules_are_flanneld_s_in_its_order(planned: Any) -> None:
    nat = planned("flannel").one(IptablesRules, "node/n1", table="nat")
    comment = '-m comment --comment "flanneld masq"'
    assert [rule_text(rule) for rule in nat.chains[0].rules] == [
        f"-m mark --mark 0x4000/0x4000 {comment} -j RETURN",
        f"-s 10.244.1.0/24 -d 10.244.0.0/16 {comment} -j RETURN",
        f"-s 10.244.0.0/16 -d 10.244.1.0/24 {comment} -j RETURN",
        f"! -s 10.244.0.0/16 -d 10.244.1.0/24 {comment} -j RETURN",
        f"-s 10.244.0.0/16 ! -d 224.0.0.0/4 {comment} -j MASQUERADE --random-fully",
        f"! -s 10.244.0.0/16 -d 10.244.0.0/16 {comment} -j MASQUERADE --random-fully",
    ]
    assert [(jump.chain, rule_text(jump.rule)) for jump in nat.jumps] == [
        ("POSTROUTING", f"{comment} -j FLANNEL-POSTRTG")
    ]


def test_forward_rules_accept_the_cluster_network_both_ways(planned: Any) -> None:
    chain = planned("flannel").one(IptablesRules, "node/n1", table="filter").chains[0]
    assert chain.name == "FLANNEL-FWD"
    assert [rule.args[:2] for rule in chain.rules] == [("-s", "10.244.0.0/16"), ("-d", "10.244.0.0/16")]


def test_bridged_frames_pass_iptables_on_nodes(planned: Any) -> None:
    values = {item.name: item.value for item in planned("flannel").of(Sysctl, "node/n1")}
    assert values["net/bridge/bridge-nf-call-iptables"] == "1"


def test_the_subnet_file_is_flanneld_s(planned: Any) -> None:
    assert planned("flannel").one(File, "node/n1", path="/run/flannel/subnet.env").content == (
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )


def test_the_plugin_list_is_that_of_kube_flannel_yml(planned: Any) -> None:
    content = planned("flannel").one(File, "node/n1", path="/etc/cni/net.d/10-flannel.conflist").content
    assert json.loads(content)["name"] == "cbr0"
    assert [plugin["type"] for plugin in json.loads(content)["plugins"]] == ["flannel", "portmap"]


def test_dual_stack_has_a_tunnel_for_each_family_and_pods_that_fit_both(planned: Any) -> None:
    made = planned("flannel", "dual-stack")
    assert {item.name: item.mtu for item in made.of(Vxlan, "node/n1")} == {"flannel.1": 1450, "flannel-v6.1": 1430}
    pod = made.cluster.pods[0]
    assert made.one(Veth, pod.ns).mtu == 1430
    assert {item.destination for item in made.of(Route, pod.ns)} == {
        *made.cluster.topology.pod_cidrs,
        "0.0.0.0/0",
        "::/0",
    }
    assert {item.family for item in made.of(IptablesRules, "node/n1")} == {4, 6}


def test_ipv6_only_has_no_ipv4_device_or_rule(planned: Any) -> None:
    made = planned("flannel", "ipv6")
    assert [item.name for item in made.of(Vxlan, "node/n1")] == ["flannel-v6.1"]
    assert {item.family for item in made.of(IptablesRules)} == {6}
    assert "FLANNEL_NETWORK" not in made.one(File, "node/n1", path="/run/flannel/subnet.env").content


@pytest.mark.parametrize("spec", TUNNELS)
def test_an_mtu_that_leaves_pods_too_little_is_refused(planned: Any, spec: str) -> None:
    with pytest.raises(UserError, match="too small: 600 bytes leave pods 550"):
        planned(spec, topology(600))


def test_the_same_mtu_is_enough_without_a_tunnel(planned: Any) -> None:
    assert planned("flannel:host-gw", topology(600)).cluster.nodes[0].mtu == 600


def test_a_family_that_the_nodes_lack_is_refused(planned: Any) -> None:
    text = topology(1500).replace("podCIDRs: [10.244.0.0/16]", "podCIDRs: [10.244.0.0/16, 'fd00:10:244::/56']")
    with pytest.raises(UserError, match="IPv6"):
        planned("flannel", text)
