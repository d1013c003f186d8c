"""Whole commands, as a user types them: process start, imports, work and output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.figures import Clock, Figure, network_namespaces, settle

ROOT = Path(__file__).parents[1]
CNILAB = Path(sys.executable).with_name("cnilab")
WRAPPER = ROOT / "cnilab"
TIMEOUT = 300.0  # seconds for one command


def run(*argv: str | Path, program: Path = CNILAB) -> str:
    """Run cnilab; its standard output. Raises CalledProcessError with what it said."""
    done = subprocess.run(
        [program, *argv], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
    )
    if done.returncode:
        raise RuntimeError(f"{program.name} {' '.join(map(str, argv))}: exit {done.returncode}: {done.stderr[-600:]}")
    return done.stdout


def help_text(quick: bool) -> list[Figure]:
    """``cnilab --help``."""
    run("--help")
    return [Clock().repeat(5 if quick else 21, lambda: run("--help")).figure("cnilab --help", 120, unit="ms")]


def wrapper(quick: bool) -> list[Figure]:
    """What ``./cnilab`` adds to the command that it becomes: the two in turn, so that both see the same machine."""
    if subprocess.run([WRAPPER, "--version"], capture_output=True, timeout=600, check=False).returncode:
        raise RuntimeError("./cnilab does not run here")
    bare, wrapped = Clock(), Clock()
    for _ in range(5 if quick else 21):
        bare.repeat(1, lambda: run("--version"))
        wrapped.repeat(1, lambda: run("--version", program=WRAPPER))
    added = [1000 * (more - less) for more, less in zip(wrapped.wall, bare.wall, strict=True)]
    cpu = [more - less for more, less in zip(wrapped.cpu, bare.cpu, strict=True)]
    return [Figure("./cnilab adds to a command", "ms", tuple(added), 30, cpu=tuple(cpu))]


def up_and_down(quick: bool) -> list[Figure]:
    """``cnilab up`` until it returns, then ``cnilab down``: 3 nodes, 9 pods, under both styles."""
    figures = []
    down = Clock()
    for style, target, runs in (("flannel", 1.0, 3 if quick else 9), ("calico", 4.0, 1 if quick else 5)):
        up = Clock()
        inside = []
        for _ in range(runs):
            with ended(f"bench-{style}", down):
                with up.lap():
                    run("up", "three-nodes", "--cni", style, "--lab", f"bench-{style}")
                up.cpu[-1] += processor_time(f"bench-{style}")
                inside.append(json.loads(run("status", "--lab", f"bench-{style}", "--json"))["setup_seconds"])
        what = "with every BGP route in the kernel" if style == "calico" else "wired"
        figures += [
            up.figure(f"cnilab up, {style}, 3 nodes, 9 pods", target, note=what),
            Figure(f"of which in the lab process, {style}", "s", tuple(inside)),
        ]
    return [*figures, down.figure("cnilab down, 9 pods", 0.15)]


def demo(quick: bool) -> list[Figure]:
    """``cnilab demo``: two labs, the capture, the table and the report."""
    with TemporaryDirectory() as directory:
        outs = iter(range(100))
        clock = Clock().repeat(1 if quick else 3, lambda: run("demo", "--out", Path(directory, str(next(outs)))))
    return [clock.figure("cnilab demo", 30)]


@contextmanager
def ended(name: str, down: Clock | None = None) -> Iterator[None]:
    """The lab of that name is taken down after the block, and that is timed. It waits until the kernel is done with
    the namespaces, so that the next run starts on a quiet machine."""
    before = network_namespaces()
    try:
        yield
    except BaseException:
        subprocess.run([CNILAB, "down", name], capture_output=True, timeout=TIMEOUT, check=False)
        raise
    with (down or Clock()).lap():
        run("down", name)
    settle(before)


def record(name: str) -> dict[str, Any]:
    """The registry's entry of a running lab."""
    found: dict[str, Any] = next(item for item in json.loads(run("ls", "--json")) if item["name"] == name)
    return found


def processor_time(name: str) -> float:
    """Seconds that all processes of a lab have used so far, ended children included."""
    ticks = sum(sum(map(int, fields[11:15])) for fields in _stats(name))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(name: str) -> float:
    """Memory of all processes of a lab in MB, shared pages in proportion (PSS)."""
    total = 0
    for pid in _processes(name):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def _processes(name: str) -> list[int]:
    namespace = os.stat(f"/proc/{record(name)['pid']}/ns/pid").st_ino
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.stat(entry / "ns/pid").st_ino == namespace:
                found.append(int(entry.name))
        except OSError:
            continue  # it ended, or is another user's
    return found


def _stats(name: str) -> Iterator[list[str]]:
    for pid in _processes(name):
        try:
            yield Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
