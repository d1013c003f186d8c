"""SIGKILL to the command, to the lab process and to PID 1, at random moments of ``up``, ``run`` and ``down``: fifty
times in all. The host is as it was, the list is true, and the next ``up`` works."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from emulator.kernel import registry
from emulator.kernel.host_state import changes, snapshot
from tests.kernel.chaos import CALLER, LAB, PID_ONE, VICTIMS, Strike, rampage, strike

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec")

ROOT = str(Path(__file__).parents[2])
CNILAB = [sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r}); from emulator.cli import main; main()"]
UP = [*CNILAB, "up", "single-node", "--lab", "chaos"]
DOWN = [*CNILAB, "down", "chaos"]


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "labs"
    monkeypatch.setenv(registry.BASE_VARIABLE, str(path))
    yield path
    for record in registry.labs():
        registry.kill(record.name, wait=True)


def run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}
    )


def typical(argv: Sequence[str], undo: Sequence[str] = ()) -> float:
    """Seconds that a command takes here and now: moments are random within them."""
    begun = time.monotonic()
    assert run(*argv).returncode == 0
    taken = time.monotonic() - begun
    if undo:
        assert run(*undo).returncode == 0
    return taken


def assert_harmless(strikes: Sequence[Strike], base: Path) -> None:
    assert [struck for struck in strikes if struck.left] == []
    assert {struck.victim for struck in strikes if struck.hit} == set(VICTIMS), "no strike hit some of the victims"
    assert run(*CNILAB, "ls").stdout == "no lab is running; start one: cnilab up\n"
    assert list(base.iterdir()) == []
    assert run(*UP).returncode == 0
    assert [record.name for record in registry.labs()] == ["chaos"]
    assert run(*DOWN, "--wait").returncode == 0
    assert list(base.iterdir()) == []


def test_up_struck_18_times(base: Path) -> None:
    horizon = typical(UP, DOWN)
    # A lab whose caller is gone has to end by itself: looking for it would end it too, as its folder goes then.
    patient = ["sh", "-c", f'sleep {horizon}; exec "$@"', "sh", *DOWN]
    strikes = rampage(UP, times=6, horizon=horizon, seed=4, undo=patient, victims=[CALLER])
    strikes += rampage(UP, times=12, horizon=horizon, seed=1, undo=DOWN, victims=[LAB, PID_ONE])
    assert_harmless(strikes, base)


def test_run_struck_16_times(base: Path, tmp_path: Path) -> None:
    scenario = [*CNILAB, "run", "connectivity/same-node", "--cni", "flannel", "--out", str(tmp_path / "out")]
    assert_harmless(rampage(scenario, times=16, horizon=typical(scenario), seed=2), base)


def test_down_struck_16_times(base: Path) -> None:
    marker = f"CNILAB_CHAOS={uuid.uuid4()}"
    name, _, value = marker.partition("=")
    before = snapshot(marker)
    dice = random.Random(3)
    strikes = []
    for number in range(16):
        up = run(*UP, env={name: value})
        assert up.returncode == 0, up.stderr
        victim = VICTIMS[number % len(VICTIMS)]
        # `down` needs some 50 ms: a strike at once is sure to find each victim alive, a later one finds it anywhere.
        after = 0.0 if number < len(VICTIMS) else dice.uniform(0, 0.1)
        strikes.append(strike(DOWN, victim, after, marker, before, undo=DOWN))
    assert_harmless(strikes, base)


def test_host_is_the_same_while_two_labs_of_equal_addresses_run_and_afterwards(base: Path) -> None:
    before = snapshot(marker := f"CNILAB_CHAOS={uuid.uuid4()}")
    first, second = (run(*CNILAB, "up", "single-node", "--lab", name) for name in ("one", "two"))
    assert (first.returncode, second.returncode) == (0, 0)
    assert changes(before, snapshot(marker)) == []
    for name in ("one", "two"):
        assert run(*CNILAB, "probe", "n1-p1", "n1-p2:80", "--lab", name).returncode == 0
    listed = run(*CNILAB, "ls").stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["one", "two"]
    ambiguous = run(*CNILAB, "probe", "n1-p1", "n1-p2:80")
    assert (ambiguous.returncode, "one, two" in ambiguous.stderr) == (2, True)
    assert run(*CNILAB, "down", "--all", "--wait").returncode == 0
    assert changes(before, snapshot(marker)) == []
    assert list(base.iterdir()) == []
