"""A plan for people and for programs: what each namespace holds and why, as text or as JSON.

The text groups by namespace, one line an object, the reason beside it::

    node/n1
      vxlan flannel.1 id 1 dstport 8472 local 192.168.50.11 dev eth0 ...   flanneld: the tunnel's end; ...
      route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink              flanneld: pods of n2, through the tunnel

The JSON is ``{"schema": "cnilab.plan/v1", "style": ..., "topology": ..., "wire_accurate": ..., "fragments": {NAME:
[OBJECT, ...]}}``. Each object has a ``kind`` (the class name in ``emulator.plan.model``) and that class's fields;
those at their default are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import msgspec

from emulator.errors import UserError
from emulator.plan.describe import describe
from emulator.plan.iptables import rule_text
from emulator.plan.model import (
    AnyObject,
    File,
    IptablesRules,
    IpvsServers,
    NftRules,
    NftTable,
    Plan,
    PlanObject,
    ProxyRules,
    Veth,
)
from emulator.plan.nftables import readable

__all__ = ["as_json", "as_text", "describe", "from_json", "reason"]

WIDEST = 72  # columns: a longer description gets its reason on the same line, without alignment


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON form of a plan."""

    schema: str
    style: str
    topology: str
    wire_accurate: bool = False
    fragments: dict[str, tuple[AnyObject, ...]]


def as_json(plan: Plan) -> bytes:
    """The plan as one JSON document, indented."""
    document = _Document(
        schema=Plan.SCHEMA,
        style=plan.style,
        topology=plan.topology,
        wire_accurate=plan.wire_accurate,
        fragments=plan.fragments,
    )
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def from_json(data: bytes | str) -> Plan:
    """The plan that :func:`as_json` wrote. Raises UserError if it is no such document."""
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not a plan: {error}") from error
    if document.schema != Plan.SCHEMA:
        raise UserError(f"a plan of schema {document.schema!r}, and this version reads {Plan.SCHEMA}")
    return Plan(
        style=document.style,
        topology=document.topology,
        fragments=document.fragments,
        wire_accurate=document.wire_accurate,
    )


def as_text(plan: Plan, namespaces: tuple[str, ...] = ()) -> str:
    """The plan for people; ``namespaces`` limits it to some of them (``node/n1``)."""
    groups: defaultdict[str, list[AnyObject]] = defaultdict(list)
    for item in plan:
        if not namespaces or item.ns in namespaces:
            groups[item.ns].append(item)
    blocks = [f"style {plan.style}, topology {plan.topology}, {sum(1 for _ in plan)} objects"]
    blocks += ["\n".join([ns, *_aligned(_lines(items))]) for ns, items in groups.items()]
    return "\n\n".join(blocks) + "\n"


def reason(item: PlanObject) -> str:
    """Who makes the object in the real system, and what for: ``flanneld: pods of n2, through the tunnel``."""
    return ": ".join(part for part in (item.component, item.why) if part)


def _lines(items: list[AnyObject]) -> Iterator[tuple[str, str]]:
    for item in items:
        yield describe(item), reason(item)
        if isinstance(item, IptablesRules):
            yield from _rules(item)
        elif isinstance(item, ProxyRules):
            yield from _proxy_rules(item)
        elif isinstance(item, Veth) and item.peer_why:
            yield f"  its end {item.peer} in {item.peer_ns}", item.peer_why
        elif isinstance(item, (File, NftTable)):
            text = item.content if isinstance(item, File) else item.body
            yield from ((f"  | {line}".rstrip(), "") for line in text.splitlines())
        elif isinstance(item, IpvsServers):
            for name, server in item.servers.items():
                set_flags = "".join(f" flag-{number}" for number in server.flags)
                kept = f" persistent {server.persistence}" if server.persistence else ""
                yield f"  {name} {server.scheduler}{set_flags}{kept}", ""
                yield from (
                    (f"    -> {each.address} port {each.port} masq weight {each.weight}", "") for each in server.servers
                )
        elif isinstance(item, NftRules):
            yield from ((f"  | {line}".rstrip(), "") for line in readable(item))


def _rules(item: IptablesRules) -> Iterator[tuple[str, str]]:
    for jump in item.jumps:
        yield f"  {'-I' if jump.position == 'insert' else '-A'} {jump.chain} {rule_text(jump.rule)}", jump.rule.why
    for chain in item.chains:
        if not chain.rules:
            yield f"  -N {chain.name}", "empty"
        for rule in chain.rules:
            yield f"  -A {chain.name} {rule_text(rule)}", rule.why


def _proxy_rules(item: ProxyRules) -> Iterator[tuple[str, str]]:
    for table, chains in item.tables.items():
        yield f"  *{table}", ""
        for jump in item.jumps.get(table, ()):
            yield f"  -I {jump.chain} {rule_text(jump.rule)}", jump.rule.why
        for chain, text in chains.items():
            yield from ((f"  {line}", "") for line in text.splitlines() or (f"-N {chain}",))


def _aligned(lines: Iterator[tuple[str, str]]) -> list[str]:
    rows = list(lines)
    width = max((len(text) for text, why in rows if why and len(text) <= WIDEST), default=0)
    return [f"  {text:<{width}}  # {why}" if why else f"  {text}" for text, why in rows]
