"""Felix's rules on a Calico node that do not depend on any policy, in the tables of iptables or of nftables.

::

    raw PREROUTING     cali-PREROUTING     a pod's packet must come from its own address (rpfilter)
    mangle             cali-*              known connections pass
    nat POSTROUTING    cali-nat-outgoing   pod to the world: MASQUERADE
    filter FORWARD     cali-FORWARD ─┬─ from cali+ ─ cali-from-wl-dispatch ─ cali-fw-<if> ─ cali-pro-kns.<namespace>
                                     └─ to cali+ ─── cali-to-wl-dispatch ─── cali-tw-<if> ─ cali-pri-kns.<namespace>

In nftables mode all of that is one table ``calico`` for each family (``emulator.cni.felix_nftables``): the chains have
iptables' table before their names, ``filter-cali-FORWARD``, and maps take the place of the dispatch chains.

From the dispatch chains on it is the business of ``emulator.policy.felix``: there policies stand before the profiles.

Sources: projectcalico/calico felix/rules/static.go, nat.go; ``emulator.policy.felix_rules`` for marks, names and
hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from emulator.plan.model import Family, IptablesRules, Jump
from emulator.policy.felix_endpoints import VXLAN_PORT, Endpoint, dispatch_chains, endpoint_chains
from emulator.policy.felix_rules import (
    ACCEPT,
    ALL_MARKS,
    ALLOWED,
    COMPONENT,
    SCRATCH_0,
    FelixChain,
    FelixRule,
    ipset_name,
    iptables_chain,
    iptables_rules,
)
from emulator.policy.felix_tables import Judging
from emulator.policy.felix_words import (
    ACCEPTS,
    DROPS,
    FROM_SELF,
    MASQUERADES,
    NOT_OF_WAY_OUT,
    NOT_TRANSLATED,
    RETURNS,
    SPOOFED,
    TO_SELF,
    TRACKED,
    TRANSLATED,
    UNTRACKED,
    alike,
    clear_mark,
    entered,
    goto,
    icmp,
    in_set,
    jump,
    leaves,
    marked,
    port,
    ports,
    protocol,
    set_mark,
    unmarked,
)

Table = Literal["filter", "nat", "mangle", "raw"]

FROM_WORKLOAD = SCRATCH_0
ROUTER_ICMPV6 = (130, 131, 132, 133, 135, 136)  # MLD, router solicitation, neighbour discovery: static.go ICMPv6Filter
# Felix hashes rules that it appends under a name of their own, lest they equal inserted ones.
APPENDED = "*appends*"

_HOST_ACCEPTED = ("Host endpoint policy accepted packet.",)


@dataclass(frozen=True)
class Tunnelling:
    """What the IP pools ask for: tunnels of one or the other kind, the node's tunnel ``devices``, masquerading."""

    ipip: bool = False
    vxlan: bool = False
    devices: tuple[str, ...] = ()
    nat_outgoing: bool = True


NO_TUNNELS = Tunnelling()


class Layer(NamedTuple):
    """What is in one of iptables' tables: Felix's chains, the kernel's chains that lead to the like-named ones of Felix
    before anything else, and what stands at the end of a kernel's chain."""

    table: Table
    chains: tuple[FelixChain, ...]
    hooks: tuple[str, ...]
    why: str
    appended: tuple[tuple[str, tuple[FelixRule, ...]], ...] = ()


@lru_cache(maxsize=64)
def layers(family: Family, tunnelling: Tunnelling, own_node: bool = False) -> tuple[Layer, ...]:
    """All but the chains from the dispatch on, in the order of a packet's way. ``own_node``: a pod reaches its node
    whatever the policies say of its egress, which is not what Felix does."""
    return _raw(tunnelling), _mangle(), _nat(family, tunnelling), _filter(family, tunnelling, own_node)


def iptables_tables(
    ns: str, family: Family, judging: Judging, tunnelling: Tunnelling = NO_TUNNELS
) -> Iterator[IptablesRules]:
    """Everything that Felix holds in one node's iptables for one family."""
    for layer in layers(family, tunnelling)[:-1]:
        yield _written(ns, family, layer, ())
    yield filter_table(ns, family, judging, tunnelling)


def filter_table(
    ns: str, family: Family, judging: Judging, tunnelling: Tunnelling, *, own_node: bool = False
) -> IptablesRules:
    """The filter table, the only one of iptables that policies are in; the same object where only sets differ."""
    return _filter_table(ns, family, tuple(judging.endpoints), tuple(judging.chains), tunnelling, own_node)


@lru_cache(maxsize=512)
def _filter_table(
    ns: str,
    family: Family,
    endpoints: tuple[Endpoint, ...],
    judging: tuple[FelixChain, ...],
    tunnelling: Tunnelling,
    own_node: bool,
) -> IptablesRules:
    chains = (*dispatch_chains(endpoints), *endpoint_chains(endpoints), *judging)
    return _written(ns, family, layers(family, tunnelling, own_node)[-1], chains)


def _written(ns: str, family: Family, layer: Layer, judging: Sequence[FelixChain]) -> IptablesRules:
    jumps = [Jump(hook, rule, "insert") for hook in layer.hooks for rule in iptables_rules(hook, (first_rule(hook),))]
    jumps += [Jump(hook, rule) for hook, rules in layer.appended for rule in iptables_rules(f"{hook}{APPENDED}", rules)]
    return IptablesRules(
        ns=ns,
        family=family,
        table=layer.table,
        owner=COMPONENT,
        chains=tuple(iptables_chain(one) for one in (*layer.chains, *judging)),
        jumps=tuple(jumps),
        component=COMPONENT,
        why=layer.why,
    )


def first_rule(hook: str) -> FelixRule:
    """What leads from one of the kernel's chains to Felix's own."""
    return FelixRule((), jump(f"cali-{hook}"))


# -- layers -----------------------------------------------------------------------------------------------------


def _raw(tunnelling: Tunnelling) -> Layer:
    from_workload = marked(FROM_WORKLOAD)
    untracked = FelixRule(
        (protocol("udp"), port(VXLAN_PORT)), UNTRACKED, why="each direction has a source port of its own: no reply"
    )
    vxlan = (untracked,) if tunnelling.vxlan else ()
    prerouting = (
        _clear(ALL_MARKS, "no mark of anyone else's counts"),
        *vxlan,
        FelixRule((entered("cali+"),), set_mark(FROM_WORKLOAD), why="from a pod"),
        FelixRule((from_workload,), jump("cali-rpf-skip"), why="pods that may send from foreign addresses: none"),
        FelixRule((from_workload, SPOOFED), DROPS, why="a pod sends from its own address only"),
        FelixRule((unmarked(FROM_WORKLOAD),), jump("cali-from-host-endpoint")),
        FelixRule((ALLOWED,), ACCEPTS),
    )
    output = (
        _clear(ALL_MARKS),
        FelixRule((), jump("cali-to-host-endpoint")),
        *vxlan,
        FelixRule((ALLOWED,), ACCEPTS),
    )
    return Layer(
        "raw",
        (
            _chain("cali-PREROUTING", *prerouting),
            _chain("cali-OUTPUT", *output),
            *_empty("cali-rpf-skip", "cali-from-host-endpoint", "cali-to-host-endpoint"),
        ),
        ("PREROUTING", "OUTPUT"),
        why="before connection tracking: a pod's source address is checked",
    )


def _mangle() -> Layer:
    prerouting = (
        FelixRule((TRACKED,), ACCEPTS),
        FelixRule((ALLOWED,), ACCEPTS),
        FelixRule((), jump("cali-from-host-endpoint")),
        FelixRule((ALLOWED,), ACCEPTS, _HOST_ACCEPTED),
    )
    postrouting = (
        FelixRule((ALLOWED,), RETURNS, why="forwarded, and accepted in the filter table"),
        _clear(ALL_MARKS),
        FelixRule((TRANSLATED,), jump("cali-to-host-endpoint")),
        FelixRule((ALLOWED,), RETURNS, _HOST_ACCEPTED),
    )
    return Layer(
        "mangle",
        (
            _chain("cali-PREROUTING", *prerouting),
            _chain("cali-POSTROUTING", *postrouting),
            *_empty("cali-from-host-endpoint", "cali-to-host-endpoint"),
        ),
        ("PREROUTING", "POSTROUTING"),
        why="where policy for host endpoints would stand",
    )


def _nat(family: Family, tunnelling: Tunnelling) -> Layer:
    masquerade = FelixRule(
        (
            in_set(ipset_name(family, "masq-ipam-pools"), family, "src"),
            in_set(ipset_name(family, "all-ipam-pools"), family, "dst", wanted=False),
        ),
        MASQUERADES,
        why="natOutgoing: pod to anything that is no pod leaves with the node's address",
    )
    # Both tests: an address of the node that is not the tunnel's own.
    tunnels = (
        FelixRule(
            (leaves(device), NOT_OF_WAY_OUT, FROM_SELF),
            MASQUERADES,
            why="the node's own packets leave by the tunnel with the tunnel's address",
        )
        for device in tunnelling.devices
    )
    return Layer(
        "nat",
        (
            _chain("cali-PREROUTING", FelixRule((), jump("cali-fip-dnat"))),
            _chain("cali-OUTPUT", FelixRule((), jump("cali-fip-dnat"))),
            _chain(
                "cali-POSTROUTING",
                FelixRule((), jump("cali-fip-snat")),
                FelixRule((), jump("cali-nat-outgoing")),
                *tunnels,
            ),
            _chain("cali-nat-outgoing", *((masquerade,) if tunnelling.nat_outgoing else ())),
            *_empty("cali-fip-dnat", "cali-fip-snat"),
        ),
        ("PREROUTING", "OUTPUT", "POSTROUTING"),
        why="natOutgoing of the IP pools; floating addresses: none",
    )


def _filter(family: Family, tunnelling: Tunnelling, own_node: bool) -> Layer:
    incoming, outgoing = _tunnels_of_nodes(family, tunnelling)
    discovery = [FelixRule((protocol("58"), icmp(6, kind)), ACCEPTS) for kind in ROUTER_ICMPV6]
    chains = (
        _chain(
            "cali-FORWARD",
            _clear(ALL_MARKS & ~ACCEPT),
            FelixRule((unmarked(ACCEPT),), jump("cali-from-hep-forward")),
            FelixRule((entered("cali+"),), jump("cali-from-wl-dispatch"), why="from a pod: its egress"),
            FelixRule((leaves("cali+"),), jump("cali-to-wl-dispatch"), why="to a pod: its ingress"),
            FelixRule((), jump("cali-to-hep-forward")),
            FelixRule((), jump("cali-cidr-block")),
        ),
        _chain(
            "cali-INPUT",
            *incoming,
            FelixRule((entered("cali+"),), goto("cali-wl-to-host"), why="pod to its own node"),
            FelixRule((ALLOWED,), ACCEPTS),
            _clear(ALL_MARKS),
            FelixRule((), jump("cali-from-host-endpoint")),
            FelixRule((ALLOWED,), ACCEPTS, _HOST_ACCEPTED),
        ),
        _chain(
            "cali-OUTPUT",
            FelixRule((ALLOWED,), ACCEPTS),
            FelixRule((leaves("cali+"),), RETURNS, why="node to its pods is never policed"),
            *outgoing,
            _clear(ALL_MARKS),
            FelixRule((NOT_TRANSLATED,), jump("cali-to-host-endpoint")),
            FelixRule((ALLOWED,), ACCEPTS, _HOST_ACCEPTED),
        ),
        _chain(
            "cali-wl-to-host",
            *(discovery if family == 6 else ()),
            *([FelixRule((), ACCEPTS, why="policy mode spec: a pod reaches its node")] if own_node else ()),
            FelixRule((), jump("cali-from-wl-dispatch")),
            FelixRule((), ACCEPTS, ("Configured DefaultEndpointToHostAction",)),
        ),
        *_empty(
            "cali-from-hep-forward",
            "cali-to-hep-forward",
            "cali-from-host-endpoint",
            "cali-to-host-endpoint",
            "cali-cidr-block",
        ),
    )
    appended = (
        FelixRule((ALLOWED,), ACCEPTS, ("Policy explicitly accepted packet.",), why="both pods' chains let it pass"),
        FelixRule((), set_mark(ACCEPT), why="tells mangle POSTROUTING that this was forwarded"),
    )
    return Layer(
        "filter",
        chains,
        ("INPUT", "FORWARD", "OUTPUT"),
        "which pod may talk; without policy the namespaces' profiles allow everything",
        (("FORWARD", appended),),
    )


def _tunnels_of_nodes(family: Family, tunnelling: Tunnelling) -> tuple[list[FelixRule], list[FelixRule]]:
    """Encapsulated packets: accepted from and to other nodes, whatever host endpoints' policies say; never from
    anybody else. Incoming rules, outgoing rules."""
    incoming, outgoing = [], []
    if tunnelling.ipip:
        hosts, ipip = ipset_name(4, "all-hosts-net"), protocol("4")
        incoming += [
            FelixRule((ipip, in_set(hosts, 4, "src"), TO_SELF), ACCEPTS, ("Allow IPIP packets from Calico hosts",)),
            FelixRule((ipip,), DROPS, ("Drop IPIP packets from non-Calico hosts",)),
        ]
        outgoing.append(
            FelixRule(
                (ipip, in_set(hosts, 4, "dst"), FROM_SELF), ACCEPTS, ("Allow IPIP packets to other Calico hosts",)
            )
        )
    if tunnelling.vxlan:
        nodes = ipset_name(family, "all-vxlan-net")
        vxlan = (protocol("17"), ports("dst", [(VXLAN_PORT, VXLAN_PORT)], "17"))
        incoming += [
            FelixRule(
                (*vxlan, in_set(nodes, family, "src"), TO_SELF),
                ACCEPTS,
                (f"Allow IPv{family} VXLAN packets from allowed hosts",),
            ),
            FelixRule((*vxlan, TO_SELF), DROPS, (f"Drop IPv{family} VXLAN packets from non-allowed hosts",)),
        ]
        outgoing.append(
            FelixRule(
                (*vxlan, FROM_SELF, in_set(nodes, family, "dst")),
                ACCEPTS,
                (f"Allow IPv{family} VXLAN packets to other allowed hosts",),
            )
        )
    return incoming, outgoing


def _chain(name: str, *rules: FelixRule) -> FelixChain:
    return FelixChain(alike(name), rules)


def _clear(mask: int, why: str = "") -> FelixRule:
    return FelixRule((), clear_mark(mask), why=why)


def _empty(*names: str) -> tuple[FelixChain, ...]:
    return tuple(_chain(name) for name in names)
