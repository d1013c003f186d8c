"""What the lab's namespaces hold of the plan at this moment, and what an object takes with it when it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from emulator.plan.diff import sysctl_device
from emulator.plan.model import (
    Address,
    AnyObject,
    BridgePort,
    FdbEntry,
    Impairment,
    Key,
    Link,
    Namespace,
    Neighbour,
    Offloads,
    Route,
    Sysctl,
    Veth,
    Vxlan,
    WireguardPeer,
)


class Inventory:
    """The applied objects by namespace and key, in the order that they came."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, AnyObject]] = {}
        self._veths: dict[str, dict[Key, Veth]] = {}  # by the far end's namespace

    def __iter__(self) -> Iterator[AnyObject]:
        for held in self._objects.values():
            yield from held.values()

    def put(self, item: AnyObject) -> None:
        """The object is there now, perhaps in another version."""
        self._objects.setdefault(item.ns, {})[item.key] = item
        if isinstance(item, Veth):
            self._veths.setdefault(item.peer_ns, {})[item.key] = item

    def take(self, item: AnyObject) -> None:
        """The object is gone."""
        held = self._objects.get(item.ns, {})
        held.pop(item.key, None)
        if not held:
            self._objects.pop(item.ns, None)
        if isinstance(item, Veth):
            self._veths.get(item.peer_ns, {}).pop(item.key, None)

    def find(self, key: Key) -> AnyObject | None:
        """The object of that key (the second part of every key is the namespace)."""
        return self._objects.get(str(key[1]), {}).get(key)

    def held_in(self, ns: str) -> list[AnyObject]:
        """The objects of one namespace."""
        return list(self._objects.get(ns, {}).values())

    def veths_of(self, ns: str) -> list[Veth]:
        """Every pair with an end in the namespace."""
        near = [item for item in self._objects.get(ns, {}).values() if isinstance(item, Veth)]
        return near + [item for item in self._veths.get(ns, {}).values() if item.ns != ns]

    def falls_with(self, item: AnyObject) -> list[AnyObject]:
        """``item`` and everything that the kernel removes with it, each once."""
        found: dict[Key, AnyObject] = {}
        self._collect(item, found)
        return list(found.values())

    def _collect(self, item: AnyObject, found: dict[Key, AnyObject]) -> None:
        if item.key in found:
            return
        found[item.key] = item
        if isinstance(item, Namespace):
            for other in (*self.held_in(item.ns), *self.veths_of(item.ns)):
                self._collect(other, found)
        elif isinstance(item, Link):
            for ns, device in ends(item):
                for other in self.held_in(ns):
                    if device in devices_of(other):
                        self._collect(other, found)


def ends(item: Link) -> list[tuple[str, str]]:
    """The devices that the object consists of, with their namespaces."""
    near = [(item.ns, item.name)]
    return [*near, (item.peer_ns, item.peer)] if isinstance(item, Veth) else near


def devices_of(item: AnyObject) -> Iterable[str]:
    """The devices of its own namespace without which the object cannot be."""
    if isinstance(item, BridgePort):
        return (item.device, item.bridge)
    if isinstance(item, Vxlan):
        return (item.underlay,)
    if isinstance(item, (Address, Neighbour, FdbEntry, Offloads, Impairment, Route, WireguardPeer)):
        return (item.device,) if item.device else ()
    if isinstance(item, Sysctl):
        device = sysctl_device(item.name)
        return (device,) if device else ()
    return ()
