"""Calico's resources as they are written in manifests: the fields that are emulated, and those that are not.

Sources: projectcalico/calico api/pkg/apis/projectcalico/v3 (ippool.go, bgpconfig.go, bgppeer.go, blockaffinity.go),
libcalico-go/lib/apis/v3/node.go.
"""

from __future__ import annotations

from typing import Any

import msgspec


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Unknown fields are mistakes. Fields that exist in Calico and are not emulated are in ``NOT_EMULATED``."""


class IPPoolSpec(_Spec, frozen=True, kw_only=True):
    """Where pods' addresses come from, and how their packets travel between nodes."""

    cidr: str
    ipip_mode: str | None = None
    vxlan_mode: str | None = None
    nat_outgoing: bool | None = None
    block_size: int | None = None
    node_selector: str | None = None
    disabled: bool | None = None
    disable_bgp_export: bool | None = msgspec.field(name="disableBGPExport", default=None)


class SecretKey(_Spec, frozen=True, kw_only=True):
    """A key of a Secret in calico-node's namespace."""

    name: str
    key: str


class Password(_Spec, frozen=True, kw_only=True):
    """A password for TCP MD5 (RFC 2385)."""

    secret_key_ref: SecretKey


class Block(_Spec, frozen=True, kw_only=True):
    """A CIDR (ServiceClusterIPBlock, ServiceExternalIPBlock, ServiceLoadBalancerIPBlock)."""

    cidr: str


class BGPConfigurationSpec(_Spec, frozen=True, kw_only=True):
    """The cluster's BGP: the mesh, the AS number, and the Services that it announces."""

    log_severity_screen: str | None = None
    node_to_node_mesh_enabled: bool | None = None
    as_number: int | str | None = None
    node_mesh_max_restart_time: str | None = None
    node_mesh_password: Password | None = None
    service_cluster_ips: list[Block] | None = msgspec.field(name="serviceClusterIPs", default=None)
    service_external_ips: list[Block] | None = msgspec.field(name="serviceExternalIPs", default=None)
    service_load_balancer_ips: list[Block] | None = msgspec.field(name="serviceLoadBalancerIPs", default=None)


class BGPPeerSpec(_Spec, frozen=True, kw_only=True):
    """Sessions of nodes with an address, or with nodes."""

    node: str | None = None
    node_selector: str | None = None
    peer_ip: str | None = msgspec.field(name="peerIP", default=None)
    peer_selector: str | None = None
    as_number: int | str | None = None
    password: Password | None = None
    keep_original_next_hop: bool | None = None
    max_restart_time: str | None = None
    num_allowed_local_as_numbers: int | None = msgspec.field(name="numAllowedLocalASNumbers", default=None)


class BlockAffinitySpec(_Spec, frozen=True, kw_only=True):
    """That a node has a claim to a block, as IPAM writes it; whose the block is stands in the block itself."""

    cidr: str
    node: str
    state: str
    deleted: bool | str = False  # text in crd.projectcalico.org/v1
    type: str = "host"


class NodeBGP(_Spec, frozen=True, kw_only=True):
    """The BGP part of a Node."""

    as_number: int | str | None = None
    route_reflector_cluster_id: str | None = msgspec.field(name="routeReflectorClusterID", default=None)
    ipv4_address: str | None = msgspec.field(name="ipv4Address", default=None)
    ipv6_address: str | None = msgspec.field(name="ipv6Address", default=None)


class NodeSpec(_Spec, frozen=True, kw_only=True):
    """A node, as calicoctl shows it."""

    bgp: NodeBGP | None = None
    addresses: list[Any] | None = None
    orch_refs: list[Any] | None = None


NOT_EMULATED = {
    "IPPool": ("allowedUses", "assignmentMode", "namespaceSelector"),
    "BGPConfiguration": (
        "serviceLoadBalancerAggregation", "communities", "prefixAdvertisements", "listenPort", "bindMode",
        "ignoredInterfaces", "localWorkloadPeeringIPV4", "localWorkloadPeeringIPV6", "programClusterRoutes",
    ),
    "BGPPeer": (
        "sourceAddress", "ttlSecurity", "reachableBy", "filters",
        "localASNumber", "localWorkloadSelector", "nextHopMode", "reversePeering",
    ),
    "BlockAffinity": (),
    "Node": ("ipv4VXLANTunnelAddr", "vxlanTunnelMACAddr", "ipv6VXLANTunnelAddr", "wireguard", "interfaces"),
}  # fmt: skip

# Fields of Calico Enterprise's BGPPeer; nothing in open-source Calico's would carry them (projectcalico/calico#4607).
ENTERPRISE = {
    "failureDetectionMode": "open-source Calico has no BFD: a field of Calico Enterprise",
    "restartMode": "a field of Calico Enterprise",
    "birdGatewayMode": "a field of Calico Enterprise",
}
