from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from emulator.compare.comparison import Comparison
from emulator.report.json import comparison_as_dict


@pytest.mark.parametrize("name", ["two_styles", "four_styles", "ipv6", "racks", "hostile"])
def test_the_twin_is_json_with_its_schema(compared: Callable[[str], Comparison], name: str) -> None:
    data = json.loads(json.dumps(comparison_as_dict(compared(name))))
    assert data["schema"] == "cnilab.comparison/v1"
    assert all(len(row["values"]) == len(data["columns"]) for flow in data["flows"] for row in flow["rows"])


def test_the_twin_holds_what_the_table_shows(compared: Callable[[str], Comparison]) -> None:
    flow = comparison_as_dict(compared("two_styles"))["flows"][0]
    rows = {row["label"]: row for row in flow["rows"]}
    assert rows["device traversals"]["values"] == ["12", "8"]
    assert rows["device traversals"]["differs"] is True
    assert [column["path"]["traversals"] for column in flow["columns"]] == [12, 8]
    assert len(flow["columns"][0]["request"]["hops"]) == 12


def test_a_style_that_never_ran_says_why(compared: Callable[[str], Comparison]) -> None:
    (flow,) = comparison_as_dict(compared("ipv6"))["flows"]
    assert flow["columns"][2]["missing"].startswith("did not run: the kernel refused")
