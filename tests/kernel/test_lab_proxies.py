"""A lab's service proxy: which one it is, and what becomes of UDP flows whose endpoint is gone."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.errors import InputError
from emulator.lab import Lab

pytestmark = [pytest.mark.requires("iptables", "conntrack")]


def service(name: str = "web", protocol: str = "UDP", **spec: Any) -> dict[str, Any]:
    port = {"port": 53, "targetPort": 8080, "protocol": protocol}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": "web"}, "ports": [port], **spec},
    }


def pod(name: str, node: str) -> dict[str, Any]:
    ports = [{"containerPort": 8080, "protocol": "UDP"}, {"containerPort": 8080}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "web", "ports": ports}]},
    }


def kube_proxy(text: str = "", **annotations: str) -> dict[str, Any]:
    head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system", "annotations": annotations},
        "data": {"config.conf": head + text},
    }


def udp_client(lab: Lab, address: str) -> str:
    """Which pod answers a client that keeps its port, as one asks again and again."""
    code = (
        "import socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('',4242)); s.settimeout(0.7)\n"
        f"s.sendto(b'hostname',('{address}',53))\n"
        "try: print(s.recv(99).decode())\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    return lab.run("n1-p1", "/usr/bin/python3", "-c", code).stdout.strip()


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize("cleaned", [True, False])
def test_udp_flow_moves_to_a_living_endpoint_only_if_its_entry_is_deleted(mode: str, cleaned: bool) -> None:
    told = kube_proxy(**{"cnilab.dev/conntrack-cleanup": "on" if cleaned else "off"})
    with Lab(cni=f"flannel+{mode}", manifests=[told, service(), pod("first", "n2")]) as lab:
        address = lab.get("service", "web")[0]["spec"]["clusterIP"]
        assert udp_client(lab, address) == "first"
        lab.apply(pod("second", "n3"))
        lab.delete("pod", "first")

        assert udp_client(lab, address) == ("second" if cleaned else "TimeoutError")


def test_proxy_begins_with_the_first_service_and_takes_its_mode_from_the_configmap() -> None:
    with Lab() as lab:
        assert "proxy" not in lab.status().choices
        assert "KUBE-SERVICES" not in lab.run("n1", "iptables-save").stdout
        lab.apply(kube_proxy("mode: nftables\n"), service(protocol="TCP"), pod("first", "n2"))
        assert "nftables" in lab.status().choices["proxy"]
        assert lab.probe("n1-p1", "service/web").result.answered_by == "first"
        assert "table ip kube-proxy" in lab.run("n1", "nft", "list", "tables").stdout

        lab.apply(kube_proxy("mode: iptables\nnodePortAddresses: [10.0.0.0/8]\n"))

        assert "iptables" in lab.status().choices["proxy"]
        assert "KUBE-SERVICES" in lab.run("n1", "iptables-save").stdout
        assert "kube-proxy" not in lab.run("n1", "nft", "list", "tables").stdout.replace("iptables", "")
        assert lab.probe("n1-p1", "service/web").result.answered_by == "first"
        assert lab.verify() == []


def test_wrong_configuration_is_refused_and_the_rules_stay() -> None:
    with Lab(manifests=[service(protocol="TCP"), pod("first", "n2")]) as lab:
        with pytest.raises(InputError, match="mode"):
            lab.apply(kube_proxy("mode: magic\n"))

        assert lab.probe("n1-p1", "service/web").result.answered_by == "first"
