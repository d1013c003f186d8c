"""What every style needs of a cluster: nodes with an address of each of the pods' families, and room for a packet."""

from __future__ import annotations

from collections.abc import Callable

from emulator.cluster.model import Cluster, Node
from emulator.errors import UserError
from emulator.plan.addressing import families_of, of_family

LEAST_MTU = {
    4: 576,  # bytes: what every IPv4 host must take (RFC 791)
    6: 1280,  # RFC 8200, section 5
}


def check_distinct(style: str, cluster: Cluster) -> None:
    """Raise UserError if two nodes have the same InternalIP: ``style`` routes by it, and no kernel takes a route by an
    address of its own."""
    owner: dict[str, str] = {}
    for node in cluster.nodes:
        for address in node.addresses:
            if owner.setdefault(address, node.name) != node.name:
                raise UserError(
                    f"{style} routes by the InternalIPs, and {owner[address]} and {node.name} have the same one, "
                    f"{address}",
                    hint="give the nodes a nodeIP in the topology, as --node-ip does for a kubelet",
                )


def check_nodes(style: str, cluster: Cluster, pod_mtu: Callable[[Node], int]) -> None:
    """Raise UserError for the first node that ``style`` cannot put pods on; ``pod_mtu`` is what it leaves them."""
    for node in cluster.nodes:
        for family in families_of(cluster.topology.pod_cidrs):
            if not of_family(node.addresses, family):
                raise UserError(
                    f"{style} cannot carry IPv{family} pods: node {node.name} has no IPv{family} address",
                    hint="give the nodes an address of each family that the pod CIDRs have",
                )
            if pod_mtu(node) < LEAST_MTU[family]:
                raise UserError(
                    f"the MTU of node {node.name} is too small: {node.mtu} bytes leave pods {pod_mtu(node)}, "
                    f"and IPv{family} needs {LEAST_MTU[family]}",
                    hint="raise the MTU of the node's link",
                )
