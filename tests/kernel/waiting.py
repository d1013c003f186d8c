"""Waiting for what comes by itself in a running lab."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 20.0  # seconds for what takes one or two


def eventually(wanted: Callable[[], T], patience: float = PATIENCE, *, pause: float = 0.05) -> T:
    """What ``wanted`` returns, as soon as that is true; asked every ``pause`` seconds, for ``patience`` at most."""
    deadline = time.monotonic() + patience
    while not (found := wanted()):
        assert time.monotonic() < deadline, f"it never came to that in {patience:g} s: {found!r}"
        time.sleep(pause)
    return found
