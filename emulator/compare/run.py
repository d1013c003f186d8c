"""Reading a run directory back, and saying clearly what is wrong with a broken one.

``meta.json`` and ``results.jsonl`` are read at once, ``hops.jsonl`` and the plans when they are first asked for: a
table of verdicts needs none of the ten thousand hops.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from emulator.compare.records import RUN_SCHEMA, FlowJourney, FlowResult, RunMeta, StyleMeta
from emulator.errors import InputError, NotFound, Problem, UserError
from emulator.plan.model import Plan
from emulator.plan.render import from_json

T = TypeVar("T")
FlowKey = tuple[str, str, str]
"""Scenario, style, flow."""


class Run:
    """One run directory. A class because journeys and plans are read from disk on first use and kept."""

    def __init__(self, directory: Path, meta: RunMeta, results: tuple[FlowResult, ...]) -> None:
        self.directory = directory
        self.meta = meta
        self.results = results
        self._plans: dict[tuple[str, str], Plan] = {}

    @property
    def name(self) -> str:
        """The directory's own name, which is how people tell two runs apart."""
        return self.directory.resolve().name

    @cached_property
    def journeys(self) -> Mapping[FlowKey, tuple[FlowJourney, ...]]:
        """Every followed packet, per scenario, style and flow, in the file's order. Raises InputError."""
        found: dict[FlowKey, list[FlowJourney]] = {}
        for item in _lines(self.directory / "hops.jsonl", FlowJourney):
            if not item.journey.hops:
                raise _broken(
                    self.directory / "hops.jsonl", f"journey {item.journey.id}", "a followed packet has no hops"
                )
            found.setdefault((item.scenario, item.style, item.flow), []).append(item)
        return {key: tuple(items) for key, items in found.items()}

    def style(self, name: str) -> StyleMeta:
        """How the style of that ``--cni`` spelling ran. Raises NotFound."""
        for style in self.meta.styles:
            if style.style == name:
                return style
        known = ", ".join(style.style for style in self.meta.styles)
        raise NotFound(f"run {self.name} has no style {name!r}", hint=f"it has: {known}")

    def plan(self, style: str, scenario: str) -> Plan:
        """The plan of one style, as it was at the end of a scenario. Raises NotFound (no such style, scenario or plan)
        and InputError (a broken file)."""
        if scenario not in {result.scenario for result in self.results} or "/" in scenario or scenario.startswith("."):
            raise NotFound(f"run {self.name} has no scenario {scenario!r}")
        key = style, scenario
        if key not in self._plans:
            path = self.directory / self.style(style).style.replace(":", "-") / scenario / "plan.json"
            try:
                self._plans[key] = from_json(_read(path))
            except NotFound:
                raise
            except UserError as error:
                raise _broken(path, "", error.message) from error
        return self._plans[key]


def load_run(directory: str | Path) -> Run:
    """Read a run directory.

    Raises NotFound if it, ``meta.json``, ``results.jsonl`` or ``hops.jsonl`` is missing, and InputError, with the
    file, line and field, if one is not what it should be.
    """
    root = Path(directory)
    if not root.is_dir():
        raise NotFound(f"there is no run directory {root}", hint="make one with: cnilab run SCENARIO --out DIR")
    meta_path = root / "meta.json"
    meta = _decode(meta_path, _read(meta_path), RunMeta)
    if meta.schema != RUN_SCHEMA:
        raise _broken(meta_path, "", f"is {meta.schema!r}, this version reads {RUN_SCHEMA!r}", field="schema")
    names = [style.style for style in meta.styles]
    for number, name in enumerate(names):
        # A style names a folder of the run; a crafted one must not lead out of it.
        if not name or "/" in name or name.startswith(".") or name in names[:number]:
            raise _broken(
                meta_path, "", f"{name!r} is not a style name, or is there twice", field=f"styles[{number}].style"
            )
    results_path = root / "results.jsonl"
    results = tuple(_lines(results_path, FlowResult))
    for result in results:
        if result.style not in names:
            raise _broken(results_path, f"flow {result.flow}", f"{result.style!r} is not in meta.json", field="style")
    if not (root / "hops.jsonl").is_file():
        raise NotFound(f"run {root} has no hops.jsonl", hint="the run was interrupted, or the file was not copied")
    return Run(root, meta, results)


def _read(path: Path) -> bytes:
    """The file's bytes. Raises NotFound and InputError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"run {path.parent} has no {path.name}", hint="the run was interrupted, or this is not a run directory"
        ) from None
    except OSError as error:
        raise _broken(path, "", f"cannot be read: {error.strerror or error}") from error


def _decode(path: Path, data: bytes, kind: type[T]) -> T:
    """One JSON document as ``kind``. Raises InputError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _broken(path, "", str(error)) from error


def _lines(path: Path, kind: type[T]) -> list[T]:
    """A JSON document a line. Raises NotFound and InputError, which names the line."""
    data = _read(path)
    decoder = msgspec.json.Decoder(kind)
    try:
        return decoder.decode_lines(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        for number, line in enumerate(data.splitlines(), start=1):
            if line.strip():
                try:
                    decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as at_line:
                    raise _broken(path, f"line {number}", str(at_line)) from at_line
        raise _broken(path, "", str(error)) from error


def _broken(path: Path, subject: str, reason: str, *, field: str = "") -> InputError:
    return InputError([Problem(str(path), subject, field, reason)], hint="run the scenario again to make a new one")
