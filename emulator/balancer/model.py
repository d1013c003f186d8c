"""What implements Services of type LoadBalancer: a function from the cluster's Services to plan objects.

Addresses are given already (``emulator.cluster.load_balancer``); this is about how packets to them get to a node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from emulator.cluster.model import Cluster, Machine, Node
from emulator.plan.model import AnyObject


class Balancer(Protocol):
    """One implementation. ``title`` and ``stand_in`` are for people, as a style's; ``requires`` are kernel features and
    programs that it cannot do without."""

    @property
    def title(self) -> str: ...

    @property
    def stand_in(self) -> str: ...

    @property
    def requires(self) -> tuple[str, ...]: ...

    def check(self, cluster: Cluster) -> None:
        """Refuse what cannot work: raises UserError."""
        ...

    def notices(self, cluster: Cluster) -> tuple[str, ...]:
        """Lines for people about this cluster."""
        ...

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]:
        """What it puts into one node. Depends on Services, EndpointSlices, nodes and the cluster's other objects."""
        ...

    def machine(self, cluster: Cluster, machine: Machine) -> Iterable[AnyObject]:
        """What it puts into a router or host of the underlay; depends on the same."""
        ...
