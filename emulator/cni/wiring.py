"""What every style has in common, whatever the cable from a pod to its node looks like: the pod's namespace, and the
configuration that names the plugins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from emulator.cluster.model import Cluster, Node, Pod
from emulator.plan.model import AnyObject, File, Namespace, Sysctl
from emulator.plan.underlay import ipv6_sysctls, uses_ipv6


def pod_namespace(cluster: Cluster, pod: Pod) -> Iterator[AnyObject]:
    """The pod's namespace as the container runtime makes it, with the settings that a device copies when it is made.

    They are explicit, since a new namespace would inherit the machine's own (ip-sysctl.rst, devconf_inherit_init_net).
    """
    yield Namespace(
        ns=pod.ns,
        role="pod",
        hostname=pod.hostname or pod.name,
        component="container runtime",
        why=f"pod {pod.key} on {pod.node}",
    )
    yield Sysctl(
        ns=pod.ns, name="net/ipv4/ip_forward", value="0", component="container runtime", why="a pod is not a router"
    )
    for name in ("net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"):
        yield Sysctl(
            ns=pod.ns, name=name, value="0", component="container runtime", why="one device: nothing to filter"
        )
    yield from ipv6_sysctls(pod.ns, enabled=uses_ipv6(cluster.topology), component="container runtime")


def network_configuration(node: Node, name: str, configuration: dict[str, Any], component: str) -> File:
    """A network configuration list in the folder that the kubelet's runtime reads, as ``component`` puts it there."""
    return File(
        ns=node.ns,
        path=f"/etc/cni/net.d/{name}.conflist",
        content=json.dumps(configuration, indent=2) + "\n",
        component=component,
        why="tells the kubelet's runtime which plugins wire a pod",
    )
