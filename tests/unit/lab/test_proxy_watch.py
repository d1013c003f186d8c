"""A service proxy looks after its rules by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from emulator.errors import ApplyError
from emulator.lab.proxy_watch import ProxyWatch

PATIENCE = 10.0  # seconds


class Rules:
    """What is found at each look; the last one lasts."""

    def __init__(self, *found: list[str] | Exception) -> None:
        self.found = list(found)
        self.asked: list[bool] = []
        self.enough = threading.Event()

    def look(self, *, always: bool) -> list[str]:
        self.asked.append(always)
        if len(self.asked) > 3:
            self.enough.set()
        result = self.found.pop(0) if self.found else []
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def started() -> Iterator[list[ProxyWatch]]:
    watches: list[ProxyWatch] = []
    yield watches
    for watch in watches:
        watch.stop()


def test_repairs_and_failures_are_told_and_looking_goes_on(started: list[ProxyWatch]) -> None:
    rules = Rules(["node/n1: written anew"], ApplyError("no"), [])
    watch = ProxyWatch(rules.look, period=0.01)
    started.append(watch)

    watch.start()

    assert rules.enough.wait(PATIENCE)
    first, second = watch.notices
    assert first.endswith(" node/n1: written anew")
    assert second.endswith(" the service proxy's rules could not be written anew: no")
    assert set(rules.asked) == {False}


def test_a_full_sync_comes_by_the_hour_and_is_not_told(started: list[ProxyWatch]) -> None:
    rules = Rules(*(["node/n1: written anew"] for _ in range(4)))
    watch = ProxyWatch(rules.look, period=0.01, full_period=0.0)
    started.append(watch)

    watch.start()

    assert rules.enough.wait(PATIENCE)
    assert all(rules.asked)
    assert watch.notices == ()
