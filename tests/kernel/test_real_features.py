"""What a distribution's kernel has and a small one has not: each feature tried, each style possible without a stand-in
for a part of the kernel. ``./cnilab test --real-kernel`` (docs/real-kernel.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.kernel import capabilities
from emulator.kernel.doctor import doctor_report
from emulator.kernel.features import KERNEL

LANE = Path(__file__).parents[1] / "expected-features" / "real-kernel.txt"

# One that only a distribution's kernel has, so that these tests are left out elsewhere.
pytestmark = [pytest.mark.real_kernel, pytest.mark.requires("netkit")]


def test_every_feature_of_the_kernel_works_when_it_is_tried() -> None:
    found = capabilities.probe([feature.name for feature in KERNEL], try_load=True)

    assert {name: answer.detail for name, answer in found.items() if answer.state != "yes"} == {}


def test_the_lanes_list_names_all_that_this_machine_has_and_nothing_else() -> None:
    lines = LANE.read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]

    found = capabilities.probe(try_load=True)

    # A person may have installed more programs; of the kernel everything is told.
    assert {name for name in listed if found[name].state != "yes"} == set()
    assert {feature.name for feature in KERNEL} <= set(listed)


def test_every_style_runs_and_needs_no_part_of_another_kernel() -> None:
    styles = doctor_report(try_load=True)["styles"]

    assert {style["name"]: style["missing"] or style["error"] for style in styles if not style["runs"]} == {}
    assert {"calico:ipip", "flannel:ipip", "flannel:wireguard", "kube-router"} <= {style["name"] for style in styles}
