"""Which rules of the plan translated a packet, or dropped it.

The capture shows that a source or target changed; the plan shows the rules. What the capture does not show is left open
(:mod:`emulator.capture.rule_walk`), and both ways are followed: a rule is named if it alone can have made what was
seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from emulator.capture.iptables_walk import Iptables, start
from emulator.capture.nft_walk import Nftables, queueing
from emulator.capture.queue_agent import QueueAgent
from emulator.capture.rule_walk import Culprit, End, Mark, Rules, Seen, Walk
from emulator.plan.model import IpSet, IptablesRules, NftRules, NftTable, ProxyRules

_NFT_SOURCE_NAT = re.compile(r"^\s.*\b(masquerade|snat)\b", re.MULTILINE)


class Ruleset(NamedTuple):
    """All rules of one machine, by who wrote them how, and who decides on what they queue."""

    owned: Sequence[IptablesRules] = ()
    proxies: Sequence[ProxyRules] = ()
    sets: Sequence[IpSet] = ()
    structured: Sequence[NftRules] = ()
    nft: Sequence[NftTable] = ()
    agent: QueueAgent | None = None


class Translation(NamedTuple):
    """Who changed the target and the source; None where nobody did, or more than one rule can have. ``table`` is an
    nftables table that must have changed the source, though not all of its rules are followed."""

    target: Culprit | None = None
    source: Culprit | None = None
    table: NftTable | None = None


def translation(ruleset: Ruleset, seen: Seen, target: str, target_port: int, source: str) -> Translation:
    """Who made of ``seen`` (before routing; ``leaves`` is where it left afterwards) a packet to ``target`` and
    ``target_port``, from ``source``."""
    to = f"{target} {target_port}"
    turned = (target, target_port) != (seen.target, seen.target_port)
    first = "PREROUTING" if seen.entered else "OUTPUT"
    marks = {start(ruleset.owned, seen.version)}
    early = _through(ruleset, first, seen._replace(leaves=""), marks, "target" if turned else "", to)
    dnat = _only(early, "nat")
    kind = "nat" if turned else "pass"
    marks = {end.mark for end in early if end.kind == kind} or marks
    if source == seen.source:
        return Translation(target=dnat)
    late = seen._replace(target=target, target_port=target_port, entered="")
    ends = _through(ruleset, "POSTROUTING", late, marks, "source", source)
    snat = _only(ends, "nat")
    table = None
    if not any(end.kind == "nat" for end in ends):
        table = _masquerading(ruleset.nft, seen.version)
    return Translation(dnat, snat, table)


def dropper(
    ruleset: Ruleset, seen: Seen, *, new: bool = False, hook: Literal["FORWARD", "INPUT", "OUTPUT"] = "FORWARD"
) -> Culprit | None:
    """The rule that surely drops ``seen`` on its way through a machine that routes it (``hook`` FORWARD), into it
    (INPUT) or out of it (OUTPUT); None where that is open.

    ``new``: it is known to open its connection.
    """
    marks = {Mark()}
    early = [("raw", "PREROUTING"), ("mangle", "PREROUTING")] if hook != "OUTPUT" else [("raw", "OUTPUT")]
    late = [("mangle", "POSTROUTING")] if hook != "INPUT" else []
    tables = [*ruleset.structured, *(found for each in ruleset.nft if (found := queueing(each)) is not None)]
    nftables = Nftables("filter", seen.version, tables, new=new, agent=ruleset.agent)
    steps: list[tuple[Rules, str]] = [
        (
            Iptables(table, seen.version, ruleset.owned, ruleset.proxies, ruleset.sets, new=new, agent=ruleset.agent),  # type: ignore[arg-type]
            at,
        )
        for table, at in (*early, ("mangle", hook), ("filter", hook), *late)
    ]
    if hook != "OUTPUT":
        steps.append((nftables, "PREROUTING"))
    steps.append((nftables, hook))
    if hook != "INPUT":
        steps.append((nftables, "POSTROUTING"))
    for rules, at in steps:
        arrives = seen if at != "PREROUTING" else seen._replace(leaves="")
        ends = Walk(rules, arrives).hook(at, marks)
        if {end.kind for end in ends} == {"drop"}:
            culprit = _only(ends, "drop")
            return culprit._replace(hook=at) if culprit is not None else None
        if any(end.kind == "drop" for end in ends):
            return None
        marks = {end.mark for end in ends}
    return None


def _through(ruleset: Ruleset, hook: str, seen: Seen, marks: set[Mark], nat: str, to: str) -> set[End]:
    """Every way through a hook's nat rules: iptables' first, then nftables', which stand at the same priority."""
    tables: list[Rules] = [
        Iptables("nat", seen.version, ruleset.owned, ruleset.proxies, ruleset.sets),
        Nftables("nat", seen.version, ruleset.structured, new=True),
    ]
    ends: set[End] = set()
    for rules in tables:
        found = Walk(rules, seen, nat=nat, to=to).hook(hook, marks)  # type: ignore[arg-type]
        marks = {end.mark for end in found if end.kind == "pass"}
        ends |= {end for end in found if end.kind != "pass"}
    return ends | {End("pass", None, mark) for mark in marks}


def _only(ends: set[End], kind: str) -> Culprit | None:
    found = {end.culprit for end in ends if end.kind == kind}
    return next(iter(found)) if len(found) == 1 else None


def _masquerading(tables: Sequence[NftTable], version: int) -> NftTable | None:
    """The only table, of those that are known as text, which gives packets of this family another source."""
    families = ("inet", "ip" if version == 4 else "ip6")
    found = [each for each in tables if each.family in families and _NFT_SOURCE_NAT.search(each.body)]
    return found[0] if len(found) == 1 else None
