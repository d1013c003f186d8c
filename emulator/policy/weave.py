"""weave-npc, Weave Net's network policy controller: its chains and ipsets, and where it is not what the API says.

::

    FORWARD ┬ -i weave ─ WEAVE-NPC-EGRESS ┬ replies ACCEPT; from other nodes, or to this one: RETURN
            │                             ├ new ─ WEAVE-NPC-EGRESS-DEFAULT: pods without egress policy ┐
            │                             ├ new ─ WEAVE-NPC-EGRESS-CUSTOM: the policies' rules ────────┴ mark 0x40000
            │                             └ no such mark: NFLOG group 86, DROP
            ├ -o weave ─ WEAVE-NPC ┬ replies ACCEPT; to other nodes: ACCEPT, they judge
            │                      ├ new ─ WEAVE-NPC-DEFAULT: pods without ingress policy: ACCEPT
            │                      └ new ─ WEAVE-NPC-INGRESS: the policies' rules: ACCEPT
            └ -o weave: NFLOG group 86, DROP
    INPUT   ─ -i weave ─ WEAVE-NPC-EGRESS

Every node holds the rules and sets of all policies and namespaces. Weave Net is IPv4 only, and so is this.

The jumps of FORWARD and INPUT are weaver's, which puts them first; their order counts, so they stand here.

Sources: weaveworks/weave npc (analyser.go, namespace.go, rule.go, selector.go, ipblock.go, constants.go),
prog/weave-npc/main.go (createBaseRules), net/bridge.go (configureIPTables).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Literal

import msgspec

from emulator.cluster.model import Cluster, Node
from emulator.plan.addressing import families_of
from emulator.plan.model import AnyObject, Chain, IpSet, IptablesRules, Jump, Rule
from emulator.policy.compiled import Compiled, address_of, port_numbers
from emulator.policy.enforcer import Deviation, OnEveryNode, PolicyMode
from emulator.policy.evaluate import evaluate, protocol_number
from emulator.policy.flow import Flow
from emulator.policy.model import DIRECTIONS, Direction, LabelSelector, Peer, PodSet, Policy, PolicyKind, PortMatch
from emulator.policy.model import Rule as PolicyRule
from emulator.policy.selection import selects
from emulator.policy.weave_names import printed, set_name

COMPONENT = "weave-npc"
BRIDGE, BRIDGE_PORT = "weave", "vethwe-bridge"
MARK = "0x40000/0x40000"
MAIN, DEFAULT, INGRESS = "WEAVE-NPC", "WEAVE-NPC-DEFAULT", "WEAVE-NPC-INGRESS"
EGRESS, EGRESS_DEFAULT, EGRESS_CUSTOM, EGRESS_ACCEPT = (
    "WEAVE-NPC-EGRESS",
    "WEAVE-NPC-EGRESS-DEFAULT",
    "WEAVE-NPC-EGRESS-CUSTOM",
    "WEAVE-NPC-EGRESS-ACCEPT",
)
FIRST = "NOTE: this must go before '-j KUBE-FORWARD'"
LONGEST_COMMENT = 255  # bytes: XT_MAX_COMMENT_LEN, less the closing NUL

Quirk = Literal["named-port", "end-port"]
QUIRKS: frozenset[Quirk] = frozenset(("named-port", "end-port"))
_KNOWN: dict[Quirk, tuple[str, str]] = {
    "named-port": ("weave-npc refuses a policy with a named port, all of it", "weaveworks/weave#3032"),
    "end-port": ("weave-npc does not read endPort: the first port of the range alone is open", "npc/analyser.go"),
}
_NEW = ("-m", "state", "--state", "NEW")
_UNMARKED = ("-m", "mark", "!", "--mark", MARK)
_REPLIES = Rule(("-m", "state", "--state", "RELATED,ESTABLISHED", "-j", "ACCEPT"), "replies pass")


class Members(msgspec.Struct, frozen=True):
    """An ipset, before it is put into a node."""

    name: str
    type: str
    members: tuple[str, ...]
    why: str


class Side(msgspec.Struct, frozen=True, omit_defaults=True):
    """One end of a rule: in all these sets, and in this network but for those of a set."""

    comment: str = "anywhere"
    sets: tuple[str, ...] = ()
    net: str = ""
    excepts: str = ""


class Match(msgspec.Struct, frozen=True):
    """What a rule asks (newRuleSpec)."""

    policy: str
    direction: Direction
    rule: int
    source: Side
    destination: Side
    protocol: str
    ports: str


def load(mode: PolicyMode) -> WeavePolicies:
    """The enforcer, for one lab."""
    return WeavePolicies(mode)


class WeavePolicies(OnEveryNode):
    """weave-npc with ``--allow-mcast``, as it is shipped."""

    name = "weave-npc"
    title = "weave-npc · iptables and ipset"
    requires: tuple[str, ...] = ("iptables", "iptables-restore", "bridge-nf", "ipset", "ipset-program")
    stand_in = ""
    kinds: frozenset[PolicyKind] = frozenset(("NetworkPolicy",))

    def __init__(self, mode: PolicyMode) -> None:
        self.mode = mode
        self._quirks: frozenset[Quirk] = QUIRKS if mode == "faithful" else frozenset()
        self._made: dict[frozenset[Quirk], _Rules] = {}  # of the latest policies

    def _rules(self, compiled: Compiled, quirks: frozenset[Quirk]) -> _Rules:
        made = self._made.get(quirks)
        if made is None or made.compiled is not compiled:
            made = self._made[quirks] = _Rules(compiled, quirks)
        return made

    def node(self, cluster: Cluster, compiled: Compiled, node: Node) -> Iterator[AnyObject]:
        """The sets of all namespaces and policies, and the filter table."""
        made = self._rules(compiled, self._quirks)
        for one in made.sets.values():
            yield IpSet(
                ns=node.ns,
                name=one.name,
                type=one.type,
                family=4,
                members=one.members,
                component=COMPONENT,
                why=one.why,
            )
        yield IptablesRules(
            ns=node.ns,
            family=4,
            table="filter",
            owner="weave-npc",
            chains=made.chains,
            jumps=_jumps(),
            component=COMPONENT,
            why="which pod may talk",
        )

    def deviations(self, cluster: Cluster, compiled: Compiled) -> Iterator[Deviation]:
        read = [policy for policy in compiled.policies if policy.kind in self.kinds]
        yield from self._unread(compiled)
        for policy in read if 6 in families_of(cluster.topology.pod_cidrs) else ():
            yield Deviation("Weave Net is IPv4 only: nothing is enforced by IPv6", policy=policy.key, unenforced=True)
        for policy in read if self._quirks else ():
            if _named(policy):
                what, source = _KNOWN["named-port"]
                yield Deviation(what, policy=policy.key, source=source, unenforced=True)
            elif any(port.last > port.first for rule in _rules(policy) for port in rule.ports):
                what, source = _KNOWN["end-port"]
                yield Deviation(what, policy=policy.key, source=f"weaveworks/weave {source}")

    def deviates(self, compiled: Compiled, flow: Flow, *, allowed: bool) -> Deviation | None:
        if flow.family == 6:
            return None if allowed else Deviation("Weave Net is IPv4 only: nothing is enforced by IPv6")
        if self._rules(compiled, self._quirks).passes(flow) == allowed:
            return None
        read = compiled.of_kinds(self.kinds)
        if read is not compiled and evaluate(read, flow).allowed != allowed:
            return next(self._unread(compiled))
        for quirk in sorted(self._quirks):
            if self._rules(compiled, self._quirks - {quirk}).passes(flow) == allowed:
                what, source = _KNOWN[quirk]
                return Deviation(what, source=source)
        return Deviation("several of weave-npc's deviations together", source="weaveworks/weave npc/analyser.go")

    def _unread(self, compiled: Compiled) -> Iterator[Deviation]:
        for policy in compiled.policies:
            if policy.kind not in self.kinds:
                yield Deviation(f"weave-npc does not read {policy.kind}", policy=policy.key, unenforced=True)


class _Rules:
    """All that weave-npc makes of a cluster's policies."""

    def __init__(self, compiled: Compiled, quirks: frozenset[Quirk]) -> None:
        self.compiled = compiled
        self.quirks = quirks
        self.sets: dict[str, Members] = {}
        self.policies = [
            policy
            for policy in compiled.policies
            if policy.kind == "NetworkPolicy" and not ("named-port" in quirks and _named(policy))
        ]
        self.isolated = {
            direction: {
                key
                for policy in self.policies
                if policy.rules(direction) is not None
                for key in compiled.selected(policy)
            }
            for direction in DIRECTIONS
        }
        self.namespaces = sorted({*compiled.cluster.namespaces, *(pod.namespace for pod in compiled.pods.values())})
        bypass = [self._namespace(name) for name in self.namespaces]
        found = [match for policy in self.policies for match in self._policy(policy)]
        # Namespaces keep each rule once, whichever of their policies it is of; its words are its identity
        self.matches = list({tuple(_words(match)): match for match in found}.values())
        self.chains = self._chains(bypass)

    # -- sets -----------------------------------------------------------------------------------------------

    def _set(self, key: str, kind: str, members: Iterable[str], why: str) -> str:
        name = set_name(key)
        # A selector of namespaces and one of namespaces with all their pods have the same key: they mean the same
        self.sets.setdefault(name, Members(name, kind, tuple(sorted(set(members))), why))
        return name

    def _addresses(self, keys: Iterable[str]) -> Iterator[str]:
        return (address for key in keys if (address := address_of(self.compiled.pods[key], 4)))

    def _namespace(self, name: str) -> tuple[str, str, str]:
        """A namespace's own sets: all its pods, and those that no policy selects for a direction."""
        pods = [key for key, pod in self.compiled.pods.items() if pod.namespace == name]
        self._set(f"{name}:", "hash:ip", self._addresses(pods), f"all pods of namespace {name}")
        free = [
            self._set(
                f"{direction}-default-allow:{name}",
                "hash:ip",
                self._addresses(key for key in pods if key not in self.isolated[direction]),
                f"pods of namespace {name} that no policy selects for {direction}",
            )
            for direction in DIRECTIONS
        ]
        return name, *free  # type: ignore[return-value]  # one for each direction

    def _side(self, policy: Policy, peer: Peer) -> Side:
        if peer.nets:
            comment = f"cidr: {peer.nets[0]}"
            if not peer.not_nets:
                return Side(comment, net=peer.nets[0])
            key = " ".join(sorted(peer.not_nets))
            name = self._set(
                f"{policy.namespace}:ipblock-except:{key}", "hash:net", peer.not_nets, f"excepted from {peer.nets[0]}"
            )
            return Side(f"{comment} except [{key}]", net=peer.nets[0], excepts=name)
        assert peer.pods is not None
        return self._pods(peer.pods, peer.pods)

    def _pods(self, pods: PodSet, counted: PodSet) -> Side:
        members = self._addresses(self.compiled.members[counted])
        if pods.namespace:
            key = printed(pods.pods)
            comment = f"pods: namespace: {pods.namespace}, selector: {key}"
            name = self._set(f"{pods.namespace}:{key}", "hash:ip", members, comment)
        elif pods.pods is None or pods.pods == LabelSelector():
            key = printed(pods.namespaces)
            comment = f"namespaces: selector: {key}"
            chosen = [set_name(f"{name}:") for name in self.namespaces if self._chosen(pods, name)]
            name = self._set(f":{key}", "list:set", chosen, comment)
        else:
            key = printed(pods.namespaces) + printed(pods.pods)
            comment = f"namespaces: selector: {key}"
            name = self._set(f":{key}", "hash:ip", members, comment)
        return Side(comment, sets=(name,))

    def _chosen(self, pods: PodSet, name: str) -> bool:
        return selects(pods.namespaces, self.compiled.cluster.namespaces.get(name, {}))

    # -- rules ----------------------------------------------------------------------------------------------

    def _policy(self, policy: Policy) -> Iterator[Match]:
        own = self._pods(policy.subject, policy.subject)
        for direction in DIRECTIONS:
            for number, rule in enumerate(policy.rules(direction) or ()):
                sides = [self._side(policy, peer) for peer in rule.peers if not peer.nets or ":" not in peer.nets[0]]
                for side in sides if rule.peers else (Side(),):
                    for protocol, ports, holders in self._ports(policy, direction, number, rule):
                        far = side
                        mine = own
                        if holders and direction == "ingress":
                            mine = Side(own.comment, (*own.sets, holders))
                        elif holders:
                            far = msgspec.structs.replace(side, sets=(*side.sets, holders))
                        ends = (far, mine) if direction == "ingress" else (mine, far)
                        yield Match(policy.key, direction, number, *ends, protocol, ports)

    def _ports(
        self, policy: Policy, direction: Direction, number: int, rule: PolicyRule
    ) -> Iterator[tuple[str, str, str]]:
        """Protocol, ports as ``--dport`` has them, and (spec mode) the set of the pods that have a named port."""
        if not rule.ports:
            yield "", "", ""
        for port in rule.ports:
            if port.name:
                yield from self._named_ports(policy, direction, number, port)
            elif not port.first:
                yield port.protocol, "0:65535", ""
            elif port.last > port.first and "end-port" not in self.quirks:
                yield port.protocol, f"{port.first}:{port.last}", ""
            else:
                yield port.protocol, str(port.first), ""

    def _named_ports(
        self, policy: Policy, direction: Direction, number: int, port: PortMatch
    ) -> Iterator[tuple[str, str, str]]:
        holders: dict[int, list[str]] = {}
        for key, pod in self.compiled.pods.items():
            for found in port_numbers(pod, port.protocol, port.name):
                holders.setdefault(found, []).append(key)
        for found, keys in sorted(holders.items()):
            name = self._set(
                f":named-port:{port.protocol}:{port.name}:{found}",
                "hash:ip",
                self._addresses(keys),
                f"spec mode: pods whose port {port.name} is {found}/{port.protocol}",
            )
            yield port.protocol, str(found), name

    def _chains(self, bypass: Sequence[tuple[str, str, str]]) -> tuple[Chain, ...]:
        ingress_default: list[Rule] = []
        egress_default: list[Rule] = []
        for name, ingress, egress in bypass:
            words = ("-m", "set", "--match-set", ingress, "dst", "-j", "ACCEPT")
            ingress_default.append(_said(f"DefaultAllow ingress isolation for namespace: {name}", words))
            for target in (EGRESS_ACCEPT, "RETURN"):
                words = ("-m", "set", "--match-set", egress, "src", "-j", target)
                egress_default.append(_said(f"DefaultAllow egress isolation for namespace: {name}", words))
        ingress_rules: list[Rule] = []
        egress_rules: list[Rule] = []
        for match in self.matches:
            why = f"{match.policy} spec.{match.direction}[{match.rule}]"
            args = tuple(_words(match))
            if match.direction == "ingress":
                ingress_rules.append(Rule((*args, "-j", "ACCEPT"), why))
            else:
                egress_rules += (Rule((*args, "-j", target), why) for target in (EGRESS_ACCEPT, "RETURN"))
        bridged = ("-m", "physdev", "--physdev-is-bridged")
        return (
            Chain(
                MAIN,
                (
                    _REPLIES,
                    Rule(("-d", "224.0.0.0/4", "-j", "ACCEPT"), "--allow-mcast"),
                    Rule((*bridged, "--physdev-out", BRIDGE_PORT, "-j", "ACCEPT"), "the pod's own node judges"),
                    Rule((*_NEW, "-j", DEFAULT), "pods that no policy isolates"),
                    Rule((*_NEW, "-j", INGRESS), "what policies allow"),
                ),
            ),
            Chain(DEFAULT, tuple(ingress_default)),
            Chain(INGRESS, tuple(ingress_rules)),
            Chain(
                EGRESS,
                (
                    _REPLIES,
                    Rule((*bridged, "--physdev-in", BRIDGE_PORT, "-j", "RETURN"), "the sender's own node has judged"),
                    Rule(("-m", "addrtype", "--dst-type", "LOCAL", "-j", "RETURN"), "to the node: never policed"),
                    Rule(("-d", "224.0.0.0/4", "-j", "RETURN"), "--allow-mcast"),
                    Rule((*_NEW, "-j", EGRESS_DEFAULT), "pods that no policy isolates"),
                    Rule((*_NEW, *_UNMARKED, "-j", EGRESS_CUSTOM), "what policies allow"),
                    Rule((*_NEW, *_UNMARKED, "-j", "NFLOG", "--nflog-group", "86")),
                    Rule((*_UNMARKED, "-j", "DROP"), "no policy let it pass"),
                ),
            ),
            Chain(EGRESS_DEFAULT, tuple(egress_default)),
            Chain(EGRESS_CUSTOM, tuple(egress_rules)),
            Chain(EGRESS_ACCEPT, (Rule(("-j", "MARK", "--set-xmark", MARK), "egress is allowed; ingress comes next"),)),
        )

    # -- verdicts -------------------------------------------------------------------------------------------

    def passes(self, flow: Flow) -> bool:
        """Whether these rules let an IPv4 flow pass."""
        source, destination = flow.source, flow.destination
        if source.kind == destination.kind == "pod" and source.name == destination.name:
            return True
        for direction, own, far in (("egress", source, destination), ("ingress", destination, source)):
            if own.kind != "pod" or own.name not in self.isolated[direction]:  # type: ignore[index]  # a Direction
                continue
            if far.kind == "node" and far.name == self.compiled.pods[own.name].node:
                continue
            if not any(self._holds(match, flow) for match in self.matches if match.direction == direction):
                return False
        return True

    def _holds(self, match: Match, flow: Flow) -> bool:
        if match.protocol and protocol_number(match.protocol) != protocol_number(flow.protocol):
            return False
        first, _, last = match.ports.partition(":")
        if first and not int(first) <= flow.port <= int(last or first):
            return False
        return self._at(match.source, flow.source.address) and self._at(match.destination, flow.destination.address)

    def _at(self, side: Side, address: str) -> bool:
        if side.net and ip_address(address) not in ip_network(side.net):
            return False
        if side.excepts and self._in(side.excepts, address):
            return False
        return all(self._in(name, address) for name in side.sets)

    def _in(self, name: str, address: str) -> bool:
        one = self.sets[name]
        if one.type == "list:set":
            return any(self._in(member, address) for member in one.members)
        if one.type == "hash:net":
            return any(ip_address(address) in ip_network(member) for member in one.members)
        return address in one.members


def _rules(policy: Policy) -> tuple[PolicyRule, ...]:
    return (*(policy.ingress or ()), *(policy.egress or ()))


def _named(policy: Policy) -> bool:
    return any(port.name for rule in _rules(policy) for port in rule.ports)


def _words(match: Match) -> Iterator[str]:
    if match.protocol:
        yield from ("-p", match.protocol.lower())
    for side, option, word in ((match.source, "-s", "src"), (match.destination, "-d", "dst")):
        if side.net:
            yield from (option, side.net)
        if side.excepts:
            yield from ("-m", "set", "!", "--match-set", side.excepts, word)
        for name in side.sets:
            yield from ("-m", "set", "--match-set", name, word)
    if match.ports:
        yield from ("--dport", match.ports)
    text = f"{match.source.comment} -> {match.destination.comment} ({match.direction})"
    yield from ("-m", "comment", "--comment", text.encode()[:LONGEST_COMMENT].decode(errors="ignore"))


def _said(comment: str, words: Sequence[str]) -> Rule:
    return Rule((*words, "-m", "comment", "--comment", comment))


def _jumps() -> tuple[Jump, ...]:
    """What net/bridge.go puts at the top of FORWARD and INPUT, in this order."""
    note = ("-m", "comment", "--comment", FIRST)
    established = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")
    forward = (
        Rule(("-i", BRIDGE, *note, "-j", EGRESS), "what pods send"),
        Rule(("-o", BRIDGE, *note, "-j", MAIN), "what pods get"),
        Rule(("-o", BRIDGE, *_NEW, "-j", "NFLOG", "--nflog-group", "86")),
        Rule(("-o", BRIDGE, "-j", "DROP"), "no policy let it pass"),
        Rule(("-i", BRIDGE, "!", "-o", BRIDGE, "-j", "ACCEPT"), "from pods to the world"),
        Rule(("-o", BRIDGE, *established, "-j", "ACCEPT"), "and back"),
    )
    jumps = tuple(Jump("FORWARD", rule, "insert") for rule in forward)
    return (*jumps, Jump("INPUT", Rule(("-i", BRIDGE, "-j", EGRESS), "what pods send to their node"), "insert"))
