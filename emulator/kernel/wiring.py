"""Everything that netlink and /proc/sys can make: namespaces, links, addresses, neighbours, routes, rules, sysctls.

One namespace is visited a few times per change, whatever the number of objects:

::

    make namespaces        machines by Mininet, pods by unshare; sysctls that devices copy when they are made
    bridges                one batch per namespace
    veths                  one message per pair, sent from the node's end: a bridge port says so at once
    then per namespace:    far ends up, VXLAN, ports │ sysctls of devices │ addresses, FDB, neighbours, routes, rules
    carrier                wait until the node's ends, which were up first, know that the far ends are up too
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from errno import EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH

from emulator.errors import ApplyError, NotFound
from emulator.kernel import messages, namespaces
from emulator.kernel.carrier import Awaited, await_carrier
from emulator.kernel.devices import LOOPBACK, Devices, refused
from emulator.kernel.inventory import Inventory
from emulator.kernel.netlink import Refusal, Request
from emulator.kernel.requests import ORDER, device_request, entry_request, port_requests, ranked, relink_requests
from emulator.kernel.sysctls import Sysctls
from emulator.kernel.underlay import LabNet
from emulator.kernel.waiting import bridged_pods, drop_waiting
from emulator.plan.diff import sysctl_device
from emulator.plan.model import (
    UNDERLAY,
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    Dummy,
    FdbEntry,
    Ipip,
    Link,
    Namespace,
    Neighbour,
    PolicyRule,
    Route,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
    Wireguard,
)

Wired = Namespace | Link | BridgePort | Address | FdbEntry | Neighbour | Route | PolicyRule | Sysctl
Done = Callable[[AnyObject], None]

VETHS_AT_ONCE = 200  # each holds a descriptor of its far end's namespace until it is made
GONE = frozenset({ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL})  # what the kernel says when there is nothing to remove


class Wiring:
    """Makes and removes what netlink can, in an order that works. Every call raises ApplyError; ``done`` hears of each
    object that is set."""

    def __init__(self, net: LabNet, devices: Devices, sysctls: Sysctls, inventory: Inventory) -> None:
        self.net = net
        self._devices = devices
        self._sysctls = sysctls
        self._inventory = inventory
        self._born: set[str] = set()
        self._awaited: defaultdict[str, dict[str, Awaited]] = defaultdict(dict)  # who hears of a carrier late

    def begin(self) -> None:
        """Start a change."""
        self._devices.begin()
        self._born.clear()
        self._awaited.clear()

    # ------------------------------------------------------------ making

    def make(
        self,
        items: Sequence[Wired],
        replaced: Sequence[tuple[Wired, Wired]],
        done: Done,
        judged: Collection[str] = (),
    ) -> None:
        """Set all objects; ``replaced`` are pairs of old and new. ``judged`` are namespaces whose rules have just been
        told of the pods that come: what they let wait for those before is dropped."""
        self._make_namespaces(items, done)
        ports = {(item.ns, item.device): item for item in items if isinstance(item, BridgePort)}
        bridges: defaultdict[str, list[Bridge]] = defaultdict(list)
        for item in items:
            if isinstance(item, Bridge):
                bridges[item.ns].append(item)
        for ns, wanted in bridges.items():
            self._submit(ns, [messages.bridge(item, self._devices.new_index(ns, item.name)) for item in wanted], done)
            if ns == UNDERLAY:
                for item in wanted:
                    self.net.add_switch(item)
        plugged = self._make_veths([item for item in items if isinstance(item, Veth)], ports, done)
        for (ns, bridge), addresses in bridged_pods(items, judged).items():
            with self._devices.channel(ns) as channel:
                drop_waiting(channel, self._devices.indexes(ns)[bridge], addresses)
        self._configure(items, replaced, plugged, done)
        await_carrier(self._devices.channel, self._awaited)
        self._awaited.clear()
        for item in items:
            if isinstance(item, Address) and not item.ns.startswith("pod/"):
                self.net.note_address(item.ns, item.device, item.address)

    def _make_namespaces(self, items: Sequence[Wired], done: Done) -> None:
        early: defaultdict[str, list[Sysctl]] = defaultdict(list)
        for item in items:
            if isinstance(item, Sysctl) and not sysctl_device(item.name):
                early[item.ns].append(item)
        pods: list[Namespace] = []
        for item in items:
            if not isinstance(item, Namespace):
                continue
            if item.role == "pod":
                pods.append(item)
                continue
            if item.role == "underlay":
                namespaces.bind(item.ns)
                with self._devices.channel(item.ns) as channel:
                    channel.submit([messages.change_link(None, LOOPBACK, up=True)])
            else:
                self.net.add_machine(item)
            self._born.add(item.ns)
            done(item)
        self._make_pods(pods, early, done)
        for ns, sysctls in early.items():
            self._sysctls.write(ns, sysctls, done, new=ns in self._born)

    def _make_pods(self, pods: Sequence[Namespace], early: dict[str, list[Sysctl]], done: Done) -> None:
        objects = {item.ns: item for item in pods}
        written = {ns: early.pop(ns, []) for ns in objects}

        def made(ns: str) -> None:
            self._born.add(ns)
            done(objects[ns])

        wanted = [(ns, [(item.name, item.value) for item in sysctls]) for ns, sysctls in written.items()]
        try:
            namespaces.create(wanted, made)
        except OSError as error:
            raise ApplyError(f"failed to make a pod's namespace: {error}") from error
        if pods:
            # All new namespaces are alike: lo, and the fallback tunnels (tunl0, ...) of the modules that are loaded.
            fresh = self._devices.indexes(pods[0].ns)
            for pod in pods:
                self._devices.found(pod.ns, fresh)
        for sysctls in written.values():
            for item in sysctls:
                done(item)

    def _make_veths(
        self, veths: Sequence[Veth], ports: dict[tuple[str, str], BridgePort], done: Done
    ) -> set[tuple[str, str]]:
        """Returns the ports that are plugged in by now."""
        plugged: set[tuple[str, str]] = set()
        for start in range(0, len(veths), VETHS_AT_ONCE):
            with ExitStack() as stack:
                requests: defaultdict[str, list[Request]] = defaultdict(list)
                opened: dict[str, int] = {}
                for item in veths[start : start + VETHS_AT_ONCE]:
                    ns, request = self._veth(item, ports, plugged, opened, stack)
                    requests[ns].append(request)
                for ns, batch in requests.items():
                    self._submit(ns, batch, done)
            switch_of = {device: port.bridge for (ns, device), port in ports.items() if ns == UNDERLAY}
            for item in veths[start : start + VETHS_AT_ONCE]:
                if not item.ns.startswith("pod/") and not item.peer_ns.startswith("pod/"):
                    self.net.add_veth(item, switch_of)
        return plugged

    def _veth(
        self,
        item: Veth,
        ports: dict[tuple[str, str], BridgePort],
        plugged: set[tuple[str, str]],
        opened: dict[str, int],
        stack: ExitStack,
    ) -> tuple[str, Request]:
        near, far = (item.ns, item.name), (item.peer_ns, item.peer)
        mtu, far_mtu, mac, far_mac = item.mtu, item.peer_mtu or item.mtu, item.mac, item.peer_mac
        if near not in ports and (far in ports or item.ns.startswith("pod/")):
            near, far, mtu, far_mtu, mac, far_mac = far, near, far_mtu, mtu, far_mac, mac
        master = 0
        if near in ports:
            master = self._devices.indexes(near[0]).get(ports[near].bridge, 0)
            if master:
                plugged.add(near)
        if far[0] not in opened:
            opened[far[0]] = os.open(self._path(far[0]), os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, opened[far[0]])
        self._awaited[near[0]][near[1]] = "cable"
        for ns, device in (near, far):  # the far end comes up last and sends at once, but a bridge hears of it late
            if (ns, device) in ports:
                self._awaited[ns][device] = "port"
                self._awaited[ns][ports[ns, device].bridge] = "bridge"
        request = messages.veth(
            item,
            near[1],
            self._devices.new_index(*near),
            far[1],
            self._devices.new_index(*far),
            opened[far[0]],
            mtu=mtu,
            peer_mtu=far_mtu,
            mac=mac,
            peer_mac=far_mac,
            master=master,
        )
        return near[0], request

    def _path(self, ns: str) -> str:
        place = self._devices.netns(ns)
        return place if isinstance(place, str) else f"/proc/self/fd/{place}"

    def _configure(
        self,
        items: Sequence[Wired],
        replaced: Sequence[tuple[Wired, Wired]],
        plugged: set[tuple[str, str]],
        done: Done,
    ) -> None:
        links: defaultdict[str, list[Request]] = defaultdict(list)
        sysctls: defaultdict[str, list[Sysctl]] = defaultdict(list)
        rest: defaultdict[str, list[tuple[int, Request]]] = defaultdict(list)
        already: list[BridgePort] = []
        for item in items:
            if isinstance(item, Namespace) and item.role == "pod":
                links[item.ns].append(messages.change_link(None, LOOPBACK, up=True))
        for item in items:
            if isinstance(item, Veth):
                # Both ends: which of the two was the first end of the message does not matter here.
                for ns, device in ((item.ns, item.name), (item.peer_ns, item.peer)):
                    if (ns, device) not in plugged:
                        links[ns].append(messages.change_link(None, self._devices.indexes(ns)[device], up=True))
            elif isinstance(item, (Vxlan, Ipip, Tun, Dummy, Wireguard)):
                links[item.ns].append(device_request(self._devices, item))
            elif isinstance(item, BridgePort):
                links[item.ns] += port_requests(self._devices, item, (item.ns, item.device) in plugged)
                if (item.ns, item.device) in plugged and not item.hairpin:
                    already.append(item)
            elif isinstance(item, Sysctl) and sysctl_device(item.name):
                sysctls[item.ns].append(item)
            elif type(item) in ORDER:
                rest[item.ns].append(ranked(self._devices, item, replace=False))
        for old, new in replaced:
            if isinstance(new, Sysctl):
                sysctls[new.ns].append(new)
            elif isinstance(new, Link):
                for ns, request in relink_requests(self._devices, new):
                    links[ns].append(request)
                for entry in self._forgotten(new):
                    rest[entry.ns].append(ranked(self._devices, entry, replace=True))
            elif isinstance(new, BridgePort):
                links[new.ns] += port_requests(self._devices, new, False, hairpin=True)
            elif isinstance(new, PolicyRule) and isinstance(old, PolicyRule):
                rest[new.ns] += [(5, messages.policy_rule(old, remove=True)), (5, messages.policy_rule(new))]
            elif type(new) in ORDER:
                rest[new.ns].append(ranked(self._devices, new, replace=True))
        for item in already:
            done(item)
        for ns in dict.fromkeys((*links, *sysctls, *rest)):
            ordered = [request for _, request in sorted(rest.get(ns, ()), key=lambda pair: pair[0])]
            if ns in sysctls:
                self._submit(ns, links.get(ns, []), done)
                self._sysctls.write(ns, sysctls[ns], done, new=ns in self._born)
                self._submit(ns, ordered, done)
            else:
                self._submit(ns, links.get(ns, []) + ordered, done)

    def _forgotten(self, new: Link) -> list[Neighbour]:
        """Permanent neighbours of devices whose MAC is set, be it to what it was: the kernel drops them all
        (neigh_changeaddr)."""
        changed = {(new.ns, new.name)} if getattr(new, "mac", "") else set()
        if isinstance(new, Veth) and new.peer_mac:
            changed.add((new.peer_ns, new.peer))
        return [
            item
            for ns, device in changed
            for item in self._inventory.held_in(ns)
            if isinstance(item, Neighbour) and item.device == device
        ]

    def set_mtu(self, item: Link) -> None:
        """Give a device its planned MTU again, after a process has set another."""
        near = [request for ns, request in relink_requests(self._devices, item) if ns == item.ns]
        self._submit(item.ns, near, _nothing)

    def set_link(self, ns: str, device: str, *, up: bool) -> None:
        """Set a device down or up, as a fault. Coming up, it gets back what the kernel dropped when it went down: IPv6
        addresses, and every route through it."""
        self.begin()
        index = self._devices.indexes(ns).get(device)
        if index is None:
            raise NotFound(f"there is no device {device} in {ns}")
        requests = [messages.change_link(None, index, up=up)]
        if up:
            lost = [
                item
                for item in self._inventory.held_in(ns)
                if isinstance(item, (Address, FdbEntry, Neighbour, Route)) and item.device == device
            ]
            again = [ranked(self._devices, item, replace=True) for item in lost]
            requests += [request for _, request in sorted(again, key=lambda pair: pair[0])]
        self._submit(ns, requests, _nothing)

    # ------------------------------------------------------------ removing

    def remove(self, items: Sequence[Wired], done: Done) -> None:
        """Take objects away, and whatever hangs on them. What is gone already is no error."""
        dead = {item.ns for item in items if isinstance(item, Namespace)}
        batches: defaultdict[str, list[Request]] = defaultdict(list)
        links: defaultdict[str, list[Request]] = defaultdict(list)
        for item in items:
            if isinstance(item, (Namespace, Sysctl)) or item.ns in dead:
                continue
            if isinstance(item, Link):
                index = self._devices.indexes(item.ns).get(item.name)
                if index is not None:
                    links[item.ns].append(messages.delete_link(item, index))
            elif isinstance(item, BridgePort):
                index = self._devices.indexes(item.ns).get(item.device)
                if index is not None:
                    batches[item.ns].append(messages.change_link(item, index, master=0))
            elif getattr(item, "device", "") in ("", *self._devices.indexes(item.ns)):
                batches[item.ns].append(entry_request(self._devices, item, remove=True))
        for ns, requests in batches.items():
            self._submit(ns, requests, _nothing, tolerate=GONE)
        for ns, surviving in self._surviving_ends(dead):
            index = self._devices.indexes(ns).get(surviving)
            if index is not None:
                links[ns].append(messages.delete_link(None, index))
        for ns, requests in links.items():
            self._submit(ns, requests, _nothing, tolerate=GONE)
            self._devices.look_again(ns)
        self._strike(items, dead, done)

    def _surviving_ends(self, dead: set[str]) -> Iterator[tuple[str, str]]:
        """Devices whose far end dies with its namespace. They are removed at once: left to themselves they linger until
        the kernel gets round to the namespace, or somebody closes the last socket in it, and the name stays taken."""
        for ns in dead:
            for item in self._inventory.veths_of(ns):
                if item.ns == ns and item.peer_ns not in dead:
                    yield item.peer_ns, item.peer
                elif item.peer_ns == ns and item.ns not in dead:
                    yield item.ns, item.name

    def _strike(self, items: Sequence[Wired], dead: set[str], done: Done) -> None:
        for ns in dead:
            for veth in self._inventory.veths_of(ns):
                self.net.remove_veth(veth)
        for item in items:
            if isinstance(item, Veth):
                self.net.remove_veth(item)
            elif isinstance(item, Bridge) and item.ns == UNDERLAY:
                self.net.remove_switch(item.name)
            elif isinstance(item, Namespace):
                self._devices.forget(item.ns)
                if item.role in ("pod", "underlay"):
                    namespaces.release(item.ns)
                else:
                    self.net.remove_machine(item.ns)
                self._sysctls.forget(item.ns)
            done(item)

    # ------------------------------------------------------------ submitting

    def _submit(
        self, ns: str, requests: Sequence[Request], done: Done, *, tolerate: frozenset[int] = frozenset()
    ) -> None:
        if not requests:
            return
        with self._devices.channel(ns) as channel:
            refusals: list[Refusal] = [item for item in channel.submit(requests) if item.errno not in tolerate]
        failed = {id(item.request) for item in refusals}
        for request in requests:
            if request.subject is not None and id(request) not in failed:
                done(request.subject)
        for refusal in refusals:
            if refusal.request.subject is None:
                raise ApplyError(f"failed to set up a device in {ns}: {refusal.reason}")
            raise refused(refusal.request.subject, refusal.reason)


def _nothing(_: AnyObject) -> None:
    """Nobody keeps a journal."""
