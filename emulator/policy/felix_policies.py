"""A policy as Felix's chains: ``cali-pi-`` for what comes to its pods, ``cali-po-`` for what they send.

A rule marks what it matches, and returns: whether the packet may pass is decided by those who called the chain, as
there may be more policies to ask. Only a denial drops at once::

    allow   match: MARK accept     accept is set: RETURN
    pass    match: MARK pass       pass is set: RETURN
    deny    match: MARK drop       drop is set: DROP
    log     match: LOG

A RETURN at the end of a chain is left out. A chain without rules has one that matches everything and does nothing, for
its comment's sake.

Policies that follow each other at an endpoint and have the same selector share a chain (``cali-gi-``, ``cali-go-``),
since whoever has one of them has all.

Sources: projectcalico/calico felix/rules/policy.go (PolicyToIptablesChains, CombineMatchAndActionsForProtoRule),
endpoints.go (PolicyGroup, PolicyGroupToIptablesChains), felix/types/policy_id.go.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import groupby

import msgspec

from emulator.policy import felix_rules
from emulator.policy.felix_matches import SetRef, matches
from emulator.policy.felix_rules import ACCEPT, DENY, LONGEST_CHAIN_NAME, PASS, FelixChain, FelixRule
from emulator.policy.felix_selectors import subject_selector
from emulator.policy.felix_words import (
    DROPS,
    LOGS,
    RETURNS,
    Words,
    alike,
    jump,
    marked,
    marked_somehow,
    set_mark,
    unmarked,
)
from emulator.policy.model import Action, Direction, Family, Policy, PolicyKind

# Kind as Felix calls it, and short for chains (felix/types/policy_id.go). The last two are those of releases that read
# AdminNetworkPolicy; the current one reads ClusterNetworkPolicy alone.
KINDS: dict[PolicyKind, tuple[str, str]] = {
    "NetworkPolicy": ("KubernetesNetworkPolicy", "knp"),
    "CalicoNetworkPolicy": ("NetworkPolicy", "np"),
    "CalicoGlobalNetworkPolicy": ("GlobalNetworkPolicy", "gnp"),
    "ClusterNetworkPolicy": ("KubernetesClusterNetworkPolicy", "kcnp"),
    "AdminNetworkPolicy": ("KubernetesAdminNetworkPolicy", "kanp"),
    "BaselineAdminNetworkPolicy": ("KubernetesBaselineAdminNetworkPolicy", "kbanp"),
}
_PREFIX: dict[Direction, str] = {"ingress": "cali-pi-", "egress": "cali-po-"}
_GROUP: dict[Direction, tuple[str, str]] = {"ingress": ("cali-gi-", "inbound"), "egress": ("cali-go-", "outbound")}
_RETURNS_EVERY = 5  # jumps of a group between two looks at the verdict
_BITS: dict[Action, int] = {"allow": ACCEPT, "pass": PASS, "deny": DENY}


class Rendered(msgspec.Struct, frozen=True):
    """A policy's chain of one direction and family, and the sets that its rules match."""

    chain: FelixChain
    sets: tuple[SetRef, ...]


class Group(msgspec.Struct, frozen=True):
    """What an endpoint's chain jumps to: one policy's chain, or one for several of the same selector (``chain``)."""

    name: Words
    policies: tuple[Policy, ...]
    chain: FelixChain | None = None


def policy_chain(policy: Policy, direction: Direction, family: Family) -> Rendered:
    """The chain of one direction, whose name is that of :func:`chain_name`."""
    rules: list[FelixRule] = []
    sets: dict[SetRef, None] = {}
    for rule in policy.rules(direction) or ():
        for found in matches(rule, direction, family):
            rules += [*found.blocks, *_actions(rule.action, found.match)]
            sets.update(dict.fromkeys(found.sets))
    while rules and rules[-1].action == RETURNS:
        rules.pop()
    comment = f"{_subject(policy)} {direction}"
    first = rules[0] if rules else FelixRule()
    rules[:1] = [FelixRule(first.match, first.action, (comment,), f"{policy.key}, {direction}")]
    return Rendered(FelixChain(chain_name(policy, direction), tuple(rules)), tuple(sets))


@lru_cache(maxsize=16384)
def _named(kind: PolicyKind, namespace: str, name: str, prefix: str) -> Words:
    short = KINDS[kind][1]
    return felix_rules.chain_name(prefix, f"{short}/{namespace}/{name}" if namespace else f"{short}/{name}")


def chain_name(policy: Policy, direction: Direction) -> Words:
    """``cali-pi-knp/x/deny``, or with a hash if that is too long."""
    return _named(policy.kind, policy.namespace, policy.name, _PREFIX[direction])


def groups(
    policies: Sequence[Policy], direction: Direction, selector_of: Callable[[Policy], str] = subject_selector
) -> tuple[Group, ...]:
    """The policies of one tier at an endpoint, in order, as its chain asks them."""
    found = []
    for selector, members in groupby(policies, key=selector_of):
        same = tuple(members)
        if len(same) == 1:
            found.append(Group(chain_name(same[0], direction), same))
            continue
        prefix, word = _GROUP[direction]
        lines = (selector, word, str(len(same)), *map(_identity, same))
        digest = hashlib.sha3_224("".join(f"{line}\n" for line in lines).encode()).digest()
        # Cut for iptables in either mode: MaxPolicyGroupUIDLength
        name = alike(f"{prefix}{base64.urlsafe_b64encode(digest).decode()}"[:LONGEST_CHAIN_NAME])
        found.append(Group(name, same, FelixChain(name, tuple(_group_rules(same, direction)))))
    return tuple(found)


def _group_rules(policies: Iterable[Policy], direction: Direction) -> list[FelixRule]:
    rules = []
    for number, policy in enumerate(policies):
        first = number % _RETURNS_EVERY == 0
        if first and number:
            rules.append(FelixRule((marked_somehow(ACCEPT | PASS),), RETURNS, ("Return on verdict",)))
        match = () if first else (unmarked(ACCEPT | PASS),)
        rules.append(FelixRule(match, jump(chain_name(policy, direction)), (), policy.key))
    return rules


def _actions(action: Action, match: tuple[Words, ...]) -> list[FelixRule]:
    if action == "log":
        return [FelixRule(match, LOGS)]
    bit = _BITS[action]
    return [
        FelixRule(match, set_mark(bit)),
        FelixRule((marked(bit),), DROPS if action == "deny" else RETURNS),
    ]


def _subject(policy: Policy) -> str:
    kind = KINDS[policy.kind][0]
    return f"{kind} {policy.namespace}/{policy.name}" if policy.namespace else f"{kind} {policy.name}"


def _identity(policy: Policy) -> str:
    return f"{{Name: {policy.name}, Namespace: {policy.namespace}, Kind: {KINDS[policy.kind][0]}}}"
