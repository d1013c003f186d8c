"""kube-router's network policy controller without any policy: the chains that every packet of a pod passes.

::

    INPUT, FORWARD, OUTPUT ─ KUBE-ROUTER-… ─ KUBE-POD-FW-<pod> ─ KUBE-NWPLCY-DEFAULT: mark 0x10000, "a policy matched"
                                                │ no such mark: NFLOG, REJECT
                                                └ mark 0x20000 ─ back in KUBE-ROUTER-…: ACCEPT

The layout is that of v2.2, as clusters show it in ``iptables-save``; later releases put what all chains begin with into
KUBE-NWPLCY-COMMON. The codes in the comments of jumps are SHA-256 over the chain and the rule, in base 32: those of the
three jumps are the same in every cluster.

Sources: cloudnativelabs/kube-router pkg/controllers/netpol (npc_iptables.go, pod.go), pkg/controllers/routing
(network_routes_controller.go, enableForwarding).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emulator.plan.model import Chain, Family, IptablesRules, Jump, Rule

COMPONENT = "kube-router"
NODE_PORTS = "30000:32767"
LONGEST_COMMENT = 255  # bytes: XT_MAX_COMMENT_LEN, less the closing NUL
MATCHED = "0x10000/0x10000"  # a policy allowed it
ACCEPTED = "0x20000/0x20000"  # all pods' chains let it pass
DEFAULT_POLICY = "KUBE-NWPLCY-DEFAULT"
TOP_LEVEL = (("INPUT", "KUBE-ROUTER-INPUT"), ("FORWARD", "KUBE-ROUTER-FORWARD"), ("OUTPUT", "KUBE-ROUTER-OUTPUT"))

ICMP: dict[Family, tuple[tuple[str, str], ...]] = {
    4: (
        ("8", "allow icmp echo requests"),
        ("3", "allow icmp destination unreachable messages"),
        ("11", "allow icmp time exceeded messages"),
    ),
    6: (
        ("135", "allow icmp neighbor solicitation messages"),
        ("136", "allow icmp neighbor advertisement messages"),
        ("128", "allow icmp echo requests"),
        ("1", "allow icmp destination unreachable messages"),
        ("3", "allow icmp time exceeded messages"),
    ),
}


@dataclass(frozen=True)
class LocalPod:
    """A pod of the node, with its address of one family."""

    namespace: str
    name: str
    address: str

    @property
    def chain(self) -> str:
        """``KUBE-POD-FW-`` and a hash. The real one takes the time of the last change into it, and so renames all
        chains at each; here the name stays."""
        return f"KUBE-POD-FW-{_code(self.namespace + self.name)}"


def firewall(
    ns: str, family: Family, device: str, bridge: str, service_cidrs: Sequence[str], pods: Sequence[LocalPod]
) -> IptablesRules:
    """The filter table of a node: ``device`` is the node's own interface, ``bridge`` the pods'."""
    top = {chain: list(rules) for chain, rules in _top_level(service_cidrs).items()}
    for pod in pods:
        _send_to(pod, top)
    accept = _rule("rule to explicitly ACCEPT traffic that comply to network policies", "-m", "mark", "--mark")
    chains = [
        Chain(chain, (*rules, Rule((*accept.args, ACCEPTED, "-j", "ACCEPT"), "every pod concerned lets it pass")))
        for chain, rules in top.items()
    ]
    return IptablesRules(
        ns=ns,
        family=family,
        table="filter",
        owner="kube-router",
        chains=(*chains, Chain(DEFAULT_POLICY, tuple(_default_policy(family))), *map(_pod_chain, pods)),
        jumps=(
            *(Jump(kernel, _coded(kernel, ("-j", own), "kube-router netpol"), "insert") for kernel, own in TOP_LEVEL),
            *_forwarding(device, bridge),
        ),
        component=COMPONENT,
        why="which pod may talk; without policies all may",
    )


def _forwarding(device: str, bridge: str) -> Iterator[Jump]:
    for comment, match in (
        ("allow outbound node port traffic on node interface with which node ip is associated", ("-o", device)),
        ("allow inbound traffic to pods", ("-o", bridge)),
        ("allow outbound traffic from pods", ("-i", bridge)),
    ):
        yield Jump("FORWARD", _rule(comment, *match, "-j", "ACCEPT", why="whatever FORWARD's policy is"), "insert")


def _top_level(service_cidrs: Sequence[str]) -> dict[str, list[Rule]]:
    """The chains, with what KUBE-ROUTER-INPUT lets through to services."""
    name = "KUBE-ROUTER-INPUT"
    rules = [
        _coded(name, ("-d", cidr, "-j", "RETURN"), "allow traffic to primary/secondary cluster IP range")
        for cidr in service_cidrs
    ]
    for protocol in ("tcp", "udp"):
        ports = ("-m", "addrtype", "--dst-type", "LOCAL", "-m", "multiport", "--dports", NODE_PORTS, "-j", "RETURN")
        comment = f"allow LOCAL {protocol.upper()} traffic to node ports"
        rules.append(_coded(name, ports, comment, before=("-p", protocol)))
    return {chain: rules if chain == name else [] for _, chain in TOP_LEVEL}


def _send_to(pod: LocalPod, top: dict[str, list[Rule]]) -> None:
    """The jumps to a pod's chain. Those for bridged packets are for pods of one node, whose frames the bridge passes on
    (bridge-nf-call-iptables)."""
    what = f"POD name:{pod.name} namespace: {pod.namespace} to chain {pod.chain}"
    bridged = ("-m", "physdev", "--physdev-is-bridged")
    for chain in ("KUBE-ROUTER-FORWARD", "KUBE-ROUTER-OUTPUT"):
        top[chain].append(_rule(f"rule to jump traffic destined to {what}", "-d", pod.address, "-j", pod.chain))
    inward = _rule(f"rule to jump traffic destined to {what}", "-d", pod.address, "-j", pod.chain)
    top["KUBE-ROUTER-FORWARD"].append(Rule((*bridged, *inward.args)))
    for _, chain in TOP_LEVEL:
        top[chain].append(_rule(f"rule to jump traffic from {what}", "-s", pod.address, "-j", pod.chain))
    outward = _rule(f"rule to jump traffic from {what}", "-s", pod.address, "-j", pod.chain)
    top["KUBE-ROUTER-FORWARD"].append(Rule((*bridged, *outward.args)))


def _default_policy(family: Family) -> Iterator[Rule]:
    protocol, module, option = (
        ("icmp", "icmp", "--icmp-type") if family == 4 else ("ipv6-icmp", "icmp6", "--icmpv6-type")
    )
    for kind, comment in ICMP[family]:
        yield Rule(
            ("-p", protocol, "-m", "comment", "--comment", comment, "-m", module, option, kind, "-j", "ACCEPT"),
            "whatever policies say",
        )
    yield _rule(
        "rule to mark traffic matching a network policy",
        "-j",
        "MARK",
        "--set-xmark",
        MATCHED,
        why="a pod that no policy selects may talk to everybody",
    )


def _pod_chain(pod: LocalPod) -> Chain:
    who = f"POD name:{pod.name} namespace: {pod.namespace}"
    unmatched = ("-m", "mark", "!", "--mark", MATCHED)
    return Chain(
        pod.chain,
        (
            _rule(
                "rule for stateful firewall for pod",
                *("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"),
                why="replies pass",
            ),
            _rule("rule to drop invalid state for pod", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"),
            _rule(
                "rule to permit the traffic traffic to pods when source is the pod's local node",
                *("-m", "addrtype", "--src-type", "LOCAL", "-d", pod.address, "-j", "ACCEPT"),
                why="node to its pods is never policed",
            ),
            _rule("run through default egress network policy chain", "-s", pod.address, "-j", DEFAULT_POLICY),
            _rule("run through default ingress network policy chain", "-d", pod.address, "-j", DEFAULT_POLICY),
            _rule(
                f"rule to log dropped traffic {who}",
                *(*unmatched, "-m", "limit", "--limit", "10/minute", "--limit-burst", "10"),
                *("-j", "NFLOG", "--nflog-group", "100"),
            ),
            _rule(f"rule to REJECT traffic destined for {who}", *unmatched, "-j", "REJECT"),
            Rule(("-j", "MARK", "--set-xmark", "0x0/0x10000"), "the other pod's chain starts afresh"),
            _rule(
                "set mark to ACCEPT traffic that comply to network policies",
                *("-j", "MARK", "--set-xmark", ACCEPTED),
                why="accepted at the end of the top-level chain",
            ),
        ),
    )


def _rule(comment: str, *args: str, why: str = "") -> Rule:
    text = comment.encode()[:LONGEST_COMMENT].decode(errors="ignore")
    return Rule(("-m", "comment", "--comment", text, *args), why)


def _coded(chain: str, args: tuple[str, ...], comment: str, before: tuple[str, ...] = ()) -> Rule:
    """A rule with its code in the comment (ensureTopLevelChains, addUUIDForRuleSpec)."""
    words = (*before, "-m", "comment", "--comment")
    code = _code(chain + "".join((*words, comment, *args)))
    return Rule((*words, f"{comment} - {code}", *args))


def _code(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:16]
