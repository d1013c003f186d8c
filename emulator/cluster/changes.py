"""What differs between two long sequences most of which is the same objects: of ten thousand, seldom more than one.

Records and manifests are immutable, so one that is the same object is unchanged. These functions look at each place
once, without running Python code for it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import compress, count
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


def places(old: Sequence[T], new: Sequence[T]) -> list[int]:
    """The places at which two sequences hold different objects, as far as the shorter one reaches."""
    return list(compress(count(), map(operator.is_not, old, new)))


def trimmed(old: Sequence[T], new: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Both less what they begin and end with alike."""
    shorter = min(len(old), len(new))
    start = next(compress(count(), map(operator.is_not, old, new)), shorter)
    end = next(compress(count(), map(operator.is_not, reversed(old), reversed(new))), shorter)
    end = min(end, shorter - start)
    return old[start : len(old) - end], new[start : len(new) - end]


def difference(old: Sequence[T], new: Sequence[T]) -> tuple[list[T], list[T]]:
    """What only ``old`` has, and what only ``new`` has, each in order; no object may be in one of them twice."""
    if old is new:
        return [], []
    if len(old) == len(new):
        at = places(old, new)
        before, after = [old[place] for place in at], [new[place] for place in at]
    else:
        before, after = map(list, trimmed(old, new))
    had, has = set(map(id, before)), set(map(id, after))
    return [one for one in before if id(one) not in has], [one for one in after if id(one) not in had]


def changed_items(old: Mapping[K, T], new: Mapping[K, T]) -> dict[K, T]:
    """The items of ``new`` whose value is not the object that ``old`` has under their key, in order."""
    if old is new:
        return {}
    keys, values = list(new), list(new.values())
    shorter = min(len(old), len(new))
    # As far as they have the same keys in the same order, which they have where a copy was updated
    start = next(compress(count(), map(operator.is_not, old, keys)), shorter)
    found = {keys[place]: values[place] for place in places(list(old.values())[:start], values[:start])}
    rest = zip(keys[start:], values[start:], strict=True)
    return found | {key: value for key, value in rest if old.get(key) is not value}
