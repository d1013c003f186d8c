"""Kill things at random moments, and see whether the host is as it was.

A *strike* starts a command, waits, kills one process of it with SIGKILL and lets the rest end; a :func:`rampage`
does so many times. The command and all that it starts are known by a marker in their environment. Reusable for any
command: ``cnilab up`` with ``undo=["cnilab", "down", ...]``, ``cnilab run``, ``cnilab down``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emulator.kernel.host_state import State, changes, snapshot

PATIENCE = 15.0  # seconds within which everything must be gone: a failure takes that long, a success milliseconds
CALLER, LAB, PID_ONE = VICTIMS = ("caller", "lab process", "PID 1")


@dataclass(frozen=True)
class Strike:
    """What one kill did: ``after`` and ``gone_after`` in seconds, from the start and from the kill; ``hit`` is false
    if the victim did not live at that moment; ``left`` says what differs from before."""

    victim: str
    after: float
    hit: bool
    gone_after: float
    left: tuple[str, ...]


def rampage(
    argv: Sequence[str],
    *,
    times: int,
    horizon: float,
    seed: int,
    victims: Sequence[str] = VICTIMS,
    undo: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> list[Strike]:
    """Strike ``times`` times, each at a random moment within ``horizon`` seconds from the start of ``argv``.

    Every other strike is *aimed*: it waits for the victim to live, whenever that may be on a busy machine, and then
    up to a quarter of the horizon.

    ``undo`` is run after each strike (it may fail: there may be nothing to undo).
    """
    dice = random.Random(seed)
    marker = f"CNILAB_CHAOS={uuid.uuid4()}"
    before = snapshot(marker)
    strikes = []
    for number in range(times):
        aimed = bool(number % 2)
        after = dice.uniform(0, horizon / 4 if aimed else horizon)
        victim = victims[number // 2 % len(victims)]
        strikes.append(strike(argv, victim, after, marker, before, aimed=aimed, undo=undo, env=env))
    return strikes


def strike(
    argv: Sequence[str],
    victim: str,
    after: float,
    marker: str,
    before: State,
    *,
    aimed: bool = False,
    undo: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Strike:
    """Start ``argv``, kill ``victim`` ``after`` seconds later, end the rest, and compare the host with ``before``.

    An ``aimed`` strike counts these seconds from the victim's birth.
    """
    name, _, value = marker.partition("=")
    environment = {**os.environ, **(env or {}), name: value}
    caller = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while aimed and not _find(victim, caller.pid, marker) and caller.poll() is None:
        time.sleep(0.002)
    time.sleep(after)
    pid = _find(victim, caller.pid, marker)
    if pid:
        os.kill(pid, signal.SIGKILL)
    struck = time.monotonic()
    try:
        caller.wait(PATIENCE)
    finally:
        caller.kill()
        caller.wait()
    if undo:
        subprocess.run(
            undo, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False
        )
    while len(marked(marker)) and time.monotonic() < struck + PATIENCE:
        time.sleep(0.002)
    gone_after = time.monotonic() - struck
    return Strike(victim, after, pid != 0, gone_after, tuple(changes(before, snapshot(marker))))


def marked(marker: str) -> dict[int, str]:
    """The processes, by pid, that carry the marker, and their command lines."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if marker.encode() not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                found[int(entry)] = file.read().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def _find(victim: str, caller: int, marker: str) -> int:
    """The victim's pid, or 0 if it does not live (yet, or any more)."""
    if victim == CALLER:
        return caller
    for pid in marked(marker):
        try:
            inner, parent = _ids(pid)
            if victim == PID_ONE and inner == [1]:
                return pid
            if victim == LAB and len(inner) == 1 and inner != [1] and _ids(parent)[0] == [1]:
                return pid
        except OSError:
            continue
    return 0


def _ids(pid: int) -> tuple[list[int], int]:
    """A process' pids in the pid namespaces below ours, outermost first, and its parent."""
    fields = {}
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            key, _, value = line.partition(":")
            fields[key] = value.split()
    return [int(number) for number in fields["NSpid"][1:]], int(fields["PPid"][0])
