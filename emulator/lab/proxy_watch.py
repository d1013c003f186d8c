"""What a service proxy does by itself now and then: it looks whether its rules are still there.

kube-proxy looks for its canary chains every thirty seconds (``iptables.syncPeriod``) and writes everything anew where
one is gone; once an hour it does so anyhow.

Source: kubernetes/kubernetes pkg/util/iptables/monitor.go, pkg/proxy/iptables/proxier.go, pkg/proxy/util.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from emulator.errors import CnilabError

SYNC_PERIOD = 30.0  # seconds
FULL_SYNC_PERIOD = 3600.0  # seconds
REMEMBERED = 20  # repairs that the lab's state tells of


class Look(Protocol):
    """Looks after the rules, and writes them anew where they are gone or ``always``: a line for each repair."""

    def __call__(self, *, always: bool) -> list[str]: ...


class ProxyWatch:
    """Calls ``look`` in a thread of its own. ``notices`` are the latest repairs, with the time of day."""

    def __init__(self, look: Look, period: float = SYNC_PERIOD, full_period: float = FULL_SYNC_PERIOD) -> None:
        self._look = look
        self._period = period
        self._full_period = full_period
        self._told: deque[str] = deque(maxlen=REMEMBERED)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy-watch", daemon=True)

    @property
    def notices(self) -> tuple[str, ...]:
        """What was repaired, oldest first."""
        return tuple(self._told)

    def start(self) -> None:
        """Begin to look, the first time after a period."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        full = time.monotonic() + self._full_period
        while not self._stop.wait(self._period):
            always = time.monotonic() >= full
            if always:
                full += self._full_period
            try:
                done = self._look(always=always)
            except (CnilabError, OSError) as error:
                self._tell(f"the service proxy's rules could not be written anew: {error}")
                continue
            if not always:  # the hourly one finds nothing wrong
                for line in done:
                    self._tell(line)

    def _tell(self, line: str) -> None:
        self._told.append(f"{time.strftime('%H:%M:%S')} {line}")
