"""kube-router's filter table: the chains that every packet of a pod passes, whatever policies there are.

::

    INPUT, FORWARD, OUTPUT ─ KUBE-ROUTER-… ─ KUBE-POD-FW-<pod> ┬ KUBE-NWPLCY-COMMON: invalid DROP; replies, ICMP ACCEPT
                                   │                           ├ from its own node: ACCEPT
                                   │                           ├ direction free: KUBE-NWPLCY-DEFAULT ┐
                                   │                           ├ KUBE-NWPLCY-<policy>, for each ─────┴ mark 0x10000
                                   │                           ├ no such mark: NFLOG group 100, REJECT
                                   │                           └ mark 0x20000 instead
                                   └ mark 0x20000: ACCEPT

A packet between two pods of a node passes the chains of both, so both have to mark it.

The layout is that since pull request 1913 (2025), which put what all chains begin with into KUBE-NWPLCY-COMMON. Codes
in the comments of jumps are SHA-256 over the chain and the rule, in base 32: those of the three jumps are the same in
every cluster.

Sources: cloudnativelabs/kube-router pkg/controllers/netpol (npc_iptables.go, pod.go), pkg/utils (CommonICMPRules),
pkg/controllers/routing (network_routes_controller.go, enableForwarding).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import msgspec

from emulator.plan.model import Chain, Family, IptablesRules, Jump, Rule
from emulator.policy.kube_router_policy import PolicyChain, Quirk, code

COMPONENT = "kube-router"
OWNER = "kube-router"
NODE_PORTS = (30000, 32767)  # --service-node-port-range
LONGEST_COMMENT = 255  # bytes: XT_MAX_COMMENT_LEN, less the closing NUL
MATCHED = "0x10000/0x10000"  # a policy allowed it
ACCEPTED = "0x20000/0x20000"  # all pods' chains let it pass
COMMON_POLICY, DEFAULT_POLICY = "KUBE-NWPLCY-COMMON", "KUBE-NWPLCY-DEFAULT"
TOP_LEVEL = (("INPUT", "KUBE-ROUTER-INPUT"), ("FORWARD", "KUBE-ROUTER-FORWARD"), ("OUTPUT", "KUBE-ROUTER-OUTPUT"))

_ERRORS = (
    ("destination-unreachable", "allow icmp destination unreachable messages"),
    ("time-exceeded", "allow icmp time exceeded messages"),
)
ICMP: dict[Family, tuple[tuple[str, str], ...]] = {
    4: (("echo-request", "allow icmp echo requests"), *_ERRORS),
    6: (
        ("echo-request", "allow icmp echo requests"),
        *_ERRORS,
        ("neighbor-solicitation", "allow icmp neighbor solicitation messages"),
        ("neighbor-advertisement", "allow icmp neighbor advertisement messages"),
        ("echo-reply", "allow icmp echo reply messages"),
    ),
}
# The types and codes of those of them that a policy could be meant to judge; the others belong to the link
PASSING_ICMP: dict[Family, frozenset[int]] = {4: frozenset((8, 3, 11)), 6: frozenset((128, 1, 3, 129))}


class LocalPod(msgspec.Struct, frozen=True, cache_hash=True):
    """A pod of the node, with its address of one family."""

    namespace: str
    name: str
    address: str

    @property
    def chain(self) -> str:
        """``KUBE-POD-FW-`` and a hash. The real one takes the time of the sync into it, and so renames all chains at
        each; here the name stays."""
        return f"KUBE-POD-FW-{code(self.namespace + self.name)}"


def firewall(
    ns: str,
    family: Family,
    device: str,
    bridge: str,
    service_cidrs: Sequence[str],
    pods: Sequence[LocalPod],
    *,
    pod_chains: Iterable[Chain] | None = None,
    policies: Iterable[Chain] = (),
    icmp: bool = True,
    why: str = "which pod may talk; without policies all may",
) -> IptablesRules:
    """The filter table of a node: ``device`` is the node's own interface, ``bridge`` the pods'.

    ``pod_chains`` are those of the pods, in their order, where policies select any of them, and ``policies`` the
    policies' own; ``icmp``: whether KUBE-NWPLCY-COMMON lets ICMP pass as kube-router does.
    """
    return IptablesRules(
        ns=ns,
        family=family,
        table="filter",
        owner=OWNER,
        chains=(
            *_top_level(tuple(service_cidrs), tuple(pods)),
            _common(family, icmp),
            _DEFAULT,
            *(map(_free, pods) if pod_chains is None else pod_chains),
            *policies,
        ),
        jumps=(
            *(Jump(kernel, _coded(kernel, ("-j", own), "kube-router netpol"), "insert") for kernel, own in TOP_LEVEL),
            *_forwarding(device, bridge),
        ),
        component=COMPONENT,
        why=why,
    )


def pod_chain(
    pod: LocalPod,
    policies: Sequence[tuple[PolicyChain, str]] = (),
    *,
    isolated: tuple[bool, bool] = (False, False),
    quirks: frozenset[Quirk] = frozenset(("own-node",)),
) -> Chain:
    """The chain of a pod. ``policies`` are the chains to ask, each with its policy's name; ``isolated`` tells whether
    any is for ingress, and for egress."""
    who = f"POD name:{pod.name} namespace: {pod.namespace}"
    unmatched = ("-m", "mark", "!", "--mark", MATCHED)
    rules = [
        comment_rule("run through common network policy chain", "-j", COMMON_POLICY, why="what holds for all packets"),
        comment_rule(
            "rule to permit the traffic traffic to pods when source is the pod's local node",
            *("-m", "addrtype", "--src-type", "LOCAL", "-d", pod.address, "-j", "ACCEPT"),
            why="node to its pods is never policed",
        ),
    ]
    if "own-node" not in quirks:
        rules.append(
            comment_rule(
                "rule to permit the traffic from pods to their own node",
                *("-m", "addrtype", "--dst-type", "LOCAL", "-s", pod.address, "-j", "ACCEPT"),
                why="spec mode: the API lets a pod talk to its own node; kube-router does not",
            )
        )
    for direction, option, held in (("egress", "-s", isolated[1]), ("ingress", "-d", isolated[0])):
        if not held:
            text = f"run through default {direction} network policy chain"
            rules.append(comment_rule(text, option, pod.address, "-j", DEFAULT_POLICY, why=f"no {direction} policy"))
    for chain, name in policies:
        match = {"ingress": ("-d", pod.address), "egress": ("-s", pod.address), "both": ()}[chain.jump]
        rules.append(comment_rule(f"run through nw policy {name}", *match, "-j", chain.name))
    rules += [
        comment_rule(
            f"rule to log dropped traffic {who}",
            *(*unmatched, "-m", "limit", "--limit", "10/minute", "--limit-burst", "10"),
            *("-j", "NFLOG", "--nflog-group", "100"),
        ),
        comment_rule(
            f"rule to REJECT traffic destined for {who}", *unmatched, "-j", "REJECT", why="no policy let it pass"
        ),
        Rule(("-j", "MARK", "--set-xmark", "0x0/0x10000"), "the other pod's chain starts afresh"),
        comment_rule(
            "set mark to ACCEPT traffic that comply to network policies",
            *("-j", "MARK", "--set-xmark", ACCEPTED),
            why="accepted at the end of the top-level chain",
        ),
    ]
    return Chain(pod.chain, tuple(rules))


def policy_chain(chain: PolicyChain, key: str) -> Chain:
    """A policy's chain: for each match two rules, which mark and go back (appendRuleToPolicyChain)."""
    rules: list[Rule] = []
    for match in chain.matches:
        words: list[str] = []
        for members, side in ((match.sources, "src"), (match.destinations, "dst")):
            for one in members:
                words += ("-m", "set", "--match-set", one.name, side)
        if match.protocol:
            words += ("-p", match.protocol.lower())
        if match.first:
            words += ("--dport", str(match.first) if match.first == match.last else f"{match.first}:{match.last}")
        why = f"{key} spec.{match.direction}[{match.rule}]"
        rules.append(comment_rule(match.comment, *words, "-j", "MARK", "--set-xmark", MATCHED, why=why))
        rules.append(comment_rule(match.comment, *words, "-m", "mark", "--mark", MATCHED, "-j", "RETURN", why=why))
    return Chain(chain.name, tuple(rules))


def comment_rule(comment: str, *args: str, why: str = "") -> Rule:
    """A rule that begins with a comment."""
    text = comment.encode()[:LONGEST_COMMENT].decode(errors="ignore")
    return Rule(("-m", "comment", "--comment", text, *args), why)


def _forwarding(device: str, bridge: str) -> Iterator[Jump]:
    for comment, match in (
        ("allow outbound node port traffic on node interface with which node ip is associated", ("-o", device)),
        ("allow inbound traffic to pods", ("-o", bridge)),
        ("allow outbound traffic from pods", ("-i", bridge)),
    ):
        yield Jump(
            "FORWARD", comment_rule(comment, *match, "-j", "ACCEPT", why="whatever FORWARD's policy is"), "insert"
        )


@lru_cache(maxsize=1024)
def _top_level(service_cidrs: tuple[str, ...], pods: tuple[LocalPod, ...]) -> tuple[Chain, ...]:
    """The chains that the kernel's own lead to."""
    top = _to_services(service_cidrs)
    for pod in pods:
        for chain, rule in _jumps(pod):
            top[chain].append(rule)
    accept = comment_rule(
        "rule to explicitly ACCEPT traffic that comply to network policies",
        *("-m", "mark", "--mark", ACCEPTED, "-j", "ACCEPT"),
        why="every pod concerned lets it pass",
    )
    return tuple(Chain(chain, (*rules, accept)) for chain, rules in top.items())


@lru_cache(maxsize=16384)
def _free(pod: LocalPod) -> Chain:
    """The chain of a pod that no policy selects."""
    return pod_chain(pod)


def _to_services(service_cidrs: Sequence[str]) -> dict[str, list[Rule]]:
    """The chains at their beginnings, with what KUBE-ROUTER-INPUT lets through to services."""
    name = "KUBE-ROUTER-INPUT"
    rules = [
        _coded(name, ("-d", cidr, "-j", "RETURN"), "allow traffic to primary/secondary cluster IP range")
        for cidr in service_cidrs
    ]
    span = ":".join(map(str, NODE_PORTS))
    for protocol in ("tcp", "udp"):
        ports = ("-m", "addrtype", "--dst-type", "LOCAL", "-m", "multiport", "--dports", span, "-j", "RETURN")
        comment = f"allow LOCAL {protocol.upper()} traffic to node ports"
        rules.append(_coded(name, ports, comment, before=("-p", protocol)))
    return {chain: rules if chain == name else [] for _, chain in TOP_LEVEL}


@lru_cache(maxsize=16384)
def _jumps(pod: LocalPod) -> tuple[tuple[str, Rule], ...]:
    """The jumps to a pod's chain. Those for bridged packets are for pods of one node, whose frames the bridge passes on
    (bridge-nf-call-iptables)."""
    what = f"POD name:{pod.name} namespace: {pod.namespace} to chain {pod.chain}"
    bridged = ("-m", "physdev", "--physdev-is-bridged")
    inward = comment_rule(f"rule to jump traffic destined to {what}", "-d", pod.address, "-j", pod.chain)
    outward = comment_rule(f"rule to jump traffic from {what}", "-s", pod.address, "-j", pod.chain)
    forward, output = "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-OUTPUT"
    return (
        (forward, inward),
        (output, inward),
        (forward, Rule((*bridged, *inward.args))),
        *((chain, outward) for _, chain in TOP_LEVEL),
        (forward, Rule((*bridged, *outward.args))),
    )


@lru_cache(maxsize=4)
def _common(family: Family, icmp: bool) -> Chain:
    protocol, option = ("icmp", "--icmp-type") if family == 4 else ("ipv6-icmp", "--icmpv6-type")
    state = ("-m", "conntrack", "--ctstate")
    rules = [
        comment_rule("rule to drop invalid state for pod", *state, "INVALID", "-j", "DROP"),
        comment_rule(
            "rule for stateful firewall for pod", *state, "RELATED,ESTABLISHED", "-j", "ACCEPT", why="replies pass"
        ),
    ]
    rules += [
        comment_rule(comment, "-p", protocol, option, kind, "-j", "ACCEPT", why="whatever policies say")
        for kind, comment in ICMP[family]
        if icmp or kind.startswith("neighbor-")  # without these IPv6 would find nobody
    ]
    return Chain(COMMON_POLICY, tuple(rules))


_DEFAULT = Chain(
    DEFAULT_POLICY,
    (
        comment_rule(
            "rule to mark traffic matching a network policy",
            *("-j", "MARK", "--set-xmark", MATCHED),
            why="a pod that no policy selects may talk to everybody",
        ),
    ),
)


def _coded(chain: str, args: tuple[str, ...], comment: str, before: tuple[str, ...] = ()) -> Rule:
    """A rule with its code in the comment (ensureTopLevelChains, addUUIDForRuleSpec)."""
    words = (*before, "-m", "comment", "--comment")
    found = code(chain + "".join((*words, comment, *args)))
    return Rule((*words, f"{comment} - {found}", *args))
