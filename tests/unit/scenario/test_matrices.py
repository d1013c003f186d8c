"""Tables that scenarios expect: how they are read, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.errors import ScenarioError
from emulator.lab.verdicts import Cell
from emulator.lab.verdicts import Matrix as Taken
from emulator.scenario.load import parse_scenario
from emulator.scenario.matrices import Entry, counts, parse_table, port_wish
from emulator.scenario.model import MatrixExpect

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


def taken(*verdicts: Any) -> Taken:
    cells = tuple(Cell("a", "b", "tcp", 80, 4, "10.0.0.1", verdict, "allow") for verdict in verdicts)
    return Taken(cells=cells, sources=(), targets=(), ports=(), rounds=(), style="calico:bgp")


@pytest.mark.parametrize(
    ("expect", "met"),
    [
        (MatrixExpect(TABLE, let_in_at_least=1, let_in_at_most=1), [True, True]),
        (MatrixExpect(TABLE, let_in_at_least=2), [False]),
        (MatrixExpect(TABLE, let_in_at_most={"calico": 0, "default": 9}), [False]),
        (MatrixExpect(TABLE, let_in_at_most={"flannel": 0}), []),
        (MatrixExpect(TABLE), []),
    ],
)
def test_of_the_cells_that_may_be_anything_a_number_is_let_in(expect: MatrixExpect, met: list[bool]) -> None:
    table = "from/to  web  db\nclient  ?  ?\nweb  .  ."
    found = taken("allowed", "dropped", "allowed", "allowed")  # those of `web` do not count

    checks = list(counts(expect, "calico", found, parse_table(table), [port_wish("80/tcp")]))

    assert [check.met for check in checks] == met
    assert all(check.observed == "1 of 2" for check in checks)
