"""Who is selected by what: all that an enforcer and the evaluator ask of the policies of a cluster."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from emulator.cluster.model import Cluster, Pod
from emulator.policy.model import Direction, Family, NetworkSet, PodSet, Policy, PolicyKind, ServiceRef, Tier


class Compiled(msgspec.Struct, frozen=True):
    """The policies of a cluster with all their selections resolved. ``emulator.policy.compile`` makes it.

    ``policies`` are in the order of judgement: by tier, order, namespace and name. ``tiers`` are all that there are, in
    order. ``pods`` are the pods that can be selected (no host-network ones), by key. ``members`` are the keys of the
    pods of each :class:`PodSet` that any policy mentions, as subject or peer. ``ingress`` and ``egress`` are, for each
    pod that any policy selects in that direction, those policies in the order of judgement. What did not change since
    the previous one is the same object again (``is``): a policy, a set of members, a pod's tuple of policies.
    ``networks`` are the CIDRs that Calico's network sets add to those :class:`PodSet` that take them.
    """

    cluster: Cluster
    policies: tuple[Policy, ...]
    tiers: tuple[Tier, ...]
    pods: dict[str, Pod]
    members: dict[PodSet, frozenset[str]]
    ingress: dict[str, tuple[Policy, ...]]
    egress: dict[str, tuple[Policy, ...]]
    network_sets: tuple[NetworkSet, ...] = ()
    networks: dict[PodSet, tuple[str, ...]] = {}

    def of_pod(self, pod: str, direction: Direction) -> tuple[Policy, ...]:
        """The policies that judge the pod of that key (``namespace/name``), in order; none: it is not isolated."""
        return (self.ingress if direction == "ingress" else self.egress).get(pod, ())

    def selected(self, policy: Policy) -> frozenset[str]:
        """The keys of the pods whose traffic the policy judges."""
        return self.members[policy.subject]

    def of_kinds(self, kinds: Collection[PolicyKind]) -> Compiled:
        """As who reads no other kinds sees it; the same object if there are no others."""
        if all(policy.kind in kinds for policy in self.policies):
            return self
        ingress, egress = (
            {
                pod: found
                for pod, policies in given.items()
                if (found := tuple(one for one in policies if one.kind in kinds))
            }
            for given in (self.ingress, self.egress)
        )
        policies = tuple(one for one in self.policies if one.kind in kinds)
        return msgspec.structs.replace(self, policies=policies, ingress=ingress, egress=egress)

    def addresses(self, pods: PodSet, family: Family) -> tuple[str, ...]:
        """The addresses of the set's pods, sorted as text, without prefix length."""
        found = (address_of(self.pods[key], family) for key in self.members[pods])
        return tuple(sorted(address for address in found if address))

    def nets(self, pods: PodSet, family: Family) -> tuple[str, ...]:
        """The CIDRs that Calico's network sets add to the set, sorted, each once."""
        return tuple(net for net in self.networks.get(pods, ()) if (":" in net) == (family == 6))

    def named_ports(self, pods: PodSet, protocol: str, name: str, family: Family) -> tuple[tuple[str, int], ...]:
        """What a named port means on the set's pods: address and number for each pod that has it, sorted."""
        found: set[tuple[str, int]] = set()
        for key in self.members[pods]:
            pod = self.pods[key]
            address = address_of(pod, family)
            if address:
                found.update((address, port) for port in port_numbers(pod, protocol, name))
        return tuple(sorted(found))

    def endpoints(self, service: ServiceRef, family: Family) -> tuple[tuple[str, str, int], ...]:
        """The Service's endpoints as (address, protocol, port), sorted, ready or not (Felix reads all of a slice)."""
        wanted = f"{service.namespace}/{service.name}"
        slices = (one for one in self.cluster.slices if one.service_key == wanted and one.family == family)
        found = {
            (end.address, port.protocol, port.port) for one in slices for end in one.endpoints for port in one.ports
        }
        return tuple(sorted(found))


def address_of(pod: Pod, family: Family) -> str:
    """The pod's address of that family, empty if it has none."""
    return next((address for address in pod.addresses if (":" in address) == (family == 6)), "")


def port_numbers(pod: Pod, protocol: str, name: str) -> tuple[int, ...]:
    """The numbers of the pod's containerPorts of that name and protocol, in the order of its containers."""
    ports = (port for container in pod.containers for port in container.ports)
    return tuple(dict.fromkeys(port.port for port in ports if port.name == name and port.protocol == protocol))
