"""kube-router's network policy controller: what it puts into each node, and where it is not what the API says.

Every node holds the chains and sets of all policies of the cluster, and a chain for each of its own pods. What a packet
passes is drawn in ``emulator.policy.kube_router_chains``, a policy's rules in ``emulator.policy.kube_router_policy``.

Source: cloudnativelabs/kube-router pkg/controllers/netpol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import is_
from typing import NamedTuple

from emulator.cluster.model import Cluster, Node, Pod
from emulator.plan.addressing import families_of, family_of, of_family
from emulator.plan.model import AnyObject, Chain, Family, IpSet
from emulator.policy.compiled import Compiled
from emulator.policy.enforcer import Deviation, OnEveryNode, PolicyMode
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import Flow
from emulator.policy.kube_router_chains import COMPONENT, LocalPod, firewall, pod_chain, policy_chain
from emulator.policy.kube_router_policy import QUIRKS, TYPES, Quirk, Translated, pod_sets, translate
from emulator.policy.kube_router_verdict import Judge
from emulator.policy.model import DIRECTIONS, Policy, PolicyKind

BRIDGE = "kube-bridge"
_SOURCE = "cloudnativelabs/kube-router pkg/controllers/netpol/"
_KNOWN: dict[Quirk, tuple[str, str]] = {
    "icmp": ("ICMP echo requests and errors pass whatever the policies say", f"{_SOURCE}npc_iptables.go"),
    "own-node": ("egress policies judge what a pod sends to its own node, node ports aside", f"{_SOURCE}pod.go"),
    "shared-chain": (
        "a policy of both types has one chain: among its pods ingress rules open egress too, and the other way round",
        f"{_SOURCE}pod.go",
    ),
    "except-of-rule": ("an except narrows all ipBlocks of its rule, which are one set", f"{_SOURCE}policy.go"),
    "ipv6-everything": ("::/0 is 2000::/3 and fd00::/8, and nothing else", f"{_SOURCE}policy.go"),
    "unknown-named-port": (
        "a named port that no pod has opens all ports to the pods that the rule selects",
        f"{_SOURCE}policy.go",
    ),
    "named-port-anywhere": (
        "a named port without peers opens its number, as pods of the namespace have it, to every destination",
        f"{_SOURCE}policy.go",
    ),
    "named-port-of-block": ("a named port opens nothing in an ipBlock", f"{_SOURCE}policy.go"),
}
_GENERAL: tuple[Quirk, ...] = ("icmp", "own-node")  # of the data path, not of a policy


def load(mode: PolicyMode) -> KubeRouterPolicies:
    """The enforcer, for one lab."""
    return KubeRouterPolicies(mode)


@dataclass
class _Known:
    """What was written for a policy, and from what: the members of its sets, which are the same objects as long as
    they are the same."""

    made: Translated
    members: tuple[frozenset[str], ...]
    sets: dict[str, tuple[IpSet, ...]] = field(default_factory=dict)  # by node
    chains: tuple[Chain, ...] = ()
    quirks: frozenset[Quirk] | None = None  # those that matter to it; None as long as nobody has asked


class _PodChain(NamedTuple):
    """A pod's chain, and the policies that it asks: those for ingress, and for egress. A policy that is the same object
    has chains of the same names."""

    local: LocalPod
    selecting: tuple[tuple[Policy, ...], ...]
    chain: Chain


class KubeRouterPolicies(OnEveryNode):
    """kube-router with ``--run-firewall``. It remembers what it wrote: what has not changed is the same object again,
    which no later step looks at."""

    name = "kube-router"
    title = "kube-router · iptables and ipset"
    requires: tuple[str, ...] = ("iptables", "iptables-restore", "bridge-nf", "ipset", "ipset-program")
    stand_in = ""
    kinds: frozenset[PolicyKind] = frozenset(("NetworkPolicy",))

    def __init__(self, mode: PolicyMode) -> None:
        self.mode = mode
        self._quirks: frozenset[Quirk] = QUIRKS if mode == "faithful" else frozenset()
        self._compiled: Compiled | None = None
        self._judge: Judge | None = None
        self._pods: dict[str, Pod] = {}
        self._policies: dict[tuple[str, Family], _Known] = {}
        # Both in one, as who asks for deviations does not wait for a change that is under way
        self._written: tuple[Compiled | None, dict[tuple[str, Family], _Known]] = (None, {})
        self._pod_chains: dict[tuple[str, Family], _PodChain] = {}

    # -- a node ---------------------------------------------------------------------------------------------

    def node(self, cluster: Cluster, compiled: Compiled, node: Node) -> Iterator[AnyObject]:
        """The sets of all policies, and the filter table of each family."""
        self._follow(compiled)
        for family in families_of(cluster.topology.pod_cidrs):
            known = [self._policies[policy.key, family] for policy in self._read(compiled.policies)]
            for one in known:
                yield from one.sets.get(node.ns) or self._sets(one, node, family)
            yield self._table(cluster, compiled, node, family, known)

    def _read(self, policies: Iterable[Policy]) -> list[Policy]:
        return [policy for policy in policies if policy.kind in self.kinds]

    def _follow(self, compiled: Compiled) -> None:
        """Translate those policies anew that something changed for."""
        if self._compiled is compiled:
            return
        touched = {key for key, pod in compiled.pods.items() if not _alike(self._pods.get(key), pod)}
        gone = {key for key in self._pods if key not in compiled.pods}
        touched |= gone
        if gone:
            self._pod_chains = {key: one for key, one in self._pod_chains.items() if key[0] not in gone}
        fresh: dict[tuple[str, Family], _Known] = {}
        for policy in self._read(compiled.policies):
            members = tuple(compiled.members[one] for one in pod_sets(policy))
            for family in families_of(compiled.cluster.topology.pod_cidrs):
                old = self._policies.get((policy.key, family))
                if old is None or not _holds(old, policy, members, touched):
                    made = translate(compiled, policy, family, self._quirks)
                    same = old is not None and old.made.chains == made.chains
                    old = _Known(made, members, chains=old.chains if old is not None and same else _written(made))
                fresh[policy.key, family] = old
        self._compiled, self._pods, self._policies = compiled, compiled.pods, fresh
        self._written = compiled, fresh

    def _sets(self, known: _Known, node: Node, family: Family) -> tuple[IpSet, ...]:
        found = known.sets[node.ns] = tuple(
            IpSet(
                ns=node.ns,
                name=one.name,
                type=TYPES[one.kind],
                family=family,
                members=one.members,
                component=COMPONENT,
                why=one.why,
            )
            for one in known.made.sets
        )
        return found

    def _table(
        self, cluster: Cluster, compiled: Compiled, node: Node, family: Family, known: list[_Known]
    ) -> AnyObject:
        pods = [self._pod(compiled, pod, family) for pod in cluster.pods_on(node.name) if not pod.host_network]
        services = [cidr for cidr in cluster.topology.service_cidrs if family_of(cidr) == family]
        return firewall(
            node.ns,
            family,
            node.device,
            BRIDGE,
            services,
            [one.local for one in pods],
            pod_chains=[one.chain for one in pods],
            policies=[chain for one in known for chain in one.chains],
            icmp="icmp" in self._quirks,
        )

    def _pod(self, compiled: Compiled, pod: Pod, family: Family) -> _PodChain:
        """The chain of a pod of the node, the same object as before if it is selected by the same policies."""
        selecting = tuple(compiled.of_pod(pod.key, direction) for direction in DIRECTIONS)
        address = of_family(pod.addresses, family)
        found = self._pod_chains.get((pod.key, family))
        if found is not None and found.local.address == address and all(map(is_, found.selecting, selecting)):
            return found
        ingress, egress = map(self._read, selecting)
        local = LocalPod(pod.namespace, pod.name, address)
        jumps = tuple(
            (chain, policy.name)
            for policy in dict.fromkeys((*ingress, *egress))
            for chain in self._policies[policy.key, family].made.chains
        )
        chain = pod_chain(local, jumps, isolated=(bool(ingress), bool(egress)), quirks=self._quirks)
        made = self._pod_chains[pod.key, family] = _PodChain(local, selecting, chain)
        return made

    # -- what it does otherwise -----------------------------------------------------------------------------

    def deviations(self, cluster: Cluster, compiled: Compiled) -> Iterator[Deviation]:
        yield from self._unread(compiled)
        read = self._read(compiled.policies)
        if not self._quirks or not read:
            return
        yield _told("icmp")
        if any(policy.egress is not None for policy in read):
            yield _told("own-node")
        of, known = self._written
        families = families_of(cluster.topology.pod_cidrs)
        for policy in read:
            found: set[Quirk] = set()
            for family in families:
                found |= self._quirks_of(compiled, policy, family, known if of is compiled else {})
            for quirk in sorted(found):
                yield _told(quirk, policy.key)

    def _quirks_of(
        self, compiled: Compiled, policy: Policy, family: Family, known: dict[tuple[str, Family], _Known]
    ) -> frozenset[Quirk]:
        """The quirks that matter to a policy. What is known of it stays the same object while it is written alike."""
        of = known.get((policy.key, family))
        found = of.quirks if of is not None else None
        if found is None:
            asked = self._quirks.difference(_GENERAL)
            found = frozenset(quirk for quirk in asked if _matters(compiled, policy, family, quirk))
            if of is not None:
                of.quirks = found
        return found

    def deviates(self, compiled: Compiled, flow: Flow, *, allowed: bool) -> Deviation | None:
        if self._judge is None or self._judge.compiled is not compiled:
            self._judge = Judge(compiled)
        if self._judge.passes(flow, self._quirks) == allowed:
            return None
        read = compiled.of_kinds(self.kinds)
        if read is not compiled and evaluate(read, flow).allowed != allowed:
            return next(self._unread(compiled))
        for quirk in sorted(self._quirks):
            if self._judge.passes(flow, self._quirks - {quirk}) == allowed:
                return _told(quirk)
        return Deviation("several of kube-router's deviations together", source=_SOURCE)

    def _unread(self, compiled: Compiled) -> Iterator[Deviation]:
        for policy in compiled.policies:
            if policy.kind not in self.kinds:
                yield Deviation(f"kube-router does not read {policy.kind}", policy=policy.key, unenforced=True)


def _told(quirk: Quirk, policy: str = "") -> Deviation:
    what, source = _KNOWN[quirk]
    return Deviation(what, policy=policy, source=source)


def _matters(compiled: Compiled, policy: Policy, family: Family, quirk: Quirk) -> bool:
    """Whether a policy would be written otherwise without the quirk, names aside."""
    real, without = (translate(compiled, policy, family, quirks) for quirks in (QUIRKS, QUIRKS - {quirk}))
    if quirk == "shared-chain":
        return len(real.chains) < len(without.chains) and any(chain.matches for chain in real.chains)
    return _asked(real) != _asked(without)


def _asked(made: Translated) -> list[object]:
    """What a policy's chains ask, without the names of sets."""
    return [
        (
            match.direction,
            match.rule,
            [one.members for one in match.sources],
            [one.members for one in match.destinations],
            (match.protocol, match.first, match.last),
        )
        for chain in made.chains
        for match in chain.matches
    ]


def _written(made: Translated) -> tuple[Chain, ...]:
    return tuple(policy_chain(chain, made.policy.key) for chain in made.chains)


def _holds(old: _Known, policy: Policy, members: tuple[frozenset[str], ...], touched: set[str]) -> bool:
    """Whether what was written for a policy still is what would be."""
    if old.made.policy is not policy or (old.made.everyone and touched):
        return False
    return all(one is other and touched.isdisjoint(one) for one, other in zip(old.members, members, strict=True))


def _alike(old: Pod | None, new: Pod) -> bool:
    """Whether a policy's rules and sets could not tell the two apart."""
    return old is new or (old is not None and old.addresses == new.addresses and old.containers == new.containers)
