"""How long a reachability matrix takes: every pod to every pod, on every port.

``python benchmarks/probe_matrix.py [--pods 9] [--runs 15]`` makes a sandbox of its own, with pods on one bridge, each
answering on two TCP and two UDP ports, and prints the median over the runs. Needs no root. The target is 150 ms for the
324 allowed probes of 9 pods on 2 cores; beside it stands what starting the engine, serving one more pod and single
probes take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from typing import Any

from emulator.kernel.sandbox import call_forked
from emulator.traffic.client import TrafficEngine
from emulator.traffic.model import Probe, Server

PORTS = ((80, "TCP"), (8080, "TCP"), (53, "UDP"), (8081, "UDP"))
TARGET_MS = 150.0


def address(pod: int) -> str:
    """10.0.x.y of a pod, counted from 0."""
    return f"10.0.{(pod + 2) // 250}.{(pod + 2) % 250 + 1}"


def wire(pods: int) -> None:
    """A bridge in a namespace of its own, and pods on it."""
    commands = ["netns add switch"]
    commands += [f"netns add pod{pod}" for pod in range(pods)]
    ip(commands)
    ip(["link add br0 type bridge", "link set br0 up"], "switch")
    ip([f"link add p{pod} type veth peer name eth0 netns pod{pod}" for pod in range(pods)], "switch")
    ip([f"link set p{pod} master br0 up" for pod in range(pods)], "switch")
    for pod in range(pods):
        ip([f"addr add {address(pod)}/16 dev eth0", "link set eth0 up", "link set lo up"], f"pod{pod}")


def ip(commands: list[str], netns: str = "") -> None:
    """A batch of ip(8) commands."""
    inside = ["-n", netns] if netns else []
    subprocess.run(["ip", *inside, "-batch", "-"], input="\n".join(commands), text=True, check=True)


def measure(pods: int, runs: int) -> dict[str, Any]:
    """All figures, in milliseconds, of a sandbox made for them."""
    wire(pods)
    began = time.perf_counter()
    engine = TrafficEngine.start()
    started = time.perf_counter()
    servers = [Server(f"pod{pod}", f"/run/netns/pod{pod}", f"pod{pod}", PORTS) for pod in range(pods)]
    engine.serve(servers)
    served = time.perf_counter()
    matrix = [
        Probe(f"{source}>{target}:{port}", f"/run/netns/pod{source}", address(target), protocol.lower(), port)  # type: ignore[arg-type]
        for source in range(pods)
        for target in range(pods)
        for port, protocol in PORTS
    ]
    first = time.perf_counter()
    reached = sum(result.reached for result in engine.probe(matrix))
    figures: dict[str, Any] = {
        "start": ms(began, started),
        "serve_one_pod": ms(started, served) / pods,
        "probes": len(matrix),
        "reached": reached,
        "first_matrix": ms(first, time.perf_counter()),
    }
    for name, probes in (
        ("matrix", matrix),
        ("tcp", [matrix[4]]),
        ("udp", [matrix[6]]),
        ("icmp", [Probe("ping", "/run/netns/pod0", address(1), "icmp")]),
    ):
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            results = engine.probe(probes)
            times.append(ms(began, time.perf_counter()))
            assert all(result.reached for result in results)
        figures[name] = {"median": statistics.median(times), "least": min(times), "most": max(times)}
    engine.close()
    return figures


def ms(began: float, ended: float) -> float:
    """Milliseconds between two readings of the clock in seconds."""
    return round((ended - began) * 1000, 3)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="time a reachability matrix")
    parser.add_argument("--pods", type=int, default=9)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = call_forked(lambda: measure(options.pods, options.runs), 300.0)
    figures["machine"] = (
        f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    )
    if options.json:
        print(json.dumps(figures))
        return
    matrix = figures["matrix"]
    print(f"{figures['probes']} probes, {figures['reached']} reached; {figures['machine']}")
    print(f"matrix   median {matrix['median']:7.1f} ms (least {matrix['least']:.1f}, most {matrix['most']:.1f})")
    print(f"         first  {figures['first_matrix']:7.1f} ms, with every neighbour still unknown")
    if options.pods == 9:
        print(f"         {matrix['median'] / TARGET_MS:.2f} of the target of {TARGET_MS:.0f} ms")
    for name in ("tcp", "udp", "icmp"):
        print(f"one {name:4} median {figures[name]['median']:7.2f} ms, call included")
    print(f"engine   start  {figures['start']:7.1f} ms")
    print(f"one more pod with {len(PORTS)} ports {figures['serve_one_pod']:.2f} ms")


if __name__ == "__main__":
    main()
