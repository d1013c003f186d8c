"""What each network namespace must hold: the plan, as plain immutable data.

A CNI style turns a cluster into a :class:`Plan`; ``emulator.kernel`` makes it so. Nothing here touches
the kernel, and every object says why it is there and which component of the real system makes it.

The objects are ``msgspec.Struct`` rather than dataclasses: a plan of a thousand pods has some twenty
thousand of them, and structs are built, compared and written as JSON in C.

Namespaces are named by kind: ``underlay`` (all switches; the lab's own network namespace),
``node/n1``, ``router/tor``, ``host/client``, ``pod/default/web-0``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, TypeAlias

import msgspec

UNDERLAY = "underlay"
FAULT = "fault"  # the component of what a fault put into the plan

Family = Literal[4, 6]
Key: TypeAlias = tuple[str | int, ...]


class PlanObject(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind", omit_defaults=True):
    """What all plan objects have in common.

    ``ns`` is the namespace that holds the object. ``component`` names the program of the real system
    that would have made it (``flanneld``, ``felix``, ``bird``, ``bridge`` plugin, ``kubelet``, ``kernel``,
    ``topology``); ``why`` says in one line what it is there for.
    """

    ns: str
    component: str = ""
    why: str = ""

    @property
    def key(self) -> Key:
        """What identifies the object: two objects of one key are versions of the same thing."""
        raise AssertionError(f"{type(self).__name__} has no key")


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


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """One iptables rule, as arguments after ``-A CHAIN``; ``why`` explains it.

    Arguments are a sequence, never one string: nothing that a user gives can end a rule early. The
    renderer quotes them for iptables-restore.
    """

    args: tuple[str, ...]
    why: str = ""


class Chain(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chain with all its rules, in order."""

    name: str
    rules: tuple[Rule, ...] = ()


class Jump(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule in a chain of the kernel's (``FORWARD``, ``POSTROUTING``), appended or put first."""

    chain: str
    rule: Rule
    position: Literal["append", "insert"] = "append"


class IptablesRules(PlanObject, frozen=True, kw_only=True):
    """What one component owns in one iptables table: its chains, and the jumps to them."""

    family: Family
    table: Literal["filter", "nat", "mangle", "raw"]
    owner: str
    chains: tuple[Chain, ...]
    jumps: tuple[Jump, ...] = ()

    @property
    def key(self) -> Key:
        return ("iptables", self.ns, self.family, self.table, self.owner)


class ProxyRules(PlanObject, frozen=True, kw_only=True):
    """What a service proxy owns in the iptables of one family: filter, nat and mangle, loaded together.

    Tens of thousands of rules are too many for an object each. ``tables`` holds, by table and chain, the chain's rules
    as the lines that iptables-restore reads (``-A CHAIN ...``, each with its line break); whoever writes them checks
    every word. ``jumps``, by table, stand in the kernel's chains in this order, below those that other owners put
    first. ``emulator.plan.proxy_rules`` reads single rules out of the text.
    """

    family: Family
    owner: str
    tables: dict[str, dict[str, str]]
    jumps: dict[str, tuple[Jump, ...]] = {}

    @property
    def key(self) -> Key:
        return ("proxy-rules", self.ns, self.family, self.owner)


class IpSet(PlanObject, frozen=True, kw_only=True):
    """An ipset with its members, sorted."""

    name: str
    type: str
    family: Family
    members: tuple[str, ...]

    @property
    def key(self) -> Key:
        return ("ipset", self.ns, self.name)


class NftTable(PlanObject, frozen=True, kw_only=True):
    """An nftables table as text: the body between the braces of ``table FAMILY NAME { ... }``."""

    family: Literal["ip", "ip6", "inet", "netdev", "bridge", "arp"]
    name: str
    body: str

    @property
    def key(self) -> Key:
        return ("nft", self.ns, self.family, self.name)


class NftChain(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chain with all its rules in order, as nft(8) reads them after ``add rule FAMILY TABLE CHAIN``.

    ``hook`` makes it a base chain, which the kernel runs by itself: ``type nat hook prerouting priority -100``.
    """

    name: str
    rules: tuple[str, ...] = ()
    hook: str = ""
    comment: str = ""


class NftSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """A set, or a map from its keys to verdicts: ``ipv4_addr . inet_proto . inet_service``.

    ``flags`` as nft(8) names them; ``timeout`` is the seconds after which an element that rules added vanishes, 0 for
    never.
    """

    name: str
    type: str
    verdicts: bool = False
    flags: tuple[str, ...] = ()
    timeout: int = 0
    comment: str = ""


class NftElement(msgspec.Struct, frozen=True, omit_defaults=True):
    """An element of the set ``of``; in a map with its ``verdict``: ``goto endpoint-...``, ``drop``."""

    of: str
    key: str
    verdict: str = ""
    comment: str = ""


class NftPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one subject (a Service, say) puts into a table. Its chains and sets are its own; the sets that its elements
    are of may belong to the table."""

    sets: tuple[NftSet, ...] = ()
    chains: tuple[NftChain, ...] = ()
    elements: tuple[NftElement, ...] = ()


class NftRules(PlanObject, frozen=True, kw_only=True):
    """An nftables table in parts, so that a change of one part costs no more than that part.

    The ``frame`` is what the parts refer to: sets, maps and chains. ``parts`` are keyed by subject, and parts that are
    the same object in two plans (or in two nodes) are not looked at. A part may refer to those before it. ``hooks`` are
    the base chains: they come last and go first, so that no packet meets a table that is not whole yet. An element of
    one set and key stands in one part only. ``subject`` is what parts are called in messages.
    """

    family: Literal["ip", "ip6", "inet"]
    name: str
    comment: str = ""
    subject: str = "Service"
    frame: NftPart = NftPart()
    hooks: tuple[NftChain, ...] = ()
    parts: dict[str, NftPart] = {}

    @property
    def key(self) -> Key:
        return ("nft", self.ns, self.family, self.name)


class RealServer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where IPVS sends to. ``weight`` 0: no new connections."""

    address: str
    port: int
    weight: int = 1


class VirtualServer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address and port that IPVS answers for, by masquerading (NAT) to its real servers.

    ``persistence`` is the seconds for which a client keeps its server, 0 without it. ``flags`` are those of the
    scheduler that are set, by their numbers: 1, 2 and 3 (``ipvsadm --sched-flags``, IP_VS_SVC_F_SCHED1 to 3).
    """

    protocol: Literal["TCP", "UDP", "SCTP"]
    address: str
    port: int
    servers: tuple[RealServer, ...] = ()
    scheduler: str = "rr"
    persistence: int = 0
    flags: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """``TCP 10.96.0.1:443``, ``UDP [fd00::1]:53``."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol} {address}:{self.port}"

    @property
    def targets(self) -> set[tuple[str, int]]:
        """Addresses and ports of its real servers."""
        return {(each.address, each.port) for each in self.servers}


class IpvsServers(PlanObject, frozen=True, kw_only=True):
    """The virtual servers of one family, by their names (``TCP 10.96.0.1:443``).

    With ``graceful`` a real server that goes while it has connections stays with weight 0 until they end; without, it
    goes at once, and what its clients send next is dropped.
    """

    family: Family
    servers: dict[str, VirtualServer]
    graceful: bool = True

    @property
    def key(self) -> Key:
        return ("ipvs", self.ns, self.family)


class File(PlanObject, frozen=True, kw_only=True):
    """A file in the node's private ``/etc`` or ``/run``."""

    path: str
    content: str
    mode: int = 0o644

    @property
    def key(self) -> Key:
        return ("file", self.ns, self.path)


class Daemon(PlanObject, frozen=True, kw_only=True):
    """A supervised process in a node, in the foreground.

    ``files`` are the paths of the :class:`File` objects that it reads; when one changes, ``reload`` is
    run, or the daemon is restarted if that is empty. ``again`` are further arguments for when it is started after it
    died, with traces of its former life about. It counts as ready once the Unix socket ``ready_socket`` accepts
    connections (empty: as soon as it runs). ``module`` is a Python module of ours that the daemon is; its arguments
    are those of ``argv`` after the first, and a connection to its ``ready_socket`` has it read its files again.

    ``before_devices``: it decides on packets, so it starts, and is told of changes, before new devices can send any.
    ``loss`` is what goes undone while it is dead, for people.
    """

    name: str
    argv: tuple[str, ...]
    files: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    ready_socket: str = ""
    again: tuple[str, ...] = ()
    module: str = ""
    before_devices: bool = False
    loss: str = ""

    @property
    def key(self) -> Key:
        return ("daemon", self.ns, self.name)


class PluginDevice(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device that a CNI plugin made, as the kernel shows it: ``kind`` is ``veth``, ``bridge``, ...; ``plugin`` the
    plugin's type; ``bridge`` the one that it is a port of, if any. MTU in bytes."""

    ns: str
    name: str
    kind: str
    mac: str
    mtu: int
    plugin: str
    bridge: str = ""


class CniAttachment(PlanObject, frozen=True, kw_only=True):
    """A pod is attached to a network by real CNI plugins, as a container runtime runs them, in ``node``.

    ``network`` is the configuration list, as JSON text; ``plugins`` are the folders that hold the binaries. ``args``
    are the pairs of CNI_ARGS; ``capabilities`` what the runtime offers to plugins that declare a capability of that
    name, as JSON text. ``offloads``: whether the devices that plugins make keep them.

    What comes of it is known only once the plugins have run: ``devices`` and ``addresses`` (with their prefix length)
    are empty before, and two attachments that differ in nothing else are the same.
    """

    node: str
    network: str
    plugins: tuple[str, ...]
    container: str
    device: str = "eth0"
    args: tuple[tuple[str, str], ...] = ()
    capabilities: str = "{}"
    offloads: bool = True
    devices: tuple[PluginDevice, ...] = ()
    addresses: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("attachment", self.ns, self.device)


Link: TypeAlias = Veth | Bridge | Vxlan | Ipip | Tun | Dummy | Wireguard

AnyObject: TypeAlias = (
    Namespace
    | Veth
    | Bridge
    | Vxlan
    | Ipip
    | Tun
    | Dummy
    | Wireguard
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
    | IptablesRules
    | ProxyRules
    | IpSet
    | NftTable
    | NftRules
    | IpvsServers
    | File
    | Daemon
    | CniAttachment
)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a lab must hold.

    Objects stand in fragments, one for the underlay, one a node, one a pod (``node/n1``,
    ``pod/default/web-0``): adding a pod makes one new fragment, and the diff compares the others by
    identity. Within a fragment, an object that appears later wins nothing: keys are unique in a plan.
    ``wire_accurate``: offloads are off on every device, so that frames are as on a wire.
    """

    style: str
    topology: str
    fragments: dict[str, tuple[AnyObject, ...]]
    wire_accurate: bool = False

    SCHEMA: ClassVar[str] = "cnilab.plan/v1"

    def __iter__(self) -> Iterator[AnyObject]:
        for objects in self.fragments.values():
            yield from objects

    def in_namespace(self, ns: str) -> Iterator[AnyObject]:
        """The objects that namespace ``ns`` holds, in plan order."""
        return (item for item in self if item.ns == ns)
