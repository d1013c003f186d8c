"""Rules put into the tools, object by object, and what a tool's complaint is about."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

from emulator.errors import ApplyError, Unsupported
from emulator.kernel.ipset_speakers import SetSpeaker
from emulator.kernel.rule_tools import TIMEOUT, load_rules
from emulator.plan.describe import describe
from emulator.plan.model import IpSet, IptablesRules, IpvsServers, NftRules, NftTable, ProxyRules

Ruleset = IptablesRules | NftTable | NftRules | IpvsServers | IpSet | ProxyRules

IPSET = ("ipset", "restore")

_LINE = re.compile(r"line:? (\d+)")


@dataclass
class ToolInput:
    """Input of one tool: per object, its lines. ``COMMIT`` of one object takes effect even if a later one fails.
    ``fresh``: the same of sets, if those that come are not there, as they are not."""

    argv: tuple[str, ...]
    parts: list[tuple[Ruleset, str]]
    one_transaction: bool = False
    fresh: str = ""

    @property
    def whole(self) -> str:
        return "".join(text for _, text in self.parts)


def feed(ns: str, text: ToolInput, finished: Callable[[Ruleset], None], sets: SetSpeaker) -> None:
    """Carry it out in the namespace that this thread is in, whose ipsets ``sets`` speaks to. ``finished`` hears of each
    object. Raises ApplyError, Unsupported."""
    left = tell(text, finished, sets)
    if not left.parts:
        return
    try:
        if not (left.fresh and _fits(left)):
            load_rules(left.argv, left.whole)
    except FileNotFoundError as error:
        raise Unsupported(
            f"{text.argv[0]} is not installed", hint="`cnilab doctor` names the package", features=(text.argv[0],)
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ApplyError(f"failed to load rules in {ns}: {text.argv[0]} did not end within {TIMEOUT:g} s") from error
    except subprocess.CalledProcessError as error:
        raise _blame(ns, left, str(error.stderr), finished) from error
    for item, _ in left.parts:
        finished(item)


def _fits(text: ToolInput) -> bool:
    """Whether sets that come are not there, so that they need not be swapped with others, which takes the kernel more
    than all the rest."""
    try:
        load_rules(text.argv, text.fresh)
    except subprocess.CalledProcessError:
        return False
    return True


def tell(text: ToolInput, finished: Callable[[Ruleset], None], sets: SetSpeaker) -> ToolInput:
    """Carry out what takes no tool; what is left for one to do, or to complain about."""
    if text.argv != IPSET:
        return text
    parts = text.parts
    if all(part.startswith("destroy ") for _, part in parts):  # one by one: what is gone cannot go again
        while parts and sets.destroyed(parts[0][1]):
            finished(parts[0][0])
            parts = parts[1:]
        return replace(text, parts=parts)
    if not sets.commit(text.fresh or text.whole):
        return text
    for item, _ in parts:
        finished(item)
    return replace(text, parts=[])


def _blame(ns: str, text: ToolInput, complaint: str, finished: Callable[[Ruleset], None]) -> ApplyError:
    """The error for the object, chain and rule that the tool complains about. Earlier objects are in force."""
    words = " ".join(complaint.split())
    match = _LINE.search(words) or re.search(r"stdin>:(\d+)", words)
    if match is None:
        return ApplyError(f"failed to load rules in {ns}: {text.argv[0]}: {words}")
    number = int(match[1])
    start = 0
    for item, part in text.parts:
        lines = part.splitlines()
        if number <= start + len(lines):
            line = lines[max(0, number - start - 1)]
            subject = describe(item)
            return ApplyError(f"failed to load {subject} in {ns}: {words}: {line.strip()}", subject=subject)
        start += len(lines)
        if not text.one_transaction:
            finished(item)
    return ApplyError(f"failed to load rules in {ns}: {text.argv[0]}: {words}")
