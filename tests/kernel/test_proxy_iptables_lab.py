"""kube-proxy's iptables mode in a lab: flushed rules come back, and the back end is what was asked for."""

from __future__ import annotations

import time
from typing import Any

import pytest

from emulator.lab import Lab

BACKENDS = [
    pytest.param("nft", marks=pytest.mark.requires("iptables-nft")),
    pytest.param("legacy", marks=pytest.mark.requires("iptables-legacy")),
]
PATIENCE = 60.0  # seconds; the proxy looks every thirty
WEB: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
}
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {"nodeName": "n2", "containers": [{"name": "web", "image": "web", "ports": [{"containerPort": 8080}]}]},
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_flushed_rules_come_back_by_themselves(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNILAB_IPTABLES", backend)
    with Lab(cni="flannel+iptables", manifests=[WEB, POD]) as lab:
        assert lab.status().choices["iptables"] == {"nft": "nf_tables", "legacy": "legacy"}[backend]
        assert lab.probe("n1-p1", "service/web").reached

        for table in ("filter", "nat", "mangle"):
            for verb in ("-F", "-X"):
                lab.run("node/n1", f"/usr/sbin/iptables-{backend}", "-t", table, verb)
        assert not lab.probe("n1-p1", "service/web").reached

        end = time.monotonic() + PATIENCE
        while not (told := [line for line in lab.status().notices if "canary" in line]) and time.monotonic() < end:
            time.sleep(1.0)
        assert len(told) == 1
        assert "node/n1: iptables: kube-proxy" in told[0]
        assert lab.probe("n1-p1", "service/web").reached
