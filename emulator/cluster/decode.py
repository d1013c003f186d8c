"""Untyped values into msgspec structs, with every fault told at once.

``msgspec.convert`` is fast and stops at the first fault. When it stops, :func:`faults` walks value and
type together and names each fault by its field path, in the API server's words.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeVar

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
        found = list(faults(value, _type_info(kind)))
        return None, found or [("", str(error))]


def near(name: str, known: list[str] | tuple[str, ...]) -> str:
    """``, did you mean "x"?`` if one of the known names is close, else nothing."""
    close = difflib.get_close_matches(name[:100].lower(), [candidate.lower() for candidate in known], n=1)
    if not close:
        return ""
    return next(f', did you mean "{candidate}"?' for candidate in known if candidate.lower() == close[0])


@lru_cache(maxsize=None)
def _type_info(kind: Any) -> inspect.Type:
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
    candidates = [list(faults(value, member, path)) for member in members if not isinstance(member, inspect.NoneType)]
    if (value is None and len(candidates) < len(members)) or not all(candidates):
        return
    if len(candidates) == 1:
        yield from candidates[0]
    else:
        names = " or ".join(
            _NAMES.get(type(member), "another type") for member in members if not isinstance(member, inspect.NoneType)
        )
        yield path, f"expected {names}, got {_what(value)}"


def _struct_faults(value: Any, kind: inspect.StructType, path: str) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield path, f"expected a mapping, got {_what(value)}"
        return
    fields = {field.encode_name: field for field in kind.fields}
    for name in value:
        if name not in fields and kind.forbid_unknown_fields:
            full = f"{path}.{name}" if path else str(name)
            yield full, f'unknown field "{full}"' + near(str(name), tuple(fields))
    for name, field in fields.items():
        full = f"{path}.{name}" if path else name
        if name in value:
            yield from faults(value[name], field.type, full)
        elif field.required:
            yield full, "Required value"


def _scalar_faults(value: Any, kind: inspect.Type, path: str) -> Iterator[Fault]:
    accepted, name = _SCALARS.get(type(kind), (object, ""))
    if isinstance(value, accepted) and (accepted is bool or accepted is object or not isinstance(value, bool)):
        return
    quote = "; put it in quotes" if accepted is str and isinstance(value, bool | int | float) else ""
    yield path, f"expected {name}, got {_what(value)}{quote}"


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
