"""emulator.cni.flannel_settings: the ConfigMap of flanneld, and the plans that come of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emulator.cni.flannel_settings import Settings, read_settings
from emulator.cni.styles import load_style
from emulator.errors import ManifestError, UserError
from emulator.plan.model import (
    Address,
    Daemon,
    FdbEntry,
    File,
    Ipip,
    IptablesRules,
    Neighbour,
    NftTable,
    Route,
    Tun,
    Veth,
    Vxlan,
)

CIDRS = ("10.244.0.0/16",)
PSK = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="


def config(conf: Any, namespace: str = "kube-flannel") -> dict[str, Any]:
    text = conf if isinstance(conf, str) else json.dumps(conf)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kube-flannel-cfg", "namespace": namespace},
        "data": {"net-conf.json": text},
    }


def faults(conf: Any, cidrs: tuple[str, ...] = CIDRS) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_settings([config(conf)], cidrs, Settings())
    return [str(problem) for problem in caught.value.problems]


def test_without_a_config_map_the_mode_decides() -> None:
    assert read_settings([], CIDRS, Settings("host-gw")) == Settings("host-gw")
    stranger = {**config({"Backend": {"Type": "udp"}}), "metadata": {"name": "other", "namespace": "kube-flannel"}}
    assert read_settings([stranger], CIDRS, Settings()) == Settings()


@pytest.mark.parametrize("namespace", ["kube-flannel", "kube-system"])
def test_the_config_map_of_kube_flannel_yml_is_understood(namespace: str) -> None:
    conf = {
        "Network": "10.244.0.0/16",
        "EnableNFTables": True,
        "Backend": {"Type": "vxlan", "VNI": 4096, "Port": 4789, "DirectRouting": True, "MTU": 1400},
    }
    assert read_settings([config(conf, namespace)], CIDRS, Settings("udp")) == Settings(
        "vxlan", direct=True, vni=4096, port=4789, mtu=1400, nftables=True
    )


def test_port_zero_is_the_kernels_default() -> None:
    conf = {"Backend": {"Type": "vxlan", "Port": 0}}
    assert read_settings([config(conf)], CIDRS, Settings()).port == 8472


@pytest.mark.parametrize(
    ("conf", "fault"),
    [
        ("{", "data.net-conf.json: is no JSON"),
        ("[]", "data.net-conf.json: expected a mapping"),
        ({"Network": "10.0.0.0/8"}, "net-conf.json: Network: Invalid value"),
        ({"network": "10.244.0.0/16"}, 'network: unknown field "network", did you mean "Network"?'),
        ({"EnableIPv6": True}, "EnableIPv6: Invalid value: true: the topology has no IPv6 pod CIDR"),
        ({"Backend": {"Type": "vxlan", "VNI": 0}}, "Backend.VNI: Invalid value: 0"),
        ({"Backend": {"Type": "vxlan", "Port": 70000}}, "Backend.Port: Invalid value"),
        ({"Backend": {"Type": "vxlan", "GBP": True}}, "Backend.GBP: Forbidden: not emulated"),
        ({"Backend": {"Type": "host-gw", "DirectRouting": True}}, "Backend.DirectRouting: Forbidden"),
        ({"Backend": {"Type": "ipsec"}}, "Backend.Type: Forbidden: the backend ipsec is not emulated"),
        ({"Backend": {"Type": "wireguard", "PSK": "c2hvcnQ="}}, "Backend.PSK: Invalid value"),
        ({"Backend": {"Type": "wireguard", "PSK": "no base64!"}}, "Backend.PSK: Invalid value"),
        ({"Backend": {"Type": "wireguard", "Mode": "both"}}, 'Backend.Mode: Unsupported value: "both"'),
        ({"Backend": {"Type": "wireguard", "ListenPort": 0}}, "Backend.ListenPort: Invalid value: 0"),
        ({"Backend": {"Type": "wireguard", "ListenPortV6": 70000}}, "Backend.ListenPortV6: Invalid value"),
        ({"Backend": {"Type": "wireguard", "PersistentKeepaliveInterval": -1}}, "Interval: Invalid value: -1"),
        ({"Backend": {"Type": "wireguard", "VNI": 1}}, "Backend.VNI: Forbidden: the backend wireguard"),
        ({"Backend": {"Type": "vxlan", "PSK": PSK}}, "Backend.PSK: Forbidden: the backend vxlan"),
        ({"Backend": {"Type": "gre"}}, 'Backend.Type: Unsupported value: "gre"'),
        ({"Backend": {}}, "Backend.Type: Required value"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(conf: Any, fault: str) -> None:
    assert any(fault in text for text in faults(conf))


def test_an_ipv6_cluster_must_say_so() -> None:
    assert "the topology has IPv6 pod CIDR" in faults({"Network": "10.244.0.0/16"}, (*CIDRS, "fd00::/56"))[0]


def test_another_vni_and_port_name_another_device(planned: Any) -> None:
    conf = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789, "MTU": 1400}}
    made = planned("flannel", objects=(config(conf),))
    vtep = made.one(Vxlan, "node/n1")
    assert (vtep.name, vtep.vni, vtep.port, vtep.mtu) == ("flannel.7", 7, 4789, 1350)
    assert {item.mtu for item in made.of(Veth) if item.ns.startswith("pod/")} == {1350}
    assert {item.device for item in (*made.of(FdbEntry), *made.of(Neighbour))} == {"flannel.7"}


def test_the_backend_of_the_config_map_replaces_the_modes(planned: Any) -> None:
    before = planned("flannel")
    after = before.then(objects=(config({"Backend": {"Type": "host-gw"}}),))
    assert after.of(Vxlan) == []
    assert {item.mtu for item in after.of(Veth) if item.ns.startswith("pod/")} == {1500}


def test_nftables_rules_stand_in_a_table_of_flannels_own(planned: Any) -> None:
    made = planned("flannel:vxlan-nftables", "dual-stack")
    assert made.of(IptablesRules) == []
    tables = {(item.family, item.name): item.body for item in made.of(NftTable, "node/n1")}
    assert set(tables) == {("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")}
    body = tables["ip", "flannel-ipv4"]
    assert "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random" in body
    assert "policy drop" not in body
    assert "iptables" not in made.style.requires


def test_udp_is_one_route_and_a_proxy(planned: Any) -> None:
    made = planned("flannel:udp")
    assert (made.one(Tun, "node/n1").name, made.one(Tun, "node/n1").mtu) == ("flannel0", 1472)
    assert made.one(Address, "node/n1", device="flannel0").address == "10.244.1.0/32"
    (route,) = [item for item in made.of(Route, "node/n1") if item.device == "flannel0"]
    assert (route.destination, route.via) == ("10.244.0.0/16", "")
    proxy = made.one(Daemon, "node/n1")
    assert (proxy.module, proxy.component) == ("emulator.kernel.flannel_proxy", "flanneld (stand-in)")
    assert json.loads(made.one(File, "node/n1", path=proxy.files[0]).content) == {
        "device": "flannel0",
        "address": "10.244.1.0",
        "listen": ["192.168.50.11", 8285],
        "routes": [["10.244.2.0/24", "192.168.50.12"], ["10.244.3.0/24", "192.168.50.13"]],
    }


def test_a_stand_in_says_so() -> None:
    assert "stand-in" in load_style("flannel:udp").title


def test_ipip_routes_by_the_nodes_themselves(planned: Any) -> None:
    made = planned("flannel:ipip")
    device = made.one(Ipip, "node/n1")
    assert (device.name, device.local, device.remote, device.mtu) == ("flannel.ipip", "192.168.50.11", "", 1480)
    (route,) = [item for item in made.of(Route, "node/n1") if item.destination == "10.244.2.0/24"]
    assert (route.via, route.device, route.onlink) == ("192.168.50.12", "flannel.ipip", True)
    assert "ipip" in made.style.requires


def test_ipip_with_direct_routing_needs_no_tunnel_within_a_rack(planned: Any) -> None:
    made = planned("flannel:ipip-directrouting", "racks")
    ways = {item.destination: (item.via, item.device) for item in made.of(Route, "node/n1")}
    assert ways["10.244.2.0/24"] == ("192.168.51.12", "eth0")
    assert ways["10.244.3.0/24"] == ("192.168.52.11", "flannel.ipip")


@pytest.mark.parametrize("mode", ["udp", "ipip"])
def test_backends_for_ipv4_alone_are_refused_elsewhere(planned: Any, mode: str) -> None:
    with pytest.raises(UserError, match=f"flannel's backend {mode} carries IPv4 only"):
        planned(f"flannel:{mode}", "dual-stack")
