"""What a cluster's own agents are told: the command line and environment that their DaemonSet's manifest gives to
flanneld, calico-node or aws-node on a node.

The agents themselves do not run; whoever plans in their place reads both as they would. Their pods are those of the
DaemonSet of that name in one of the namespaces that such agents are installed in.

Sources: kubernetes.io, "Define Environment Variables for a Container", "Define a Command and Arguments for a
Container"; the manifests of Flannel, Calico and the AWS VPC CNI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from emulator.cluster.model import Cluster, Container, Pod

NAMESPACES = ("kube-system", "calico-system", "kube-flannel")


def environments(cluster: Cluster, agent: str) -> dict[str, Mapping[str, str]]:
    """By node, the environment of the container ``agent`` in the pod of the DaemonSet ``agent``; nodes without such a
    pod are left out. Variables whose value comes from elsewhere (``valueFrom``) are not set."""
    return {node: environment(container) for node, container in containers(cluster, agent, agent).items()}


def containers(cluster: Cluster, daemon_set: str, name: str) -> dict[str, Container]:
    """By node, the container ``name`` in the pod of the DaemonSet; nodes without such a pod are left out. A pod that
    terminates has been replaced."""
    found: dict[str, Container] = {}
    for pod in _system_pods(cluster):
        if pod.owner == f"DaemonSet/{daemon_set}":
            for container in pod.containers:
                if container.name == name and not (pod.terminating and pod.node in found):
                    found[pod.node] = container
    return found


def environment(container: Container) -> dict[str, str]:
    """The variables of a container that have a value."""
    return {name: value for name, value in container.env if value}


def told(cluster: Cluster) -> dict[tuple[str, str], tuple[tuple[str, ...], ...]]:
    """Everything that agents are told so, to see whether two clusters differ in it."""
    return {
        (pod.node, f"{pod.owner}/{container.name}"): (container.command, container.arguments, *container.env)
        for pod in _system_pods(cluster)
        for container in pod.containers
    }


def _system_pods(cluster: Cluster) -> Iterator[Pod]:
    return (pod for pod in cluster.pods if pod.namespace in NAMESPACES and pod.owner.startswith("DaemonSet/"))
