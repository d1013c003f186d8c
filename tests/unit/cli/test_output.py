"""What commands say while they work."""

from __future__ import annotations

import io
import time

import pytest

from emulator.cli import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.05)
    monkeypatch.setattr(output, "TICK", 0.01)


def test_what_is_done_at_once_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with output.progress("up") as tell:
        tell("wiring")
    assert shown.getvalue() == ""


def test_phase_that_lasts_is_shown_though_it_began_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    with output.progress("up") as tell:
        tell("wiring")
        time.sleep(0.1)
        tell("waiting for routing")
        time.sleep(0.1)
    lines = shown.getvalue().splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["up: wiring", "up: waiting for routing"]


def test_line_on_a_terminal_is_wiped_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    with output.progress("up") as tell:
        tell("wir\x1bing")
        end = time.monotonic() + 10
        while not shown.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    assert "up: wir\\x1bing (" in shown.getvalue()
    assert shown.getvalue().endswith("\r\x1b[K")


def test_progress_that_nobody_can_read_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    with output.progress("up") as tell:
        tell("wiring")
        time.sleep(0.1)


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["NAME", "A"], [["x", "long"], ["longer", ""]])
    assert capsys.readouterr().out == "NAME     A\nx        long\nlonger\n"
