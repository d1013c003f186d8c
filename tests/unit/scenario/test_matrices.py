"""Tables that scenarios expect: how they are read, and what is refused."""

from __future__ import annotations

import pytest

from emulator.errors import ScenarioError
from emulator.scenario.load import parse_scenario
from emulator.scenario.matrices import Entry, parse_table, port_wish

TABLE = """
from/to   web  db
client     .    X
web        R    ?
"""


def test_table_is_read_cell_by_cell() -> None:
    cells = [("client", "web", "."), ("client", "db", "X"), ("web", "web", "R"), ("web", "db", "?")]
    assert parse_table(TABLE) == [Entry(*cell) for cell in cells]
    assert parse_table(TABLE.replace("from/to", "")) == parse_table(TABLE)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("web db", "a table is a line of targets"),
        ("web db\nclient . X .", "line 2: 3 signs for 2 targets"),
        ("web\nclient x", "line 2: 'x' is none of"),
        ("web\nclient .\nclient .", "line 3: client stands there twice"),
        ("web web\nclient . .", "line 1: a target stands there twice"),
        ("from/to\nclient", "line 1: no targets"),
    ],
)
def test_bad_table_is_refused_by_line(table: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_table(table)


@pytest.mark.parametrize("text", ["80", "0/tcp", "65536/udp", "80/TCP", "http/tcp", "80/icmp", ""])
def test_bad_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not PORT/PROTOCOL"):
        port_wish(text)


def test_step_is_refused_with_its_field() -> None:
    text = """
name: s
title: t
steps:
  - matrix: {id: m, ports: [80/tcp, x], expect: {table: {calico: "web"}}}
"""
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "s.yaml")
    assert [problem.path for problem in caught.value.problems] == [
        "steps[0].matrix.ports[1]", "steps[0].matrix.expect.table.calico",
    ]  # fmt: skip
