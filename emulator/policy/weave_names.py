"""The names of weave-npc's ipsets, and its words for selectors.

``weave-`` and the SHA-1 of a key, as a number in base 85, its least significant digit first: up to 31 characters, the
most that an ipset's name may have. The key of a selector is how Kubernetes prints it. A requirement that was written as
``In`` with one value is printed like a matchLabel here (``app=web``), as the neutral form does not tell them apart;
there it is ``app in (web)``.

Sources: weaveworks/weave npc/shortname.go, npc/selector.go, npc/namespace.go, npc/ipblock.go; kubernetes/apimachinery
pkg/labels/selector.go (Requirement.String).
"""

from __future__ import annotations

import hashlib

from emulator.policy.model import LabelSelector, Requirement, Selector

SYMBOLS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789(){}[]+=_$%^!*|/?.;:@#~"


def set_name(key: str) -> str:
    """The name of the set with that key: ``default:`` is the one of all pods of namespace ``default``."""
    number = int.from_bytes(hashlib.sha1(key.encode(), usedforsecurity=False).digest())
    digits = []
    while number:
        number, digit = divmod(number, len(SYMBOLS))
        digits.append(SYMBOLS[digit])
    return f"weave-{''.join(digits)}"


def printed(selector: Selector | None) -> str:
    """A Kubernetes label selector as Kubernetes prints it; empty for one that selects everything."""
    if not isinstance(selector, LabelSelector):
        return ""
    return ",".join(map(_requirement, selector.requirements))


def _requirement(one: Requirement) -> str:
    match one.operator:
        case "Exists":
            return one.key
        case "DoesNotExist":
            return f"!{one.key}"
        case "In" if len(one.values) == 1:
            return f"{one.key}={one.values[0]}"
    return f"{one.key} {one.operator.lower()} ({','.join(one.values)})"
