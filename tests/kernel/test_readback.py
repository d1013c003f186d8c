"""What somebody changed behind the lab's back is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.kernel.applier import Applier
from emulator.kernel.offloads import switch
from emulator.kernel.readback import differences
from emulator.plan.diff import Operation
from emulator.plan.model import (
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    Chain,
    FdbEntry,
    IpSet,
    IptablesRules,
    Namespace,
    Neighbour,
    NftTable,
    Offloads,
    Plan,
    PolicyRule,
    Route,
    Rule,
    Sysctl,
    Veth,
    Vxlan,
)

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("iptables", "ipset", "vxlan")]

NODE = "node/n1"
ACCEPT = Rule(("-s", "10.1.0.0/24", "--jump", "ACCEPT"))
OBJECTS: tuple[AnyObject, ...] = (
    Namespace(ns=NODE, role="node", hostname="n1"),
    Namespace(ns="pod/default/a", role="pod", hostname="a"),
    Bridge(ns=NODE, name="cni0", mtu=1400, mac="02:00:00:00:00:01"),
    Veth(ns=NODE, name="va", peer_ns="pod/default/a", peer="eth0", mtu=1400),
    BridgePort(ns=NODE, device="va", bridge="cni0", hairpin=True),
    Address(ns=NODE, device="cni0", address="10.1.0.1/24"),
    Vxlan(ns=NODE, name="vx", vni=1, port=8472, local="10.1.0.1", underlay="cni0", mtu=1350),
    Neighbour(ns=NODE, device="vx", address="10.2.0.0", mac="02:00:00:00:00:02"),
    FdbEntry(ns=NODE, device="vx", mac="02:00:00:00:00:02", remote="10.1.0.9"),
    Route(ns=NODE, destination="10.2.0.0/24", via="10.2.0.0", device="vx", onlink=True),
    Route(ns=NODE, destination="10.3.0.0/26", type="blackhole", protocol="felix"),
    PolicyRule(ns=NODE, priority=100, table=77, source="10.1.0.0/24", fwmark=16, fwmask=255),
    Sysctl(ns=NODE, name="net/ipv4/conf/cni0/proxy_arp", value="1"),
    Offloads(ns=NODE, device="va"),
    IpSet(ns=NODE, name="pools", type="hash:net", family=4, members=("10.0.0.0/8", "172.16.0.0/12")),
    IptablesRules(ns=NODE, family=4, table="filter", owner="x", chains=(Chain("OURS", (ACCEPT,)),)),
    NftTable(ns=NODE, family="inet", name="mine", body="chain c { ip saddr 10.0.0.1 counter drop; }"),
)
PLAN = Plan(style="t", topology="t", fragments={"all": OBJECTS})


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier()
    made.apply([Operation(verb="add", new=item) for item in OBJECTS])
    yield made
    made.close()


def test_nothing_differs_right_after_set_up(applier: Applier) -> None:
    assert differences(PLAN, applier) == []


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("ip link set cni0 mtu 1300", "device cni0: mtu is 1300, not 1400"),
        ("ip link set cni0 address 02:00:00:00:00:07", "device cni0: mac is 02:00:00:00:00:07"),
        ("ip link set va down", "device va is down"),
        ("ip link set va nomaster", "is not there"),
        ("bridge link set dev va hairpin off", "hairpin is off"),
        ("ip link add stray type bridge", "device stray is not planned"),
        ("ip link del vx", "there is no device vx"),
        ("ip addr del 10.1.0.1/24 dev cni0", "address 10.1.0.1/24 dev cni0 is not there"),
        ("ip addr add 10.1.0.7/32 dev cni0", "address 10.1.0.7/32 dev cni0 is not planned"),
        ("ip route del 10.2.0.0/24", "route 10.2.0.0/24 via 10.2.0.0 dev vx onlink is not there"),
        ("ip route add 10.7.0.0/24 dev cni0", "route 10.7.0.0/24 dev cni0 proto 3"),
        ("ip route del blackhole 10.3.0.0/26", "10.3.0.0/26"),
        ("ip neigh del 10.2.0.0 dev vx", "10.2.0.0"),
        ("ip neigh add 10.2.0.9 lladdr 02:00:00:00:00:09 dev vx", "neighbour 10.2.0.9"),
        ("bridge fdb del 02:00:00:00:00:02 dev vx dst 10.1.0.9", "is not there"),
        ("bridge fdb add 02:00:00:00:00:0a dev vx dst 10.1.0.8", "forwarding entry 02:00:00:00:00:0a"),
        ("ip rule del priority 100", "is not there"),
        ("ip rule add priority 200 table 5", "policy rule priority 200 table 5 is not planned"),
        ("sysctl -qw net.ipv4.conf.cni0.proxy_arp=0", "the kernel has 0"),
        ("iptables -F OURS", "chain ip filter OURS: rule is not there: -s 10.1.0.0/24 -j ACCEPT"),
        ("iptables -A INPUT -j DROP", "chain ip filter INPUT: rule is not planned: -j DROP"),
        ("iptables -N STRAY", "chain ip filter STRAY is not planned"),
        ("nft add table inet stray", "table inet stray is not planned"),
        ("nft flush chain inet mine c", "table inet mine differs"),
        ("ipset add pools 192.168.0.0/16", "set pools differs"),
        ("ipset create stray hash:ip", "set stray is not planned"),
    ],
)
def test_change_by_hand_is_found(applier: Applier, command: str, line: str) -> None:
    said = applier.net.get("n1").cmd(command)

    found = differences(PLAN, applier)

    assert any(line in text for text in found), (said, found)


def test_offloads_that_are_switched_on_are_found(applier: Applier) -> None:
    switch([item for item in OBJECTS if isinstance(item, Offloads)], applier.devices.netns, lambda _: None, on=True)

    assert any("on are" in text and "gro" in text for text in differences(PLAN, applier))


def test_dead_namespace_is_found(applier: Applier) -> None:
    from emulator.kernel.namespaces import release

    release("pod/default/a")

    assert any(text.startswith("pod/default/a: cannot be read") for text in differences(PLAN, applier))
