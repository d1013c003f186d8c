"""What a cluster has of itself once it has Services: the API server's own Service, and DNS.

The API server makes ``default/kubernetes`` and makes it again if somebody deletes it
(pkg/controlplane/controller/kubernetesservice); kubeadm deploys the rest once (cmd/kubeadm addons).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def missing_addons(
    addons: Sequence[Object], is_there: Callable[[Object], bool], *, begun: bool, wanted: bool
) -> list[Object]:
    """The addons to make now: all, once they are ``wanted``. Not one that ``is_there`` already: what the user has
    written is the user's. Of those that had ``begun`` before and were deleted, the API server's comes back.
    """
    if begun:
        return [thing for thing in addons if _place(thing) == _PLACE and not is_there(thing)]
    return [thing for thing in addons if wanted and not is_there(thing)]


def _place(thing: Object) -> tuple[str, str, str, str]:
    metadata = thing["metadata"]
    return thing.get("apiVersion", ""), thing.get("kind", ""), metadata.get("namespace", ""), metadata["name"]
