"""The environment of a cluster's own agents: what their DaemonSet's manifest tells calico-node or aws-node on a node.

The agents themselves do not run; whoever plans in their place reads their environment as they would. Their pods are
those of the DaemonSet of that name in one of the namespaces that such agents are installed in.

Sources: kubernetes.io, "Define Environment Variables for a Container"; the manifests of Calico and of the AWS VPC CNI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from emulator.cluster.model import Cluster, Pod

NAMESPACES = ("kube-system", "calico-system")


def environments(cluster: Cluster, agent: str) -> dict[str, Mapping[str, str]]:
    """By node, the environment of the container ``agent`` in the pod of the DaemonSet ``agent``; nodes without such a
    pod are left out. Variables whose value comes from elsewhere (``valueFrom``) are not set."""
    found: dict[str, Mapping[str, str]] = {}
    for pod in _system_pods(cluster):
        if pod.owner == f"DaemonSet/{agent}":
            for container in pod.containers:
                if container.name == agent:
                    found[pod.node] = {name: value for name, value in container.env if value}
    return found


def told(cluster: Cluster) -> dict[tuple[str, str], tuple[tuple[str, str], ...]]:
    """Everything that agents are told so, to see whether two clusters differ in it."""
    return {
        (pod.node, f"{pod.owner}/{container.name}"): container.env
        for pod in _system_pods(cluster)
        for container in pod.containers
    }


def _system_pods(cluster: Cluster) -> Iterator[Pod]:
    return (pod for pod in cluster.pods if pod.namespace in NAMESPACES and pod.owner.startswith("DaemonSet/"))
