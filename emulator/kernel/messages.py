"""Plan objects as rtnetlink messages.

The message layouts are pyroute2's (``ifinfmsg``, ``ifaddrmsg``, ``rtmsg``, ``ndmsg``, ``fibmsg``). Encoding one
takes 50 to 200 microseconds, and a lab repeats itself: every pod has the same default route, every node the same
FDB entries. So each function takes plain values and remembers what it has encoded.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_interface
from typing import Any

from emulator.kernel.layouts import fibmsg, ifaddrmsg, ifinfmsg, ndmsg, rtmsg
from emulator.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request
from emulator.plan.model import (
    Address,
    AnyObject,
    Bridge,
    Dummy,
    FdbEntry,
    Ipip,
    Neighbour,
    PolicyRule,
    Route,
    Vxlan,
    Wireguard,
)

RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RTM_NEWRULE, RTM_DELRULE = 32, 33

IFF_UP = 0x1
IFA_F_NODAD = 0x02
IFA_F_NOPREFIXROUTE = 0x200
NUD_NONE = 0x00
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
NTF_EXT_LEARNED = 0x10
AF_BRIDGE = 7
RTNH_F_ONLINK = 4
FR_ACT_TO_TBL = 1
RT_TABLE_COMPAT = 252  # in the 8-bit field, for table numbers that need the attribute

# rtnetlink(7), /etc/iproute2/rt_protos; 80 is Felix (felix/dataplane/linux: RouteSourceFelix)
PROTOCOLS = {"kernel": 2, "boot": 3, "static": 4, "bird": 12, "felix": 80}
SCOPES = {"global": 0, "link": 253, "host": 254}
TYPES = {"unicast": 1, "local": 2, "blackhole": 6, "unreachable": 7, "prohibit": 8}

ADD = NLM_F_CREATE | NLM_F_EXCL
PUT = NLM_F_CREATE | NLM_F_REPLACE
NO_MAC = "00:00:00:00:00:00"


def family_of(address: str) -> int:
    """AF_INET or AF_INET6, by the look of an address or CIDR."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _payload(message: Any, fields: dict[str, int], attrs: Sequence[tuple[str, Any]]) -> bytes:
    """What follows the netlink header in an encoded message."""
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = list(attrs)
    message.encode()
    return bytes(message.data[16:])


# ---------------------------------------------------------------- links


@lru_cache(maxsize=4096)
def _link(index: int, up: bool | None, mtu: int, master: int | None, mac: str) -> bytes:
    attrs: list[tuple[str, Any]] = []
    if mtu:
        attrs.append(("IFLA_MTU", mtu))
    if master is not None:
        attrs.append(("IFLA_MASTER", master))
    if mac:
        attrs.append(("IFLA_ADDRESS", mac))
    fields = {"index": index}
    if up is not None:
        fields |= {"flags": IFF_UP if up else 0, "change": IFF_UP}
    return _payload(ifinfmsg(), fields, attrs)


def change_link(
    subject: AnyObject | None,
    index: int,
    *,
    up: bool | None = None,
    mtu: int = 0,
    master: int | None = None,
    mac: str = "",
) -> Request:
    """Set what is given of a device that exists. ``master`` 0 takes it out of its bridge."""
    return Request(RTM_NEWLINK, 0, _link(index, up, mtu, master, mac), subject)


def delete_link(subject: AnyObject | None, index: int) -> Request:
    """Remove a device, and with it what hangs on it: its peer, addresses and routes."""
    return Request(RTM_DELLINK, 0, _link(index, None, 0, None, ""), subject)


@lru_cache(maxsize=256)
def _hairpin(index: int, hairpin: bool) -> bytes:
    slave = [("IFLA_BRPORT_MODE", int(hairpin))]
    info = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": slave})]
    return _payload(ifinfmsg(), {"index": index}, [("IFLA_LINKINFO", {"attrs": info})])


def hairpin(subject: AnyObject | None, index: int, on: bool) -> Request:
    """Let a bridge port send frames out by the way they came in. The device must be a port already."""
    return Request(RTM_NEWLINK, 0, _hairpin(index, on), subject)


def bridge(subject: Bridge, index: int) -> Request:
    """Make a bridge, up, without spanning tree."""
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", subject.name),
        ("IFLA_MTU", subject.mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]}),
    ]
    if subject.mac:
        attrs.append(("IFLA_ADDRESS", subject.mac))
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return Request(RTM_NEWLINK, ADD, _payload(ifinfmsg(), fields, attrs), subject)


def dummy(subject: Dummy, index: int) -> Request:
    """Make a dummy device, up or down."""
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", subject.name),
        ("IFLA_MTU", subject.mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "dummy")]}),
    ]
    fields = {"index": index, "flags": IFF_UP if subject.up else 0, "change": IFF_UP}
    return Request(RTM_NEWLINK, ADD, _payload(ifinfmsg(), fields, attrs), subject)


def vxlan(subject: Vxlan, index: int, underlay: int) -> Request:
    """Make a VXLAN device, up. Checksums, TTL and DF stay at the kernel's defaults, as the real CNIs leave them."""
    local = "IFLA_VXLAN_LOCAL6" if family_of(subject.local) == socket.AF_INET6 else "IFLA_VXLAN_LOCAL"
    data = [
        ("IFLA_VXLAN_ID", subject.vni),
        ("IFLA_VXLAN_PORT", subject.port),
        (local, subject.local),
        ("IFLA_VXLAN_LINK", underlay),
        ("IFLA_VXLAN_LEARNING", int(subject.learning)),
    ]
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", subject.name),
        ("IFLA_MTU", subject.mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data})]}),
    ]
    if subject.mac:
        attrs.append(("IFLA_ADDRESS", subject.mac))
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return Request(RTM_NEWLINK, ADD, _payload(ifinfmsg(), fields, attrs), subject)


def ipip(subject: Ipip, index: int) -> Request:
    """Make an IP-in-IP device, up. TTL 0 means the inner header's."""
    data: list[tuple[str, Any]] = [
        ("IFLA_IPIP_TTL", 0),
        ("IFLA_IPIP_PMTUDISC", int(subject.path_mtu_discovery)),
    ]
    data += [("IFLA_IPIP_LOCAL", subject.local)] if subject.local else []
    data += [("IFLA_IPIP_REMOTE", subject.remote)] if subject.remote else []
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", subject.name),
        ("IFLA_MTU", subject.mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "ipip"), ("IFLA_INFO_DATA", {"attrs": data})]}),
    ]
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return Request(RTM_NEWLINK, ADD, _payload(ifinfmsg(), fields, attrs), subject)


def wireguard(subject: Wireguard, index: int) -> Request:
    """Make a WireGuard device, up. Its keys and peers come by generic netlink (:mod:`emulator.kernel.wireguard`)."""
    attrs: list[tuple[str, Any]] = [
        ("IFLA_IFNAME", subject.name),
        ("IFLA_MTU", subject.mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "wireguard")]}),
    ]
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return Request(RTM_NEWLINK, ADD, _payload(ifinfmsg(), fields, attrs), subject)


def veth(
    subject: AnyObject | None,
    name: str,
    index: int,
    peer: str,
    peer_index: int,
    peer_netns: int,
    *,
    mtu: int,
    peer_mtu: int = 0,
    mac: str = "",
    peer_mac: str = "",
    master: int = 0,
) -> Request:
    """Make both ends of a pair in one message: ``name`` here, up, and ``peer`` in the namespace behind a descriptor.

    The kernel honours the peer's index only if this end has one too. The peer stays down: the kernel would open it
    before the two are joined (ENOTCONN), so it takes a message in its own namespace. The descriptor may be closed
    after the request was submitted.
    """
    far: list[tuple[str, Any]] = [("IFLA_IFNAME", peer), ("IFLA_MTU", peer_mtu or mtu), ("IFLA_NET_NS_FD", peer_netns)]
    if peer_mac:
        far.append(("IFLA_ADDRESS", peer_mac))
    end = {"index": peer_index, "attrs": far}
    info = [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", end)]})]
    near: list[tuple[str, Any]] = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", {"attrs": info})]
    if mac:
        near.append(("IFLA_ADDRESS", mac))
    if master:
        near.append(("IFLA_MASTER", master))
    fields = {"index": index, "flags": IFF_UP, "change": IFF_UP}
    return Request(RTM_NEWLINK, ADD, _payload(ifinfmsg(), fields, near), subject)


# ---------------------------------------------------------------- addresses, neighbours, forwarding entries


@lru_cache(maxsize=4096)
def _address(index: int, address: str, scope: str, prefix_route: bool) -> bytes:
    interface = ip_interface(address)
    family = family_of(address)
    fields = {"family": family, "index": index, "prefixlen": interface.network.prefixlen, "scope": SCOPES[scope]}
    if family == socket.AF_INET6:
        fields["flags"] = IFA_F_NODAD
    text = str(interface.ip)
    attrs: list[tuple[str, Any]] = [("IFA_LOCAL", text), ("IFA_ADDRESS", text)]
    if not prefix_route:  # the header has room for the lower eight flags only
        attrs.append(("IFA_FLAGS", fields.get("flags", 0) | IFA_F_NOPREFIXROUTE))
    return _payload(ifaddrmsg(), fields, attrs)


def address(subject: Address, index: int, *, remove: bool = False) -> Request:
    """Put an address on a device, or take it off. It may be there already: the kernel makes link-local ones."""
    payload = _address(index, subject.address, subject.scope, subject.prefix_route)
    return Request(RTM_DELADDR, 0, payload, subject) if remove else Request(RTM_NEWADDR, PUT, payload, subject)


@lru_cache(maxsize=16384)
def _neighbour(index: int, target: str, mac: str) -> bytes:
    fields = {"family": family_of(target), "ifindex": index, "ndm_type": 1}
    if not mac:
        return _payload(ndmsg(), {**fields, "state": NUD_NONE, "flags": NTF_EXT_LEARNED}, [("NDA_DST", target)])
    return _payload(ndmsg(), {**fields, "state": NUD_PERMANENT}, [("NDA_DST", target), ("NDA_LLADDR", mac)])


def neighbour(subject: Neighbour, index: int, *, remove: bool = False) -> Request:
    """A permanent ARP or NDP entry, or room for one; it replaces what the kernel may have learnt."""
    payload = _neighbour(index, subject.address, subject.mac)
    return Request(RTM_DELNEIGH, 0, payload, subject) if remove else Request(RTM_NEWNEIGH, PUT, payload, subject)


@lru_cache(maxsize=16384)
def _fdb(index: int, mac: str, remote: str) -> bytes:
    fields = {"family": AF_BRIDGE, "ifindex": index, "state": NUD_PERMANENT, "flags": NTF_SELF}
    return _payload(ndmsg(), fields, [("NDA_LLADDR", mac), ("NDA_DST", remote)])


def fdb(subject: FdbEntry, index: int, *, remove: bool = False) -> Request:
    """A forwarding entry of a VXLAN device; only the all-zero MAC may have several targets."""
    payload = _fdb(index, subject.mac, subject.remote)
    if remove:
        return Request(RTM_DELNEIGH, 0, payload, subject)
    flags = NLM_F_CREATE | NLM_F_APPEND if subject.mac == NO_MAC else PUT
    return Request(RTM_NEWNEIGH, flags, payload, subject)


# ---------------------------------------------------------------- routes and rules


@lru_cache(maxsize=16384)
def _route(
    destination: str,
    via: str,
    index: int,
    kind: str,
    scope: str,
    protocol: str,
    onlink: bool,
    source: str,
    metric: int,
    mtu: int,
    table: int,
) -> bytes:
    network, _, length = destination.partition("/")
    fields = {
        "family": family_of(destination),
        "dst_len": int(length),
        "table": table if table < 256 else RT_TABLE_COMPAT,
        "proto": PROTOCOLS[protocol],
        "scope": SCOPES[scope],
        "type": TYPES[kind],
        "flags": RTNH_F_ONLINK if onlink else 0,
    }
    attrs: list[tuple[str, Any]] = [("RTA_TABLE", table)]
    if int(length):
        attrs.append(("RTA_DST", network))
    if via:
        attrs.append(("RTA_GATEWAY", via))
    if index:
        attrs.append(("RTA_OIF", index))
    if source:
        attrs.append(("RTA_PREFSRC", source))
    if metric:
        attrs.append(("RTA_PRIORITY", metric))
    if mtu:
        attrs.append(("RTA_METRICS", {"attrs": [("RTAX_MTU", mtu)]}))
    return _payload(rtmsg(), fields, attrs)


def route(subject: Route, index: int, *, remove: bool = False, replace: bool = False) -> Request:
    """A route out of the device with ``index`` (0: none given)."""
    replace = replace or subject.type == "local"  # the kernel made one of its own with the address
    payload = _route(
        subject.destination,
        subject.via,
        index,
        subject.type,
        subject.scope,
        subject.protocol,
        subject.onlink,
        subject.source,
        subject.metric,
        subject.mtu,
        subject.table,
    )
    if remove:
        return Request(RTM_DELROUTE, 0, payload, subject)
    return Request(RTM_NEWROUTE, PUT if replace else ADD, payload, subject)


def policy_rule(subject: PolicyRule, *, remove: bool = False) -> Request:
    """An entry of the routing policy database."""
    family = socket.AF_INET if subject.family == 4 else socket.AF_INET6
    fields = {
        "family": family,
        "table": subject.table if subject.table < 256 else RT_TABLE_COMPAT,
        "action": FR_ACT_TO_TBL,
    }
    attrs: list[tuple[str, Any]] = [("FRA_TABLE", subject.table), ("FRA_PRIORITY", subject.priority)]
    for cidr, attribute, field in ((subject.source, "FRA_SRC", "src_len"), (subject.destination, "FRA_DST", "dst_len")):
        if cidr:
            text, _, length = cidr.partition("/")
            fields[field] = int(length or (32 if family == socket.AF_INET else 128))
            attrs.append((attribute, text))
    if subject.fwmark:
        attrs.append(("FRA_FWMARK", subject.fwmark))
    if subject.fwmask:
        attrs.append(("FRA_FWMASK", subject.fwmask))
    if subject.iif:
        attrs.append(("FRA_IIFNAME", subject.iif))
    payload = _payload(fibmsg(), fields, attrs)
    return Request(RTM_DELRULE, 0, payload, subject) if remove else Request(RTM_NEWRULE, ADD, payload, subject)
