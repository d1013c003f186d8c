"""What Calico is told by its own resources: IPPool, BGPConfiguration, BGPPeer, BlockAffinity, and Node with its BGP
part.

They come as ordinary manifests, of ``projectcalico.org/v3`` (calicoctl, or Calico's API server) or as the custom
resources behind them, ``crd.projectcalico.org/v1``. Without an IPPool there is one for each pod CIDR of the topology,
as the ``CALICO_IPV4POOL_*`` variables of calico-node make it. A field whose effect is not emulated is refused by name.

Sources: projectcalico/calico api/pkg/apis/projectcalico/v3 (ippool.go, bgpconfig.go, bgppeer.go),
libcalico-go/lib/apis/v3/node.go, libcalico-go/lib/clientv3/ippool.go (what is refused), the reference pages of the
same names.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from emulator.cluster.calico_selectors import parse_selector
from emulator.cluster.decode import Fault, decode
from emulator.cluster.model import Node
from emulator.cluster.validation import forbidden, invalid, parse_cidr, required, unsupported
from emulator.cni.calico_resources import (
    ENTERPRISE,
    NOT_EMULATED,
    BGPConfigurationSpec,
    BGPPeerSpec,
    Block,
    BlockAffinitySpec,
    IPPoolSpec,
    NodeSpec,
    Password,
)
from emulator.errors import ManifestError, Problem
from emulator.plan.addressing import contains, families_of, family_of
from emulator.plan.model import Family

GROUPS = ("projectcalico.org", "crd.projectcalico.org")
AS_NUMBER = 64512  # BGPConfiguration.asNumber, by default
AS_MAX = 4294967295
REFLECTOR = "projectcalico.org/RouteReflectorClusterID"  # annotation of a node; taken as its label too
SECRET_NAMESPACES = ("kube-system", "calico-system")  # of calico-node, by manifest and by operator

CONFIRMED = "confirmed"
AFFINITY_STATES = (CONFIRMED, "pending", "pendingDeletion")  # libcalico-go/lib/backend/model/block_affinity.go

Mode = Literal["Never", "Always", "CrossSubnet"]
MODES: tuple[Mode, ...] = ("Never", "Always", "CrossSubnet")
Object = dict[str, Any]


@dataclass(frozen=True)
class Encapsulation:
    """How packets between nodes travel; at most one of the two is not ``Never``."""

    ipip: Mode = "Never"
    vxlan: Mode = "Never"

    @property
    def kind(self) -> Literal["", "ipip", "vxlan"]:
        return "vxlan" if self.vxlan != "Never" else "ipip" if self.ipip != "Never" else ""

    @property
    def cross_subnet(self) -> bool:
        """Nodes of one subnet reach each other without a tunnel."""
        return "CrossSubnet" in (self.ipip, self.vxlan)


@dataclass(frozen=True)
class Pool:
    """An IPPool. ``block`` is the prefix length of a block; ``nodes`` may take addresses of it (None: all)."""

    name: str
    cidr: str
    block: int
    encapsulation: Encapsulation
    nat_outgoing: bool = True
    disabled: bool = False
    exported: bool = True
    nodes: frozenset[str] | None = None

    @property
    def family(self) -> Family:
        return family_of(self.cidr)


@dataclass(frozen=True)
class Peering:
    """A BGPPeer: sessions of ``nodes`` with ``address``, or with the nodes ``peers`` if that is empty.

    ``scope`` is what confd calls them by: ``Global`` or ``Node``. ``restart_time`` in seconds, 0: BIRD's default.
    """

    name: str
    scope: Literal["Global", "Node"]
    nodes: tuple[str, ...]
    address: str = ""
    port: int = 0
    asn: int = 0
    peers: tuple[str, ...] = ()
    password: str = ""
    keep_next_hop: bool = False
    restart_time: int = 0
    own_as_allowed: int = 0


@dataclass(frozen=True)
class ServiceRanges:
    """The CIDRs of Services that BGP announces: of cluster IPs, external IPs, and load balancers' addresses."""

    cluster: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    load_balancer: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def all(self) -> tuple[str, ...]:
        """Every CIDR once."""
        return tuple(dict.fromkeys((*self.cluster, *self.external, *self.load_balancer)))


@dataclass(frozen=True)
class Affinity:
    """A BlockAffinity beside those of the emulated IPAM: a claim of ``node`` to the block ``cidr``, which confd
    believes and announces, whoever has the block."""

    node: str
    cidr: str


@dataclass(frozen=True)
class Settings:
    """Everything that the resources say. ``asns`` and ``clusters`` (of route reflectors) are by node."""

    pools: tuple[Pool, ...]
    mesh: bool = True
    mesh_password: str = ""
    mesh_restart_time: int = 0
    peerings: tuple[Peering, ...] = ()
    asns: Mapping[str, int] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    asked_for_bgp: bool = False
    services: ServiceRanges = ServiceRanges()
    affinities: tuple[Affinity, ...] = ()

    def pool_of(self, cidr: str) -> Pool | None:
        """The pool that a block or an address is of."""
        return next((pool for pool in self.pools if contains(pool.cidr, cidr)), None)

    def encapsulation_of(self, cidr: str) -> Encapsulation:
        """How a block or an address is reached from other nodes."""
        pool = self.pool_of(cidr)
        return pool.encapsulation if pool else Encapsulation()

    def of_family(self, family: Family) -> tuple[Pool, ...]:
        return tuple(pool for pool in self.pools if pool.family == family)

    def uses(self, kind: Literal["ipip", "vxlan"], family: Family) -> bool:
        """Whether any pool of the family has tunnels of that kind; disabled ones still have pods."""
        return any(pool.encapsulation.kind == kind for pool in self.of_family(family))

    @property
    def runs_bird(self) -> bool:
        """Not where VXLAN does it all (``calico_backend: vxlan``), unless somebody asked for BGP."""
        return self.asked_for_bgp or any(pool.encapsulation.kind != "vxlan" for pool in self.pools)


def read_settings(
    objects: Sequence[Object], nodes: Sequence[Node], pod_cidrs: tuple[str, ...], default: Encapsulation
) -> Settings:
    """The settings in ``objects``. ``default`` is for the pools that exist without a manifest.

    Raises ManifestError with every problem.
    """
    return _Reader(objects, nodes, pod_cidrs, default).read()


_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class _Reader:
    """The working state of one reading: what was found, and what is wrong."""

    def __init__(
        self, objects: Sequence[Object], nodes: Sequence[Node], pod_cidrs: tuple[str, ...], default: Encapsulation
    ) -> None:
        self._objects = [obj for obj in objects if obj.get("apiVersion", "").partition("/")[0] in GROUPS]
        self._secrets = {
            (obj["metadata"].get("namespace", ""), obj["metadata"]["name"]): obj
            for obj in objects
            if obj.get("kind") == "Secret" and obj.get("apiVersion") == "v1"
        }
        self._nodes = {node.name: node for node in nodes}
        self._labels = {node.name: {"kubernetes.io/hostname": node.name, **node.labels} for node in nodes}
        self._pod_cidrs = pod_cidrs
        self._default = default
        self._subject = ""
        self._problems: list[Problem] = []

    def read(self) -> Settings:
        asns = {node.name: node.asn for node in self._nodes.values() if node.asn}
        clusters = {
            node.name: value
            for node in self._nodes.values()
            if (value := node.annotations.get(REFLECTOR) or node.labels.get(REFLECTOR))
        }
        for name, spec, metadata in self._of("Node", NodeSpec):
            self._node(name, spec, metadata, asns, clusters)
        for name, cluster in clusters.items():
            self._subject = f"Node {name}"
            self._check_cluster_id(cluster)
        pools = self._pools()
        mesh, mesh_password, restart_time, default_asn = True, "", 0, AS_NUMBER
        configured, services = False, ServiceRanges()
        for name, configuration, _ in self._of("BGPConfiguration", BGPConfigurationSpec):
            if name != "default":
                self._fault("metadata.name", forbidden("only the cluster's, called default, is emulated"))
            configured = True
            mesh = configuration.node_to_node_mesh_enabled is not False
            mesh_password = self._password(configuration.node_mesh_password, "spec.nodeMeshPassword")
            restart_time = self._duration(configuration.node_mesh_max_restart_time, "spec.nodeMeshMaxRestartTime")
            default_asn = self._asn(configuration.as_number, "spec.asNumber") or AS_NUMBER
            services = ServiceRanges(
                self._blocks(configuration.service_cluster_ips, "serviceClusterIPs"),
                self._blocks(configuration.service_external_ips, "serviceExternalIPs"),
                self._blocks(configuration.service_load_balancer_ips, "serviceLoadBalancerIPs"),
            )
        asns = {name: asns.get(name) or default_asn for name in self._nodes}
        peerings = tuple(
            found
            for name, peer, _ in self._of("BGPPeer", BGPPeerSpec)
            if (found := self._peering(name, peer)) is not None
        )
        affinities = tuple(
            counted
            for _, claim, _ in self._of("BlockAffinity", BlockAffinitySpec)
            if (counted := self._affinity(claim)) is not None
        )
        if self._problems:
            raise ManifestError(self._problems)
        return Settings(
            pools=pools,
            mesh=mesh,
            mesh_password=mesh_password,
            mesh_restart_time=restart_time,
            peerings=tuple(peering for peering in peerings if peering is not None),
            asns=asns,
            clusters=clusters,
            asked_for_bgp=configured or bool(peerings),
            services=services,
            affinities=affinities,
        )

    # -- telling what is wrong ----------------------------------------------------------------------------------

    def _fault(self, path: str, reason: str) -> None:
        self._problems.append(Problem("", self._subject, path, reason))

    def _of(self, kind: str, shape: type[Any]) -> Iterator[tuple[str, Any, Object]]:
        """The well-formed resources of a kind, by name."""
        for obj in sorted(self._objects, key=lambda obj: str(obj["metadata"]["name"])):
            if obj["kind"] != kind:
                continue
            self._subject = f"{kind} {obj['metadata']['name']}"
            spec = obj.get("spec")
            spec, faults = decode({} if spec is None else _without_nulls(spec), shape)
            for path, reason in faults:
                self._fault(*self._worded(kind, path, reason))
            if spec is not None:
                yield obj["metadata"]["name"], spec, obj["metadata"]

    @staticmethod
    def _worded(kind: str, path: str, reason: str) -> Fault:
        full = f"spec.{path}" if path else "spec"
        field = path.rpartition(".")[2]
        if reason.startswith("unknown field") and kind == "BGPPeer" and field in ENTERPRISE:
            return full, forbidden(ENTERPRISE[field])
        if reason.startswith("unknown field") and field in NOT_EMULATED[kind]:
            return full, forbidden("not emulated")
        return full, reason

    # -- nodes --------------------------------------------------------------------------------------------------

    def _node(self, name: str, spec: NodeSpec, meta: Object, asns: dict[str, int], clusters: dict[str, str]) -> None:
        node = self._nodes.get(name)
        if node is None:
            self._fault("metadata.name", invalid(name, f"the topology's nodes are {', '.join(self._nodes)}"))
            return
        self._labels[name].update(meta.get("labels") or {})
        annotated = (meta.get("annotations") or {}).get(REFLECTOR)
        if annotated:
            clusters[name] = annotated
        if spec.bgp is None:
            return
        for path, address in (("ipv4Address", spec.bgp.ipv4_address), ("ipv6Address", spec.bgp.ipv6_address)):
            if address and address.partition("/")[0] not in node.addresses:
                reason = f"the topology gives this node {', '.join(node.addresses)}"
                self._fault(f"spec.bgp.{path}", invalid(address, reason))
        if asn := self._asn(spec.bgp.as_number, "spec.bgp.asNumber"):
            asns[name] = asn
        if spec.bgp.route_reflector_cluster_id:
            clusters[name] = spec.bgp.route_reflector_cluster_id

    def _check_cluster_id(self, cluster: str) -> None:
        try:
            good = ip_address(cluster).version == 4
        except ValueError:
            good = False
        if not good:
            self._fault("spec.bgp.routeReflectorClusterID", invalid(cluster, "must be written as an IPv4 address"))

    def _selected(self, selector: str | None, path: str) -> tuple[str, ...]:
        try:
            holds = parse_selector(selector or "all()")
        except ValueError as error:
            self._fault(path, invalid(selector, str(error)))
            return ()
        return tuple(name for name, labels in self._labels.items() if holds(labels))

    # -- pools --------------------------------------------------------------------------------------------------

    def _pools(self) -> tuple[Pool, ...]:
        pools: list[Pool] = []
        given = False
        for name, spec, _ in self._of("IPPool", IPPoolSpec):
            given = True
            pool = self._pool(name, spec)
            if pool is None:
                continue
            for other in pools:
                if ip_network(other.cidr).overlaps(ip_network(pool.cidr)) if other.family == pool.family else False:
                    self._fault("spec.cidr", invalid(pool.cidr, f"overlaps with IPPool {other.name}, {other.cidr}"))
            pools.append(pool)
        if not given:
            return tuple(self._default_pool(cidr) for cidr in self._pod_cidrs)
        for family in families_of(self._pod_cidrs):
            if not self._problems and not any(pool.family == family and not pool.disabled for pool in pools):
                self._subject = "IPPool"
                self._fault(
                    "", required(f"the cluster has IPv{family} pods, and no pool that is not disabled for them")
                )
        return tuple(pools)

    def _affinity(self, spec: BlockAffinitySpec) -> Affinity | None:
        """The claim, if it counts: one that is confirmed and not being given up (confd takes no others)."""
        before = len(self._problems)
        cidr = spec.cidr
        try:
            cidr = str(parse_cidr(spec.cidr))
        except ValueError as error:
            self._fault("spec.cidr", invalid(spec.cidr, str(error)))
        if spec.node not in self._nodes:
            self._fault("spec.node", invalid(spec.node, f"the topology's nodes are {', '.join(self._nodes)}"))
        if spec.state not in AFFINITY_STATES:
            self._fault("spec.state", unsupported(spec.state, AFFINITY_STATES))
        if spec.type != "host":
            self._fault("spec.type", forbidden("not emulated: claims of other than hosts"))
        counts = spec.state == CONFIRMED and str(spec.deleted).lower() != "true"
        return Affinity(spec.node, cidr) if counts and len(self._problems) == before else None

    def _default_pool(self, cidr: str) -> Pool:
        family = family_of(cidr)
        # There is no IPIP for IPv6 (clientv3/ippool.go); calico.yaml has it off.
        encapsulation = Encapsulation(vxlan=self._default.vxlan) if family == 6 else self._default
        return Pool(f"default-ipv{family}-ippool", cidr, 26 if family == 4 else 122, encapsulation)

    def _pool(self, name: str, spec: IPPoolSpec) -> Pool | None:
        try:
            network = parse_cidr(spec.cidr)
        except ValueError as error:
            self._fault("spec.cidr", invalid(spec.cidr, str(error)))
            return None
        before = len(self._problems)
        cidr = str(network)
        inside = [item for item in self._pod_cidrs if family_of(item) == family_of(cidr)]
        if not any(contains(item, cidr) and ip_network(item).prefixlen <= network.prefixlen for item in inside):
            reason = f"must lie within the pod CIDRs of the topology: {', '.join(self._pod_cidrs)}"
            self._fault("spec.cidr", invalid(cidr, reason))
        v4 = network.version == 4
        size = spec.block_size if spec.block_size is not None else (26 if v4 else 122)
        low, high = (20, 32) if v4 else (116, 128)
        if not low <= size <= high:
            self._fault("spec.blockSize", invalid(size, f"must be between {low} and {high}"))
        elif size < network.prefixlen:
            self._fault("spec.cidr", invalid(cidr, f"is smaller than a block of /{size}"))
        modes: dict[str, Mode] = {}
        for path, value in (("ipipMode", spec.ipip_mode), ("vxlanMode", spec.vxlan_mode)):
            modes[path] = next((mode for mode in MODES if mode == (value or "Never")), "Never")
            if value and value not in MODES:
                self._fault(f"spec.{path}", unsupported(value, MODES))
        if modes["ipipMode"] != "Never" and modes["vxlanMode"] != "Never":
            self._fault("spec.vxlanMode", forbidden("a pool has IPIP or VXLAN, not both"))
        if modes["ipipMode"] != "Never" and not v4:
            self._fault("spec.ipipMode", forbidden("IPIP carries IPv4 only"))
        chosen = self._selected(spec.node_selector, "spec.nodeSelector")
        if len(self._problems) > before:
            return None
        return Pool(
            name=name,
            cidr=cidr,
            block=size,
            encapsulation=Encapsulation(modes["ipipMode"], modes["vxlanMode"]),
            nat_outgoing=bool(spec.nat_outgoing),
            disabled=bool(spec.disabled),
            exported=not spec.disable_bgp_export,
            nodes=None if len(chosen) == len(self._nodes) else frozenset(chosen),
        )

    # -- BGP ----------------------------------------------------------------------------------------------------

    def _peering(self, name: str, spec: BGPPeerSpec) -> Peering | None:
        before = len(self._problems)
        if spec.node and spec.node_selector:
            self._fault("spec.nodeSelector", forbidden("must not be given together with node"))
        if spec.node and spec.node not in self._nodes:
            self._fault("spec.node", invalid(spec.node, f"the topology's nodes are {', '.join(self._nodes)}"))
        nodes = (spec.node,) if spec.node else self._selected(spec.node_selector, "spec.nodeSelector")
        if bool(spec.peer_ip) == bool(spec.peer_selector):
            self._fault("spec.peerIP", required("either peerIP with asNumber, or peerSelector"))
        address, port = self._address(spec.peer_ip) if spec.peer_ip else ("", 0)
        asn = self._asn(spec.as_number, "spec.asNumber")
        if spec.peer_ip and spec.as_number is None:
            self._fault("spec.asNumber", required("the peer's AS number"))
        if spec.peer_selector and spec.as_number is not None:
            self._fault("spec.asNumber", forbidden("nodes that peerSelector selects have their own"))
        allowed = spec.num_allowed_local_as_numbers or 0
        if not 0 <= allowed <= 10:
            self._fault("spec.numAllowedLocalASNumbers", invalid(allowed, "must be between 0 and 10"))
        found = Peering(
            name=name,
            scope="Node" if spec.node or spec.node_selector else "Global",
            nodes=nodes,
            address=address,
            port=port,
            asn=asn,
            peers=self._selected(spec.peer_selector, "spec.peerSelector") if spec.peer_selector else (),
            password=self._password(spec.password, "spec.password"),
            keep_next_hop=bool(spec.keep_original_next_hop),
            restart_time=self._duration(spec.max_restart_time, "spec.maxRestartTime"),
            own_as_allowed=allowed,
        )
        return found if len(self._problems) == before else None

    def _address(self, text: str) -> tuple[str, int]:
        """``10.0.0.1``, ``10.0.0.1:1790``, ``[fd00::1]:1790``."""
        host, port = text, ""
        if text.startswith("["):
            host, _, port = text[1:].partition("]")
            port = port.removeprefix(":")
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        try:
            number = int(port) if port else 0
            return str(ip_address(host)), number if 0 <= number < 65536 else 0
        except ValueError:
            self._fault("spec.peerIP", invalid(text, "must be an address, or an address and a port"))
            return "", 0

    def _asn(self, value: int | str | None, path: str) -> int:
        """An AS number, plain or dotted (RFC 5396); 0 if there is none."""
        if value is None:
            return 0
        high, dot, low = str(value).rpartition(".")
        if low.isdecimal() and (high.isdecimal() or not dot) and len(low) < 11 and len(high) < 6:
            number = (int(high) << 16) + int(low) if dot else int(low)
            if 0 < number <= AS_MAX and (not dot or int(low) < 65536):
                return number
        self._fault(path, invalid(value, f"must be an AS number between 1 and {AS_MAX}"))
        return 0

    def _blocks(self, blocks: list[Block] | None, field_: str) -> tuple[str, ...]:
        """The CIDRs of a list, of the cluster's families."""
        found: dict[str, None] = {}
        for index, block in enumerate(blocks or ()):
            try:
                cidr = str(parse_cidr(block.cidr))
            except ValueError as error:
                self._fault(f"spec.{field_}[{index}].cidr", invalid(block.cidr, str(error)))
                continue
            if family_of(cidr) in families_of(self._pod_cidrs):
                found[cidr] = None
        return tuple(found)

    def _duration(self, text: str | None, path: str) -> int:
        """Seconds of ``1m30s``."""
        if text is None:
            return 0
        match = _DURATION.fullmatch(text)
        hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
        total = hours * 3600 + minutes * 60 + seconds
        if not 0 < total < 4096:  # the capability has twelve bits for it (RFC 4724, section 3)
            self._fault(path, invalid(text, "must be a duration of 1s to 4095s, such as 90s"))
            return 0
        return total

    def _password(self, password: Password | None, path: str) -> str:
        if password is None:
            return ""
        wanted = password.secret_key_ref
        secret = next(
            (self._secrets[ns, wanted.name] for ns in SECRET_NAMESPACES if (ns, wanted.name) in self._secrets), None
        )
        if secret is None:
            where = " or ".join(SECRET_NAMESPACES)
            self._fault(f"{path}.secretKeyRef.name", invalid(wanted.name, f"there is no such Secret in {where}"))
            return ""
        text = _secret_value(secret, wanted.key)
        if text is None:
            self._fault(f"{path}.secretKeyRef.key", invalid(wanted.key, f"the Secret {wanted.name} has no such key"))
            return ""
        if not 0 < len(text) <= 80 or not text.isascii() or not text.isprintable() or '"' in text:
            # TCP_MD5SIG_MAXKEYLEN; BIRD's strings know no escapes
            self._fault(
                f"{path}.secretKeyRef.key", invalid("…", "must be 1 to 80 printable ASCII characters without quotes")
            )
            return ""
        return text


def _secret_value(secret: Object, key: str) -> str | None:
    plain = (secret.get("stringData") or {}).get(key)
    if plain is not None:
        return str(plain)
    encoded = (secret.get("data") or {}).get(key)
    if encoded is None:
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _without_nulls(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value
