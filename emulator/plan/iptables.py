"""Rules of a plan as text for ``iptables-restore --noflush``: one transaction, all or nothing.

A chain that is declared (``:NAME - [0:0]``) is flushed or made in the same commit, so a packet sees either the
old rules or the new ones. Chains of other owners, and the kernel's own, are never flushed; jumps in the kernel's
chains are added and deleted one by one.

Quoting follows iptables' own reader (``add_param_to_argv`` in xshared.c): arguments are split at blanks, double
quotes group, a backslash escapes inside of quotes, and a line ends the rule whatever was open. So every argument
that is not plainly harmless is quoted, and one that holds a line break or a control character is refused.
"""

from __future__ import annotations

import re

from emulator.errors import CnilabError
from emulator.plan.model import Chain, IptablesRules, Jump, Rule

LONGEST_ARGUMENT = 1023  # bytes: struct xt_param_buf in iptables/xshared.h, less the closing NUL

_HARMLESS = re.compile(r"[A-Za-z0-9_./:,=+!-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # surrogates cannot be written at all


def restore_text(rules: IptablesRules, old: IptablesRules | None = None) -> str:
    """The transaction that puts ``rules`` in place of ``old`` (None: nothing of it is there yet).

    Only chains that differ are rewritten, so counters of the others live on. Raises CnilabError for an argument
    that iptables-restore could misread.
    """
    before = {chain.name: chain.rules for chain in old.chains} if old else {}
    after = {chain.name: chain.rules for chain in rules.chains}
    changed = [chain for chain in rules.chains if _arguments(before.get(chain.name)) != _arguments(chain.rules)]
    gone = [name for name in before if name not in after]
    stale, fresh = _changed_jumps(old.jumps if old else (), rules.jumps)
    return _transaction(rules.table, changed, gone, stale, fresh)


def remove_text(rules: IptablesRules) -> str:
    """The transaction that takes ``rules`` away: their jumps, then their chains."""
    return _transaction(rules.table, [], [chain.name for chain in rules.chains], list(rules.jumps), [])


def rule_text(rule: Rule) -> str:
    """The arguments of one rule, quoted."""
    return " ".join(quote(argument) for argument in rule.args)


def quote(argument: str) -> str:
    """``argument`` so that iptables-restore reads it back as it is. Raises CnilabError if that cannot be."""
    if not argument:
        raise CnilabError("failed to write an iptables rule: an argument is empty")
    if _CONTROL.search(argument):
        raise CnilabError(f"failed to write an iptables rule: the argument {argument!r} holds a control character")
    if len(argument.encode()) > LONGEST_ARGUMENT:
        raise CnilabError(f"failed to write an iptables rule: the argument {argument[:40]!r}... is too long")
    if _HARMLESS.fullmatch(argument):
        return argument
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _transaction(table: str, changed: list[Chain], gone: list[str], stale: list[Jump], fresh: list[Jump]) -> str:
    lines = [f"*{table}"]
    # Declaring a chain that goes flushes it: no rule of it may keep another dying chain alive.
    lines += [f":{quote(name)} - [0:0]" for name in (*(chain.name for chain in changed), *gone)]
    lines += [f"-D {quote(jump.chain)} {rule_text(jump.rule)}" for jump in stale]
    lines += [f"-A {quote(chain.name)} {rule_text(rule)}" for chain in changed for rule in chain.rules]
    # Inserted last to first, so that they stand in the order of the plan.
    lines += [f"-I {quote(jump.chain)} {rule_text(jump.rule)}" for jump in reversed(fresh) if jump.position == "insert"]
    lines += [f"-A {quote(jump.chain)} {rule_text(jump.rule)}" for jump in fresh if jump.position == "append"]
    lines += [f"-X {quote(name)}" for name in gone]
    return "\n".join([*lines, "COMMIT", ""])


def _arguments(rules: tuple[Rule, ...] | None) -> list[tuple[str, ...]] | None:
    return None if rules is None else [rule.args for rule in rules]


def _changed_jumps(old: tuple[Jump, ...], new: tuple[Jump, ...]) -> tuple[list[Jump], list[Jump]]:
    def identity(jump: Jump) -> tuple[str, str, tuple[str, ...]]:
        return jump.chain, jump.position, jump.rule.args

    was = {identity(jump) for jump in old}
    now = {identity(jump) for jump in new}
    return [jump for jump in old if identity(jump) not in now], [jump for jump in new if identity(jump) not in was]
