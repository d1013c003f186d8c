"""JUnit XML as CI systems read it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from emulator.report.junit import Case, Suite, write_junit


def test_counts_and_messages_are_there(tmp_path: Path) -> None:
    cases = (
        Case("a", "a → b"),
        Case("a", "a → c", "failed", "allowed, specified deny"),
        Case("a", "a → d", "skipped", "no way"),
    )
    path = tmp_path / "junit.xml"
    write_junit([Suite("calico", cases, 1.5, ("a note",))], str(path))
    suite = ElementTree.parse(path).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped"), suite.get("time")) == (
        "3", "1", "1", "1.500",
    )  # fmt: skip
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "allowed, specified deny"
    assert suite.findtext("system-out") == "a note"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    write_junit([Suite("s", (Case('"<&>', "]]>\x00\x1b\ud800", "failed", "\x01"),))], str(path))
    case = ElementTree.parse(path).getroot().find("testsuite/testcase")
    assert case is not None
    assert case.get("classname") == 's."<&>'
    assert case.get("name") == "]]>\\x00\\x1b\\xd800"
