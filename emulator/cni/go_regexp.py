"""Regular expressions as Go's package regexp takes them (RE2): patterns that users give to flanneld and calico-node.

Python's engine backtracks: some patterns take it longer than anybody lives. What could do so (a repetition of something
that holds a repetition or a choice, or many of them in a row) is refused, as is what Go does not know (lookaround, back
references, possessive repetitions). What is left means the same in both.

Source: the documentation of Go's package regexp/syntax.
"""

from __future__ import annotations

import re

LONGEST = 256  # bytes of a pattern: names and addresses of interfaces are short
REPEATS = 6  # one behind another: each may share out the (at most 39) characters among itself and the others
_REPEAT = "*+?{"


def compile_pattern(text: str) -> re.Pattern[str]:
    """The pattern. Raises ValueError, with why not."""
    if len(text) > LONGEST:
        raise ValueError(f"must be no more than {LONGEST} bytes")
    _check(text)
    try:
        return re.compile(text, re.ASCII)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error.msg}") from None


def _check(text: str) -> None:
    groups: list[bool] = []  # of each open group: whether it holds a repetition or a choice
    last: str = ""  # what stands before: an atom, "group", "loose group" (with repetition or choice), or "repeat"
    at, repeats = 0, 0
    while at < len(text):
        sign = text[at]
        if sign == "\\":
            if text[at + 1 : at + 2].isdigit():
                raise ValueError("has a back reference, which Go's regular expressions do not know")
            last, at = "atom", at + 2
        elif sign == "[":
            last, at = "atom", _end_of_class(text, at)
        elif sign == "(":
            if text[at + 1 : at + 2] == "?" and not text.startswith("(?:", at):
                raise ValueError("has a group (?…) other than (?:…), which is not emulated")
            groups.append(False)
            last, at = "", at + (3 if text.startswith("(?:", at) else 1)
        elif sign == ")":
            loose = groups.pop() if groups else False
            if groups and loose:
                groups[-1] = True
            last, at = "loose group" if loose else "group", at + 1
        elif sign == "|":
            if groups:
                groups[-1] = True
            else:
                repeats = 0
            last, at = "", at + 1
        elif sign in _REPEAT and (sign != "{" or re.match(r"\{\d+(,\d*)?\}", text[at:])):
            at = _repetition(text, at, last)
            repeats += 1
            if repeats > REPEATS:
                raise ValueError(f"has more than {REPEATS} repetitions, which is not emulated")
            if groups:
                groups[-1] = True
            last = "repeat"
        else:
            last, at = "atom", at + 1


def _repetition(text: str, at: int, last: str) -> int:
    """The place behind a repetition, with the ``?`` that makes it lazy."""
    if last == "repeat":
        raise ValueError("repeats a repetition, which Go's regular expressions do not know")
    end = text.index("}", at) + 1 if text[at] == "{" else at + 1
    if last == "loose group" and text[at:end] != "?":
        raise ValueError("repeats a group that holds a repetition or a choice, which is not emulated")
    return end + (text[end : end + 1] == "?")


def _end_of_class(text: str, at: int) -> int:
    end = at + 1
    if text[end : end + 1] == "^":
        end += 1
    if text[end : end + 1] == "]":
        end += 1
    while end < len(text) and text[end] != "]":
        end += 2 if text[end] == "\\" else 1
    return end + 1
