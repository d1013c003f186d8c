"""What passes between a lab and its clients about network policies: who reaches whom, and what was expected.

A *matrix* is every source's request to every target, for each protocol and port. A cell of it holds what packets showed
and what the specification says.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from emulator.policy.enforcer import Deviation, PolicyMode
from emulator.policy.flow import Judgement
from emulator.traffic.model import Protocol

Observed = Literal["allowed", "dropped", "refused", "unreachable"]
Specified = Literal["allow", "deny", "either"]
Group = Literal["pods", "nodes", "hosts", "services"]
GROUPS: tuple[Group, ...] = ("pods", "nodes", "hosts", "services")

FIRST_WINDOW = 0.1  # s of silence that a denial which policies explain needs
SECOND_WINDOW = 1.0  # s of silence that any other one needs


class PortWish(msgspec.Struct, frozen=True, order=True):
    """A protocol and its port; 0 for ICMP."""

    protocol: Protocol
    port: int = 0

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}" if self.port else self.protocol


class Ask(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One request whose verdict is wanted. ``source`` and ``target`` are places; ``family`` 0 is the first common."""

    source: str
    target: str
    protocol: Protocol
    port: int = 0
    family: Literal[0, 4, 6] = 0


class MatrixWish(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A matrix to take. Where ``sources`` or ``targets`` name nobody, all places of ``groups`` are meant (hosts and
    nodes both ways, Services as targets), pods only of ``namespaces`` if there are any. Without ``ports``: those that
    containers declare and policies name. ``families`` empty: all that two places have in common. ``asks`` are requests
    of their own, in place of a matrix. ``patient``: every silence is waited for as long as the second window."""

    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ("pods",)
    namespaces: tuple[str, ...] = ()
    ports: tuple[PortWish, ...] = ()
    families: tuple[Literal[4, 6], ...] = ()
    asks: tuple[Ask, ...] = ()
    patient: bool = False


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request. ``source`` and ``target`` are places' labels (``pod/default/web``); ``address`` is what was asked.

    ``verdict``: *allowed* is an answer of the target's own; *dropped* is silence, *refused* a RST or an ICMP port
    unreachable or prohibition, which ``detail`` names; *unreachable* is a network without a way there.
    ``first`` is the verdict of the first window where that of the second is another. ``window`` is the
    silence that was waited for, in s; ``microseconds`` the time until the answer. ``specification`` is what the API
    says, as the judgements of either end tell; *either* where it leaves that open. ``deviation`` is why the enforcer
    is known to do the opposite.
    """

    source: str
    target: str
    protocol: Protocol
    port: int
    family: Literal[4, 6]
    address: str
    verdict: Observed
    specification: Specified
    detail: str = ""
    first: str = ""
    window: float = 0.0
    microseconds: float = 0.0
    egress: Judgement | None = None
    ingress: Judgement | None = None
    deviation: Deviation | None = None
    why: str = ""

    @property
    def allowed(self) -> bool:
        """Whether packets passed."""
        return self.verdict == "allowed"

    @property
    def expected(self) -> Specified:
        """What the enforcer should do: as specified, or by a known deviation the opposite."""
        if self.deviation is None or self.specification == "either":
            return self.specification
        return "deny" if self.specification == "allow" else "allow"

    @property
    def as_specified(self) -> bool:
        """Whether packets did what the API says."""
        return self.specification == "either" or self.allowed == (self.specification == "allow")

    @property
    def wrong(self) -> bool:
        """Whether packets did what neither the API nor a known deviation of the enforcer explains. That a network has
        no way there is no wrong of policies."""
        if self.expected == "either" or self.verdict == "unreachable":
            return False
        return self.allowed != (self.expected == "allow")


class Round(msgspec.Struct, frozen=True):
    """One volley: requests in flight together, the silence that was waited for (s), and how long it took (s);
    ``slowest`` is the time until the last answer (s)."""

    probes: int
    window: float
    seconds: float
    slowest: float


class Matrix(msgspec.Struct, frozen=True, omit_defaults=True):
    """The cells, by source, target, port and family as asked, and how they came about.

    ``enforcer`` is who enforces policies here, for people; empty: nobody. ``opened`` counts the ports that were served
    for the time of the requests. ``changed``: policies, pods or labels changed meanwhile, so that expectations may be
    of another state. ``deviations`` are the enforcer's own words on what it does otherwise with these policies.
    """

    cells: tuple[Cell, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ports: tuple[PortWish, ...]
    rounds: tuple[Round, ...]
    style: str
    enforcer: str = ""
    mode: PolicyMode = "faithful"
    policies: tuple[str, ...] = ()
    deviations: tuple[Deviation, ...] = ()
    opened: int = 0
    changed: bool = False
