"""Selectors as kubectl writes them."""

from __future__ import annotations

import pytest

from emulator.errors import UserError
from emulator.lab.selectors import field_matches, label_matches

WEB = {"metadata": {"name": "web-0", "labels": {"app": "web", "tier": "front"}}, "spec": {"nodeName": "n1"}}


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ("", True),
        ("app=web", True),
        ("app==web,tier=front", True),
        ("app=db", False),
        ("app!=db", True),
        ("zone!=a", True),
        ("app in (db, web)", True),
        ("app notin (db,web)", False),
        ("zone notin (a)", True),
        ("tier", True),
        ("!tier", False),
        ("!zone,app in (web,db),tier=front", True),
    ],
)
def test_label_selector(selector: str, fits: bool) -> None:
    assert label_matches(selector, WEB) is fits


@pytest.mark.parametrize("selector", ["app=web=x", "app in web", "a b", "=x"])
def test_label_selector_that_cannot_be_read_is_refused(selector: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        label_matches(selector, WEB)


@pytest.mark.parametrize(
    ("selector", "fits"),
    [("metadata.name=web-0", True), ("spec.nodeName!=n1", False), ("spec.hostNetwork=true", False), ("", True)],
)
def test_field_selector(selector: str, fits: bool) -> None:
    assert field_matches(selector, WEB) is fits
