"""Calico's selector language: which nodes, pods or peers a resource means, by their labels.

::

    all()   has(key)   !has(key)   key == 'value'   key != 'value'
    key in {'a', 'b'}   key not in {'a'}   key contains 'x'   key starts with 'x'   key ends with 'x'
    ! A     A && B     A || B     ( A )

``!=`` and ``not in`` also hold where the key is missing. An empty selector selects nothing that it is not told to by
its field's default.

Source: projectcalico/calico libcalico-go/lib/selector (parser.go, tokenizer).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

Labels = Mapping[str, str]
Selector = Callable[[Labels], bool]

LONGEST = 4096  # characters of a selector: more is no selector that anybody wrote
DEEPEST = 40  # brackets and negations within each other

_TOKEN = re.compile(
    r"\s*(?:(?P<op>all\(\)|global\(\)|has\(|&&|\|\||==|!=|!|\(|\)|\{|\}|,)"
    r"|(?P<string>\"[^\"]*\"|'[^']*')"
    r"|(?P<word>not\s+in\b|starts\s+with\b|ends\s+with\b|contains\b|in\b)"
    r"|(?P<label>[A-Za-z0-9_./-]+))"
)
_WORDS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda value, text: text in value,
    "starts with": lambda value, text: value.startswith(text),
    "ends with": lambda value, text: value.endswith(text),
}


@cache
def parse_selector(text: str) -> Selector:
    """The test that ``text`` describes. Raises ValueError with the place that cannot be understood."""
    if len(text) > LONGEST:
        raise ValueError(f"must be no more than {LONGEST} characters")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the tokens of one selector."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(position)
            kind = str(match.lastgroup)
            self._tokens.append((kind, match.group(kind), match.start(kind)))
            position = match.end()
        self._next = 0
        self._depth = 0

    def whole(self) -> Selector:
        found = self._or()
        if self._next < len(self._tokens):
            raise self._error(self._tokens[self._next][2])
        return found

    def _error(self, position: int) -> ValueError:
        return ValueError(f"is no selector: cannot be understood from {self._text[position : position + 30]!r} on")

    def _take(self, kind: str, value: str = "") -> str | None:
        if self._next < len(self._tokens):
            found, text, _ = self._tokens[self._next]
            if found == kind and value in ("", text):
                self._next += 1
                return text
        return None

    def _need(self, kind: str, value: str = "") -> str:
        found = self._take(kind, value)
        if found is None:
            at_end = self._next == len(self._tokens)
            raise self._error(len(self._text) if at_end else self._tokens[self._next][2])
        return found

    def _or(self) -> Selector:
        parts = [self._and()]
        while self._take("op", "||"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else lambda labels: any(part(labels) for part in parts)

    def _and(self) -> Selector:
        parts = [self._operand()]
        while self._take("op", "&&"):
            parts.append(self._operand())
        return parts[0] if len(parts) == 1 else lambda labels: all(part(labels) for part in parts)

    def _operand(self) -> Selector:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ValueError(f"has more than {DEEPEST} brackets and negations within each other")
        found = self._simple()
        self._depth -= 1
        return found

    def _simple(self) -> Selector:
        if self._take("op", "!"):
            inner = self._operand()
            return lambda labels: not inner(labels)
        if self._take("op", "("):
            inner = self._or()
            self._need("op", ")")
            return inner
        if self._take("op", "all()") or self._take("op", "global()"):
            return lambda labels: True
        if self._take("op", "has("):
            key = self._need("label")
            self._need("op", ")")
            return lambda labels: key in labels
        return self._comparison(self._need("label"))

    def _comparison(self, key: str) -> Selector:
        if self._take("op", "=="):
            value = self._string()
            return lambda labels: labels.get(key) == value
        if self._take("op", "!="):
            value = self._string()
            return lambda labels: labels.get(key) != value
        word = " ".join(self._need("word").split())
        if word in _WORDS:
            text, holds = self._string(), _WORDS[word]
            return lambda labels: key in labels and holds(labels[key], text)
        values = self._set()
        if word == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values

    def _string(self) -> str:
        return self._need("string")[1:-1]

    def _set(self) -> frozenset[str | None]:
        self._need("op", "{")
        values = {self._string()}
        while self._take("op", ","):
            values.add(self._string())
        self._need("op", "}")
        return frozenset(values)
