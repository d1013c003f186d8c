from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.traffic.model import LossWindow
from emulator.traffic.streams import Record, loss_windows


def windows(pattern: str) -> list[LossWindow]:
    """``+`` answered, ``-`` lost, one request every 10 ms."""
    return loss_windows(
        [number / 100 for number in range(len(pattern))], [mark == "+" for mark in pattern], len(pattern) / 100
    )


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", []),
        ("++++", []),
        ("+--+", [LossWindow(1, 2, 0.01, 20.0)]),
        ("--++-+", [LossWindow(0, 1, 0.0, 20.0), LossWindow(4, 4, 0.04, 10.0)]),
        ("++--", [LossWindow(2, 3, 0.02, 20.0)]),  # up to the stream's end
        ("---", [LossWindow(0, 2, 0.0, 30.0)]),
    ],
)
def test_window_lasts_from_the_first_loss_to_the_next_answer(pattern: str, expected: list[LossWindow]) -> None:
    assert windows(pattern) == expected


@given(st.text("+-", max_size=60))
def test_every_lost_request_is_in_exactly_one_window(pattern: str) -> None:
    covered = [number for window in windows(pattern) for number in range(window.first, window.last + 1)]
    assert covered == [number for number, mark in enumerate(pattern) if mark == "-"]


def test_late_and_double_answers_are_told_apart() -> None:
    record = Record()
    for _ in range(3):
        record.sent()
    for number, hostname in ((0, "a"), (2, "b"), (1, "b"), (1, "b"), (9, "c"), (-1, "c")):
        record.received(number, hostname)
    report = record.report("s", 1.0, "", 0)
    assert (report.received, report.out_of_order, report.duplicated, report.lost) == (3, 1, 1, ())
    assert [name for _, name in report.changes] == ["a", "b"]
