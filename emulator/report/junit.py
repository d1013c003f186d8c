"""Checks as JUnit XML, which CI systems show: a suite for each style, a case for each request.

The format is that of Ant's JUnit task as Jenkins reads it (junit-10.xsd of the xUnit plugin): ``testsuites``,
``testsuite`` with counts, ``testcase`` with ``failure``, ``skipped`` or ``system-out``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import msgspec

# What XML 1.0 cannot hold, escaped or not (section 2.2)
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Case(msgspec.Struct, frozen=True):
    """One check. ``message`` says what was wrong, why it was skipped, or what else is worth knowing."""

    group: str
    name: str
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    message: str = ""
    seconds: float = 0.0


class Suite(msgspec.Struct, frozen=True):
    """The checks of one style. ``notes`` are lines about all of them."""

    name: str
    cases: tuple[Case, ...]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def write_junit(suites: Sequence[Suite], path: str) -> None:
    """Write the file. Raises OSError."""
    root = ElementTree.Element("testsuites")
    for suite in suites:
        failed = sum(case.outcome == "failed" for case in suite.cases)
        skipped = sum(case.outcome == "skipped" for case in suite.cases)
        element = ElementTree.SubElement(
            root,
            "testsuite",
            name=_writable(suite.name),
            tests=str(len(suite.cases)),
            failures=str(failed),
            errors="0",
            skipped=str(skipped),
            time=f"{suite.seconds:.3f}",
        )
        for case in suite.cases:
            _case(element, suite, case)
        if suite.notes:
            ElementTree.SubElement(element, "system-out").text = _writable("\n".join(suite.notes))
    ElementTree.indent(root)
    Path(path).write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _case(parent: ElementTree.Element, suite: Suite, case: Case) -> None:
    element = ElementTree.SubElement(
        parent,
        "testcase",
        classname=_writable(f"{suite.name}.{case.group}"),
        name=_writable(case.name),
        time=f"{case.seconds:.3f}",
    )
    message = _writable(case.message)
    if case.outcome == "failed":
        ElementTree.SubElement(element, "failure", message=message).text = message
    elif case.outcome == "skipped":
        ElementTree.SubElement(element, "skipped", message=message)
    elif message:
        ElementTree.SubElement(element, "system-out").text = message


def _writable(text: str) -> str:
    return _UNWRITABLE.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
