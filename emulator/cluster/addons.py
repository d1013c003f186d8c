"""What a cluster has of itself once it has Services: the API server's own Service, and DNS.

The API server makes ``default/kubernetes`` and makes it again if somebody deletes it
(pkg/controlplane/controller/kubernetesservice); kubeadm deploys the rest once (cmd/kubeadm addons).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from emulator.cluster.model import Topology
from emulator.cluster.validation import parse_cidr

Object = dict[str, Any]

APISERVER_PORT = 6443  # kubeadm's
_PLACE = ("v1", "Service", "default", "kubernetes")


def kubernetes_service(topology: Topology) -> Object:
    """``default/kubernetes`` at the first address. It has no endpoints: no API server listens in a lab's network."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": str(parse_cidr(topology.service_cidrs[0])[1]),
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": APISERVER_PORT}],
            "sessionAffinity": "None",
        },
    }


def missing_addons(objects: Iterable[Object], addons: Sequence[Object], *, begun: bool, at_once: bool) -> list[Object]:
    """The addons to make now. All of them come with the first Service among ``objects``, or ``at_once``; one that the
    user has written is the user's. Of those that had ``begun`` before and were deleted, the API server's comes back.
    """
    if begun:
        gone = not any(thing["metadata"]["name"] == _PLACE[3] and _place(thing) == _PLACE for thing in objects)
        return [thing for thing in addons if gone and _place(thing) == _PLACE]
    there = {_place(thing) for thing in objects}
    if not at_once and not any(place[:2] == ("v1", "Service") for place in there):
        return []
    return [thing for thing in addons if _place(thing) not in there]


def _place(thing: Object) -> tuple[str, str, str, str]:
    metadata = thing["metadata"]
    return thing.get("apiVersion", ""), thing.get("kind", ""), metadata.get("namespace", ""), metadata["name"]
