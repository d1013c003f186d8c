"""What golden captures are compared by: everything that the style decides, nothing that the moment decides."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emulator.capture.model import Hop, Journey, Packet, Reason, Tunnel
from emulator.compare.golden import hop_lists, same_way, speaking
from emulator.compare.records import FlowJourney

TUNNEL = Tunnel(
    kind="vxlan", source="192.168.50.11", target="192.168.50.12", ttl=64, overhead=50, source_port=40000,
    target_port=8472, vni=1,
)  # fmt: skip
PACKET = Packet(
    source_mac="0a:00:00:00:00:01", target_mac="0a:00:00:00:00:02", length=148, protocol="tcp", version=4,
    source="10.244.1.2", target="10.244.2.2", ttl=63, ip_id=7, source_port=41000, target_port=8080, tcp_flags="SYN",
    tcp_seq=1, tunnel=TUNNEL,
)  # fmt: skip
HOP = Hop(1, 0, "node/n1", "eth0", "out", PACKET, reasons=(Reason("route a", "flanneld", "because"),))


def flow(packet: Packet = PACKET, direction: Any = "request", index: int = 0, **hop: Any) -> FlowJourney:
    changed = msgspec.structs.replace(HOP, packet=packet, **hop)
    return FlowJourney("s", "flannel", "http", direction, index, Journey(1, (changed,)))


def test_a_hop_is_a_line_with_its_reasons_below() -> None:
    assert hop_lists([flow()]) == (
        "http request\n"
        "  node/n1 eth0 out: 0a:00:00:00:00:01 > 0a:00:00:00:00:02 10.244.1.2:* > 10.244.2.2:8080 tcp SYN ttl 63"
        " length 148 in vxlan 1 192.168.50.11 > 192.168.50.12 port 8472 ttl 64 +50\n"
        "      route a (flanneld): because\n"
    )


@pytest.mark.parametrize(
    "change",
    [{"ip_id": 8}, {"source_port": 50123}, {"tcp_seq": 9}, {"tunnel": msgspec.structs.replace(TUNNEL, source_port=5)}],
)
def test_what_the_moment_decides_makes_no_difference(change: dict[str, Any]) -> None:
    other = flow(msgspec.structs.replace(PACKET, **change), time=99, elapsed=98)
    assert hop_lists([other]) == hop_lists([flow()])
    assert same_way(flow(), other.journey)


@pytest.mark.parametrize(
    "change",
    [
        {"ttl": 62},
        {"length": 98},
        {"source": "10.244.1.3"},
        {"source_mac": "0a:00:00:00:00:09"},
        {"target_port": 80},
        {"tcp_flags": "SYN,ACK"},
        {"more_fragments": True},
        {"tunnel": None},
        {"tunnel": msgspec.structs.replace(TUNNEL, vni=2)},
        {"tunnel": msgspec.structs.replace(TUNNEL, ttl=63)},
    ],
)
def test_what_the_style_decides_makes_a_difference(change: dict[str, Any]) -> None:
    other = flow(msgspec.structs.replace(PACKET, **change))
    assert hop_lists([other]) != hop_lists([flow()])
    assert not same_way(flow(), other.journey)


@pytest.mark.parametrize("change", [{"device": "cni0"}, {"ns": "node/n2"}, {"direction": "in"}])
def test_places_make_a_difference(change: dict[str, Any]) -> None:
    assert hop_lists([flow(**change)]) != hop_lists([flow()])


def test_reasons_make_a_difference() -> None:
    assert hop_lists([flow(reasons=())]) != hop_lists([flow()])


def test_a_reply_shows_the_servers_port_and_hides_the_clients() -> None:
    back = msgspec.structs.replace(PACKET, source_port=8080, target_port=41000)
    assert "10.244.1.2:8080 > 10.244.2.2:*" in hop_lists([flow(back, "reply")])


def test_the_first_packet_of_each_direction_speaks_for_the_rest() -> None:
    first, second, reply = flow(), flow(index=1), flow(direction="reply")
    assert speaking([first, second, reply]) == [first, reply]


def test_further_fragments_follow_their_packet_in_order() -> None:
    def piece(number: int, offset: int) -> Journey:
        packet = msgspec.structs.replace(PACKET, fragment_offset=offset, payload=8)
        return Journey(number, (msgspec.structs.replace(HOP, packet=packet),), "fragment", 1)

    text = hop_lists([flow()], [piece(4, 16), piece(3, 8), msgspec.structs.replace(piece(5, 24), about=2)])
    assert [line for line in text.splitlines() if line.startswith("http")] == [
        "http request",
        "http request, piece",
        "http request, piece",
    ]
    assert text.index("fragment 8+8") < text.index("fragment 16+8")
    assert "fragment 24+8" not in text
