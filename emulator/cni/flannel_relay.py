"""Flannel's backends ``udp`` and ``ipip``: a TUN device with a proxy behind it, and a tunnel of the kernel's.

::

    udp    cni0 ── route 10.244.0.0/16 dev flannel0 ── proxy ── UDP 8285: the bare packet ── proxy ── flannel0 ── cni0
    ipip   cni0 ── route /24 via n2 dev flannel.ipip ── IP protocol 4 ───────────────────── flannel.ipip ── cni0

Sources: flannel-io/flannel pkg/backend/udp (udp_network_amd64.go, proxy_amd64.c), pkg/backend/ipip/ipip.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from emulator.cluster.model import Cluster, Node
from emulator.cni.flannel_network import FLANNELD, vtep_address
from emulator.cni.flannel_settings import Settings
from emulator.plan.addressing import host_prefix, of_family
from emulator.plan.model import Address, AnyObject, Daemon, File, Ipip, Route, Tun

UDP_DEVICE, IPIP_DEVICE = "flannel0", "flannel.ipip"
PROXY_CONFIG, PROXY_SOCKET = "/run/flannel/proxy.json", "/run/flannel/proxy.sock"
PROXY = "flannel-proxy"
STAND_IN = "flanneld (stand-in)"


def udp_backend(cluster: Cluster, node: Node, settings: Settings) -> Iterator[AnyObject]:
    """The TUN device, the one route into it, and the proxy with what it must know of the other nodes."""
    network = of_family(cluster.topology.pod_cidrs, 4)
    yield Tun(
        ns=node.ns,
        name=UDP_DEVICE,
        mtu=settings.device_mtu(node.mtu, 4),
        component=FLANNELD,
        why="the proxy takes packets to other nodes from it, and gives those from there to it",
    )
    yield _address(node, UDP_DEVICE)
    yield Route(
        ns=node.ns,
        destination=network,
        device=UDP_DEVICE,
        component=FLANNELD,
        why="the whole cluster network; the node's own subnet is more specific, on cni0",
    )
    configuration = {
        "device": UDP_DEVICE,
        "address": vtep_address(node, 4),
        "listen": [of_family(node.addresses, 4), settings.port],
        "routes": [
            [of_family(peer.pod_ranges, 4), of_family(peer.addresses, 4)]
            for peer in cluster.nodes
            if peer.name != node.name
        ],
    }
    yield File(
        ns=node.ns,
        path=PROXY_CONFIG,
        content=json.dumps(configuration, indent=2) + "\n",
        component=STAND_IN,
        why="the leases of the other nodes: which subnet is behind which address",
    )
    yield Daemon(
        ns=node.ns,
        name=PROXY,
        argv=(PROXY, PROXY_CONFIG, PROXY_SOCKET),
        module="emulator.kernel.flannel_proxy",
        files=(PROXY_CONFIG,),
        ready_socket=PROXY_SOCKET,
        component=STAND_IN,
        why=f"carries packets in UDP {settings.port}, and takes one from their TTL on either side",
    )


def ipip_device(node: Node, settings: Settings) -> Iterator[AnyObject]:
    yield Ipip(
        ns=node.ns,
        name=IPIP_DEVICE,
        mtu=settings.device_mtu(node.mtu, 4),
        local=of_family(node.addresses, 4),
        component=FLANNELD,
        why="the tunnel's end; a route's gateway is the outer destination",
    )
    yield _address(node, IPIP_DEVICE)


def ipip_route(node: Node, peer: Node) -> Iterator[Route]:
    """None to a peer that claims this node's own address: the kernel takes no route by that, and flanneld logs it."""
    if of_family(peer.addresses, 4) in node.addresses:
        return
    yield Route(
        ns=node.ns,
        destination=of_family(peer.pod_ranges, 4),
        via=of_family(peer.addresses, 4),
        device=IPIP_DEVICE,
        onlink=True,
        component=FLANNELD,
        why=f"pods of {peer.name}, through the tunnel",
    )


def _address(node: Node, device: str) -> Address:
    return Address(
        ns=node.ns,
        device=device,
        address=host_prefix(vtep_address(node, 4)),
        component=FLANNELD,
        why="source of node to remote pod; a host prefix, so that no broadcast route appears",
    )
