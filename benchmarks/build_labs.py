"""How long wiring a lab takes, beside Mininet making as many plain hosts on the same machine at the same time.

Run ``python benchmarks/build_labs.py [three-nodes] [fifty-nodes] [--style STYLE] [--no-mininet]``; no root needed. A
lab is wired in a private sandbox: machines first, then pods, then one pod less and one pod more. One line of JSON per
lab: seconds (and CPU seconds of the process) for each part, and the ratio to Mininet's stock Host and Link.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from emulator.cluster.assemble import assemble
from emulator.cluster.topology import load_topology
from emulator.cni.styles import load_style
from emulator.kernel.sandbox import call_forked
from emulator.plan.build import build
from emulator.plan.diff import diff
from emulator.plan.model import Plan

LABS = ("three-nodes", "fifty-nodes")
TIMEOUT = 180.0  # seconds for one lab


def timed(parts: dict[str, float], name: str, action: Callable[[], object]) -> None:
    """Run ``action``; note its wall and CPU seconds."""
    wall, cpu = time.perf_counter(), _cpu()
    action()
    parts[f"{name}_s"] = round(time.perf_counter() - wall, 3)
    parts[f"{name}_cpu_s"] = round(_cpu() - cpu, 3)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def build_lab(topology_name: str, style_name: str, pods_per_node: int) -> dict[str, Any]:
    """Inside a sandbox: wire the lab in parts."""
    topology = load_topology(topology_name)
    if pods_per_node:
        crowded = tuple(
            msgspec.structs.replace(item, pods=pods_per_node) if item.kind == "node" else item
            for item in topology.machines
        )
        topology = msgspec.structs.replace(topology, machines=crowded)
    style = load_style(style_name)
    parts: dict[str, float] = {}
    plans: dict[str, Plan] = {}

    def plan() -> None:
        cluster = assemble(topology, [], style.ipam(topology), None)
        plans["whole"] = whole = build(cluster, style)
        pods = {pod.ns for pod in cluster.pods}
        machines = {name: items for name, items in whole.fragments.items() if name not in pods}
        plans["machines"] = msgspec.structs.replace(whole, fragments=machines)
        last = cluster.pods[-1].ns
        fewer = {name: items for name, items in whole.fragments.items() if name != last}
        plans["fewer"] = msgspec.structs.replace(whole, fragments=fewer)
        parts.update(nodes=len(cluster.nodes), pods=len(cluster.pods), objects=sum(1 for _ in whole))

    timed(parts, "plan", plan)
    whole, machines, fewer = plans["whole"], plans["machines"], plans["fewer"]
    loaded: dict[str, Any] = {}

    def imports() -> None:
        from emulator.kernel.applier import Applier

        loaded["applier"] = Applier()

    timed(parts, "imports", imports)
    applier = loaded["applier"]
    timed(parts, "machines", lambda: applier.apply(diff(None, machines)))
    timed(parts, "pods", lambda: applier.apply(diff(machines, whole)))
    if parts["nodes"] <= 10 or not any(item.ns == "node/n1" and type(item).__name__ == "Daemon" for item in whole):
        timed(parts, "learned", lambda: applier.wait_learned(whole))
    timed(parts, "remove_one_pod", lambda: applier.apply(diff(whole, fewer)))
    timed(parts, "add_one_pod", lambda: applier.apply(diff(fewer, whole)))
    parts["whole_s"] = round(sum(parts[f"{name}_s"] for name in ("plan", "machines", "pods")), 3)
    return {"lab": topology_name, "style": style_name, **parts}


def build_mininet(hosts: int, per_switch: int = 50) -> float:
    """Inside a sandbox: Mininet's stock hosts and links, on bridges of ``per_switch`` hosts; seconds."""
    from mininet.link import Link
    from mininet.net import Mininet
    from mininet.node import Host

    from emulator.kernel.underlay import LabSwitch

    Host.isSetup = True
    Mininet.inited = True  # its init() writes host-wide sysctls
    started = time.perf_counter()
    net = Mininet(host=Host, switch=LabSwitch, controller=None, link=Link, build=False)
    for number in range(hosts):
        if number % per_switch == 0:
            switch = net.addSwitch(f"s{number // per_switch}")
        net.addLink(net.addHost(f"h{number}"), switch)
    net.build()
    net.start()
    return round(time.perf_counter() - started, 3)


def main() -> None:
    """Parse the command line; print one line of JSON per lab."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labs", nargs="*", default=list(LABS))
    parser.add_argument("--style", default="flannel:vxlan")
    parser.add_argument("--pods", type=int, default=0, help="pods per node (default: what the topology says)")
    parser.add_argument("--mininet", action=argparse.BooleanOptionalAction, default=True)
    chosen = parser.parse_args()
    for lab in chosen.labs:
        result = call_forked(partial(build_lab, lab, chosen.style, chosen.pods), TIMEOUT)
        if chosen.mininet:
            hosts = int(result["nodes"])
            result["mininet_hosts_s"] = call_forked(partial(build_mininet, hosts), TIMEOUT)
            result["mininet_per_host_ms"] = round(1000 * result["mininet_hosts_s"] / hosts, 1)
            as_many = result["mininet_hosts_s"] / hosts * (hosts + int(result["pods"]))
            result["mininet_for_as_many_s"] = round(as_many, 1)
            result["ratio"] = round(as_many / result["whole_s"], 1)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
