"""What flanneld is told: the ConfigMap ``kube-flannel-cfg``, key ``net-conf.json``, or else the name of a mode.

Sources: flannel-io/flannel Documentation/configuration.md, Documentation/backends.md, Documentation/kube-flannel.yml,
pkg/backend/vxlan/vxlan.go and pkg/backend/wireguard/wireguard.go (defaults), pkg/subnet/config.go.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from emulator.cluster.decode import decode
from emulator.cluster.manifest_index import of_kinds
from emulator.cluster.validation import forbidden, invalid, unsupported
from emulator.errors import ManifestError, Problem
from emulator.plan.addressing import families_of, of_family
from emulator.plan.model import Family

Backend = Literal["vxlan", "host-gw", "udp", "ipip", "wireguard"]
WireguardMode = Literal["separate", "auto", "ipv4", "ipv6"]
NAMESPACES = ("kube-flannel", "kube-system")  # of the manifest, since v0.19 and before
CONFIG_MAP, KEY = "kube-flannel-cfg", "net-conf.json"

VNI = 1  # vxlan.go: defaultVNI
VXLAN_PORT = 8472  # UDP; the configuration's 0 means the kernel's own default (drivers/net/vxlan)
UDP_PORT = 8285  # udp.go: defaultPort
WIREGUARD_PORT, WIREGUARD_PORT_V6 = 51820, 51821  # UDP; wireguard.go
WIREGUARD_KEY = 32  # bytes (Curve25519)
WIREGUARD_MODES: tuple[WireguardMode, ...] = ("separate", "auto", "ipv4", "ipv6")
OVERHEAD: dict[Backend, dict[Family, int]] = {
    "vxlan": {
        4: 50,  # bytes: 14 inner Ethernet + 20 IPv4 + 8 UDP + 8 VXLAN (RFC 7348)
        6: 70,  # 40 IPv6 in place of 20
    },
    "host-gw": {4: 0, 6: 0},
    "udp": {4: 28},  # 20 IPv4 + 8 UDP (udp_network_amd64.go: encapOverhead)
    "ipip": {4: 20},  # an IPv4 header (RFC 2003)
    # 40 IPv6 + 8 UDP + 16 WireGuard + 16 authentication tag, over IPv4 too (wireguard_network.go: overhead)
    "wireguard": {4: 80, 6: 80},
}


@dataclass(frozen=True)
class Settings:
    """How flanneld carries packets. ``direct``: without a tunnel where nodes share a subnet (DirectRouting).

    ``mtu`` is that of the wire in bytes, 0 for the node's own; ``nftables``: rules in tables of flanneld's own.
    Of the backend wireguard: ``tunnels`` is its ``Mode``, ``port_v6`` the port of the second device in mode separate,
    ``preshared_key`` in base64, ``keepalive`` in seconds; ``userspace``: wireguard-go stands in for the kernel's.
    """

    backend: Backend = "vxlan"
    direct: bool = False
    vni: int = VNI
    port: int = VXLAN_PORT
    mtu: int = 0
    learning: bool = False
    nftables: bool = False
    tunnels: WireguardMode = "separate"
    port_v6: int = WIREGUARD_PORT_V6
    preshared_key: str = ""
    keepalive: int = 0
    userspace: bool = False

    def device_mtu(self, wire: int, family: Family) -> int:
        """The MTU of the tunnel's device on a wire with an MTU of ``wire`` bytes."""
        return (self.mtu or wire) - OVERHEAD[self.backend].get(family, 0)

    def pod_mtu(self, wire: int, families: Sequence[Family]) -> int:
        """What fits through the tunnel of every family in use."""
        return min(self.device_mtu(wire, family) for family in families)


class _Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="pascal", kw_only=True):
    type: str
    vni: int | None = msgspec.field(name="VNI", default=None)
    port: int | None = None
    mtu: int | None = msgspec.field(name="MTU", default=None)
    direct_routing: bool | None = None
    learning: bool | None = None
    listen_port: int | None = None
    listen_port_v6: int | None = None
    preshared_key: str | None = msgspec.field(name="PSK", default=None)
    persistent_keepalive_interval: int | None = None
    mode: str | None = None


class _NetConf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="pascal", kw_only=True):
    network: str | None = None
    ipv6_network: str | None = msgspec.field(name="IPv6Network", default=None)
    enable_ipv4: bool | None = msgspec.field(name="EnableIPv4", default=None)
    enable_ipv6: bool | None = msgspec.field(name="EnableIPv6", default=None)
    enable_nftables: bool | None = msgspec.field(name="EnableNFTables", default=None)
    # The kube subnet manager takes each node's podCIDR, whatever these say.
    subnet_len: int | None = None
    subnet_min: str | None = None
    subnet_max: str | None = None
    backend: _Backend | None = None


NOT_EMULATED = ("Backend.GBP", "Backend.MacPrefix")


def read_settings(objects: Sequence[dict[str, Any]], pod_cidrs: tuple[str, ...], default: Settings) -> Settings:
    """The settings in the ConfigMap among ``objects``, over those of the mode. Raises ManifestError."""
    for obj in of_kinds(objects, ("v1", "ConfigMap")):
        metadata = obj.get("metadata", {})
        if metadata.get("name") == CONFIG_MAP and metadata.get("namespace") in NAMESPACES:
            return _Reader(f"ConfigMap {metadata['namespace']}/{CONFIG_MAP}").read(obj, pod_cidrs, default)
    return default


class _Reader:
    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._problems: list[Problem] = []

    def read(self, obj: dict[str, Any], pod_cidrs: tuple[str, ...], default: Settings) -> Settings:
        text = (obj.get("data") or {}).get(KEY)
        try:
            value = json.loads(text) if isinstance(text, str) else None
        except ValueError as error:
            raise ManifestError([Problem("", self._subject, f"data.{KEY}", f"is no JSON: {error}")]) from None
        conf, faults = decode(value, _NetConf)
        for path, reason in faults:
            emulated = not (reason.startswith("unknown field") and path in NOT_EMULATED)
            self._fault(path, reason if emulated else forbidden("not emulated"))
        found = self._settings(conf, pod_cidrs, default) if conf is not None else default
        if self._problems:
            raise ManifestError(self._problems)
        return found

    def _fault(self, path: str, reason: str) -> None:
        place = f"data.{KEY}" + (f": {path}" if path else "")
        self._problems.append(Problem("", self._subject, place, reason))

    def _settings(self, conf: _NetConf, pod_cidrs: tuple[str, ...], default: Settings) -> Settings:
        families = families_of(pod_cidrs)
        wanted: tuple[tuple[str, Family, str | None, str, bool], ...] = (
            ("Network", 4, conf.network, "EnableIPv4", conf.enable_ipv4 is not False),
            ("IPv6Network", 6, conf.ipv6_network, "EnableIPv6", conf.enable_ipv6 is True),
        )
        for path, family, network, switch, on in wanted:
            if network and network != of_family(pod_cidrs, family):
                said = f"the topology's podCIDRs are {', '.join(pod_cidrs)}: flanneld and the cluster must agree"
                self._fault(path, invalid(network, said))
            if on != (family in families) and (switch == "EnableIPv6" or conf.enable_ipv4 is not None):
                has = "has" if family in families else "has no"
                self._fault(switch, invalid(on, f"the topology {has} IPv{family} pod CIDR"))
        found = replace(default, nftables=bool(conf.enable_nftables) or default.nftables)
        return self._backend(conf.backend, found) if conf.backend is not None else found

    def _backend(self, given: _Backend, found: Settings) -> Settings:
        backend = next((name for name in OVERHEAD if name == given.type), None)
        if backend is None:
            if given.type in ("ipsec", "alloc", "extension", "tencent-vpc"):
                self._fault("Backend.Type", forbidden(f"the backend {given.type} is not emulated"))
            else:
                self._fault("Backend.Type", unsupported(given.type, OVERHEAD))
            return found
        vni = VNI if given.vni is None else given.vni
        if not 0 < vni < 1 << 24:
            self._fault("Backend.VNI", invalid(vni, "must be between 1 and 16777215"))
        if given.port is not None and not 0 <= given.port < 1 << 16:
            self._fault("Backend.Port", invalid(given.port, "must be between 0 and 65535"))
        mtu = given.mtu or 0
        if mtu and not 576 <= mtu <= 65535:
            self._fault("Backend.MTU", invalid(mtu, "must be between 576 and 65535"))
        if given.direct_routing and backend not in ("vxlan", "ipip"):
            self._fault("Backend.DirectRouting", forbidden(f"the backend {backend} knows nothing of it"))
        if backend == "wireguard":
            return self._wireguard(given, replace(found, backend=backend, direct=False, mtu=mtu))
        for path, value in _of_wireguard(given):
            if value is not None:
                self._fault(path, forbidden(f"the backend {backend} knows nothing of it"))
        return replace(
            found,
            backend=backend,
            direct=bool(given.direct_routing),
            vni=vni,
            port=given.port or (UDP_PORT if backend == "udp" else VXLAN_PORT),
            mtu=mtu,
            learning=bool(given.learning),
        )

    def _wireguard(self, given: _Backend, found: Settings) -> Settings:
        for path, value in (("VNI", given.vni), ("Port", given.port), ("Learning", given.learning)):
            if value is not None:
                self._fault(f"Backend.{path}", forbidden("the backend wireguard knows nothing of it"))
        ports = (
            ("ListenPort", WIREGUARD_PORT if given.listen_port is None else given.listen_port),
            ("ListenPortV6", WIREGUARD_PORT_V6 if given.listen_port_v6 is None else given.listen_port_v6),
        )
        for path, port in ports:
            if not 0 < port < 1 << 16:  # with 0 the kernel would take any, and the peers could not know which
                self._fault(f"Backend.{path}", invalid(port, "must be between 1 and 65535"))
        keepalive = given.persistent_keepalive_interval or 0
        if not 0 <= keepalive < 1 << 16:
            self._fault("Backend.PersistentKeepaliveInterval", invalid(keepalive, "must be between 0 and 65535"))
        if given.preshared_key and not _is_key(given.preshared_key):
            self._fault(
                "Backend.PSK", invalid("(hidden)", f"must be {WIREGUARD_KEY} bytes in base64, as of `wg genpsk`")
            )
        tunnels = next((mode for mode in WIREGUARD_MODES if mode == (given.mode or "separate")), None)
        if tunnels is None:
            self._fault("Backend.Mode", unsupported(given.mode, WIREGUARD_MODES))
        return replace(
            found,
            port=ports[0][1],
            port_v6=ports[1][1],
            keepalive=keepalive,
            preshared_key=given.preshared_key or "",
            tunnels=tunnels or "separate",
        )


def _of_wireguard(given: _Backend) -> tuple[tuple[str, object], ...]:
    """What only the backend wireguard reads."""
    return (
        ("Backend.ListenPort", given.listen_port),
        ("Backend.ListenPortV6", given.listen_port_v6),
        ("Backend.PSK", given.preshared_key),
        ("Backend.PersistentKeepaliveInterval", given.persistent_keepalive_interval),
        ("Backend.Mode", given.mode),
    )


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == WIREGUARD_KEY
    except ValueError:
        return False
