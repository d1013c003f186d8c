"""Service addresses behind IPVS, as kube-proxy's ipvs mode and kube-router's proxy both have them.

::

    a Service's address, on a dummy device ─▶ the packet is for this node: INPUT ─▶ virtual server ─▶ real server

What the two hold against each other (sets, iptables rules, which endpoints, which scheduler) is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from ipaddress import ip_address

from emulator.cluster.model import Cluster, Node
from emulator.cluster.services import Service, ServicePort
from emulator.errors import UserError
from emulator.plan.addressing import family_of
from emulator.plan.model import Family, IpvsServers, RealServer, VirtualServer
from emulator.proxy.endpoints import Target
from emulator.proxy.nodeport_addresses import interface_addresses


@cache
def plain(address: str) -> str:
    """An address as the kernel prints it. Raises UserError for what is none."""
    try:
        return str(ip_address(address))
    except ValueError as error:
        raise UserError(f"{address!r} of a Service is no IP address") from error


def own_addresses(cluster: Cluster, node: Node, family: Family) -> tuple[str, ...]:
    """All addresses of the node that the topology and its tunnels give it."""
    there = [*interface_addresses(cluster, node), *(each.partition("/")[0] for each in node.tunnels.values())]
    return tuple(dict.fromkeys(each for each in there if family_of(each) == family))


class VirtualServers:
    """One node's virtual servers of one family, gathered Service by Service.

    ``own`` are the addresses that the node has anyway; ``bound`` are those for the dummy device, each with the key of
    its Service.
    """

    def __init__(self, cluster: Cluster, node: Node, family: Family) -> None:
        self.own = own_addresses(cluster, node, family)
        self.bound: dict[str, str] = {}
        self.servers: dict[str, VirtualServer] = {}
        self._ns = node.ns
        self._family = family

    def serve(
        self,
        service: Service,
        port: ServicePort,
        address: str,
        number: int,
        chosen: Sequence[Target],
        *,
        scheduler: str = "rr",
        flags: tuple[int, ...] = (),
        bind: bool = True,
    ) -> None:
        """Answer for ``address`` and port ``number`` with the endpoints ``chosen``; whoever comes first has them."""
        server = VirtualServer(
            port.protocol,
            address,
            number,
            tuple(RealServer(plain(target.address), target.port) for target in chosen),
            scheduler=scheduler,
            persistence=service.affinity,
            flags=flags,
        )
        self.servers.setdefault(server.name, server)
        if bind and address not in self.own:  # an address may be on one device only
            self.bound.setdefault(address, service.key)

    def planned(self, component: str, *, graceful: bool = True) -> IpvsServers:
        """All of them, for the plan."""
        return IpvsServers(
            ns=self._ns,
            family=self._family,
            servers=self.servers,
            graceful=graceful,
            component=component,
            why="Service addresses and ports, and the endpoints behind them",
        )
