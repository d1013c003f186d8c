"""What a CNI style is: a function from the cluster's state to plan objects.

A style never touches the kernel. It registers under the entry point group ``cnilab.styles``; the entry
point names a callable that takes the mode after the colon of ``--cni NAME:MODE`` (empty: the default) and
returns a :class:`Style`, or raises ``emulator.errors.UserError`` for a mode that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol, Self, cast

from emulator.cluster.ipam import Ipam
from emulator.cluster.model import Cluster, Machine, Node, Pod, Topology
from emulator.plan.model import AnyObject
from emulator.policy.enforcer import Enforcer, PolicyMode
from emulator.proxy.model import ProxyMode

ENTRY_POINTS = "cnilab.styles"


class Style(Protocol):
    """One CNI data path.

    ``name`` is ``flannel``; ``mode`` its variant (``vxlan``); ``title`` for people (``Flannel · vxlan``).
    ``requires`` are the names of kernel features and programs that it cannot do without
    (``emulator.kernel.capabilities`` knows them). ``proxies`` are the modes of the service proxy that the real system
    runs beside it, the one it would take first; the first that this kernel can carry is the style's natural one.
    ``fallback`` is the style, spelt as for ``--cni``, that a lab takes where this machine lacks what is required: the
    same by other means. ``stand_in`` says what stands in for a part of the real system that is not used (``a proxy of
    cnilab's for flanneld's``); empty where all parts are real. The style's module lists its modes in a function
    ``modes()``, the default one first.

    The parts are planned apart so that a change costs what it touches. ``pod`` may depend on nothing but its
    arguments' own fields, the cluster's topology and what ``shared`` returns; ``node`` on the topology, all nodes, the
    pods on its own node and the cluster's other objects; ``router`` on the same but for pods. Their results are kept
    while those are equal (``emulator.plan.build``).
    """

    name: str
    mode: str
    title: str
    requires: tuple[str, ...]
    stand_in: str
    fallback: str
    proxies: tuple[ProxyMode, ...]

    def beside(self, proxy: ProxyMode) -> Style:
        """The style with that service proxy, which the user named, beside it; most are the same."""
        ...

    def pod_traffic(self, topology: Topology) -> tuple[str, ...]:
        """The CIDRs by which kube-proxy tells pods' traffic from other traffic (its ``--cluster-cidr``); none where
        the real system gives it none."""
        ...

    def speaks_bgp(self, cluster: Cluster) -> str:
        """What of the style has the BGP port of the nodes, for people; empty where it is free."""
        ...

    def adapted(self, lacking: Callable[[Sequence[str]], Collection[str]]) -> Style:
        """The style as this machine can carry it, where it can do without something that it does not ``require``, or
        has it by other means. ``lacking`` tells which of some features this machine does not have."""
        ...

    @property
    def strict_underlay(self) -> str:
        """Why addresses that the underlay does not know cannot be announced on it, where the style lives in such a one;
        empty for a plain network."""
        ...

    def prepare(self, topology: Topology) -> Topology:
        """The underlay as this style finds it, before anything is built: a cloud's style lays its fabric over the
        switches. Most take it as it is."""
        ...

    def ipam(self, topology: Topology) -> Ipam:
        """The address manager of the real CNI, for pods of ``topology``. Raises TopologyError if the CIDRs
        cannot carry it."""
        ...

    def enforcer(self, mode: PolicyMode) -> Enforcer | None:
        """What makes network policies hold beside this CNI, a new one for each lab; None where nothing does."""
        ...

    @property
    def unpoliced(self) -> str:
        """Why nothing makes network policies hold, where nothing does."""
        ...

    def shared(self, cluster: Cluster) -> object:
        """What of the cluster's objects a pod's plan depends on, to be compared for equality; for most nothing."""
        ...

    def advertised(self, cluster: Cluster) -> object:
        """What of Services and their endpoints the plans of nodes and routers depend on, to be compared for equality;
        for most nothing."""
        ...

    def check(self, cluster: Cluster) -> None:
        """Refuse what the style cannot do (an MTU too small for the tunnel): raises UserError."""
        ...

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]:
        """What the style puts into one node: devices, routes to the others, rules, daemons."""
        ...

    def router(self, cluster: Cluster, router: Machine) -> Iterable[AnyObject]:
        """What a router of the underlay runs for this style's sake: BGP with the nodes. Most need nothing."""
        ...

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterable[AnyObject]:
        """What wires one pod (never a ``host_network`` one): its namespace, veth, addresses, routes, host routes."""
        ...


class Plain:
    """What most styles have in common: they take the underlay as it is, and ask nothing of its routers."""

    @property
    def stand_in(self) -> str:
        return ""

    @property
    def fallback(self) -> str:
        return ""

    def adapted(self, lacking: Callable[[Sequence[str]], Collection[str]]) -> Style:
        return cast("Style", self)

    @property
    def proxies(self) -> tuple[ProxyMode, ...]:
        return ("iptables",)

    @property
    def strict_underlay(self) -> str:
        return ""

    def beside(self, proxy: ProxyMode) -> Self:
        return self

    def speaks_bgp(self, cluster: Cluster) -> str:
        return ""

    def pod_traffic(self, topology: Topology) -> tuple[str, ...]:
        return topology.pod_cidrs

    def prepare(self, topology: Topology) -> Topology:
        return topology

    def router(self, cluster: Cluster, router: Machine) -> Iterable[AnyObject]:
        return ()

    def enforcer(self, mode: PolicyMode) -> Enforcer | None:
        return None

    @property
    def unpoliced(self) -> str:
        return ""

    def shared(self, cluster: Cluster) -> object:
        return ()

    def advertised(self, cluster: Cluster) -> object:
        return ()
