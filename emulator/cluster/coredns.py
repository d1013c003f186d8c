"""The objects of CoreDNS as kubeadm installs them, labelled as the stand-in that they are in a lab.

kubernetes/kubernetes ``cmd/kubeadm/app/phases/addons/dns/manifests.go``: Deployment ``coredns`` with two replicas and
Service ``kube-dns`` at the tenth address of the service CIDR. What answers in the pods is cnilab's own server
(``emulator.dns``), not CoreDNS.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from emulator.cluster.model import Pod

Object = dict[str, Any]

NAMESPACE = "kube-system"
DEPLOYMENT = "coredns"
SERVICE = "kube-dns"
CLUSTER_DOMAIN = "cluster.local"
LABELS = {"k8s-app": "kube-dns"}
REPLICAS = 2
IMAGE = "registry.k8s.io/coredns/coredns:v1.12.0"  # kubeadm 1.33's
STAND_IN = "cnilab.dev/stand-in"  # annotation of whatever only looks like the real thing
SAYS = "cnilab's DNS server answers here as CoreDNS does with kubeadm's Corefile"


def dns_address(service_cidr: str) -> str:
    """The ClusterIP of ``kube-dns``: the tenth address (kubeadm, ``constants.GetDNSIP``). IndexError if the CIDR is too
    small."""
    return str(ip_network(service_cidr)[10])


def coredns_objects(service_cidr: str, replicas: int = REPLICAS) -> list[Object]:
    """Deployment and Service, as manifests. ``service_cidr`` is the cluster's first."""
    stand_in = {STAND_IN: SAYS}
    ports = [("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP")]
    container: Object = {
        "name": "coredns",
        "image": IMAGE,
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"name": name, "containerPort": port, "protocol": protocol} for name, port, protocol in ports],
    }
    deployment: Object = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": DEPLOYMENT, "namespace": NAMESPACE, "labels": LABELS, "annotations": stand_in},
        "spec": {
            "replicas": replicas,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "selector": {"matchLabels": LABELS},
            "template": {
                "metadata": {"labels": LABELS, "annotations": stand_in},
                "spec": {
                    "dnsPolicy": "Default",
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "serviceAccountName": "coredns",
                    "containers": [container],
                },
            },
        },
    }
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": SERVICE,
            "namespace": NAMESPACE,
            "labels": {**LABELS, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
            "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true", **stand_in},
        },
        "spec": {
            "clusterIP": dns_address(service_cidr),
            "selector": LABELS,
            "ports": [
                {"name": name, "port": port, "protocol": protocol, "targetPort": port} for name, port, protocol in ports
            ],
        },
    }
    return [deployment, service]


def serves_dns(pod: Pod) -> bool:
    """Whether a pod is one of CoreDNS', be it ours or a user's: cnilab's DNS server answers in it."""
    return pod.namespace == NAMESPACE and pod.labels.get("k8s-app") == LABELS["k8s-app"] and not pod.host_network
