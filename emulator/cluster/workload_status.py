"""How far a workload is: the numbers of its status, and what ``rollout status`` says of them.

Sources: the status that the controllers of kubernetes pkg/controller keep, and kubectl's rollout_status.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from emulator.cluster.model import Cluster, Pod
from emulator.cluster.podspec import Workload
from emulator.cluster.workloads import replica_set_name, template_hash

Object = dict[str, Any]

ROLLED = ("Deployment", "StatefulSet", "DaemonSet")


class Numbers(NamedTuple):
    """Pods of a workload, terminating ones left out. ``old`` are those with an older template."""

    desired: int
    replicas: int
    updated: int
    ready: int
    available: int
    updated_available: int

    @property
    def old(self) -> int:
        return self.replicas - self.updated


Owned = Mapping[str, Sequence[Pod]]


def pods_by_owner(cluster: Cluster) -> dict[str, list[Pod]]:
    """The pods that do not terminate, by ``namespace/Kind/name`` of their owner."""
    found: dict[str, list[Pod]] = {}
    for pod in cluster.pods:
        if not pod.terminating:
            found.setdefault(f"{pod.namespace}/{pod.owner}", []).append(pod)
    return found


def workload_numbers(cluster: Cluster, manifest: Object, owned: Owned | None = None) -> Numbers:
    """The numbers of a Deployment, ReplicaSet, StatefulSet or DaemonSet of ``cluster``. ``owned`` are the pods by their
    owners, for whoever asks more than once."""
    owned = pods_by_owner(cluster) if owned is None else owned
    workload = msgspec.convert(manifest, Workload)
    kind, name = manifest["kind"], workload.metadata.name
    namespace = workload.metadata.namespace or "default"
    owners = [f"{namespace}/{kind}/{name}"]
    if kind == "Deployment":
        sets = [one for one in cluster.replica_sets if (one.namespace, one.deployment) == (namespace, name)]
        owners = [f"{namespace}/ReplicaSet/{one.name}" for one in sets]
    pods = [pod for owner in owners for pod in owned.get(owner, ())]
    new = [pod for pod in pods if _is_new(kind, workload, pod)]
    desired = 1 if workload.spec.replicas is None else workload.spec.replicas
    if kind == "DaemonSet":
        desired = len({pod.node for pod in pods})
    up = [pod for pod in pods if pod.node not in cluster.not_ready_nodes]
    return Numbers(
        desired=desired,
        replicas=len(pods),
        updated=len(new),
        ready=sum(pod.ready for pod in up),
        available=sum(pod.available for pod in up),
        updated_available=sum(pod.available for pod in new if pod.node not in cluster.not_ready_nodes),
    )


def _is_new(kind: str, workload: Workload, pod: Pod) -> bool:
    match kind:
        case "Deployment":
            return pod.owner == f"ReplicaSet/{replica_set_name(workload)}"
        case "StatefulSet":
            return pod.labels.get("controller-revision-hash") == f"{workload.metadata.name}-{template_hash(workload)}"
        case "DaemonSet":
            return pod.labels.get("controller-revision-hash") == template_hash(workload)
    return True


def status_object(kind: str, numbers: Numbers) -> Object:
    """The status of a workload with these numbers."""
    if kind == "DaemonSet":
        return {
            "desiredNumberScheduled": numbers.desired,
            "currentNumberScheduled": numbers.replicas,
            "updatedNumberScheduled": numbers.updated,
            "numberReady": numbers.ready,
            "numberAvailable": numbers.available,
            "numberUnavailable": numbers.desired - numbers.available,
            "numberMisscheduled": 0,
        }
    status = {
        "replicas": numbers.replicas,
        "readyReplicas": numbers.ready,
        "availableReplicas": numbers.available,
    }
    if kind == "ReplicaSet":
        return status
    status["updatedReplicas"] = numbers.updated
    if kind == "Deployment" and numbers.desired > numbers.available:
        status["unavailableReplicas"] = numbers.desired - numbers.available
    return status


def progress(manifest: Object, numbers: Numbers) -> tuple[bool, str]:
    """Whether a rollout is over, and kubectl's line about it."""
    kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest["spec"]
    what = f'{"daemon set" if kind == "DaemonSet" else kind.lower()} "{name}"'
    waiting = f"Waiting for {what} rollout to finish:"
    strategy = (spec.get("updateStrategy") or {}).get("type") if kind != "Deployment" else None
    if strategy == "OnDelete":
        return True, f"rollout status is only available for RollingUpdate strategy type: {what} has OnDelete"
    target = numbers.desired
    if kind == "StatefulSet":
        partition = ((spec.get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition") or 0
        if numbers.ready < numbers.desired:
            return False, f"Waiting for {numbers.desired - numbers.ready} pods to be ready..."
        target = max(0, numbers.desired - partition)
    if numbers.updated < target:
        return False, f"{waiting} {numbers.updated} out of {target} new {_pods(kind)} have been updated..."
    if kind == "Deployment" and numbers.old > 0:
        return False, f"{waiting} {numbers.old} old replicas are pending termination..."
    if numbers.updated_available < target:
        return False, f"{waiting} {numbers.updated_available} of {target} updated {_pods(kind)} are available..."
    return True, f"{what} successfully rolled out"


def _pods(kind: str) -> str:
    return "replicas" if kind == "Deployment" else "pods"
