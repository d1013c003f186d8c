"""A runtime over machinery that only remembers what it was told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.lab.runtime import Runtime
from emulator.lab.sides import Side
from emulator.plan.model import Plan, Route

TOPOLOGY = """\
name: small
podCIDRs: [10.244.0.0/16]
serviceCIDRs: [10.96.0.0/12]
pods: 1
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor, switch: s1}]
"""


class PaperMachinery:
    """Reaches every plan at once; raises ``refusal``, if there is one, as the kernel would."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.reached: list[tuple[Side, Side, tuple[Route, ...]]] = []
        self.links: list[tuple[str, str, bool]] = []
        self.dead: list[dict[str, Any]] = []

    def reach(self, old: Side, new: Side, routes: Sequence[Route], progress: Callable[[str], None]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.reached.append((old, new, tuple(routes)))

    def set_link(self, peer: str, device: str, *, up: bool) -> None:
        self.links.append((peer, device, up))

    def daemons(self) -> list[dict[str, Any]]:
        return self.dead

    def differences(self, plan: Plan, forgiven: Sequence[Route] = ()) -> list[str]:
        return []


@pytest.fixture
def machinery() -> PaperMachinery:
    return PaperMachinery()


@pytest.fixture
def make_runtime(machinery: PaperMachinery) -> Callable[..., Runtime]:
    def make(style: str, **options: Any) -> Runtime:
        topology = parse_topology(TOPOLOGY, "small.yaml")
        runtime = Runtime(
            topology, load_style(style), machinery,  # type: ignore[arg-type]
            wire_accurate=False, progress=lambda _: None, **options,
        )  # fmt: skip
        runtime.start([])
        return runtime

    return make


@pytest.fixture
def runtime(make_runtime: Callable[[str], Runtime]) -> Runtime:
    return make_runtime("flannel")
