"""How long planning takes, without any kernel: 50 nodes with 20 pods each, then one pod more.

python benchmarks/plan.py [STYLE ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

from emulator.cluster.assemble import assemble
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.plan.build import build
from emulator.plan.diff import diff

Result = TypeVar("Result")

ROUNDS = 5
TOPOLOGY = """\
name: plan-benchmark
podCIDRs: [10.244.0.0/16]
pods: 20
switches: [{name: s1, cidrs: [192.168.0.0/16]}]
nodes: [{prefix: n, count: 50, switch: s1}]
routers: [{name: tor, switch: s1}]
"""
EXTRA: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "extra", "namespace": "default"},
    "spec": {"nodeName": "n7", "containers": [{"name": "main", "image": "agnhost"}]},
}


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """The median of a few runs in milliseconds, and the last result."""
    times = []
    for _ in range(ROUNDS):
        start = perf_counter()
        result = work()
        times.append((perf_counter() - start) * 1000)
    return median(times), result


def measure(spec: str) -> None:
    """Print one style's figures."""
    topology = parse_topology(TOPOLOGY, "benchmark")
    style = load_style(spec)
    ipam = style.ipam(topology)
    cluster = assemble(topology, (), ipam)
    build_ms, plan = timed(lambda: build(cluster, style))
    diff_ms, steps = timed(lambda: diff(None, plan))
    more = assemble(topology, (EXTRA,), ipam, cluster)
    rebuild_ms, grown = timed(lambda: build(more, style, previous=(cluster, plan)))
    one_ms, one = timed(lambda: diff(plan, grown))
    print(
        f"{spec:24} {len(cluster.pods)} pods: plan {build_ms:6.1f} ms, diff {diff_ms:6.1f} ms, {len(steps)} steps;"
        f"  one more: plan {rebuild_ms:5.2f} ms, diff {one_ms:5.2f} ms, {len(one)} steps"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or ("flannel", "flannel:host-gw", "calico"):
        measure(name)
