"""Kubernetes objects in order, found by kind: who wants the one ConfigMap does not look through ten thousand slices.

A change takes over what it can from the objects of before: where each kind stands, and the objects of all kinds that it
does not touch, as the very same tuple, so that whoever made something of them can tell by identity that it holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter
from typing import Any

from emulator.cluster.changes import places, trimmed

Object = dict[str, Any]
Kind = tuple[str, str]  # apiVersion, kind


class Manifests(tuple[Object, ...]):
    """Objects that :meth:`of` finds by apiVersion and kind. They must not be changed any more."""

    _layout: _Layout
    _found: dict[tuple[Kind, ...], tuple[Object, ...]]

    @classmethod
    def following(cls, objects: Iterable[Object], previous: Sequence[Object] | None = None) -> Manifests:
        """``objects`` with an index; ``previous`` are those of before, itself if nothing changed."""
        made = cls(objects)
        if not isinstance(previous, Manifests):
            made._layout, made._found = _Layout(made), {}
            return made
        if len(made) == len(previous):
            at = places(previous, made)
            if not at:
                return previous
            pairs = [(_kind(previous[place]), _kind(made[place])) for place in at]
            moved = any(old != new for old, new in pairs)
            touched = {kind for pair in pairs for kind in pair}
        else:
            moved = True
            touched = {_kind(thing) for part in trimmed(previous, made) for thing in part}
        made._layout = _Layout(made) if moved else previous._layout
        made._found = {kinds: found for kinds, found in previous._found.items() if touched.isdisjoint(kinds)}
        return made

    def of(self, *kinds: Kind) -> tuple[Object, ...]:
        """The objects of these kinds, in order."""
        found = self._found.get(kinds)
        if found is None:
            found = self._found[kinds] = _picked(self, self._layout.where(kinds))
        return found

    def named(self, names: Collection[str]) -> tuple[Object, ...]:
        """The objects of kinds of these names, of whatever apiVersion."""
        return self.of(*(kind for kind in self._layout.kinds if kind[1] in names))

    def others(self, names: Collection[str]) -> tuple[Object, ...]:
        """The objects of all other kinds."""
        kinds = tuple(kind for kind in self._layout.kinds if kind[1] not in names)
        return tuple(self) if len(kinds) == len(self._layout.kinds) else self.of(*kinds)


def of_kinds(objects: Sequence[Object], *kinds: Kind) -> Sequence[Object]:
    """Those of ``objects`` that are of these kinds, in order; at once if they are :class:`Manifests`."""
    if isinstance(objects, Manifests):
        return objects.of(*kinds)
    return [thing for thing in objects if _kind(thing) in kinds]


class _Layout:
    """Where objects of each kind stand. Not changed once it is made, so that it serves all that have the same."""

    def __init__(self, objects: Sequence[Object]) -> None:
        self.kinds: dict[Kind, list[int]] = {}
        for place, thing in enumerate(objects):
            self.kinds.setdefault(_kind(thing), []).append(place)
        self._together: dict[tuple[Kind, ...], list[int]] = {}

    def where(self, kinds: tuple[Kind, ...]) -> list[int]:
        """The places of the objects of several kinds, in order."""
        if len(kinds) == 1:
            return self.kinds.get(kinds[0], [])
        found = self._together.get(kinds)
        if found is None:
            found = sorted(place for kind in kinds for place in self.kinds.get(kind, ()))
            self._together[kinds] = found
        return found


def _picked(objects: Sequence[Object], where: Sequence[int]) -> tuple[Object, ...]:
    if len(where) < 2:
        return tuple(objects[place] for place in where)
    found: tuple[Object, ...] = itemgetter(*where)(objects)
    return found


def _kind(thing: Object) -> Kind:
    return thing.get("apiVersion", ""), thing.get("kind", "")
