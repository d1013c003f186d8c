"""Which node a pod goes to, decided the same way every time.

``nodeName`` first, then ``nodeSelector`` and required node affinity, free host ports and the pod limit;
of the nodes that remain the one with the fewest pods, ties going to the topology's order. Preferences,
taints, topology spread and pod affinity are not looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from emulator.cluster.model import PODS_PER_NODE_MAX, Node, Pod
from emulator.cluster.podspec import PodSpec
from emulator.errors import ManifestError, Problem

HostPort = tuple[int, str]


class Scheduler:
    """The nodes' load while a cluster is being assembled."""

    def __init__(self, nodes: Sequence[Node], pods: Iterable[Pod] = ()) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._load = dict.fromkeys(self._nodes, 0)
        self._host_ports: dict[str, set[HostPort]] = {name: set() for name in self._nodes}
        for pod in pods:
            self._load[pod.node] += 1
            self._host_ports[pod.node].update(_host_ports(pod))

    def place(self, namespace: str, name: str, spec: PodSpec, pinned: str = "") -> Node:
        """The node for a pod, which counts as placed there. Raises ManifestError if no node will have it.

        ``pinned`` is the node that a DaemonSet or the topology means; it goes the same way as ``nodeName``.
        """
        wanted_ports = {
            (port.host_port or port.container_port, port.protocol or "TCP")
            for container in spec.containers or ()
            for port in container.ports or ()
            if port.host_port or spec.host_network
        }
        target = pinned or spec.node_name or ""
        if target and target not in self._nodes:
            self._refuse(namespace, name, "spec.nodeName", f'node "{target}" not found')
        reasons: Counter[str] = Counter()
        best = ""
        for candidate in [target] if target else self._nodes:
            reason = self._unfit(candidate, spec, wanted_ports, chosen=bool(target))
            if reason:
                reasons[reason] += 1
            elif not best or self._load[candidate] < self._load[best]:
                best = candidate
        if not best:
            count = 1 if target else len(self._nodes)
            detail = ", ".join(sorted(f"{number} {reason}" for reason, number in reasons.items()))
            self._refuse(namespace, name, "", f"0/{count} nodes are available: {detail}.")
        self._load[best] += 1
        self._host_ports[best] |= wanted_ports
        return self._nodes[best]

    def _unfit(self, candidate: str, spec: PodSpec, ports: set[HostPort], *, chosen: bool) -> str:
        if not chosen and not matches_node(spec, self._nodes[candidate]):
            return "node(s) didn't match Pod's node affinity/selector"
        if self._load[candidate] >= PODS_PER_NODE_MAX:
            return "Too many pods"
        if ports and ports & self._host_ports[candidate]:
            return "node(s) didn't have free ports for the requested pod ports"
        return ""

    @staticmethod
    def _refuse(namespace: str, name: str, path: str, reason: str) -> NoReturn:
        raise ManifestError([Problem("", f"Pod {namespace}/{name}", path, reason)])


def _host_ports(pod: Pod) -> Iterable[HostPort]:
    for container in pod.containers:
        for port in container.ports:
            if port.host_port or pod.host_network:
                yield port.host_port or port.port, port.protocol


def matches_node(spec: PodSpec, node: Node) -> bool:
    """Whether nodeSelector and required node affinity let the pod onto ``node``."""
    if spec.node_selector and any(node.labels.get(key) != value for key, value in spec.node_selector.items()):
        return False
    affinity = (spec.affinity or {}).get("nodeAffinity") or {}
    needed = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not needed:
        return True
    # The terms are alternatives; an empty term matches nothing
    return any(_matches_term(term, node) for term in needed.get("nodeSelectorTerms") or ())


def _matches_term(term: dict[str, Any], node: Node) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    return bool(expressions or fields) and (
        all(_matches_expression(expression, node.labels) for expression in expressions)
        and all(_matches_expression(field, {"metadata.name": node.name}) for field in fields)
    )


def _matches_expression(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    value = labels.get(expression.get("key", ""))
    values: Sequence[str] = expression.get("values") or ()
    match expression.get("operator"):
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            try:
                number, bound = int(value or ""), int(values[0])
            except (ValueError, IndexError):
                return False
            return number > bound if operator == "Gt" else number < bound
    return False
