"""Felix's iptables rules on a Calico node that do not depend on any policy: what ``iptables-save`` shows on a real one.

::

    raw PREROUTING     cali-PREROUTING     a pod's packet must come from its own address (rpfilter)
    mangle             cali-*              known connections pass
    nat POSTROUTING    cali-nat-outgoing   pod to the world: MASQUERADE
    filter FORWARD     cali-FORWARD ─┬─ from cali+ ─ cali-from-wl-dispatch ─ cali-fw-<if> ─ cali-pro-kns.<namespace>
                                     └─ to cali+ ─── cali-to-wl-dispatch ─── cali-tw-<if> ─ cali-pri-kns.<namespace>

From the dispatch chains on it is the business of ``emulator.policy.felix``: there policies stand before the profiles.

Sources: projectcalico/calico felix/rules/static.go, nat.go; ``emulator.policy.felix_rules`` for marks, names and
hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from emulator.plan.model import Chain, Family, IptablesRules, Jump
from emulator.policy.felix_endpoints import VXLAN_PORT, Endpoint, endpoint_chains
from emulator.policy.felix_rules import (
    ACCEPT,
    ALL_MARKS,
    ALLOWED,
    COMPONENT,
    SCRATCH_0,
    TRACKED,
    FelixRule,
    chain,
    clear_mark,
    ipset_name,
    marked,
    set_mark,
    unmarked,
)

Table = Literal["filter", "nat", "mangle", "raw"]

FROM_WORKLOAD = SCRATCH_0
ROUTER_ICMPV6 = (130, 131, 132, 133, 135, 136)  # MLD, router solicitation, neighbour discovery: static.go ICMPv6Filter


@dataclass(frozen=True)
class Tunnelling:
    """What the IP pools ask for: tunnels of one or the other kind, the node's tunnel ``devices``, masquerading."""

    ipip: bool = False
    vxlan: bool = False
    devices: tuple[str, ...] = ()
    nat_outgoing: bool = True


NO_TUNNELS = Tunnelling()


def felix_rules(
    ns: str, family: Family, endpoints: Sequence[Endpoint], tunnelling: Tunnelling = NO_TUNNELS
) -> tuple[IptablesRules, ...]:
    """Everything that Felix holds in one node's tables for one family, without any policy."""
    return (
        _raw(ns, family, tunnelling),
        _mangle(ns, family),
        _nat(ns, family, tunnelling),
        filter_rules(ns, family, endpoint_chains(endpoints), tunnelling),
    )


def filter_rules(
    ns: str, family: Family, judging: Sequence[Chain], tunnelling: Tunnelling, *, own_node: bool = False
) -> IptablesRules:
    """The filter table, where ``judging`` are the chains from the dispatch on. ``own_node``: a pod reaches its node
    whatever the policies say of its egress, which is not what Felix does."""
    appended = (
        FelixRule(
            ALLOWED, "--jump ACCEPT", ("Policy explicitly accepted packet.",), why="both pods' chains let it pass"
        ),
        FelixRule("", set_mark(ACCEPT), why="tells mangle POSTROUTING that this was forwarded"),
    )
    return _rules(
        ns,
        family,
        "filter",
        (*_static_filter(family, tunnelling, own_node), *judging),
        (
            _first("INPUT", "cali-INPUT"),
            _first("FORWARD", "cali-FORWARD"),
            _first("OUTPUT", "cali-OUTPUT"),
            # Felix hashes appended rules under a name of their own, lest they equal inserted ones.
            *(Jump("FORWARD", rule) for rule in chain("FORWARD*appends*", appended).rules),
        ),
        why="which pod may talk; without policy the namespaces' profiles allow everything",
    )


# -- tables -----------------------------------------------------------------------------------------------------


def _raw(ns: str, family: Family, tunnelling: Tunnelling) -> IptablesRules:
    mark = marked(FROM_WORKLOAD)
    untracked = FelixRule(
        f"-p udp --dport {VXLAN_PORT}", "--jump NOTRACK", why="each direction has a source port of its own: no reply"
    )
    vxlan = (untracked,) if tunnelling.vxlan else ()
    prerouting = (
        _clear(ALL_MARKS, "no mark of anyone else's counts"),
        *vxlan,
        FelixRule("--in-interface cali+", set_mark(FROM_WORKLOAD), why="from a pod"),
        FelixRule(mark, "--jump cali-rpf-skip", why="pods that may send from foreign addresses: none"),
        FelixRule(
            f"{mark} -m rpfilter --invert --validmark", "--jump DROP", why="a pod sends from its own address only"
        ),
        FelixRule(unmarked(FROM_WORKLOAD), "--jump cali-from-host-endpoint"),
        FelixRule(ALLOWED, "--jump ACCEPT"),
    )
    output = (
        _clear(ALL_MARKS),
        FelixRule("", "--jump cali-to-host-endpoint"),
        *vxlan,
        FelixRule(ALLOWED, "--jump ACCEPT"),
    )
    return _rules(
        ns,
        family,
        "raw",
        (
            chain("cali-PREROUTING", prerouting),
            chain("cali-OUTPUT", output),
            *_empty("cali-rpf-skip", "cali-from-host-endpoint", "cali-to-host-endpoint"),
        ),
        (_first("PREROUTING", "cali-PREROUTING"), _first("OUTPUT", "cali-OUTPUT")),
        why="before connection tracking: a pod's source address is checked",
    )


def _mangle(ns: str, family: Family) -> IptablesRules:
    host_accepted = ("Host endpoint policy accepted packet.",)
    prerouting = (
        FelixRule(TRACKED, "--jump ACCEPT"),
        FelixRule(ALLOWED, "--jump ACCEPT"),
        FelixRule("", "--jump cali-from-host-endpoint"),
        FelixRule(ALLOWED, "--jump ACCEPT", host_accepted),
    )
    postrouting = (
        FelixRule(ALLOWED, "--jump RETURN", why="forwarded, and accepted in the filter table"),
        _clear(ALL_MARKS),
        FelixRule("-m conntrack --ctstate DNAT", "--jump cali-to-host-endpoint"),
        FelixRule(ALLOWED, "--jump RETURN", host_accepted),
    )
    return _rules(
        ns,
        family,
        "mangle",
        (
            chain("cali-PREROUTING", prerouting),
            chain("cali-POSTROUTING", postrouting),
            *_empty("cali-from-host-endpoint", "cali-to-host-endpoint"),
        ),
        (_first("PREROUTING", "cali-PREROUTING"), _first("POSTROUTING", "cali-POSTROUTING")),
        why="where policy for host endpoints would stand",
    )


def _nat(ns: str, family: Family, tunnelling: Tunnelling) -> IptablesRules:
    masquerade = FelixRule(
        f"-m set --match-set {ipset_name(family, 'masq-ipam-pools')} src "
        f"-m set ! --match-set {ipset_name(family, 'all-ipam-pools')} dst",
        "--jump MASQUERADE --random-fully",
        why="natOutgoing: pod to anything that is no pod leaves with the node's address",
    )
    # Both tests: an address of the node that is not the tunnel's own.
    tunnels = (
        FelixRule(
            f"--out-interface {device} -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL",
            "--jump MASQUERADE --random-fully",
            why="the node's own packets leave by the tunnel with the tunnel's address",
        )
        for device in tunnelling.devices
    )
    return _rules(
        ns,
        family,
        "nat",
        (
            chain("cali-PREROUTING", (FelixRule("", "--jump cali-fip-dnat"),)),
            chain("cali-OUTPUT", (FelixRule("", "--jump cali-fip-dnat"),)),
            chain(
                "cali-POSTROUTING",
                (FelixRule("", "--jump cali-fip-snat"), FelixRule("", "--jump cali-nat-outgoing"), *tunnels),
            ),
            chain("cali-nat-outgoing", (masquerade,) if tunnelling.nat_outgoing else ()),
            *_empty("cali-fip-dnat", "cali-fip-snat"),
        ),
        (
            _first("PREROUTING", "cali-PREROUTING"),
            _first("OUTPUT", "cali-OUTPUT"),
            _first("POSTROUTING", "cali-POSTROUTING"),
        ),
        why="natOutgoing of the IP pools; floating addresses: none",
    )


@lru_cache(maxsize=64)
def _static_filter(family: Family, tunnelling: Tunnelling, own_node: bool) -> tuple[Chain, ...]:
    incoming, outgoing = _tunnels_of_nodes(family, tunnelling)
    host_accepted = ("Host endpoint policy accepted packet.",)
    discovery = [FelixRule(f"-p 58 -m icmp6 --icmpv6-type {kind}", "--jump ACCEPT") for kind in ROUTER_ICMPV6]
    return (
        chain(
            "cali-FORWARD",
            (
                _clear(ALL_MARKS & ~ACCEPT),
                FelixRule(unmarked(ACCEPT), "--jump cali-from-hep-forward"),
                FelixRule("--in-interface cali+", "--jump cali-from-wl-dispatch", why="from a pod: its egress"),
                FelixRule("--out-interface cali+", "--jump cali-to-wl-dispatch", why="to a pod: its ingress"),
                FelixRule("", "--jump cali-to-hep-forward"),
                FelixRule("", "--jump cali-cidr-block"),
            ),
        ),
        chain(
            "cali-INPUT",
            (
                *incoming,
                FelixRule("--in-interface cali+", "--goto cali-wl-to-host", why="pod to its own node"),
                FelixRule(ALLOWED, "--jump ACCEPT"),
                _clear(ALL_MARKS),
                FelixRule("", "--jump cali-from-host-endpoint"),
                FelixRule(ALLOWED, "--jump ACCEPT", host_accepted),
            ),
        ),
        chain(
            "cali-OUTPUT",
            (
                FelixRule(ALLOWED, "--jump ACCEPT"),
                FelixRule("--out-interface cali+", "--jump RETURN", why="node to its pods is never policed"),
                *outgoing,
                _clear(ALL_MARKS),
                FelixRule("-m conntrack ! --ctstate DNAT", "--jump cali-to-host-endpoint"),
                FelixRule(ALLOWED, "--jump ACCEPT", host_accepted),
            ),
        ),
        chain(
            "cali-wl-to-host",
            (
                *(discovery if family == 6 else ()),
                *([FelixRule("", "--jump ACCEPT", why="policy mode spec: a pod reaches its node")] if own_node else ()),
                FelixRule("", "--jump cali-from-wl-dispatch"),
                FelixRule("", "--jump ACCEPT", ("Configured DefaultEndpointToHostAction",)),
            ),
        ),
        *_empty(
            "cali-from-hep-forward",
            "cali-to-hep-forward",
            "cali-from-host-endpoint",
            "cali-to-host-endpoint",
            "cali-cidr-block",
        ),
    )


def _tunnels_of_nodes(family: Family, tunnelling: Tunnelling) -> tuple[list[FelixRule], list[FelixRule]]:
    """Encapsulated packets: accepted from and to other nodes, whatever host endpoints' policies say; never from
    anybody else. Incoming rules, outgoing rules."""
    incoming, outgoing = [], []
    if tunnelling.ipip:
        hosts = ipset_name(4, "all-hosts-net")
        incoming += [
            FelixRule(
                f"-p 4 -m set --match-set {hosts} src -m addrtype --dst-type LOCAL",
                "--jump ACCEPT",
                ("Allow IPIP packets from Calico hosts",),
            ),
            FelixRule("-p 4", "--jump DROP", ("Drop IPIP packets from non-Calico hosts",)),
        ]
        outgoing.append(
            FelixRule(
                f"-p 4 -m set --match-set {hosts} dst -m addrtype --src-type LOCAL",
                "--jump ACCEPT",
                ("Allow IPIP packets to other Calico hosts",),
            )
        )
    if tunnelling.vxlan:
        nodes, port = ipset_name(family, "all-vxlan-net"), f"-p 17 -m multiport --destination-ports {VXLAN_PORT}"
        incoming += [
            FelixRule(
                f"{port} -m set --match-set {nodes} src -m addrtype --dst-type LOCAL",
                "--jump ACCEPT",
                (f"Allow IPv{family} VXLAN packets from allowed hosts",),
            ),
            FelixRule(
                f"{port} -m addrtype --dst-type LOCAL",
                "--jump DROP",
                (f"Drop IPv{family} VXLAN packets from non-allowed hosts",),
            ),
        ]
        outgoing.append(
            FelixRule(
                f"{port} -m addrtype --src-type LOCAL -m set --match-set {nodes} dst",
                "--jump ACCEPT",
                (f"Allow IPv{family} VXLAN packets to other allowed hosts",),
            )
        )
    return incoming, outgoing


def _clear(mask: int, why: str = "") -> FelixRule:
    return FelixRule("", clear_mark(mask), why=why)


def _empty(*names: str) -> tuple[Chain, ...]:
    return tuple(Chain(name) for name in names)


def _first(kernel_chain: str, own: str) -> Jump:
    (rule,) = chain(kernel_chain, (FelixRule("", f"--jump {own}"),)).rules
    return Jump(kernel_chain, rule, "insert")


def _rules(
    ns: str, family: Family, table: Table, chains: tuple[Chain, ...], jumps: tuple[Jump, ...], why: str
) -> IptablesRules:
    return IptablesRules(
        ns=ns, family=family, table=table, owner=COMPONENT, chains=chains, jumps=jumps, component=COMPONENT, why=why
    )
