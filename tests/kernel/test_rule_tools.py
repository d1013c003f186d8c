"""iptables-nft-restore is not waited for to its end; its rules are in force all the same, and it can complain."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.kernel.namespaces import create, release
from emulator.kernel.netns import netns_path
from emulator.kernel.rule_tools import load_rules
from emulator.kernel.syscalls import inside

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("iptables")]

PLACE = "pod/default/place"
RESTORE = ("iptables-nft-restore", "--noflush")


@pytest.fixture(autouse=True)
def place() -> Iterator[None]:
    create([(PLACE, ())], lambda _: None)
    yield
    release(PLACE)


def rules() -> list[str]:
    with inside(netns_path(PLACE)):
        return subprocess.run(("iptables-nft", "-S"), capture_output=True, text=True, check=True).stdout.splitlines()


def loaded(text: str, argv: tuple[str, ...] = RESTORE, **more: float) -> None:
    with inside(netns_path(PLACE)):
        load_rules(argv, text, **more)


def chain(*sources: str) -> str:
    return "".join(["*filter\n:C - [0:0]\n", *(f"-A C -s {one} -j DROP\n" for one in sources), "COMMIT\n"])


def children() -> list[str]:
    found = []
    for task in os.listdir("/proc/self/task"):
        found += Path(f"/proc/self/task/{task}/children").read_text().split()
    return found


def test_rules_are_in_force_at_once_each_time() -> None:
    for turn in range(20):
        loaded(chain(f"10.0.0.{turn}"))
        assert rules()[-1] == f"-A C -s 10.0.0.{turn}/32 -j DROP"


def test_several_transactions_and_more_text_than_a_pipe_holds() -> None:
    many = [f"10.{number // 250}.{number % 250}.1" for number in range(5000)]
    text = chain(*many)
    assert len(text) > 1 << 16
    loaded(text + "*nat\n:N - [0:0]\nCOMMIT\n")
    assert sum(line.startswith("-A C ") for line in rules()) == len(many)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (chain("10.0.0.1").replace("DROP", "NOWHERE"), "line: 4"),
        (chain("10.0.0.1") + "*filter\n-A NONE -j DROP\nCOMMIT\n", "line"),
        (chain("10.0.0.1") + "*filter\n-A C -s nobody.invalid\nCOMMIT\n", "nobody.invalid"),
    ],
)
def test_what_it_will_not_have_is_told_in_its_words(text: str, complaint: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        loaded(text)
    assert complaint in caught.value.stderr
    assert caught.value.returncode


def test_no_process_stays_behind() -> None:
    before = children()
    loaded(chain("10.0.0.1"))
    deadline = time.monotonic() + 5
    while children() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children() == before


def test_a_tool_that_reads_nothing_is_given_up(tmp_path: Path) -> None:
    stuck = tmp_path / "iptables-nft-restore"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    before = children()
    with pytest.raises(subprocess.TimeoutExpired):
        loaded(chain("10.0.0.1"), (str(stuck),), timeout=0.2)
    assert children() == before
