"""Runs of the shipped scenarios, each made once per test session and shared by the tests that look at it."""

from __future__ import annotations

from functools import cache

from emulator.scenario.load import find_scenarios, load_scenario, scenario_names
from emulator.scenario.run import Outcome, run_scenario

STYLES = ("flannel", "flannel:host-gw", "calico")
SCENARIOS = tuple(scenario_names())


@cache
def outcome(scenario: str, style: str) -> Outcome:
    """One shipped scenario under one style, really run."""
    (path,) = find_scenarios(scenario)
    return run_scenario(load_scenario(path), style)
