"""kube-router's BGP: who peers with whom by annotations of nodes, and the routes that must come of it.

::

    nothing annotated               full mesh of all nodes in AS 64512
    kube-router.io/node.asn         on every node: nodes peer within their AS only (--nodes-full-mesh=false)
    kube-router.io/rr.server, .rr.client    a client peers with servers only; the value is the cluster id
    kube-router.io/peer.ips, .peer.asns     routers outside, with .peer.ports and .peer.passwords (base64)
    kube-router.io/path-prepend.as, .path-prepend.repeat-n    for those

A node's session with another is over the address of its first family, and carries both.

Sources: cloudnativelabs/kube-router pkg/controllers/routing (bgp_peers.go, bgp_policies.go,
network_routes_controller.go), docs/bgp.md.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from emulator.cluster.model import Cluster, Machine, Node
from emulator.cni.bgp_fabric import addresses_of, fabric_sessions, identifiers, protocol_name, router_end
from emulator.errors import UserError
from emulator.plan.addressing import contains, families_of, family_of, of_family
from emulator.plan.model import Family
from emulator.routing.bgp import Path, Session, settle
from emulator.routing.bird import PASSWORD

PREFIX = "kube-router.io/"
CLUSTER_ASN = 64512  # --cluster-asn: network_routes_controller.go
AS_MAX = 4294967295
PORT_MAX = 65535
BGP_PORT = 179
READ = ("node.asn", "rr.server", "rr.client", "peer.ips", "peer.asns", "peer.ports", "peer.passwords")
READ_TOO = ("path-prepend.as", "path-prepend.repeat-n")


@dataclass(frozen=True)
class External:
    """A peer outside of the cluster."""

    address: str
    asn: int
    port: int = 0
    password: str = ""


@dataclass(frozen=True)
class Annotated:
    """What a node's annotations say. ``asn`` 0: the cluster's; ``server`` and ``client`` are cluster ids."""

    asn: int = 0
    server: str = ""
    client: str = ""
    peers: tuple[External, ...] = ()
    prepend: tuple[int, ...] = ()


@dataclass
class Network:
    """All speakers and sessions of a cluster, and the ways that BGP finds; those are worked out when asked for."""

    cluster: Cluster
    annotated: Mapping[str, Annotated]
    sessions: tuple[Session, ...]
    machines: Mapping[str, Machine]
    plain: bool  # a full mesh and nothing else: everybody has every podCIDR from its node
    _by_speaker: dict[str, list[Session]] = field(default_factory=dict)
    _found: dict[Family, dict[str, dict[str, Path]]] = field(default_factory=dict)

    def of(self, speaker: str) -> list[Session]:
        """The sessions that are configured at one speaker."""
        if not self._by_speaker:
            for each in self.sessions:
                self._by_speaker.setdefault(each.local, []).append(each)
        return self._by_speaker.get(speaker, [])

    def next_hop(self, speaker: str, prefix: str, origin: Node) -> tuple[str, str]:
        """The next hop of ``speaker``'s best path to a podCIDR of ``origin``, and who told it; empty without one."""
        family = family_of(prefix)
        if self.plain:  # no router takes part
            return (of_family(origin.addresses, family), origin.name) if speaker in self.annotated else ("", "")
        if family not in self._found:
            self._found[family] = self._settled(family)
        path = self._found[family].get(speaker, {}).get(prefix)
        if path is None or path.source is None:
            return "", ""
        # A session of nodes runs over the first family's addresses; the next hop is of the route's own.
        owner = next((node for node in self.cluster.nodes if path.next_hop in node.addresses), None)
        hop = of_family(owner.addresses, family) if owner is not None else path.next_hop
        return hop, path.source.remote

    def _settled(self, family: Family) -> dict[str, dict[str, Path]]:
        origins = {
            prefix: node.name
            for node in self.cluster.nodes
            for prefix in node.pod_ranges
            if family_of(prefix) == family
        }
        sessions = [
            each for each in self.sessions if family_of(each.local_address) == family or self._between_nodes(each)
        ]
        ids = identifiers(self.cluster, self.machines)

        def exports(speaker: str, prefix: str) -> bool:
            said = self.annotated.get(speaker)
            return said is None or bool(said.server) or origins[prefix] == speaker

        return settle(ids, sessions, origins, exports)

    def _between_nodes(self, session: Session) -> bool:
        return session.local in self.annotated and session.remote in self.annotated and session.internal


_latest: list[Network] = []  # the network of the last cluster: a plan asks once per node and router


def network_of(cluster: Cluster) -> Network:
    """The BGP of a cluster. Raises UserError for an annotation that kube-router would not start with."""
    if _latest and _latest[0].cluster is cluster:
        return _latest[0]
    annotated = {node.name: read_annotations(node) for node in cluster.nodes}
    if any(said.asn for said in annotated.values()):
        for name, said in annotated.items():
            if not said.asn:
                raise UserError(
                    f"node {name} has no AS number, and others have: kube-router then runs without a full mesh and "
                    "does not start on it",
                    hint=f"give every node an asn in the topology, or the annotation {PREFIX}node.asn, or none",
                )
    machines = {item.name: item for item in cluster.topology.machines if item.kind == "node" or item.asn}
    sessions: dict[tuple[str, str, int], Session] = {}
    for each in (*_internal(cluster, annotated), *_external(cluster, annotated), *fabric_sessions(cluster)):
        sessions.setdefault((each.local, each.remote_address, each.port), each)
    plain = all(said == Annotated() for said in annotated.values())
    made = Network(cluster, annotated, tuple(sessions.values()), machines, plain)
    _latest[:] = [made]
    return made


def asn_of(annotated: Annotated) -> int:
    """A node's AS number."""
    return annotated.asn or CLUSTER_ASN


# -- annotations ------------------------------------------------------------------------------------------------


def read_annotations(node: Node) -> Annotated:
    """What ``node``'s annotations mean for BGP. Raises UserError for one that is wrong, or that is not emulated."""
    said = {key.removeprefix(PREFIX): value for key, value in node.annotations.items() if key.startswith(PREFIX)}
    for name in said:
        if name not in (*READ, *READ_TOO):
            raise _refused(node, name, "is not emulated")
    server = _cluster_id(node, "rr.server", said)
    return Annotated(
        asn=_number(node, "node.asn", said["node.asn"], AS_MAX) if "node.asn" in said else node.asn,
        server=server,
        client="" if server else _cluster_id(node, "rr.client", said),
        peers=_peers(node, said),
        prepend=_prepend(node, said),
    )


def _peers(node: Node, said: Mapping[str, str]) -> tuple[External, ...]:
    if "peer.ips" not in said or "peer.asns" not in said:
        return ()
    lists = {name: _items(said.get(name, "")) for name in ("peer.ips", "peer.asns", "peer.ports", "peer.passwords")}
    count = len(lists["peer.ips"])
    for name, items in lists.items():
        if len(items) != count and not (name in ("peer.ports", "peer.passwords") and not items):
            raise _refused(node, name, f"has {len(items)} items, and {PREFIX}peer.ips has {count}")
    peers = []
    for index, address in enumerate(lists["peer.ips"]):
        try:
            ip_address(address)
        except ValueError:
            raise _refused(node, "peer.ips", f"holds {address!r}, which is no address") from None
        port, password = ((lists[name] or [""] * count)[index] for name in ("peer.ports", "peer.passwords"))
        peers.append(
            External(
                address,
                _number(node, "peer.asns", lists["peer.asns"][index], AS_MAX),
                _number(node, "peer.ports", port, PORT_MAX) if port else 0,
                _password(node, password),
            )
        )
    return tuple(peers)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")] if text else []


def _password(node: Node, encoded: str) -> str:
    try:
        text = base64.b64decode(encoded, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise _refused(node, "peer.passwords", "must hold base64 of plain text") from None
    if not PASSWORD.fullmatch(text):
        raise _refused(node, "peer.passwords", "holds a password that TCP MD5 or BIRD cannot take")
    return text


def _prepend(node: Node, said: Mapping[str, str]) -> tuple[int, ...]:
    if "path-prepend.as" not in said:
        return ()
    if "path-prepend.repeat-n" not in said:
        raise _refused(node, "path-prepend.repeat-n", f"is missing, and {PREFIX}path-prepend.as is there")
    times = _number(node, "path-prepend.repeat-n", said["path-prepend.repeat-n"], 255)
    return (_number(node, "path-prepend.as", said["path-prepend.as"], AS_MAX),) * times


def _cluster_id(node: Node, name: str, said: Mapping[str, str]) -> str:
    """As an IPv4 address, which is how BIRD writes it; annotations may hold a number."""
    if name not in said:
        return ""
    text = said[name]
    try:
        return str(ip_address(int(text, 0) if not text.count(".") else text))
    except ValueError:
        raise _refused(node, name, f"is {text!r}, and must be a number or an IPv4 address") from None


def _number(node: Node, name: str, text: str, most: int) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 1 <= number <= most:
        raise _refused(node, name, f"holds {text!r}, which is no number from 1 to {most}")
    return number


def _refused(node: Node, name: str, reason: str) -> UserError:
    return UserError(
        f"node {node.name}: the annotation {PREFIX}{name} {reason}",
        hint="annotations of nodes are given in the topology file (docs/kube-router.md)",
    )


# -- who peers with whom ------------------------------------------------------------------------------------------


def _internal(cluster: Cluster, annotated: Mapping[str, Annotated]) -> Iterator[Session]:
    """syncInternalPeers: nodes of the same AS; a client with servers only."""
    family = families_of(cluster.topology.pod_cidrs)[0]
    for node in cluster.nodes:
        own = annotated[node.name]
        for peer in cluster.nodes:
            other = annotated[peer.name]
            if peer is node or asn_of(own) != asn_of(other) or (own.client and not other.server):
                continue
            address = of_family(peer.addresses, family)
            yield Session(
                local=node.name,
                remote=peer.name,
                local_address=of_family(node.addresses, family),
                remote_address=address,
                local_asn=asn_of(own),
                remote_asn=asn_of(other),
                protocol=protocol_name("Node", address),
                cluster=own.server,
                client=bool(own.server and other.client),
            )


def _external(cluster: Cluster, annotated: Mapping[str, Annotated]) -> Iterator[Session]:
    """The peers that annotations name. Those that are routers of the topology with an AS number answer."""
    routers = {
        address: router
        for router in cluster.topology.of_kind("router")
        if router.asn
        for address in addresses_of(router)
    }
    for node in cluster.nodes:
        own = annotated[node.name]
        for peer in own.peers:
            local = of_family(node.addresses, family_of(peer.address))
            if not local:
                continue
            router = routers.get(peer.address)
            session = Session(
                local=node.name,
                remote=router.name if router is not None else peer.address,
                local_address=local,
                remote_address=peer.address,
                local_asn=asn_of(own),
                remote_asn=peer.asn,
                protocol=protocol_name("Peer", peer.address, peer.port),
                port=peer.port,
                password=peer.password,
                prepend=() if own.server else own.prepend,  # a route reflector has no export policy
            )
            yield session
            if router is not None and peer.port in (0, BGP_PORT):
                yield router_end(router, session)


def same_subnet(node: Node, address: str) -> bool:
    """Whether kube-router writes a route by ``address`` itself: it is in the subnet of the node's own address."""
    return any(contains(subnet, address) for subnet in node.subnets)
