"""Netfilter hook passes are counted exactly, and counting changes no verdict."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from emulator.kernel.applier import Applier
from emulator.kernel.hookmeter import HookMeter, parse_counts
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, Bridge, BridgePort, Namespace, Offloads, Route, Sysctl, Veth

NODE, UDP, ICMPV6 = "node/n1", 17, 58
A, B, ROUTED = "pod/default/a", "pod/default/b", "pod/default/c"

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("nft")]


def pod(ns: str, device: str, address: str, gateway: str) -> list[AnyObject]:
    return [
        Namespace(ns=ns, role="pod", hostname=ns),
        Veth(ns=NODE, name=device, peer_ns=ns, peer="eth0", mtu=1500),
        Address(ns=ns, device="eth0", address=address),
        Route(ns=ns, destination="::/0" if ":" in address else "0.0.0.0/0", via=gateway, device="eth0"),
    ]


@pytest.fixture
def applier() -> Iterator[Applier]:
    """Two pods on a bridge that passes iptables, one pod behind a routed device."""
    objects: list[AnyObject] = [
        Namespace(ns=NODE, role="node", hostname="n1"),
        Sysctl(ns=NODE, name="net/ipv4/ip_forward", value="1"),
        Sysctl(ns=NODE, name="net/ipv6/conf/all/forwarding", value="1"),
        Sysctl(ns=NODE, name="net/bridge/bridge-nf-call-iptables", value="1"),
        Bridge(ns=NODE, name="cni0", mtu=1500),
        Address(ns=NODE, device="cni0", address="10.1.0.1/24"),
        *pod(A, "va", "10.1.0.2/24", "10.1.0.1"),
        *pod(B, "vb", "10.1.0.3/24", "10.1.0.1"),
        BridgePort(ns=NODE, device="va", bridge="cni0"),
        BridgePort(ns=NODE, device="vb", bridge="cni0"),
        *pod(ROUTED, "vc", "10.2.0.2/24", "10.2.0.1"),
        Address(ns=NODE, device="vc", address="10.2.0.1/24"),
        *(Offloads(ns=NODE, device=device) for device in ("va", "vb", "vc", "cni0")),
    ]
    made = Applier()
    made.apply([Operation(verb="add", new=item) for item in objects])
    yield made
    made.close()


def send(source: str, target: str, address: str, count: int) -> int:
    with inside(netns_path(target)):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(netns_path(source)):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    arrived = 0
    with server, client:
        server.bind((address, 4000))
        server.settimeout(1)
        for _ in range(count):
            client.sendto(b"x", (address, 4000))
            try:
                server.recv(10)
                arrived += 1
            except TimeoutError:
                break
    return arrived


def test_routed_packet_passes_three_hooks_once(applier: Applier) -> None:
    meter = HookMeter(applier)
    meter.install([NODE])

    assert send(A, ROUTED, "10.2.0.2", 5) == 5

    flow = ("10.1.0.2", "10.2.0.2", UDP)
    counts = {hook: flows.get(flow, 0) for hook, flows in meter.read()[NODE].items()}
    assert counts == {"prerouting": 5, "input": 0, "forward": 5, "output": 0, "postrouting": 5}


def test_bridged_packet_passes_them_too_where_bridges_call_iptables(applier: Applier) -> None:
    meter = HookMeter(applier)
    meter.install([NODE])

    assert send(A, B, "10.1.0.3", 3) == 3

    flow = ("10.1.0.2", "10.1.0.3", UDP)
    counts = {hook: flows.get(flow, 0) for hook, flows in meter.read()[NODE].items()}
    assert counts == {"prerouting": 3, "input": 0, "forward": 3, "output": 0, "postrouting": 3}


def test_bridged_packet_passes_no_hook_where_bridges_do_not_call_iptables(applier: Applier) -> None:
    item = Sysctl(ns=NODE, name="net/bridge/bridge-nf-call-iptables", value="0")
    applier.apply([Operation(verb="replace", old=item, new=item)])
    meter = HookMeter(applier)
    meter.install([NODE])

    assert send(A, B, "10.1.0.3", 3) == 3

    assert all(("10.1.0.2", "10.1.0.3", UDP) not in flows for flows in meter.read()[NODE].values())


def test_reset_starts_at_zero_and_remove_leaves_nothing(applier: Applier) -> None:
    meter = HookMeter(applier)
    meter.install([NODE])
    send(A, ROUTED, "10.2.0.2", 2)
    assert meter.read()[NODE]["forward"][("10.1.0.2", "10.2.0.2", UDP)] == 2

    meter.reset()

    # The kernel may look for doubles of its link-local addresses meanwhile
    assert not [flow for flows in meter.read()[NODE].values() for flow in flows if flow[2] != ICMPV6]
    meter.remove()
    assert meter.read() == {}
    assert "cnilab_meter" not in applier.net.get("n1").cmd("nft list tables")


@pytest.mark.requires("iptables")
def test_counting_lets_a_drop_stay_a_drop(applier: Applier) -> None:
    applier.net.get("n1").cmd("iptables -A FORWARD -s 10.1.0.2 -j DROP")
    meter = HookMeter(applier)
    meter.install([NODE])

    assert send(A, ROUTED, "10.2.0.2", 1) == 0

    flow = ("10.1.0.2", "10.2.0.2", UDP)
    counts = meter.read()[NODE]
    assert counts["forward"][flow] == 1
    assert flow not in counts["postrouting"]


def test_namespace_that_died_is_forgotten(applier: Applier) -> None:
    meter = HookMeter(applier)
    meter.install([NODE, A])

    applier.apply([Operation(verb="remove", old=Namespace(ns=A, role="pod", hostname=A))])

    assert set(meter.read()) == {NODE}
    meter.reset()


def test_protocol_without_a_name_is_read_as_a_number() -> None:
    element = {"elem": {"val": {"concat": ["10.0.0.1", "10.0.0.2", 253]}, "counter": {"packets": 4, "bytes": 9}}}

    counts = parse_counts([{"set": {"name": "forward4", "elem": [element]}}])

    assert counts["forward"] == {("10.0.0.1", "10.0.0.2", 253): 4}
