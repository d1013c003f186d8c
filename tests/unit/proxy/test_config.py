"""kube-proxy's configuration: what is read, and what is refused with its place."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.errors import ManifestError
from emulator.proxy.config import read
from emulator.proxy.model import ProxySettings

DEFAULT = ProxySettings(pod_cidrs=("10.244.0.0/16",), service_cidrs=("10.96.0.0/12",))
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
KUBEADM = """\
bindAddress: 0.0.0.0
clientConnection: {acceptContentTypes: "", burst: 0, kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}
clusterCIDR: 10.200.0.0/16
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: true, tcpCloseWaitTimeout: null}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
iptables: {localhostNodePorts: false, masqueradeAll: true, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, scheduler: "", strictARP: false}
metricsBindAddress: ""
mode: nftables
nodePortAddresses: [192.168.50.0/24]
oomScoreAdj: null
"""


def config_map(text: str, **annotations: str) -> dict[str, Any]:
    metadata = {"name": "kube-proxy", "namespace": "kube-system", "annotations": annotations}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.conf": text}}


def test_what_kubeadm_writes_is_read() -> None:
    told = read([config_map(HEAD + KUBEADM)], DEFAULT)

    assert told.mode == "nftables"
    assert told.settings == ProxySettings(
        pod_cidrs=("10.200.0.0/16",),
        service_cidrs=DEFAULT.service_cidrs,
        masquerade_all=True,
        localhost_node_ports=False,
        node_port_cidrs=("192.168.50.0/24",),
        tcp_be_liberal=True,
    )


def test_without_a_config_map_or_key_the_defaults_hold() -> None:
    other = config_map(HEAD)
    other["metadata"]["namespace"] = "default"
    empty = config_map(HEAD)
    empty["data"] = {"kubeconfig.conf": "x"}

    assert read([], DEFAULT) == read([other], DEFAULT) == read([empty], DEFAULT) == (None, DEFAULT)


@pytest.mark.parametrize(("value", "clean"), [("on", True), ("off", False)])
def test_clean_up_of_flows_is_switched_by_an_annotation(value: str, clean: bool) -> None:
    assert (
        read([config_map(HEAD, **{"cnilab.dev/conntrack-cleanup": value})], DEFAULT).settings.clean_conntrack is clean
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (HEAD + "mode: magic\n", "mode"),
        (HEAD + "mode: none\n", "mode"),
        (HEAD + "clusterCIDR: 10.0.0.0\n", "clusterCIDR"),
        (HEAD + "iptables: {masqueradeBit: 13}\n", "iptables.masqueradeBit"),
        (HEAD + "iptables: {masqueradeAl: true}\n", "iptables.masqueradeAl"),
        (HEAD + "detectLocalMode: NodeCIDR\n", "detectLocalMode"),
        (HEAD + "ipvs: {scheduler: lc}\n", "ipvs.scheduler"),
        (HEAD + "nodePortAddresses: ['10.0.0.1; rm']\n", "nodePortAddresses"),
        (HEAD + "mode: [\n", "is no YAML"),
        (HEAD + "---\nmode: iptables\n", "one document"),
        ("mode: iptables\n", "apiVersion"),
        ("apiVersion: v1\nkind: KubeProxyConfiguration\n", "kind"),
    ],
)
def test_wrong_configuration_is_refused_with_its_place(text: str, path: str) -> None:
    with pytest.raises(ManifestError) as error:
        read([config_map(text)], DEFAULT)

    assert "ConfigMap kube-system/kube-proxy" in str(error.value)
    assert path in str(error.value)


def test_unknown_switch_of_the_clean_up_is_refused() -> None:
    with pytest.raises(ManifestError, match="conntrack-cleanup"):
        read([config_map(HEAD, **{"cnilab.dev/conntrack-cleanup": "maybe"})], DEFAULT)
