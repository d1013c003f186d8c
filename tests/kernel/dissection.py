"""A lab's packets as tshark sees them: the independent judge of our captures."""

from __future__ import annotations

import json
import subprocess
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from emulator.lab.lab import Lab
from emulator.lab.records import ProbeAnswer

FIELDS = (
    "frame.time_epoch", "frame.interface_name", "frame.interface_description", "frame.packet_flags_direction",
    "frame.len", "eth.src", "eth.dst", "ip.src", "ip.dst", "ip.ttl", "ip.flags.df", "ipv6.src", "ipv6.dst", "ipv6.hlim",
    "vxlan.vni", "udp.srcport", "udp.dstport", "udp.checksum", "udp.checksum.status",
)  # fmt: skip
DIRECTIONS = {"1": "in", "2": "out", "0x00000001": "in", "0x00000002": "out"}
GOOD_CHECKSUM = "1"


class Sighting(NamedTuple):
    """One packet on one device: ``macs`` (``source > target``), ``addresses``, ``ttl`` and ``df`` outermost first."""

    hop: str
    ns: str
    direction: str
    length: int
    macs: tuple[str, ...]
    addresses: tuple[str, ...]
    ttl: tuple[int, ...]
    df: tuple[bool, ...]
    vni: str
    source_port: int
    target_port: int
    checksum: int
    checksum_good: bool


class Tshark:
    """What a capture file holds, as tshark reads it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read: dict[str, list[Sighting]] = {}

    def rows(self, display_filter: str, *fields: str) -> list[list[str]]:
        """The fields of each packet that fits; repeated ones (outer, inner) with commas between."""
        argv = ["tshark", "-r", str(self._file), "-d", "udp.port==8472,vxlan", "-o", "udp.check_checksum:TRUE"]
        argv += ["-Y", display_filter, "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=,", "-E", "separator=;"]
        for field in fields:
            argv += ["-e", field]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        return [line.split(";") for line in done.stdout.splitlines()]

    def sightings(self, display_filter: str) -> list[Sighting]:
        """Where each packet that fits was seen, in order of time."""
        if display_filter not in self._read:
            rows = [dict(zip(FIELDS, row, strict=True)) for row in self.rows(display_filter, *FIELDS)]
            # A file is in order within each namespace; at one instant what goes out comes first.
            rows.sort(key=lambda row: (Decimal(row["frame.time_epoch"]), _direction(row) == "in"))
            self._read[display_filter] = [_sighting(row) for row in rows]
        return self._read[display_filter]


def _direction(row: dict[str, str]) -> str:
    return DIRECTIONS[row["frame.packet_flags_direction"]]


def _sighting(row: dict[str, str]) -> Sighting:
    def each(name: str) -> list[str]:
        return row[name].split(",") if row[name] else []

    def pairs(first: str, second: str) -> list[str]:
        return [f"{one} > {two}" for one, two in zip(each(first), each(second), strict=True)]

    # The outer packet of either family stands before the inner one of either family: IPv6 in IPv4 or the like would
    # not keep their order, and no style here makes it.
    return Sighting(
        hop=row["frame.interface_name"],
        ns=row["frame.interface_description"],
        direction=_direction(row),
        length=int(row["frame.len"]),
        macs=tuple(pairs("eth.src", "eth.dst")),
        addresses=tuple(pairs("ip.src", "ip.dst") + pairs("ipv6.src", "ipv6.dst")),
        ttl=tuple(map(int, each("ip.ttl") + each("ipv6.hlim"))),
        df=tuple(flag in ("1", "True") for flag in each("ip.flags.df")),
        vni=row["vxlan.vni"],
        source_port=int((each("udp.srcport") or ["0"])[0]),
        target_port=int((each("udp.dstport") or ["0"])[0]),
        checksum=int((each("udp.checksum") or ["0"])[0], 0),
        checksum_good=(each("udp.checksum.status") or [""])[0] == GOOD_CHECKSUM,
    )


class Macs:
    """The MACs that the kernel of a lab holds, by ``place:device``, and back."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._known: dict[str, dict[str, str]] = {}

    def of(self, name: str) -> str:
        """``n1:flannel.1`` → its MAC; what is a MAC already stays."""
        place, _, device = name.partition(":")
        if ":" in device:
            return name
        if place not in self._known:
            shown = json.loads(self._lab.run(place, "ip", "-json", "-d", "link").stdout)
            self._known[place] = {link["ifname"]: link["address"] for link in shown}
        return self._known[place][device]

    def pair(self, text: str) -> str:
        """``n1:eth0 > n2:eth0`` in MACs."""
        source, _, target = text.partition(" > ")
        return f"{self.of(source)} > {self.of(target)}"


class Row(NamedTuple):
    """One line of a hop table: where, in which direction, between which MACs (outermost first), with which TTLs, in how
    many bytes."""

    hop: str
    direction: str
    macs: tuple[str, ...]
    ttl: tuple[int, ...]
    length: int


def same_table(found: list[Sighting], wanted: list[Row], macs: Macs) -> None:
    """Assert that the packet was seen exactly where the table says, as the table says."""
    shown = [Row(each.hop, each.direction, each.macs, each.ttl, each.length) for each in found]
    assert len(shown) == len(wanted), "\n".join(map(str, shown))
    for one, row in zip(shown, wanted, strict=True):
        assert fnmatchcase(one.hop, row.hop), f"{one} is not at {row.hop}"
        expected = Row(one.hop, row.direction, tuple(macs.pair(pair) for pair in row.macs), row.ttl, row.length)
        assert one == expected


class Bench:
    """A lab under one style, and captures of single probes in it."""

    def __init__(self, lab: Lab, folder: Path, request: str, **options: Any) -> None:
        """``request`` is the display filter of a ping's requests, ``options`` are those of every probe."""
        self.lab, self.macs = lab, Macs(lab)
        self._folder, self._request, self._options = folder, request, options
        self._done: dict[tuple[Any, ...], tuple[Tshark, ProbeAnswer]] = {}

    def seen(self, source: str, target: str, **options: Any) -> tuple[Tshark, ProbeAnswer]:
        """One ping, captured everywhere; the same one is sent once only."""
        key = (source, target, *sorted(options.items()))
        if key not in self._done:
            with self.lab.capture() as capture:
                answer = self.lab.probe(source, target, **self._options, **options)
            assert capture.stats.lost == 0
            file = self._folder / f"{len(self._done)}.pcapng"
            capture.save(file)
            self._done[key] = (Tshark(file), answer)
        return self._done[key]

    def requests(self, source: str, target: str, **options: Any) -> list[Sighting]:
        """Where the requests of a ping were seen."""
        tshark, answer = self.seen(source, target, **options)
        assert answer.reached
        return tshark.sightings(self._request)


def addresses(found: list[Sighting]) -> list[str]:
    """The innermost addresses, each once, in order."""
    return list(dict.fromkeys(each.addresses[-1] for each in found))


def wrapped(found: list[Sighting]) -> list[Sighting]:
    """Those in a tunnel."""
    return [each for each in found if each.vni]
