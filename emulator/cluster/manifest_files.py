"""Kubernetes objects from files, folders and standard input: YAML streams, JSON, ``kind: List``."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from emulator.cluster.strict_yaml import DEPTH_MAX, INT64_DIGITS, Malformed, documents
from emulator.errors import Problem

SUFFIXES = (".yaml", ".yml", ".json")
SIZE_MAX = 64 << 20  # bytes of one file; etcd takes 1.5 MB per object
STDIN = "-"
LIST_DEPTH_MAX = 5  # lists in lists; the API server takes one


@dataclass(frozen=True)
class Given:
    """An object as it was given. ``place`` is its line or its index in a list, for messages when it has no name."""

    value: Any
    source: str
    place: str


def read_manifests(sources: Sequence[str | Path], problems: list[Problem]) -> list[Given]:
    """The objects of all sources in order; what cannot be read goes to ``problems``."""
    given: list[Given] = []
    for source in sources:
        if str(source) == STDIN:
            given += _parse(sys.stdin.buffer.read(SIZE_MAX + 1), "<stdin>", problems)
            continue
        for path in _files(Path(source), problems):
            try:
                with path.open("rb") as file:
                    data = file.read(SIZE_MAX + 1)
            except (OSError, ValueError) as error:
                problems.append(_unreadable(path, error))
                continue
            given += _parse(data, str(path), problems)
    return given


def _files(path: Path, problems: list[Problem]) -> list[Path]:
    """The path itself, or the manifests below a folder, sorted."""
    try:
        if not path.is_dir():
            return [path]
    except ValueError as error:  # a NUL in the name
        problems.append(_unreadable(path, error))
        return []
    # os.walk does not follow links to folders, which may lead in a circle
    found = sorted(
        Path(folder, name) for folder, _, names in os.walk(path) for name in names if name.lower().endswith(SUFFIXES)
    )
    if not found:
        problems.append(Problem(str(path), "", "", f"the folder has no {', '.join(SUFFIXES)} file"))
    return found


def _unreadable(path: Path, error: OSError | ValueError) -> Problem:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return Problem(str(path), "", "", reason)


def _parse(data: bytes, source: str, problems: list[Problem]) -> list[Given]:
    if len(data) > SIZE_MAX:
        problems.append(Problem(source, "", "", f"larger than {SIZE_MAX} bytes"))
        return []
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.append(Problem(source, "", "", f"line {line}: not UTF-8 text"))
        return []
    return parse_manifests(text, source, problems)


def parse_manifests(text: str, source: str, problems: list[Problem]) -> list[Given]:
    """The objects of one text; a syntax error goes to ``problems``, and then none of its objects comes back."""
    try:
        if source.lower().endswith(".json"):
            found = [Given(_json(text), source, "")]
        else:
            found = _plain_json(text, source) or [
                Given(document.value, source, f"line {document.line}") for document in documents(text)
            ]
    except Malformed as error:
        problems.append(Problem(source, "", "", str(error)))
        return []
    return [given for one in found for given in expanded(one, 0)]


def expanded(given: Given, depth: int) -> Iterator[Given]:
    """The items of a ``List`` (or ``PodList``, ...), or the object itself."""
    value = given.value
    kind = value.get("kind") if isinstance(value, dict) else None
    if (
        not isinstance(kind, str)
        or not kind.endswith("List")
        or not isinstance(value.get("items"), list)
        or depth >= LIST_DEPTH_MAX
    ):
        yield given
        return
    for index, item in enumerate(value["items"]):
        yield from expanded(Given(item, given.source, f"{given.place} items[{index}]".strip()), depth + 1)


def _plain_json(text: str, source: str) -> list[Given]:
    """The one object of a YAML text that is plain JSON, as ``kubectl get -o json`` writes it, at a tenth of the time.
    As there, an opening brace decides. Empty if it is none, or anything is wrong with it: the YAML reader says what.

    Characters beyond printable ASCII are left to it, too: JSON allows some that YAML does not.
    """
    start = text.lstrip()
    if not start.startswith("{") or not text.isascii() or "\x7f" in text:
        return []
    try:
        value = _json(text)
    except Malformed:
        return []
    line = text.count("\n", 0, len(text) - len(start)) + 1
    return [Given(value, source, f"line {line}")]


def _json(text: str) -> Any:
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_refuse, parse_int=_integer, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise Malformed(f"not valid JSON: {error.msg}", error.lineno) from None
    except RecursionError:
        raise Malformed("nested too deep") from None
    except ValueError as error:
        raise Malformed(f"not valid JSON: {error}") from None
    if not _shallow(value):
        raise Malformed(f"nested more than {DEPTH_MAX} levels deep")
    return value


def _shallow(value: Any) -> bool:
    """Whether collections nest no deeper than YAML's may."""
    level: list[Any] = [value] if isinstance(value, (dict, list)) else []
    for _ in range(DEPTH_MAX):
        level = [
            child
            for each in level
            for child in (each if type(each) is list else each.values())
            if type(child) is dict or type(child) is list
        ]
    return not level


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= INT64_DIGITS else _float(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Malformed(f"not valid JSON: the number {text[:40]} is too large")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f'key "{twice}" is given twice in one mapping')
    return mapping


def _refuse(constant: str) -> NoReturn:
    raise Malformed(f"not valid JSON: {constant}")
