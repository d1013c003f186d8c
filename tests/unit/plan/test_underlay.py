"""emulator.plan.underlay: the physical network."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from emulator.plan.model import (
    UNDERLAY,
    Address,
    Bridge,
    BridgePort,
    Impairment,
    Namespace,
    Route,
    Sysctl,
    Veth,
)

TWO_SWITCHES = """\
name: two-switches
podCIDRs: [10.244.0.0/16]
switches:
  - {name: s1, cidrs: [192.168.50.0/24]}
  - {name: s2}
nodes:
  - {name: n1, switch: s1}
  - {name: n2, switch: s2}
routers: [{name: tor, switch: s1}]
links:
  - {from: s1, to: s2, delay: 5, loss: 1}
"""


def sysctls(made: Any, ns: str) -> dict[str, str]:
    return {item.name: item.value for item in made.of(Sysctl, ns)}


def test_every_machine_has_a_namespace_of_its_role(planned: Any) -> None:
    made = planned("flannel")
    roles = {item.ns: item.role for item in made.of(Namespace) if item.role != "pod"}
    assert roles == {
        "underlay": "underlay",
        "node/n1": "node",
        "node/n2": "node",
        "node/n3": "node",
        "router/tor": "router",
        "host/client": "host",
    }


def test_a_switch_is_a_bridge_and_its_ports_are_the_far_ends_of_the_machines_cables(planned: Any) -> None:
    made = planned("flannel")
    assert [item.name for item in made.of(Bridge, UNDERLAY)] == ["s1", "s2"]
    ports = {item.device: item.bridge for item in made.of(BridgePort, UNDERLAY)}
    cables = {item.peer: item.ns for item in made.of(Veth) if item.peer_ns == UNDERLAY}
    assert set(ports) == set(cables)
    assert (ports["s1-n1"], cables["s1-n1"]) == ("s1", "node/n1")


def test_a_switch_has_no_firewall_and_no_ipv6_of_its_own(planned: Any) -> None:
    assert sysctls(planned("flannel"), UNDERLAY) == {
        "net/bridge/bridge-nf-call-iptables": "0",
        "net/bridge/bridge-nf-call-ip6tables": "0",
        "net/bridge/bridge-nf-call-arptables": "0",
        "net/ipv6/conf/all/disable_ipv6": "1",
    }


def test_nodes_and_routers_forward_and_hosts_do_not(planned: Any) -> None:
    made = planned("flannel")
    forwarding = {ns: sysctls(made, ns)["net/ipv4/ip_forward"] for ns in ("node/n1", "router/tor", "host/client")}
    assert forwarding == {"node/n1": "1", "router/tor": "1", "host/client": "0"}


def test_ipv6_is_off_where_the_topology_has_none(planned: Any) -> None:
    assert sysctls(planned("flannel"), "node/n1")["net/ipv6/conf/all/disable_ipv6"] == "1"


@pytest.mark.parametrize("topology", ["dual-stack", "ipv6"])
def test_ipv6_addresses_are_usable_at_once_and_nobody_solicits_routers(planned: Any, topology: str) -> None:
    made = planned("flannel", topology)
    for ns in ("node/n1", made.cluster.pods[0].ns):
        settings = sysctls(made, ns)
        assert settings["net/ipv6/conf/all/disable_ipv6"] == "0"
        assert settings["net/ipv6/conf/default/accept_dad"] == "0"
        assert settings["net/ipv6/conf/default/accept_ra"] == "0"


def test_every_node_has_a_default_route(planned: Any) -> None:
    made = planned("flannel")
    for node in made.cluster.nodes:
        route = made.one(Route, node.ns, destination="0.0.0.0/0")
        assert (route.device, route.protocol) == ("eth0", "static")


def test_addresses_stand_on_the_devices_that_the_topology_names(planned: Any) -> None:
    made = planned("flannel")
    assert made.one(Address, "node/n1", device="eth0").address == "192.168.50.11/24"


def test_a_cable_between_switches_is_laid_once_and_impairs_both_directions(planned: Any) -> None:
    made = planned("flannel", TWO_SWITCHES)
    inside = [item for item in made.of(Veth, UNDERLAY) if item.peer_ns == UNDERLAY]
    assert len(inside) == 1
    ends = {inside[0].name, inside[0].peer}
    assert {item.device: (item.delay, item.loss) for item in made.of(Impairment)} == dict.fromkeys(ends, (5.0, 1.0))
    assert ends <= {item.device for item in made.of(BridgePort, UNDERLAY)}


def test_no_device_is_made_twice(planned: Any) -> None:
    made = planned("flannel", TWO_SWITCHES)
    ends = Counter((item.ns, item.name) for item in made.of(Veth))
    ends.update((item.peer_ns, item.peer) for item in made.of(Veth))
    assert max(ends.values()) == 1
