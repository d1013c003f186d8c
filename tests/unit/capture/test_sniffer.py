"""From the kernel's ring blocks to pcapng: what a tap leaves out is put back, what it leaves open is marked."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from emulator.capture.blocks import CHECKSUM_PENDING
from emulator.capture.model import Event
from emulator.capture.pcapng import read

if sys.platform != "linux":
    pytest.skip("AF_PACKET is Linux's", allow_module_level=True)

from emulator.capture.ring import LARGE_BLOCK, RING, ring_shape
from emulator.capture.sniffer import Sniffer, Source

FRAME = bytes(range(1, 13)) + b"\x08\x00" + b"payload"
DEVICES = {3: "eth0", 4: "cni0"}


class Names:
    """Stands for the ring: it is only asked for names."""

    def device_name(self, index: int) -> str:
        return DEVICES[index]


def block(*packets: bytes) -> bytes:
    """A block as af_packet fills it (tpacket_block_desc)."""
    head = struct.pack("=IIIIIIQIIII", 3, 48, 1, len(packets), 48, 0, 1, 0, 0, 0, 0)
    return head.ljust(48, b"\0") + b"".join(packets)


def packet(
    frame: bytes = FRAME,
    *,
    index: int = 3,
    status: int = 1,
    kind: int = 0,
    hatype: int = 1,
    tci: int = 0,
    length: int = 0,
) -> bytes:
    """A packet as af_packet stores it (tpacket3_hdr, sockaddr_ll, frame)."""
    mac = 80
    step = mac + len(frame) + -len(frame) % 16
    head = struct.pack(
        "=IIIIIIHHIIHH8x", step, 100, 7, len(frame), length or len(frame), status, mac, mac + 14, 0, tci, 0x8100, 0
    )
    address = struct.pack("=HHiHBB8x", 17, int.from_bytes(b"\x08\x00", sys.byteorder), index, hatype, kind, 6)
    return ((head + address).ljust(mac, b"\0") + frame).ljust(step, b"\0")


def converted(tmp_path: Path, *packets: bytes, devices: list[str] | None = None, since: int = 0) -> list[Event]:
    file = tmp_path / "file"
    sniffer = Sniffer({"output": str(file), "namespaces": []})
    source = Source("node/n1", "/run/netns/n1", devices, Names())  # type: ignore[arg-type]
    source.since = since
    sniffer.backlog.append((source, block(*packets)))
    sniffer.convert()
    sniffer.flush()
    return list(read(file))


def test_a_packet_is_stored_with_its_place_time_and_direction(tmp_path: Path) -> None:
    events = converted(tmp_path, packet(), packet(index=4, kind=4, length=1514))
    assert events == [
        Event(100_000_000_007, "node/n1", "eth0", "in", FRAME, len(FRAME)),
        Event(100_000_000_007, "node/n1", "cni0", "out", FRAME, 1514),
    ]


def test_a_frame_for_another_machine_is_marked(tmp_path: Path) -> None:
    assert [event.promiscuous for event in converted(tmp_path, packet(kind=3), packet(kind=0))] == [True, False]


def test_the_vlan_tag_that_the_kernel_took_off_is_put_back(tmp_path: Path) -> None:
    (event,) = converted(tmp_path, packet(status=1 | 1 << 4 | 1 << 6, tci=7))
    assert event.frame == FRAME[:12] + b"\x81\x00\x00\x07" + FRAME[12:]
    assert event.length == len(FRAME) + 4


def test_a_device_without_ethernet_gets_a_header_of_zeros(tmp_path: Path) -> None:
    (event,) = converted(tmp_path, packet(b"E" * 20, hatype=768))
    assert event.frame == bytes(12) + b"\x08\x00" + b"E" * 20
    assert event.length == 34


def test_a_checksum_that_is_not_filled_in_yet_is_marked(tmp_path: Path) -> None:
    assert [event.comment for event in converted(tmp_path, packet(status=1 | 1 << 3), packet())] == [
        CHECKSUM_PENDING,
        "",
    ]


def test_what_was_seen_before_all_namespaces_were_listened_to_is_left_out(tmp_path: Path) -> None:
    """The packets of these tests are 100 seconds and 7 ns old."""
    stamp = 100_000_000_007
    assert len(converted(tmp_path, packet(), since=stamp)) == 1
    assert converted(tmp_path, packet(), since=stamp + 1) == []


def test_devices_that_are_not_wanted_are_left_out(tmp_path: Path) -> None:
    assert [event.device for event in converted(tmp_path, packet(), packet(index=4), devices=["cni0"])] == ["cni0"]


@pytest.mark.parametrize("namespaces", [1, 14, 64, 256, 257, 1100])
def test_rings_of_many_namespaces_stay_within_bounds(namespaces: int) -> None:
    size, count, retire = ring_shape(namespaces)
    assert size * count <= RING
    assert count >= 4
    assert size * count * namespaces <= 256 * 1024 * 1024
    assert retire >= 30
    assert size % 4096 == 0


def test_a_small_capture_takes_whole_segmentation_offload_frames() -> None:
    assert ring_shape(78)[0] == LARGE_BLOCK > 65535 + 14
