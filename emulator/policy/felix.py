"""Felix, Calico's and Canal's agent: network policies in the iptables and ipsets of a node, or in its nftables.

The way of a packet from pod A to pod B, on the node of A and then on that of B (on one node: one after the other)::

    filter FORWARD ─ cali-FORWARD ─ from cali+ ─ cali-from-wl-dispatch ─ cali-fw-<A's device>    A's egress
                                  └ to cali+ ─── cali-to-wl-dispatch ─── cali-tw-<B's device>    B's ingress
    cali-fw-…, cali-tw-…:  each tier: cali-po-/cali-pi-<policy> ─ rules ─ sets cali40s:…, cali40n:…
                           no tier decided: cali-pro-/cali-pri-kns.<namespace> allows

Everything that policies need is in the filter table, which belongs to Felix as a whole, or in nftables' one table; the
static part is that of ``emulator.cni.felix`` and ``emulator.cni.felix_nftables``. Chains of policies that select no pod
of the node are not there, as upstream leaves chains out that nothing refers to, and neither are their sets.

The rules are built once and written for either kind of tables. The eBPF data plane is not emulated.

Sources: projectcalico/calico felix/dataplane/linux (endpoint_mgr.go, policy_mgr.go), felix/rules, felix/calc;
``emulator.policy.felix_endpoints``, ``felix_policies``, ``felix_matches``, ``felix_selectors``, ``felix_sets``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from emulator.cluster.model import Cluster, Node, Pod
from emulator.plan.model import AnyObject, Family
from emulator.policy.compiled import Compiled
from emulator.policy.enforcer import Configured, Deviation, PolicyMode
from emulator.policy.felix_deviations import deviation_of, deviations_of
from emulator.policy.felix_endpoints import Endpoint, TierPolicies, host_device, profiles_of
from emulator.policy.felix_matches import SetRef
from emulator.policy.felix_policies import Group, Rendered, groups, policy_chain
from emulator.policy.felix_selectors import subject_selector
from emulator.policy.felix_sets import Members, ipsets
from emulator.policy.felix_tables import Judging, Tables
from emulator.policy.felix_words import Words
from emulator.policy.flow import Flow
from emulator.policy.model import DIRECTIONS, Direction, Policy, PolicyKind

CURRENT_KINDS: frozenset[PolicyKind] = frozenset(
    {"NetworkPolicy", "CalicoNetworkPolicy", "CalicoGlobalNetworkPolicy", "ClusterNetworkPolicy"}
)
EARLIER_KINDS: frozenset[PolicyKind] = frozenset({"AdminNetworkPolicy", "BaselineAdminNetworkPolicy"})


def title_of(nftables: Iterable[bool]) -> str:
    """What Felix is called, given for each node whether its tables are nftables'."""
    there = set(nftables)
    kinds = "iptables and nftables" if len(there) > 1 else "nftables" if True in there else "iptables"
    return f"Felix · {kinds}"


# Tiers that judge a pod: the name, whether what nothing matches goes on, and whom to ask
Asked = tuple[tuple[str, bool, tuple[Group, ...]], ...]


class _Judged(NamedTuple):
    """A pod as Felix sees it, which holds as long as its policies are the same objects: its endpoint, and the chains of
    policies and groups that this asks."""

    pod: Pod
    policies: tuple[tuple[Policy, ...], tuple[Policy, ...]]
    endpoint: Endpoint
    met: tuple[tuple[tuple[Words, Direction], Group], ...]


@dataclass
class _Step:
    """What was worked out for one step's policies. ``judged`` is by the pods' keys, and taken along from step to step
    while the tiers are the same."""

    compiled: Compiled
    members: Members
    tiers: dict[tuple[int, ...], Asked] = field(default_factory=dict)
    judged: dict[str, _Judged] = field(default_factory=dict)


class Felix(Configured):
    """The enforcer of one lab. It remembers what it wrote for policies that did not change."""

    name = "felix"
    stand_in = ""

    def __init__(self, tables: Tables, mode: PolicyMode) -> None:
        self.mode = mode
        self.kinds = CURRENT_KINDS if mode == "faithful" else CURRENT_KINDS | EARLIER_KINDS
        self.requires = tables.requires
        self._tables = tables
        self._step: _Step | None = None
        self._rendered: dict[tuple[int, Direction, Family], tuple[Policy, Rendered]] = {}
        self._selectors: dict[int, tuple[Policy, str]] = {}

    @property
    def title(self) -> str:
        """By the tables of the step that was planned last."""
        return self._tables.title(self._step.compiled.cluster if self._step is not None else None)

    def inputs(self, cluster: Cluster) -> object:
        return self._tables.inputs(cluster)

    # -- a node -------------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, compiled: Compiled, node: Node) -> Iterator[AnyObject]:
        """The sets and the table of one node that policies are in, in each family."""
        step = self._at(compiled)
        judged = [self._judged(step, pod) for pod in cluster.pods_on(node.name) if not pod.host_network]
        endpoints = [one.endpoint for one in judged]
        met = {key: group for one in judged for key, group in one.met}
        policies = {
            (id(policy), direction): policy for (_, direction), group in met.items() for policy in group.policies
        }
        shared = [group.chain for group in met.values() if group.chain is not None]
        for family in self._tables.families(cluster):
            rendered = [self._chain(policy, direction, family) for (_, direction), policy in policies.items()]
            refs: dict[SetRef, str] = {}
            for policy, one in zip(policies.values(), rendered, strict=True):
                for ref in one.sets:
                    refs.setdefault(ref, f"for {policy.key}")
            judging = Judging(
                endpoints,
                (*(one.chain for one in rendered), *shared),
                tuple(ipsets(node.ns, family, refs, step.members)),
            )
            yield from self._tables.judged(cluster, node, family, judging, own_node=self.mode == "spec")

    def _judged(self, step: _Step, pod: Pod) -> _Judged:
        key = pod.key
        ingress, egress = (step.compiled.of_pod(key, direction) for direction in DIRECTIONS)
        known = step.judged.get(key)
        if known is not None and known.pod is pod and known.policies[0] is ingress and known.policies[1] is egress:
            return known
        asked = [self._tiers(step, policies, way) for policies, way in zip((ingress, egress), DIRECTIONS, strict=True)]
        to_it, from_it = (
            tuple(TierPolicies(tier, tuple(group.name for group in found), passes) for tier, passes, found in tiers)
            for tiers in asked
        )
        endpoint = Endpoint(host_device(pod), profiles_of(pod), to_it, from_it, may_tunnel=self.mode == "spec")
        met = tuple(
            ((group.name, direction), group)
            for direction, tiers in zip(DIRECTIONS, asked, strict=True)
            for _, _, found in tiers
            for group in found
        )
        made = step.judged[key] = _Judged(pod, (ingress, egress), endpoint, met)
        return made

    def _tiers(self, step: _Step, selecting: Sequence[Policy], direction: Direction) -> Asked:
        policies = [one for one in selecting if one.kind in self.kinds]
        if not policies:
            return ()
        key = (direction == "ingress", *map(id, policies))
        if key not in step.tiers:
            defaults = {tier.name: tier.default for tier in step.compiled.tiers}
            step.tiers[key] = tuple(
                (tier, defaults[tier] == "pass", groups(tuple(members), direction, self._selector))
                for tier, members in groupby(policies, key=lambda policy: policy.tier)
            )
        return step.tiers[key]

    # -- what is remembered -------------------------------------------------------------------------------------

    def _at(self, compiled: Compiled) -> _Step:
        step = self._step
        if step is not None and step.compiled is compiled:
            return step
        if step is None:
            made = _Step(compiled, Members(compiled))
        else:
            old, new = step.compiled.pods, compiled.pods
            touched = {key for key, pod in new.items() if old.get(key) is not pod}
            touched.update(key for key in old if key not in new)
            made = _Step(compiled, Members(compiled, step.members, touched))
            if step.compiled.tiers == compiled.tiers:
                made.judged = {key: found for key, found in step.judged.items() if key in new}
            there = {id(policy) for policy in compiled.policies}
            self._rendered = {key: found for key, found in self._rendered.items() if key[0] in there}
            self._selectors = {key: found for key, found in self._selectors.items() if key in there}
        self._step = made
        return made

    def _chain(self, policy: Policy, direction: Direction, family: Family) -> Rendered:
        key = (id(policy), direction, family)
        found = self._rendered.get(key)
        if found is None:
            found = self._rendered[key] = (policy, policy_chain(policy, direction, family))
        return found[1]

    def _selector(self, policy: Policy) -> str:
        found = self._selectors.get(id(policy))
        if found is None:
            found = self._selectors[id(policy)] = (policy, subject_selector(policy))
        return found[1]

    # -- what the real one does otherwise -----------------------------------------------------------------------

    def deviations(self, cluster: Cluster, compiled: Compiled) -> Iterable[Deviation]:
        """Lines for people: where Felix does not do what the API says."""
        return deviations_of(compiled, self.kinds, self.mode)

    def deviates(self, compiled: Compiled, flow: Flow, *, allowed: bool) -> Deviation | None:
        """Why Felix decides otherwise on this flow than the specification, which says ``allowed``; None if it does
        not."""
        return deviation_of(compiled, flow, self.kinds, self.mode, allowed=allowed)
