"""Felix's iptables rules on a Calico node without any policy: what ``iptables-save`` shows on a real one.

::

    raw PREROUTING     cali-PREROUTING     a pod's packet must come from its own address (rpfilter)
    mangle             cali-*              known connections pass
    nat POSTROUTING    cali-nat-outgoing   pod to the world: MASQUERADE
    filter FORWARD     cali-FORWARD ─┬─ from cali+ ─ cali-from-wl-dispatch ─ cali-fw-<if> ─ cali-pro-kns.<namespace>
                                     └─ to cali+ ─── cali-to-wl-dispatch ─── cali-tw-<if> ─ cali-pri-kns.<namespace>

Marks (mask 0xffff0000, from the lowest bit): accept 0x10000, pass 0x20000, scratch 0x40000 and 0x80000.

Every rule carries Felix's own hash in a comment, ``cali:wUHhoiAYhphO9Mso``: SHA-224 over the hash of the rule before
(the chain's name, for the first) and the rule as Felix renders it, so the hashes here are those of a real cluster, and
one that is found in a real dump proves a rule and all that stand before it.

Sources: projectcalico/calico felix/rules/static.go, nat.go, endpoints.go, dispatch.go, policy.go,
felix/generictables/rules.go (RuleHashes), felix/iptables/actions.go and match_builder.go, felix/hashutils.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from emulator.plan.model import Chain, Family, IptablesRules, Jump, Rule

Table = Literal["filter", "nat", "mangle", "raw"]

ACCEPT = 0x10000
PASS = 0x20000
FROM_WORKLOAD = 0x40000  # scratch bit 0
ALL_MARKS = 0xF0000
LONGEST_CHAIN_NAME = 28  # felix/iptables: MaxChainNameLength
VXLAN_PORT = 4789  # Felix's own, which pods must not use
ROUTER_ICMPV6 = (130, 131, 132, 133, 135, 136)  # MLD, router solicitation, neighbour discovery: static.go ICMPv6Filter

ALLOWED = f"-m mark --mark {ACCEPT:#x}/{ACCEPT:#x}"
TRACKED = "-m conntrack --ctstate RELATED,ESTABLISHED"


@dataclass(frozen=True)
class FelixRule:
    """A rule as Felix has it: what it matches, what it does, its comments; ``why`` is for the plan."""

    match: str
    action: str
    comments: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Endpoint:
    """A pod's host end, with the profiles that apply to it: ``kns.<namespace>``, ``ksa.<namespace>.<account>``."""

    device: str
    profiles: tuple[str, ...]


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
    """Everything that Felix holds in one node's tables for one family."""
    return (
        _raw(ns, family, tunnelling),
        _mangle(ns, family),
        _nat(ns, family, tunnelling),
        _filter(ns, family, endpoints, tunnelling),
    )


def ipset_name(family: Family, name: str) -> str:
    """``cali40masq-ipam-pools``, ``cali60masq-ipam-pools``."""
    return f"cali{family}0{name}"


# -- tables -----------------------------------------------------------------------------------------------------


def _raw(ns: str, family: Family, tunnelling: Tunnelling) -> IptablesRules:
    mark = f"-m mark --mark {FROM_WORKLOAD:#x}/{FROM_WORKLOAD:#x}"
    untracked = FelixRule(
        f"-p udp --dport {VXLAN_PORT}", "--jump NOTRACK", why="each direction has a source port of its own: no reply"
    )
    vxlan = (untracked,) if tunnelling.vxlan else ()
    prerouting = (
        _clear(ALL_MARKS, "no mark of anyone else's counts"),
        *vxlan,
        FelixRule("--in-interface cali+", _set(FROM_WORKLOAD), why="from a pod"),
        FelixRule(mark, "--jump cali-rpf-skip", why="pods that may send from foreign addresses: none"),
        FelixRule(
            f"{mark} -m rpfilter --invert --validmark", "--jump DROP", why="a pod sends from its own address only"
        ),
        FelixRule(f"-m mark --mark 0/{FROM_WORKLOAD:#x}", "--jump cali-from-host-endpoint"),
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


def _filter(ns: str, family: Family, endpoints: Sequence[Endpoint], tunnelling: Tunnelling) -> IptablesRules:
    appended = (
        FelixRule(
            ALLOWED, "--jump ACCEPT", ("Policy explicitly accepted packet.",), why="both pods' chains let it pass"
        ),
        FelixRule("", _set(ACCEPT), why="tells mangle POSTROUTING that this was forwarded"),
    )
    return _rules(
        ns,
        family,
        "filter",
        (
            *_static_filter(family, tunnelling),
            *_dispatch(endpoints),
            *(item for endpoint in endpoints for item in _endpoint(endpoint)),
            *_profiles(endpoints),
        ),
        (
            _first("INPUT", "cali-INPUT"),
            _first("FORWARD", "cali-FORWARD"),
            _first("OUTPUT", "cali-OUTPUT"),
            # Felix hashes appended rules under a name of their own, lest they equal inserted ones.
            *(Jump("FORWARD", rule) for rule in chain("FORWARD*appends*", appended).rules),
        ),
        why="which pod may talk; without policy the namespaces' profiles allow everything",
    )


def _static_filter(family: Family, tunnelling: Tunnelling) -> tuple[Chain, ...]:
    incoming, outgoing = _tunnels_of_nodes(family, tunnelling)
    host_accepted = ("Host endpoint policy accepted packet.",)
    discovery = [FelixRule(f"-p 58 -m icmp6 --icmpv6-type {kind}", "--jump ACCEPT") for kind in ROUTER_ICMPV6]
    return (
        chain(
            "cali-FORWARD",
            (
                _clear(ALL_MARKS & ~ACCEPT),
                FelixRule(f"-m mark --mark 0/{ACCEPT:#x}", "--jump cali-from-hep-forward"),
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


# -- pods -------------------------------------------------------------------------------------------------------


def _dispatch(endpoints: Sequence[Endpoint]) -> Iterable[Chain]:
    """From the device to its chain. Devices that share their next letter share a chain: a shallow tree."""
    devices = sorted(endpoint.device for endpoint in endpoints)
    common = _common_prefix(devices)
    bins: dict[str, list[str]] = {}
    for device in devices:
        bins.setdefault(device[: len(common) + 1], []).append(device)
    unknown = FelixRule("", "--jump DROP", ("Unknown interface",), why="no pod that Felix knows")
    for root, option, prefix in (
        ("cali-from-wl-dispatch", "--in-interface", "cali-fw-"),
        ("cali-to-wl-dispatch", "--out-interface", "cali-tw-"),
    ):
        rules = []
        for start, names in bins.items():
            leaves = [FelixRule(f"{option} {name}", f"--goto {prefix}{name}") for name in names]
            if len(leaves) == 1:
                rules += leaves
                continue
            child = f"{root}-{start[len(common) :]}"
            rules.append(FelixRule(f"{option} {start}+", f"--goto {child}"))
            yield chain(child, (*leaves, unknown))
        yield chain(root, (*rules, unknown))


def _common_prefix(names: Sequence[str]) -> str:
    """What all of the sorted ``names`` begin with: what the first and the last share."""
    if not names:
        return ""
    pairs = zip(names[0], names[-1], strict=False)
    return "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _endpoint(endpoint: Endpoint) -> Iterable[Chain]:
    no_tunnels = (
        FelixRule(
            f"-p 17 -m multiport --destination-ports {VXLAN_PORT}",
            "--jump DROP",
            ("Drop VXLAN encapped packets originating in workloads",),
        ),
        FelixRule("-p 4", "--jump DROP", ("Drop IPinIP encapped packets originating in workloads",)),
    )
    for prefix, profile_prefix, first in (("cali-tw-", "cali-pri-", ()), ("cali-fw-", "cali-pro-", no_tunnels)):
        profiles = [
            rule
            for profile in endpoint.profiles
            for rule in (
                FelixRule("", f"--jump {limited_name(profile_prefix, profile)}"),
                FelixRule(ALLOWED, "--jump RETURN", ("Return if profile accepted",)),
            )
        ]
        yield chain(
            f"{prefix}{endpoint.device}",
            (
                FelixRule(TRACKED, "--jump ACCEPT", why="replies pass"),
                FelixRule("-m conntrack --ctstate INVALID", "--jump DROP"),
                _clear(ACCEPT | PASS),
                *first,
                *profiles,
                FelixRule("", "--jump DROP", ("Drop if no profiles matched",)),
            ),
        )


def _profiles(endpoints: Sequence[Endpoint]) -> Iterable[Chain]:
    """A namespace's profile (``kns.``) allows everything; a service account's (``ksa.``) says nothing."""
    for profile in dict.fromkeys(name for endpoint in endpoints for name in endpoint.profiles):
        for prefix, direction in (("cali-pri-", "ingress"), ("cali-pro-", "egress")):
            allow = (
                FelixRule("", _set(ACCEPT), (f"Profile {profile} {direction}",), why="the namespace's default: allow"),
                FelixRule(ALLOWED, "--jump RETURN"),
            )
            yield chain(limited_name(prefix, profile), allow if profile.startswith("kns.") else ())


# -- rendering --------------------------------------------------------------------------------------------------


def limited_name(prefix: str, name: str) -> str:
    """``prefix`` + ``name``, or a hash in its place where that is too long for a chain (GetLengthLimitedID)."""
    if len(prefix) + len(name) <= LONGEST_CHAIN_NAME and not name.startswith("_"):
        return prefix + name
    hashed = base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode()
    return f"{prefix}_{hashed}"[:LONGEST_CHAIN_NAME]


def chain(name: str, rules: Sequence[FelixRule]) -> Chain:
    """A chain whose rules carry their hashes."""
    return Chain(
        name,
        tuple(
            Rule((*_comments((f"cali:{code}", *rule.comments)), *f"{rule.match} {rule.action}".split()), rule.why)
            for code, rule in zip(rule_hashes(name, rules), rules, strict=True)
        ),
    )


def rule_hashes(name: str, rules: Iterable[FelixRule]) -> list[str]:
    """Felix's hash of each rule: 16 characters that depend on the chain, the rule, and every rule before it."""
    state = hashlib.sha224(name.encode()).digest()
    codes = []
    for rule in rules:
        comments = [f'-m comment --comment "{comment}"' for comment in rule.comments]
        # "HASH" stands where the comment with the hash will be.
        text = " ".join(part for part in (f"-A {name} HASH", *comments, rule.match, rule.action) if part)
        state = hashlib.sha224(state + text.encode()).digest()
        codes.append(base64.urlsafe_b64encode(state).decode()[:16])
    return codes


def _comments(comments: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for comment in comments for word in ("-m", "comment", "--comment", comment))


def _clear(mask: int, why: str = "") -> FelixRule:
    return FelixRule("", f"--jump MARK --set-mark 0/{mask:#x}", why=why)


def _set(mask: int) -> str:
    return f"--jump MARK --set-mark {mask:#x}/{mask:#x}"


def _empty(*names: str) -> tuple[Chain, ...]:
    return tuple(Chain(name) for name in names)


def _first(kernel_chain: str, own: str) -> Jump:
    (rule,) = chain(kernel_chain, (FelixRule("", f"--jump {own}"),)).rules
    return Jump(kernel_chain, rule, "insert")


def _rules(
    ns: str, family: Family, table: Table, chains: tuple[Chain, ...], jumps: tuple[Jump, ...], why: str
) -> IptablesRules:
    return IptablesRules(
        ns=ns, family=family, table=table, owner="felix", chains=chains, jumps=jumps, component="felix", why=why
    )
