"""YAML as the Kubernetes tools read it, from text that nobody vouches for.

PyYAML's C parser gives the events; values are built from them here rather than by ``CSafeLoader`` since
that one overflows the C stack on a hundred thousand opening brackets, lets a later duplicate key win
silently, and reads ``22:22`` as the number 1342 and ``2024-01-01`` as a date. Scalars resolve as in
``sigs.k8s.io/yaml``: YAML 1.1 booleans and octal numbers, no dates, no sexagesimals; mapping keys become
strings as in JSON. Aliases and merge keys work until their expansion exceeds ``EXPANDED_MAX`` values
("billion laughs").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

DEPTH_MAX = 100  # nested collections; real manifests stay below 20
EXPANDED_MAX = 2_000_000  # values, with every alias counted as what it stands for

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = "tag:yaml.org,2002:"
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_INTEGER = re.compile(r"[-+]?(?:0b[01]+|0o?[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NUMERIC_START = frozenset("0123456789+-.")
_TOO_DEEP = "exceeded maximum nesting depth"  # libyaml's own limit, since 0.2.6 (src/scanner.c); higher than ours
INT64_DIGITS = 20  # characters of the longest 64-bit integer; Go reads longer ones as floating point


class Malformed(Exception):
    """The text is not YAML, or YAML that is refused. ``line`` counts from 1; 0 if it is not known."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True)
class Document:
    """One document of a stream, and the line where it starts."""

    value: Any
    line: int


def documents(text: str) -> Iterator[Document]:
    """The documents of a YAML stream, empty ones left out. Raises Malformed, perhaps after some documents."""
    events = _events(text)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            first = next(events)
            value = _Builder(events).build(first)
            if value is not None:
                yield Document(value, first.start_mark.line + 1)


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if error.problem == _TOO_DEEP:  # found by looking ahead, before any event of the hundred-and-first level
            raise Malformed(f"nested more than {DEPTH_MAX} levels deep", mark.line + 1 if mark else 0) from None
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise Malformed(f"not valid YAML: {reason}", mark.line + 1 if mark else 0) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        raise Malformed(f"not valid YAML: {error.reason}", line) from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise Malformed(f"not valid YAML: {error}") from None


class _Builder:
    """Builds the values of one document. ``anchors`` holds each anchored value with its expanded size."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.events = events
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.size = 0

    def build(self, event: Any, depth: int = 0) -> Any:
        self.size += 1
        before = self.size
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        elif depth >= DEPTH_MAX:
            raise Malformed(f"nested more than {DEPTH_MAX} levels deep", event.start_mark.line + 1)
        elif isinstance(event, yaml.MappingStartEvent):
            _refuse_tag(event, "map")
            value = self._mapping(depth)
        else:
            _refuse_tag(event, "seq")
            value = self._sequence(depth)
        if event.anchor:
            self.anchors[event.anchor] = value, self.size - before + 1
        return value

    def _alias(self, event: Any) -> Any:
        # An anchor is known only once its value is complete, so that a value cannot contain itself
        if event.anchor not in self.anchors:
            raise Malformed(f"alias *{event.anchor} has no complete anchor before it", event.start_mark.line + 1)
        value, size = self.anchors[event.anchor]
        self.size += size
        if self.size > EXPANDED_MAX:
            raise Malformed(f"aliases expand to more than {EXPANDED_MAX:,} values", event.start_mark.line + 1)
        return value

    def _sequence(self, depth: int) -> list[Any]:
        items = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self.build(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            line = event.start_mark.line + 1
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
                merged += _merged(self.build(next(self.events), depth + 1), line)
                continue
            key = _key(self.build(event, depth + 1), line)
            if key in mapping:
                raise Malformed(f'key "{key}" is given twice in one mapping', line)
            mapping[key] = self.build(next(self.events), depth + 1)
        for other in merged:
            for key, value in other.items():
                mapping.setdefault(key, value)
        return mapping


def _merged(value: Any, line: int) -> list[dict[str, Any]]:
    sources = value if isinstance(value, list) else [value]
    if not all(isinstance(source, dict) for source in sources):
        raise Malformed("a merge key << needs a mapping or a list of mappings", line)
    return sources


def _key(value: Any, line: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise Malformed("a key must be a string" if value is not None else "a key is missing", line)


def _refuse_tag(event: Any, allowed: str) -> None:
    if event.tag is not None and event.tag not in ("!", _TAGS + allowed):
        raise Malformed(f"tag {event.tag} is not allowed", event.start_mark.line + 1)


def _scalar(event: Any) -> Any:
    text: str = event.value
    if event.tag is None:
        return _plain(text) if event.implicit[0] else text
    if event.tag in ("!", _TAGS + "str"):
        return text
    value = _plain(text)
    kinds: dict[str, Any] = {"null": type(None), "bool": bool, "int": int, "float": int | float}
    kind = kinds.get(event.tag.removeprefix(_TAGS))
    if kind is None:
        raise Malformed(f"tag {event.tag} is not allowed", event.start_mark.line + 1)
    if not isinstance(value, kind):
        raise Malformed(f"{text!r} is not of type {event.tag.removeprefix(_TAGS)}", event.start_mark.line + 1)
    return value


def _plain(text: str) -> Any:
    """A plain scalar's value by YAML 1.1 as Go reads it."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] not in _NUMERIC_START:
        return text
    if _INTEGER.fullmatch(text) and len(text) <= INT64_DIGITS:
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
            return int(text, 8)
        return int(text, 0)
    if _FLOAT.fullmatch(text) or _INTEGER.fullmatch(text):
        try:
            number = float(text)
        except ValueError:
            return text
        # JSON has no infinity: "1e999" stays what was written
        return number if math.isfinite(number) else text
    return text
