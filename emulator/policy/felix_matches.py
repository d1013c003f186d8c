"""One rule of a policy as Felix has it: rules that iptables and nftables can carry, and the sets that they match.

iptables takes 15 ports in a match, one address block for each end, and no "or" between ports and a set of named ports.
Where a rule wants more, Felix writes blocks before it, which work with two scratch marks, in nftables mode too::

    MARK  clear both                         (or set the first, if the first block is a negated one)
    a block's alternatives, one rule each:   set the mark      (the second one, from the second block on)
    end of a further block:                  second mark not set: clear the first
    a negated block's alternatives:          clear the first mark
    the rest of the rule, and the first mark is set

Source: projectcalico/calico felix/rules/policy.go (ProtoRuleToIptablesRules, matchBlockBuilder, CalculateRuleMatch),
felix/calc/rule_scanner.go (ruleToParsedRule), libcalico-go conversion.go (k8sRuleToCalico, SimplifyPorts).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from emulator.policy import felix_words as say
from emulator.policy.felix_rules import SCRATCH_0, SCRATCH_1, FelixRule, ipset_name, unique_id
from emulator.policy.felix_selectors import endpoint_selector
from emulator.policy.felix_words import Words
from emulator.policy.model import Direction, Family, IcmpMatch, Peer, PodSet, PortMatch, Rule, Selector, ServiceRef

PORTS_OF_A_MATCH = 15  # multiport's limit; a range counts for two
LARGEST_SET = 1048576  # members: felix/config, MaxIpsetSize
NUMBERED_FAMILY = {"ICMP": 4, "1": 4, "ICMPv6": 6, "58": 6}


class SetRef(msgspec.Struct, frozen=True, cache_hash=True):
    """A set that rules match, by its name without the family's prefix, and what is in it.

    ``pods`` less those of ``without`` (and the CIDRs of network sets among them); of those, where a ``port`` is named,
    addresses with that port. Or the endpoints of a ``service``, with their ports or not; or the nodes whose labels fit.
    """

    name: str
    pods: PodSet | None = None
    without: PodSet | None = None
    protocol: str = ""
    port: str = ""
    service: ServiceRef | None = None
    with_ports: bool = False
    nodes: Selector | None = None

    @property
    def type(self) -> str:
        """As ipset(8) calls it."""
        kind = "hash:ip,port" if self.port or self.with_ports else "hash:net"
        return f"{kind} maxelem {LARGEST_SET}"


@dataclass
class _Parsed:
    """A rule of Felix's data model: one protocol, one entity at each end (felix/proto's Rule)."""

    protocol: str
    nets: dict[str, list[str]] = field(default_factory=lambda: {"src": [], "dst": []})
    not_nets: dict[str, list[str]] = field(default_factory=lambda: {"src": [], "dst": []})
    sets: dict[str, list[SetRef]] = field(default_factory=lambda: {"src": [], "dst": []})
    not_sets: dict[str, list[SetRef]] = field(default_factory=lambda: {"src": [], "dst": []})
    ports: dict[str, list[PortMatch]] = field(default_factory=lambda: {"src": [], "dst": []})
    named: dict[str, list[SetRef]] = field(default_factory=lambda: {"src": [], "dst": []})
    not_ports: dict[str, list[PortMatch]] = field(default_factory=lambda: {"src": [], "dst": []})
    not_named: dict[str, list[SetRef]] = field(default_factory=lambda: {"src": [], "dst": []})
    with_ports: list[SetRef] = field(default_factory=list)
    not_protocol: str = ""
    icmp: IcmpMatch | None = None
    not_icmp: IcmpMatch | None = None


class Matched(msgspec.Struct, frozen=True):
    """The blocks that stand before a rule, its match, and the sets that both name."""

    blocks: tuple[FelixRule, ...]
    match: tuple[Words, ...]
    sets: tuple[SetRef, ...]


def matches(rule: Rule, direction: Direction, family: Family) -> Iterator[Matched]:
    """What the rule becomes in one family: several where it has several protocols or peers, none where it means the
    other family only."""
    if rule.family not in (0, family):
        return
    peers: Sequence[Peer | None] = rule.peers or (None,)
    protocols = _by_protocol(rule.ports) or [(_protocol_of(rule), [])]
    for protocol, ports in protocols:
        for peer in peers:
            parsed = _parse(rule, direction, protocol, ports, peer)
            if _of_family(parsed, family):
                yield _render(parsed, family)


# -- to Felix's data model --------------------------------------------------------------------------------------


def _protocol_of(rule: Rule) -> str:
    """The protocol of a rule without destination ports: that of its other ports, if any."""
    others = (*rule.source_ports, *rule.not_ports, *rule.not_source_ports)
    return others[0].protocol if others else ""


def _by_protocol(ports: Iterable[PortMatch]) -> list[tuple[str, list[PortMatch]]]:
    """Destination ports by protocol; none where one entry means the whole protocol."""
    grouped: dict[str, list[PortMatch]] = {}
    whole: set[str] = set()
    for port in ports:
        grouped.setdefault(port.protocol, [])
        if port.first or port.name:
            grouped[port.protocol].append(port)
        else:
            whole.add(port.protocol)
    return [(protocol, [] if protocol in whole else _simplified(grouped[protocol])) for protocol in sorted(grouped)]


def _simplified(ports: list[PortMatch]) -> list[PortMatch]:
    """Named ports as they are, then the numbers as the fewest ranges that cover them."""
    numbers = sorted((port.first, port.last or port.first) for port in ports if not port.name)
    if len(ports) <= 1 or not numbers:
        return ports
    merged: list[list[int]] = []
    for first, last in numbers:
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    named = [port for port in ports if port.name]
    return named + [PortMatch(ports[0].protocol, first=first, last=last) for first, last in merged]


def _parse(rule: Rule, direction: Direction, protocol: str, ports: list[PortMatch], peer: Peer | None) -> _Parsed:
    parsed = _Parsed(protocol, not_protocol=rule.not_protocol, icmp=rule.icmp, not_icmp=rule.not_icmp)
    far, own = ("src", "dst") if direction == "ingress" else ("dst", "src")
    ends = {far: peer, own: rule.subject}
    wanted = {"dst": ports, "src": list(rule.source_ports)}
    unwanted = {"dst": list(rule.not_ports), "src": list(rule.not_source_ports)}
    for end in ("src", "dst"):
        entity = ends[end] or Peer()
        parsed.nets[end] = list(entity.nets)
        parsed.not_nets[end] = list(entity.not_nets)
        pods, without = entity.pods, entity.not_pods
        if pods is None and without is not None:
            parsed.not_sets[end].append(_selected(without))
            without = None
        parsed.ports[end] = [port for port in wanted[end] if not port.name]
        parsed.named[end] = [_named(port, pods, without) for port in wanted[end] if port.name]
        parsed.not_ports[end] = [port for port in unwanted[end] if not port.name]
        parsed.not_named[end] = [_named(port, pods, without) for port in unwanted[end] if port.name]
        # A set of named ports holds those of the wanted endpoints only: it says enough of them
        if pods is not None and (parsed.ports[end] or not parsed.named[end]):
            parsed.sets[end].append(_selected(pods, without))
        if entity.nodes is not None:
            parsed.sets[end].append(SetRef(unique_id("s", f"node({entity.nodes!r})"), nodes=entity.nodes))
        if entity.service is not None:
            name = f"{entity.service.namespace}/{entity.service.name}"
            if end == "dst":
                parsed.with_ports.append(SetRef(unique_id("svc", name), service=entity.service, with_ports=True))
            else:
                parsed.sets[end].append(SetRef(unique_id("svcnoport", name), service=entity.service))
    return parsed


def _selected(pods: PodSet, without: PodSet | None = None) -> SetRef:
    return SetRef(unique_id("s", endpoint_selector(pods, without)), pods=pods, without=without)


def _named(port: PortMatch, pods: PodSet | None, without: PodSet | None) -> SetRef:
    protocol = port.protocol.lower() if port.protocol in ("UDP", "SCTP") else "tcp"
    selected = unique_id("s", endpoint_selector(pods, without))
    name = unique_id("n", f"{selected},{protocol},{port.name}")
    return SetRef(name, pods=pods or PodSet(), without=without, protocol=protocol.upper(), port=port.name)


def _of_family(parsed: _Parsed, family: Family) -> bool:
    """Leave the other family's blocks out; False if that takes all of a condition away, and so the rule."""
    if NUMBERED_FAMILY.get(parsed.protocol, family) != family and (parsed.icmp or parsed.not_icmp):
        return False
    for lists in (parsed.nets, parsed.not_nets):
        for end, given in lists.items():
            kept = [net for net in given if (":" in net) == (family == 6)]
            if given and not kept:
                return False
            lists[end] = kept
    everything = "0.0.0.0/0" if family == 4 else "::/0"
    return all(everything not in given for given in parsed.not_nets.values())


# -- to rules ---------------------------------------------------------------------------------------------------


def _render(parsed: _Parsed, family: Family) -> Matched:
    sets = [
        *(
            ref
            for lists in (parsed.sets, parsed.not_sets, parsed.named, parsed.not_named)
            for refs in lists.values()
            for ref in refs
        ),
        *parsed.with_ports,
    ]
    blocks = _Blocks(family, parsed.protocol)
    splits = {end: _split(parsed.ports[end]) for end in ("src", "dst")}
    for end in ("src", "dst"):
        if len(splits[end]) + len(parsed.named[end]) > 1:
            blocks.ports(end, splits[end], parsed.named[end])
            splits[end], parsed.named[end] = [], []
    for end in ("src", "dst"):
        if len(parsed.nets[end]) > 1:
            blocks.nets(end, parsed.nets[end])
            parsed.nets[end] = []
    for end in ("src", "dst"):
        # The rule has one place for a block of addresses, wanted or not
        if parsed.not_nets[end] and len(parsed.nets[end]) + len(parsed.not_nets[end]) > 1:
            blocks.not_nets(end, parsed.not_nets[end])
            parsed.not_nets[end] = []
    words = [*_positive(parsed, splits, family), *_negative(parsed, family)]
    if blocks.rules:
        words.append(say.marked(SCRATCH_0))
    return Matched(tuple(blocks.rules), tuple(words), tuple(dict.fromkeys(sets)))


def _positive(parsed: _Parsed, splits: dict[str, list[list[PortMatch]]], family: Family) -> Iterator[Words]:
    name = _protocol_word(parsed.protocol)
    yield from _protocol(name)
    for end in ("src", "dst"):
        yield from (say.net(end, cidr) for cidr in parsed.nets[end])
        yield from (say.in_set(ipset_name(family, ref.name), family, end) for ref in parsed.sets[end])
        if end == "dst":
            yield from (_with_port(ref, family, end) for ref in parsed.with_ports)
        yield from (say.ports(end, _ranges(ports), name) for ports in splits[end])
        yield from (_with_port(ref, family, end) for ref in parsed.named[end])
    if parsed.icmp is not None and parsed.icmp.type >= 0:
        yield say.icmp(family, parsed.icmp.type, parsed.icmp.code)


def _negative(parsed: _Parsed, family: Family) -> Iterator[Words]:
    name = _protocol_word(parsed.protocol)
    if parsed.not_protocol:
        yield say.protocol(_protocol_word(parsed.not_protocol), wanted=False)
    for end in ("src", "dst"):
        yield from (say.net(end, cidr, wanted=False) for cidr in parsed.not_nets[end])
        yield from (say.in_set(ipset_name(family, ref.name), family, end, wanted=False) for ref in parsed.not_sets[end])
        for ports in _split(parsed.not_ports[end]):
            yield say.ports(end, _ranges(ports), name, wanted=False)
        yield from (_with_port(ref, family, end, wanted=False) for ref in parsed.not_named[end])
    if parsed.not_icmp is not None and parsed.not_icmp.type >= 0:
        yield say.icmp(family, parsed.not_icmp.type, parsed.not_icmp.code, wanted=False)


class _Blocks:
    """matchBlockBuilder: what does not fit into one rule."""

    def __init__(self, family: Family, protocol: str) -> None:
        self.rules: list[FelixRule] = []
        self._family = family
        self._protocol = _protocol_word(protocol)
        self._further = False  # than the first block of wanted things

    def ports(self, end: str, splits: Iterable[list[PortMatch]], named: Iterable[SetRef]) -> None:
        alternatives = [
            (*_protocol(self._protocol), say.ports(end, _ranges(split), self._protocol)) for split in splits
        ]
        self._wanted([*alternatives, *((_with_port(ref, self._family, end),) for ref in named)])

    def nets(self, end: str, nets: Iterable[str]) -> None:
        self._wanted([(say.net(end, cidr),) for cidr in nets])

    def not_nets(self, end: str, nets: Iterable[str]) -> None:
        self._begin(SCRATCH_0)
        self.rules += [FelixRule((say.net(end, cidr),), say.clear_mark(SCRATCH_0)) for cidr in nets]

    def _wanted(self, alternatives: Iterable[tuple[Words, ...]]) -> None:
        self._begin(0)
        bit = SCRATCH_1 if self._further else SCRATCH_0
        self.rules += [FelixRule(match, say.set_mark(bit)) for match in alternatives]
        if self._further:
            self.rules.append(FelixRule((say.unmarked(SCRATCH_1),), say.clear_mark(SCRATCH_0)))
        self._further = True

    def _begin(self, bits: int) -> None:
        if not self.rules:
            self.rules.append(FelixRule((), say.set_masked(bits, SCRATCH_0 | SCRATCH_1)))


def _split(ports: Iterable[PortMatch]) -> list[list[PortMatch]]:
    """Lists of ports that fit into a match each (SplitPortList)."""
    splits: list[list[PortMatch]] = []
    room = 0
    for port in ports:
        slots = 1 if port.first == (port.last or port.first) else 2
        if room < slots:
            splits.append([])
            room = PORTS_OF_A_MATCH
        splits[-1].append(port)
        room -= slots
    return splits


def _ranges(ports: Iterable[PortMatch]) -> list[tuple[int, int]]:
    return [(port.first, port.last or port.first) for port in ports]


def _with_port(ref: SetRef, family: Family, end: str, *, wanted: bool = True) -> Words:
    return say.in_set(ipset_name(family, ref.name), family, end, with_ports=True, wanted=wanted)


def _protocol(word: str) -> tuple[Words, ...]:
    return (say.protocol(word),) if word else ()


def _protocol_word(name: str) -> str:
    """numorstring.Protocol.ToV1: names in lower case."""
    return name.lower()
