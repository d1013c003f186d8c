"""Health check node ports in a lab, and kube-proxy's own: HTTP servers on every node, by which balancers find where to
send to.

The traffic engine serves them; what they answer follows every change of the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emulator.cluster.model import Cluster, Machine
from emulator.kernel.netns import netns_path
from emulator.proxy.health import health_checks
from emulator.traffic.client import TrafficEngine
from emulator.traffic.model import FixedAnswer, Server

_SUFFIX = " kube-proxy"  # beside what hostNetwork pods serve in the node


class HealthPorts:
    """The ports that are open, by node. Changes come one at a time."""

    def __init__(self, traffic: TrafficEngine) -> None:
        self._traffic = traffic
        self._served: dict[str, Server] = {}

    def retire(self, namespaces: Iterable[str]) -> None:
        """Close what is open in these namespaces, which are about to go: an open socket would keep them alive."""
        if going := [ns for ns in namespaces if ns in self._served]:
            self._traffic.stop([f"{ns}{_SUFFIX}" for ns in going])
            for ns in going:
                del self._served[ns]

    def follow(self, cluster: Cluster, machines: Sequence[Machine], *, proxied: bool) -> None:
        """Answer by the cluster's state on the nodes among ``machines``; nowhere if no service proxy runs."""
        up = {machine.ns for machine in machines}
        wanted: dict[str, Server] = {}
        if proxied and any(service.type == "LoadBalancer" for service in cluster.services):
            for node in cluster.nodes:
                if node.ns in up and (answers := _answers(cluster, node.name)):
                    wanted[node.ns] = Server(f"{node.ns}{_SUFFIX}", netns_path(node.ns), node.name, (), answers)
        self.retire([ns for ns in self._served if ns not in wanted])
        if fresh := [server for ns, server in wanted.items() if self._served.get(ns) != server]:
            self._traffic.serve(fresh)
        self._served = wanted


def _answers(cluster: Cluster, node: str) -> tuple[FixedAnswer, ...]:
    return tuple(
        FixedAnswer(
            family=6 if check.family == 6 else 4,
            port=check.port,
            status=check.answer.status,
            headers=check.answer.headers,
            body=check.answer.body,
        )
        for check in health_checks(cluster, cluster.node(node))
    )
