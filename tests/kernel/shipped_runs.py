"""Runs of the shipped scenarios, each made once per test session and shared by the tests that look at it.

The ordinary run takes every scenario under Flannel and Calico, and under each other style those that show its path.
``CNILAB_MATRIX=full ./cnilab test tests/kernel/test_scenarios.py`` takes all of them under all, a quarter of
an hour long: after a change to a style, to the capture or to the scenarios, before a release.
"""

from __future__ import annotations

import os
from functools import cache

import pytest
from _pytest.mark.structures import ParameterSet

from emulator.cni.styles import load_style
from emulator.scenario.load import Loaded, find_scenarios, load_scenario, scenario_names
from emulator.scenario.model import runs_under
from emulator.scenario.run import Outcome, run_scenario

STYLES = ("flannel", "flannel:host-gw", "calico", "aws-vpc", "kindnet", "canal", "kube-router")
SCENARIOS = tuple(scenario_names())
ROUTED = "connectivity/racks"  # nodes on several segments: only tunnels reach across
ROUTED_STYLES = ("flannel", "flannel:directrouting", "aws-vpc", "canal")
IPV6 = ("connectivity/dual-stack", "connectivity/ipv6")
IPV4_ONLY = ("aws-vpc", "canal")
FULL_MATRIX = os.environ.get("CNILAB_MATRIX") == "full"
THOROUGH = ("flannel", "calico")
# Services differ by the proxy's mode more than by the CNI; what every style makes of them shows services/types.
SERVICES = {
    "services/types": ("flannel", "aws-vpc", "kube-router"),
    "services/target-health": ("flannel",),
    "services/cloud-load-balancer": ("flannel", "aws-vpc"),
}
POLICED = ("flannel", "calico", "kube-router")  # nobody enforces; drops; refuses
BOTH_MODES = ("flannel", "calico+nftables")
# Further modes of a style, where they take another way or show another address.
FURTHER_MODES = {
    "connectivity/cross-node": ("calico:vxlan", "flannel:udp", "flannel:wireguard-go"),
    "connectivity/external-to-pod": ("flannel:vxlan-nftables",),
    "connectivity/racks": ("calico:vxlan-crosssubnet",),
}
SHOW_THE_PATH = tuple(
    f"connectivity/{name}"
    for name in ("cross-node", "pod-to-external")  # the rest: test_styles_*.py, test_hop_tables.py
)


@cache
def loaded(scenario: str) -> Loaded:
    """One shipped scenario."""
    (path,) = find_scenarios(scenario)
    return load_scenario(path)


@cache
def outcome(scenario: str, style: str) -> Outcome:
    """One shipped scenario under one style, really run."""
    return run_scenario(loaded(scenario), style)


def case(scenario: str, style: str) -> ParameterSet:
    """Both as test parameters, skipped where the kernel or the machine lacks what they require."""
    needed = (*load_style(style).requires, *loaded(scenario).scenario.requires)
    return pytest.param(scenario, style, marks=pytest.mark.requires(*needed))


def styles_of(scenario: str, *, full: bool = FULL_MATRIX) -> tuple[str, ...]:
    """The styles that a scenario is run under."""
    limits = loaded(scenario).scenario.styles
    styles: tuple[str, ...] = ROUTED_STYLES if scenario == ROUTED else STYLES
    if scenario in IPV6:
        styles = tuple(style for style in styles if style not in IPV4_ONLY)
    if not full and scenario.startswith("connectivity/") and scenario not in (*SHOW_THE_PATH, ROUTED):
        styles = tuple(style for style in styles if style in THOROUGH)
    styles += FURTHER_MODES.get(scenario, ())
    named = tuple(style for style in limits if (":" in style or "+" in style) and not style.endswith(":"))
    styles += tuple(style for style in named if style not in styles)
    styles = tuple(style for style in styles if runs_under(limits, style))
    if scenario.startswith("policy/"):
        styles = tuple(style for style in styles if style in POLICED)
    if not full and scenario.startswith("services/"):
        chosen = SERVICES.get(scenario, BOTH_MODES)
        styles = tuple(style for style in styles if style in chosen) or styles
    return styles


CASES = [case(scenario, style) for scenario in SCENARIOS for style in styles_of(scenario)]
