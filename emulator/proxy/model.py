"""What a service proxy is: a function from the cluster's Services to the plan objects of one node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from emulator.cluster.model import Cluster, Node
from emulator.plan.model import AnyObject

ProxyMode = Literal["iptables", "nftables", "ipvs", "kube-router", "none"]
PROXY_MODES: tuple[ProxyMode, ...] = ("iptables", "nftables", "ipvs", "kube-router", "none")
KUBE_PROXY_MODES: tuple[ProxyMode, ...] = ("iptables", "nftables", "ipvs")  # what its configuration may name


class ProxySettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """kube-proxy's configuration, as far as packets can tell (kubernetes/kube-proxy config/v1alpha1).

    ``pod_cidrs`` is how traffic of pods is told from other traffic (detectLocalMode ClusterCIDR); with none there is
    no detector, and neither "not from a pod: masquerade" nor the short cut for pods under externalTrafficPolicy Local
    is written. ``node_port_cidrs`` are nodePortAddresses: ``primary``, CIDRs, or empty for the mode's own default.
    ``clean_conntrack`` false leaves stale UDP entries behind, for the scenario that shows what they do.
    """

    pod_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    node_port_cidrs: tuple[str, ...] = ()
    tcp_be_liberal: bool = False
    clean_conntrack: bool = True


class Proxy(Protocol):
    """One mode of a service proxy. ``requires`` are kernel features and programs that it cannot do without;
    ``title`` is for people (``kube-proxy 1.33 · iptables``); ``stand_in`` as of a CNI style."""

    name: str
    title: str
    requires: tuple[str, ...]
    stand_in: str

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]:
        """What the proxy puts into one node. Depends on the cluster's Services, EndpointSlices, topology and nodes,
        and on nothing of its pods."""
        ...
