"""What tshark, which knows nothing of cnilab, reads from a capture: a line for each place that a packet was seen at.

::

    n1:flannel.1 out  10.244.1.2>10.244.2.2  ttl 63  n1:flannel.1>n2:flannel.1  98 bytes
    n1:eth0 out  192.168.50.11|10.244.1.2>192.168.50.12|10.244.2.2  ttl 64|63  n1:eth0|n1:flannel.1>...  udp 8472 vni 1

Outer values stand before inner ones. MACs are written as the device of the plan that has them. Names that are hashes
(``veth0d8274fc``, ``calic440f455693``) end in a star.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from emulator import Lab
from emulator.plan.model import Bridge, Plan, Veth, Vxlan

TIME, PLACE, DIRECTION, LENGTH = "frame.time_epoch", "frame.interface_name", "frame.packet_flags_direction", "frame.len"
MACS = ("eth.src", "eth.dst")
ADDRESSES = {4: ("ip.src", "ip.dst", "ip.ttl"), 6: ("ipv6.src", "ipv6.dst", "ipv6.hlim")}
VXLAN = ("udp.dstport", "vxlan.vni")
FLANNEL_PORT = "udp.port==8472,vxlan"  # tshark knows the registered port 4789 only
_HASHED = re.compile(r"\b(veth|cali|eni|tun-)[0-9a-f]{8,11}\b")


def ping_hops(lab: Lab, source: str, target: str, *, family: int = 4, size: int = 0) -> list[str]:
    """The places of an echo request from ``source`` to ``target``, in order, without the switches' ports: a switch
    rewrites nothing. A ping goes ahead, so that no neighbour has to be asked for any more."""
    assert lab.probe(source, target, family=family).result.verdict == "delivered"
    with lab.capture() as capture:
        answer = lab.probe(source, target, family=family, size=size).result
    assert answer.verdict == "delivered"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "hops.pcapng"
        capture.save(file)
        request = "icmp.type == 8" if family == 4 else "icmpv6.type == 128"
        return [line for line in _lines(file, request, family, lab.plan()) if not line.startswith("underlay:")]


def _lines(file: Path, display_filter: str, family: int, plan: Plan) -> list[str]:
    fields = (TIME, PLACE, DIRECTION, LENGTH, *MACS, *ADDRESSES[family], *VXLAN)
    wanted = [word for field in fields for word in ("-e", field)]
    output = subprocess.run(
        [
            "tshark",
            "-r",
            str(file),
            "-d",
            FLANNEL_PORT,
            "-Y",
            display_filter,
            "-T",
            "fields",
            "-E",
            "aggregator=|",
            *wanted,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    rows = [line.split("\t") for line in output.splitlines()]
    names = _names(plan)
    lines = []
    for row in sorted(rows, key=lambda row: (row[0], row[2].endswith("1"))):
        _, place, direction, length, source_mac, target_mac, source, target, ttl, ports, vni = row
        way = "out" if direction.endswith("2") else "in"
        macs = ">".join("|".join(names.get(mac, mac) for mac in each.split("|")) for each in (source_mac, target_mac))
        words = [f"{place.removeprefix('default_')} {way}", f"{source}>{target}", f"ttl {ttl}", macs]
        if vni:
            words.append(f"udp {ports.split('|')[0]} vni {vni}")
        lines.append(_HASHED.sub(r"\1*", "  ".join([*words, f"{length} bytes"])))
    return lines


def _names(plan: Plan) -> dict[str, str]:
    """MAC -> device. A MAC that several devices have (Calico's host ends) keeps its digits."""
    owners: list[tuple[str, str]] = []
    for item in plan:
        if isinstance(item, Veth):
            owners += [
                (item.mac, f"{_short(item.ns)}:{item.name}"),
                (item.peer_mac, f"{_short(item.peer_ns)}:{item.peer}"),
            ]
        elif isinstance(item, (Bridge, Vxlan)):
            owners.append((item.mac, f"{_short(item.ns)}:{item.name}"))
    times = Counter(mac for mac, _ in owners)
    return {mac: name for mac, name in owners if times[mac] == 1}


def _short(ns: str) -> str:
    kind, _, name = ns.partition("/")
    return name.removeprefix("default/") if kind == "pod" else name or kind
