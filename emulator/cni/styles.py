"""Which styles there are, and how one is loaded by its name.

Styles come from the entry points of group ``cnilab.styles``, so that another distribution can add its own. Those
that ship here are known without any metadata: a checkout that was never installed has none, reading it takes
20 ms of each `up`, and no other distribution should stand in for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from emulator.cni.style import ENTRY_POINTS, Style
from emulator.errors import NotFound, UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Loader = Callable[[str], Style]

BUILT_IN = {
    "calico": "emulator.cni.calico:load",
    "flannel": "emulator.cni.flannel:load",
    "kindnet": "emulator.cni.kindnet:load",
}


def style_names() -> list[str]:
    """The names of all styles, in alphabetical order."""
    return sorted({*BUILT_IN, *_registered()})


def load_style(spec: str) -> Style:
    """The style that ``NAME`` or ``NAME:MODE`` means. Raises UserError if there is no such style or mode."""
    name, _, mode = spec.strip().partition(":")
    return _loader(name)(mode)


def _loader(name: str) -> Loader:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found: Loader = getattr(import_module(module), attribute)
        return found
    target = _registered().get(name)
    if target is not None:
        loader: Loader = target.load()
        return loader
    raise NotFound(f"there is no CNI style {name!r}", hint=f"styles: {', '.join(style_names())}")


@cache
def _registered() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def pick_mode(style: str, mode: str, modes: dict[str, str]) -> str:
    """The mode that a user's spelling means: ``modes`` maps each spelling to a mode, the empty one to the default.

    Raises UserError that lists what exists.
    """
    try:
        return modes[mode]
    except KeyError:
        known = ", ".join(f"{style}:{name}" for name in dict.fromkeys(modes.values()))
        raise UserError(f"{style} has no mode {mode!r}", hint=f"modes: {known}") from None
