"""What pods wait for: to be ready, to have been that for ``minReadySeconds``, to end.

A lab has no kubelet that would probe. A pod becomes ready some seconds after it came, and ends some seconds after it
was told to, as its annotations and its grace period say; here is who watches the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from emulator.cluster.model import Cluster
from emulator.lab.objects import Deletion
from emulator.lab.timers import Timers

READY, AVAILABLE, ENDED = "ready", "available", "ended"  # what pods wait for
RETRY = 1.0  # s until a pod's change is tried again that did not work out

Timer = tuple[str, str]  # what for, and the pod's key


class Due(NamedTuple):
    """The pods (by key) for which the time has come."""

    ready: frozenset[str]
    available: frozenset[str]
    ended: frozenset[str]


class PodClocks:
    """The timers of a lab's pods, and when those that terminate must have ended. ``fire`` is called, on a thread of its
    own, with the timers whose time has come."""

    def __init__(self, fire: Callable[[list[Timer]], None]) -> None:
        self._timers: Timers[Timer] = Timers(fire)
        self.deletions: dict[str, Deletion] = {}  # of the pods that terminate, by key

    def follow(self, old: Cluster | None, now: Cluster, grace: float | None) -> None:
        """Start the clocks of pods that have begun to wait for something, and stop those of pods that are gone.
        ``grace`` (seconds): what pods that begin to terminate are given, None for what their specs say."""
        known = {pod.key: pod for pod in old.pods} if old is not None else {}
        for pod in now.pods:
            before = known.pop(pod.key, None)
            if before is pod:
                continue
            if before is not None and before.incarnation != pod.incarnation:
                self._forget(pod.key)
                before = None
            if pod.terminating:
                if before is None or not before.terminating:
                    seconds = pod.grace if grace is None else min(pod.lifetime.shutdown, grace)
                    limit = pod.lifetime.grace_period if grace is None else int(grace)
                    self.deletions[pod.key] = Deletion(time.time() + limit, limit)
                    self._forget(pod.key, ending=True)
                    self._timers.set((ENDED, pod.key), seconds)
            elif not pod.ready:
                if before is None:
                    self._timers.set((READY, pod.key), pod.lifetime.ready_after)
            elif not pod.available and (before is None or not before.ready):
                self._timers.set((AVAILABLE, pod.key), pod.lifetime.min_ready)
        for key in known:
            self._forget(key)

    def told_ready(self, keys: Iterable[str]) -> None:
        """Somebody else says of these pods from now on whether they are ready."""
        for key in keys:
            self._timers.cancel((READY, key))

    def again(self, due: Iterable[Timer]) -> None:
        """Fire these once more, after a moment."""
        for timer in due:
            self._timers.set(timer, RETRY)

    def close(self) -> None:
        """Fire nothing any more."""
        self._timers.close()

    def _forget(self, key: str, *, ending: bool = False) -> None:
        self._timers.cancel((READY, key))
        self._timers.cancel((AVAILABLE, key))
        if not ending:
            self._timers.cancel((ENDED, key))
            self.deletions.pop(key, None)


def due_of(timers: Sequence[Timer], cluster: Cluster) -> Due | None:
    """What timers that fired mean for the pods of a cluster, which may have changed since; None: nothing any more."""
    pods = {pod.key: pod for pod in cluster.pods}
    due = Due(
        frozenset(key for what, key in timers if what == READY and key in pods),
        frozenset(key for what, key in timers if what == AVAILABLE and key in pods and pods[key].ready),
        frozenset(key for what, key in timers if what == ENDED and key in pods and pods[key].terminating),
    )
    return due if any(due) else None
