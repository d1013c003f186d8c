"""A connection as policies see it: two ends, a protocol, a port, and what is decided of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from emulator.cluster.model import Node, Pod
from emulator.policy.model import Direction, Family


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """An end of a connection. ``name`` is the pod's key (``namespace/name``), the node's name, or whatever people call
    a host outside; ``address`` the one that is in the packet where it is judged. A host-network pod is its node."""

    kind: Literal["pod", "node", "external"]
    name: str
    address: str


def pod_end(pod: Pod, family: Family) -> End | None:
    """The end that a pod is, in one address family; None if it has no address of it."""
    address = _of_family(pod.addresses, family)
    if not address:
        return None
    return End("node", pod.node, address) if pod.host_network else End("pod", pod.key, address)


def node_end(node: Node, family: Family) -> End | None:
    """The end that a node is, by its InternalIP; None if it has none of that family."""
    address = _of_family(node.addresses, family)
    return End("node", node.name, address) if address else None


def _of_family(addresses: tuple[str, ...], family: Family) -> str:
    return next((address for address in addresses if (":" in address) == (family == 6)), "")


class Flow(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first packet of a connection, after DNAT and before SNAT: a Service's traffic is that to its endpoint.

    ``protocol`` as of ``emulator.policy.model.PortMatch``. ``port`` is the destination's, 0 for protocols without;
    ``icmp`` is type and code of an ICMP message.
    """

    source: End
    destination: End
    protocol: str
    port: int = 0
    source_port: int = 0
    icmp: tuple[int, int] | None = None

    @property
    def family(self) -> Family:
        """4 or 6, by the destination's address."""
        return 6 if ":" in self.destination.address else 4


Reason = Literal[
    "no pod",  # that end is no pod that policies could select
    "itself",  # a pod and its own address: never leaves its namespace
    "own node",  # a pod and the node that it is on
    "not isolated",  # no policy selects the pod in this direction, or all that do pass the decision on
    "rule",  # a rule decided
    "isolated",  # selected, and no rule matched
]


class Judgement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one end's policies say in one direction.

    ``pod`` is whose policies these are, empty if that end is none. ``policy`` (its key) and ``rule`` (its index) are
    those that decided, for reason ``rule``; ``isolated_by`` are the policies that deny by selecting the pod, for reason
    ``isolated``; ``tier`` is the one where it was decided, empty if none did.
    """

    direction: Direction
    allowed: bool
    reason: Reason
    pod: str = ""
    tier: str = ""
    policy: str = ""
    rule: int = -1
    isolated_by: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True):
    """What is decided of a flow: both its source's egress and its destination's ingress have to allow it."""

    allowed: bool
    egress: Judgement
    ingress: Judgement
