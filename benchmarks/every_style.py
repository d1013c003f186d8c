"""Every style's start, and what a routing protocol takes of it; fifty nodes under those that route by themselves.

The time that a lab waits for its daemons' routes is a phase of its own in ``cnilab status``, so that it can be told
apart from everything that is not the protocol's.
"""

from __future__ import annotations

from benchmarks.figures import Figure, network_namespaces, settle
from emulator import Lab
from emulator.cni.styles import every_mode
from emulator.errors import DaemonError, Unsupported, UserError

THREE = 1.0  # s beyond the protocols' own convergence: three nodes, nine pods
FIFTY = 1.3  # times Flannel's: fifty nodes, a thousand pods, convergence apart
ROUTING = "waiting for routing"


def _up(style: str, topology: str) -> tuple[float, float]:
    """Seconds to wire a lab, and to wait for routes."""
    before = network_namespaces()
    with Lab(topology, style) as lab:
        status = lab.status()
    settle(before)
    waited = status.phases.get(ROUTING, 0.0)
    return status.setup_seconds - waited, waited


def styles(quick: bool) -> list[Figure]:
    """Each mode of each style on three nodes with nine pods; 50 nodes x 20 pods under kube-router and the AWS VPC CNI
    in Flannel's time. Modes that this kernel cannot carry are left out, and
    a mesh of fifty whose sessions do not come up."""
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
    flannel = [_up("flannel:vxlan", "fifty-nodes")[0] for _ in range(1 if quick else 3)]
    for style in ("kube-router", "aws-vpc"):
        try:
            samples = [_up(style, "fifty-nodes") for _ in flannel]
        except DaemonError:
            continue  # a mesh of fifty needs more neighbours than a kernel keeps by default (README.md)
        ratios = tuple(wired / mine for (wired, _), mine in zip(samples, flannel, strict=True))
        note = f"routes after {max(waited for _, waited in samples):.1f} s more" if samples[0][1] else ""
        figures.append(Figure(f"{style}, 50 nodes, 1000 pods, over Flannel's time", "times", ratios, FIFTY, note=note))
    return figures
