"""What every style's pods have in common, whatever the cable to the node looks like."""

from __future__ import annotations

from collections.abc import Iterator

from emulator.cluster.model import Cluster, Pod
from emulator.plan.model import AnyObject, Namespace, Sysctl
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
