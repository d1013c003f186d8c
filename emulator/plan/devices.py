"""The plan's namespaces, and what rtnetlink, ethtool, tc and /proc/sys know of in them: devices, addresses, neighbours,
routes, settings."""

from __future__ import annotations

from typing import Literal, TypeAlias

from emulator.plan.object import Family, Key, PlanObject


class Namespace(PlanObject, frozen=True, kw_only=True):
    """A network namespace. ``role`` decides who makes it: Mininet all but the pods."""

    role: Literal["node", "router", "host", "pod", "underlay"]
    hostname: str

    @property
    def key(self) -> Key:
        return ("namespace", self.ns)


class Veth(PlanObject, frozen=True, kw_only=True):
    """A virtual Ethernet pair: ``name`` in ``ns`` and ``peer`` in ``peer_ns``, both up.

    An empty MAC leaves the choice to the kernel. ``peer_why`` explains the far end. ``peer_mtu`` is the far
    end's MTU in bytes where it differs from ``mtu`` (0: the same).
    """

    name: str
    peer_ns: str
    peer: str
    mtu: int
    mac: str = ""
    peer_mac: str = ""
    peer_why: str = ""
    peer_mtu: int = 0

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.name)


class Bridge(PlanObject, frozen=True, kw_only=True):
    """A Linux bridge, up, without spanning tree."""

    name: str
    mtu: int
    mac: str = ""

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.name)


class Vxlan(PlanObject, frozen=True, kw_only=True):
    """A VXLAN device, up. ``local`` is the outer source address, ``underlay`` the device beneath."""

    name: str
    vni: int
    port: int
    local: str
    underlay: str
    mtu: int
    mac: str = ""
    learning: bool = False

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.name)


class Ipip(PlanObject, frozen=True, kw_only=True):
    """An IP-in-IP device, up; the outer header has the inner one's TTL and, unless ``path_mtu_discovery`` sets it
    always, its don't-fragment bit.

    Without a ``remote`` a route's gateway is the outer destination; without ``local`` the kernel chooses the source.
    """

    name: str
    mtu: int
    local: str = ""
    remote: str = ""
    path_mtu_discovery: bool = False

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.name)


class Tun(PlanObject, frozen=True, kw_only=True):
    """A persistent TUN device, up: a process of the namespace reads and writes its packets."""

    name: str
    mtu: int

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.name)


class Dummy(PlanObject, frozen=True, kw_only=True):
    """A device that leads nowhere and holds addresses, which are the namespace's own even while it is down."""

    name: str
    up: bool = True
    mtu: int = 1500

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.name)


class Wireguard(PlanObject, frozen=True, kw_only=True):
    """A WireGuard device, up, that listens on UDP ``port``; ``private_key`` in base64, as wg(8) writes it.

    ``userspace``: a TUN device that the process wireguard-go, a daemon of the same plan, serves in the kernel's place.
    """

    name: str
    mtu: int
    port: int
    private_key: str
    userspace: bool = False

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.name)


class WireguardPeer(PlanObject, frozen=True, kw_only=True):
    """A peer of a WireGuard device: packets to ``allowed_ips`` go to it, and only it may send from them.

    ``endpoint`` is an address with its UDP port, ``192.168.50.12:51820`` or ``[fd00::12]:51821``; keys are in base64,
    an empty ``preshared_key`` is none; ``keepalive`` in seconds, 0 for never.
    """

    device: str
    public_key: str
    endpoint: str
    allowed_ips: tuple[str, ...]
    preshared_key: str = ""
    keepalive: int = 0

    @property
    def key(self) -> Key:
        return ("wireguard-peer", self.ns, self.device, self.public_key)


class BridgePort(PlanObject, frozen=True, kw_only=True):
    """``device`` is a port of ``bridge``. ``hairpin``: frames may leave by the port that they came in by."""

    device: str
    bridge: str
    hairpin: bool = False

    @property
    def key(self) -> Key:
        return ("port", self.ns, self.device)


class Address(PlanObject, frozen=True, kw_only=True):
    """An address with its prefix length, ``10.244.1.1/24``. IPv6 ones skip duplicate detection.

    Without ``prefix_route`` the kernel makes no connected route for the prefix (``noprefixroute``).
    """

    device: str
    address: str
    scope: Literal["global", "link", "host"] = "global"
    prefix_route: bool = True

    @property
    def key(self) -> Key:
        return ("address", self.ns, self.device, self.address)


class Neighbour(PlanObject, frozen=True, kw_only=True):
    """A permanent ARP or NDP entry. Without ``mac`` it is room for what the kernel will find by asking, beyond what its
    table holds otherwise (``emulator.plan.neighbours``)."""

    device: str
    address: str
    mac: str

    @property
    def key(self) -> Key:
        return ("neighbour", self.ns, self.device, self.address)


class FdbEntry(PlanObject, frozen=True, kw_only=True):
    """A permanent forwarding entry of a VXLAN device: frames to ``mac`` go to the VTEP at ``remote``."""

    device: str
    mac: str
    remote: str

    @property
    def key(self) -> Key:
        return ("fdb", self.ns, self.device, self.mac)


class Route(PlanObject, frozen=True, kw_only=True):
    """A route. ``destination`` is a CIDR, ``0.0.0.0/0`` and ``::/0`` included.

    ``type`` ``local`` stands in the table of that name (255), in the place of the one that the kernel made for the
    address: with a ``source`` of its own for packets that the namespace itself sends there. IPv4 only.

    ``protocol`` is the number or name that the real component writes (rtnetlink(7), ``rtm_protocol``).
    ``learned`` marks a route that a routing daemon must bring: it is waited for, never installed. Such a one may have
    several ``hops`` (gateway and device), over which the kernel spreads flows, in place of ``via`` and ``device``.
    """

    destination: str
    via: str = ""
    device: str = ""
    hops: tuple[tuple[str, str], ...] = ()
    type: Literal["unicast", "local", "blackhole", "unreachable", "prohibit"] = "unicast"
    scope: Literal["global", "link", "host"] = "global"
    protocol: Literal["boot", "kernel", "static", "bird", "felix"] = "boot"
    onlink: bool = False
    source: str = ""
    metric: int = 0
    mtu: int = 0
    table: int = 254
    learned: bool = False

    @property
    def key(self) -> Key:
        return ("route", self.ns, self.table, self.destination, self.metric)


class PolicyRule(PlanObject, frozen=True, kw_only=True):
    """An entry of the routing policy database: which table a packet is looked up in."""

    priority: int
    table: int
    family: Family = 4
    source: str = ""
    destination: str = ""
    fwmark: int = 0
    fwmask: int = 0
    iif: str = ""

    @property
    def key(self) -> Key:
        return ("rule", self.ns, self.family, self.priority, self.source, self.destination, self.fwmark, self.iif)


class Sysctl(PlanObject, frozen=True, kw_only=True):
    """A kernel parameter of the namespace. ``name`` is the path below ``/proc/sys``, with slashes,
    as device names may hold dots: ``net/ipv4/conf/flannel.1/rp_filter``."""

    name: str
    value: str

    @property
    def key(self) -> Key:
        return ("sysctl", self.ns, self.name)


class Offloads(PlanObject, frozen=True, kw_only=True):
    """Segmentation, receive and checksum offloads of a device, all off: frames are as on a wire."""

    device: str

    @property
    def key(self) -> Key:
        return ("offloads", self.ns, self.device)


class Impairment(PlanObject, frozen=True, kw_only=True):
    """What the egress of ``device`` does to packets. Zero means untouched.

    Units: ``bandwidth`` in Mbit/s, ``delay`` and ``jitter`` in milliseconds, ``loss`` in per cent.
    """

    device: str
    bandwidth: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0

    @property
    def key(self) -> Key:
        return ("impairment", self.ns, self.device)


Link: TypeAlias = Veth | Bridge | Vxlan | Ipip | Tun | Dummy | Wireguard

DeviceObject: TypeAlias = (
    Namespace
    | Link
    | WireguardPeer
    | BridgePort
    | Address
    | Neighbour
    | FdbEntry
    | Route
    | PolicyRule
    | Sysctl
    | Offloads
    | Impairment
)
