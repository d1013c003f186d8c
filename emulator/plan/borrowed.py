"""Sets that come to mean something else while the rules that ask them change.

kube-router names the sets of a policy by the place of a rule in it. Where a rule is put before another one, or a named
port is no longer anyone's, the same name holds other members at the same moment as the rules around it change, and
sets and rules are two transactions. In between, the old rules must not see the new members: they would let through
what neither the old policy nor the new one allows. So rules ask a *borrowed* set for that long:

::

    a borrowed set with the new members     old rules ask the old set
    rules that ask the borrowed set         one commit: from the old meaning to the new one
    the set takes its new members           nobody asks it
    rules that ask the set                  one commit: means the same
    the borrowed set goes

Sets whose names tell what is in them (Felix, weave-npc) keep their meaning, and never need this. kube-router itself
loads sets first and has that moment; it is not imitated.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from itertools import pairwise

import msgspec

from emulator.plan.model import AnyObject, Chain, IpSet, IptablesRules, Rule

LONGEST_NAME = 31  # bytes: IPSET_MAXNAMELEN, less the closing NUL
# The others where a failed change has left one, which goes when all is undone, or where names begin alike
_SUFFIXES = ("-lent", *(f"-len{number}" for number in range(2, 10)))
_ASKS = "--match-set"

Change = tuple[AnyObject | None, AnyObject | None]


def borrowed_sets(work: Iterable[Change], taken: Iterable[str] = ()) -> dict[str, IpSet]:
    """The sets to borrow, each with the members to come, by the name of the set that it stands for. ``work`` are the
    changes in one namespace, pairs of old and new; ``taken`` the names that cannot be had."""
    pairs = list(work)
    moving = {
        new.name: new
        for old, new in pairs
        if isinstance(old, IpSet) and isinstance(new, IpSet) and old.members != new.members and old.type == new.type
    }
    if not moving:
        return {}
    asked: set[str] = set()
    for old, new in pairs:
        if isinstance(old, IptablesRules) and isinstance(new, IptablesRules):
            asked |= _asked_otherwise(old, new)
    names = set(taken) if asked else set()
    borrowed: dict[str, IpSet] = {}
    for name, item in moving.items():
        if name in asked:
            borrowed[name] = msgspec.structs.replace(item, name=_borrowed_name(name, names))
            names.add(borrowed[name].name)  # long names that differ at their ends alone are cut to the same
    return borrowed


def asking(rules: IptablesRules, old: IptablesRules, borrowed: Mapping[str, IpSet]) -> IptablesRules:
    """The rules with the borrowed sets in place of those that they stand for, in the chains that are not as before."""
    before = {chain.name: chain.rules for chain in old.chains}
    return msgspec.structs.replace(
        rules,
        chains=tuple(
            chain if before.get(chain.name) == chain.rules else _of_borrowed(chain, borrowed) for chain in rules.chains
        ),
    )


def _borrowed_name(name: str, taken: Container[str]) -> str:
    names = (name[: LONGEST_NAME - len(suffix)] + suffix for suffix in _SUFFIXES)
    return next(one for one in names if one not in taken)


def _of_borrowed(chain: Chain, borrowed: Mapping[str, IpSet]) -> Chain:
    rules = tuple(_rule_of_borrowed(rule, borrowed) if _ASKS in rule.args else rule for rule in chain.rules)
    return msgspec.structs.replace(chain, rules=rules)


def _rule_of_borrowed(rule: Rule, borrowed: Mapping[str, IpSet]) -> Rule:
    words = tuple(
        borrowed[word].name if before == _ASKS and word in borrowed else word
        for before, word in zip(("", *rule.args), rule.args, strict=False)
    )
    return msgspec.structs.replace(rule, args=words)


def _asked_otherwise(old: IptablesRules, new: IptablesRules) -> set[str]:
    """The names of sets that are asked by rules which only one of the two has. A chain that comes or goes as a whole
    does not count: what leads to it does."""
    before = {chain.name: chain.rules for chain in old.chains}
    names: set[str] = set()
    for chain in new.chains:
        was = before.get(chain.name)
        if was is None or was is chain.rules or was == chain.rules:
            continue
        for args in _asks(was) ^ _asks(chain.rules):
            names.update(word for ask, word in pairwise(args) if ask == _ASKS)
    return names


def _asks(rules: Iterable[Rule]) -> set[tuple[str, ...]]:
    return {rule.args for rule in rules if _ASKS in rule.args}
