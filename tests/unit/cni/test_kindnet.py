"""emulator.cni.kindnet: what kindnetd and the ptp plugin put where."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emulator.errors import UserError
from emulator.plan.model import Address, Bridge, File, NftTable, Route, Veth, Vxlan


def test_there_is_neither_bridge_nor_tunnel(planned: Any) -> None:
    made = planned("kindnet")
    assert made.of(Bridge, "node/n1") == made.of(Vxlan) == []


def test_a_node_routes_to_each_peers_subnet_by_its_address(planned: Any) -> None:
    routes = {
        item.destination: (item.via, item.device, item.protocol)
        for item in planned("kindnet").of(Route, "node/n1")
        if item.component == "kindnetd"
    }
    assert routes == {
        "10.244.2.0/24": ("192.168.50.12", "eth0", "boot"),
        "10.244.3.0/24": ("192.168.50.13", "eth0", "boot"),
    }


def test_the_gateway_is_a_host_address_on_every_pods_cable(planned: Any) -> None:
    made = planned("kindnet")
    cables = {item.peer for item in made.of(Veth) if item.peer_ns == "node/n1"}
    held = {item.device for item in made.of(Address, "node/n1") if item.address == "10.244.1.1/32"}
    assert held == cables
    assert len(cables) == 3


def test_the_node_has_a_host_scoped_route_for_each_pod(planned: Any) -> None:
    made = planned("kindnet")
    pod = made.cluster.pods[0]
    route = made.one(Route, "node/n1", destination=f"{pod.addresses[0]}/32")
    assert (route.device, route.scope, route.via) == (made.one(Veth, pod.ns).peer, "host", "")


def test_a_pods_link_holds_nobody_but_the_gateway(planned: Any) -> None:
    made = planned("kindnet")
    pod = made.cluster.pods[0]
    own = pod.addresses[0]
    address = made.one(Address, pod.ns)
    assert (address.address, address.prefix_route) == (f"{own}/24", False)
    assert [(item.destination, item.via, item.scope, item.source) for item in made.of(Route, pod.ns)] == [
        ("10.244.1.1/32", "", "link", own),
        ("10.244.1.0/24", "10.244.1.1", "global", own),
        ("0.0.0.0/0", "10.244.1.1", "global", ""),
    ]


def test_only_what_leaves_the_pod_network_is_masqueraded(planned: Any) -> None:
    table = planned("kindnet").one(NftTable, "node/n1", name="kindnet-ipmasq")
    assert (table.family, table.name) == ("inet", "kindnet-ipmasq")
    assert "elements = { 10.244.0.0/16 }" in table.body
    chain = table.body[table.body.index("chain postrouting") :].splitlines()
    assert [line.strip() for line in chain[1:-1]] == [
        "type nat hook postrouting priority srcnat - 10; policy accept;",
        "ct state established,related accept",
        "fib daddr type local accept",
        "ip daddr @noMasqV4 accept",
        "ip6 daddr @noMasqV6 accept",
        "masquerade",
    ]


def test_pods_keep_the_nodes_mtu(planned: Any) -> None:
    made = planned("kindnet")
    assert {item.mtu for item in made.of(Veth) if item.ns.startswith("pod/")} == {1500}


def test_dual_stack_has_routes_and_sets_of_both_families(planned: Any) -> None:
    made = planned("kindnet", "dual-stack")
    peer = made.cluster.node("n2")
    assert [made.one(Route, "node/n1", destination=subnet).via for subnet in peer.pod_ranges] == list(peer.addresses)
    body = made.one(NftTable, "node/n1", name="kindnet-ipmasq").body
    assert [line.strip() for line in body.splitlines() if "elements" in line] == [
        f"elements = {{ {cidr} }}" for cidr in made.cluster.topology.pod_cidrs
    ]
    assert {item.scope for item in made.of(Route, "node/n1") if item.destination.endswith("/128")} == {"global"}


def test_ipv6_alone_has_an_empty_ipv4_set(planned: Any) -> None:
    body = planned("kindnet", "ipv6").one(NftTable, "node/n1", name="kindnet-ipmasq").body
    assert "elements" not in body[: body.index("set noMasqV6")]
    assert "elements" in body


def test_the_plugin_list_is_kindnetds(planned: Any) -> None:
    content = planned("kindnet").one(File, "node/n1", path="/etc/cni/net.d/10-kindnet.conflist").content
    ptp, portmap = json.loads(content)["plugins"]
    assert (ptp["type"], ptp["mtu"], portmap["type"]) == ("ptp", 1500, "portmap")
    assert ptp["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}]]
    assert ptp["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}]


def test_nodes_behind_routers_are_refused(planned: Any) -> None:
    with pytest.raises(UserError, match="kindnet needs all nodes on one L2 segment, and n1 and n3 share none"):
        planned("kindnet", "racks")
