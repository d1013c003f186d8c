"""Topologies: which machines there are and how they are cabled, from YAML.

``docs/topology.md`` is the reference of the format. Everything wrong with a file is told at once, and a
topology that comes out of here has only valid names, and every address and route in place.
"""

from __future__ import annotations

from pathlib import Path

from emulator.cluster.decode import near
from emulator.cluster.model import Topology
from emulator.cluster.shipped import shipped_file, shipped_names
from emulator.cluster.topology_file import SIZE_MAX, Faults, read_topology_file
from emulator.cluster.topology_resolve import resolve
from emulator.cluster.topology_rules import check
from emulator.errors import NotFound, TopologyError

__all__ = ["load_topology", "parse_topology", "topology_names"]


def topology_names() -> list[str]:
    """The names of the shipped topologies."""
    return shipped_names("topologies")


def load_topology(source: str | Path) -> Topology:
    """The topology in a file, or the shipped one of that name.

    Raises TopologyError with every fault of the file, NotFound if there is neither.
    """
    path = Path(source)
    if isinstance(source, str) and (shipped := shipped_file("topologies", source)) is not None:
        path = shipped
    elif isinstance(source, str) and "/" not in source and not path.suffix and not _is_file(path):
        names = topology_names()
        hint = f"shipped topologies: {', '.join(names)}; or give the path of a .yaml file"
        raise NotFound(f'there is no topology "{source[:200]}"{near(source, names)}', hint=hint)
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotFound(f"cannot read topology {path}: {reason}") from None
    faults = Faults(str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        faults.add("", "", f"line {line}: not UTF-8 text")
        raise TopologyError(faults.problems) from None
    return parse_topology(text, str(path))


def parse_topology(text: str, source: str) -> Topology:
    """The topology in ``text``; ``source`` names it in messages. Raises TopologyError with every fault."""
    faults = Faults(source)
    file = read_topology_file(text, source, _default_name(source), faults)
    if file is not None:
        check(file, faults)
    topology = resolve(file, faults) if file is not None and not faults.problems else None
    if topology is None:
        raise TopologyError(faults.problems)
    return topology


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:  # a NUL in the name
        return False


def _default_name(source: str) -> str:
    """A file without a ``name`` is called after itself, if that is a name."""
    stem = Path(source).stem.lower().replace("_", "-") if "\0" not in source else ""
    return "".join(c for c in stem if c.isascii() and (c.isalnum() or c == "-")).strip("-")[:63] or "topology"
