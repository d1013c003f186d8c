"""Felix's nftables mode: everything in one table ``calico`` for each family, nothing in iptables or ipset.

The path of a connection's first packet from a pod to one on another node::

    raw-PREROUTING -300 ─ raw-cali-PREROUTING          fib: is the way back the way that it came?
    mangle-PREROUTING -150 ─ mangle-cali-PREROUTING
    (kube-proxy: nat-prerouting -100)
    filter-FORWARD 0 ─ filter-cali-FORWARD ─ iifname cali* ─ filter-cali-from-wl-dispatch
                            ─ @filter-cali-from-wl-dispatch ─ filter-cali-fw-<device>
    mangle-POSTROUTING -150, nat-POSTROUTING 110 ─ nat-cali-POSTROUTING ─ nat-cali-nat-outgoing ─ masquerade

There is a base chain for each of iptables' chains in its four tables, all of them there from the start, and at their
priorities, but for source translation: that comes after kube-proxy's. Each chain, set and endpoint is a part of the
plan's table, those that are referred to first: a change is one transaction of nft, of those parts alone.

What upstream does in two steps (sets, then rules) is one here. Upstream leaves a packet between the two with sets of
after and rules of before; here there is no between.

Overlapping members of a set: ipset takes them, nftables refuses them, and Felix hands on what it has. What is contained
in another member is left out here, which means the same.

Follows projectcalico/calico of summer 2026, between 3.32 and 3.33: felix/nftables (table.go, table_layer.go, ipsets.go,
maps.go, renderer.go), felix/dataplane/linux/int_dataplane.go. Not there: flow tables (``nftablesFlowOffload``), the ARP
table for pods that are moved live, both of which stay off by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_network

from emulator.cni.felix import APPENDED, NO_TUNNELS, Tunnelling, first_rule, layers
from emulator.plan.model import Family, IpSet, NftChain, NftElement, NftPart, NftRules, NftSet
from emulator.policy.felix_endpoints import (
    FROM,
    LAYER_OF_DISPATCH,
    MAPPED_DISPATCH,
    TO,
    dispatch_element,
    endpoint_chains,
)
from emulator.policy.felix_rules import COMPONENT, FelixChain, FelixRule, nft_chain, nft_rules
from emulator.policy.felix_tables import Judging
from emulator.policy.felix_words import nft_set_name

TABLE = "calico"

# Of knftables: filter, mangle, raw, dstnat, and srcnat+10. Felix keeps clear of kube-proxy's -110, -90 and 100
_FILTER, _MANGLE, _RAW, _DNAT, _SNAT = 0, -150, -300, -100, 110
_BASE_CHAINS: tuple[tuple[str, str, str, int], ...] = (
    ("raw", "PREROUTING", "filter", _RAW),
    ("raw", "OUTPUT", "filter", _RAW),
    ("mangle", "PREROUTING", "filter", _MANGLE),
    ("mangle", "INPUT", "filter", _MANGLE),
    ("mangle", "FORWARD", "filter", _MANGLE),
    ("mangle", "OUTPUT", "route", _MANGLE),
    ("mangle", "POSTROUTING", "filter", _MANGLE),
    ("nat", "PREROUTING", "nat", _DNAT),
    ("nat", "INPUT", "nat", _DNAT),
    ("nat", "OUTPUT", "nat", _SNAT),
    ("nat", "POSTROUTING", "nat", _SNAT),
    ("filter", "INPUT", "filter", _FILTER),
    ("filter", "FORWARD", "filter", _FILTER),
    ("filter", "OUTPUT", "filter", _FILTER),
)


def nft_table(
    ns: str,
    family: Family,
    judging: Judging,
    sets: Iterable[IpSet],
    tunnelling: Tunnelling = NO_TUNNELS,
    *,
    own_node: bool = False,
) -> NftRules:
    """Everything that Felix holds in one node for one family; ``sets`` are those that do not depend on policies.

    Parts are named as what they hold is: sets without nftables' hyphen, chains with their layer.
    """
    parts = {one.name: _set(one) for one in judging.sets}
    for chain in (*judging.chains, *_callees_first(judging)):
        made = _part(chain)
        parts[made.chains[0].name] = made
    frame, hooks = _static(family, tunnelling, own_node, tuple(sets))
    return NftRules(
        ns=ns,
        family="ip" if family == 4 else "ip6",
        name=TABLE,
        subject="part",
        frame=frame,
        hooks=hooks,
        parts=parts,
        component=COMPONENT,
        why="all of Felix's rules; without policy the namespaces' profiles allow everything",
    )


def _callees_first(judging: Judging) -> Iterator[FelixChain]:
    """Profiles before the endpoints whose chains jump to them."""
    chains = endpoint_chains(judging.endpoints)
    count = 2 * len(judging.endpoints)
    yield from chains[count:]
    yield from chains[:count]


@lru_cache(maxsize=256)
def _static(
    family: Family, tunnelling: Tunnelling, own_node: bool, sets: tuple[IpSet, ...]
) -> tuple[NftPart, tuple[NftChain, ...]]:
    """The frame with sets, maps and chains, and the base chains."""
    found = layers(family, tunnelling, own_node)
    chains = [nft_chain(chain, layer.table) for layer in found for chain in layer.chains]
    chains += [nft_chain(chain, LAYER_OF_DISPATCH) for chain in MAPPED_DISPATCH]
    maps = tuple(NftSet(f"{LAYER_OF_DISPATCH}-{name}", "ifname", verdicts=True) for name in (FROM, TO))
    first: dict[tuple[str, str], tuple[FelixRule, ...]] = {}
    last: dict[tuple[str, str], tuple[FelixRule, ...]] = {}
    for one in found:
        first.update(((one.table, hook), (first_rule(hook),)) for hook in one.hooks)
        last.update(((one.table, hook), rules) for hook, rules in one.appended)
    hooks = tuple(
        NftChain(
            f"{layer}-{hook}",
            tuple(_base_rules(layer, hook, first.get((layer, hook), ()), last.get((layer, hook), ()))),
            f"type {kind} hook {hook.lower()} priority {priority}",
        )
        for layer, hook, kind, priority in _BASE_CHAINS
    )
    parts = [_set(one) for one in sets]
    frame = NftPart(
        sets=(*(declared for part in parts for declared in part.sets), *maps),
        chains=tuple(chains),
        elements=tuple(element for part in parts for element in part.elements),
    )
    return frame, hooks


def _base_rules(layer: str, hook: str, first: tuple[FelixRule, ...], last: tuple[FelixRule, ...]) -> Iterator[str]:
    name = f"{layer}-{hook}"
    yield from nft_rules(name, first, layer)
    yield from nft_rules(name, last, layer, hashed_as=f"{name}{APPENDED}")


@lru_cache(maxsize=32768)
def _part(chain: FelixChain) -> NftPart:
    """A chain of the filter layer, and what leads to it if it is an endpoint's."""
    written = nft_chain(chain, LAYER_OF_DISPATCH)
    element = dispatch_element(written.name)
    return NftPart(chains=(written,), elements=(element,) if element is not None else ())


# -- sets -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def _set(item: IpSet) -> NftPart:
    """An ipset as nftables has it."""
    address = f"ipv{item.family}_addr"
    name = nft_set_name(item.name)
    if item.type.startswith("hash:ip,port"):
        declared = NftSet(name, f"{address} . inet_proto . inet_service")
        keys = tuple(" . ".join(member.replace(",", ":").rsplit(":", 2)) for member in item.members)
    else:
        declared = NftSet(name, address, flags=("interval",))
        keys = tuple(_without_contained(item.members))
    return NftPart(sets=(declared,), elements=tuple(NftElement(name, key) for key in keys))


def _without_contained(members: Iterable[str]) -> list[str]:
    """The members that are in no other one."""
    blocks = [member for member in members if "/" in member]
    if not blocks:
        return list(members)
    kept: list[str] = []
    last = -1
    # By their first address, the wider one first: what a block contains comes right behind it
    for network in sorted({ip_network(member) for member in members}, key=lambda one: (one[0], one.prefixlen)):
        if int(network.broadcast_address) > last:
            kept.append(str(network).removesuffix("/32" if network.version == 4 else "/128"))
            last = int(network.broadcast_address)
    return kept
