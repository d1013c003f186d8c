"""Whether a CNI result tells the truth: what it says of an attachment, compared with what the kernel shows."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

from emulator.cni.chain import Container
from emulator.cni.netconf import at_least
from emulator.cni.results import Interface, Ip, Result, Route
from emulator.kernel.tables import Device, SeenRoute, Tables

MAIN_TABLE = 254
INTERFACES_SINCE = "0.3.0"
# What the kernel puts into every new namespace once its module is loaded (net.core.fb_tunnels_only_for_init_net).
OF_THE_KERNEL = frozenset(
    {"lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip6gre0", "ip_vti0", "ip6_vti0"}
)


def untruths(result: Result, container: Container, pod: Tables, node: Tables) -> list[str]:
    """A line for each thing that the result claims and that is not so, or that is so and the result does not tell."""
    device = pod.devices.get(container.device)
    found = []
    if device is None:
        found.append(f"there is no {container.device} in the pod, though CNI_IFNAME asked for it")
    elif not device.up:
        found.append(f"{container.device} in the pod is down")
    for interface in result.interfaces:
        found += _interface(interface, container, pod, node)
    for ip in result.ips:
        found += _ip(ip, result, container, pod)
    for route in result.routes:
        found += _route(route, result, pod)
    return found + list(_untold(result, container, pod))


def _interface(interface: Interface, container: Container, pod: Tables, node: Tables) -> Iterator[str]:
    place, tables = ("the pod", pod) if interface.sandbox else ("the node", node)
    if interface.sandbox and interface.sandbox != container.netns:
        yield f"interface {interface.name} is said to be in {interface.sandbox}, and the pod is {container.netns}"
        return
    device: Device | None = tables.devices.get(interface.name)
    if device is None:
        yield f"there is no device {interface.name} in {place}"
        return
    if interface.mac and interface.mac != device.mac:
        yield f"{interface.name} in {place} has the MAC {device.mac}, not {interface.mac}"
    if interface.mtu and interface.mtu != device.mtu:
        yield f"{interface.name} in {place} has the MTU {device.mtu}, not {interface.mtu}"


def _ip(ip: Ip, result: Result, container: Container, pod: Tables) -> Iterator[str]:
    name = container.device
    if result.interfaces and ip.interface >= 0:
        interface = result.interfaces[ip.interface]
        name = interface.name
        if not interface.sandbox:
            yield f"address {ip.address} is said to be on {name}, which is in the node"
            return
    there = [address for device, address in pod.addresses if device == name]
    if ip.address not in there:
        yield f"{name} in the pod has {_and(there) or 'no address'}, not {ip.address}"
    elif ip.gateway and not _within_reach(ip, pod):
        yield f"no route of the pod leads to the gateway {ip.gateway}"


def _within_reach(ip: Ip, pod: Tables) -> bool:
    """Whether the gateway is on a link of the pod's: in the address's own prefix, or by a route without a gateway."""
    gateway = ip_address(ip.gateway)
    if gateway in ip_interface(ip.address).network:
        return True
    return any(gateway in ip_interface(route.destination).network and not route.via for route in pod.routes)


def _route(route: Route, result: Result, pod: Tables) -> Iterator[str]:
    words = f"route {route.destination}" + (f" via {route.via}" if route.via else "")
    table = route.table or MAIN_TABLE
    candidates = [item for item in pod.routes if item.destination == route.destination and item.table == table]
    if not candidates:
        yield f"the pod has no {words}" + (f" in table {table}" if table != MAIN_TABLE else "")
        return
    gateways = {route.via} if route.via else {"", *(ip.gateway for ip in result.ips)}
    fitting = [item for item in candidates if item.via in gateways]
    if not fitting:
        yield f"the pod has {_and([_words(item) for item in candidates])}, not {words}"
        return
    for what, wanted, actual in (
        ("mtu", route.mtu, [item.mtu for item in fitting]),
        ("priority", route.priority, [item.metric for item in fitting]),
    ):
        if wanted and wanted not in actual:
            yield f"{words} of the pod has the {what} {actual[0]}, not {wanted}"


def _untold(result: Result, container: Container, pod: Tables) -> Iterator[str]:
    told = {ip.address for ip in result.ips}
    for device, address in pod.addresses:
        if device not in OF_THE_KERNEL and address not in told:
            yield f"{device} in the pod has the address {address}, which the result does not tell"
    if at_least(result.version, INTERFACES_SINCE):
        named = {interface.name for interface in result.interfaces if interface.sandbox} | {container.device}
        for name in pod.devices.keys() - named - OF_THE_KERNEL:
            yield f"the pod has a device {name}, which the result does not tell"


def _words(route: SeenRoute) -> str:
    return f"route {route.destination}" + (f" via {route.via}" if route.via else f" dev {route.device}")


def _and(words: list[str]) -> str:
    return " and ".join(words)
