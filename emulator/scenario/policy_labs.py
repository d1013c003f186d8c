"""Labs for judging policies: a private one for some manifests, or one that runs.

In a private lab policies come last. Before them it is seen which of the requests that involve hosts outside the cluster
have any way to go at all: most networks know no route to pods, and that is not the doing of a policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from emulator.cluster.manifests import load_manifests
from emulator.cluster.model import Topology
from emulator.cluster.topology import load_topology
from emulator.cni.styles import style_key
from emulator.errors import UserError
from emulator.lab.lab import Lab
from emulator.lab.verdicts import Cell, Matrix, MatrixWish
from emulator.policy.enforcer import PolicyMode

Object = dict[str, Any]

WORKLOADS = ("Pod", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "ReplicationController")
# apiVersion's group, and the kinds of it that judge traffic or say whom that concerns
POLICY_KINDS = {
    "networking.k8s.io": ("NetworkPolicy",),
    "projectcalico.org": ("NetworkPolicy", "GlobalNetworkPolicy", "Tier", "NetworkSet", "GlobalNetworkSet"),
    "crd.projectcalico.org": ("NetworkPolicy", "GlobalNetworkPolicy", "Tier", "NetworkSet", "GlobalNetworkSet"),
    "policy.networking.k8s.io": ("AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "ClusterNetworkPolicy"),
}


class Checked(msgspec.Struct, frozen=True):
    """A matrix under one style. ``unjudged`` are cells that had no way even without policies; they are not in the
    matrix. ``labels`` are the lab's own warnings, ``seconds`` how long its start and the matrix took."""

    style: str
    matrix: Matrix
    labels: tuple[str, ...] = ()
    unjudged: tuple[Cell, ...] = ()
    seconds: float = 0.0

    @property
    def wrong(self) -> tuple[Cell, ...]:
        """The cells that nothing explains."""
        return tuple(cell for cell in self.matrix.cells if cell.wrong)

    @property
    def deviating(self) -> tuple[Cell, ...]:
        """The cells in which the style is known not to do what the API says, and did not."""
        return tuple(cell for cell in self.matrix.cells if not cell.wrong and not cell.as_specified and cell.deviation)


class PolicyLab:
    """A lab whose policies are in force. ``labels`` are its warnings."""

    def __init__(self, lab: Lab, style: str, baseline: dict[tuple[str, ...], Cell] | None, seconds: float) -> None:
        self.lab = lab
        self.style = style
        self.seconds = seconds
        self._baseline = baseline

    @property
    def labels(self) -> tuple[str, ...]:
        """What the lab has to say with every output, such as policies that nothing enforces."""
        return self.lab.warnings

    def take(self, wish: MatrixWish) -> Checked:
        """The matrix, without what has no way for want of a network."""
        began = time.monotonic()
        matrix = self.lab.matrix(wish)
        unjudged = tuple(cell for cell in matrix.cells if not self._has_way(cell))
        if unjudged:
            kept = tuple(cell for cell in matrix.cells if self._has_way(cell))
            matrix = msgspec.structs.replace(matrix, cells=kept)
        return Checked(self.style, matrix, self.labels, unjudged, self.seconds + time.monotonic() - began)

    def _has_way(self, cell: Cell) -> bool:
        if cell.allowed:
            return True
        if cell.verdict == "unreachable" and cell.specification == "allow":
            return False
        before = self._baseline.get(_pair(cell)) if self._baseline is not None else None
        return before is None or before.allowed


@contextmanager
def policy_lab(
    style: str,
    manifests: Sequence[str],
    *,
    topology: str = "three-nodes",
    policy_mode: PolicyMode = "faithful",
    hosts: bool = True,
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[PolicyLab]:
    """A private lab with the manifests. ``hosts``: hosts outside the cluster will be asked about. Raises what starting
    a lab raises, and ManifestError."""
    objects = load_manifests(manifests)
    policies = [thing for thing in objects if is_policy(thing)]
    others = [thing for thing in objects if not is_policy(thing)]
    began = time.monotonic()
    with Lab(topology_for(topology, others), cni=style, manifests=others, policy_mode=policy_mode,
             progress=progress) as lab:  # fmt: skip
        baseline = None
        if hosts and any(one.kind == "host" for one in lab.cluster().topology.machines):
            progress("seeing what has a way without policies")
            baseline = _baseline(lab)
        if policies:
            lab.apply(*policies)
        yield PolicyLab(lab, style_key(style), baseline, time.monotonic() - began)


def running_lab(name: str | None) -> PolicyLab:
    """A lab that runs already; what has no way in it is not known. Raises NotFound, UserError."""
    lab = Lab.connect(name)
    return PolicyLab(lab, lab.status().style, None, 0.0)


def is_policy(thing: Object) -> bool:
    """Whether the object judges traffic, or says whom that concerns."""
    return thing["kind"] in POLICY_KINDS.get(thing["apiVersion"].rpartition("/")[0], ())


def topology_for(name: str, objects: Sequence[Object]) -> Topology:
    """The topology; without the pods that it brings itself, where the objects bring theirs. Raises TopologyError."""
    topology = load_topology(name)
    if not any(thing["kind"] in WORKLOADS for thing in objects):
        if not any(machine.pods for machine in topology.machines):
            raise UserError(f"neither the manifests nor the topology {name} have a pod", hint="give pods with -f")
        return topology
    machines = tuple(msgspec.structs.replace(machine, pods=0) for machine in topology.machines)
    return msgspec.structs.replace(topology, machines=machines)


def _baseline(lab: Lab) -> dict[tuple[str, ...], Cell]:
    """Whether hosts reach pods, nodes and Services, and are reached, before any policy: one port of each tells."""
    everyone = lab.matrix(MatrixWish(groups=("pods", "nodes", "hosts")))
    return {
        _pair(cell): cell
        for cell in everyone.cells
        if (cell.source.startswith("host/") or cell.target.startswith("host/")) and cell.port == everyone.ports[0].port
    }


def _pair(cell: Cell) -> tuple[str, ...]:
    return (cell.source, cell.target, str(cell.family))
