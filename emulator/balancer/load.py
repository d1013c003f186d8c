"""Which load balancer a topology has."""

from __future__ import annotations

from emulator.balancer.model import Balancer
from emulator.cluster.model import Topology
from emulator.cni.style import Style


def load_balancer(topology: Topology, style: Style) -> Balancer | None:
    """What implements type LoadBalancer in ``topology`` beside ``style``; None: nothing does. Raises UserError for a
    topology that the style cannot be in."""
    balancer = style.prepare(topology).load_balancer
    if balancer is None:
        return None
    if balancer.kind == "metallb-l2":
        from emulator.balancer.metallb_l2 import MetalLbL2

        return MetalLbL2(balancer, style)
    if balancer.kind == "metallb-bgp":
        from emulator.balancer.metallb_bgp import MetalLbBgp

        return MetalLbBgp(balancer, style)
    if balancer.kind == "nlb":
        from emulator.balancer.nlb import Nlb

        return Nlb(balancer, style)
    from emulator.balancer.cloud import Cloud

    return Cloud(balancer, style)
