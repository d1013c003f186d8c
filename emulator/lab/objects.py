"""Kubernetes objects on their way in and out of a lab: what the user wishes, and what the lab says of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from emulator.cluster.model import Cluster
from emulator.cluster.workload_status import pods_by_owner, status_object, workload_numbers

Object = dict[str, Any]

POD_KIND, NAMESPACE_KIND, NODE_KIND = "Pod", "Namespace", "Node"
SERVED_BY = "cnilab.dev/served-by"  # annotation of every pod: who answers in it
_OF_THE_SERVER = ("uid", "creationTimestamp", "generation", "resourceVersion", "managedFields", "selfLink")
_STATUS_IS_OURS = ("Pod", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Namespace", "Service")

STATUSES = ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet")  # whose status the lab counts


class Deletion(NamedTuple):
    """When a pod must have ended (seconds since the epoch), and how long it was given for that."""

    deadline: float
    seconds: int


def as_given(obj: Object) -> Object:
    """``obj`` less what only the lab itself may say: a client that read it and sends it back does not wish for that.

    The API server ignores the same fields of what it is sent (metadata of its own, status outside of ``/status``).
    """
    metadata = {key: value for key, value in obj["metadata"].items() if key not in _OF_THE_SERVER}
    if SERVED_BY in (metadata.get("annotations") or {}):
        metadata["annotations"] = {key: value for key, value in metadata["annotations"].items() if key != SERVED_BY}
    plain = {**obj, "metadata": metadata}
    if obj["kind"] in _STATUS_IS_OURS:
        plain.pop("status", None)
    return plain


def with_status_of(obj: Object, held: Object | None) -> Object:
    """``obj`` with the status that the object of before had been given by way of its ``/status``."""
    return {**obj, "status": held["status"]} if held is not None and "status" in held else obj


def namespace_object(name: str, labels: dict[str, str], manifest: Object | None) -> Object:
    """A namespace as the API server completes it."""
    metadata: Object = {"name": name, "labels": {"kubernetes.io/metadata.name": name, **labels}}
    if manifest is not None and manifest["metadata"].get("annotations"):
        metadata["annotations"] = manifest["metadata"]["annotations"]
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": metadata,
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }


def with_numbers(workloads: Sequence[Object], cluster: Cluster) -> Iterator[Object]:
    """Workloads with their status."""
    owned = pods_by_owner(cluster) if workloads else {}
    for obj in workloads:
        yield {**obj, "status": status_object(obj["kind"], workload_numbers(cluster, obj, owned))}


def condition_ready(pod: Object) -> bool | None:
    """What a pod's condition Ready says; None if there is none."""
    conditions = (pod.get("status") or {}).get("conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, dict) and condition.get("type") == "Ready":
            return condition.get("status") == "True"
    return None


def terminating(pod: Object, deletion: Deletion) -> Object:
    """A pod that was deleted and has not ended yet."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(deletion.deadline))
    metadata = {**pod["metadata"], "deletionTimestamp": when, "deletionGracePeriodSeconds": deletion.seconds}
    return {**pod, "metadata": metadata}


def not_ready(obj: Object) -> Object:
    """A node that is down, or a pod on it, as the node lifecycle controller marks them (pkg/controller/nodelifecycle):
    the node's condition is unknown, its pods' is false."""
    node = obj["kind"] == "Node"
    ready = {"type": "Ready", "status": "Unknown" if node else "False"}
    if node:
        ready |= {"reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."}
    conditions = [ready if condition["type"] == "Ready" else condition for condition in obj["status"]["conditions"]]
    return {**obj, "status": {**obj["status"], "conditions": conditions}}
