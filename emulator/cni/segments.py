"""Which nodes are neighbours: on one subnet of the underlay, reachable without a router."""

from __future__ import annotations

from emulator.cluster.model import Node
from emulator.plan.addressing import contains, families_of, of_family
from emulator.plan.model import Family


def share_subnet(node: Node, peer: Node, family: Family) -> bool:
    """Whether ``peer``'s address of ``family`` is on a subnet of ``node``'s own interface.

    As flanneld asks the kernel (``ip route get PEER`` names no gateway) and as Calico compares ``CrossSubnet``.
    """
    subnet = of_family(node.subnets, family)
    address = of_family(peer.addresses, family)
    return bool(subnet and address) and contains(subnet, address)


def strangers(nodes: tuple[Node, ...], cidrs: tuple[str, ...]) -> tuple[Node, Node] | None:
    """The first two nodes that share no segment for a family of ``cidrs``; None if all are neighbours."""
    for peer in nodes[1:]:
        for family in families_of(cidrs):
            if not share_subnet(nodes[0], peer, family):
                return nodes[0], peer
    return None
