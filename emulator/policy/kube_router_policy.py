"""One NetworkPolicy as kube-router writes it: a chain of rules that mark, and the ipsets that they ask.

::

    KUBE-NWPLCY-<policy>  src in KUBE-SRC-<rule's peers>, dst in KUBE-DST-<policy's pods>, -p, --dport: mark, RETURN
                          src in KUBE-SRC-<policy's pods>, dst in KUBE-DST-<rule's peers>, ...

All names are 16 characters of SHA-256 in base 32. Those of chains have the time of the sync in them, and so change at
every sync; here that time is left out and names stay, so that runs can be compared. Sets of IPv6 begin with ``inet6:``.

What kube-router does otherwise than the API says are its *quirks*. Each can be left out: all of them in ``spec`` mode,
one by one to find out which of them explains a verdict.

Source: cloudnativelabs/kube-router pkg/controllers/netpol/policy.go, pkg/utils/ipset.go.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from emulator.policy.compiled import Compiled, address_of, port_numbers
from emulator.policy.model import Direction, Family, Peer, PodSet, Policy, PortMatch, Rule

Quirk = Literal[
    "icmp",  # echo requests and ICMP errors pass before any policy is asked
    "own-node",  # egress policies judge what a pod sends to its own node
    "shared-chain",  # a policy of both types has one chain, and either direction's packets pass all of it
    "except-of-rule",  # all ipBlocks of a rule are one set, so the excepts of one hold for the others
    "ipv6-everything",  # ::/0 is 2000::/3 and fd00::/8
    "unknown-named-port",  # a rule whose named ports nobody has opens all ports to its pods
    "named-port-anywhere",  # an egress rule with a named port and no peers opens that number everywhere
    "named-port-of-block",  # a named port beside an ipBlock opens nothing there
]
QUIRKS: frozenset[Quirk] = frozenset(
    (
        "icmp",
        "own-node",
        "shared-chain",
        "except-of-rule",
        "ipv6-everything",
        "unknown-named-port",
        "named-port-anywhere",
        "named-port-of-block",
    )
)
FAMILY_NAMES: dict[Family, str] = {4: "IPv4", 6: "IPv6"}
# An element 0.0.0.0/0 is none of hash:net (ipset(8)): two halves stand for it
HALVES: dict[str, tuple[str, ...]] = {"0.0.0.0/0": ("0.0.0.0/1", "128.0.0.0/1"), "::/0": ("::/1", "8000::/1")}
IPV6_EVERYTHING = ("2000::/3", "fd00::/8")
TYPES = {"ip": "hash:ip timeout 0", "net": "hash:net timeout 0"}


class Members(msgspec.Struct, frozen=True):
    """An ipset, before it is put into a node. ``kind`` is ``ip`` or ``net``; members of the latter may end in
    `` nomatch``."""

    name: str
    kind: Literal["ip", "net"]
    members: tuple[str, ...]
    why: str


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one rule of a policy's chain asks: the packet's addresses are in all these sets, and its protocol and port
    fit. ``rule`` is the index in the policy's list of that direction."""

    direction: Direction
    rule: int
    comment: str
    sources: tuple[Members, ...] = ()
    destinations: tuple[Members, ...] = ()
    protocol: str = ""
    first: int = 0
    last: int = 0


class PolicyChain(msgspec.Struct, frozen=True):
    """A chain. ``jump`` says which packets of a pod it is asked for: those to it, from it, or all."""

    name: str
    jump: Literal["ingress", "egress", "both"]
    matches: tuple[Match, ...]


class Translated(msgspec.Struct, frozen=True):
    """What a policy comes to in one family. ``everyone``: it depends on pods that it does not mention."""

    policy: Policy
    chains: tuple[PolicyChain, ...]
    sets: tuple[Members, ...]
    everyone: bool


def code(text: str) -> str:
    """16 characters of SHA-256, in base 32."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:16]


def translate(compiled: Compiled, policy: Policy, family: Family, quirks: frozenset[Quirk]) -> Translated:
    """A NetworkPolicy's chains and sets (syncNetworkPolicyChains)."""
    return _Translation(compiled, policy, family, quirks).run()


class _Translation:
    """Working state for one policy and family."""

    def __init__(self, compiled: Compiled, policy: Policy, family: Family, quirks: frozenset[Quirk]) -> None:
        self.compiled = compiled
        self.policy = policy
        self.family = family
        self.quirks = quirks
        self.id = policy.namespace + policy.name
        self.family_name = FAMILY_NAMES[family]
        self.sets: dict[str, Members] = {}
        self.everyone = False

    def run(self) -> Translated:
        chains: list[PolicyChain] = []
        policy = self.policy
        found = {direction: tuple(self._direction(direction)) for direction in self._directions()}
        if len(found) == 2 and "shared-chain" in self.quirks:
            chains.append(PolicyChain(self._chain_name(), "both", found["ingress"] + found["egress"]))
        else:
            for direction, matches in found.items():
                extra = "egress" if len(found) == 2 and direction == "egress" else ""
                chains.append(PolicyChain(self._chain_name(extra), direction, matches))
        return Translated(policy, tuple(chains), tuple(self.sets.values()), self.everyone)

    def _directions(self) -> Iterator[Direction]:
        if self.policy.ingress is not None:
            yield "ingress"
        if self.policy.egress is not None:
            yield "egress"

    def _chain_name(self, extra: str = "") -> str:
        return f"KUBE-NWPLCY-{code(self.id + self.family_name + extra)}"

    def _direction(self, direction: Direction) -> Iterator[Match]:
        prefix = "KUBE-DST-" if direction == "ingress" else "KUBE-SRC-"
        own = self._set(
            prefix + code(self.id + self.family_name),
            "ip",
            self.compiled.addresses(self.policy.subject, self.family),
            f"the pods that {self.policy.key} selects",
        )
        for number, rule in enumerate(self.policy.rules(direction) or ()):
            yield from self._rule(direction, number, rule, own)

    def _rule(self, direction: Direction, number: int, rule: Rule, own: Members) -> Iterator[Match]:
        """processIngressRules, processEgressRules."""
        pods = [peer for peer in rule.peers if peer.pods is not None]
        blocks = [peer for peer in rule.peers if peer.nets and (":" in peer.nets[0]) == (self.family == 6)]
        numeric = [port for port in rule.ports if not port.name]
        named = self._named(direction, number, rule)
        unknown = bool(rule.ports) and not numeric and not any(True for _ in self._resolved(direction, rule))
        everything = not rule.ports or (unknown and "unknown-named-port" in self.quirks)
        if self._members(pods):
            ends = self._pods(direction, number, pods)
            for port in numeric:
                yield self._match(direction, number, "pods", own, (ends,), port)
            for port, holders in named:
                yield self._at_named(direction, number, "pods", own, (ends,), port, holders)
            if everything:
                yield self._match(direction, number, "pods", own, (ends,))
        if not rule.peers:
            for port in numeric or (() if rule.ports else (PortMatch(""),)):
                yield self._match(direction, number, "all", own, (), port)
            for port, holders in named:
                if direction == "egress" and "named-port-anywhere" in self.quirks:
                    yield self._match(direction, number, "all", own, (), port)
                else:
                    yield self._at_named(direction, number, "all", own, (), port, holders)
        for ends in self._blocks(direction, number, blocks):
            for port in numeric or (() if rule.ports else (PortMatch(""),)):
                yield self._match(direction, number, "ipBlocks", own, (ends,), port)
            if direction == "ingress" or "named-port-of-block" not in self.quirks:
                for port, holders in named:
                    yield self._at_named(direction, number, "ipBlocks", own, (ends,), port, holders)

    # -- peers ----------------------------------------------------------------------------------------------

    def _members(self, peers: Iterable[Peer]) -> list[str]:
        """The keys of the peers' pods, each once, in the order of the peers."""
        found: dict[str, None] = {}
        for peer in peers:
            assert peer.pods is not None
            found.update(dict.fromkeys(sorted(self.compiled.members[peer.pods])))
        return list(found)

    def _pods(self, direction: Direction, number: int, peers: Iterable[Peer]) -> Members:
        keys = self._members(peers)
        addresses = (address_of(self.compiled.pods[key], self.family) for key in keys)
        members = tuple(sorted({address for address in addresses if address}))
        return self._set(self._name(direction, number, "pod"), "ip", members, self._why(direction, number, "pods"))

    def _blocks(self, direction: Direction, number: int, peers: list[Peer]) -> Iterator[Members]:
        """The set of all blocks of a rule; without the quirk one for each, so that none's excepts meet another."""
        together = [peers] if "except-of-rule" in self.quirks else [[peer] for peer in peers]
        for place, some in enumerate(together):
            entries: dict[str, str] = {}  # a later entry of the same network takes the earlier one's place
            for peer in some:
                entries.update((net, "") for net in self._networks(peer.nets))
                entries.update((net, " nomatch") for net in self._networks(peer.not_nets))
            if entries:
                name = self._name(direction, number, f"ipblock{place or ''}")
                members = tuple(sorted(net + flag for net, flag in entries.items()))
                yield self._set(name, "net", members, self._why(direction, number, "ipBlocks"))

    def _networks(self, nets: Iterable[str]) -> Iterator[str]:
        for net in nets:
            if net == "::/0" and "ipv6-everything" in self.quirks:
                yield from IPV6_EVERYTHING
            else:
                yield from HALVES.get(net, (net,))

    # -- named ports ----------------------------------------------------------------------------------------

    def _resolved(self, direction: Direction, rule: Rule) -> Iterator[tuple[str, int, str]]:
        """Protocol, number and pod for each named port of a rule that a pod has (grabNamedPortFromPod)."""
        for port in rule.ports:
            for key in self._holders(direction, rule) if port.name else ():
                for number in port_numbers(self.compiled.pods[key], port.protocol, port.name):
                    yield port.protocol, number, key

    def _holders(self, direction: Direction, rule: Rule) -> Iterable[str]:
        """The pods whose ports the names are those of."""
        if direction == "ingress":
            return sorted(self.compiled.members[self.policy.subject])
        peers = [peer for peer in rule.peers if peer.pods is not None]
        if rule.peers and (peers == list(rule.peers) or "named-port-of-block" in self.quirks):
            return self._members(peers)
        self.everyone = True
        near = rule.peers == () and "named-port-anywhere" in self.quirks
        wanted = self.policy.namespace if near else ""
        return sorted(key for key, pod in self.compiled.pods.items() if wanted in ("", pod.namespace))

    def _named(self, direction: Direction, number: int, rule: Rule) -> list[tuple[PortMatch, Members]]:
        """For each protocol and number that a name comes to, the pods that have it. kube-router's own order is that of
        a Go map, which is any."""
        found: dict[tuple[str, int], set[str]] = {}
        for protocol, port, key in self._resolved(direction, rule):
            found.setdefault((protocol, port), set()).add(address_of(self.compiled.pods[key], self.family))
        result = []
        for place, ((protocol, port), addresses) in enumerate(sorted(found.items())):
            name = self._name(direction, number, "namedport", str(place), prefix="KUBE-DST-")
            why = self._why(direction, number, f"pods whose named port is {port}/{protocol}")
            members = tuple(sorted(address for address in addresses if address))
            # Made even where the rule does not ask it: so does kube-router, for ingress
            result.append((PortMatch(protocol, first=port, last=port), Members(name, "ip", members, why)))
        return result

    # -- rules ----------------------------------------------------------------------------------------------

    def _at_named(
        self,
        direction: Direction,
        number: int,
        what: str,
        own: Members,
        ends: tuple[Members, ...],
        port: PortMatch,
        holders: Members,
    ) -> Match:
        """A rule for a named port: the destination is one of those that have it."""
        self.sets[holders.name] = holders
        if direction == "ingress":
            return self._match(direction, number, what, holders, ends, port)
        # Where only the rule's own peers were asked, those that have the port are among them already
        within = () if what == "pods" and "named-port-of-block" in self.quirks else ends
        return self._match(direction, number, what, own, (*within, holders), port)

    def _match(
        self,
        direction: Direction,
        number: int,
        what: str,
        own: Members,
        ends: tuple[Members, ...],
        port: PortMatch | None = None,
    ) -> Match:
        ingress = direction == "ingress"
        return Match(
            direction=direction,
            rule=number,
            comment=_COMMENTS[direction, what] + f"{self.policy.name} namespace {self.policy.namespace}",
            sources=ends if ingress else (own,),
            destinations=(own,) if ingress else ends,
            protocol=port.protocol if port is not None else "",
            first=port.first if port is not None else 0,
            last=port.last if port is not None else 0,
        )

    def _set(self, name: str, kind: Literal["ip", "net"], members: tuple[str, ...], why: str) -> Members:
        if self.family == 6:
            name = f"inet6:{name}"
        made = self.sets[name] = Members(name, kind, members, why)
        return made

    def _name(self, direction: Direction, number: int, what: str, place: str = "", *, prefix: str = "") -> str:
        prefix = prefix or ("KUBE-SRC-" if direction == "ingress" else "KUBE-DST-")
        name = prefix + code(f"{self.id}{direction}rule{number}{place}{self.family_name}{what}")
        return f"inet6:{name}" if self.family == 6 and what == "namedport" else name

    def _why(self, direction: Direction, number: int, what: str) -> str:
        return f"{what} of {self.policy.key}, spec.{direction}[{number}]"


_COMMENTS: Mapping[tuple[Direction, str], str] = {
    ("ingress", "pods"): "rule to ACCEPT traffic from source pods to dest pods selected by policy name ",
    ("ingress", "all"): "rule to ACCEPT traffic from all sources to dest pods selected by policy name: ",
    ("ingress", "ipBlocks"): "rule to ACCEPT traffic from specified ipBlocks to dest pods selected by policy name: ",
    ("egress", "pods"): "rule to ACCEPT traffic from source pods to dest pods selected by policy name ",
    ("egress", "all"): "rule to ACCEPT traffic from source pods to all destinations selected by policy name: ",
    ("egress", "ipBlocks"): "rule to ACCEPT traffic from source pods to specified ipBlocks selected by policy name: ",
}


def pod_sets(policy: Policy) -> Iterator[PodSet]:
    """The sets of pods that a policy mentions."""
    yield policy.subject
    for rule in (*(policy.ingress or ()), *(policy.egress or ())):
        yield from (peer.pods for peer in rule.peers if peer.pods is not None)
