"""Faults in scenario files: what is refused before anything is built, what differs by style. And which styles a
scenario is run under."""

from __future__ import annotations

import pytest

from emulator.errors import ScenarioError
from emulator.scenario.load import parse_scenario
from emulator.scenario.model import Fault, fault_wish, runs_under


def problems(fault: str) -> list[str]:
    text = f"name: a\ntitle: b\nsteps:\n  - fault: {fault}\n"
    try:
        parse_scenario(text, "a.yaml")
    except ScenarioError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("{kind: mtu, target: n1, value: 20}", "steps[0].fault.value: must be a number of bytes"),
        ("{kind: mtu, target: n1, value: {flannel: 1400, calico: x}}", "fault.value: must be a number of bytes"),
        ("{kind: sysctl, target: n1, name: kernel/panic, value: 1}", "fault.name: must be a parameter below net/"),
        ("{kind: filter, target: n1, at: input, protocol: icmp, icmpType: 256}", "icmpType: must be between 0 and 255"),
        ("{kind: filter, target: n1, at: nowhere}", "steps[0].fault.at"),
        ("{kind: route, target: n1, destination: here}", "steps[0].fault.destination: must be a CIDR"),
        ("{kind: link-down, target: n1, mend: true}", "steps[0].fault.mend: link-up mends link-down"),
        ("{kind: flush, target: n1, device: eth0}", "steps[0].fault.device: a fault of the kind flush has no device"),
    ],
)  # fmt: skip
def test_fault_that_cannot_be_is_refused_by_its_field(fault: str, complaint: str) -> None:
    assert len(found := problems(fault)) == 1
    assert complaint in found[0]


def test_fault_that_can_be_is_taken() -> None:
    assert problems("{kind: mac, target: n1, device: {flannel: flannel.1}, value: '02:00:00:00:00:01'}") == []


def test_fault_of_other_styles_is_none() -> None:
    fault = Fault(kind="mtu", target="n1", device={"flannel": "flannel.1"}, value=1400)
    wish = fault_wish(fault, "flannel:host-gw")
    assert wish is not None
    assert wish.device == "flannel.1"
    assert fault_wish(fault, "calico") is None


@pytest.mark.parametrize(
    ("limits", "style", "runs"),
    [
        ([], "weave", True),
        (["flannel"], "flannel:host-gw", True),
        (["flannel:"], "flannel", True),
        (["flannel:"], "flannel+nftables", True),
        (["flannel:"], "flannel:host-gw", False),
        (["flannel:", "calico:vxlan"], "calico:vxlan", True),
        (["flannel:", "calico:vxlan"], "calico", False),
    ],
)
def test_scenario_is_run_under_the_styles_that_it_names(limits: list[str], style: str, runs: bool) -> None:
    assert runs_under(limits, style) is runs
