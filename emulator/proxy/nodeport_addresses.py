"""On which of its addresses a node serves NodePorts: kube-proxy's nodePortAddresses.

Follows kubernetes/kubernetes 1.36, pkg/proxy/util/nodeport_addresses.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from emulator.cluster.model import Cluster, Node
from emulator.plan.addressing import contains, family_of, of_family
from emulator.plan.model import Family

PRIMARY = "primary"
EVERYWHERE = ("0.0.0.0/0", "::/0")


def interface_addresses(cluster: Cluster, node: Node) -> Iterator[str]:
    """The addresses, of both families, that the topology gives to a node's interfaces."""
    for machine in cluster.topology.of_kind("node"):
        if machine.name == node.name:
            for interface in machine.interfaces:
                yield from (address.partition("/")[0] for address in interface.addresses)


def nodeport_addresses(wanted: Sequence[str], node: Node, family: Family, own: Iterable[str]) -> tuple[str, ...] | None:
    """Those of a node's ``own`` addresses that serve NodePorts where ``primary`` or CIDRs are ``wanted``; None for all
    that it has."""
    if PRIMARY in wanted:
        return (of_family(node.addresses, family),)
    cidrs = [cidr for cidr in wanted if family_of(cidr) == family]
    if not cidrs or any(cidr in EVERYWHERE for cidr in cidrs):
        return None
    return tuple(dict.fromkeys(each for each in own if any(contains(cidr, each) for cidr in cidrs)))
