"""Kernel parameters of the lab's namespaces: what the plan wants of them, and what they were before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from errno import ENOENT

from emulator.kernel import namespaces
from emulator.kernel.devices import refused
from emulator.kernel.syscalls import inside
from emulator.plan.model import AnyObject, Sysctl


class Sysctls:
    """Sets parameters, and gives those of namespaces that go on their old values back. ``netns`` says how to enter a
    namespace; ``done`` hears of each object."""

    def __init__(self, netns: Callable[[str], str | int]) -> None:
        self._netns = netns
        self._original: dict[tuple[str, str], str] = {}

    def write(self, ns: str, items: Sequence[Sysctl], done: Callable[[AnyObject], None], *, new: bool) -> None:
        """Set parameters of one namespace; a ``new`` one has no values worth remembering. Raises ApplyError."""
        with inside(self._netns(ns)):
            for item in items:
                try:
                    if not new and (ns, item.name) not in self._original:
                        self._original[ns, item.name] = namespaces.read_sysctl(item.name)
                    namespaces.write_sysctl(item.name, item.value)
                except OSError as error:
                    if error.errno != ENOENT or not namespaces.is_off_anyway(item.name, item.value):
                        raise refused(item, os.strerror(error.errno or 0)) from error
                done(item)

    def restore(self, items: Iterable[Sysctl], done: Callable[[AnyObject], None]) -> None:
        """Give parameters the values that they had before we first wrote them."""
        for item in items:
            value = self._original.pop((item.ns, item.name), None)
            if value is not None:
                with inside(self._netns(item.ns)):
                    namespaces.write_sysctl(item.name, value)
            done(item)

    def forget(self, ns: str) -> None:
        """A namespace is going, with all its parameters."""
        for key in [key for key in self._original if key[0] == ns]:
            del self._original[key]
