"""The routers of the underlay as BGP speakers, whatever style the nodes that peer with them run.

::

    n1, n2 ═ tor1 ═ spine ═ tor2 ═ n3, n4       routers with an AS number, each with those that share a link with it

A router's end of a session with a node is what whoever runs the racks would configure: it mirrors the node's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from emulator.cluster.model import Cluster, Machine
from emulator.plan.addressing import contains, prefix_length
from emulator.plan.model import AnyObject, Daemon, Family, File, Route, Sysctl
from emulator.routing.bgp import Path, Session
from emulator.routing.bird import router_id
from emulator.routing.bird_router import RouterFamily, router_config

BIRD = "bird"
ROUTER_CONFIG, ROUTER_SOCKET = "/etc/bird/bird.conf", "/run/bird/bird.ctl"
LONGEST_WAY = 16  # hops between two nodes of a topology


def addresses_of(machine: Machine) -> tuple[str, ...]:
    """All addresses of a machine, without their prefix length."""
    return tuple(address.partition("/")[0] for item in machine.interfaces for address in item.addresses)


def identifiers(cluster: Cluster, machines: Mapping[str, Machine]) -> dict[str, str]:
    """The BGP identifiers of all speakers, unless they are told another one: a node's is the address that it is known
    by."""
    known = {node.name: node.addresses for node in cluster.nodes}
    return {name: router_id(name, (*known.get(name, ()), *addresses_of(machine))) for name, machine in machines.items()}


def protocol_name(scope: str, address: str, port: int = 0) -> str:
    """How a session is called in BIRD: ``Mesh_192_168_50_12``."""
    return f"{scope}_{address.replace('.', '_').replace(':', '_')}" + (f"_port_{port}" if port else "")


def gateway(machine: Machine, address: str) -> tuple[str, str]:
    """The neighbour by whom ``machine`` sends to ``address``, and the device; empty if it has no way."""
    for _ in range(LONGEST_WAY):
        for interface in machine.interfaces:
            if any(contains(own, address) for own in interface.addresses):
                return address, interface.name
        routes = [route for route in machine.routes if contains(route.destination, address)]
        if not routes:
            break
        address = max(routes, key=lambda route: prefix_length(route.destination)).via
    return "", ""


def owners(machines: Iterable[Machine]) -> dict[str, str]:
    """Whose each address is."""
    return {address: machine.name for machine in machines for address in addresses_of(machine)}


def lost(
    machines: Mapping[str, Machine],
    owner_of: Mapping[str, str],
    next_hop: Callable[[str], str],
    start: str,
    end: str,
) -> str:
    """Why packets from one machine do not get to another, if nothing wraps them; empty if they do. ``next_hop`` is the
    address that a machine sends them to, its own routes willing."""
    here, passed = start, [start]
    while here != end:
        via, _ = gateway(machines[here], next_hop(here))
        if via not in owner_of:
            return f"{here} has no route"
        here = owner_of[via]
        if here in passed or machines[here].kind == "host":
            return f"they go round in circles: {' > '.join([*passed, here])}"
        if machines[here].kind == "node" and here != end:
            return f"{passed[-1]} sends them to {here}"
        passed.append(here)
    return ""


def fabric_sessions(cluster: Cluster) -> Iterator[Session]:
    """The sessions between routers with AS numbers that share a link."""
    routers = [machine for machine in cluster.topology.of_kind("router") if machine.asn]
    ends = [
        (router, address) for router in routers for interface in router.interfaces for address in interface.addresses
    ]
    for router, own in ends:
        for peer, far in ends:
            address = far.partition("/")[0]
            if peer is not router and contains(own, address):
                yield Session(
                    local=router.name,
                    remote=peer.name,
                    local_address=own.partition("/")[0],
                    remote_address=address,
                    local_asn=router.asn,
                    remote_asn=peer.asn,
                    protocol=protocol_name("Fabric", address),
                    direct=True,
                    next_hop_self=router.asn == peer.asn,
                )


def router_end(router: Machine, session: Session) -> Session:
    """The router's end of a session that is configured on a node. A node of the router's own AS is its client."""
    internal = router.asn == session.local_asn
    return Session(
        local=router.name,
        remote=session.local,
        local_address=session.remote_address,
        remote_address=session.local_address,
        local_asn=router.asn,
        remote_asn=session.local_asn,
        protocol=protocol_name("Node", session.local_address),
        cluster=router_id(router.name, addresses_of(router)) if internal else "",
        client=internal,
        direct=any(contains(own, session.local_address) for item in router.interfaces for own in item.addresses),
        next_hop_self=internal,
        password=session.password,
    )


def router_daemon(router: Machine, families: Sequence[RouterFamily]) -> Iterator[AnyObject]:
    """BIRD on a router."""
    yield File(
        ns=router.ns,
        path=ROUTER_CONFIG,
        content=router_config(router_id(router.name, addresses_of(router)), families),
        component="network operator",
        why="BGP with the nodes of this rack that peer with it, and with the routers next to it",
    )
    yield Daemon(
        ns=router.ns,
        name="bird",
        argv=("bird", "-f", "-c", ROUTER_CONFIG, "-s", ROUTER_SOCKET),
        files=(ROUTER_CONFIG,),
        reload=("birdc", "-s", ROUTER_SOCKET, "configure"),
        ready_socket=ROUTER_SOCKET,
        component=BIRD,
        why="learns the pods' addresses from nodes and other routers, so that the underlay can carry them",
    )


def spreading(router: Machine, families: Iterable[Family]) -> Iterator[Sysctl]:
    """What makes a router choose among several next hops by addresses and ports, as hardware does."""
    for family in families:
        yield Sysctl(
            ns=router.ns,
            name=f"net/ipv{family}/fib_multipath_hash_policy",
            value="1",
            component="network operator",
            why="one of several next hops is chosen by the hash of addresses, protocol and ports",
        )


def announced_route(router: Machine, prefix: str, paths: tuple[Path, ...], what: str) -> Iterator[Route]:
    """The route that a machine learns of addresses that several nodes announce."""
    hops = [hop for path in paths if (hop := gateway(router, path.next_hop)) != ("", "")]
    if not hops:
        return
    yield Route(
        ns=router.ns,
        destination=prefix,
        via=hops[0][0] if len(hops) == 1 else "",
        device=hops[0][1] if len(hops) == 1 else "",
        hops=tuple(hops) if len(hops) > 1 else (),
        protocol="bird",
        learned=True,
        component="bird",
        why=what,
    )
