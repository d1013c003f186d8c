"""Hook passes: from counters of everything to those of one request."""

from __future__ import annotations

from emulator.capture.model import Hop, Journey, Packet, Tunnel
from emulator.scenario.hooks import passes

VXLAN = Tunnel(kind="vxlan", source="192.168.50.11", target="192.168.50.12", ttl=64, overhead=50)


def request(number: int, *sources: str, tunnel: Tunnel | None = None) -> Journey:
    hops = tuple(
        Hop(
            index, index, "node/n1", "eth0", "out", Packet("", "", 98, "icmp", 4, source, "10.0.0.9", 64, tunnel=tunnel)
        )
        for index, source in enumerate(sources)
    )
    return Journey(number, hops)


def test_passes_are_those_of_one_request() -> None:
    rows = [["node/n1", "forward", "10.0.0.1", "10.0.0.9", 1, 3]]
    requests = [request(number, "10.0.0.1") for number in range(3)]
    assert passes(rows, requests) == {"node/n1": {"forward": 1}}


def test_a_translated_packet_is_the_same_request() -> None:
    rows = [
        ["node/n1", "prerouting", "10.0.0.1", "10.0.0.9", 1, 1],
        ["node/n1", "postrouting", "192.168.50.11", "10.0.0.9", 1, 1],
    ]
    assert passes(rows, [request(1, "10.0.0.1", "192.168.50.11")]) == {"node/n1": {"prerouting": 1, "postrouting": 1}}


def test_the_tunnel_packet_counts_too() -> None:
    rows = [["node/n1", "output", "192.168.50.11", "192.168.50.12", 17, 1]]
    assert passes(rows, [request(1, "10.0.0.1", tunnel=VXLAN)]) == {"node/n1": {"output": 1}}


def test_replies_and_other_traffic_are_left_out() -> None:
    rows = [
        ["node/n1", "forward", "10.0.0.9", "10.0.0.1", 1, 1],
        ["node/n1", "forward", "10.0.0.1", "10.0.0.9", 6, 1],
        ["node/n1", "output", "192.168.50.11", "192.168.50.12", 6, 1],
    ]
    assert passes(rows, [request(1, "10.0.0.1")]) == {}


def test_without_requests_there_are_no_passes() -> None:
    assert passes([["node/n1", "forward", "10.0.0.1", "10.0.0.9", 1, 3]], []) == {}


def test_a_tunnels_own_packets_are_taken_off() -> None:
    wireguard = Tunnel(kind="wireguard", source="192.168.50.11", target="192.168.50.12", ttl=64, overhead=72)
    handshake = Packet(
        "", "", 190, "udp", 4, "192.168.50.11", "192.168.50.12", summary="WireGuard handshake initiation"
    )
    rows = [["node/n1", "output", "192.168.50.11", "192.168.50.12", 17, 2]]
    others = [Journey(2, (Hop(0, 0, "node/n1", "eth0", "out", handshake),))]
    assert passes(rows, [request(1, "10.0.0.1", tunnel=wireguard)], others) == {"node/n1": {"output": 1}}
