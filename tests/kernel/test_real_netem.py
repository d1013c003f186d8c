"""Links that netem delays and thins out, by ours and by Mininet's own means, measured.

Only a distribution's kernel has netem: ``./cnilab test --real-kernel`` (docs/real-kernel.md). The clock is that of one
kernel, and netem lets no packet go early: lower bounds are exact. Upper ones would measure the machine, and are not
asserted. Loss is counted: bounds are five standard deviations wide and more.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from emulator import Lab
from emulator.cluster.topology import parse_topology
from emulator.kernel.applier import Applier
from emulator.kernel.impairment import FEATURES, Impairments
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, Impairment, Namespace, Neighbour, Veth

pytestmark = [pytest.mark.real_kernel, pytest.mark.requires("netem")]

PORT = 4000
MILLISECOND = 1e6  # in ns
PACKET_OUTGOING = 4  # linux/if_packet.h
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


# ---------------------------------------------------------------- two machines on a cable


def cable(wish: Impairment) -> list[AnyObject]:
    return [
        Namespace(ns="node/n1", role="node", hostname="n1"),
        Namespace(ns="node/n2", role="node", hostname="n2"),
        Veth(
            ns="node/n1",
            name="eth0",
            peer_ns="node/n2",
            peer="eth0",
            mtu=1500,
            mac="02:00:00:00:00:01",
            peer_mac="02:00:00:00:00:02",
        ),
        Address(ns="node/n1", device="eth0", address="10.0.0.1/24"),
        Address(ns="node/n2", device="eth0", address="10.0.0.2/24"),
        Neighbour(ns="node/n1", device="eth0", address="10.0.0.2", mac="02:00:00:00:00:02"),
        wish,
    ]


@pytest.fixture
def applier() -> Iterator[Applier]:
    made = Applier()
    yield made
    made.close()


def impair(applier: Applier, *, bandwidth: float = 0, delay: float = 0, jitter: float = 0, loss: float = 0) -> None:
    """What n1 sends, in the units of the plan: Mbit/s, ms, ms, per cent."""
    wish = Impairment(ns="node/n1", device="eth0", bandwidth=bandwidth, delay=delay, jitter=jitter, loss=loss)
    applier.apply([Operation(verb="add", new=item) for item in cable(wish)])


@dataclass(frozen=True)
class Sent:
    """Numbered datagrams from n1 to n2: those that arrived, in the order of arrival."""

    numbers: list[int]
    delays: list[float]  # ns, one way
    left: list[bytes]  # frames as n1's eth0 let them out
    arrived: list[bytes]  # frames as they came in at n2's eth0


def send(count: int, interval: float, near: str = netns_path("node/n1"), far: str = netns_path("node/n2")) -> Sent:
    """``interval`` in seconds. The device is the one that leads to 10.0.0.2."""
    with ExitStack() as stack:
        with inside(far):
            server = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            taps = [stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))]
        with inside(near):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            taps.append(stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))))
        for sock in (server, *taps):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)
            sock.settimeout(0)
        server.bind(("10.0.0.2", PORT))
        client.bind(("10.0.0.1", PORT))
        numbers: list[int] = []
        delays: list[float] = []

        def receive() -> None:
            while True:
                try:
                    number, sent_at = struct.unpack("=Iq", server.recv(100))
                except BlockingIOError:
                    return
                numbers.append(number)
                delays.append(time.monotonic_ns() - sent_at)

        for number in range(count):
            client.sendto(struct.pack("=Iq", number, time.monotonic_ns()), ("10.0.0.2", PORT))
            end = time.monotonic() + interval
            while time.monotonic() < end:
                receive()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            receive()
            time.sleep(0.001)
        arrived, left = (frames(tap, outgoing) for tap, outgoing in zip(taps, (False, True), strict=True))
    return Sent(numbers, delays, left, arrived)


def frames(tap: socket.socket, outgoing: bool) -> list[bytes]:
    """What a packet socket holds, as far as it is ours and goes that way."""
    found: list[bytes] = []
    while True:
        try:
            frame, (_, _, kind, *_) = tap.recvfrom(2000)
        except BlockingIOError:
            return found
        is_ours = frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_UDP
        if is_ours and (kind == PACKET_OUTGOING) == outgoing:
            found.append(frame)


@pytest.mark.sandbox
def test_no_packet_arrives_before_its_delay_is_over(applier: Applier) -> None:
    impair(applier, delay=20)

    sent = send(50, 0.005)

    assert sent.numbers == list(range(50))
    assert min(sent.delays) >= 20 * MILLISECOND


@pytest.mark.sandbox
def test_jitter_spreads_the_delay_to_both_sides(applier: Applier) -> None:
    impair(applier, delay=30, jitter=20)

    sent = send(200, 0.005)

    assert sorted(sent.numbers) == list(range(200))
    assert min(sent.delays) >= (30 - 20) * MILLISECOND
    # netem draws evenly from 10 to 50 ms: that none of 200 is below 30 ms has a chance of 2^-200.
    assert min(sent.delays) < 30 * MILLISECOND
    assert max(sent.delays) > 30 * MILLISECOND


@pytest.mark.sandbox
def test_loss_takes_its_share_and_nothing_else(applier: Applier) -> None:
    impair(applier, loss=30)

    sent = send(1000, 0.0)

    assert 600 < len(sent.numbers) < 800  # 700 expected, standard deviation 14.5
    assert sent.numbers == sorted(set(sent.numbers))
    assert sent.arrived == sent.left  # what is lost does not even leave: a capture at n1 must not show it


@pytest.mark.sandbox
def test_what_was_asked_for_is_what_tc_reads_back(applier: Applier) -> None:
    impair(applier, bandwidth=10, delay=20, jitter=5, loss=1)

    with inside(netns_path("node/n1")):
        output = subprocess.run(["tc", "-j", "qdisc", "show", "dev", "eth0"], capture_output=True, check=True).stdout
    tbf, netem = json.loads(output)

    assert applier.impairments.choices == {"impairment node/n1 eth0": "tbf+netem"}
    assert (tbf["kind"], tbf["options"]["rate"]) == ("tbf", 10_000_000 // 8)
    assert (netem["kind"], netem["parent"]) == ("netem", "1:1")
    assert netem["options"]["delay"] == {"delay": 0.02, "jitter": 0.005, "correlation": 0}
    assert netem["options"]["loss-random"]["loss"] == pytest.approx(0.01, abs=1e-4)


@dataclass(frozen=True)
class Answer:
    usable: bool


def without_netem(names: Collection[str]) -> Mapping[str, Answer]:
    return {name: Answer(name != "netem") for name in FEATURES}


@pytest.mark.sandbox
def test_stand_in_for_loss_lets_through_the_same_bytes_as_netem() -> None:
    """nftables drops where netem is missing. What passes must be what the wire would have carried."""
    seen: dict[str, Sent] = {}
    for probe in (None, without_netem):
        applier = Applier()
        if probe is not None:
            applier.impairments = Impairments(applier.devices.netns, probe=probe)
        impair(applier, loss=30)
        (back_end,) = applier.impairments.choices.values()
        seen[back_end] = send(500, 0.0)
        applier.close()

    assert list(seen) == ["netem", "nft"]
    for sent in seen.values():
        assert 270 < len(sent.numbers) < 430  # 350 expected, standard deviation 10.2
        assert sent.arrived == sent.left
    netem, nft = ({number_of(frame): comparable(frame) for frame in sent.arrived} for sent in seen.values())
    both = netem.keys() & nft.keys()
    assert len(both) > 150  # 245 expected
    assert {number: netem[number] for number in both} == {number: nft[number] for number in both}


HEADERS = 14 + 20 + 8  # bytes


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[HEADERS : HEADERS + 4], "little")


def comparable(frame: bytes) -> bytes:
    """Without what differs from socket to socket and from moment to moment: the IPv4 identification and the time of
    sending, with the checksums that cover them."""
    identification, ip_checksum, udp_checksum, sent_at = slice(18, 20), slice(24, 26), slice(40, 42), slice(46, 54)
    kept = bytearray(frame)
    for part in (identification, ip_checksum, udp_checksum, sent_at):
        kept[part] = bytes(part.stop - part.start)
    return bytes(kept)


# ---------------------------------------------------------------- a whole lab


def test_pods_of_a_node_with_a_delayed_cable_are_further_away_than_others() -> None:
    topology = {
        "name": "delayed",
        "podCIDRs": ["10.244.0.0/16"],
        "serviceCIDRs": ["10.96.0.0/12"],
        "pods": 1,
        "switches": [{"name": "s1", "cidrs": ["192.168.50.0/24"]}],
        "nodes": [{"name": "n1", "switch": "s1"}, {"name": "n2"}],
        "routers": [{"name": "tor"}],
        "links": [{"from": "n2", "to": "s1", "delay": 20}, {"from": "tor", "to": "s1"}],
    }
    with Lab(parse_topology(json.dumps(topology), "test"), cni="kindnet") as lab:
        assert lab.verify() == []
        assert lab.warnings == ()
        result = lab.probe("n1-p1", "n2-p1", count=10, interval=0.05, timeout=5).result
        assert result.received == 10
        assert min(result.times) >= 2 * 20_000  # us: each direction
        assert "netem" not in lab.run("n1", "tc", "qdisc").stdout
        assert "netem" in lab.run("n2", "tc", "qdisc").stdout


# ---------------------------------------------------------------- Mininet's own


@pytest.fixture
def mininet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two hosts, 20 ms and a loss of 30 per cent at each end of their cable, all by Mininet."""
    from mininet.link import TCLink
    from mininet.net import Mininet

    monkeypatch.setattr(Mininet, "inited", True)  # it would raise limits of the whole machine
    net = Mininet(controller=None, link=TCLink, autoSetMacs=True, autoStaticArp=True)
    hosts = [net.addHost("h1", ip="10.0.0.1/24"), net.addHost("h2", ip="10.0.0.2/24")]
    net.addLink(*hosts, delay="20ms", loss=30)
    net.build()
    yield net
    net.stop()


@pytest.mark.sandbox
def test_mininets_own_links_delay_and_lose_as_they_say(mininet: Any) -> None:
    """Without netem they would not, and say nothing (docs/real-kernel.md). Here nothing of ours takes part."""
    near, far = (f"/proc/{mininet.get(name).pid}/ns/net" for name in ("h1", "h2"))

    sent = send(1000, 0.0, near, far)

    assert 600 < len(sent.numbers) < 800  # 700 expected, standard deviation 14.5
    assert min(sent.delays) >= 20 * MILLISECOND
