"""What Felix's policies become, handed to the style that writes them into its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from emulator.cluster.model import Cluster, Node
from emulator.plan.model import AnyObject, Family, IpSet
from emulator.policy.felix_endpoints import Endpoint
from emulator.policy.felix_rules import FelixChain


class Judging(NamedTuple):
    """What judges the traffic of a node's pods: its endpoints, the chains of the policies and then of the groups that
    theirs jump to, and the sets that those match."""

    endpoints: Sequence[Endpoint]
    chains: tuple[FelixChain, ...] = ()
    sets: tuple[IpSet, ...] = ()


class Tables(Protocol):
    """What a style gives Felix: its tables, around what judges."""

    def title(self, cluster: Cluster | None) -> str:
        """Felix and its kind of tables, for people; None: before there is a cluster."""
        ...

    @property
    def requires(self) -> tuple[str, ...]:
        """What Felix cannot do without, as of an enforcer."""
        ...

    def inputs(self, cluster: Cluster) -> object:
        """What of the cluster's other objects the tables depend on, to be compared for equality."""
        ...

    def families(self, cluster: Cluster) -> Iterable[Family]:
        """The families that Felix looks after."""
        ...

    def judged(
        self, cluster: Cluster, node: Node, family: Family, judging: Judging, *, own_node: bool
    ) -> Iterable[AnyObject]:
        """The sets and tables of a node that policies are in; ``own_node``: pods reach their node whatever policies
        say."""
        ...
