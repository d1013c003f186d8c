"""What one does with a running lab, through the Python API: from the call to its answer.

::

    three nodes    a matrix of probes between nine pods; a capture under load; the end of a lab
    fifty nodes    a thousand pods wired, one more pod until it answers, the plan fetched, memory, the end
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from msgspec.structs import replace

from benchmarks.build_labs import build_lab, build_mininet
from benchmarks.capture_rate import measure as capture_chain
from benchmarks.commands import ended, processor_time, resident, run
from benchmarks.figures import Clock, Figure, network_namespaces, settle
from emulator import Lab
from emulator.capture.follow import follow
from emulator.cluster.model import Topology
from emulator.cluster.topology import load_topology
from emulator.kernel.sandbox import call_forked
from emulator.lab import ProbeRequest

PORTS = ((80, "TCP"), (8080, "TCP"), (53, "UDP"), (8081, "UDP"))
BIG = "bench-fifty"
DEVICES_PASSED = 12  # by a packet between pods of two nodes under Flannel, the ports of the switch included
TARGET_RATE = 100_000.0  # events a second
MOMENT = 2_000_000_000  # ns in the middle of a capture over which its rate is taken
MORE = 1.03  # times the target is asked for: a sender that is held up for a moment stays above it
TIMEOUT = 400.0  # seconds for one call in a sandbox
MININET_SWITCH = 50  # hosts on one of its switches, as many as the lab has nodes


def pod(name: str, node: str) -> dict[str, Any]:
    """A pod that answers on four ports."""
    ports = [{"containerPort": port, "protocol": protocol} for port, protocol in PORTS]
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "agnhost", "ports": ports}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def without_pods(topology: str) -> Topology:
    """A shipped topology, its own pods left out."""
    found = load_topology(topology)
    return replace(found, machines=tuple(replace(machine, pods=0) for machine in found.machines))


def matrix(quick: bool) -> list[Figure]:
    """Nine pods on three nodes, each to each, itself included, on four ports: 324 probes, all answered."""
    pods = [pod(f"p{number}", f"n{number % 3 + 1}") for number in range(9)]
    names = [item["metadata"]["name"] for item in pods]
    probes = [
        ProbeRequest(source, target, port, "tcp" if protocol == "TCP" else "udp")
        for source in names
        for target in names
        for port, protocol in PORTS
    ]
    stop, first = Clock(), Clock()
    with Lab(without_pods("three-nodes"), "flannel", pods) as lab:
        clock = Clock()
        _all_reached(lab, probes, first)
        runs = 5 if quick else 21
        used = processor_time(lab.name)
        for _ in range(runs):
            _all_reached(lab, probes, clock)
        in_lab = (processor_time(lab.name) - used) / runs  # of one run it is too coarse: ticks of 10 ms
        clock.cpu = [value + in_lab for value in clock.cpu]
        with stop.lap():
            lab.stop()
    return [
        clock.figure("324 probes between 9 pods", 150, unit="ms"),
        first.figure("the same, neighbours still unknown", unit="ms"),
        stop.figure("Lab.stop, until its last process is gone", 0.15),
    ]


def _all_reached(lab: Lab, probes: Sequence[ProbeRequest], clock: Clock) -> None:
    with clock.lap():
        answers = lab.probes(probes)
    missed = [answer for answer in answers if not answer.reached]
    if len(answers) != 324 or missed:
        raise RuntimeError(f"{len(missed)} of {len(answers)} probes were not answered, {missed[:1]}")


def capture(quick: bool) -> list[Figure]:
    """Datagrams between three pods of one node and three of another, and the answers to them, each seen on 12 devices
    of 20, captured by the lab and followed."""
    rate, seconds = MORE * TARGET_RATE, 3.0
    pairs = [(f"n1-p{number}", f"n2-p{number}") for number in (1, 2, 3)]
    events, lost, whole, stray, following = [], [], [], [], Clock()
    with Lab("three-nodes", "flannel", wire_accurate=True) as lab:
        for source, target in pairs:
            lab.probe(source, target, 80, "udp")
        for _ in range(1 if quick else 3):
            with lab.capture() as taken, ExitStack() as running:
                streams = [
                    running.enter_context(
                        lab.stream(ProbeRequest(source, target, 80, "udp"), rate / len(pairs) / 2 / DEVICES_PASSED)
                    )
                    for source, target in pairs
                ]
                time.sleep(seconds)
            found = taken.events()
            middle = found[0].time + (found[-1].time - found[0].time) / 2
            near = sum(abs(event.time - middle) <= MOMENT / 2 for event in found)
            with following.lap():
                followed = follow(found)
            udp = [each for each in followed.journeys if each.hops[0].packet.protocol == "udp"]
            packets = sum(stream.result.sent + stream.result.received for stream in streams)
            events.append(near / MOMENT * 1e9)
            lost.append(float(taken.stats.lost))
            whole.append(100 * sum(len(each.hops) == DEVICES_PASSED for each in udp) / packets)
            stray.append(float(len(followed.uncorrelated)))
    return [
        Figure("events captured in a lab", "events/s", tuple(events), TARGET_RATE, "more"),
        Figure("of which lost", "packets", tuple(lost), 0),
        Figure("packets followed over all their hops", "%", tuple(whole), 100, "more"),
        Figure("sightings that belong to no packet", "packets", tuple(stray), 0),
        following.figure("following the 300,000 sightings of 3 s"),
    ]


def capture_rate(quick: bool) -> list[Figure]:
    """The same of the capture alone: a chain of namespaces with 20 devices, each datagram seen on all."""
    runs = [call_forked(partial(capture_chain, MORE * TARGET_RATE, 3.0, 64), TIMEOUT) for _ in range(1 if quick else 3)]

    def column(name: str, scale: float = 1.0) -> tuple[float, ...]:
        return tuple(scale * float(each[name]) for each in runs)

    return [
        Figure(
            "events captured on a chain of 20 interfaces",
            "events/s",
            column("events_per_second"),
            TARGET_RATE,
            "more",
        ),
        Figure("of which lost", "packets", column("lost"), 0),
        Figure("packets followed over all their hops", "%", column("followed", 100), 100, "more"),
    ]


def fifty_nodes(quick: bool) -> list[Figure]:
    """50 nodes with 20 pods each under Flannel by `cnilab up`, and what is done in that lab."""
    up, down, more, away, plan = Clock(), Clock(), Clock(), Clock(), Clock()
    memory, seconds = [], []
    for _ in range(1 if quick else 3):
        with ended(BIG, down):
            with up.lap():
                run("up", "fifty-nodes", "--cni", "flannel:vxlan", "--lab", BIG)
            up.cpu[-1] += processor_time(BIG)
            status = json.loads(run("status", "--lab", BIG, "--json"))
            seconds.append(status["phases"]["starting"])
            memory.append(resident(BIG))
            lab = Lab.connect(BIG)
            for number in range(5):
                with more.lap():
                    lab.apply(pod(f"extra-{number}", f"n{7 + number}"))
                    answer = lab.probe("n1-p1", f"extra-{number}", 8080)
                if not answer.reached:
                    raise RuntimeError(f"the new pod does not answer: {answer.result}")
            for number in range(5):
                with away.lap():
                    lab.delete("pod", f"extra-{number}")
            plan.repeat(3, lab.plan)
    return [
        up.figure("cnilab up, Flannel, 50 nodes, 1000 pods", 15, note="routes, FDB and neighbours set"),
        Figure("of which before anything is wired", "s", tuple(seconds)),
        more.figure("one pod more in that lab", 50, unit="ms", note="applied, and has answered a request"),
        away.figure("one pod less in that lab", unit="ms"),
        plan.figure("its plan, 18,000 objects, fetched and decoded", unit="ms"),
        Figure("memory of that lab's processes", "MB", tuple(memory), note="proportional set size"),
        down.figure("cnilab down, 1000 pods", 0.15),
    ]


def beside_mininet(quick: bool) -> list[Figure]:
    """The parts of the same lab, wired in a sandbox, and stock Mininet building as many plain hosts: Host and Link, on
    bridges of 50 hosts each. In turn, so that both see the same machine. ``quick`` builds 50 hosts and multiplies."""
    before, builds = network_namespaces(), []
    for _ in range(1 if quick else 3):
        builds.append(call_forked(partial(build_lab, "fifty-nodes", "flannel:vxlan", 0), TIMEOUT))
        settle(before)
    hosts = int(builds[0]["nodes"] + builds[0]["pods"])
    built = 50 if quick else hosts
    stock = call_forked(partial(build_mininet, built, MININET_SWITCH), TIMEOUT) * hosts / built
    settle(before)
    whole = [float(build["whole_s"]) for build in builds]
    pods = Figure(
        "of which the pods", "s", tuple(float(build["pods_s"]) for build in builds), 5,
        cpu=tuple(float(build["pods_cpu_s"]) for build in builds),
    )  # fmt: skip
    how = f"{hosts} Host and Link" if built == hosts else f"{built} Host and Link, times {hosts / built:g}"
    return [
        Figure("the same wired in a sandbox: plan, machines, pods", "s", tuple(whole), 15),
        pods,
        Figure("stock Mininet, as many plain hosts", "s", (stock,), note=how),
        Figure("Mininet's time over ours, more is better", "times", (stock / statistics.median(whole),)),
    ]


def calico_mesh(quick: bool) -> list[Figure]:
    """Fifty nodes with 20 pods each under Calico: 1,225 BGP sessions."""
    clock = Clock()
    before = network_namespaces()
    for _ in range(1 if quick else 3):
        with clock.lap():
            lab = Lab("fifty-nodes", "calico")
            lab.__enter__()
        lab.stop()
        settle(before)
    return [clock.figure("Calico, 50 nodes, 1000 pods, 1,225 BGP sessions", note="every route in the kernel")]
