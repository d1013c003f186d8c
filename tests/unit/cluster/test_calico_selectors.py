"""emulator.cluster.calico_selectors: Calico's selector language."""

from __future__ import annotations

import pytest

from emulator.cluster.calico_selectors import DEEPEST, parse_selector

LABELS = {"zone": "rack-1", "route-reflector": "true", "kubernetes.io/hostname": "n1"}


@pytest.mark.parametrize(
    "selector",
    [
        "all()",
        "global()",
        "has(zone)",
        "!has(missing)",
        "zone == 'rack-1'",
        'zone == "rack-1"',
        "zone=='rack-1'&&has(route-reflector)",
        "zone != 'rack-2'",
        "missing != 'x'",
        "zone in {'rack-1', 'rack-2'}",
        "zone not in {'rack-2'}",
        "missing not in {'rack-2'}",
        "zone contains 'ack'",
        "zone starts with 'rack'",
        "zone ends  with '-1'",
        "zone == 'x' || zone == 'rack-1' && has(route-reflector)",
        "!(zone == 'x' || has(missing))",
        "  kubernetes.io/hostname == 'n1'  ",
    ],
)
def test_a_selector_that_holds(selector: str) -> None:
    assert parse_selector(selector)(LABELS)


@pytest.mark.parametrize(
    "selector",
    [
        "!all()",
        "has(missing)",
        "zone == 'rack-2'",
        "missing == ''",
        "zone != 'rack-1'",
        "zone in {'rack-2'}",
        "missing in {'rack-2'}",
        "zone not in {'rack-1'}",
        "missing contains ''",
        "(zone == 'x' || zone == 'rack-1') && has(missing)",
    ],
)
def test_a_selector_that_does_not_hold(selector: str) -> None:
    assert not parse_selector(selector)(LABELS)


@pytest.mark.parametrize(
    "text",
    ["", "zone", "zone = 'x'", "zone == x", "has(", "has()", "all(", "zone in {}", "zone in {'a'", "(all()", "all())"],
)
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no selector: cannot be understood from"):
        parse_selector(text)


def test_brackets_do_not_exhaust_the_stack() -> None:
    with pytest.raises(ValueError, match="within each other"):
        parse_selector("(" * (DEEPEST + 1) + "all()" + ")" * (DEEPEST + 1))
    with pytest.raises(ValueError, match="no more than"):
        parse_selector("!" * 10000 + "all()")
