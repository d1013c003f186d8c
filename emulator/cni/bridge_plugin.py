"""Pods on a bridge, as the bridge and host-local plugins put them there for Flannel and kube-router.

::

    pod            node
    eth0 ── veth…  port of cni0, which has the gateway's address

Sources: containernetworking/plugins plugins/main/bridge/bridge.go, plugins/ipam/host-local.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from emulator.cluster.model import Cluster, Node, Pod
from emulator.cni.wiring import pod_namespace
from emulator.plan.addressing import (
    default_route,
    digest,
    families_of,
    first_address,
    of_family,
    prefix_length,
    stable_mac,
)
from emulator.plan.model import Address, AnyObject, Bridge, BridgePort, Family, Route, Veth

BRIDGE_PLUGIN = "bridge plugin"

MoreRoutes = Callable[[Family], Iterable[Route]]


def gateway_bridge(node: Node, name: str, mtu: int) -> Iterator[AnyObject]:
    """The bridge with the first address of each of the node's pod ranges. The plugin makes it with the node's first
    pod; the lab has it from the start."""
    yield Bridge(
        ns=node.ns,
        name=name,
        mtu=mtu,
        mac=stable_mac(f"{name} {node.name}"),
        component=BRIDGE_PLUGIN,
        why="connects the pods of this node; their gateway",
    )
    for subnet in node.pod_ranges:
        yield Address(
            ns=node.ns,
            device=name,
            address=f"{first_address(subnet, 1)}/{prefix_length(subnet)}",
            component=BRIDGE_PLUGIN,
            why="isGateway: the pods' default gateway, and the source of node to local pod",
        )


def bridged_pod(
    cluster: Cluster,
    node: Node,
    pod: Pod,
    *,
    bridge: str,
    mtu: int,
    hairpin: str = "",
    more_routes: MoreRoutes = lambda family: (),
) -> Iterator[AnyObject]:
    """The pod's namespace, its cable to the bridge, its addresses and routes.

    ``mtu`` in bytes. ``hairpin`` says why the port is in hairpin mode; it is not if that is empty. ``more_routes`` are
    what the pod has beside the default route.
    """
    host_end = f"veth{digest(pod.key, 8)}"
    yield from pod_namespace(cluster, pod)
    yield Veth(
        ns=pod.ns,
        name="eth0",
        mtu=mtu,
        mac=stable_mac(f"pod {pod.key}"),
        peer_ns=node.ns,
        peer=host_end,
        peer_mac=stable_mac(f"veth {pod.key}"),
        component=BRIDGE_PLUGIN,
        why="the pod's interface",
        peer_why=f"host end of {pod.key}",
    )
    yield BridgePort(
        ns=node.ns,
        device=host_end,
        bridge=bridge,
        hairpin=bool(hairpin),
        component=BRIDGE_PLUGIN,
        why=hairpin or f"{pod.key} is on the bridge",
    )
    for address in pod.addresses:
        (family,) = families_of((address,))
        subnet = of_family(node.pod_ranges, family)
        yield Address(
            ns=pod.ns,
            device="eth0",
            address=f"{address}/{prefix_length(subnet)}",
            component="host-local plugin",
            why=f"from the node's subnet {subnet}: pods of this node are on one link",
        )
        yield from more_routes(family)
        yield Route(
            ns=pod.ns,
            destination=default_route(family),
            via=first_address(subnet, 1),
            device="eth0",
            component=BRIDGE_PLUGIN,
            why=f"isDefaultGateway: everything else goes by {bridge} too",
        )
