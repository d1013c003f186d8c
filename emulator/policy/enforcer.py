"""What a policy enforcer is: a function from compiled policies to the plan objects of one node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from emulator.cluster.model import Cluster, Node
from emulator.plan.model import AnyObject
from emulator.policy.compiled import Compiled
from emulator.policy.flow import Flow
from emulator.policy.model import PolicyKind

PolicyMode = Literal["faithful", "spec"]
POLICY_MODES: tuple[PolicyMode, ...] = ("faithful", "spec")


class Deviation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that the real project does otherwise than the API says, told to people.

    ``what`` is one line without a full stop (``ICMP echo passes whatever the policies say``). ``policy`` is the key of
    the policy that it concerns, empty for the data path as such. ``source`` is where upstream says so: an issue or a
    file. ``unenforced``: the policy, or without one every policy, has no effect at all.
    """

    what: str
    policy: str = ""
    source: str = ""
    unenforced: bool = False


class Enforcer(Protocol):
    """What makes policies hold on a node, and how the real project does it.

    ``name`` is ``felix``; ``title`` is for people (``Felix (Calico) · iptables``). ``requires`` are kernel features and
    programs that it cannot do without (``emulator.kernel.capabilities``). ``stand_in`` as of a CNI style.
    ``kinds`` are the policies that the real project reads; others have no effect, which it tells as a deviation.
    ``mode``: ``faithful`` reproduces the real project's deviations, ``spec`` does what the API says everywhere.
    """

    name: str
    requires: tuple[str, ...]
    stand_in: str
    kinds: frozenset[PolicyKind]
    mode: PolicyMode

    @property
    def title(self) -> str: ...

    def node(self, cluster: Cluster, compiled: Compiled, node: Node) -> Iterable[AnyObject]:
        """What the enforcer puts into one node. Empty where the style's own node fragment carries it."""
        ...

    def deviations(self, cluster: Cluster, compiled: Compiled) -> Iterable[Deviation]:
        """What these policies meet of the real project's deviations. In ``spec`` mode: what cannot be mended."""
        ...

    def deviates(self, compiled: Compiled, flow: Flow, *, allowed: bool) -> Deviation | None:
        """Why the verdict of this enforcer on ``flow`` is the opposite of ``allowed``, the specification's; None if it
        should be the same."""
        ...


class OnEveryNode:
    """Base of enforcers that put all policies of the cluster into each node, not only those that select its pods."""


class Configured:
    """Base of enforcers whose rules depend on other objects of the cluster than policies: their own configuration."""

    def inputs(self, cluster: Cluster) -> object:
        """What the rules depend on, to be compared for equality."""
        raise NotImplementedError
