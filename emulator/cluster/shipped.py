"""Where the files live that cnilab ships: topologies, scenarios.

In a checkout they are top-level folders beside the ``emulator`` package; in a wheel they are package data
inside it.
"""

from __future__ import annotations

from pathlib import Path


def shipped_folder(kind: str) -> Path:
    """The folder of ``kind`` (``topologies``, ``scenarios``). It need not exist in a broken installation."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / kind
    # An installed package's parent is site-packages, where a folder of that name would be someone else's
    if checkout.is_dir() and (package.parent / "setup.cfg").is_file():
        return checkout
    return package / kind


def shipped_names(kind: str) -> list[str]:
    """The names of the shipped YAML files of ``kind``, sorted: ``racks``, ``connectivity/cross-node``."""
    folder = shipped_folder(kind)
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def shipped_file(kind: str, name: str) -> Path | None:
    """The shipped file of that name, or None. The name cannot lead out of the folder."""
    return shipped_folder(kind) / f"{name}.yaml" if name in shipped_names(kind) else None
