"""Which load balancer a topology has."""

from __future__ import annotations

from emulator.balancer.model import Balancer
from emulator.cluster.model import Topology
from emulator.cni.style import Style


def load_balancer(topology: Topology, style: Style) -> Balancer | None:
    """What implements type LoadBalancer in ``topology`` beside ``style``; None: nothing does."""
    balancer = topology.load_balancer
    if balancer is None:
        return None
    if balancer.kind == "metallb-l2":
        from emulator.balancer.metallb_l2 import MetalLbL2

        return MetalLbL2(balancer, style)
    if balancer.kind == "metallb-bgp":
        from emulator.balancer.metallb_bgp import MetalLbBgp

        return MetalLbBgp(balancer, style)
    from emulator.balancer.cloud import Cloud

    return Cloud(balancer, style)
