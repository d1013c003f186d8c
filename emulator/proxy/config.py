"""What kube-proxy is told: the ConfigMap ``kube-system/kube-proxy``, key ``config.conf``, as kubeadm writes it.

Fields that change packets here are read; those that are of no consequence (clients, ports of metrics, log levels, sync
periods) are taken as they come; those that would change packets and are not emulated are refused.

Source: kubernetes/kube-proxy config/v1alpha1/types.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from emulator.cluster.decode import decode
from emulator.cluster.manifest_index import of_kinds
from emulator.cluster.strict_yaml import Malformed, documents
from emulator.cluster.validation import forbidden, invalid, parse_cidr, unsupported
from emulator.errors import ManifestError, Problem
from emulator.proxy.model import KUBE_PROXY_MODES, ProxyMode, ProxySettings

CONFIG_MAP, NAMESPACE, KEY = "kube-proxy", "kube-system", "config.conf"
SUBJECT = f"ConfigMap {NAMESPACE}/{CONFIG_MAP}"
MASQUERADE_BIT = 14
# Not of kube-proxy: whether stale UDP entries are removed, "on" or "off", to see what they do
CLEANUP = "cnilab.dev/conntrack-cleanup"


class Told(NamedTuple):
    """The configuration's mode, empty where it leaves it open, and settings."""

    mode: ProxyMode | None
    settings: ProxySettings


class _Iptables(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    masquerade_all: bool | None = None
    masquerade_bit: int | None = None
    localhost_node_ports: bool | None = None
    sync_period: Any = None
    min_sync_period: Any = None


class _Nftables(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    masquerade_all: bool | None = None
    masquerade_bit: int | None = None
    sync_period: Any = None
    min_sync_period: Any = None


class _Ipvs(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    scheduler: str | None = None
    exclude_cidrs: list[str] | None = msgspec.field(name="excludeCIDRs", default=None)
    strict_arp: bool | None = msgspec.field(name="strictARP", default=None)
    tcp_timeout: Any = None
    tcp_fin_timeout: Any = None
    udp_timeout: Any = None
    sync_period: Any = None
    min_sync_period: Any = None


class _Conntrack(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    max_per_core: Any = None
    min: Any = None
    tcp_established_timeout: Any = None
    tcp_close_wait_timeout: Any = None
    tcp_be_liberal: bool | None = None
    udp_timeout: Any = None
    udp_stream_timeout: Any = None


class _Config(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    api_version: str
    kind: str
    mode: str | None = None
    cluster_cidr: str | None = msgspec.field(name="clusterCIDR", default=None)
    detect_local_mode: str | None = None
    detect_local: Any = None
    node_port_addresses: list[str] | None = None
    iptables: _Iptables | None = None
    nftables: _Nftables | None = None
    ipvs: _Ipvs | None = None
    conntrack: _Conntrack | None = None
    # Of no consequence here
    feature_gates: Any = None
    client_connection: Any = None
    logging: Any = None
    hostname_override: Any = None
    bind_address: Any = None
    healthz_bind_address: Any = None
    metrics_bind_address: Any = None
    bind_address_hard_fail: Any = None
    enable_profiling: Any = None
    show_hidden_metrics_for_version: Any = None
    winkernel: Any = None
    oom_score_adj: Any = None
    config_sync_period: Any = None
    port_range: Any = None
    windows_run_as_service: Any = None


def read(objects: Sequence[dict[str, Any]], default: ProxySettings) -> Told:
    """The configuration among ``objects``, over ``default``. Raises ManifestError."""
    for obj in of_kinds(objects, ("v1", "ConfigMap")):
        metadata = obj.get("metadata", {})
        if (metadata.get("namespace"), metadata.get("name")) == (NAMESPACE, CONFIG_MAP):
            return _Reader(default).read(obj)
    return Told(None, default)


class _Reader:
    def __init__(self, default: ProxySettings) -> None:
        self._default = default
        self._problems: list[Problem] = []

    def read(self, obj: dict[str, Any]) -> Told:
        annotation = (obj["metadata"].get("annotations") or {}).get(CLEANUP, "on")
        if annotation not in ("on", "off"):
            path = f"metadata.annotations[{CLEANUP}]"
            self._problems.append(Problem("", SUBJECT, path, unsupported(annotation, ("on", "off"))))
        told = Told(None, self._default)
        text = (obj.get("data") or {}).get(KEY)
        if text is not None:
            told = self._told(text)
        if self._problems:
            raise ManifestError(self._problems)
        return told._replace(settings=msgspec.structs.replace(told.settings, clean_conntrack=annotation == "on"))

    def _told(self, text: str) -> Told:
        try:
            found = [document.value for document in documents(text)]
        except Malformed as error:
            self._fault("", f"is no YAML: {error}")
            return Told(None, self._default)
        if len(found) != 1:
            self._fault("", f"expected one document, got {len(found)}")
            return Told(None, self._default)
        config, faults = decode(found[0], _Config)
        for path, reason in faults:
            self._fault(path, reason)
        if config is None:
            return Told(None, self._default)
        if (config.api_version, config.kind) != ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration"):
            wanted = "KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1"
            self._fault("kind", f"expected {wanted}, got {config.kind} of {config.api_version}")
        self._refuse(config)
        return Told(self._mode(config), self._settings(config))

    def _mode(self, config: _Config) -> ProxyMode | None:
        if not config.mode:
            return None
        for mode in KUBE_PROXY_MODES:
            if mode == config.mode:
                return mode
        self._fault("mode", unsupported(config.mode, KUBE_PROXY_MODES))
        return None

    def _refuse(self, config: _Config) -> None:
        for section, bit in (("iptables", config.iptables), ("nftables", config.nftables)):
            if bit is not None and bit.masquerade_bit not in (None, MASQUERADE_BIT):
                self._fault(f"{section}.masqueradeBit", forbidden(f"only {MASQUERADE_BIT}, the default, is emulated"))
        if config.detect_local_mode not in (None, "", "ClusterCIDR"):
            self._fault("detectLocalMode", forbidden("only ClusterCIDR, the default, is emulated"))
        scheduler = config.ipvs.scheduler if config.ipvs is not None else None
        if scheduler not in (None, "", "rr"):
            self._fault("ipvs.scheduler", forbidden("only rr, the default, is emulated"))

    def _settings(self, config: _Config) -> ProxySettings:
        iptables, nftables, conntrack = config.iptables, config.nftables, config.conntrack
        everything = [section.masquerade_all for section in (iptables, nftables) if section is not None]
        localhost = iptables.localhost_node_ports if iptables is not None else None
        liberal = conntrack.tcp_be_liberal if conntrack is not None else None
        pods = self._cidrs("clusterCIDR", config.cluster_cidr.split(",") if config.cluster_cidr else [])
        ports = config.node_port_addresses or []
        return msgspec.structs.replace(
            self._default,
            pod_cidrs=pods or self._default.pod_cidrs,
            masquerade_all=any(everything),
            localhost_node_ports=self._default.localhost_node_ports if localhost is None else localhost,
            node_port_cidrs=("primary",) if ports == ["primary"] else self._cidrs("nodePortAddresses", ports),
            tcp_be_liberal=bool(liberal),
        )

    def _cidrs(self, path: str, texts: Sequence[str]) -> tuple[str, ...]:
        found = []
        for text in texts:
            try:
                found.append(str(parse_cidr(text.strip())))
            except ValueError as error:
                self._fault(path, invalid(text, str(error)))
        return tuple(found)

    def _fault(self, path: str, reason: str) -> None:
        place = f"data[{KEY}]" + (f": {path}" if path else "")
        self._problems.append(Problem("", SUBJECT, place, reason))
