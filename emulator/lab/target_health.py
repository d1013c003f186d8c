"""What a load balancer's health checker finds, on its way into the lab's state.

The checker reports on its standard output (``emulator.kernel.health_checker``); a thread of its own takes the reports
to the lab, where rules follow from them, so that nothing else waits for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import msgspec


class Findings(msgspec.Struct, frozen=True):
    """All states at once: ``at`` is when, by the machine's monotonic clock (ns), ``targets`` the states by name."""

    at: int
    targets: dict[str, str]


def read_findings(text: str) -> Findings | None:
    """A report; None for what is none."""
    try:
        return msgspec.json.decode(text, type=Findings)
    except msgspec.DecodeError:
        return None


class TargetHealth:
    """Passes reports on. ``hear`` may be called from anywhere and does not wait; ``tell`` may."""

    def __init__(self) -> None:
        self._reports: SimpleQueue[str] = SimpleQueue()

    def hear(self, text: str) -> None:
        """Take a report."""
        self._reports.put(text)

    def start(self, tell: Callable[[Findings], None]) -> None:
        """Begin to pass reports on to ``tell``; ends with the process."""
        threading.Thread(target=self._run, args=(tell,), name="target-health", daemon=True).start()

    def _run(self, tell: Callable[[Findings], None]) -> None:
        while True:
            findings = read_findings(self._reports.get())
            if findings is not None:
                tell(findings)
