"""How many sightings a second a capture takes without loss: a chain of namespaces, 20 interfaces, a flood of datagrams.

Run ``python benchmarks/capture_rate.py [--rate EVENTS_PER_SECOND] [--seconds N] [--size BYTES]`` (no root needed). It
builds a chain of 11 namespaces in a private sandbox, each routing to the next; a datagram from the first to the last is
seen on all 20 devices. One line of JSON: events a second asked and reached, events captured and lost, microseconds of
CPU per event of the capture process, and the share of packets that were followed over all 20 hops.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from emulator.capture.follow import follow
from emulator.capture.pcapng import read
from emulator.capture.session import start
from emulator.kernel.sandbox import call_forked
from emulator.kernel.syscalls import inside

NAMESPACES = 11
DEVICES = 2 * (NAMESPACES - 1)
TICK = 0.002  # seconds between two bursts of the sender


def chain() -> None:
    """Namespaces c0 to c10, ci and ci+1 joined by 10.0.i.0/30."""
    for number in range(NAMESPACES):
        subprocess.run(["ip", "netns", "add", f"c{number}"], check=True)
        with inside(f"/run/netns/c{number}"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    cables = [f"link add right netns c{i} type veth peer name left netns c{i + 1}" for i in range(NAMESPACES - 1)]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(cables), text=True, check=True)
    for number in range(NAMESPACES):
        lines = []
        if number < NAMESPACES - 1:
            lines += [f"address add 10.0.{number}.1/30 dev right", "link set right up"]
            if number < NAMESPACES - 2:
                lines.append(f"route add 10.0.{NAMESPACES - 2}.0/30 via 10.0.{number}.2")
        if number:
            lines += [f"address add 10.0.{number - 1}.2/30 dev left", "link set left up"]
            if number > 1:
                lines.append(f"route add 10.0.0.0/30 via 10.0.{number - 1}.1")
        subprocess.run(["ip", "-n", f"c{number}", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def send(rate: float, seconds: float, size: int) -> tuple[int, float]:
    """Datagrams at ``rate`` a second from c0 to c10; how many, and in how many seconds."""
    target = (f"10.0.{NAMESPACES - 2}.2", 9000)
    with inside(f"/run/netns/c{NAMESPACES - 1}"):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("", 9000))
    with inside("/run/netns/c0"):
        source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    source.sendto(b"arp", target)
    time.sleep(0.3)
    sent, begun = 0, time.monotonic()
    while (elapsed := time.monotonic() - begun) < seconds:
        while sent < elapsed * rate:
            source.sendto(sent.to_bytes(8, "big").ljust(size, b"."), target)
            sent += 1
        time.sleep(TICK)
    took = time.monotonic() - begun
    sink.close()
    source.close()
    return sent, took


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(rate: float, seconds: float, size: int) -> dict[str, Any]:
    """One run, inside a sandbox."""
    chain()
    handle = start([f"node/c{number}" for number in range(NAMESPACES)], directory=Path("/run/captures"))
    before = _cpu(handle.pid)
    sent, took = send(rate / DEVICES, seconds, size)
    time.sleep(0.5)
    cpu = _cpu(handle.pid) - before
    stats = handle.stop()
    begun = time.monotonic()
    journeys = [each for each in follow(read(stats.path)).journeys if each.hops[0].packet.payload == size]
    followed = time.monotonic() - begun
    whole = sum(len(each.hops) == DEVICES for each in journeys)
    return {
        "events_per_second_asked": rate,
        "events_per_second": round(sent * DEVICES / took),
        "frame_bytes": size + 42,
        "captured": stats.captured,
        "lost": stats.lost,
        "cpu_us_per_event": round(cpu / max(stats.captured, 1) * 1e6, 2),
        "followed": round(whole / max(sent, 1), 5),
        "follow_us_per_event": round(followed / max(stats.captured, 1) * 1e6, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, default=100_000, help="events a second over all devices")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--size", type=int, default=64, help="UDP payload in bytes")
    options = parser.parse_args()
    result = call_forked(lambda: measure(options.rate, options.seconds, options.size), timeout=300.0)
    print(json.dumps(result))
    return 0 if result["lost"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
