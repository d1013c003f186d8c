"""A measured figure beside its target, and the machine that it was measured on.

Figures are medians of several runs, with the least and the most. On a machine with other work to do, read the ratio
and the processor time rather than the wall time.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Figure:
    """``samples`` and ``target`` are in ``unit``; ``cpu`` are processor seconds of the same runs, where they tell
    something. ``better`` says which side of the target is good; without a target the figure is for information."""

    name: str
    unit: Literal["s", "ms", "MB", "events/s", "queries/s", "%", "times", "packets", "µs"]
    samples: tuple[float, ...]
    target: float | None = None
    better: Literal["less", "more"] = "less"
    cpu: tuple[float, ...] = ()
    note: str = ""

    @property
    def median(self) -> float:
        """What is quoted."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        if self.target is None:
            return None
        return self.median <= self.target if self.better == "less" else self.median >= self.target

    @property
    def ratio(self) -> float | None:
        """The median as a share of the target; None where that says nothing."""
        return self.median / self.target if self.target else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "median": self.median, "met": self.met, "ratio": self.ratio}


def machine() -> dict[str, Any]:
    """What ran, and how busy it was: processor, cores, memory (MB), kernel, load averages, date."""
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            processor = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "user": "root" if os.geteuid() == 0 else "unprivileged",
        "load": [round(value, 2) for value in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


class Clock:
    """Wall and processor seconds of repeated work. Processor time is that of this process, and of the children that it
    has waited for."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time the block."""
        wall, cpu = time.perf_counter(), _processor_time()
        yield
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(_processor_time() - cpu)

    def repeat(self, times: int, work: Callable[[], object]) -> Clock:
        """Time ``work`` so many times."""
        for _ in range(times):
            with self.lap():
                work()
        return self

    def figure(
        self, name: str, target: float | None = None, *, unit: Literal["s", "ms"] = "s", note: str = ""
    ) -> Figure:
        """The wall times, with the processor times beside them."""
        scale = 1000 if unit == "ms" else 1
        samples = tuple(round(scale * value, 5) for value in self.wall)
        return Figure(name, unit, samples, target, cpu=tuple(round(value, 4) for value in self.cpu), note=note)


def _processor_time() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


SETTLING = 20.0  # seconds at most
CLOSE = 100  # network namespaces: as good as none, and other work on the machine has some too


def settle(before: int) -> None:
    """Wait until the kernel has taken down the namespaces of a lab that has ended: it does so in the background, in 3 s
    for a thousand, and holds the lock that the next lab needs. ``before`` is what :func:`network_namespaces` said
    before the lab was made; where that is not told, wait as long as it usually takes."""
    time.sleep(1.0 if before else 5.0)
    end = time.monotonic() + SETTLING
    while before and network_namespaces() > before + CLOSE and time.monotonic() < end:
        time.sleep(0.2)


def network_namespaces() -> int:
    """How many the kernel has, dying ones included; 0 where only root may know."""
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("net_namespace ")), 0)


def number(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(figure: Figure) -> list[str]:
    """A row of the table: figure, target, measured, range, share of the target, processor time, verdict."""
    target = (
        ""
        if figure.target is None
        else f"{'≤' if figure.better == 'less' else '≥'} {number(figure.target)} {figure.unit}"
    )
    spread = f"{number(min(figure.samples))} to {number(max(figure.samples))}" if len(figure.samples) > 1 else ""
    cpu = f"{number(statistics.median(figure.cpu))} s" if figure.cpu else ""
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    verdict = {True: "met", False: "missed", None: ""}[figure.met]
    name = f"{figure.name} ({figure.note})" if figure.note else figure.name
    return [
        name,
        target,
        f"{number(figure.median)} {figure.unit}",
        spread,
        str(len(figure.samples)),
        ratio,
        cpu,
        verdict,
    ]


HEADERS = ("figure", "target", "measured", "least to most", "runs", "of target", "CPU", "")


def as_markdown(figures: Sequence[Figure], on: dict[str, Any]) -> str:
    """The table of README.md."""
    rows = [HEADERS, ("---",) * len(HEADERS), *(cells(figure) for figure in figures)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{describe(on)}\n\n{table}\n"


def as_json(figures: Sequence[Figure], on: dict[str, Any], failures: dict[str, str]) -> str:
    """Everything, samples included."""
    return json.dumps({"machine": on, "figures": [item.as_dict() for item in figures], "failures": failures}, indent=1)


def describe(on: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{on['processor']}, {on['cores']} cores, {on['memory_mb'] // 1024} GB, Linux {on['kernel']}, "
        f"Python {on['python']}, {on['user']}; {on['date']}, load average {' to '.join(map(str, on['load']))}"
    )
