"""Label and field selectors, as ``?labelSelector=`` and ``?fieldSelector=`` write them."""

from __future__ import annotations

import re
from typing import Any

from emulator.errors import UserError

_SET = re.compile(r"(?P<key>[^\s!=()]+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUAL = re.compile(r"(?P<key>[^\s!=()]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s!=()]*)")
_EXISTS = re.compile(r"(?P<no>!?)\s*(?P<key>[^\s!=()]+)")


def label_matches(selector: str, obj: dict[str, Any]) -> bool:
    """Whether the labels of ``obj`` fit: ``a=b,c!=d,e in (f,g),h,!i``. Raises UserError for what cannot be read."""
    labels = obj["metadata"].get("labels") or {}
    return all(_fits(term, labels) for term in _terms(selector))


def field_matches(selector: str, obj: dict[str, Any]) -> bool:
    """Whether fields of ``obj`` have the given values: ``metadata.name=web-0,spec.nodeName!=n1``."""
    for term in _terms(selector):
        match = _EQUAL.fullmatch(term)
        if match is None:
            raise UserError(f"field selector: {term!r} cannot be read", hint="write it as spec.nodeName=n1")
        value: Any = obj
        for part in match["key"].split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        if (str(value) == match["value"]) == (match["op"] == "!="):
            return False
    return True


def _terms(selector: str) -> list[str]:
    """Split at the commas that stand outside parentheses."""
    return [term.strip() for term in re.split(r",(?![^()]*\))", selector) if term.strip()]


def _fits(term: str, labels: dict[str, str]) -> bool:
    if match := _SET.fullmatch(term):
        values = {value.strip() for value in match["values"].split(",")}
        return (labels.get(match["key"]) in values) == (match["op"] == "in")
    if match := _EQUAL.fullmatch(term):
        return (labels.get(match["key"]) == match["value"]) == (match["op"] != "!=")
    if match := _EXISTS.fullmatch(term):
        return (match["key"] in labels) != bool(match["no"])
    raise UserError(f"label selector: {term!r} cannot be read", hint="write it as app=web,tier!=db,zone in (a,b)")
