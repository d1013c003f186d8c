"""Room for neighbours in a real kernel: beyond what its table holds, and filled by ARP as any other entry."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from emulator.kernel.applier import Applier
from emulator.kernel.namespaces import within
from emulator.kernel.readback import differences
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, Namespace, Neighbour, Plan, Veth

pytestmark = pytest.mark.sandbox

MANY = 3000  # entries; the table of all namespaces holds 1,024 by default
ETH_P_ARP = 0x0806
ROOMS = tuple(
    Neighbour(ns="node/n1", device="eth0", address=f"10.9.{number // 250}.{number % 250 + 2}", mac="")
    for number in range(MANY)
)
OBJECTS: tuple[AnyObject, ...] = (
    Namespace(ns="node/n1", role="node", hostname="n1"),
    Namespace(ns="node/n2", role="node", hostname="n2"),
    Veth(ns="node/n1", name="eth0", peer_ns="node/n2", peer="eth0", mtu=1500),
    Address(ns="node/n1", device="eth0", address="10.9.0.1/16"),
    Address(ns="node/n2", device="eth0", address="10.9.0.2/16"),
    *ROOMS,
)
PLAN = Plan(style="t", topology="t", fragments={"all": OBJECTS})


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier()
    made.apply([Operation(verb="add", new=item) for item in OBJECTS])
    yield made
    made.close()


def test_the_kernel_takes_more_room_than_its_table_holds(applier: Applier) -> None:
    said = applier.net.get("n1").cmd("ip neigh show dev eth0")

    assert said.count("extern_learn") == MANY
    assert differences(PLAN, applier) == []


def test_room_is_filled_by_asking_for_the_mac_on_the_wire(applier: Applier) -> None:
    first, second = applier.net.get("n1"), applier.net.get("n2")
    sniffer = within(second.handle, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ARP)))
    sniffer.settimeout(5)

    first.cmd("bash -c 'echo hi > /dev/udp/10.9.0.2/9'")

    with sniffer:
        asked = sniffer.recv(64)
    assert asked[6:8] == b"\0\x01"  # a request
    assert socket.inet_ntoa(asked[24:28]) == "10.9.0.2"
    mac = second.cmd("cat /sys/class/net/eth0/address").strip()
    assert re.fullmatch(
        rf"10\.9\.0\.2 lladdr {mac} extern_learn\s+(REACHABLE|DELAY|STALE)\s*",
        first.cmd("ip neigh show 10.9.0.2 dev eth0"),
    )


def test_who_did_not_answer_is_asked_again_for_the_next_packet(applier: Applier) -> None:
    first, second = applier.net.get("n1"), applier.net.get("n2")
    first.cmd("sysctl -qw net.ipv4.neigh.eth0.retrans_time_ms=20")
    first.cmd("bash -c 'echo hi > /dev/udp/10.9.0.3/9'; sleep 0.3")
    assert "FAILED" in first.cmd("ip neigh show 10.9.0.3")

    second.cmd("ip addr add 10.9.0.3/16 dev eth0")
    first.cmd("bash -c 'echo hi > /dev/udp/10.9.0.3/9'; sleep 0.1")

    assert "lladdr" in first.cmd("ip neigh show 10.9.0.3")
