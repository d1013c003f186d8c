"""Capture files: ours byte by byte, other programs' in their variety, and damaged ones."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapWriter

from emulator.capture import blocks, pcapng
from emulator.capture.follow import follow
from emulator.capture.model import Event
from emulator.capture.pcapng import losses, read, write, write_annotated
from emulator.errors import InputError

FRAME = bytes(Ether(src="0a:00:00:00:00:01", dst="0a:00:00:00:00:02") / IP(id=9) / UDP(sport=1, dport=2) / b"abc")
TIME = 1_700_000_000_123_456_789
EVENTS = [
    Event(TIME, "node/n1", "cni0", "in", FRAME, len(FRAME)),
    Event(TIME + 1, "pod/default/web-0", "eth0", "out", FRAME[:40], 1514),
    Event(TIME + 2, "node/n1", "cni0", "out", FRAME, len(FRAME), True, 77, "a word"),
]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "file", EVENTS)
    assert list(read(tmp_path / "file")) == EVENTS


def test_a_file_is_as_the_standard_has_it_byte_by_byte(tmp_path: Path) -> None:
    write(tmp_path / "file", [Event(TIME, "node/n1", "cni0", "in", b"\1\2\3\4\5", 60)])
    golden = """
    0a0d0d0a 2c000000 4d3c2b1a 0100 0000 ffffffffffffffff  0400 0600 636e696c6162 0000 00000000 2c000000
    01000000 38000000 0100 0000 00000400  0200 0700 6e313a636e6930 00  0300 0700 6e6f64652f6e31 00
                                          0900 0100 09 000000 00000000 38000000
    06000000 34000000 00000000 fe9c9717 15cd853d 05000000 3c000000 0102030405 000000
                                          0200 0400 01000000 00000000 34000000
    """
    assert (tmp_path / "file").read_bytes() == bytes.fromhex("".join(golden.split()))


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_sees_interfaces_times_directions_comments_and_ids(tmp_path: Path) -> None:
    write(tmp_path / "file.pcapng", EVENTS)
    fields = [
        "frame.interface_name",
        "frame.interface_description",
        "frame.time_epoch",
        "frame.len",
        "frame.packet_flags_direction",
        "frame.packet_id",
        "frame.comment",
    ]
    arguments = [item for field in fields for item in ("-e", field)]
    command = ["tshark", "-n", "-r", str(tmp_path / "file.pcapng"), "-T", "fields", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split("\t") for line in output.splitlines()]
    assert [row[:4] for row in rows] == [
        ["n1:cni0", "node/n1", "1700000000.123456789", str(len(FRAME))],
        ["default_web-0:eth0", "pod/default/web-0", "1700000000.123456790", "1514"],
        ["n1:cni0", "node/n1", "1700000000.123456791", str(len(FRAME))],
    ]
    assert [int(row[4], 0) for row in rows] == [1, 2, 2]
    assert rows[2][5:] == ["77", "a word"]


def test_annotated_files_are_sorted_and_carry_the_journey_and_its_changes(tmp_path: Path) -> None:
    out = Event(TIME, "pod/default/a", "eth0", "out", FRAME, len(FRAME))
    routed = bytearray(FRAME)
    routed[22] -= 1  # TTL
    later = Event(TIME + 5, "node/n1", "eth0", "out", bytes(routed), len(FRAME))
    write_annotated(tmp_path / "file", follow([out, later]).journeys, [later, out])
    first, second = read(tmp_path / "file")
    assert (first.time, first.packet_id, second.packet_id) == (TIME, 1, 1)
    assert "packet 1, hop 2 of 2" in second.comment
    assert "ttl: 64 → 63" in second.comment


def test_losses_are_summed_per_namespace(tmp_path: Path) -> None:
    parts = [blocks.section_header("x"), blocks.interface("n1:a", "node/n1"), blocks.interface("n1:b", "node/n1")]
    parts += [blocks.statistics(0, TIME, 10, 3), blocks.statistics(1, TIME, 10, 4)]
    (tmp_path / "file").write_bytes(b"".join(parts))
    assert losses(tmp_path / "file") == {"node/n1": 7}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_classic_pcap_is_read_in_either_order_and_resolution(tmp_path: Path, order: str, magic: int, unit: int) -> None:
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    record = struct.pack(order + "IIII", 100, 5, len(FRAME), len(FRAME)) + FRAME
    (tmp_path / "file").write_bytes(head + record)
    (event,) = read(tmp_path / "file")
    assert (event.time, event.frame, event.ns) == (100_000_000_000 + 5 * unit, FRAME, "")


def test_scapys_files_are_read(tmp_path: Path) -> None:
    for name, writer in (("ng", PcapNgWriter), ("classic", PcapWriter)):
        with writer(str(tmp_path / name)) as file:
            file.write(Ether(FRAME))
        (event,) = read(tmp_path / name)
        assert event.frame == FRAME


def _foreign(order: str, resolution: bytes, ticks: int, link: int = 1, frame: bytes = FRAME) -> bytes:
    def block(kind: int, body: bytes) -> bytes:
        length = struct.pack(order + "I", len(body) + 12)
        return struct.pack(order + "I", kind) + length + body + length

    options = b""
    if resolution:
        options = struct.pack(order + "HH", 9, 1) + resolution + bytes(3) + bytes(4)
    body = struct.pack(order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), len(frame))
    return (
        block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
        + block(1, struct.pack(order + "HHI", link, 0, 0) + options)
        + block(6, body + frame + bytes(-len(frame) % 4))
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("resolution", "ticks", "time"),
    [(b"", 1_500_000, 1_500_000_000), (b"\x03", 1500, 1_500_000_000), (b"\x8a", 1536, 1_500_000_000), (b"\x09", 7, 7)],
    ids=["default: microseconds", "milliseconds", "2^-10 s", "nanoseconds"],
)
def test_foreign_pcapng_is_read(tmp_path: Path, order: str, resolution: bytes, ticks: int, time: int) -> None:
    (tmp_path / "file").write_bytes(_foreign(order, resolution, ticks))
    (event,) = read(tmp_path / "file")
    assert (event.time, event.frame, event.ns, event.device) == (time, FRAME, "", "if0")


def test_raw_ip_gets_an_ethernet_header(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(_foreign("<", b"", 0, link=101, frame=FRAME[14:]))
    (event,) = read(tmp_path / "file")
    assert event.frame == bytes(12) + b"\x08\x00" + FRAME[14:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, world: this is not a capture", "neither pcapng nor pcap"),
        (_foreign("<", b"", 0)[:-6], "the file ends within a block"),
        (_foreign("<", b"", 0, link=105), "link type 105 is not supported"),
        (_foreign("<", b"", 0) + bytes(12), "a block of 0 bytes"),
    ],
)
def test_what_is_no_capture_is_refused_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        list(read(tmp_path / "file"))


def test_a_gzipped_capture_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(gzip.compress(_foreign("<", b"", 0)))
    assert [event.frame for event in read(tmp_path / "file")] == [FRAME]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-20], "the file ends too soon"),
        (lambda data: data[:12] + b"\xff\xff" + data[14:], "damaged"),
    ],
)
def test_a_damaged_gzipped_capture_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    (tmp_path / "file").write_bytes(damage(gzip.compress(_foreign("<", b"", 0))))
    with pytest.raises(InputError, match=reason):
        list(read(tmp_path / "file"))


def test_a_gzipped_capture_may_not_unpack_to_just_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcapng, "LARGEST_UNPACKED", 50)
    (tmp_path / "file").write_bytes(gzip.compress(_foreign("<", b"", 0)))
    with pytest.raises(InputError, match="more than 50 bytes unpacked"):
        list(read(tmp_path / "file"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        list(read(tmp_path / "none"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gives_anything_but_an_input_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(_foreign("<", b"\x09", 1) + blocks.statistics(0, 1, 2, 3))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    (tmp_path / "file").write_bytes(content)
    for reader in (lambda: list(read(tmp_path / "file")), lambda: losses(tmp_path / "file")):
        with contextlib.suppress(InputError):
            reader()
