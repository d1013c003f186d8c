"""What a lab takes where the machine lacks something that its style requires, with made-up answers of the machine."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from emulator.cni.styles import load_style
from emulator.errors import Unsupported
from emulator.kernel.capabilities import Feature
from emulator.kernel.stand_ins import fitting


class Machine:
    """One that has everything but ``lacks``."""

    def __init__(self, *lacks: str) -> None:
        self._lacks = lacks

    def __call__(self, names: Collection[str]) -> dict[str, Feature]:
        return {
            name: Feature(name, "no" if name in self._lacks else "yes", "not there" if name in self._lacks else "")
            for name in names
        }


def test_the_real_thing_is_taken_where_it_is() -> None:
    assert fitting(load_style("flannel:wireguard"), Machine()).mode == "wireguard"


def test_the_stand_in_is_taken_where_the_kernel_lacks_the_real_thing() -> None:
    style = fitting(load_style("flannel:wireguard"), Machine("wireguard"))
    assert style.mode == "wireguard-go"
    assert "stand-in" in style.title


def test_where_neither_is_there_one_line_says_what_both_lack() -> None:
    with pytest.raises(Unsupported) as caught:
        fitting(load_style("flannel:wireguard"), Machine("wireguard", "wireguard-go"))
    assert str(caught.value) == (
        "this machine lacks wireguard: not there; and its stand-in cannot be had: wireguard-go: not there"
    )
    assert caught.value.features == ("wireguard", "wireguard-go")


def test_a_style_without_a_stand_in_is_refused() -> None:
    with pytest.raises(Unsupported, match="this machine lacks ipip: not there"):
        fitting(load_style("flannel:ipip"), Machine("ipip"))
