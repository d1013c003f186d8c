"""What a lab takes where this machine lacks a part of the real system: the stand-in that the style names, or a refusal.

Only what the style itself offers is taken, it says so in its title, and every output shows that title.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from emulator.cni.style import Style
from emulator.cni.styles import load_style
from emulator.errors import Unsupported
from emulator.kernel.capabilities import Feature, probe_for_use, unsupported

Probe = Callable[[Collection[str]], Mapping[str, Feature]]


def fitting(style: Style, probe: Probe = probe_for_use) -> Style:
    """The style, or its fallback where this machine lacks something that it requires. Raises Unsupported with one line
    that says what both of them lack. ``probe`` stands in for asking this machine."""
    missing = _missing(style, probe)
    if not missing:
        return adapted(style, lambda names: [name for name, one in probe(names).items() if not one.usable])
    if not (spec := getattr(style, "fallback", "")):  # another distribution's style may know nothing of fallbacks
        raise unsupported(missing)
    stand_in = load_style(spec)
    lacks_too = _missing(stand_in, probe)
    if not lacks_too:
        return adapted(stand_in, lambda names: [name for name, one in probe(names).items() if not one.usable])
    error, other = unsupported(missing), unsupported(lacks_too)
    raise Unsupported(
        f"{error.message}; and its stand-in cannot be had: {other.message.removeprefix('this machine lacks ')}",
        hint="; ".join(hint for hint in (other.hint, error.hint) if hint),
        features=tuple(dict.fromkeys((*error.features, *other.features))),
    )


def adapted(style: Style, lacking: Callable[[Sequence[str]], Collection[str]]) -> Style:
    """The style as this machine can carry it (:meth:`emulator.cni.style.Style.adapted`)."""
    adapt = getattr(style, "adapted", None)  # another distribution's style may know nothing of it
    return adapt(lacking) if adapt is not None else style


def _missing(style: Style, probe: Probe) -> list[Feature]:
    return [feature for feature in probe(style.requires).values() if not feature.usable]
