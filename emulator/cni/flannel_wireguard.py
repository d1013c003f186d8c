"""Flannel's backend ``wireguard``: an encrypted tunnel that one route leads into, and a peer for every other node.

::

    cni0 ── route 10.244.0.0/16 dev flannel-wg ── encrypted: UDP 51820 ═══════ flannel-wg ── cni0
                      which peer: the one whose allowed-ips hold the destination

Mode ``separate`` (the default) makes a device for each family, ``flannel-wg`` and ``flannel-wg-v6``, each over its own
family; ``ipv4``, ``ipv6`` and ``auto`` make one for both, over the family that they name or over IPv4 unless only the
other node's IPv6 address is a public one.

flanneld makes a random key on each node and publishes its public half in the node's annotation ``backend-data``. Here a
node's key is a hash of its name: nothing is secret in an emulator, and a plan must be the same each time.

Sources: flannel-io/flannel pkg/backend/wireguard (wireguard.go, wireguard_network.go, device.go).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv6Address, ip_address, ip_network

from emulator.cluster.model import Cluster, Node
from emulator.cni.flannel_network import FLANNELD, vtep_address
from emulator.cni.flannel_settings import Settings
from emulator.errors import UserError
from emulator.plan.addressing import families_of, host_prefix, of_family
from emulator.plan.model import Address, AnyObject, Daemon, Family, File, Route, Wireguard, WireguardPeer

DEVICE: dict[Family, str] = {4: "flannel-wg", 6: "flannel-wg-v6"}
KEY_FILE = "/run/flannel/wgkey"
USERSPACE = "wireguard-go"
STAND_IN = "wireguard-go (stand-in for the kernel's WireGuard)"

# ip.IP4.IsPrivate, ip.IP6.IsPrivate: RFC 1918, RFC 4193
_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))


def check_wireguard(cluster: Cluster, settings: Settings) -> None:
    """Raises UserError where a node lacks an address of the family that its tunnel is to go over."""
    if settings.tunnels not in ("ipv4", "ipv6"):
        return
    family: Family = 4 if settings.tunnels == "ipv4" else 6
    for node in cluster.nodes:
        if not of_family(node.addresses, family):
            raise UserError(
                f"flannel's wireguard mode {settings.tunnels} needs IPv{family} on nodes: {node.name} has none",
                hint="Backend.Mode: separate, or a topology with dual-stack links",
            )


def wireguard_backend(cluster: Cluster, node: Node, settings: Settings) -> Iterator[AnyObject]:
    """The devices, what serves them where the kernel does not, the route into each, and the other nodes as peers."""
    families = families_of(cluster.topology.pod_cidrs)
    yield File(
        ns=node.ns,
        path=KEY_FILE,
        content=private_key(node.name),
        mode=0o400,
        component=FLANNELD,
        why="this node's private key, kept over restarts of flanneld",
    )
    for device, carried in _devices(families, settings):
        yield from _device(cluster, node, device, carried, settings)
        for peer in cluster.nodes:
            if peer.name != node.name:
                yield _peer(node, peer, device, carried, settings)


def _devices(families: tuple[Family, ...], settings: Settings) -> list[tuple[str, tuple[Family, ...]]]:
    """Each device with the families that it carries."""
    if settings.tunnels == "separate":
        return [(DEVICE[family], (family,)) for family in families]
    return [(DEVICE[4], families)]


def _device(
    cluster: Cluster, node: Node, device: str, carried: tuple[Family, ...], settings: Settings
) -> Iterator[AnyObject]:
    yield Wireguard(
        ns=node.ns,
        name=device,
        mtu=settings.device_mtu(node.mtu, carried[0]),
        port=_port(device, settings),
        private_key=private_key(node.name),
        userspace=settings.userspace,
        component=STAND_IN if settings.userspace else FLANNELD,
        why="the tunnel's end: encrypts for the peer whose allowed-ips hold the destination",
    )
    if settings.userspace:
        yield Daemon(
            ns=node.ns,
            name=device,
            argv=(USERSPACE, "-f", device),
            ready_socket=f"/run/wireguard/{device}.sock",
            component=STAND_IN,
            why=f"encrypts what {device} is given and sends it by UDP: this kernel has no WireGuard",
        )
    for family in carried:
        yield Address(
            ns=node.ns,
            device=device,
            address=host_prefix(vtep_address(node, family)),
            component=FLANNELD,
            why="source of node to remote pod; a host prefix, so that no broadcast route appears",
        )
        yield Route(
            ns=node.ns,
            destination=of_family(cluster.topology.pod_cidrs, family),
            device=device,
            scope="link",
            component=FLANNELD,
            why="the whole cluster network; the node's own subnet is more specific, on cni0",
        )


def _peer(node: Node, peer: Node, device: str, carried: tuple[Family, ...], settings: Settings) -> WireguardPeer:
    return WireguardPeer(
        ns=node.ns,
        device=device,
        public_key=public_key(peer.name),
        endpoint=_endpoint(node, peer, carried, settings, _port(device, settings)),
        allowed_ips=tuple(of_family(peer.pod_ranges, family) for family in carried),
        preshared_key=settings.preshared_key,
        keepalive=settings.keepalive,
        component=FLANNELD,
        why=f"pods of {peer.name}: encrypted for its key, to its address",
    )


def _port(device: str, settings: Settings) -> int:
    return settings.port_v6 if device == DEVICE[6] else settings.port


def _endpoint(node: Node, peer: Node, carried: tuple[Family, ...], settings: Settings, port: int) -> str:
    v4, v6 = of_family(peer.addresses, 4), of_family(peer.addresses, 6)
    if settings.tunnels == "separate":
        address = of_family(peer.addresses, carried[0])
    elif settings.tunnels in ("ipv4", "ipv6"):
        address = v4 if settings.tunnels == "ipv4" else v6
    elif not (v4 and v6):
        address = v4 or v6
    else:  # wireguard_network.go: selectPublicEndpoint
        own_v4, own_v6 = of_family(node.addresses, 4), of_family(node.addresses, 6)
        public_v6 = not _is_private(v6) and bool(own_v6) and not _is_private(own_v6)
        address = v6 if public_v6 and not (own_v4 and not _is_private(v4)) else v4
    return f"[{address}]:{port}" if isinstance(ip_address(address), IPv6Address) else f"{address}:{port}"


def _is_private(address: str) -> bool:
    return any(ip_address(address) in network for network in _PRIVATE)


@cache
def private_key(owner: str) -> str:
    """The key of a node, in base64: a hash of its name, its bits set as Curve25519 wants them (RFC 7748, section 5)."""
    raw = bytearray(hashlib.sha256(f"cnilab wireguard {owner}".encode()).digest())
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    return base64.b64encode(raw).decode()


@cache
def public_key(owner: str) -> str:
    """The public half of :func:`private_key`, in base64."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # for this backend alone

    private = X25519PrivateKey.from_private_bytes(base64.b64decode(private_key(owner)))
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()
