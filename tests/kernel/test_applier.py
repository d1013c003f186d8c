"""Plans become kernel state, whole or not at all."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.errors import ApplyError, CnilabError
from emulator.kernel.applier import Applier
from emulator.kernel.netns import NETNS_DIRECTORY, netns_path
from emulator.kernel.readback import differences
from emulator.kernel.syscalls import inside
from emulator.plan.build import build
from emulator.plan.diff import Operation, diff
from emulator.plan.model import (
    Address,
    AnyObject,
    Bridge,
    IptablesRules,
    Namespace,
    Plan,
    Route,
    Sysctl,
    Veth,
)

pytestmark = pytest.mark.sandbox

TOPOLOGY = """
name: two
podCIDRs: [{pods}]
serviceCIDRs: [{services}]
pods: 2
switches:
  - {{name: s1, cidrs: [{nodes}]}}
nodes:
  - {{name: n1, switch: s1}}
  - {{name: n2, switch: s1}}
routers:
  - {{name: tor, asn: 64513}}
links:
  - {{from: tor, to: s1}}
"""
V4 = {"pods": "10.244.0.0/16", "services": "10.96.0.0/12", "nodes": "192.168.50.0/24"}
V6 = {"pods": '"fd00:10:244::/56"', "services": '"fd00:10:96::/112"', "nodes": '"fd00:192:168:50::/64"'}
FAMILIES = {"ipv4": V4, "ipv6": V6, "dual": {name: f"{V4[name]}, {V6[name]}" for name in V4}}


def planned(style: str, families: str = "ipv4", *, wire_accurate: bool = False) -> tuple[Cluster, Plan]:
    topology = parse_topology(TOPOLOGY.format(**FAMILIES[families]), "two.yaml")
    chosen = load_style(style)
    cluster = assemble(topology, [], chosen.ipam(topology), None)
    return cluster, build(cluster, chosen, wire_accurate=wire_accurate)


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier()
    yield made
    made.close()


def without(plan: Plan, fragment: str) -> Plan:
    kept = {name: objects for name, objects in plan.fragments.items() if name != fragment}
    return msgspec.structs.replace(plan, fragments=kept)


def adding(*items: AnyObject) -> list[Operation]:
    return [Operation(verb="add", new=item) for item in items]


def answers(source: str, target: str, address: str) -> bool:
    """Whether a datagram from one namespace arrives at an address of another."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(netns_path(target)):
        server = socket.socket(family, socket.SOCK_DGRAM)
    with inside(netns_path(source)):
        client = socket.socket(family, socket.SOCK_DGRAM)
    with server, client:
        server.bind((address, 4000))
        server.settimeout(2)
        client.sendto(b"x", (address, 4000))
        try:
            return server.recv(10) == b"x"
        except TimeoutError:
            return False


def output(command: str) -> str:
    return subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout


def state_of(ns: str) -> str:
    """Everything that iproute2 tells of a namespace, but for what changes by itself."""
    with inside(netns_path(ns)):
        commands = ["ip addr", "ip route show table all", "ip -6 route show table all", "ip rule", "ip neigh"]
        text = "".join(output(command) for command in commands)
    noise = ("valid_lft", "ffff", "STALE", "REACHABLE", "DELAY", "fe80")
    return "\n".join(line for line in text.splitlines() if not any(word in line for word in noise))


@pytest.mark.requires("bird")
@pytest.mark.parametrize("families", list(FAMILIES))
@pytest.mark.parametrize("style", ["flannel:vxlan", "flannel:host-gw", "calico"])
def test_kernel_read_back_equals_the_plan(style: str, families: str, applier: Applier) -> None:
    cluster, plan = planned(style, families, wire_accurate=True)

    applier.apply(diff(None, plan))
    applier.wait_learned(plan)

    assert differences(plan, applier) == []
    first, *_, last = cluster.pods
    assert first.node != last.node
    for address in last.addresses:
        assert answers(first.ns, last.ns, address)


def test_pod_is_removed_with_its_devices_and_comes_back(applier: Applier) -> None:
    cluster, plan = planned("flannel:vxlan")
    applier.apply(diff(None, plan))
    pod = cluster.pods[0]
    smaller = without(plan, pod.ns)

    applier.apply(diff(plan, smaller))

    assert not os.path.exists(netns_path(pod.ns))
    assert differences(smaller, applier) == []
    applier.apply(diff(smaller, plan))
    assert differences(plan, applier) == []
    assert answers(cluster.pods[-1].ns, pod.ns, pod.addresses[0])


def test_pod_of_the_same_name_can_be_made_at_once_while_a_socket_keeps_the_old_one_alive(applier: Applier) -> None:
    cluster, plan = planned("flannel:vxlan")
    applier.apply(diff(None, plan))
    pod = cluster.pods[0]
    with inside(netns_path(pod.ns)):
        held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with held:
        applier.apply(diff(plan, without(plan, pod.ns)))
        applier.apply(diff(without(plan, pod.ns), plan))

    assert differences(plan, applier) == []


def test_crashed_node_loses_everything_and_comes_back_as_planned(applier: Applier) -> None:
    cluster, plan = planned("flannel:vxlan")
    applier.apply(diff(None, plan))
    gone = {"node/n1", *(pod.ns for pod in cluster.pods if pod.node == "n1")}
    rest = {
        name: tuple(
            item
            for item in objects
            if item.ns not in gone and not (isinstance(item, Veth) and item.peer_ns in gone)
            and not (item.ns == "underlay" and "n1" in str(getattr(item, "device", "")))
        )
        for name, objects in plan.fragments.items()
        if name not in gone
    }  # fmt: skip
    smaller = msgspec.structs.replace(plan, fragments=rest)
    shell = applier.net.get("n1").pid

    applier.apply(diff(plan, smaller))

    assert not os.path.exists(netns_path("node/n1"))
    assert not os.path.exists(f"/proc/{shell}")
    assert "n1" not in applier.net
    assert differences(smaller, applier) == []
    applier.apply(diff(smaller, plan))
    assert differences(plan, applier) == []
    assert answers(cluster.pods[0].ns, cluster.pods[-1].ns, cluster.pods[-1].addresses[0])


def base() -> list[AnyObject]:
    return [
        Namespace(ns="underlay", role="underlay", hostname="underlay"),
        Namespace(ns="node/n1", role="node", hostname="n1"),
        Namespace(ns="pod/default/a", role="pod", hostname="a"),
        Bridge(ns="node/n1", name="cni0", mtu=1400),
        Veth(ns="node/n1", name="va", peer_ns="pod/default/a", peer="eth0", mtu=1400, peer_mtu=1300),
        Address(ns="node/n1", device="cni0", address="10.1.0.1/24"),
        Address(ns="pod/default/a", device="eth0", address="10.1.0.2/24"),
        Route(ns="pod/default/a", destination="0.0.0.0/0", via="10.1.0.1", device="eth0"),
    ]


BAD_ROUTE = Route(ns="node/n1", destination="10.9.0.0/16", via="172.31.0.1", device="cni0")


def test_refused_object_is_named_with_the_kernels_own_words(applier: Applier) -> None:
    applier.apply(adding(*base()))

    with pytest.raises(ApplyError) as caught:
        applier.apply(adding(BAD_ROUTE))

    assert caught.value.subject == "route 10.9.0.0/16 via 172.31.0.1 dev cni0"
    assert "node/n1" in caught.value.message
    assert "Nexthop has invalid gateway" in caught.value.message


def test_refused_object_leaves_nothing_of_the_first_plan(applier: Applier) -> None:
    before = output("ip -br link")

    with pytest.raises(ApplyError):
        applier.apply(adding(*base(), BAD_ROUTE))

    assert os.listdir(NETNS_DIRECTORY) == []
    assert output("ip -br link") == before
    assert list(applier.inventory) == []
    assert not applier.broken


@pytest.mark.requires("iptables")
def test_refused_object_puts_back_what_was_removed_replaced_and_added(applier: Applier) -> None:
    applier.apply(adding(*base(), Sysctl(ns="node/n1", name="net/ipv4/ip_forward", value="1")))
    node, pod = state_of("node/n1"), state_of("pod/default/a")
    held = {item.key: item for item in applier.inventory}
    bridge, veth = base()[3], base()[4]
    assert isinstance(bridge, Bridge)
    steps = [
        Operation(verb="remove", old=veth),  # the pod's address and route fall with it
        Operation(verb="replace", old=bridge, new=msgspec.structs.replace(bridge, mtu=1200)),
        *adding(
            Sysctl(ns="node/n1", name="net/ipv4/conf/cni0/rp_filter", value="2"),
            Namespace(ns="pod/default/b", role="pod", hostname="b"),
            Veth(ns="node/n1", name="vb", peer_ns="pod/default/b", peer="eth0", mtu=1400),
            BAD_ROUTE,
        ),
    ]

    with pytest.raises(ApplyError, match="invalid gateway"):
        applier.apply(steps)

    def plain(text: str) -> list[str]:
        """Indexes and made-up MACs may differ."""
        return sorted(line for line in text.splitlines() if "link/ether" not in line and "@" not in line)

    assert plain(state_of("node/n1")) == plain(node)
    assert plain(state_of("pod/default/a")) == plain(pod)
    assert {item.key: item for item in applier.inventory} == held
    assert not os.path.exists(netns_path("pod/default/b"))
    assert not applier.broken
    plan = Plan(style="t", topology="t", fragments={"all": tuple(applier.inventory)})
    assert differences(plan, applier) == []


def test_parameter_gets_its_old_value_back_when_a_change_is_undone(applier: Applier) -> None:
    applier.apply(adding(*base()))
    with inside(netns_path("node/n1")), open("/proc/sys/net/ipv4/conf/cni0/rp_filter") as opened:
        before = opened.read()
    other = "2" if before.strip() != "2" else "0"

    with pytest.raises(ApplyError):
        applier.apply(adding(Sysctl(ns="node/n1", name="net/ipv4/conf/cni0/rp_filter", value=other), BAD_ROUTE))

    with inside(netns_path("node/n1")), open("/proc/sys/net/ipv4/conf/cni0/rp_filter") as opened:
        assert opened.read() == before


def test_lab_that_cannot_be_put_back_says_that_it_must_go(applier: Applier, monkeypatch: pytest.MonkeyPatch) -> None:
    applier.apply(adding(*base()))

    def fails(*_: object) -> None:
        raise OSError("no way back")

    monkeypatch.setattr(applier.sysctls, "restore", fails)
    with pytest.raises(ApplyError) as caught:
        applier.apply(adding(BAD_ROUTE))

    assert applier.broken
    assert getattr(caught.value, "broken", False)
    assert "cnilab down" in caught.value.hint
    with pytest.raises(CnilabError, match="half-wired"):
        applier.apply([])


@pytest.mark.requires("iptables")
def test_refused_rule_is_named_and_the_tables_before_it_are_taken_back(applier: Applier) -> None:
    from emulator.plan.model import Chain, Jump, Rule

    good = Chain("GOOD", (Rule(("-s", "10.0.0.0/8", "-j", "ACCEPT")),))
    bad = Chain("BAD", (Rule(("-s", "10.0.0.0/8", "-j", "NO-SUCH-TARGET")),))
    applier.apply(adding(*base()))

    with pytest.raises(ApplyError) as caught:
        applier.apply(
            adding(
                IptablesRules(
                    ns="node/n1",
                    family=4,
                    table="filter",
                    owner="x",
                    chains=(good,),
                    jumps=(Jump("FORWARD", Rule(("-j", "GOOD"))),),
                ),
                IptablesRules(ns="node/n1", family=4, table="nat", owner="x", chains=(bad,)),
            )
        )

    assert "NO-SUCH-TARGET" in caught.value.message
    assert "nat" in caught.value.subject
    assert "GOOD" not in applier.net.get("n1").cmd("iptables-save")


def test_switches_and_cables_are_in_mininets_books(applier: Applier) -> None:
    _, plan = planned("flannel:vxlan")

    applier.apply(diff(None, plan))

    net = applier.net
    assert {node.name for node in net.hosts} == {"n1", "n2", "tor"}
    assert [switch.name for switch in net.switches] == ["s1"]
    assert len(net.links) == 3
    assert net.get("n1").IP() == "192.168.50.11"
    assert "192.168.50.11/24" in net.get("n1").cmd("ip -4 addr show dev eth0")


def test_unplugged_cable_comes_back_with_its_routes(applier: Applier) -> None:
    _, plan = planned("flannel:host-gw", "dual")
    applier.apply(diff(None, plan))

    applier.wiring.set_link("node/n1", "eth0", up=False)
    assert differences(plan, applier) != []
    applier.wiring.set_link("node/n1", "eth0", up=True)

    assert differences(plan, applier) == []
