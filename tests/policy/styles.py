"""The styles that enforce network policies, for tests that hold for each of them, and a lab for each."""

from __future__ import annotations

import re

from emulator.cluster.model import Topology
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style, style_names
from tests.policy.worlds import TOPOLOGY

OUTSIDE_PORT = 80  # of the host outside
IPV4_ONLY = ("canal",)
# ``NAME:MODE`` or ``NAME+PROXY`` of styles that enforce in another way than by default
MODES: tuple[str, ...] = ("calico+nftables",)


def enforcing() -> list[str]:
    """All styles whose packets obey policies."""
    return [spec for spec in (*style_names(), *MODES) if load_style(spec).enforcer("spec") is not None]


def topology_for(style: str) -> Topology:
    """``TOPOLOGY`` in the address families that the style has, and a host outside that serves :data:`OUTSIDE_PORT`."""
    text = TOPOLOGY.replace("switch: s2}", f"switch: s2, ports: [{OUTSIDE_PORT}]}}")
    if style in IPV4_ONLY:
        text = re.sub(r', "fd[^"]*"', "", text)
    return parse_topology(text, "policies.yaml")
