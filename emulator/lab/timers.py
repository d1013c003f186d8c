"""What is to happen in a lab after some seconds: a pod becomes ready, a terminating one ends.

What that means is decided elsewhere; here is one thread that waits. It starts with the first timer, and ends with the
lab's process at the latest. There are never more timers than the lab has pods.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    """Timers by key. ``fire`` is called, on a thread of its own, with the keys whose time has come."""

    def __init__(self, fire: Callable[[list[Key]], None]) -> None:
        self._fire = fire
        self._deadlines: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._number = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def set(self, key: Key, seconds: float) -> None:
        """Fire ``key`` in that many seconds, and not when it was to before."""
        with self._changed:
            deadline = time.monotonic() + seconds
            self._deadlines[key] = deadline
            self._number += 1
            heapq.heappush(self._heap, (deadline, self._number, key))
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="timers", daemon=True)
                self._thread.start()
            self._changed.notify()

    def cancel(self, key: Key) -> None:
        """Do not fire ``key``; nothing happens if that is not going to be."""
        with self._changed:
            self._deadlines.pop(key, None)

    def close(self) -> None:
        """Fire nothing any more."""
        with self._changed:
            self._closed = True
            self._deadlines.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                due: list[Key] = []
                while self._heap and self._heap[0][0] <= now:
                    deadline, _, key = heapq.heappop(self._heap)
                    if self._deadlines.get(key) == deadline:  # else it was cancelled, or set anew
                        del self._deadlines[key]
                        due.append(key)
                if not due:
                    self._changed.wait(self._heap[0][0] - now if self._heap else None)
                    continue
            self._fire(due)
