"""Which of its node's interfaces a CNI takes, where that is not the kubelet's choice.

A :class:`Node` of the cluster is what Kubernetes knows: its InternalIPs, and the interface that has them. flanneld and
calico-node look for themselves. What they find is put into the same records (:func:`seen_as`), so that whoever plans
from them need not know of the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

import msgspec

from emulator.cluster.model import Cluster, Interface, Machine, Node
from emulator.cni.bgp_fabric import gateway
from emulator.plan.addressing import family_of
from emulator.plan.model import Family


@dataclass(frozen=True)
class Found:
    """An address (with its prefix length) and the interface that has it."""

    interface: Interface
    address: str

    @property
    def bare(self) -> str:
        """The address alone."""
        return self.address.partition("/")[0]


def machine_of(cluster: Cluster, node: Node) -> Machine:
    """The machine that a node is."""
    return next(machine for machine in cluster.topology.of_kind("node") if machine.name == node.name)


def of_interface(interface: Interface, family: Family) -> Found | None:
    """The interface with its first global address of a family."""
    for address in interface.addresses:
        if family_of(address) == family and not ip_interface(address).is_link_local:
            return Found(interface, address)
    return None


def of_other_families(found: Sequence[Found], families: Sequence[Family]) -> Iterator[Found]:
    """What else the interface has, beside addresses of the pods' ``families``: WireGuard may run over it, and BGP is
    identified by it."""
    others: tuple[Family, ...] = (4, 6)
    for family in others:
        one = of_interface(found[0].interface, family)
        if family not in families and one is not None:
            yield one


def with_address(machine: Machine, address: str) -> Found | None:
    """The interface that has ``address``."""
    for interface in machine.interfaces:
        for own in interface.addresses:
            if ip_interface(own).ip == ip_address(address):
                return Found(interface, own)
    return None


def by_name(machine: Machine, name: str) -> Interface | None:
    """The interface of that name."""
    return next((interface for interface in machine.interfaces if interface.name == name), None)


def towards(machine: Machine, address: str) -> Interface | None:
    """The interface by which packets to ``address`` leave, as ``ip route get`` says; None without a route, and for an
    address of the machine's own, to which packets leave by lo."""
    if with_address(machine, address) is not None:
        return None
    return by_name(machine, gateway(machine, address)[1])


def of_default_route(machine: Machine, family: Family) -> Interface | None:
    """The interface of the default route of a family."""
    everything = "0.0.0.0/0" if family == 4 else "::/0"
    for route in machine.routes:
        if route.destination == everything:
            return by_name(machine, gateway(machine, route.via)[1])
    return None


def seen_as(node: Node, found: Iterable[Found], mtu: int = 0) -> Node:
    """The node with the addresses ``found`` in place of its InternalIPs; the first one's interface is its own.
    ``mtu`` is in bytes, 0 for the interface's."""
    chosen = tuple(found)
    interface = chosen[0].interface
    return msgspec.structs.replace(
        node,
        addresses=tuple(one.bare for one in chosen),
        device=interface.name,
        mtu=mtu or interface.mtu,
        subnets=tuple(str(ip_interface(one.address).network) for one in chosen),
    )
