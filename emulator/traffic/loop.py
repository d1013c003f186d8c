"""One epoll instance, the handlers of its descriptors, and timers: what the engine waits with.

Not asyncio: its transports hide the error queue that tells refused from unreachable, and most of what is done here is
one short exchange on a fresh socket, for which its tasks and futures are overhead.
"""

from __future__ import annotations

import heapq
import itertools
import select
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
ERROR = select.EPOLLERR

Handler = Callable[[int], None]


class Timer:
    """A callback that will be called once, unless cancelled before."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the callback; harmless if it ran already."""
        self.callback = None


class Loop:
    """Handlers must bear a call without cause: a descriptor's number may be in use again before an event of its
    former owner, from the same batch, is handled."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: deque[Callable[[], None]] = deque()
        self._running = False

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call ``handler(events)`` whenever ``fd`` is ready (level-triggered). Errors are always reported."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on a watched descriptor."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed. Harmless if it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` at ``when`` on the clock of :func:`time.monotonic`, to a millisecond."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` in so many seconds."""
        return self.at(time.monotonic() + seconds, callback)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after the events that are ready now."""
        self._soon.append(callback)

    def stop(self) -> None:
        """Have :meth:`run` return after the callback that runs now."""
        self._running = False

    def run(self) -> None:
        """Until :meth:`stop`. An exception in a callback is written to standard error and costs that callback only."""
        self._running = True
        while self._running:
            for fd, events in self._epoll.poll(self._wait(), 256):
                handler = self._handlers.get(fd)
                if handler is not None:
                    self._call(handler, events)
            self._run_timers()
            for _ in range(len(self._soon)):
                self._call(self._soon.popleft())

    def _wait(self) -> float:
        if self._soon:
            return 0.0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1.0
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback = timer.callback
            if callback is not None:
                timer.callback = None
                self._call(callback)

    def _call(self, callback: Callable[..., None], *arguments: int) -> None:
        try:
            callback(*arguments)
        except Exception:
            # One connection's trouble must not end the traffic of a thousand pods.
            traceback.print_exc(file=sys.stderr)
