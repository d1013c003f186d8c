"""Which netlink message makes, changes or takes away an object of the plan, given the devices that are there."""

from __future__ import annotations

from collections.abc import Iterator

from emulator.kernel import messages
from emulator.kernel.devices import Devices, refused
from emulator.kernel.netlink import Request, link_indexes
from emulator.kernel.syscalls import inside
from emulator.kernel.tun import make_tun
from emulator.plan.model import (
    Address,
    AnyObject,
    BridgePort,
    Dummy,
    FdbEntry,
    Ipip,
    Link,
    Neighbour,
    PolicyRule,
    Route,
    Tun,
    Veth,
    Vxlan,
    Wireguard,
)

# Within one namespace: what an address needs comes before it, what needs it comes after.
ORDER: dict[type, int] = {Address: 0, FdbEntry: 1, Neighbour: 2, Route: 3, PolicyRule: 5}


def device_request(devices: Devices, item: Vxlan | Ipip | Tun | Dummy | Wireguard) -> Request:
    """Make a device that is no bridge and has no second end."""
    if isinstance(item, Vxlan):
        under = devices.index(item, item.underlay)
        return messages.vxlan(item, devices.new_index(item.ns, item.name), under)
    if isinstance(item, Ipip):
        return _ipip(devices, item)
    if isinstance(item, Tun) or (isinstance(item, Wireguard) and item.userspace):
        return _tun(devices, item)
    if isinstance(item, Dummy):
        return messages.dummy(item, devices.new_index(item.ns, item.name))
    return messages.wireguard(item, devices.new_index(item.ns, item.name))


def _ipip(devices: Devices, item: Ipip) -> Request:
    # Where the module was loaded before, every new namespace has a tunl0 of the kernel's own, down.
    known = devices.indexes(item.ns).get(item.name)
    if known is not None and not (item.local or item.remote):
        return messages.change_link(item, known, up=True, mtu=item.mtu)
    return messages.ipip(item, devices.new_index(item.ns, item.name))


def _tun(devices: Devices, item: Tun | Wireguard) -> Request:
    try:
        with inside(devices.netns(item.ns)):
            make_tun(item.name)
    except OSError as error:
        raise refused(item, error.strerror or str(error)) from error
    with devices.channel(item.ns) as channel:
        index = devices.indexes(item.ns)[item.name] = link_indexes(channel)[item.name]
    return messages.change_link(item, index, up=True, mtu=item.mtu)


def port_requests(devices: Devices, item: BridgePort, plugged: bool, *, hairpin: bool = False) -> list[Request]:
    """Put a device into its bridge, unless it is ``plugged`` in by now; ``hairpin``: that may have to be set or taken
    back."""
    index = devices.index(item, item.device)
    requests = []
    if not plugged:
        requests.append(messages.change_link(item, index, master=devices.index(item, item.bridge)))
    if item.hairpin or hairpin:
        requests.append(messages.hairpin(item, index, item.hairpin))
    return requests


def relink_requests(devices: Devices, item: Link) -> Iterator[tuple[str, Request]]:
    """Change a device that is there, or both ends of a pair; each with its namespace."""
    index = devices.index(item, item.name)
    mac = "" if isinstance(item, (Ipip, Tun, Dummy, Wireguard)) else item.mac
    up = item.up if isinstance(item, Dummy) else True
    yield item.ns, messages.change_link(item, index, up=up, mtu=item.mtu, mac=mac)
    if isinstance(item, Veth):
        far = devices.indexes(item.peer_ns)[item.peer]
        mtu = item.peer_mtu or item.mtu
        yield item.peer_ns, messages.change_link(item, far, up=True, mtu=mtu, mac=item.peer_mac)


def ranked(devices: Devices, item: AnyObject, *, replace: bool) -> tuple[int, Request]:
    """Set an address or what leads to one, with its place among others of its namespace."""
    rank = ORDER[type(item)]
    if isinstance(item, Route):
        return rank + bool(item.via), _route(devices, item, replace=replace)
    return rank, entry_request(devices, item)


def entry_request(devices: Devices, item: AnyObject, *, remove: bool = False) -> Request:
    """Set an address or what leads to one, or take it away."""
    if isinstance(item, Address):
        return messages.address(item, devices.index(item, item.device), remove=remove)
    if isinstance(item, Neighbour):
        return messages.neighbour(item, devices.index(item, item.device), remove=remove)
    if isinstance(item, FdbEntry):
        return messages.fdb(item, devices.index(item, item.device), remove=remove)
    if isinstance(item, PolicyRule):
        return messages.policy_rule(item, remove=remove)
    if isinstance(item, Route):
        return _route(devices, item, remove=remove)
    raise AssertionError(f"{type(item).__name__} is not one message")


def _route(devices: Devices, item: Route, *, remove: bool = False, replace: bool = False) -> Request:
    index = devices.index(item, item.device) if item.device else 0
    return messages.route(item, index, remove=remove, replace=replace)
