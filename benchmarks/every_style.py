"""Every style's start, and what a routing protocol takes of it; fifty nodes under those that route by themselves.

The time that a lab waits for its daemons' routes is a phase of its own in ``cnilab status``, so that it can be told
apart from everything that is not the protocol's.
"""

from __future__ import annotations

from benchmarks.figures import Figure, network_namespaces, settle
from emulator import Lab
from emulator.cluster.model import Topology
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import every_mode
from emulator.errors import Unsupported, UserError

REFLECTED = """\
name: fifty-reflected
podCIDRs: [10.244.0.0/16]
pods: 20
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes:
  - {prefix: r, count: 2, switch: s1, annotations: {kube-router.io/rr.server: "42"}}
  - {prefix: n, count: 48, switch: s1, annotations: {kube-router.io/rr.client: "42"}}
routers: [{name: tor, switch: s1}]
"""
THREE = 1.0  # s beyond the protocols' own convergence: three nodes, nine pods
FIFTY = 1.3  # times Flannel's: fifty nodes, a thousand pods, convergence apart
REFLECTORS = 10.0  # s from the daemons' start to the last route: fifty nodes with two route reflectors
ROUTING = "waiting for routing"


def _up(style: str, topology: str | Topology) -> tuple[float, float]:
    """Seconds to wire a lab, and to wait for routes."""
    before = network_namespaces()
    with Lab(topology, style) as lab:
        status = lab.status()
    settle(before)
    waited = status.phases.get(ROUTING, 0.0)
    return status.setup_seconds - waited, waited


def styles(quick: bool) -> list[Figure]:
    """Each mode of each style on three nodes with nine pods. Modes that this kernel cannot carry are left out."""
    figures = []
    for style in every_mode():
        try:
            samples = [_up(style, "three-nodes") for _ in range(2 if quick else 5)]
        except (Unsupported, UserError):
            continue
        longest = max(waited for _, waited in samples)
        converged = f"routes after {longest:.1f} s more" if longest else ""
        figures.append(
            Figure(f"{style}, 3 nodes, 9 pods", "s", tuple(wired for wired, _ in samples), THREE, note=converged)
        )
    return figures


def fifty_by_bgp(quick: bool) -> list[Figure]:
    """50 nodes x 20 pods under kube-router and the AWS VPC CNI, each lab right after one of Flannel, in its time; and
    how long BGP takes to bring every route, in the mesh of all nodes (1,225 sessions) and by two route reflectors."""
    ratios: dict[str, list[float]] = {"kube-router": [], "aws-vpc": []}
    mesh = []
    for _ in range(1 if quick else 3):
        flannel, _none = _up("flannel:vxlan", "fifty-nodes")
        for style, of_flannel in ratios.items():
            wired, waited = _up(style, "fifty-nodes")
            of_flannel.append(wired / flannel)
            if waited:
                mesh.append(waited)
    reflected = [_up("kube-router", parse_topology(REFLECTED, "fifty-reflected"))[1] for _ in mesh]
    return [
        *(
            Figure(f"{style}, 50 nodes, 1000 pods, over Flannel's time", "times", tuple(each), FIFTY, note="BGP apart")
            for style, each in ratios.items()
        ),
        Figure("kube-router, 50 nodes, mesh of BGP, until the last route", "s", tuple(mesh)),
        Figure("kube-router, 50 nodes, two route reflectors, until the last route", "s", tuple(reflected), REFLECTORS),
    ]
