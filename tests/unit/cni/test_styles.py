"""emulator.cni.styles: how a style is named and found."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from emulator.cni import styles
from emulator.cni.styles import load_style, style_names
from emulator.errors import UserError


def test_the_styles_that_ship_are_there() -> None:
    assert set(styles.BUILT_IN) <= set(style_names())


def test_they_are_there_without_any_installed_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(styles, "_registered", dict)
    assert style_names() == sorted(styles.BUILT_IN)
    assert load_style("flannel:host-gw").mode == "host-gw"


def test_no_other_distribution_stands_in_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(styles, "_registered", lambda: {"calico": EntryPoint("calico", "json:loads", "cnilab.styles")})
    assert load_style("calico").name == "calico"


def test_another_distribution_adds_a_style(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = EntryPoint("ours-only", "emulator.cni.flannel:load", "cnilab.styles")
    monkeypatch.setattr(styles, "_registered", lambda: {"ours-only": theirs})
    assert load_style("ours-only:host-gw").mode == "host-gw"


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        ("flannel", "vxlan"),
        ("flannel:vxlan", "vxlan"),
        ("flannel:directrouting", "vxlan-directrouting"),
        ("flannel:host-gw", "host-gw"),
        ("calico", "bgp"),
        ("aws-vpc", "secondary-ips"),
        ("aws-vpc:prefix", "prefix"),
        ("canal", "vxlan"),
        ("kindnet", "ptp"),
        ("kube-router", "subnet"),
        ("kube-router:full", "full"),
    ],
)
def test_a_spelling_means_a_mode(spec: str, mode: str) -> None:
    assert load_style(spec).mode == mode


@pytest.mark.parametrize(
    ("spec", "listed"),
    [("weave-net", "aws-vpc, calico, "), ("flannel:ipsec", "flannel:host-gw"), ("calico:x", "calico:bgp")],
)
def test_an_unknown_style_or_mode_lists_what_exists(spec: str, listed: str) -> None:
    with pytest.raises(UserError) as caught:
        load_style(spec)
    assert listed in caught.value.hint
