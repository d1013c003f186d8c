"""What the first packet of a connection costs: to the first, middle, last and any of many Services, in every mode.

``python -m benchmarks.first_packet`` from the root of the checkout repeats the published measurement that made
nftables a mode of kube-proxy; ``docs/reproductions/kube-proxy-first-packet`` says what of, how, and what came out.

Each mode and number of Services has a node of its own, all of them in one sandbox at once::

    client pod 10.245.0.2 ── client │ node, the proxy's rules │ server ── 10.244.0.0/16, every endpoint

One thread holds both ends: it connects to a Service from the client's namespace and accepts in the server's. The kernel
carries a packet over veths within the system call that sends it, so the thread's own CPU time between the two is what
the connection cost, whatever else the machine does. Rounds go over all cells in random order; every connection is new.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.figures import Figure, machine
from benchmarks.first_packet_report import POSITIONS, as_table, plot, summary, verdicts, with_result
from benchmarks.services import manifests
from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import parse
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.errors import Unsupported
from emulator.kernel.applier import Applier
from emulator.kernel.capabilities import require
from emulator.kernel.netns import netns_path
from emulator.kernel.rulesets import Backend
from emulator.kernel.sandbox import call_forked
from emulator.kernel.syscalls import CLONE_NEWNET, inside, setns
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, Namespace, ProxyRules, Route, Sysctl, Veth
from emulator.proxy.model import ProxyMode, ProxySettings
from emulator.proxy.modes import load_proxy

TIMEOUT = 3600.0  # seconds for all of it
COUNTS = (10, 1_000, 10_000)
ROUNDS = 600
WARM_UP = 20  # rounds before the first that counts
SEED = 20250228
SERVED = 8080  # port of every endpoint
CLIENT, GATEWAY, SERVER, INNER = "10.245.0.2", "10.245.0.1", "10.245.1.2", "10.245.1.1"
DIRECT = "no proxy"
HOME = Path("docs/reproductions/kube-proxy-first-packet")
TOPOLOGY = """\
name: first-packet
podCIDRs: [10.244.0.0/15]
serviceCIDRs: [10.96.0.0/12]
pods: 0
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes: [{prefix: n, count: 2, switch: s1}]
routers: [{name: tor, switch: s1}]
"""
SETTINGS = ProxySettings(pod_cidrs=("10.244.0.0/15",), service_cidrs=("10.96.0.0/12",))


class Mode(NamedTuple):
    """A proxy mode, with an iptables back end."""

    name: str
    proxy: ProxyMode
    backend: Backend = ""


MODES = (
    Mode("iptables (legacy)", "iptables", "legacy"),
    Mode("iptables (nf_tables)", "iptables", "nf_tables"),
    Mode("nftables", "nftables"),
    Mode("ipvs", "ipvs"),
)


class Cell(NamedTuple):
    """A column of the result: a node and the Services to ask there, one of them at random each time."""

    mode: str
    services: int
    position: str
    node: str
    addresses: tuple[tuple[str, int], ...]


class Ends(NamedTuple):
    """A node's client namespace, as a descriptor, and its listening socket."""

    client: int
    server: socket.socket


def cluster_of(count: int) -> Cluster:
    """So many Services of two endpoints each, on two nodes."""
    topology = parse_topology(TOPOLOGY, "benchmark")
    return assemble(topology, parse(manifests(count)).objects, load_style("flannel").ipam(topology))


def wired(node: str) -> Iterator[AnyObject]:
    """The node and its two pods, each on a cable of its own."""
    hub, client, server = (f"pod/{part}-{node}" for part in ("node", "client", "server"))
    for ns in (hub, client, server):
        yield Namespace(ns=ns, role="pod", hostname=ns.removeprefix("pod/"))
    yield Sysctl(ns=hub, name="net/ipv4/ip_forward", value="1")
    for ns, far, address, gateway in ((client, "client", CLIENT, GATEWAY), (server, "server", SERVER, INNER)):
        yield Veth(ns=ns, name="eth0", mtu=1500, peer_ns=hub, peer=far)
        yield Address(ns=ns, device="eth0", address=f"{address}/32")
        yield Address(ns=hub, device=far, address=f"{gateway}/32")
        yield Route(ns=hub, destination=f"{address}/32", device=far, scope="link")
        yield Route(ns=ns, destination=f"{gateway}/32", device="eth0", scope="link")
        yield Route(ns=ns, destination="0.0.0.0/0", via=gateway)
    yield Route(ns=hub, destination="10.244.0.0/16", via=SERVER)
    # Without a route to the Services the kernel would say so before any rule is asked.
    yield Route(ns=hub, destination="0.0.0.0/0", via=SERVER)


def serve(node: str) -> Ends:
    """Answer at every endpoint's address in the server's namespace, and take a hold of the client's."""
    with inside(netns_path(f"pod/server-{node}")):
        subprocess.run(["ip", "route", "add", "local", "10.244.0.0/16", "dev", "lo"], check=True)
        server = socket.create_server(("0.0.0.0", SERVED), backlog=16)
    return Ends(os.open(netns_path(f"pod/client-{node}"), os.O_RDONLY | os.O_CLOEXEC), server)


def rules(cluster: Cluster, mode: Mode, node: str) -> list[AnyObject]:
    """What the proxy puts into the node."""
    proxy = load_proxy(mode.proxy, SETTINGS)
    assert proxy is not None
    return [msgspec.structs.replace(item, ns=f"pod/node-{node}") for item in proxy.node(cluster, cluster.nodes[0])]


def in_order(items: Sequence[AnyObject], cluster: Cluster) -> list[str]:
    """The cluster IPs in the order in which the kernel comes by them. Of the modes that look up it is the cluster's."""
    for item in items:
        if isinstance(item, ProxyRules):
            lines = item.tables["nat"]["KUBE-SERVICES"].splitlines()
            return [line.split(" -d ")[1].split("/")[0].split(" ")[0] for line in lines if "cluster IP" in line]
    return [service.cluster_ips[0] for service in cluster.services]


def once(cell: Cell, ends: Ends, home: int, pick: random.Random) -> int:
    """The CPU time (ns) of one connection, from its SYN until it is accepted. Raises OSError if it is not."""
    setns(ends.client, CLONE_NEWNET)
    try:
        sock = socket.socket()
    finally:
        setns(home, CLONE_NEWNET)
    # Closed by a RST: nothing of it is left for the next
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.settimeout(5.0)
    target = pick.choice(cell.addresses)
    clock = time.clock_gettime_ns
    began = clock(time.CLOCK_THREAD_CPUTIME_ID)
    sock.connect(target)
    accepted, peer = ends.server.accept()
    taken = clock(time.CLOCK_THREAD_CPUTIME_ID) - began
    assert peer[0] == CLIENT, f"connected from {peer[0]}: somebody masqueraded"
    sock.close()
    accepted.close()
    return taken


def measure(counts: Sequence[int], modes: Sequence[Mode], rounds: int, seed: int) -> dict[str, Any]:
    """All samples by cell, inside the sandbox; the time (s) that loading took, and how many rules there are."""
    appliers = [Applier(iptables=mode.backend) for mode in modes]
    direct = Applier()
    direct.apply([Operation(verb="add", new=item) for item in wired("direct")])
    ends = {"direct": serve("direct")}
    # As often as the others' nodes come by: how warm the processor's caches are decides, too
    cells = [Cell(DIRECT, 0, "direct", "direct", (("10.244.0.2", SERVED),))] * len(POSITIONS)
    loads = []
    for count in counts:
        cluster = cluster_of(count)
        for number, (mode, applier) in enumerate(zip(modes, appliers, strict=True)):
            node = f"{number}-{count}"
            applier.apply([Operation(verb="add", new=item) for item in wired(node)])
            made = rules(cluster, mode, node)
            began = time.monotonic()
            applier.apply([Operation(verb="add", new=item) for item in made])
            loads.append({"mode": mode.name, "services": count, "seconds": round(time.monotonic() - began, 2)})
            print(f"{mode.name}, {count:,} Services: loaded in {loads[-1]['seconds']} s", file=sys.stderr)
            ends[node] = serve(node)
            addresses = [(each, 80) for each in in_order(made, cluster)]
            assert len(addresses) == count
            places = {"first": addresses[:1], "middle": [addresses[count // 2]], "last": addresses[-1:]}
            for position, found in {**places, "any": addresses}.items():
                cells.append(Cell(mode.name, count, position, node, tuple(found)))
    # One processor: what one system call sends, the same processor receives
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    order, pick = random.Random(seed), random.Random(seed + 1)
    samples: dict[Cell, list[int]] = {cell: [] for cell in cells}  # of the direct one, four times as many
    for turn in range(WARM_UP + rounds):
        order.shuffle(cells)
        for cell in cells:
            taken = once(cell, ends[cell.node], home, pick)
            if turn >= WARM_UP:
                samples[cell].append(taken)
    for applier in (*appliers, direct):
        applier.close()
    return {
        "loads": loads,
        "cells": [
            {"mode": cell.mode, "services": cell.services, "position": cell.position, "samples_ns": taken}
            for cell, taken in samples.items()
        ],
    }


def there(names: Sequence[str]) -> tuple[list[Mode], dict[str, str]]:
    """The modes that this machine can do, and why not the others."""
    found, absent = [], {}
    for mode in MODES:
        if mode.name not in names:
            continue
        proxy = load_proxy(mode.proxy, SETTINGS)
        assert proxy is not None
        try:
            require(proxy.requires)
            found.append(mode)
        except Unsupported as error:
            absent[mode.name] = error.message
    return found, absent


def first_packet(quick: bool) -> list[Figure]:
    """For the table of all benchmarks: a fifth of the rounds (quick: a thirtieth, and no 10,000 Services)."""
    counts, rounds = (COUNTS[:2], ROUNDS // 30) if quick else (COUNTS, ROUNDS // 5)
    modes, _ = there([mode.name for mode in MODES])
    result = call_forked(partial(measure, counts, modes, rounds, SEED), TIMEOUT)
    return [
        Figure(
            "first packet"
            + (f", {cell['mode']}: {cell['position']} of {cell['services']:,}" if cell["services"] else ", no proxy"),
            "µs",
            tuple(each / 1000 for each in cell["samples_ns"]),
            note="" if cell["services"] else "CPU time of connect and accept",
        )
        for cell in result["cells"]
        if cell["services"] in (0, counts[-1])
    ]


def main() -> int:
    """Measure, print the table, and write samples and plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_packet", description=__doc__.partition("\n")[0])
    parser.add_argument("--services", type=int, nargs="+", default=COUNTS, help="how many, 32,000 at most")
    parser.add_argument("--mode", nargs="+", default=[mode.name for mode in MODES], help="some of the modes, by name")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="connections for each cell")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=HOME, help="folder for first-packet.json, .svg and .png")
    parser.add_argument("--from", dest="file", type=Path, help="measure nothing: tables and plots of this JSON file")
    options = parser.parse_args()
    if options.file:
        result = json.loads(options.file.read_text())
    else:
        modes, absent = there(options.mode)
        on = machine()
        call = partial(measure, options.services, modes, options.rounds, options.seed)
        result = {"machine": on, "seed": options.seed, "rounds": options.rounds, "absent": absent}
        result |= call_forked(call, TIMEOUT)
        on["load"] = [on["load"][0], round(os.getloadavg()[0], 2)]
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "first-packet.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
    cells = summary(result)
    told = verdicts(cells)
    text = "\n".join([as_table(result, cells), "", *[f"- {line}." for _, line in told]])
    print(text)
    page = options.out / "README.md"
    if page.exists():
        page.write_text(with_result(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    for path in plot(result, cells, options.out):
        print(f"wrote {path}", file=sys.stderr)
    return 0 if all(holds for holds, _ in told) else 1


if __name__ == "__main__":
    sys.exit(main())
