"""Calico's BGP: who peers with whom, BIRD on nodes and routers, and the routes that must come of it.

::

    full mesh             n1 ═ n2 ═ n3 ═ n1          every pair of nodes; route reflectors take no part
    route reflectors      n1 ═ rr ═ n2               BGPPeer with peerSelector: both ends are configured
    top-of-rack router    n1, n2 ═ tor1 ═ spine      BGPPeer with peerIP of a router that has an AS number

Routers of the topology with an AS number speak BGP too: with the nodes whose BGPPeer names one of their addresses,
and with the routers next to them.

Sources: projectcalico/calico confd/pkg/backends/calico/client.go (which peers a BGPPeer means, reverse peerings),
confd/etc/calico/confd/templates/bird.cfg.template; docs.tigera.io "Configure BGP peering".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from emulator.cluster.model import Cluster, Machine, Node
from emulator.cluster.system_pods import environments
from emulator.cluster.validation import invalid, parse_address
from emulator.cni.bgp_fabric import (
    BIRD,
    addresses_of,
    announced_route,
    fabric_sessions,
    gateway,
    identifiers,
    lost,
    owners,
    protocol_name,
    router_daemon,
    router_end,
    spreading,
)
from emulator.cni.calico_services import announcing, service_routes
from emulator.cni.calico_settings import Peering, Settings
from emulator.cni.calico_tunnels import is_felixs
from emulator.errors import ManifestError, Problem, UserError
from emulator.plan.addressing import contains, families_of, family_of, host_prefix, of_family, prefix_length
from emulator.plan.model import AnyObject, Daemon, Family, File, Route
from emulator.routing.bgp import Path, Session, settle, spread
from emulator.routing.bird import FamilyRouting, Peer, Speaker, bird_config, hashed_router_id
from emulator.routing.bird_router import RouterFamily

CONFD = "confd"
CALICO_NODE = "calico-node"  # DaemonSet and container of manifests/calico.yaml
ROUTER_ID = "CALICO_ROUTER_ID"  # confd templates, bird.cfg

NODE_CONFIG, NODE_SOCKET = "/etc/calico/confd/config/bird.cfg", "/run/calico/bird.ctl"


@dataclass
class Network:
    """All speakers and sessions of a cluster, and the ways that BGP finds; those are worked out when asked for."""

    cluster: Cluster
    settings: Settings
    sessions: tuple[Session, ...]
    machines: Mapping[str, Machine]
    plain: bool  # a full mesh and nothing else: everybody has every prefix from its origin
    router_ids: Mapping[str, str]
    services: Mapping[str, tuple[str, ...]]  # CIDRs of Services, with the nodes that announce them and are up
    _found: dict[str, dict[str, Path]] = field(default_factory=dict)

    def of(self, speaker: str, family: Family) -> tuple[Session, ...]:
        """The sessions that are configured at one speaker."""
        return tuple(
            each for each in self.sessions if each.local == speaker and family_of(each.local_address) == family
        )

    def ways(self, prefix: str, origin: Node) -> dict[str, Path]:
        """The best path to a prefix of ``origin``, by speaker."""
        if prefix not in self._found:
            self._found[prefix] = self._settled(prefix, origin)
        return self._found[prefix]

    def _settled(self, prefix: str, origin: Node) -> dict[str, Path]:
        family = family_of(prefix)
        if self.plain:
            direct = Path(of_family(origin.addresses, family))
            return {node.name: direct for node in self.cluster.nodes if node.name != origin.name}
        tables = settle(
            self.router_ids,
            [each for each in self.sessions if family_of(each.local_address) == family],
            {prefix: origin.name},
            self._exports,
        )
        return {name: table[prefix] for name, table in tables.items() if prefix in table and name != origin.name}

    def ways_to_block(self, block: str, holders: Iterable[Node]) -> dict[str, tuple[Path, ...]]:
        """All paths to a block of ``holders`` that are as good as the best, by speaker."""
        sessions = [each for each in self.sessions if family_of(each.local_address) == family_of(block)]
        return spread(self.router_ids, sessions, block, [holder.name for holder in holders], self._exports)

    def blocks(self, node: Node) -> tuple[str, ...]:
        """What confd takes for the node's blocks: those that IPAM gave it, and those that another claim speaks of."""
        claimed = (each.cidr for each in self.settings.affinities if each.node == node.name)
        return tuple(dict.fromkeys((*node.pod_ranges, *claimed)))

    def holders(self) -> dict[str, list[Node]]:
        """The nodes that announce each block; one, if all is well."""
        found: dict[str, list[Node]] = {}
        for node in self.cluster.nodes:
            for block in self.blocks(node):
                found.setdefault(block, []).append(node)
        return found

    def ways_to_service(self, cidr: str) -> dict[str, tuple[Path, ...]]:
        """The best paths to a CIDR of Services, by speaker: all nodes that announce it are as good."""
        sessions = [each for each in self.sessions if family_of(each.local_address) == family_of(cidr)]
        told = {
            name
            for known, names in self.services.items()
            if contains(known, cidr.partition("/")[0]) and prefix_length(known) <= prefix_length(cidr)
            for name in names
        }
        routers = {name for name, machine in self.machines.items() if machine.kind == "router"}
        return spread(
            self.router_ids, sessions, cidr, self.services[cidr], lambda speaker, _: speaker in told | routers
        )

    def _exports(self, speaker: str, prefix: str) -> bool:
        """calico_export_to_bgp_peers: own blocks and nothing beneath them, and what is in the pools."""
        pool = self.settings.pool_of(prefix)
        if pool is None or not pool.exported:
            return False
        blocks = next((self.blocks(node) for node in self.cluster.nodes if node.name == speaker), ())
        return prefix in blocks or not any(contains(block, prefix.partition("/")[0]) for block in blocks)


_latest: list[Network] = []  # the network of the last cluster: a plan asks once per node, router and borrowed address


def network_of(cluster: Cluster, settings: Settings) -> Network:
    """The BGP of a cluster."""
    if _latest and _latest[0].cluster is cluster and _latest[0].settings == settings:
        return _latest[0]
    machines = {machine.name: machine for machine in cluster.topology.machines if machine.kind != "host"}
    machines = {name: item for name, item in machines.items() if item.kind == "node" or item.asn}
    sessions: dict[tuple[str, str, int], Session] = {}
    for each in (*_mesh(cluster, settings), *_peerings(cluster, settings, machines), *fabric_sessions(cluster)):
        sessions.setdefault((each.local, each.remote_address, each.port), each)
    ids = router_ids(cluster, machines)
    plain = settings.mesh and not settings.clusters and not settings.peerings and len(set(ids.values())) == len(ids)
    services = announcing(cluster, settings.services)
    made = Network(cluster, settings, tuple(sessions.values()), machines, plain, ids, services)
    _latest[:] = [made]
    return made


def router_ids(cluster: Cluster, machines: Mapping[str, Machine]) -> dict[str, str]:
    """The BGP identifiers of all speakers. On nodes ``CALICO_ROUTER_ID`` of calico-node counts: ``hash``, or an address
    that its DaemonSet gives to all of them alike. Raises ManifestError."""
    ids = identifiers(cluster, machines)
    for node, environment in environments(cluster, CALICO_NODE).items():
        wish = environment.get(ROUTER_ID, "")
        if not wish:
            continue
        address = parse_address(wish)
        if wish != "hash" and (address is None or address.version != 4 or not int(address)):
            path = f"spec.template.spec.containers[{CALICO_NODE}].env[{ROUTER_ID}]"
            raise ManifestError(
                [Problem("", f"DaemonSet {CALICO_NODE}", path, invalid(wish, "must be hash, or an IPv4 address"))]
            )
        ids[node] = hashed_router_id(node) if wish == "hash" else wish
    return ids


# -- who peers with whom ------------------------------------------------------------------------------------------


def _mesh(cluster: Cluster, settings: Settings) -> Iterator[Session]:
    if not settings.mesh:
        return
    nodes = [node for node in cluster.nodes if node.name not in settings.clusters]
    for family in _families(cluster):
        for node in nodes:
            for peer in nodes:
                if peer is not node:
                    yield _between(
                        node, peer, family, settings, "Mesh", settings.mesh_password, settings.mesh_restart_time
                    )


def _between(
    node: Node, peer: Node, family: Family, settings: Settings, scope: str, password: str, restart_time: int
) -> Session:
    """A session of ``node`` with another node. One side waits: the one whose peer's address is higher as a string."""
    local, remote = of_family(node.addresses, family), of_family(peer.addresses, family)
    asn, peer_asn = settings.asns[node.name], settings.asns[peer.name]
    cluster = settings.clusters.get(node.name, "")
    return Session(
        local=node.name,
        remote=peer.name,
        local_address=local,
        remote_address=remote,
        local_asn=asn,
        remote_asn=peer_asn,
        protocol=protocol_name(scope, remote),
        cluster=cluster,
        client=bool(cluster) and asn == peer_asn and settings.clusters.get(peer.name) != cluster,
        passive=remote > local,
        password=password,
        restart_time=restart_time,
    )


def _peerings(cluster: Cluster, settings: Settings, machines: Mapping[str, Machine]) -> Iterator[Session]:
    nodes = {node.name: node for node in cluster.nodes}
    routers = {
        address: machine
        for machine in machines.values()
        if machine.kind == "router"
        for address in addresses_of(machine)
    }
    owners = {address: node for node in cluster.nodes for address in node.addresses}
    for peering in settings.peerings:
        for node in (nodes[name] for name in peering.nodes):
            if peering.address:
                yield from _with_address(cluster, settings, peering, node, owners, routers)
                continue
            for peer in (nodes[name] for name in peering.peers if name != node.name):
                for family in _families(cluster):
                    for one, other, scope in ((node, peer, peering.scope), (peer, node, "Node")):
                        yield _between(one, other, family, settings, scope, peering.password, peering.restart_time)


def _with_address(
    cluster: Cluster,
    settings: Settings,
    peering: Peering,
    node: Node,
    owners: Mapping[str, Node],
    routers: Mapping[str, Machine],
) -> Iterator[Session]:
    family = family_of(peering.address)
    local = of_family(node.addresses, family)
    if not local or peering.address in node.addresses or family not in _families(cluster):
        return
    asn, cluster_id = settings.asns[node.name], settings.clusters.get(node.name, "")
    peer, router = owners.get(peering.address), routers.get(peering.address)
    session = Session(
        local=node.name,
        remote=peer.name if peer else router.name if router else peering.name,
        local_address=local,
        remote_address=peering.address,
        local_asn=asn,
        remote_asn=peering.asn,
        protocol=protocol_name(peering.scope, peering.address, peering.port),
        cluster=cluster_id,
        client=bool(cluster_id)
        and asn == peering.asn
        and not (peer is not None and settings.clusters.get(peer.name) == cluster_id),
        keep_next_hop=peering.keep_next_hop and asn != peering.asn,
        own_as_allowed=peering.own_as_allowed,
        passive=peer is not None and peering.address > local,
        port=peering.port,
        password=peering.password,
        restart_time=peering.restart_time,
    )
    yield session
    if router is not None:
        yield router_end(router, session)


def _families(cluster: Cluster) -> tuple[Family, ...]:
    return families_of(cluster.topology.pod_cidrs)


# -- nodes --------------------------------------------------------------------------------------------------------


def node_bgp(cluster: Cluster, node: Node, settings: Settings) -> Iterator[AnyObject]:
    """BIRD on a node, with its configuration and the routes that it must bring."""
    network = network_of(cluster, settings)
    yield File(
        ns=node.ns,
        path=NODE_CONFIG,
        content=bird_config(_speaker(network, node)),
        component=CONFD,
        why="BGP with every other node; written anew when nodes or blocks change"
        if network.plain
        else "BGP with the peers that the resources name; written anew when they, nodes or blocks change",
    )
    yield Daemon(
        ns=node.ns,
        name="bird",
        argv=("bird", "-f", "-c", NODE_CONFIG, "-s", NODE_SOCKET),
        files=(NODE_CONFIG,),
        reload=("birdc", "-s", NODE_SOCKET, "configure"),
        ready_socket=NODE_SOCKET,
        again=("-R",),  # a graceful restart: keep what the kernel has until the peers have told everything anew
        component=BIRD,
        why="tells the other nodes this node's blocks and puts theirs into the kernel",
    )
    for family in _families(cluster):
        yield from _learned_by_node(network, node, family)


def _speaker(network: Network, node: Node) -> Speaker:
    settings = network.settings
    services = service_routes(network.cluster, settings.services, node)
    families = []
    for family in _families(network.cluster):
        pools = settings.of_family(family)
        families.append(
            FamilyRouting(
                version=family,
                local=of_family(node.addresses, family),
                blocks=_of_family(network.blocks(node), family),
                pools=tuple(pool.cidr for pool in pools if pool.exported),
                peers=tuple(_peer(each) for each in network.of(node.name, family)),
                hidden=tuple(pool.cidr for pool in pools if not pool.exported),
                tunnelled=tuple(pool.cidr for pool in pools if pool.encapsulation.kind),
                services=tuple(cidr for cidr in services if family_of(cidr) == family),
                service_ranges=tuple(cidr for cidr in settings.services.all if family_of(cidr) == family),
            )
        )
    return Speaker(
        node=node.name,
        router_id=network.router_ids[node.name],
        asn=settings.asns[node.name],
        families=tuple(families),
    )


def _peer(session: Session) -> Peer:
    return Peer(
        address=session.remote_address,
        asn=session.remote_asn,
        node=session.remote,
        protocol=session.protocol,
        passive=session.passive,
        port=session.port,
        password=session.password,
        cluster=session.cluster if session.client else "",
        keep_next_hop=session.keep_next_hop,
        restart_time=session.restart_time,
        own_as_allowed=session.own_as_allowed,
    )


def _of_family(blocks: Iterable[str], family: Family) -> tuple[str, ...]:
    return tuple(block for block in blocks if family_of(block) == family)


def _learned_by_node(network: Network, node: Node, family: Family) -> Iterator[Route]:
    own = _of_family(network.blocks(node), family)
    for block in own:
        if not is_felixs(network.settings, block) and block != host_prefix(block.partition("/")[0]):
            yield Route(
                ns=node.ns,
                destination=block,
                type="blackhole",
                protocol="bird",
                learned=True,
                component=BIRD,
                why="this node's block: an address that no pod has is dropped in silence"
                if block in node.pod_ranges
                else "a BlockAffinity says that the block is this node's: what no pod of its own has is dropped",
            )
    machine = network.machines[node.name]
    for block, holders in network.holders().items():
        if block in own or family_of(block) != family or is_felixs(network.settings, block):
            continue
        if len(holders) > 1:
            yield from _learned_from_several(network, machine, block, holders)
        else:
            yield from _learned(network, machine, block, holders[0], f"block of {holders[0].name}")


def _learned_from_several(network: Network, machine: Machine, block: str, holders: list[Node]) -> Iterator[Route]:
    """A block that several nodes announce: each machine spreads pairs of addresses over all of them."""
    paths = network.ways_to_block(block, holders).get(machine.name, ())
    names = " and ".join(holder.name for holder in holders)
    yield from announced_route(machine, block, paths, f"one block, announced by {names}: each has a BlockAffinity")


def _learned(network: Network, machine: Machine, prefix: str, origin: Node, what: str) -> Iterator[Route]:
    path = network.ways(prefix, origin).get(machine.name)
    if path is None:
        return
    via, device = gateway(machine, path.next_hop)
    teller = path.source.remote if path.source is not None else origin.name
    if via:
        yield Route(
            ns=machine.ns,
            destination=prefix,
            via=via,
            device=device,
            protocol="bird",
            learned=True,
            component=BIRD,
            why=f"{what}, learned by BGP from " + ("it" if teller == origin.name else teller),
        )


def borrowed_routes(cluster: Cluster, node: Node, address: str, owner: str, settings: Settings) -> Iterator[Route]:
    """An address from another node's block: its node announces the /32, which wins as the longer prefix."""
    network = network_of(cluster, settings)
    prefix = host_prefix(address)
    for machine in network.machines.values():
        if machine.name != node.name and (machine.kind == "router" or not is_felixs(settings, prefix)):
            what = f"{owner} on {node.name}: an address borrowed from another node's block"
            yield from _learned(network, machine, prefix, node, what)


# -- routers ------------------------------------------------------------------------------------------------------


def router_bgp(cluster: Cluster, router: Machine, settings: Settings) -> Iterator[AnyObject]:
    """BIRD on a router of the underlay, if nodes or routers peer with it."""
    network = network_of(cluster, settings)
    families: list[RouterFamily] = []
    for family in _families(cluster):
        sessions = network.of(router.name, family)
        pools = tuple(pool.cidr for pool in settings.of_family(family))
        services = tuple(cidr for cidr in settings.services.all if family_of(cidr) == family)
        if sessions and pools:
            families.append(RouterFamily(family, (*pools, *services), sessions))
    if not router.asn or not families or not settings.peerings:
        return
    yield from router_daemon(router, families)
    for block, holders in network.holders().items():
        paths = network.ways_to_block(block, holders).get(router.name, ())
        if len(holders) > 1:
            yield from _learned_from_several(network, router, block, holders)
        elif len(paths) > 1:
            # Nodes of a mesh tell routers of one another's blocks, too, each with itself as the next hop.
            yield from announced_route(router, block, paths, f"block of {holders[0].name}, told by several nodes")
        else:
            yield from _learned(network, router, block, holders[0], f"block of {holders[0].name}")
    if network.services:
        yield from spreading(router, [family.version for family in families])
    for cidr, nodes in network.services.items():
        paths = network.ways_to_service(cidr).get(router.name, ())
        yield from announced_route(router, cidr, paths, f"Services, announced by {', '.join(nodes)}")


# -- whether it works ---------------------------------------------------------------------------------------------


def check_reachable(cluster: Cluster, settings: Settings) -> None:
    """Raise UserError if packets without encapsulation would get lost between two nodes: a router in between that does
    not know the pods, or no session."""
    network = network_of(cluster, settings)
    # Identifiers that clash are a fault for people to see, not a network that was never meant to work.
    own = identifiers(cluster, network.machines)
    if network.router_ids != own:
        network = replace(network, router_ids=own, _found={})
    owner_of = owners(cluster.topology.machines)
    machines = {machine.name: machine for machine in cluster.topology.machines}
    for node in cluster.nodes:
        for peer in cluster.nodes:
            for block in peer.pod_ranges if peer.name != node.name else ():
                if is_felixs(settings, block):
                    continue
                ways = network.ways(block, peer)

                def next_hop(here: str, ways: dict[str, Path] = ways, block: str = block) -> str:
                    return ways[here].next_hop if here in ways else block.partition("/")[0]

                if reason := lost(machines, owner_of, next_hop, node.name, peer.name):
                    raise UserError(
                        f"calico without encapsulation: packets from {node.name} to the pods of {peer.name} ({block}) "
                        f"get lost: {reason}",
                        hint="use calico:vxlan or calico:ipip, or have the routers learn the blocks: BGPPeer objects "
                        "with the routers' addresses, which need an asn in the topology (docs/calico.md)",
                    )
