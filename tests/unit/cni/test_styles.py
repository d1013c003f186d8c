"""emulator.cni.styles: how a style is named and found."""

from __future__ import annotations

import pytest

from emulator.cni import styles
from emulator.cni.styles import load_style, style_names
from emulator.errors import UserError


def test_flannel_and_calico_are_there() -> None:
    assert {"flannel", "calico"} <= set(style_names())


def test_they_are_there_without_any_installed_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(styles, "_registered", dict)
    assert style_names() == ["calico", "flannel"]
    assert load_style("flannel:host-gw").mode == "host-gw"


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        ("flannel", "vxlan"),
        ("flannel:vxlan", "vxlan"),
        ("flannel:directrouting", "vxlan-directrouting"),
        ("flannel:host-gw", "host-gw"),
        ("calico", "bgp"),
    ],
)
def test_a_spelling_means_a_mode(spec: str, mode: str) -> None:
    assert load_style(spec).mode == mode


@pytest.mark.parametrize(
    ("spec", "listed"),
    [("weave-net", "calico, flannel"), ("flannel:udp", "flannel:host-gw"), ("calico:x", "calico:bgp")],
)
def test_an_unknown_style_or_mode_lists_what_exists(spec: str, listed: str) -> None:
    with pytest.raises(UserError) as caught:
        load_style(spec)
    assert listed in caught.value.hint
