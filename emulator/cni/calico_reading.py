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

from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_network
from typing import Any, TypeVar

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
from emulator.cni.calico_settings import MODES, Affinity, Encapsulation, Mode, Peering, Pool, ServiceRanges, Settings
from emulator.cni.calico_values import as_number, cluster_id, md5_password, peer_address, seconds, secret_value
from emulator.errors import ManifestError, Problem
from emulator.plan.addressing import contains, families_of, family_of

GROUPS = ("projectcalico.org", "crd.projectcalico.org")
AS_NUMBER = 64512  # BGPConfiguration.asNumber, by default
REFLECTOR = "projectcalico.org/RouteReflectorClusterID"  # annotation of a node; taken as its label too
SECRET_NAMESPACES = ("kube-system", "calico-system")  # of calico-node, by manifest and by operator

CONFIRMED = "confirmed"
AFFINITY_STATES = (CONFIRMED, "pending", "pendingDeletion")  # libcalico-go/lib/backend/model/block_affinity.go

Object = dict[str, Any]
V = TypeVar("V")
T = TypeVar("T")


def read_settings(
    objects: Sequence[Object], nodes: Sequence[Node], pod_cidrs: tuple[str, ...], default: Encapsulation
) -> Settings:
    """The settings in ``objects``. ``default`` is for the pools that exist without a manifest.

    Raises ManifestError with every problem.
    """
    return _Reader(objects, nodes, pod_cidrs, default).read()


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
            self._valued(cluster_id, cluster, "spec.bgp.routeReflectorClusterID", "")
        pools = self._pools()
        mesh, mesh_password, restart_time, default_asn = True, "", 0, AS_NUMBER
        configured, services = False, ServiceRanges()
        for name, configuration, _ in self._of("BGPConfiguration", BGPConfigurationSpec):
            if name != "default":
                self._fault("metadata.name", forbidden("only the cluster's, called default, is emulated"))
            configured = True
            mesh = configuration.node_to_node_mesh_enabled is not False
            mesh_password = self._password(configuration.node_mesh_password, "spec.nodeMeshPassword")
            restart_time = self._valued(
                seconds, configuration.node_mesh_max_restart_time, "spec.nodeMeshMaxRestartTime", 0
            )
            default_asn = self._valued(as_number, configuration.as_number, "spec.asNumber", 0) or AS_NUMBER
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

    def _valued(self, parse: Callable[[V], T], value: V | None, path: str, absent: T) -> T:
        """The value, parsed; ``absent`` if there is none, or it is wrong."""
        if value is None:
            return absent
        try:
            return parse(value)
        except ValueError as error:
            self._fault(path, invalid(value, str(error)))
            return absent

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
        if asn := self._valued(as_number, spec.bgp.as_number, "spec.bgp.asNumber", 0):
            asns[name] = asn
        if spec.bgp.route_reflector_cluster_id:
            clusters[name] = spec.bgp.route_reflector_cluster_id

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
        address, port = self._valued(peer_address, spec.peer_ip or None, "spec.peerIP", ("", 0))
        asn = self._valued(as_number, spec.as_number, "spec.asNumber", 0)
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
            restart_time=self._valued(seconds, spec.max_restart_time, "spec.maxRestartTime", 0),
            own_as_allowed=allowed,
        )
        return found if len(self._problems) == before else None

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
        text = secret_value(secret, wanted.key)
        if text is None:
            self._fault(f"{path}.secretKeyRef.key", invalid(wanted.key, f"the Secret {wanted.name} has no such key"))
            return ""
        try:
            return md5_password(text)
        except ValueError as error:
            self._fault(f"{path}.secretKeyRef.key", invalid("…", str(error)))
            return ""

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


def _without_nulls(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value
