"""The rules by which kindnetd has new connections of policed pods come to its agent.

The packet's path on a node::

    prerouting   dstnat + 5   UDP to port 53, from or to a policed pod ────▶ queue 101      every packet of it
    input        srcnat + 1   from a policed pod to the node itself, new ──▶ queue 101
    postrouting  srcnat - 5   neighbour discovery, processes of root: on
                              label 28, established or related: on                          the agent let it begin
                              from or to a policed pod ────────────────────▶ queue 101
                              everybody else: label 28

A policed pod is one of the node's own that some policy selects: its addresses are in ``podips-v4`` and ``podips-v6``.
``bypass``: where nobody listens to the queue packets pass. DNS has its own chain since a bug of conntrack's lost one of
two queries that came at once (kube-network-policies#12); the set-up of kindnetd has that switched on.

Where the kernel's nftables has no ``queue``, iptables' target NFQUEUE can do the same: the same matches in mangle, at
the hooks where the packet is after PREROUTING (FORWARD, INPUT), INPUT and POSTROUTING, with ipsets. What the agent
accepts comes through once more with a mark, to be labelled: verdicts that label need another option of the kernel.

Sources: kubernetes-sigs/kube-network-policies v1.1.2 pkg/dataplane/controller.go (syncNFTablesRules,
addDNSRacersWorkaroundRules) and controller_test.go; kubernetes-sigs/kind images/kindnetd/cmd/kindnetd/main.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from emulator.cluster.model import Node
from emulator.plan.addressing import family_of
from emulator.plan.model import AnyObject, Chain, Family, IpSet, IptablesRules, Jump, NftTable, Rule

KINDNETD = "kindnetd"
TABLE = "kindnet-network-policies"  # main.go: NFTableName
QUEUE = 101  # main.go: QueueID
LABEL = 28  # as nft(8) prints what dataplane.Config calls CTLabelAccept 100
_IP: dict[Family, str] = {4: "ip", 6: "ip6"}
MARK = 0x10000000  # of the stand-in: the agent has accepted the packet
SETS: dict[Family, str] = {4: "podips-v4", 6: "podips-v6"}
DNS, INPUT, POSTROUTING = "KINDNET-DNS", "KINDNET-INPUT", "KINDNET-POSTROUTING"  # of the stand-in: no such upstream
# What IPv6 cannot live without: kube-network-policies#191. Number and nft's name for it.
DISCOVERY = (
    (133, "nd-router-solicit"),
    (134, "nd-router-advert"),
    (135, "nd-neighbor-solicit"),
    (136, "nd-neighbor-advert"),
    (137, "nd-redirect"),
)

Way = Literal["nft", "iptables", "none"]  # of getting packets to the agent; none: this machine knows neither
_WHY = "the first packet of a connection from or to a pod that a policy selects goes to the agent"


def rules(node: Node, addresses: Sequence[str], families: Sequence[Family], way: Way) -> Iterator[AnyObject]:
    """What one node holds. ``addresses`` are those of its own pods that some policy selects."""
    if way == "nft":
        yield _table(node, addresses)
    elif way == "iptables":
        for family in families:
            yield _set(node, [each for each in addresses if family_of(each) == family], family)
            yield _mangle(node, family)


def _table(node: Node, addresses: Sequence[str]) -> NftTable:
    queue = f"queue flags bypass to {QUEUE}"
    both = [f"{ip} {end} @{SETS[family]} {queue}" for family, ip in _IP.items() for end in ("saddr", "daddr")]
    own = [f"{ip} saddr @{SETS[family]} ct state new {queue}" for family, ip in _IP.items()]
    chains = (
        (
            "postrouting",
            "type filter hook postrouting priority srcnat - 5; policy accept;",
            (
                "udp dport 53 accept",
                *(f"icmpv6 type {name} accept" for _, name in DISCOVERY),
                "meta skuid 0 counter accept",
                f"ct label {LABEL} ct state established,related counter accept",
                *both,
                f"ct label set {LABEL}",
            ),
        ),
        # srcnat + 1: nft takes the name at POSTROUTING alone
        ("input", "type filter hook input priority 101; policy accept;", ('iifname "lo" accept', *own)),
        (
            "prerouting",
            "type filter hook prerouting priority dstnat + 5; policy accept;",
            ("meta l4proto != udp accept", "udp dport != 53 accept", *both),
        ),
    )
    lines: list[str] = []
    for family, name in SETS.items():
        members = [each for each in addresses if family_of(each) == family]
        lines += [f"set {name} {{", f"    type ipv{family}_addr"]
        lines += [f"    elements = {{ {', '.join(members)} }}"] if members else []
        lines += ["}"]
    for name, hook, steps in chains:
        lines += [f"chain {name} {{", *(f"    {line}" for line in (hook, *steps)), "}"]
    return NftTable(ns=node.ns, family="inet", name=TABLE, body="\n".join(lines), component=KINDNETD, why=_WHY)


def _set(node: Node, addresses: Sequence[str], family: Family) -> IpSet:
    return IpSet(
        ns=node.ns,
        name=SETS[family],
        type="hash:ip",
        family=family,
        members=tuple(addresses),
        component=KINDNETD,
        why="the node's own pods that some policy selects",
    )


def _mangle(node: Node, family: Family) -> IptablesRules:
    queue = ("-j", "NFQUEUE", "--queue-num", str(QUEUE), "--queue-bypass")
    dns = ("-p", "udp", "-m", "udp", "--dport", "53")

    def policed(end: str, why: str, *more: str) -> Rule:
        return Rule((*more, "-m", "set", "--match-set", SETS[family], end, *queue), why)

    discovery = [
        Rule(("-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", str(number), "-j", "RETURN"), f"{name}: never judged")
        for number, name in DISCOVERY
        if family == 6
    ]
    begun = ("-m", "connlabel", "--label", str(LABEL), "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED")
    marked = ("-m", "mark", "--mark", f"{MARK:#x}/{MARK:#x}")
    accepted = (
        Rule(
            (*marked, "-m", "connlabel", "--label", str(LABEL), "--set"), "the agent accepts it: label the connection"
        ),
        Rule((*marked, "-j", "RETURN"), "the agent accepts it"),
    )
    chains = (
        Chain(
            DNS,
            (
                *accepted,
                policed("src", "a policed pod asks for a name: every packet is judged"),
                policed("dst", "a policed pod is asked for a name: every packet is judged"),
            ),
        ),
        Chain(
            INPUT,
            (
                *accepted,
                Rule(("-i", "lo", "-j", "RETURN"), "the node to itself"),
                policed("src", "a policed pod to the node itself", "-m", "conntrack", "--ctstate", "NEW"),
            ),
        ),
        Chain(
            POSTROUTING,
            (
                *accepted,
                Rule((*dns, "-j", "RETURN"), f"judged by {DNS}"),
                *discovery,
                Rule(("-m", "owner", "--uid-owner", "0", "-j", "RETURN"), "a process of root on the node: the kubelet"),
                Rule((*begun, "-j", "RETURN"), "the agent let it begin"),
                policed("src", "from a policed pod"),
                policed("dst", "to a policed pod"),
                Rule(("-m", "connlabel", "--label", str(LABEL), "--set"), "nobody polices either end"),
            ),
        ),
    )
    jumps = (
        Jump("FORWARD", Rule((*dns, "-j", DNS), "DNS, once it has its target")),
        Jump("INPUT", Rule((*dns, "-j", DNS), "DNS, once it has its target")),
        Jump("INPUT", Rule(("-j", INPUT), "to the node itself")),
        Jump("POSTROUTING", Rule(("-j", POSTROUTING), "before the source is translated")),
    )
    return IptablesRules(
        ns=node.ns,
        family=family,
        table="mangle",
        owner="kindnet",
        chains=chains,
        jumps=jumps,
        component=KINDNETD,
        why=f"{_WHY}; iptables' NFQUEUE stands in for nftables' queue",
    )
