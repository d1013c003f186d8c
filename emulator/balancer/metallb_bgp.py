"""MetalLB in BGP mode: every node tells its router of each address, and the router spreads flows over the nodes.

::

    client ── router: VIP/32 nexthop n1 nexthop n2 nexthop n3 ── by the hash of addresses and ports ── n2 ── kube-proxy

Under externalTrafficPolicy Local only nodes with an endpoint announce. A changed set of next hops changes where most
flows go.

A node has one BGP port. Where the CNI has it (Calico's BIRD, kube-router) MetalLB's speakers could not peer from it;
then only its controller runs, and the CNI announces what its own configuration says.

Sources: metallb/metallb speaker/bgp_controller.go; metallb.io "MetalLB in BGP mode", "Issues with Calico"; Linux
Documentation/networking/ip-sysctl.rst (fib_multipath_hash_policy).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, summarize_address_range

from emulator.balancer.announcing import announcers, balanced, speakers
from emulator.cluster.model import Cluster, LoadBalancer, Machine, Node
from emulator.cni.bgp_fabric import (
    addresses_of,
    announced_route,
    fabric_sessions,
    protocol_name,
    router_daemon,
    router_end,
    spreading,
)
from emulator.cni.style import Style
from emulator.errors import Unsupported, UserError
from emulator.plan.addressing import contains, family_of, host_prefix
from emulator.plan.model import AnyObject, Daemon, Family, File
from emulator.routing.bgp import Path, Session, spread
from emulator.routing.bird import router_id
from emulator.routing.bird_metallb import AnnouncedFamily, speaker_config
from emulator.routing.bird_router import RouterFamily

CONFIG, SOCKET = "/etc/metallb/bird.conf", "/run/metallb/bird.ctl"
SPEAKER = "MetalLB speaker (BIRD for FRR)"


@dataclass
class Announcements:
    """Who announces what to whom, for one cluster."""

    sessions: tuple[Session, ...]
    origins: dict[str, tuple[str, ...]]  # nodes by address; those that are up
    router_ids: dict[str, str]
    _ways: dict[str, dict[str, tuple[Path, ...]]] = field(default_factory=dict)

    def ways(self, address: str) -> dict[str, tuple[Path, ...]]:
        """The paths to an address, by router."""
        if address not in self._ways:
            family = family_of(address)
            sessions = [each for each in self.sessions if family_of(each.local_address) == family]
            self._ways[address] = spread(
                self.router_ids, sessions, host_prefix(address), self.origins[address], lambda *_: True
            )
        return self._ways[address]


_latest: list[tuple[Cluster, Announcements]] = []  # of the last cluster: a plan asks once per node and router


@dataclass(frozen=True)
class MetalLbBgp:
    """MetalLB with a BGPPeer for each router and a BGPAdvertisement for all addresses."""

    balancer: LoadBalancer
    style: Style
    title: str = "MetalLB · BGP"
    stand_in: str = "BIRD for MetalLB's FRR"
    requires: tuple[str, ...] = ("bird",)

    def check(self, cluster: Cluster) -> None:
        if reason := self.style.strict_underlay:
            raise Unsupported(
                f"MetalLB cannot announce addresses under {self.style.name}: {reason}",
                hint="take a topology without loadBalancer, or one of kind cloud (docs/load-balancers.md)",
            )
        if not self.style.speaks_bgp(cluster):
            for node in speakers(cluster, self.balancer):
                if not any(each.local == node.name for each in self._announcements(cluster).sessions):
                    raise UserError(
                        f"MetalLB on node {node.name} has no router to peer with: none with an AS number shares a link "
                        "with it",
                        hint="loadBalancer.nodes names the nodes that announce, loadBalancer.peers the routers",
                    )

    def notices(self, cluster: Cluster) -> tuple[str, ...]:
        holder = self.style.speaks_bgp(cluster)
        if not holder:
            return ()
        told = "announces what its own configuration says"
        return (f"MetalLB only hands out addresses here: {holder} has the nodes' BGP port, and {told}",)

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        told = self._announcements(cluster)
        sessions = [each for each in told.sessions if each.local == node.name]
        if self.style.speaks_bgp(cluster) or not sessions:
            return
        families = []
        for family in _families(sessions):
            addresses = [
                address
                for service, slices in balanced(cluster, self.balancer)
                if node in announcers(cluster, self.balancer, service, slices)
                for address in (one.address for one in service.load_balancer)
                if family_of(address) == family
            ]
            own = tuple(each for each in sessions if family_of(each.local_address) == family)
            families.append(AnnouncedFamily(family, tuple(addresses), own))
        yield File(
            ns=node.ns,
            path=CONFIG,
            content=speaker_config(told.router_ids[node.name], self.balancer.hold_time, families),
            component=SPEAKER,
            why="the addresses that this node announces, and the routers that it tells",
        )
        yield Daemon(
            ns=node.ns,
            name="bird",
            argv=("bird", "-f", "-c", CONFIG, "-s", SOCKET),
            files=(CONFIG,),
            reload=("birdc", "-s", SOCKET, "configure"),
            ready_socket=SOCKET,
            component=SPEAKER,
            why="tells the routers that packets for Services' addresses may be sent here",
        )

    def machine(self, cluster: Cluster, machine: Machine) -> Iterator[AnyObject]:
        told = self._announcements(cluster)
        sessions = [each for each in told.sessions if each.local == machine.name]
        if self.style.speaks_bgp(cluster):
            return
        if machine.kind != "router" or not machine.asn or not sessions:
            return
        families = []
        for family in _families(sessions):
            own = tuple(each for each in sessions if family_of(each.local_address) == family)
            families.append(RouterFamily(family, _pools(self.balancer, family), own))
        yield from router_daemon(machine, families)
        yield from spreading(machine, [family.version for family in families])
        for address in told.origins:
            paths = told.ways(address).get(machine.name, ())
            yield from announced_route(machine, host_prefix(address), paths, f"announced by {_names(paths)}")

    def _announcements(self, cluster: Cluster) -> Announcements:
        if not (_latest and _latest[0][0] is cluster):
            _latest[:] = [(cluster, self._made(cluster))]
        return _latest[0][1]

    def _made(self, cluster: Cluster) -> Announcements:
        machines = [one for one in cluster.topology.machines if one.kind == "node" or one.asn]
        up = {node.name for node in cluster.nodes} - cluster.not_ready_nodes
        origins = {
            one.address: tuple(
                node.name for node in announcers(cluster, self.balancer, service, slices) if node.name in up
            )
            for service, slices in balanced(cluster, self.balancer)
            for one in service.load_balancer
        }
        return Announcements(
            sessions=(*self._sessions(cluster), *fabric_sessions(cluster)),
            origins={address: nodes for address, nodes in origins.items() if nodes},
            router_ids={one.name: router_id(one.name, addresses_of(one)) for one in machines},
        )

    def _sessions(self, cluster: Cluster) -> Iterator[Session]:
        families = {one.family for one in self.balancer.ranges}
        routers = [one for one in cluster.topology.of_kind("router") if one.asn]
        if self.balancer.peers:
            routers = [one for one in routers if one.name in self.balancer.peers]
        machines = {one.name: one for one in cluster.topology.machines}
        for node in speakers(cluster, self.balancer):
            for router in routers:
                for local, remote in _common_links(machines[node.name], router):
                    if family_of(local) in families:
                        session = Session(
                            local=node.name,
                            remote=router.name,
                            local_address=local,
                            remote_address=remote,
                            local_asn=self.balancer.asn,
                            remote_asn=router.asn,
                            protocol=protocol_name("Peer", remote),
                            direct=True,
                        )
                        yield session
                        yield router_end(router, session)


def _names(paths: tuple[Path, ...]) -> str:
    return ", ".join(path.source.remote for path in paths if path.source is not None)


def _families(sessions: list[Session]) -> tuple[Family, ...]:
    return tuple(dict.fromkeys(family_of(each.local_address) for each in sessions))


def _pools(balancer: LoadBalancer, family: Family) -> tuple[str, ...]:
    return tuple(
        str(network)
        for one in balancer.ranges
        if one.family == family
        for network in summarize_address_range(ip_address(one.first), ip_address(one.last))
    )


def _common_links(node: Machine, router: Machine) -> Iterator[tuple[str, str]]:
    """The pairs of addresses by which the two are neighbours, one a family."""
    seen: set[Family] = set()
    for own in (text for item in node.interfaces for text in item.addresses):
        for remote in addresses_of(router):
            if family_of(own) not in seen and contains(own, remote):
                seen.add(family_of(own))
                yield own.partition("/")[0], remote
