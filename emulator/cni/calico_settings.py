"""What Calico is told by its own resources: pools, peerings, and which Services and blocks BGP announces.

``emulator.cni.calico_reading`` reads it out of the cluster's objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from emulator.plan.addressing import contains, family_of
from emulator.plan.model import Family

Mode = Literal["Never", "Always", "CrossSubnet"]
MODES: tuple[Mode, ...] = ("Never", "Always", "CrossSubnet")


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
