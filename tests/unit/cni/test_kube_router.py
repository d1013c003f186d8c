"""emulator.cni.kube_router: what kube-router puts where, with BIRD in place of its GoBGP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emulator.cni.kube_router import tunnel_device
from emulator.errors import UserError
from emulator.plan.iptables import rule_text
from emulator.plan.model import (
    Address,
    Bridge,
    BridgePort,
    Daemon,
    File,
    Ipip,
    IpSet,
    IptablesRules,
    PolicyRule,
    Route,
    Sysctl,
    Veth,
)

CONFIG = "/etc/kube-router/bird.conf"


def annotated(*nodes: str, asn: int = 64513, more: str = "") -> str:
    """A rack whose router speaks BGP; each of ``nodes`` is what follows the node's name."""
    lines = [f"  - {{name: n{number}, switch: s1{rest}}}" for number, rest in enumerate(nodes, start=1)]
    return "\n".join(
        [
            "name: annotated",
            "podCIDRs: [10.244.0.0/16]",
            "pods: 1",
            "switches: [{name: s1, cidrs: [192.168.50.0/24]}]",
            "nodes:",
            *lines,
            f"routers: [{{name: tor, asn: {asn}, switch: s1}}]",
            more,
        ]
    )


def noted(**pairs: str) -> str:
    inner = ", ".join(f"kube-router.io/{key.replace('_', '.')}: '{value}'" for key, value in pairs.items())
    return f", annotations: {{{inner}}}"


TOR = noted(peer_ips="192.168.50.1", peer_asns="64513")


def configuration(made: Any, ns: str = "node/n1") -> str:
    text: str = made.one(File, ns, path=CONFIG).content
    return text


def learned(made: Any, ns: str) -> dict[str, tuple[str, str]]:
    return {item.destination: (item.via, item.device) for item in made.of(Route, ns) if item.learned}


# -- one subnet -------------------------------------------------------------------------------------------------


def test_peers_of_the_same_subnet_are_learned_routes_by_their_address(planned: Any) -> None:
    made = planned("kube-router")
    assert learned(made, "node/n1") == {
        "10.244.2.0/24": ("192.168.50.12", "eth0"),
        "10.244.3.0/24": ("192.168.50.13", "eth0"),
    }
    assert {item.protocol for item in made.of(Route, "node/n1") if item.learned} == {"bird"}
    assert made.of(Ipip) == []


def test_everything_of_bgp_says_that_bird_stands_in(planned: Any) -> None:
    made = planned("kube-router")
    assert "BIRD for GoBGP" in made.style.title
    items = [*made.of(Daemon, "node/n1"), made.one(File, "node/n1", path=CONFIG)]
    items += [item for item in made.of(Route, "node/n1") if item.learned]
    assert {item.component for item in items} == {"kube-router (BIRD for GoBGP)"}


def test_every_node_peers_with_every_other_in_as_64512(planned: Any) -> None:
    text = configuration(planned("kube-router"))
    assert "local 192.168.50.11 as 64512;" in text
    assert [line.strip() for line in text.splitlines() if "neighbor" in line] == [
        "neighbor 192.168.50.12 as 64512;",
        "neighbor 192.168.50.13 as 64512;",
    ]
    assert 'route 10.244.1.0/24 via "kube-bridge";' in text
    assert "hold time 90;" in text


def test_a_node_does_not_take_a_default_route(planned: Any) -> None:
    assert "  if net = 0.0.0.0/0 then reject;" in configuration(planned("kube-router"))


def test_pods_are_on_kube_bridge_with_the_nodes_mtu_and_in_hairpin_mode(planned: Any) -> None:
    made = planned("kube-router")
    pod = made.cluster.pods[0]
    port = made.one(BridgePort, "node/n1", device=made.one(Veth, pod.ns).peer)
    assert (port.bridge, port.hairpin) == ("kube-bridge", True)
    assert made.one(Bridge, "node/n1").mtu == made.one(Veth, pod.ns).mtu == 1500
    assert made.one(Address, "node/n1", device="kube-bridge").address == "10.244.1.1/24"
    assert [(item.destination, item.via) for item in made.of(Route, pod.ns)] == [("0.0.0.0/0", "10.244.1.1")]


def test_what_pods_send_to_nodes_keeps_its_source(planned: Any) -> None:
    made = planned("kube-router")
    (jump,) = made.one(IptablesRules, "node/n1", table="nat").jumps
    assert (jump.chain, jump.position) == ("POSTROUTING", "append")
    assert rule_text(jump.rule) == (
        "-m set --match-set kube-router-pod-subnets src -m set ! --match-set kube-router-pod-subnets dst "
        "-m set ! --match-set kube-router-node-ips dst -j MASQUERADE --random-fully"
    )
    assert {item.name: (item.type, item.members) for item in made.of(IpSet, "node/n1")} == {
        "kube-router-pod-subnets": ("hash:net", ("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24")),
        "kube-router-node-ips": ("hash:ip", ("192.168.50.11", "192.168.50.12", "192.168.50.13")),
    }


def test_the_rule_for_table_77_is_there_without_any_tunnel(planned: Any) -> None:
    rule = planned("kube-router").one(PolicyRule, "node/n1")
    assert (rule.priority, rule.table, rule.source) == (32765, 77, "10.244.1.0/24")
    assert planned("kube-router:no-overlay").of(PolicyRule) == []


def test_bridged_frames_pass_iptables(planned: Any) -> None:
    values = {item.name: item.value for item in planned("kube-router").of(Sysctl, "node/n1")}
    assert values["net/bridge/bridge-nf-call-iptables"] == "1"


def test_the_plugin_list_has_the_nodes_subnet_filled_in(planned: Any) -> None:
    content = planned("kube-router").one(File, "node/n1", path="/etc/cni/net.d/10-kuberouter.conflist").content
    (bridge,) = json.loads(content)["plugins"]
    assert (bridge["bridge"], bridge["mtu"], bridge["ipam"]["ranges"]) == (
        "kube-bridge",
        1500,
        [[{"subnet": "10.244.1.0/24"}]],
    )


def test_dual_stack_carries_both_families_on_one_session(planned: Any) -> None:
    made = planned("kube-router", "dual-stack")
    text = configuration(made)
    assert text.count("protocol bgp") == 2
    assert text.count("next hop address fd00:50::11;") == 2
    peer = made.cluster.node("n2")
    assert [learned(made, "node/n1")[cidr][0] for cidr in peer.pod_ranges] == list(peer.addresses)
    assert {item.name for item in made.of(IpSet, "node/n1") if item.family == 6} == {
        "inet6:kube-router-pod-subnets",
        "inet6:kube-router-node-ips",
    }


def test_ipv6_alone_has_a_router_id_from_a_hash(planned: Any) -> None:
    made = planned("kube-router", "ipv6")
    assert "neighbor fd00:50::12 as 64512;" in configuration(made)
    assert {item.family for item in made.of(IptablesRules)} == {6}
    assert "next hop address" not in configuration(made)


# -- the overlay ------------------------------------------------------------------------------------------------


def test_a_tunnel_is_named_by_a_hash_of_the_others_address() -> None:
    assert tunnel_device("10.0.0.1") == "tun-e443169117a"


def test_nodes_in_other_subnets_get_a_tunnel_and_neighbours_none(planned: Any) -> None:
    made = planned("kube-router", "racks")
    near, far = made.cluster.node("n2"), made.cluster.node("n3")
    devices = {item.remote: item for item in made.of(Ipip, "node/n1")}
    assert set(devices) == {made.cluster.node(name).addresses[0] for name in ("n3", "n4")}
    device = devices[far.addresses[0]]
    assert (device.name, device.mtu, device.local) == (
        tunnel_device(far.addresses[0]),
        1480,
        made.cluster.node("n1").addresses[0],
    )
    assert learned(made, "node/n1")[near.pod_ranges[0]] == (near.addresses[0], "eth0")
    route = made.one(Route, "node/n1", destination=far.pod_ranges[0])
    assert (route.via, route.device, route.source, route.learned) == ("", device.name, device.local, True)
    own = made.one(Route, "node/n1", destination=f"{far.addresses[0]}/32")
    assert (own.table, own.device, own.scope) == (77, device.name, "link")


def test_the_kernels_filter_sends_routes_into_tunnels(planned: Any) -> None:
    made = planned("kube-router", "racks")
    far = made.cluster.node("n3").addresses[0]
    text = configuration(made)
    assert "  if bgp_next_hop ~ 192.168.51.0/24 then accept;  # a neighbour" in text
    assert f'  if bgp_next_hop = {far} then {{\n    ifname = "{tunnel_device(far)}";' in text


def test_a_full_overlay_has_a_tunnel_to_every_node(planned: Any) -> None:
    made = planned("kube-router:full")
    assert len(made.of(Ipip, "node/n1")) == 2
    assert "bgp_next_hop ~" not in configuration(made)
    assert "ipip" in made.style.requires


def test_the_default_mode_asks_for_tunnels_only_where_it_makes_one(planned: Any) -> None:
    assert "ipip" not in planned("kube-router").style.requires


def test_without_an_overlay_routers_must_know_the_way(planned: Any) -> None:
    with pytest.raises(UserError, match=r"packets from n1 to the pods of n3 .* get lost: tor1 has no route"):
        planned("kube-router:no-overlay", "racks")


def test_ipv6_tunnels_are_refused(planned: Any) -> None:
    with pytest.raises(UserError, match="ip6tnl"):
        planned("kube-router:full", "dual-stack")


# -- peers by annotations ---------------------------------------------------------------------------------------


def test_a_router_that_is_a_peer_learns_the_pod_networks(planned: Any) -> None:
    made = planned("kube-router", annotated(TOR, TOR))
    assert "neighbor 192.168.50.1 as 64513;" in configuration(made)
    assert learned(made, "router/tor") == {
        "10.244.1.0/24": ("192.168.50.11", "eth0"),
        "10.244.2.0/24": ("192.168.50.12", "eth0"),
    }
    text = made.one(File, "router/tor", path="/etc/bird/bird.conf").content
    assert "neighbor 192.168.50.11 as 64512;" in text


def test_a_router_without_peers_runs_nothing(planned: Any) -> None:
    assert planned("kube-router", annotated("", "")).of(Daemon, "router/tor") == []


def test_a_reflectors_clients_peer_with_it_alone(planned: Any) -> None:
    server, client = noted(rr_server="42"), noted(rr_client="42")
    made = planned("kube-router", annotated(server, client, client))
    assert configuration(made, "node/n2").count("neighbor") == 1
    assert configuration(made, "node/n1").count("rr client;\n  rr cluster id 0.0.0.42;") == 2
    assert "a route reflector has no export policy" in configuration(made, "node/n1")
    assert learned(made, "node/n2")["10.244.3.0/24"] == ("192.168.50.13", "eth0")


def test_clients_without_a_server_know_nobody(planned: Any) -> None:
    client = noted(rr_client="42")
    with pytest.raises(UserError, match="get lost"):
        planned("kube-router", annotated(client, client))


def test_each_as_is_a_mesh_of_its_own(planned: Any) -> None:
    made = planned(
        "kube-router",
        annotated(f", asn: 64601{TOR}", f", asn: 64601{TOR}", f", asn: 64602{TOR}"),
    )
    assert configuration(made).count("as 64601;\n  neighbor") == 2  # n2 and the router
    # The router tells n1 of n3 as a third party: they are on one link.
    assert learned(made, "node/n1")["10.244.3.0/24"] == ("192.168.50.13", "eth0")


def test_a_node_without_an_as_is_refused_where_others_have_one(planned: Any) -> None:
    with pytest.raises(UserError, match="node n2 has no AS number"):
        planned("kube-router", annotated(", asn: 64601", ""))


def test_a_prepended_path_is_longer(planned: Any) -> None:
    longer = noted(
        peer_ips="192.168.50.1", peer_asns="64513", **{"path-prepend_as": "65000", "path-prepend_repeat-n": "2"}
    )
    text = configuration(planned("kube-router", annotated(longer, "")))
    assert text.count("bgp_path.prepend(65000);") == 2


def test_a_peers_password_is_on_both_ends(planned: Any) -> None:
    node = noted(peer_ips="192.168.50.1", peer_asns="64513", peer_passwords="c2VzYW1l")
    made = planned("kube-router", annotated(node, ""))
    assert 'password "sesame";' in configuration(made)
    assert 'password "sesame";' in made.one(File, "router/tor", path="/etc/bird/bird.conf").content


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (noted(peer_ips="192.168.50.1", peer_asns="64513,64514"), "peer.asns has 2 items"),
        (noted(peer_ips="tor", peer_asns="64513"), "'tor', which is no address"),
        (noted(peer_ips="192.168.50.1", peer_asns="0"), "no number from 1"),
        (noted(peer_ips="192.168.50.1", peer_asns="64513", peer_ports="x"), "no number from 1 to 65535"),
        (noted(peer_ips="192.168.50.1", peer_asns="64513", peer_passwords="?"), "base64"),
        (noted(rr_server="one"), "must be a number or an IPv4 address"),
        (noted(**{"path-prepend_as": "65000"}), "path-prepend.repeat-n is missing"),
        (noted(**{"node.bgp.communities": "65000:1"}), "node.bgp.communities is not emulated"),
    ],
)
def test_a_wrong_annotation_is_refused_with_its_name(planned: Any, said: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason.replace("?", r"\?")):
        planned("kube-router", annotated(said, ""))


def test_other_components_annotations_are_left_alone(planned: Any) -> None:
    made = planned("kube-router", annotated(", annotations: {flannel.alpha.coreos.com/public-ip: 1.2.3.4}", ""))
    assert made.cluster.nodes[0].annotations == {"flannel.alpha.coreos.com/public-ip": "1.2.3.4"}
