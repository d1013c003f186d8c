"""Network policy in one neutral form, whichever API it was written in.

A :class:`Policy` has a subject (whose traffic it judges) and, for each direction that it applies to, a list of rules.
It stands in a :class:`Tier`. How a direction of a pod's traffic is judged::

    for each tier, in ascending order:
        of its policies that select the pod and have that direction, by order, then name:
            the first rule that matches decides: allow, deny, or pass (on to the next tier); log goes on
        no rule matched, but a policy of the tier selects the pod: the tier's default, deny or pass
    no tier decided: allowed

A connection passes if its source's egress and its destination's ingress both allow it. networking.k8s.io/v1 is the
case of one tier (``default``, default deny) whose rules all allow: the order of its policies then makes no difference.

Sources: kubernetes/api networking/v1 types.go; projectcalico/api v3 (tiers, actions, entity rules);
kubernetes-sigs/network-policy-api v1alpha1 and v1alpha2.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import msgspec

Direction = Literal["ingress", "egress"]
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")
Action = Literal["allow", "deny", "pass", "log"]
Family = Literal[4, 6]
PolicyKind = Literal[
    "NetworkPolicy",
    "CalicoNetworkPolicy",
    "CalicoGlobalNetworkPolicy",
    "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy",
    "ClusterNetworkPolicy",
]

ADMIN_TIER, DEFAULT_TIER, BASELINE_TIER = "kube-admin", "default", "kube-baseline"
KUBERNETES_ORDER = 1000.0  # where Calico puts a Kubernetes NetworkPolicy among its own (libcalico-go conversion.go)


class Requirement(msgspec.Struct, frozen=True):
    """One condition of a Kubernetes label selector. ``matchLabels`` are ``In`` with one value.

    ``NotIn`` and ``DoesNotExist`` hold where the key is missing. ``values`` are sorted, each once.
    """

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(msgspec.Struct, frozen=True):
    """A Kubernetes label selector: all of its requirements hold. Without any, it selects everything."""

    requirements: tuple[Requirement, ...] = ()


class Expression(msgspec.Struct, frozen=True):
    """A selector in Calico's language (``emulator.cluster.calico_selectors``), as its author wrote it."""

    text: str


Selector = LabelSelector | Expression
EVERYTHING = LabelSelector()


class PodSet(msgspec.Struct, frozen=True, omit_defaults=True, cache_hash=True):
    """Pods, told by conditions that all hold; one that is not given (None, or empty) does not restrict.

    ``namespace`` is the name of the only namespace that they are in, ``namespaces`` selects namespaces by their
    labels, ``pods`` the pods by theirs, ``accounts`` by their service account: ``account_names``, or a selector of the
    ServiceAccount's labels. Host-network pods are in no set. A Calico expression in ``pods`` also sees the labels that
    Calico gives an endpoint (``projectcalico.org/namespace``, ``.../orchestrator``, ``.../serviceaccount``).

    ``network_sets``: Calico's NetworkSets and GlobalNetworkSets whose labels fit belong to it with their CIDRs; then
    ``global_only`` leaves what is in a namespace out (Calico's ``global()``).
    """

    namespace: str = ""
    namespaces: Selector | None = None
    pods: Selector | None = None
    accounts: Selector | None = None
    account_names: tuple[str, ...] = ()
    network_sets: bool = False
    global_only: bool = False


class ServiceRef(msgspec.Struct, frozen=True):
    """The endpoints of a Service (Calico's ``services``): their addresses, and as a destination their ports too."""

    namespace: str
    name: str


class Peer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An end of a connection, told by conditions that all hold; one that is not given does not restrict.

    ``pods``: it is one of these pods. ``not_pods``: it is none of these (an address outside the cluster is none).
    ``nets``: its address is in one of these CIDRs, ``not_nets``: in none of them. CIDRs have no host bits. An IPv4
    block matches no IPv6 address: with nets of the other family only, the condition fails. ``nodes``: it is a
    node whose labels fit. ``service``: it is an endpoint of that Service.

    A Kubernetes ``ipBlock`` is ``nets`` of one, with the excepts in ``not_nets``.
    """

    pods: PodSet | None = None
    not_pods: PodSet | None = None
    nets: tuple[str, ...] = ()
    not_nets: tuple[str, ...] = ()
    nodes: Selector | None = None
    service: ServiceRef | None = None


class PortMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A protocol, with a range of ports (both ends inclusive), with a named port, or (``first`` 0, no name) whole.

    ``protocol``: TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6, or a number in decimal. A name is that of a containerPort of
    the pod at that end of the connection, with that protocol. It may mean another number on each pod, and means nothing
    where there is no such port.
    """

    protocol: str
    first: int = 0
    last: int = 0
    name: str = ""


class IcmpMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """An ICMP type and code; -1 stands for any."""

    type: int = -1
    code: int = -1


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of a connection a rule matches, all of it together, and what happens then.

    ``peers`` are ORed, and are the far end: the source of ingress, the destination of egress; none means anyone.
    ``ports`` are ORed too, and are those of the destination; none means all traffic, whatever its protocol.
    ``name`` is what its author calls it. Its index in the policy's list is the one in the object.

    Only Calico has the rest: ``subject`` narrows the policy's own end; ``not_ports`` (destination), ``source_ports``
    and ``not_source_ports``; ``not_protocol``; ``icmp``, ``not_icmp``; ``family``, 0 for both.
    """

    action: Action = "allow"
    peers: tuple[Peer, ...] = ()
    ports: tuple[PortMatch, ...] = ()
    name: str = ""
    subject: Peer | None = None
    not_ports: tuple[PortMatch, ...] = ()
    source_ports: tuple[PortMatch, ...] = ()
    not_source_ports: tuple[PortMatch, ...] = ()
    not_protocol: str = ""
    icmp: IcmpMatch | None = None
    not_icmp: IcmpMatch | None = None
    family: Literal[0, 4, 6] = 0


class Tier(msgspec.Struct, frozen=True):
    """A stage of judgement. ``default`` is for pods that one of its policies selects in that direction, and none of
    its rules matches."""

    name: str
    order: float | None
    default: Literal["deny", "pass"] = "deny"


# projectcalico/api v3 tier.go: where Calico puts the three stages of the Kubernetes APIs. An order of None is last.
KUBERNETES_TIERS = (
    Tier(ADMIN_TIER, 1000.0, "pass"),
    Tier(DEFAULT_TIER, 1000000.0, "deny"),
    Tier(BASELINE_TIER, 10000000.0, "pass"),
)


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, cache_hash=True, dict=True):
    """A policy object. ``ingress`` and ``egress`` are None where it does not apply to that direction; no rules at all
    (``()``) where it applies and lets nothing pass. ``namespace`` is empty for kinds of the whole cluster.
    ``order`` ascends within its tier, None is last."""

    kind: PolicyKind
    namespace: str
    name: str
    subject: PodSet
    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None
    tier: str = DEFAULT_TIER
    order: float | None = KUBERNETES_ORDER

    @cached_property
    def key(self) -> str:
        """``NetworkPolicy shop/deny-all``: for people, and unique in a cluster."""
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        """The rules of one direction, None if the policy does not apply to it."""
        return self.ingress if direction == "ingress" else self.egress


class NetworkSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """Calico's NetworkSet, or without ``namespace`` its GlobalNetworkSet: CIDRs that have labels."""

    namespace: str
    name: str
    labels: dict[str, str] = {}
    nets: tuple[str, ...] = ()
