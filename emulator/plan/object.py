"""What all objects of a plan have in common."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

UNDERLAY = "underlay"  # the namespace of all switches
FAULT = "fault"  # the component of what a fault put into the plan

Family = Literal[4, 6]
Key: TypeAlias = tuple[str | int, ...]


class PlanObject(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind", omit_defaults=True):
    """What all plan objects have in common.

    ``ns`` is the namespace that holds the object. ``component`` names the program of the real system
    that would have made it (``flanneld``, ``felix``, ``bird``, ``bridge`` plugin, ``kubelet``, ``kernel``,
    ``topology``); ``why`` says in one line what it is there for.
    """

    ns: str
    component: str = ""
    why: str = ""

    @property
    def key(self) -> Key:
        """What identifies the object: two objects of one key are versions of the same thing."""
        raise AssertionError(f"{type(self).__name__} has no key")
