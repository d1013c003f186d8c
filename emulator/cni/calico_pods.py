"""A pod as Calico's plugin and Felix wire it: a cable, a /32, and a gateway that nobody has.

::

    pod A          node
    eth0 ── cali…  proxy ARP for 169.254.1.1, MAC ee:ee:ee:ee:ee:ee; route to A's /32, scope link

How packets get to other nodes is not told here: by BGP or Felix's tunnels (``emulator.cni.calico``), or by flanneld
(``emulator.cni.canal``).

Sources: projectcalico/calico cni-plugin/pkg/dataplane/linux/dataplane_linux.go, felix/dataplane/linux/endpoint_mgr.go.
"""

from __future__ import annotations

from collections.abc import Iterator

from emulator.cluster.model import Cluster, Node, Pod
from emulator.cni.wiring import pod_namespace
from emulator.plan.addressing import default_route, families_of, family_of, host_prefix, stable_mac
from emulator.plan.model import Address, AnyObject, Family, Route, Sysctl, Veth
from emulator.plan.underlay import LOOSE_REVERSE_PATH_FILTER
from emulator.policy.felix_endpoints import Endpoint, host_device, profiles_of

CNI_PLUGIN = "calico plugin"
FELIX = "felix"

HOST_MAC = "ee:ee:ee:ee:ee:ee"  # of every host end: dataplane_linux.go
GATEWAY = "169.254.1.1"  # no one has it; the node answers for it (proxy ARP)
GATEWAY_V6 = "fe80::ecee:eeff:feee:eeee"  # the link-local address that HOST_MAC makes (RFC 4291, appendix A)


def workload_endpoints(cluster: Cluster, node: Node) -> list[Endpoint]:
    """The node's pods as Felix sees them, without any policy: their namespace's and service account's profiles."""
    return [Endpoint(host_device(pod), profiles_of(pod)) for pod in cluster.pods_on(node.name) if not pod.host_network]


def wire_pod(cluster: Cluster, node: Node, pod: Pod, *, mtu: int, ipam: str) -> Iterator[AnyObject]:
    """Both ends of the pod's cable. ``mtu`` in bytes; ``ipam`` is the component that gave the pod its addresses."""
    host_end = host_device(pod)
    yield from pod_namespace(cluster, pod)
    yield Veth(
        ns=pod.ns,
        name="eth0",
        mtu=mtu,
        mac=stable_mac(f"pod {pod.key}"),
        peer_ns=node.ns,
        peer=host_end,
        peer_mac=HOST_MAC,
        component=CNI_PLUGIN,
        why="the pod's interface",
        peer_why=f"host end of {pod.key}; the same MAC on every one",
    )
    families = families_of(pod.addresses)
    for family in families:
        yield from _host_end_sysctls(node, host_end, family)
    if 6 in families:
        yield Address(
            ns=node.ns,
            device=host_end,
            address=f"{GATEWAY_V6}/64",
            scope="link",
            component="kernel",
            why=f"the pod's IPv6 gateway: made from the MAC {HOST_MAC}",
        )
    for address in pod.addresses:
        family = family_of(address)
        yield Address(
            ns=pod.ns,
            device="eth0",
            address=host_prefix(address),
            component=ipam,
            why="one address, no subnet: the pod has no neighbours",
        )
        yield from _pod_routes(pod, family)
        yield Route(
            ns=node.ns,
            destination=host_prefix(address),
            device=host_end,
            scope="link",
            component=FELIX,
            why=f"to {pod.key}",
        )


def _host_end_sysctls(node: Node, device: str, family: Family) -> Iterator[Sysctl]:
    settings: tuple[tuple[str, str, str], ...]
    if family == 4:
        settings = (
            (f"net/ipv4/conf/{device}/proxy_arp", "1", f"answers the pod's ARP for {GATEWAY} with {HOST_MAC}"),
            (f"net/ipv4/neigh/{device}/proxy_delay", "0", "answers at once"),
            (f"net/ipv4/conf/{device}/route_localnet", "1", "lets NAT send a pod's packets to 127.0.0.1"),
            (f"net/ipv4/conf/{device}/forwarding", "1", "routes what the pod sends"),
            (
                f"net/ipv4/conf/{device}/rp_filter",
                LOOSE_REVERSE_PATH_FILTER,
                "the value of conf/default; the strict check is a rule in the raw table",
            ),
        )
    else:
        settings = (
            (f"net/ipv6/conf/{device}/proxy_ndp", "1", "answers for other nodes' pods"),
            (f"net/ipv6/conf/{device}/forwarding", "1", "routes what the pod sends"),
            (f"net/ipv6/conf/{device}/accept_ra", "0", "a pod is no router: its advertisements do not count"),
        )
    for name, value, why in settings:
        yield Sysctl(ns=node.ns, name=name, value=value, component=FELIX, why=why)


def _pod_routes(pod: Pod, family: Family) -> Iterator[Route]:
    gateway = GATEWAY if family == 4 else GATEWAY_V6
    if family == 4:
        yield Route(
            ns=pod.ns,
            destination=host_prefix(gateway),
            device="eth0",
            scope="link",
            component=CNI_PLUGIN,
            why="the gateway is on the link, although no subnet says so",
        )
    yield Route(
        ns=pod.ns,
        destination=default_route(family),
        via=gateway,
        device="eth0",
        component=CNI_PLUGIN,
        why="everything goes to the node, pods of the same node too",
    )
