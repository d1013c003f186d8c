"""SIGKILL at random moments to whoever has a part in a lab's life: nothing stays, the list is true, the next works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emulator.kernel import registry
from tests.kernel.chaos import VICTIMS, Strike, rampage

ROOT = str(Path(__file__).parents[2])
WIRING = (
    "ip netns add n1; ip link add v type veth peer w netns n1; ip -n n1 link set w up; sysctl -qw net.ipv4.ip_forward=1"
)

# What `run` does with a lab, `up`, and `down`, without what goes on inside.
RUN = f"""
from emulator.kernel.sandbox import Sandbox
with Sandbox.start(["sh", "-c", {WIRING + "; sleep 0.05"!r}], name="chaos", detached=False) as sandbox:
    sandbox.wait()
"""
UP = f"""
import time
from emulator.kernel import registry
from emulator.kernel.sandbox import Sandbox
directory = registry.reserve("chaos")
sandbox = Sandbox.start(["sh", "-c", {WIRING + "; sleep 300"!r}], name="chaos", detached=True, directory=directory)
registry.publish("chaos", pid=sandbox.pid)
time.sleep(0.05)
sandbox.release()
"""
DOWN = 'from emulator.kernel import registry; registry.kill("chaos")'


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r})\n{code}"]


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(registry.BASE_VARIABLE, str(tmp_path / "labs"))
    return tmp_path / "labs"


def assert_harmless(strikes: list[Strike]) -> None:
    assert [strike for strike in strikes if strike.left] == []
    assert {strike.victim for strike in strikes if strike.hit} == set(VICTIMS), "no strike hit some of the victims"


def test_run_struck_25_times_leaves_the_host_as_it_was() -> None:
    assert_harmless(rampage(python(RUN), times=25, horizon=0.2, seed=1))


def test_up_struck_25_times_leaves_the_host_as_it_was_and_the_list_true(base: Path) -> None:
    assert_harmless(rampage(python(UP), times=25, horizon=0.25, seed=2, undo=python(DOWN)))
    assert registry.labs() == []
    assert list(base.iterdir()) == []
    subprocess.run(python(UP), check=True, timeout=20)
    assert [record.name for record in registry.labs()] == ["chaos"]
    registry.kill("chaos", wait=True)


def test_a_killed_up_leaves_nothing_even_if_nobody_takes_the_lab_down(base: Path) -> None:
    slow = python(UP.replace("time.sleep(0.05)", "time.sleep(5)"))
    strikes = rampage(slow, times=8, horizon=0.3, seed=3, victims=["caller"])
    assert all(strike.hit for strike in strikes)
    assert [strike for strike in strikes if strike.left] == []
    assert max(strike.gone_after for strike in strikes) < 2.0
    assert registry.labs() == []
    assert not base.exists() or os.listdir(base) == []
