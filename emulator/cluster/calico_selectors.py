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
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Generic, Protocol, TypeVar

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
    "==": lambda value, text: value == text,
    "contains": lambda value, text: text in value,
    "starts with": lambda value, text: value.startswith(text),
    "ends with": lambda value, text: value.endswith(text),
}
T = TypeVar("T")


class _Maker(Protocol[T]):
    """What becomes of the parts of a selector."""

    def every(self, word: str) -> T: ...

    def has(self, key: str) -> T: ...

    def compare(self, key: str, word: str, text: str) -> T: ...

    def among(self, key: str, word: str, values: frozenset[str]) -> T: ...

    def negate(self, inner: T) -> T: ...

    def join(self, word: str, parts: Sequence[T]) -> T: ...


@cache
def parse_selector(text: str) -> Selector:
    """The test that ``text`` describes. Raises ValueError with the place that cannot be understood."""
    return _Parser(text, _Tests()).whole()


@cache
def canonical(text: str, prefix: str = "") -> str:
    """``text`` as Calico itself writes a selector that it has parsed, each label's name behind ``prefix``. Raises
    ValueError."""
    return _Parser(text, _Texts(prefix)).whole()


class _Tests:
    """A selector as a function of labels."""

    def every(self, word: str) -> Selector:
        return lambda labels: True

    def has(self, key: str) -> Selector:
        return lambda labels: key in labels

    def compare(self, key: str, word: str, text: str) -> Selector:
        if word == "!=":
            return lambda labels: labels.get(key) != text
        holds = _WORDS[word]
        return lambda labels: key in labels and holds(labels[key], text)

    def among(self, key: str, word: str, values: frozenset[str]) -> Selector:
        if word == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values

    def negate(self, inner: Selector) -> Selector:
        return lambda labels: not inner(labels)

    def join(self, word: str, parts: Sequence[Selector]) -> Selector:
        if word == "||":
            return lambda labels: any(part(labels) for part in parts)
        return lambda labels: all(part(labels) for part in parts)


class _Texts:
    """A selector as text (libcalico-go/lib/selector/parser/ast.go, collectFragments)."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def every(self, word: str) -> str:
        return word

    def has(self, key: str) -> str:
        return f"has({self._prefix}{key})"

    def compare(self, key: str, word: str, text: str) -> str:
        return f"{self._prefix}{key} {word} {_quoted(text)}"

    def among(self, key: str, word: str, values: frozenset[str]) -> str:
        return f"{self._prefix}{key} {word} {{{', '.join(map(_quoted, sorted(values)))}}}"

    def negate(self, inner: str) -> str:
        return f"!{inner}"

    def join(self, word: str, parts: Sequence[str]) -> str:
        return f"({f' {word} '.join(parts)})"


def _quoted(text: str) -> str:
    return f"'{text}'" if '"' in text else f'"{text}"'


class _Parser(Generic[T]):
    """Recursive descent over the tokens of one selector."""

    def __init__(self, text: str, maker: _Maker[T]) -> None:
        if len(text) > LONGEST:
            raise ValueError(f"must be no more than {LONGEST} characters")
        self._make = maker
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

    def whole(self) -> T:
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

    def _or(self) -> T:
        parts = [self._and()]
        while self._take("op", "||"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else self._make.join("||", parts)

    def _and(self) -> T:
        parts = [self._operand()]
        while self._take("op", "&&"):
            parts.append(self._operand())
        return parts[0] if len(parts) == 1 else self._make.join("&&", parts)

    def _operand(self) -> T:
        self._depth += 1
        if self._depth > DEEPEST:
            raise ValueError(f"has more than {DEEPEST} brackets and negations within each other")
        found = self._simple()
        self._depth -= 1
        return found

    def _simple(self) -> T:
        if self._take("op", "!"):
            return self._make.negate(self._operand())
        if self._take("op", "("):
            inner = self._or()
            self._need("op", ")")
            return inner
        for word in ("all()", "global()"):
            if self._take("op", word):
                return self._make.every(word)
        if self._take("op", "has("):
            key = self._need("label")
            self._need("op", ")")
            return self._make.has(key)
        return self._comparison(self._need("label"))

    def _comparison(self, key: str) -> T:
        for sign in ("==", "!="):
            if self._take("op", sign):
                return self._make.compare(key, sign, self._string())
        word = " ".join(self._need("word").split())
        if word in _WORDS:
            return self._make.compare(key, word, self._string())
        return self._make.among(key, word, self._set())

    def _string(self) -> str:
        return self._need("string")[1:-1]

    def _set(self) -> frozenset[str]:
        self._need("op", "{")
        values = {self._string()}
        while self._take("op", ","):
            values.add(self._string())
        self._need("op", "}")
        return frozenset(values)
