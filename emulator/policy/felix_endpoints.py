"""An endpoint's chains: from a pod's device to the policies and profiles that judge its traffic.

::

    cali-from-wl-dispatch ─ by device ─ cali-fw-<device>   what the pod sends
    cali-to-wl-dispatch ─── by device ─ cali-tw-<device>   what comes to the pod
        known connections: ACCEPT          invalid ones: DROP
        for each tier with a policy for the pod: clear pass
            each policy or group, unless pass is set;  accept is set: RETURN
            pass is not set: DROP                      (unless the tier's default is Pass)
        each profile;  accept is set: RETURN           the namespace's allows everything: Kubernetes' default
        DROP

Sources: projectcalico/calico felix/rules/endpoints.go (endpointIptablesChain), dispatch.go, policy.go
(ProfileToIptablesChains).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from emulator.cluster.model import Pod
from emulator.plan.addressing import digest
from emulator.plan.model import NftElement
from emulator.policy.felix_rules import ACCEPT, ALLOWED, PASS, FelixChain, FelixRule, chain_name
from emulator.policy.felix_words import (
    ACCEPTS,
    DROPS,
    INVALID,
    RETURNS,
    TRACKED,
    Words,
    alike,
    clear_mark,
    entered,
    goto,
    jump,
    leaves,
    looked_up,
    ports,
    protocol,
    set_mark,
    unmarked,
)

VXLAN_PORT = 4789  # Felix's own, which pods must not use
FROM, TO = "cali-from-wl-dispatch", "cali-to-wl-dispatch"
FROM_PREFIX, TO_PREFIX = "cali-fw-", "cali-tw-"
LAYER_OF_DISPATCH = "filter"

_UNKNOWN = FelixRule((), DROPS, ("Unknown interface",), why="no pod that Felix knows")
# In nftables mode a map says where to go, so that these two chains never change
MAPPED_DISPATCH = (
    FelixChain(alike(FROM), (FelixRule((looked_up("in", FROM),)), _UNKNOWN)),
    FelixChain(alike(TO), (FelixRule((looked_up("out", TO),)), _UNKNOWN)),
)


class TierPolicies(msgspec.Struct, frozen=True):
    """The policies of a tier at an endpoint in one direction: the chains of policies and groups to ask, in order."""

    tier: str
    chains: tuple[Words, ...]
    passes: bool = False  # what no policy matches goes on, in place of being dropped


class Endpoint(msgspec.Struct, frozen=True, cache_hash=True):
    """A pod's host end, with the profiles that apply to it: ``kns.<namespace>``, ``ksa.<namespace>.<account>``.

    ``may_tunnel``: VXLAN and IP-in-IP packets of the pod's own are not dropped (AllowVXLANPacketsFromWorkloads,
    AllowIPIPPacketsFromWorkloads).
    """

    device: str
    profiles: tuple[str, ...]
    ingress: tuple[TierPolicies, ...] = ()
    egress: tuple[TierPolicies, ...] = ()
    may_tunnel: bool = False


def host_device(pod: Pod) -> str:
    """``cali`` and 11 hex digits of SHA-1 over ``namespace.pod``: default.nginx -> calic440f455693."""
    return f"cali{digest(f'{pod.namespace}.{pod.name}', 11, 'sha1')}"


def profiles_of(pod: Pod) -> tuple[str, ...]:
    """The profiles that Kubernetes' namespaces and service accounts are to Calico."""
    return f"kns.{pod.namespace}", f"ksa.{pod.namespace}.{pod.service_account}"


def endpoint_chains(endpoints: Sequence[Endpoint]) -> tuple[FelixChain, ...]:
    """The chains of a node's endpoints, and of their profiles."""
    return (*(item for endpoint in endpoints for item in _endpoint(endpoint)), *_profiles(endpoints))


def dispatch_chains(endpoints: Sequence[Endpoint]) -> tuple[FelixChain, ...]:
    """From the device to its chain, in iptables. Devices that share their next letter share a chain: a shallow
    tree."""
    return _dispatch(tuple(sorted(endpoint.device for endpoint in endpoints)))


@lru_cache(maxsize=512)
def _dispatch(devices: tuple[str, ...]) -> tuple[FelixChain, ...]:
    return tuple(_tree(devices))


def _tree(devices: Sequence[str]) -> Iterable[FelixChain]:
    common = _common_prefix(devices)
    bins: dict[str, list[str]] = {}
    for device in devices:
        bins.setdefault(device[: len(common) + 1], []).append(device)
    for root, by, prefix in ((FROM, entered, FROM_PREFIX), (TO, leaves, TO_PREFIX)):
        rules = []
        for start, names in bins.items():
            leads = [FelixRule((by(name),), goto(f"{prefix}{name}")) for name in names]
            if len(leads) == 1:
                rules += leads
                continue
            child = f"{root}-{start[len(common) :]}"
            rules.append(FelixRule((by(f"{start}+"),), goto(child)))
            yield FelixChain(alike(child), (*leads, _UNKNOWN))
        yield FelixChain(alike(root), (*rules, _UNKNOWN))


def dispatch_element(chain: str) -> NftElement | None:
    """The map's element that leads from a device to a chain of an endpoint's, by the name that nftables has for it
    (``filter-cali-tw-...``); None for other chains."""
    name = chain.removeprefix(f"{LAYER_OF_DISPATCH}-")
    for map_name, prefix in ((FROM, FROM_PREFIX), (TO, TO_PREFIX)):
        if name.startswith(prefix):
            device = name.removeprefix(prefix)
            return NftElement(f"{LAYER_OF_DISPATCH}-{map_name}", f'"{device}"', f"goto {chain}")
    return None


def _common_prefix(names: Sequence[str]) -> str:
    """What all of the sorted ``names`` begin with: what the first and the last share."""
    if not names:
        return ""
    pairs = zip(names[0], names[-1], strict=False)
    return "".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@lru_cache(maxsize=8192)
def _endpoint(endpoint: Endpoint) -> tuple[FelixChain, ...]:
    no_tunnels = (
        FelixRule(
            (protocol("17"), ports("dst", [(VXLAN_PORT, VXLAN_PORT)], "17")),
            DROPS,
            ("Drop VXLAN encapped packets originating in workloads",),
        ),
        FelixRule((protocol("4"),), DROPS, ("Drop IPinIP encapped packets originating in workloads",)),
    )
    return tuple(
        FelixChain(
            alike(f"{prefix}{endpoint.device}"),
            (
                FelixRule((TRACKED,), ACCEPTS, why="replies pass"),
                FelixRule((INVALID,), DROPS),
                FelixRule((), clear_mark(ACCEPT | PASS)),
                *first,
                *(rule for tier in tiers for rule in _tier(tier)),
                *(rule for profile in endpoint.profiles for rule in _profile(profile_prefix, profile)),
                FelixRule((), DROPS, ("Drop if no profiles matched",)),
            ),
        )
        for prefix, profile_prefix, tiers, first in (
            (TO_PREFIX, "cali-pri-", endpoint.ingress, ()),
            (FROM_PREFIX, "cali-pro-", endpoint.egress, () if endpoint.may_tunnel else no_tunnels),
        )
    )


def _tier(tier: TierPolicies) -> Iterable[FelixRule]:
    yield FelixRule((), clear_mark(PASS), (f"Start of tier {tier.tier}",))
    for name in tier.chains:
        yield FelixRule((unmarked(PASS),), jump(name))
        yield FelixRule((ALLOWED,), RETURNS, ("Return if policy accepted",))
    if not tier.passes:
        comment = f"End of tier {tier.tier}. Drop if no policies passed packet"
        yield FelixRule((unmarked(PASS),), DROPS, (comment,), "a policy selects the pod, and none allowed it")


def _profile(prefix: str, profile: str) -> tuple[FelixRule, FelixRule]:
    return (
        FelixRule((), jump(chain_name(prefix, profile))),
        FelixRule((ALLOWED,), RETURNS, ("Return if profile accepted",)),
    )


def _profiles(endpoints: Sequence[Endpoint]) -> Iterable[FelixChain]:
    for profile in dict.fromkeys(name for endpoint in endpoints for name in endpoint.profiles):
        yield from _profile_chains(profile)


@lru_cache(maxsize=4096)
def _profile_chains(profile: str) -> tuple[FelixChain, ...]:
    """A namespace's profile (``kns.``) allows everything; a service account's (``ksa.``) says nothing."""
    allows = profile.startswith("kns.")
    return tuple(
        FelixChain(
            chain_name(prefix, profile),
            (
                FelixRule(
                    (),
                    set_mark(ACCEPT) if allows else None,
                    (f"Profile {profile} {direction}",),
                    "the namespace's default: allow" if allows else "",
                ),
            ),
        )
        for prefix, direction in (("cali-pri-", "ingress"), ("cali-pro-", "egress"))
    )
