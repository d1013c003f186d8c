"""The table of who reaches whom, for people."""

from __future__ import annotations

from typing import Any

from emulator.lab.verdicts import Cell, Matrix, PortWish
from emulator.policy.enforcer import Deviation
from emulator.policy.flow import Judgement
from emulator.report.matrix import difference, sign_of, table_text

TCP, UDP = PortWish("tcp", 80), PortWish("udp", 53)
A, B = "pod/default/a", "pod/default/b"


def cell(source: str = A, target: str = B, port: PortWish = TCP, **more: Any) -> Cell:
    given = {"verdict": "allowed", "specification": "allow", "family": 4, **more}
    return Cell(source=source, target=target, protocol=port.protocol, port=port.port, address="10.0.0.1", **given)


def matrix(*cells: Cell, ports: tuple[PortWish, ...] = (TCP,)) -> Matrix:
    sources, targets = (tuple(dict.fromkeys(getattr(c, end) for c in cells)) for end in ("source", "target"))
    return Matrix(cells=cells, sources=sources, targets=targets, ports=ports, rounds=(), style="calico")


def test_table_has_sources_in_rows_and_only_the_signs_used() -> None:
    denied = cell(B, A, verdict="dropped", specification="deny")
    text = table_text(matrix(cell(A, A), cell(A, B), denied, cell(B, B)))
    assert text.splitlines() == ["80/tcp   a   b", "a       .   .", "b       X   .", "", ". allowed   X dropped"]


def test_ports_with_the_same_cells_share_a_table_and_others_do_not() -> None:
    same = table_text(matrix(cell(), cell(port=UDP), ports=(TCP, UDP)))
    assert same.startswith("80/tcp, 53/udp ")
    other = table_text(matrix(cell(), cell(port=UDP, verdict="refused", specification="deny"), ports=(TCP, UDP)))
    assert "80/tcp " in other
    assert "53/udp " in other


def test_families_that_differ_have_tables_of_their_own() -> None:
    text = table_text(matrix(cell(), cell(family=6, verdict="dropped", specification="deny")))
    assert "80/tcp (IPv4)" in text
    assert "80/tcp (IPv6)" in text
    assert "80/tcp (IPv4 and IPv6)" in table_text(matrix(cell(), cell(family=6)))


def test_wide_tables_number_their_columns() -> None:
    names = [f"pod/default/{'x' * 20}{number}" for number in range(9)]
    text = table_text(matrix(*(cell(one, two) for one in names for two in names)))
    assert max(map(len, text.splitlines())) <= 120
    assert f"1 {'x' * 20}0" in text


def test_marks_tell_wrong_from_known_deviation() -> None:
    known = Deviation("it never does")
    assert sign_of(cell(verdict="dropped")) == "X!"
    assert sign_of(cell(verdict="dropped", deviation=known)) == "X*"
    assert sign_of(cell(deviation=known)) == ".!"  # the deviation did not happen
    assert sign_of(cell(verdict="dropped", specification="either")) == "X"
    assert sign_of(cell(verdict="unreachable")) == "-"
    assert sign_of(cell(specification="deny")) == ".!"


def test_difference_gives_reasons_of_both_sides_and_hides_no_control_characters() -> None:
    judged = Judgement(
        "ingress", False, "isolated", "default/b", "default", isolated_by=("NetworkPolicy default/deny",)
    )
    text = difference(cell(specification="deny", ingress=judged))
    assert text == (
        "allowed, specified deny (ingress of default/b: selected by NetworkPolicy default/deny, and no rule matches)"
    )
    assert "\x1b" not in table_text(matrix(cell("pod/default/\x1b[31m", B)))
