"""Which styles there are, and how one is loaded by its name.

Styles come from the entry points of group ``cnilab.styles``, so that another distribution can add its own. Those
that ship here are known without any metadata: a checkout that was never installed has none, reading it takes
20 ms of each `up`, and no other distribution should stand in for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from emulator.cni.style import ENTRY_POINTS, Style
from emulator.errors import NotFound, UserError
from emulator.proxy.model import PROXY_MODES, ProxyMode

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Loader = Callable[[str], Style]

BUILT_IN = {
    "aws-vpc": "emulator.cni.aws_vpc:load",
    "calico": "emulator.cni.calico:load",
    "canal": "emulator.cni.canal:load",
    "flannel": "emulator.cni.flannel:load",
    "kindnet": "emulator.cni.kindnet:load",
    "kube-router": "emulator.cni.kube_router:load",
}


# Those that are of no use without a file of the user's, spelt NAME=FILE.
WITH_FILE = "conflist"


def style_names() -> list[str]:
    """The names of all styles that need no file, in alphabetical order."""
    return sorted({*BUILT_IN, *_registered()})


def load_style(spec: str) -> Style:
    """The style that ``NAME``, ``NAME:MODE`` or ``conflist=FILE`` means, beside the proxy that is named behind it
    (:func:`with_proxy`). Raises UserError if there is no such style or mode, InputError for a file that is wrong."""
    spec, proxy = split_proxy(spec)
    style = _without_proxy(spec)
    return style.beside(proxy) if proxy is not None else style


def _without_proxy(spec: str) -> Style:
    if (file := _file_of(spec)) is not None:
        return _imported("emulator.cni.conflist:load")(file)
    name, _, mode = spec.strip().partition(":")
    return _loader(name)(mode)


def split_proxy(spec: str) -> tuple[str, ProxyMode | None]:
    """``flannel:host-gw+nftables`` apart: the style, and the mode of the service proxy beside it if one is named.

    Raises UserError for a mode that does not exist.
    """
    style, plus, mode = spec.strip().rpartition("+")
    if not plus or (mode not in PROXY_MODES and _file_of(spec) is not None):  # a file's name may hold a plus sign
        return spec, None
    return style, proxy_mode(mode)


def proxy_mode(text: str) -> ProxyMode:
    """The mode of the service proxy that is spelt so. Raises UserError."""
    for known in PROXY_MODES:
        if text == known:
            return known
    raise UserError(f"there is no service proxy {text!r}", hint=f"proxies: {', '.join(PROXY_MODES)}")


def with_proxy(spec: str, mode: str) -> str:
    """``spec`` with that service proxy, unless it names one already. Raises UserError as :func:`split_proxy`."""
    return f"{spec}+{proxy_mode(mode)}" if mode and split_proxy(spec)[1] is None else spec


def style_key(spec: str) -> str:
    """What a style is called in records and folders: ``NAME:MODE`` where a file was given, else as it was spelt."""
    style, mode = split_proxy(spec)
    if (file := _file_of(style)) is not None:
        from emulator.cni.conflist import mode_of

        return with_proxy(f"{WITH_FILE}:{mode_of(file)}", mode or "")
    return spec


def settle(spec: str, plugins: Sequence[str] = ()) -> str:
    """The spelling that means the same wherever it is read: file and folders of ``plugins`` by absolute paths."""
    style, mode = split_proxy(spec)
    if (file := _file_of(style)) is not None:
        from emulator.cni.conflist import settled

        return with_proxy(f"{WITH_FILE}={settled(file, tuple(plugins))}", mode or "")
    return spec


def _file_of(spec: str) -> str | None:
    """The file of ``conflist=FILE``; nothing for other spellings."""
    name, equals, file = spec.strip().partition("=")
    if name != WITH_FILE and not (name.startswith(f"{WITH_FILE}:") and not equals):
        return None
    if not equals:
        raise UserError(
            f"{WITH_FILE} needs a CNI configuration: --cni {WITH_FILE}=FILE",
            hint="examples are in scenarios/conflist/; docs/conflist.md has the rest",
        )
    return file


def stands_for(spec: str) -> str:
    """The style that ``spec`` is the stand-in of, ``flannel:wireguard`` of ``flannel:wireguard-go``; else ``spec``."""
    name, _, mode = spec.partition(":")
    if name in BUILT_IN:
        fallbacks = getattr(import_module(BUILT_IN[name].partition(":")[0]), "FALLBACKS", {})
        return next((f"{name}:{real}" for real, other in fallbacks.items() if other == mode), spec)
    return spec


def mode_names(style: str) -> list[str]:
    """The modes of a style, the default one first: what its module's ``modes()`` says, or the default alone."""
    listed = getattr(sys.modules[_loader(style).__module__], "modes", None)
    return list(listed()) if listed is not None else [load_style(style).mode]


def every_mode() -> list[str]:
    """Every style's every mode, as ``--cni`` takes it; the default modes by the style's name alone."""
    specs = []
    for style in style_names():
        default, *others = mode_names(style)
        specs += [style, *(f"{style}:{mode}" for mode in others if mode != default)]
    return specs


def _loader(name: str) -> Loader:
    if name in BUILT_IN:
        return _imported(BUILT_IN[name])
    target = _registered().get(name)
    if target is not None:
        loader: Loader = target.load()
        return loader
    raise NotFound(f"there is no CNI style {name!r}", hint=f"styles: {', '.join(style_names())}")


def _imported(place: str) -> Loader:
    module, _, attribute = place.partition(":")
    found: Loader = getattr(import_module(module), attribute)
    return found


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
