"""From one changed endpoint to a packet that arrives there, in a running lab of so many Services, in every proxy mode.

``python -m benchmarks service-changes`` runs it with the others; alone, ``python -m benchmarks.service_changes [COUNT
...]``. Three nodes under Flannel, cluster DNS and all. One Service's slice names one pod, then another, in turn: the
clock runs from sending the manifest until a new connection from a third pod has been answered by the pod that is named
now; that one and no other.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.commands import processor_time
from benchmarks.figures import Clock, Figure
from benchmarks.services import CHANGED, MODES, TOPOLOGY, manifests
from benchmarks.use_labs import pod
from emulator import Lab
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import with_proxy
from emulator.kernel.rulesets import BACKEND_VARIABLE, Backend
from emulator.proxy.model import ProxyMode

ADDRESS, PORT, SERVED = "10.98.0.1", 80, 8080
PODS = {"client": "n1", "one": "n1", "two": "n2"}
CHANGES = 11
WARM_UP = 2  # changes before the first that counts: neighbours are unknown, and code is not in the caches
PROBE_TIMEOUT = 5.0  # seconds


def service_changes(quick: bool) -> list[Figure]:
    """Every mode, with 100 and 10,000 Services (quick: 100 and 1,000, without a target for the latter)."""
    return [
        figure
        for count in (100, 1_000 if quick else 10_000)
        for mode, back in MODES
        for figure in measure(count, mode, back)
    ]


def measure(count: int, mode: ProxyMode, backend: Backend) -> list[Figure]:
    """The figures of one lab."""
    what = f"{count:,} Services, {mode}" + (f" ({backend})" if backend else "")
    filling, changing, probing = Clock(), Clock(), Clock()
    topology, pods = parse_topology(TOPOLOGY, "benchmark"), [pod(name, node) for name, node in PODS.items()]
    with _backend(backend), Lab(topology, with_proxy("flannel", mode), pods) as lab:
        addresses = {name: lab.get("pods", name)[0]["status"]["podIP"] for name in PODS}
        with filling.lap():
            lab.apply(*json.loads(manifests(count - 1))["items"], service(), slice_of(addresses["one"]))
        answered(lab, "one")
        used = processor_time(lab.name)
        for turn in range(WARM_UP + CHANGES):
            name = ("two", "one")[turn % 2]
            clock = changing if turn >= WARM_UP else Clock()
            with clock.lap():
                lab.apply(slice_of(addresses[name]))
                began = time.perf_counter()
                answered(lab, name)
            probing.wall.append(time.perf_counter() - began)
        in_lab = (processor_time(lab.name) - used) / (WARM_UP + CHANGES)  # of one change it is too coarse
        changing.cpu = [value + in_lab for value in changing.cpu]
    target = CHANGED.get(count) if mode == "nftables" else None
    note = f"of which the probe {1000 * probing.figure('').median:.0f} ms"
    return [
        filling.figure(f"{what}: applied to a running lab of 3 nodes"),
        changing.figure(f"{what}: one endpoint changed, until its pod has answered", target, note=note),
    ]


def service() -> dict[str, Any]:
    """The Service that is changed: without a selector, its endpoints are what we say."""
    spec = {"clusterIP": ADDRESS, "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": SERVED}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "changing"}, "spec": spec}


def slice_of(address: str) -> dict[str, Any]:
    """Its one endpoint."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "changing-a", "labels": {"kubernetes.io/service-name": "changing"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": SERVED, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address]}],
    }


def answered(lab: Lab, name: str) -> None:
    """Ask the Service once. Raises RuntimeError unless the pod of that name answers."""
    answer = lab.probe("client", ADDRESS, PORT, "tcp", timeout=PROBE_TIMEOUT)
    if answer.result.answered_by != name:
        raise RuntimeError(f"answered by {answer.result.answered_by or answer.result.verdict} instead of {name}")


@contextmanager
def _backend(backend: Backend) -> Iterator[None]:
    """Labs made meanwhile use this iptables back end."""
    before = os.environ.get(BACKEND_VARIABLE)
    os.environ[BACKEND_VARIABLE] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[BACKEND_VARIABLE]
        else:
            os.environ[BACKEND_VARIABLE] = before


if __name__ == "__main__":
    for number in [int(word) for word in sys.argv[1:]] or [100, 10_000]:
        for which, back_end in MODES:
            for figure in measure(number, which, back_end):
                print(f"{figure.name:85} {figure.median:8.3f} {figure.unit}  {figure.note}")
