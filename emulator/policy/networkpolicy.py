"""networking.k8s.io/v1 NetworkPolicy in the neutral form.

The objects have been checked (``emulator.cluster.network_policy_rules``). What they leave out is filled in as the API
server does: ``policyTypes`` (pkg/apis/networking/v1/defaults.go: Ingress always, Egress if there is an egress rule) and
a port's protocol (TCP).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from emulator.cluster.network_policy_rules import legacy_network
from emulator.policy.model import LabelSelector, Peer, PodSet, Policy, PortMatch, Requirement, Rule

Object = dict[str, Any]


def network_policy(thing: Object) -> Policy:
    """The policy that a NetworkPolicy object describes."""
    metadata, spec = thing["metadata"], thing.get("spec") or {}
    namespace = metadata.get("namespace") or "default"
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    return Policy(
        kind="NetworkPolicy",
        namespace=namespace,
        name=metadata["name"],
        subject=PodSet(namespace=namespace, pods=label_selector(spec.get("podSelector"))),
        ingress=_rules(spec.get("ingress"), "from", namespace) if "Ingress" in types else None,
        egress=_rules(spec.get("egress"), "to", namespace) if "Egress" in types else None,
    )


def label_selector(given: Object | None) -> LabelSelector:
    """A Kubernetes label selector; one that is missing selects everything, like an empty one."""
    given = given or {}
    found = {Requirement(key, "In", (value or "",)) for key, value in (given.get("matchLabels") or {}).items()}
    for one in given.get("matchExpressions") or ():
        found.add(Requirement(one["key"], one["operator"], tuple(sorted(set(one.get("values") or ())))))
    return LabelSelector(tuple(sorted(found, key=lambda one: (one.key, one.operator, one.values))))


def _rules(given: Iterable[Object] | None, peers: str, namespace: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            peers=tuple(_peer(one, namespace) for one in rule.get(peers) or ()),
            ports=tuple(_port(one) for one in rule.get("ports") or ()),
        )
        for rule in given or ()
    )


def _peer(given: Object, namespace: str) -> Peer:
    block = given.get("ipBlock")
    if block is not None:
        return Peer(nets=(_net(block["cidr"]),), not_nets=tuple(_net(one) for one in block.get("except") or ()))
    pods, namespaces = given.get("podSelector"), given.get("namespaceSelector")
    return Peer(
        pods=PodSet(
            namespace="" if namespaces is not None else namespace,
            namespaces=label_selector(namespaces) if namespaces is not None else None,
            pods=label_selector(pods) if pods is not None else None,
        )
    )


def _net(text: str) -> str:
    network = legacy_network(text)
    assert network is not None, "validation lets no other CIDR pass"
    return str(network)


def _port(given: Object) -> PortMatch:
    protocol, port = given.get("protocol") or "TCP", given.get("port")
    if isinstance(port, str):
        return PortMatch(protocol, name=port)
    if port is None:
        return PortMatch(protocol)
    return PortMatch(protocol, first=port, last=given.get("endPort") or port)
