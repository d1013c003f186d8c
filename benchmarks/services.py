"""Services by the thousand: parsed, planned, rendered, loaded into the kernel, and one endpoint changed.

``python -m benchmarks services`` runs it with the others; alone, ``python -m benchmarks.services [COUNT ...]``. Each
Service has two endpoints and lies in a manifest beside its EndpointSlice, as ``kubectl get -o json`` gives them. Rules
are those of three nodes, and loaded into three namespaces at once, by each mode and each iptables back end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import msgspec

from benchmarks.figures import Clock, Figure
from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import Ipam
from emulator.cluster.manifests import parse
from emulator.cluster.model import Cluster
from emulator.cluster.services import EndpointSlice
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.kernel.namespaces import create
from emulator.kernel.rulesets import Backend, Rulesets
from emulator.kernel.sandbox import call_forked
from emulator.kernel.underlay import LabNet
from emulator.plan.build import build
from emulator.plan.diff import Operation, diff
from emulator.plan.model import NftRules, Plan, ProxyRules
from emulator.plan.nftables import transactions
from emulator.plan.proxy_rules import full_text
from emulator.proxy.model import ProxyMode, ProxySettings
from emulator.proxy.modes import load_proxy

TIMEOUT = 600.0  # seconds for one mode
TOPOLOGY = """\
name: services-benchmark
podCIDRs: [10.244.0.0/16]
serviceCIDRs: [10.96.0.0/12]
pods: 0
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes: [{prefix: n, count: 3, switch: s1}]
routers: [{name: tor, switch: s1}]
"""
SETTINGS = ProxySettings(pod_cidrs=("10.244.0.0/16",), service_cidrs=("10.96.0.0/12",))
MODES: tuple[tuple[ProxyMode, Backend], ...] = (("iptables", "legacy"), ("iptables", "nf_tables"), ("nftables", ""))
PLANNED = 3.0  # s: 10,000 Services parsed, planned and rendered
LOADED = {("iptables", "legacy"): 10.0, ("nftables", ""): 40.0}  # s: 10,000 Services, first sync
CHANGED = {100: 0.06, 10_000: 0.7}  # s: one endpoint, by number of Services; nftables
CHANGES = 7
Proxied = ProxyRules | NftRules


def services(quick: bool) -> list[Figure]:
    """Every figure, for 100 and 10,000 Services (quick: 100 and 1,000, without targets for the latter)."""
    return [figure for count in (100, 1_000 if quick else 10_000) for figure in measure(count)]


def measure(count: int) -> list[Figure]:
    """The figures of so many Services, each mode in a sandbox of its own."""
    figures = []
    for mode, backend in MODES:
        told = call_forked(partial(_sandboxed, count, mode, backend), TIMEOUT)
        figures += [Figure(**{**each, "samples": tuple(each["samples"]), "cpu": tuple(each["cpu"])}) for each in told]
    return figures


def manifests(count: int) -> str:
    """So many Services with two endpoints each, on the first two nodes, as JSON."""
    items: list[dict[str, Any]] = []
    for number in range(count):
        name, high, low = f"svc-{number}", number >> 7 & 255, number & 127
        port = {"name": "http", "port": 80, "protocol": "TCP"}
        items.append({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"clusterIP": f"10.97.{high}.{low + 1}", "ports": [{**port, "targetPort": 8080}]},
        })  # fmt: skip
        items.append({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": f"{name}-a", "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
            "ports": [{**port, "port": 8080}],
            "endpoints": [
                {"addresses": [f"10.244.{high}.{2 * low + place}"], "nodeName": f"n{place + 1}"} for place in (0, 1)
            ],
        })  # fmt: skip
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _sandboxed(count: int, mode: ProxyMode, backend: Backend) -> list[dict[str, Any]]:
    return [asdict(figure) for figure in _measure(count, mode, backend)]


def _measure(count: int, mode: ProxyMode, backend: Backend) -> list[Figure]:
    what = f"{count:,} Services, {mode}" + (f" ({backend})" if backend else "")
    topology = parse_topology(TOPOLOGY, "benchmark")
    style, proxy = load_style("flannel"), load_proxy(mode, SETTINGS)
    ipam: Ipam = style.ipam(topology)
    text = manifests(count)
    parsing, planning, rendering, loading = Clock(), Clock(), Clock(), Clock()
    with parsing.lap():
        objects = parse(text).objects
        cluster = assemble(topology, objects, ipam)
    with planning.lap():
        plan = build(cluster, style, proxy=proxy)
    rules = _rules(plan)
    with rendering.lap():
        for item in rules:
            _render(item)
    whole = Figure(
        f"{what}: parsed, planned, rendered", "s", (parsing.wall[0] + planning.wall[0] + rendering.wall[0],),
        PLANNED if count == 10_000 else None,
        cpu=(parsing.cpu[0] + planning.cpu[0] + rendering.cpu[0],),
        note=f"{parsing.wall[0]:.2f} + {planning.wall[0]:.2f} + {rendering.wall[0]:.2f} s",
    )  # fmt: skip

    rulesets = Rulesets(LabNet(), backend)
    places = {item.ns: f"pod/{item.ns.replace('/', '-')}" for item in rules}
    create([(place, ()) for place in places.values()], lambda _: None)

    def here(item: Proxied) -> Proxied:
        return msgspec.structs.replace(item, ns=places[item.ns])

    with loading.lap():
        rulesets.load([here(item) for item in rules], [], lambda _: None)
    planned, changed = Clock(), Clock()
    for change in range(CHANGES):
        later = _one_endpoint_less(cluster, change)
        with changed.lap():
            with planned.lap():
                new = build(later, style, proxy=proxy, previous=(cluster, plan))
                steps = diff(plan, new)
            rulesets.load([], _pairs(steps, here), lambda _: None)
        cluster, plan = later, new
    return [
        whole,
        loading.figure(f"{what}: loaded", LOADED.get((mode, backend)) if count == 10_000 else None),
        changed.figure(
            f"{what}: one endpoint changed", CHANGED.get(count) if mode == "nftables" else None,
            note=f"planned in {1000 * planned.figure('').median:.0f} ms",
        ),
    ]  # fmt: skip


def _rules(plan: Plan) -> list[Proxied]:
    return [item for item in plan if isinstance(item, (ProxyRules, NftRules))]


def _render(item: Proxied) -> int:
    if isinstance(item, ProxyRules):
        return len(full_text(item, {}))
    return sum(len("\n".join(step.lines)) for step in transactions(None, item))


def _one_endpoint_less(cluster: Cluster, number: int) -> Cluster:
    slices: list[EndpointSlice] = list(cluster.slices)
    one = slices[number]
    slices[number] = msgspec.structs.replace(one, endpoints=one.endpoints[:1])
    return msgspec.structs.replace(cluster, slices=tuple(slices))


def _pairs(steps: Sequence[Operation], here: Callable[[Proxied], Proxied]) -> list[tuple[Proxied, Proxied]]:
    return [
        (here(step.old), here(step.new))
        for step in steps
        if isinstance(step.old, (ProxyRules, NftRules)) and isinstance(step.new, (ProxyRules, NftRules))
    ]


if __name__ == "__main__":
    for number in [int(word) for word in sys.argv[1:]] or [100, 10_000]:
        for figure in measure(number):
            print(f"{figure.name:60} {figure.median:8.3f} {figure.unit}  {figure.note}")
