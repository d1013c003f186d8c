"""emulator.cni.canal: Flannel's network under Calico's pods."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emulator.errors import UserError
from emulator.plan.model import (
    Address,
    Bridge,
    Daemon,
    FdbEntry,
    File,
    IpSet,
    IptablesRules,
    Neighbour,
    Route,
    Sysctl,
    Veth,
    Vxlan,
)

BETWEEN_NODES = (Vxlan, Neighbour, FdbEntry)


def test_between_the_nodes_it_is_flannel(planned: Any) -> None:
    canal, flannel = planned("canal"), planned("flannel")
    for kind in BETWEEN_NODES:
        assert canal.of(kind) == flannel.of(kind) != []
    assert [item for item in canal.of(Route, "node/n1") if item.component == "flanneld"] == [
        item for item in flannel.of(Route, "node/n1") if item.component == "flanneld"
    ]
    rules = [item for item in canal.of(IptablesRules, "node/n1") if item.owner == "flannel"]
    assert rules == [item for item in flannel.of(IptablesRules, "node/n1") if item.owner == "flannel"]


def test_a_pod_is_wired_as_calicos(planned: Any) -> None:
    canal, calico = planned("canal"), planned("calico")
    pod, other = canal.cluster.pods[0], calico.cluster.pods[0]
    device = calico.one(Veth, other.ns).peer
    assert canal.one(Veth, pod.ns).peer == device
    assert canal.one(Veth, pod.ns).peer_mac == "ee:ee:ee:ee:ee:ee"
    assert canal.of(Route, pod.ns) == calico.of(Route, other.ns)
    sysctls = [item for item in canal.of(Sysctl, "node/n1") if device in item.name]
    assert sysctls == [item for item in calico.of(Sysctl, "node/n1") if device in item.name] != []
    assert canal.one(Route, "node/n1", destination=f"{pod.addresses[0]}/32").device == device


def test_addresses_come_from_the_nodes_subnet_and_no_block_is_blackholed(planned: Any) -> None:
    made = planned("canal")
    assert made.one(Address, made.cluster.pods[0].ns).address == "10.244.1.2/32"
    assert [item for item in made.of(Route) if item.type == "blackhole" or item.learned] == []
    assert made.of(Daemon) == []
    assert [item.name for item in made.of(Bridge) if item.ns != "underlay"] == []


def test_felix_has_its_chains_and_the_pool_that_calico_node_makes(planned: Any) -> None:
    canal, calico = planned("canal"), planned("calico")
    felix = [item for item in canal.of(IptablesRules, "node/n1") if item.owner == "felix"]
    assert felix == [item for item in calico.of(IptablesRules, "node/n1") if item.owner == "felix"]
    assert {item.name: item.members for item in canal.of(IpSet, "node/n1")} == {
        "cali40masq-ipam-pools": ("10.244.0.0/16",),
        "cali40all-ipam-pools": ("10.244.0.0/16",),
    }


def test_pods_have_what_fits_through_the_tunnel(planned: Any) -> None:
    made = planned("canal")
    assert {item.mtu for item in made.of(Veth) if item.ns.startswith("pod/")} == {1450}
    assert "FLANNEL_MTU=1450" in made.one(File, "node/n1", path="/run/flannel/subnet.env").content


def test_the_plugin_list_is_canals(planned: Any) -> None:
    content = planned("canal").one(File, "node/n1", path="/etc/cni/net.d/10-canal.conflist").content
    calico, portmap = json.loads(content)["plugins"]
    assert calico["ipam"] == {"type": "host-local", "subnet": "usePodCidr"}
    assert (calico["mtu"], portmap["snat"]) == (1450, True)


def test_nodes_behind_routers_are_reached_through_the_tunnel(planned: Any) -> None:
    made = planned("canal", "racks")
    assert len(made.of(FdbEntry, "node/n1")) == 3


@pytest.mark.parametrize("topology", ["dual-stack", "ipv6"])
def test_ipv6_pods_are_refused(planned: Any, topology: str) -> None:
    with pytest.raises(UserError, match="canal carries IPv4 pods only"):
        planned("canal", topology)
