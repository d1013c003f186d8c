"""Every way that a packet can take through rules, given what a capture shows of it.

A capture shows addresses, ports and devices. It does not show which of several endpoints a random number chose, nor
whether a client is remembered; both ways are followed then. What was seen afterwards (the address that the packet was
translated to) rules most of them out. Marks are followed bit by bit, from zero: a packet that enters a network
namespace has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Literal, NamedTuple, Protocol

DEEPEST = 32  # jumps; the kernel allows 16 (nf_tables) to as many as the table has chains (legacy)
WHOLE = 0xFFFFFFFF

Kind = Literal["none", "mark", "accept", "drop", "return", "jump", "goto", "nat"]


class Mark(NamedTuple):
    """A packet's mark: ``value`` of those bits that are ``known``."""

    value: int = 0
    known: int = WHOLE

    def masked(self, keep: int, flip: int) -> Mark:
        """After ``mark = (mark & keep) ^ flip``. A bit that is cleared, or set for certain, is known again."""
        cleared = WHOLE & ~keep
        return Mark((self.value & keep) ^ flip, self.known | cleared)

    def tested(self, wanted: int, mask: int) -> bool | None:
        """Whether ``mark & mask == wanted``; None if that is open."""
        if (self.value ^ wanted) & mask & self.known:
            return False
        return True if mask & ~self.known & WHOLE == 0 else None


class Seen(NamedTuple):
    """A packet as a hook saw it. Devices are empty where there is none (``entered`` at OUTPUT). ``local`` are the
    machine's own addresses. ``returns``: an answer would leave by the device that the packet came in by; None if that
    is not known. ``bridged``: it goes from port to port of a bridge, likewise. ``icmp`` are an ICMP message's type and
    code."""

    version: int
    protocol: str
    source: str
    target: str
    source_port: int
    target_port: int
    entered: str
    leaves: str
    local: Set[str] = frozenset()
    returns: bool | None = None
    bridged: bool | None = None
    icmp: tuple[int, int] | None = None


class Culprit(NamedTuple):
    """The rule that decided: where it stands (``iptables -t nat KUBE-SEP-... rule 2``), its text, whose it is and what
    for; ``hook`` is where the packet met it, if that is known."""

    place: str
    text: str
    component: str
    why: str
    chain: str
    number: int
    hook: str = ""


class Verdict(NamedTuple):
    """What a rule does to a packet that it matches. ``chain`` is for ``jump`` and ``goto``; ``keep`` and ``flip`` are
    for ``mark``; ``to`` is for ``nat``: the address, and behind a blank the port, or empty for whatever was seen."""

    kind: Kind
    chain: str = ""
    keep: int = WHOLE
    flip: int = 0
    nat: Literal["", "source", "target"] = ""
    to: str = ""


class MarkTest(NamedTuple):
    """``mark & mask == wanted``, or not that."""

    wanted: int
    mask: int
    negated: bool = False

    def of(self, mark: Mark) -> bool | None:
        """Whether it holds; None if that is open."""
        found = mark.tested(self.wanted, self.mask)
        return found if found is None else found != self.negated


class Step(NamedTuple):
    """A rule judged: whether it matches what a capture shows (None: open), what it wants of the mark, what it does, and
    itself."""

    matches: bool | None
    verdict: Verdict
    culprit: Culprit
    marks: tuple[MarkTest, ...] = ()

    def judge(self, mark: Mark) -> bool | None:
        """Whether it matches a packet of that mark."""
        found = [self.matches, *(test.of(mark) for test in self.marks)]
        return False if False in found else None if None in found else True


class Rules(Protocol):
    """One table of one machine."""

    def hook(self, name: str) -> list[str]:
        """The kernel's chains that a packet passes at a hook, in order."""
        ...

    def steps(self, chain: str, seen: Seen) -> Iterable[Step]:
        """The rules of a chain that might match; none if there is no such chain."""
        ...


class End(NamedTuple):
    """How a packet leaves a hook: passed on, dropped or translated, by whom (None: no rule), with what mark."""

    kind: Literal["pass", "drop", "nat"]
    culprit: Culprit | None
    mark: Mark


class Walk:
    """Follows a packet. ``translated`` is what became of its source or target; ways to anything else are impossible."""

    def __init__(self, rules: Rules, seen: Seen, *, nat: Literal["", "source", "target"] = "", to: str = "") -> None:
        self._rules = rules
        self._seen = seen
        self._nat = nat
        self._to = to

    def hook(self, name: str, marks: Iterable[Mark]) -> set[End]:
        """Every way through all that stands at a hook."""
        ends: set[End] = set()
        live = set(marks)
        for chain in self._rules.hook(name):
            found, leaving = self._chain(chain, live, 0)
            # Accepted in one base chain, a packet still meets the later ones.
            live = leaving | {end.mark for end in found if end.kind == "pass"}
            ends |= {end for end in found if end.kind != "pass"}
        return ends | {End("pass", None, mark) for mark in live}

    def _chain(self, name: str, marks: set[Mark], depth: int) -> tuple[set[End], set[Mark]]:
        """Ends within, and the marks of packets that go back to the caller."""
        ends: set[End] = set()
        back: set[Mark] = set()
        live = set(marks)
        for step in self._rules.steps(name, self._seen) if depth <= DEEPEST else ():
            judged = {mark: step.judge(mark) for mark in live}
            live = {mark for mark, matches in judged.items() if not matches}
            meant = {mark for mark, matches in judged.items() if matches is not False}
            if meant:
                live |= self._carry_out(step, meant, ends, back, depth)
            if not live:
                break
        return ends, back | live

    def _carry_out(self, step: Step, marks: set[Mark], ends: set[End], back: set[Mark], depth: int) -> set[Mark]:
        """The marks with which packets that match go on to the next rule."""
        verdict = step.verdict
        match verdict.kind:
            case "none":
                return marks
            case "mark":
                return {mark.masked(verdict.keep, verdict.flip) for mark in marks}
            case "return":
                back |= marks
            case "accept":
                ends |= {End("pass", step.culprit, mark) for mark in marks}
            case "drop":
                ends |= {End("drop", step.culprit, mark) for mark in marks}
            case "nat":
                if verdict.nat == self._nat and self._fits(verdict.to):
                    ends |= {End("nat", step.culprit, mark) for mark in marks}
            case "jump" | "goto":
                inner, returned = self._chain(verdict.chain, marks, depth + 1)
                ends |= inner
                if verdict.kind == "jump":
                    return returned
                back |= returned
        return set()

    def _fits(self, to: str) -> bool:
        if not to:
            return True
        return to == self._to if " " in to else to == self._to.partition(" ")[0]
