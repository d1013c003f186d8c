"""Which kernel modules are there, and which could be: read from files, loading nothing.

``/proc/modules`` lists what is loaded, ``/lib/modules/<release>/modules.builtin`` what is part of the kernel image and
``modules.dep`` what modprobe could load. A kernel without module support has none of the three; there, trying a
feature can load nothing and is always safe.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

Presence = Literal["there", "loadable", "absent", "unknown"]


def _name(path: str) -> str:
    """``kernel/net/sched/sch_netem.ko.xz`` -> ``sch_netem``; the kernel takes ``-`` and ``_`` for the same."""
    return PurePosixPath(path).name.split(".", 1)[0].replace("-", "_")


def _lines(path: Path) -> list[str] | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None


@dataclass(frozen=True)
class Modules:
    """What the running kernel has. ``None``: the list cannot be read, or does not exist."""

    loaded: frozenset[str] | None
    builtin: frozenset[str] | None
    loadable: frozenset[str] | None

    @classmethod
    def read(cls, proc: Path = Path("/proc/modules"), tree: Path | None = None) -> Modules:
        """Read the lists; ``tree`` is ``/lib/modules/<release>`` by default."""
        tree = Path("/lib/modules") / os.uname().release if tree is None else tree
        loaded, builtin, loadable = _lines(proc), _lines(tree / "modules.builtin"), _lines(tree / "modules.dep")
        return cls(
            None if loaded is None else frozenset(line.split(" ", 1)[0] for line in loaded),
            None if builtin is None else frozenset(_name(line) for line in builtin),
            None if loadable is None else frozenset(_name(line.partition(":")[0]) for line in loadable),
        )

    @property
    def supported(self) -> bool:
        """Whether anything could be loaded at all."""
        return bool(self.loaded) or (self.loaded is not None and self.loadable is not None)

    def presence(self, module: str) -> Presence:
        """``there``: in use or in the image; ``loadable``: using it would load it; ``absent``: this kernel has no such
        module; ``unknown``: the lists are not readable (in a container), so that using it might load it."""
        name = module.replace("-", "_")
        if not self.supported or name in (self.loaded or ()) or name in (self.builtin or ()):
            return "there"
        if self.builtin is None or self.loadable is None:
            return "unknown"
        return "loadable" if name in self.loadable else "absent"
