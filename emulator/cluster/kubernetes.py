"""Pods and nodes as Kubernetes objects, with the status that ``get -o json``, ``yaml`` and ``wide`` show.

What has no meaning here is left out: resource usage, images' digests, probes' history. Nothing depends on
the clock, so that the same cluster gives the same objects.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from emulator.cluster.instance_types import instance_type
from emulator.cluster.model import PODS_PER_NODE_MAX, Container, Node, Pod
from emulator.cluster.workloads import TOPOLOGY_OWNER

Object = dict[str, Any]

_API_VERSIONS = {"ReplicaSet": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1"}
# Objects that were not checked against the API's rules need not name one; nothing is ever pulled
UNNAMED_IMAGE = "scratch"


def object_uid(kind: str, namespace: str, name: str) -> str:
    """A UID that is the same in each run, in the form of the API server's random ones."""
    return str(uuid.UUID(bytes=hashlib.sha256(f"{kind}/{namespace}/{name}".encode()).digest()[:16], version=4))


def pod_object(pod: Pod, node: Node) -> Object:
    """A running pod on its node, ready or not."""
    metadata: Object = {
        "name": pod.name,
        "namespace": pod.namespace,
        "uid": object_uid("Pod", pod.namespace, pod.name),
        "labels": dict(pod.labels),
    }
    if pod.annotations:
        metadata["annotations"] = dict(pod.annotations)
    kind, _, name = pod.owner.partition("/")
    if name and kind in _API_VERSIONS:
        metadata["ownerReferences"] = [
            {
                "apiVersion": _API_VERSIONS[kind],
                "kind": kind,
                "name": name,
                "uid": object_uid(kind, pod.namespace, name),
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    elif pod.owner == TOPOLOGY_OWNER:
        # No API object stands behind a topology's "pods: N", so no ownerReference can name it
        metadata.setdefault("annotations", {})["cnilab/made-by"] = "topology"
    spec: Object = {
        "nodeName": pod.node,
        "serviceAccountName": pod.service_account,
        "restartPolicy": pod.restart_policy,
        "containers": [_container(container) for container in pod.containers],
    }
    if pod.host_network:
        spec["hostNetwork"] = True
    if pod.hostname and pod.hostname != pod.name and not pod.host_network:
        spec["hostname"] = pod.hostname
    if pod.subdomain:
        spec["subdomain"] = pod.subdomain
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec,
        "status": {
            "phase": "Running",
            "podIP": pod.addresses[0] if pod.addresses else "",
            "podIPs": [{"ip": address} for address in pod.addresses],
            "hostIP": node.addresses[0],
            "hostIPs": [{"ip": address} for address in node.addresses],
            "conditions": [
                {"type": kind, "status": "True" if pod.ready or kind not in ("Ready", "ContainersReady") else "False"}
                for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
            ],
            "containerStatuses": [
                {"name": container.name, "ready": pod.ready, "started": True, "restartCount": 0}
                for container in pod.containers
            ],
            "qosClass": "BestEffort",
        },
    }


def _container(container: Container) -> Object:
    result: Object = {"name": container.name, "image": container.image or UNNAMED_IMAGE}
    if container.command:
        result["command"] = list(container.command)
    if container.arguments:
        result["args"] = list(container.arguments)
    if container.ports:
        result["ports"] = [
            {
                "containerPort": port.port,
                "protocol": port.protocol,
                **({"name": port.name} if port.name else {}),
                **({"hostPort": port.host_port} if port.host_port else {}),
            }
            for port in container.ports
        ]
    if container.env:
        result["env"] = [{"name": name, "value": value} for name, value in container.env]
    return result


def node_object(node: Node) -> Object:
    """A ready node. ``podCIDRs`` are its ranges, also if they are Calico's blocks (really kept apart); addresses of a
    cloud's network interfaces are none, and their number limits the pods."""
    ranges = () if node.enis else node.pod_ranges
    pods = str(_max_pods(node))
    addresses = [{"type": "InternalIP", "address": address} for address in node.addresses]
    spec: Object = {"podCIDR": ranges[0], "podCIDRs": list(ranges)} if ranges else {}
    metadata: Object = {"name": node.name, "uid": object_uid("Node", "", node.name), "labels": dict(node.labels)}
    if node.annotations:
        metadata["annotations"] = dict(node.annotations)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": spec,
        "status": {
            "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
            "capacity": {"pods": pods},
            "allocatable": {"pods": pods},
            "conditions": [
                {"type": "NetworkUnavailable", "status": "False", "reason": "NetworkIsReady"},
                {"type": "Ready", "status": "True", "reason": "KubeletReady"},
            ],
            "nodeInfo": {
                "architecture": node.labels.get("kubernetes.io/arch", ""),
                "operatingSystem": node.labels.get("kubernetes.io/os", ""),
            },
        },
    }


def _max_pods(node: Node) -> int:
    if not node.enis:
        return PODS_PER_NODE_MAX
    prefixes = any(not prefix.endswith("/32") for eni in node.enis for prefix in eni.prefixes)
    return instance_type(node.name, node.labels).max_pods(prefixes=prefixes)
