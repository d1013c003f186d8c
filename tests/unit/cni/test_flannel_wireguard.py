"""emulator.cni.flannel_wireguard: devices, peers, endpoints and keys of Flannel's backend wireguard."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emulator.cni.flannel_wireguard import private_key, public_key
from emulator.cni.styles import every_mode, load_style, stands_for
from emulator.errors import UserError
from emulator.plan.model import Address, Daemon, File, Route, Veth, Wireguard, WireguardPeer

PSK = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="


def config(*, dual: bool = False, **backend: Any) -> dict[str, Any]:
    conf = {"EnableIPv6": dual, "Backend": {"Type": "wireguard", **backend}}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kube-flannel-cfg", "namespace": "kube-flannel"},
        "data": {"net-conf.json": json.dumps(conf)},
    }


def test_one_device_one_route_and_a_peer_for_each_other_node(planned: Any) -> None:
    made = planned("flannel:wireguard")
    device = made.one(Wireguard, "node/n1")
    assert (device.name, device.port, device.mtu, device.userspace) == ("flannel-wg", 51820, 1420, False)
    assert made.one(Address, "node/n1", device="flannel-wg").address == "10.244.1.0/32"
    (route,) = [item for item in made.of(Route, "node/n1") if item.device == "flannel-wg"]
    assert (route.destination, route.via, route.scope) == ("10.244.0.0/16", "", "link")
    assert [(item.endpoint, item.allowed_ips, item.keepalive) for item in made.of(WireguardPeer, "node/n1")] == [
        ("192.168.50.12:51820", ("10.244.2.0/24",), 0),
        ("192.168.50.13:51820", ("10.244.3.0/24",), 0),
    ]
    assert {item.mtu for item in made.of(Veth) if item.ns.startswith("pod/")} == {1420}
    assert made.of(Daemon) == []


def test_each_nodes_key_is_what_the_others_encrypt_for(planned: Any) -> None:
    made = planned("flannel:wireguard")
    own = {item.ns: item.private_key for item in made.of(Wireguard)}
    assert own == {item.ns: item.content for item in made.of(File) if item.path == "/run/flannel/wgkey"}
    assert len(set(own.values())) == 3
    assert {item.public_key for item in made.of(WireguardPeer, "node/n3")} == {public_key("n1"), public_key("n2")}


def test_public_keys_are_those_of_wg_pubkey() -> None:
    assert private_key("n1") == "yOxi0Iv30fhlwVxRvHHuAV11XPW9MomBYf9PZuCDGFE="
    assert public_key("n1") == "Ol9fPq1jJ12xjhsuq9N2ctRCp6mUmz/h/E7Ky1J57kA="  # what wg(8) made of it


def test_in_mode_separate_each_family_has_a_device_of_its_own(planned: Any) -> None:
    made = planned("flannel:wireguard", "dual-stack")
    assert [(item.name, item.port, item.mtu) for item in made.of(Wireguard, "node/n1")] == [
        ("flannel-wg", 51820, 1420),
        ("flannel-wg-v6", 51821, 1420),
    ]
    ends = {(item.device, item.endpoint, item.allowed_ips) for item in made.of(WireguardPeer, "node/n1")}
    assert ("flannel-wg", "192.168.50.12:51820", ("10.244.2.0/24",)) in ends
    assert ("flannel-wg-v6", "[fd00:50::12]:51821", ("fd00:10:244:2::/64",)) in ends


@pytest.mark.parametrize(
    ("mode", "endpoint"),
    [("auto", "192.168.50.12:51820"), ("ipv4", "192.168.50.12:51820"), ("ipv6", "[fd00:50::12]:51820")],
)
def test_the_other_modes_carry_both_families_in_one_device(planned: Any, mode: str, endpoint: str) -> None:
    made = planned("flannel:wireguard", "dual-stack", objects=(config(dual=True, Mode=mode),))
    assert made.one(Wireguard, "node/n1").name == "flannel-wg"
    peer = made.of(WireguardPeer, "node/n1")[0]
    assert (peer.endpoint, peer.allowed_ips) == (endpoint, ("10.244.2.0/24", "fd00:10:244:2::/64"))
    assert {item.destination for item in made.of(Route, "node/n1") if item.device == "flannel-wg"} == {
        "10.244.0.0/16",
        "fd00:10:244::/56",
    }


def test_a_tunnel_over_a_family_that_nodes_lack_is_refused(planned: Any) -> None:
    with pytest.raises(UserError, match="mode ipv6 needs IPv6 on nodes: n1 has none"):
        planned("flannel:wireguard", objects=(config(Mode="ipv6"),))


def test_what_the_config_map_says_is_in_the_plan(planned: Any) -> None:
    made = planned(
        "flannel:wireguard", objects=(config(ListenPort=4500, PSK=PSK, PersistentKeepaliveInterval=25, MTU=1400),)
    )
    device, peer = made.one(Wireguard, "node/n1"), made.of(WireguardPeer, "node/n1")[0]
    assert (device.port, device.mtu) == (4500, 1320)
    assert (peer.endpoint, peer.preshared_key, peer.keepalive) == ("192.168.50.12:4500", PSK, 25)


def test_the_stand_in_is_a_process_and_says_so_everywhere(planned: Any) -> None:
    made = planned("flannel:wireguard-go")
    assert made.one(Wireguard, "node/n1").userspace
    daemon = made.one(Daemon, "node/n1")
    assert daemon.argv == ("wireguard-go", "-f", "flannel-wg")
    assert "stand-in" in daemon.component
    assert "stand-in" in made.one(Wireguard, "node/n1").component
    style = load_style("flannel:wireguard-go")
    assert "stand-in" in style.title
    assert style.stand_in
    assert {"tun", "wireguard-go"} < set(style.requires)
    assert "wireguard" not in style.requires


def test_the_stand_in_is_what_the_real_one_falls_back_to() -> None:
    assert load_style("flannel:wireguard").fallback == "flannel:wireguard-go"
    assert load_style("flannel:wireguard-go").fallback == ""
    assert "flannel:wireguard" in every_mode()
    assert "flannel:wireguard-go" not in every_mode()  # `--cni all` would run it twice here
    assert stands_for("flannel:wireguard-go") == "flannel:wireguard"
    assert stands_for("flannel:udp") == "flannel:udp"
