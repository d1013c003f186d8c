"""Untyped values into msgspec structs, with every fault told at once.

``msgspec.convert`` is fast and stops at the first fault. When it stops, :func:`faults` walks value and
type together and names each fault by its field path, in the API server's words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from emulator.cluster.validation import shown

T = TypeVar("T")
Fault = tuple[str, str]  # field path, reason


def decode(value: Any, kind: type[T]) -> tuple[T | None, list[Fault]]:
    """``value`` as a ``kind``, or None and all that is wrong with it."""
    try:
        return msgspec.convert(value, kind), []
    except msgspec.ValidationError as error:
        return None, _explained(value, kind, error)


def faults_in(value: Any, kind: type[Any]) -> list[Fault]:
    """All that keeps ``value`` from being a ``kind``."""
    return decode(value, kind)[1]


def _explained(value: Any, kind: type[Any], error: msgspec.ValidationError) -> list[Fault]:
    # msgspec says "... - at `$.spec`"; what the walk cannot explain is told in its words
    return list(faults(value, _type_info(cast("Hashable", kind)))) or [("", str(error))]


def near(name: str, known: list[str] | tuple[str, ...]) -> str:
    """``, did you mean "x"?`` if one of the known names is close, else nothing."""
    close = difflib.get_close_matches(name[:100].lower(), [candidate.lower() for candidate in known], n=1)
    if not close:
        return ""
    return next(f', did you mean "{candidate}"?' for candidate in known if candidate.lower() == close[0])


@cache
def _type_info(kind: Hashable) -> inspect.Type:
    return inspect.type_info(kind)


def faults(value: Any, kind: inspect.Type, path: str = "") -> Iterator[Fault]:
    """Each place in ``value`` that is not of ``kind``. Null stands for an absent field, as in Kubernetes."""
    match kind:
        case inspect.AnyType():
            return
        case inspect.UnionType(types=members):
            yield from _union_faults(value, members, path)
        case inspect.StructType():
            yield from _struct_faults(value, kind, path)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            if not isinstance(value, list):
                yield path, f"expected a list, got {_what(value)}"
                return
            for index, element in enumerate(value):
                yield from faults(element, item, f"{path}[{index}]")
        case inspect.DictType(value_type=item):
            if not isinstance(value, dict):
                yield path, f"expected a mapping, got {_what(value)}"
                return
            for key, element in value.items():
                yield from faults(element, item, f"{path}.{key}" if path else str(key))
        case _:
            yield from _scalar_faults(value, kind, path)


def _union_faults(value: Any, members: tuple[inspect.Type, ...], path: str) -> Iterator[Fault]:
    if value is None and any(isinstance(member, inspect.NoneType) for member in members):
        return
    kinds = [member for member in members if not isinstance(member, inspect.NoneType)]
    found = [list(faults(value, kind, path)) for kind in kinds]
    if not all(found):
        return
    # A string where a string may stand, but of the wrong pattern: that fault says more than the list of types
    close = [some for some in found if not some[0][1].startswith("expected ")]
    if len(kinds) == 1 or close:
        yield from (close or found)[0]
    else:
        yield path, "expected " + " or ".join(_NAMES[type(kind)] for kind in kinds) + f", got {_what(value)}"


def _struct_faults(value: Any, kind: inspect.StructType, path: str) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield path, f"expected a mapping, got {_what(value)}"
        return
    fields = {field.encode_name: field for field in kind.fields}
    for name in value:
        if name not in fields and kind.forbid_unknown_fields:
            full = f"{path}.{name}" if path else str(name)
            yield full, f"unknown field {shown(full)}" + near(str(name), tuple(fields))
    for name, field in fields.items():
        full = f"{path}.{name}" if path else name
        if field.required and value.get(name) is None:
            yield full, "Required value"
        elif name in value:
            yield from faults(value[name], field.type, full)


def _scalar_faults(value: Any, kind: inspect.Type, path: str) -> Iterator[Fault]:
    accepted, name = _SCALARS.get(type(kind), (object, ""))
    if not isinstance(value, accepted) or (isinstance(value, bool) and accepted not in (bool, object)):
        quote = "; put it in quotes" if accepted is str and isinstance(value, bool | int | float) else ""
        yield path, f"expected {name}, got {_what(value)}{quote}"
    elif isinstance(kind, inspect.IntType) and kind.ge is not None and kind.le is not None:
        if not kind.ge <= value <= kind.le:
            yield path, f"Invalid value: {shown(value)}: must be between {kind.ge} and {kind.le}"
    elif isinstance(kind, inspect.StrType) and kind.pattern is not None and not re.search(kind.pattern, value):
        yield path, f"Invalid value: {shown(value)}: must match the regular expression '{kind.pattern}'"


_SCALARS: dict[type[inspect.Type], tuple[Any, str]] = {
    inspect.StrType: (str, "a string"),
    inspect.IntType: (int, "a whole number"),
    inspect.FloatType: (int | float, "a number"),
    inspect.BoolType: (bool, "true or false"),
}
_NAMES: dict[type[inspect.Type], str] = {
    **{kind: name for kind, (_, name) in _SCALARS.items()},
    inspect.StructType: "a mapping",
    inspect.DictType: "a mapping",
    inspect.ListType: "a list",
}


def _what(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool | int | float | str):
        kind = "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        return f"the {kind} {shown(value)}"
    return "a list" if isinstance(value, list) else "a mapping"
