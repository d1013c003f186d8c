"""Things that are broken on purpose, as changes of the plan: an MTU, a MAC, a kernel parameter, a route, packets that
are dropped, rules that somebody flushed, a service proxy that no longer runs.

::

    plan of the style ──overlay(faults)──▶ plan as broken ──diff──▶ kernel

A fault is data, and striking or mending it is the difference of two plans. So whatever else changes meanwhile (a pod,
an endpoint, a crashed node) goes the ordinary way and neither mends the fault nor trips over it, what cannot be done
is undone, and mending leaves exactly what the plan says. A fault whose object has gone from the plan lies dormant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import ClassVar, Literal

import msgspec

from emulator.errors import UserError
from emulator.plan.addressing import family_of
from emulator.plan.model import (
    FAULT,
    UNDERLAY,
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    IpSet,
    IptablesRules,
    Key,
    Link,
    NftRules,
    NftTable,
    Plan,
    ProxyRules,
    Route,
    Sysctl,
    Veth,
)

MAIN_TABLE = 254
SMALLEST_MTU = 68  # bytes: below, the kernel takes IPv4 off the device (RFC 791; net/ipv4/devinet.c)
SMALLEST_MTU_IPV6 = 1280  # bytes: the same for IPv6 (RFC 8200, section 5), and its addresses would not come back
LARGEST_MTU = 65535
ICMPV6 = 58  # IANA's protocol number
# Just before iptables' filter table (NF_IP_PRI_FILTER = 0): what a CNI counts or logs there does not see the packet.
FILTER_PRIORITY = -1

Hook = Literal["input", "output", "forward", "port"]


class PlanFault(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """What all have in common. ``ns`` is the namespace that is struck, ``place`` the machine or pod as people call it:
    for a switch's port the machine that is plugged into it."""

    ns: str
    place: str

    KIND: ClassVar[str] = ""

    @property
    def key(self) -> tuple[str, ...]:
        """A second fault of the same key takes the place of the first."""
        return (self.KIND, self.place, self.ns)

    def says(self) -> str:
        """One line for people: what is broken."""
        raise NotImplementedError

    def strike(self, plan: Plan) -> Plan:
        """The plan as broken; the very same if there is nothing to break. Raises UserError for what must not be."""
        raise NotImplementedError


class MtuFault(PlanFault, frozen=True, kw_only=True):
    """``device`` has another MTU (bytes). Of a pod's device both ends of the cable, as a CNI would have made it."""

    device: str
    mtu: int

    KIND = "mtu"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.KIND, self.place, self.ns, self.device)

    def says(self) -> str:
        return f"the MTU of {_at(self)} is {self.mtu}"

    def strike(self, plan: Plan) -> Plan:
        for item in plan.in_namespace(self.ns) if self.mtu < SMALLEST_MTU_IPV6 else ():
            if isinstance(item, Address) and item.device == self.device and family_of(item.address) == 6:
                raise UserError(
                    f"{self.device} of {self.place} has IPv6 addresses, which the kernel drops below an MTU of "
                    f"{SMALLEST_MTU_IPV6}"
                )
        return _adjusted_bridges(_mapped(plan, self._change), plan, (self.ns, self.device))

    def _change(self, item: AnyObject) -> AnyObject:
        near, far = _is_end(item, self.ns, self.device)
        if isinstance(item, Veth) and (near or far):
            if self.ns.startswith("pod/"):
                return _broken(item, self, mtu=self.mtu, peer_mtu=0)
            if far:
                return _broken(item, self, peer_mtu=self.mtu)
            return _broken(item, self, mtu=self.mtu, peer_mtu=item.peer_mtu or item.mtu)
        return _broken(item, self, mtu=self.mtu) if near else item


class MacFault(PlanFault, frozen=True, kw_only=True):
    """``device`` has another MAC, of which nobody was told."""

    device: str
    mac: str

    KIND = "mac"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.KIND, self.place, self.ns, self.device)

    def says(self) -> str:
        return f"the MAC of {_at(self)} is {self.mac}"

    def strike(self, plan: Plan) -> Plan:
        return _mapped(plan, self._change)

    def _change(self, item: AnyObject) -> AnyObject:
        near, far = _is_end(item, self.ns, self.device)
        if not near and not far:
            return item
        had = item.peer_mac if far and isinstance(item, Veth) else getattr(item, "mac", "")
        if not had:
            why = "a MAC that the plan leaves to the kernel" if hasattr(item, "mac") else "no MAC"
            raise UserError(f"{self.device} of {self.place} has {why}: it could not be mended")
        return _broken(item, self, peer_mac=self.mac) if far else _broken(item, self, mac=self.mac)


class HairpinFault(PlanFault, frozen=True, kw_only=True):
    """The bridge does not send back to a pod what came from it: the port of the pod's ``device`` is not in hairpin
    mode. ``ns`` is the pod's."""

    device: str

    KIND = "hairpin"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.KIND, self.place, self.ns, self.device)

    def says(self) -> str:
        return f"the bridge port of {_at(self)} has no hairpin mode"

    def strike(self, plan: Plan) -> Plan:
        ends = {
            (item.peer_ns, item.peer)
            for item in plan.in_namespace(self.ns)
            if isinstance(item, Veth) and item.name == self.device
        }
        found = [
            item for ns, _ in ends for item in plan.in_namespace(ns)
            if isinstance(item, BridgePort) and (item.ns, item.device) in ends
        ]  # fmt: skip
        if not any(item.hairpin for item in found):
            raise UserError(f"{_at(self)} {'has no hairpin mode' if found else 'is on no bridge'} as it is")
        return _mapped(plan, lambda item: _broken(item, self, hairpin=False) if item in found else item)


class SysctlFault(PlanFault, frozen=True, kw_only=True):
    """The kernel parameter ``name`` has another value. Mended, it has the plan's value, or the one that it had before
    if the plan does not speak of it."""

    name: str
    value: str

    KIND = "sysctl"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.KIND, self.place, self.ns, self.name)

    def says(self) -> str:
        return f"sysctl {self.name} of {self.place} is {self.value}"

    def strike(self, plan: Plan) -> Plan:
        wanted = Sysctl(ns=self.ns, name=self.name, value=self.value, component=FAULT, why=f"fault: {self.says()}")
        if any(item.key == wanted.key for item in plan.in_namespace(self.ns)):
            return _mapped(plan, lambda item: wanted if item.key == wanted.key else item)
        return _added(plan, wanted)


class FilterFault(PlanFault, frozen=True, kw_only=True):
    """Packets that fit are dropped: on a machine's or pod's ``hook``, or both ways at the switch's ``port`` that it is
    plugged into. All that is given must fit; ``protocol`` is a number of IANA's, or -1 for any, ``port`` the
    destination's; sources and destinations are CIDRs."""

    hook: Hook
    device: str = ""
    protocol: int = -1
    port: int = 0
    icmp_type: int = -1
    icmp_code: int = -1
    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    match: str  # as the user wrote it

    KIND = "filter"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.KIND, self.place, self.ns, self.hook, self.device, self.match)

    def says(self) -> str:
        where = f"at {_at(self)}" if self.hook == "port" else f"in {self.hook} of {self.place}"
        return f"{self.match or 'every packet'} is dropped {where}"

    @property
    def table(self) -> str:
        """The nftables table's name: cnilab's own, one a fault."""
        return f"cnilab-fault-{sha256(repr(self.key).encode()).hexdigest()[:8]}"

    def strike(self, plan: Plan) -> Plan:
        family: Literal["inet", "bridge"] = "bridge" if self.hook == "port" else "inet"
        hook = "forward" if self.hook == "port" else self.hook
        rules = ["    " + " ".join(f"{match} counter drop".split()) for match in self._matches()]
        base = f"    type filter hook {hook} priority {FILTER_PRIORITY}; policy accept;"
        body = ["  chain drops {", base, *rules, "  }"]
        return _added(
            plan,
            NftTable(
                ns=self.ns,
                family=family,
                name=self.table,
                body="\n".join(body),
                component=FAULT,
                why=f"fault: {self.says()}",
            ),
        )

    def _matches(self) -> Iterator[str]:
        """A rule's conditions for each family and direction in which the packet may fit."""
        rest = self._transport()
        ports = (f'iifname "{self.device}" ', f'oifname "{self.device}" ') if self.hook == "port" else ("",)
        for port in ports:
            if not self.sources and not self.destinations:
                yield f"{port}{rest}"
                continue
            for family, word in ((4, "ip"), (6, "ip6")):
                sources = [cidr for cidr in self.sources if family_of(cidr) == family]
                destinations = [cidr for cidr in self.destinations if family_of(cidr) == family]
                if (self.sources and not sources) or (self.destinations and not destinations):
                    continue
                words = [f"{word} saddr {{ {', '.join(sources)} }}"] if sources else []
                words += [f"{word} daddr {{ {', '.join(destinations)} }}"] if destinations else []
                yield f"{port}{' '.join(words)} {rest}"

    def _transport(self) -> str:
        if self.protocol < 0:
            return ""
        words = [f"meta l4proto {self.protocol}"]
        name = "icmpv6" if self.protocol == ICMPV6 else "icmp"
        words += [f"th dport {self.port}"] if self.port else []
        words += [f"{name} type {self.icmp_type}"] if self.icmp_type >= 0 else []
        words += [f"{name} code {self.icmp_code}"] if self.icmp_code >= 0 else []
        return " ".join(words)


class RouteFault(PlanFault, frozen=True, kw_only=True):
    """The main table's routes to ``destination`` (a CIDR) are gone."""

    destination: str

    KIND = "route"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.KIND, self.place, self.ns, self.destination)

    def says(self) -> str:
        return f"{self.place} has no route to {self.destination}"

    def strike(self, plan: Plan) -> Plan:
        found = [item for item in plan.in_namespace(self.ns) if self._is_it(item)]
        if any(isinstance(item, Route) and item.learned for item in found):
            raise UserError(
                f"the route to {self.destination} of {self.place} is brought by a routing daemon, which would bring "
                "it again",
                hint="the fault daemon-kill, or filter on its port, keeps it away",
            )
        return _mapped(plan, lambda item: None if self._is_it(item) else item)

    def _is_it(self, item: AnyObject) -> bool:
        return (
            isinstance(item, Route)
            and (item.ns, item.table, item.destination) == (self.ns, MAIN_TABLE, self.destination)
        )  # fmt: skip


class FlushFault(PlanFault, frozen=True, kw_only=True):
    """The packet filter's rules are gone: those of one ``table`` (iptables, or the name of an nftables table), or all,
    ipsets included."""

    table: str = ""

    KIND = "flush"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.KIND, self.place, self.ns, self.table)

    def says(self) -> str:
        return f"the {f'table {self.table}' if self.table else 'packet filter'} of {self.place} is empty"

    def strike(self, plan: Plan) -> Plan:
        return _mapped(plan, self._flushed)

    def _flushed(self, item: AnyObject) -> AnyObject | None:
        if item.ns != self.ns or item.component == FAULT:
            return item
        if isinstance(item, ProxyRules) and self.table in item.tables:
            # Its chains stay, without rules, as the proxy's rules of the other tables stay with it.
            empty = dict.fromkeys(item.tables[self.table], "")
            return msgspec.structs.replace(item, tables={**item.tables, self.table: empty})
        return None if self._is_it(item) else item

    def _is_it(self, item: AnyObject) -> bool:
        if isinstance(item, (IpSet, ProxyRules)):
            return not self.table
        if isinstance(item, IptablesRules):
            return self.table in ("", item.table)
        return isinstance(item, (NftTable, NftRules)) and self.table in ("", item.name)


class ProxyStopFault(PlanFault, frozen=True, kw_only=True):
    """The service proxy of a node has died: its rules stay as they were (``left``), and its health ports are closed."""

    left: tuple[AnyObject, ...]

    KIND = "proxy-stop"

    @property
    def key(self) -> tuple[str, ...]:
        return (self.KIND, self.place, self.ns)

    def says(self) -> str:
        return f"the service proxy of {self.place} does not run"

    def strike(self, plan: Plan) -> Plan:
        return msgspec.structs.replace(plan, fragments={**plan.fragments, f"proxy/{self.place}": self.left})


def overlay(plan: Plan, faults: Iterable[PlanFault]) -> Plan:
    """``plan`` with everything broken that ``faults`` break. Those whose object is not there change nothing."""
    for fault in faults:
        if fault.ns == UNDERLAY or _has_namespace(plan, fault.ns):
            try:
                plan = fault.strike(plan)
            except UserError:
                continue  # it could be struck once, and the plan has changed since: dormant
    return plan


def check(plan: Plan, fault: PlanFault) -> None:
    """Raises UserError if there is nothing in ``plan`` for the fault to break."""
    known_devices = set(_devices(plan, fault.ns))
    if fault.strike(plan) is not plan or getattr(fault, "device", "") in known_devices:
        return
    if isinstance(fault, RouteFault):
        there = [
            item.destination for item in plan.in_namespace(fault.ns) if isinstance(item, Route) and not item.learned
        ]
        known = f"it has {', '.join(dict.fromkeys(there))}" if there else "it has none of its own"
        raise UserError(f"{fault.place} has no route to {fault.destination} that could be taken away", hint=known)
    if isinstance(fault, FlushFault):
        tables = sorted({name for item in plan.in_namespace(fault.ns) for name in _tables(item)})
        known = f"it has {', '.join(tables)}" if tables else ""
        raise UserError(f"{fault.place} has no {fault.table or 'rules'} to flush", hint=known)
    device = getattr(fault, "device", "")
    raise UserError(
        f"there is no device {device!r} in {fault.place} that the plan makes",
        hint=f"it has {', '.join(sorted(known_devices))}",
    )


def is_dormant(plan: Plan, fault: PlanFault) -> bool:
    """Whether the fault finds nothing to break in ``plan``, as it is without it."""
    return overlay(plan, [fault]) is plan


# ---------------------------------------------------------------- changing plans


def _mapped(plan: Plan, change: Callable[[AnyObject], AnyObject | None]) -> Plan:
    """The plan with each object as ``change`` returns it (None: without it); the very same if nothing changed."""
    fragments = dict(plan.fragments)
    touched = False
    for name, objects in plan.fragments.items():
        made = [change(item) for item in objects]
        if any(new is not old for new, old in zip(made, objects, strict=True)):
            touched = True
            fragments[name] = tuple(item for item in made if item is not None)
    return msgspec.structs.replace(plan, fragments=fragments) if touched else plan


def _added(plan: Plan, item: AnyObject) -> Plan:
    """The plan with one more object, in the fragment that its namespace stands in: it goes when that goes."""
    name = next((name for name, objects in plan.fragments.items() if any(other.ns == item.ns for other in objects)), "")
    if item.ns in plan.fragments:
        name = item.ns
    return msgspec.structs.replace(plan, fragments={**plan.fragments, name: (*plan.fragments[name], item)})


def _adjusted_bridges(plan: Plan, before: Plan, *struck: tuple[str, str]) -> Plan:
    """The kernel gives a bridge the smallest MTU of its ports (``br_mtu_auto_adjust``); the plan says so, too. Only
    bridges at the struck devices (and their far ends) are looked at."""
    if plan is before:
        return plan
    ends = set(struck)
    for item in before:
        if isinstance(item, Veth) and not ends.isdisjoint(both := ((item.ns, item.name), (item.peer_ns, item.peer))):
            ends.update(both)
    ports = [item for item in plan if isinstance(item, BridgePort)]
    for ns, bridge in {(port.ns, port.bridge) for port in ports if (port.ns, port.device) in ends}:
        devices = {port.device for port in ports if (port.ns, port.bridge) == (ns, bridge)}
        smallest = min(_mtus(plan, ns, devices), default=0)

        def change(item: AnyObject, ns: str = ns, name: str = bridge, mtu: int = smallest) -> AnyObject:
            if isinstance(item, Bridge) and (item.ns, item.name) == (ns, name) and mtu and item.mtu != mtu:
                return msgspec.structs.replace(item, mtu=mtu)
            return item

        plan = _mapped(plan, change)
    return plan


def _mtus(plan: Plan, ns: str, devices: set[str]) -> Iterator[int]:
    for item in plan:
        if isinstance(item, Veth):
            if item.ns == ns and item.name in devices:
                yield item.mtu
            if item.peer_ns == ns and item.peer in devices:
                yield item.peer_mtu or item.mtu
        elif isinstance(item, Link) and item.ns == ns and item.name in devices:
            yield item.mtu


def _broken(item: AnyObject, fault: PlanFault, **changes: object) -> AnyObject:
    made = msgspec.structs.replace(item, **changes)
    return item if made == item else msgspec.structs.replace(made, why=f"{item.why} · fault: {fault.says()}")


def _is_end(item: AnyObject, ns: str, device: str) -> tuple[bool, bool]:
    """Whether the object is the device, as its near end or its far end."""
    near = isinstance(item, Link) and (item.ns, item.name) == (ns, device)
    return near, isinstance(item, Veth) and (item.peer_ns, item.peer) == (ns, device)


def _at(fault: MtuFault | MacFault | HairpinFault | FilterFault) -> str:
    if fault.ns == UNDERLAY:
        return f"switch port {fault.device} ({fault.place})"
    return f"{fault.place}:{fault.device}"


def _has_namespace(plan: Plan, ns: str) -> bool:
    key: Key = ("namespace", ns)
    return any(item.key == key for item in plan.in_namespace(ns))


def _tables(item: AnyObject) -> tuple[str, ...]:
    if item.component == FAULT:
        return ()
    if isinstance(item, ProxyRules):
        return tuple(item.tables)
    if isinstance(item, IptablesRules):
        return (item.table,)
    return (item.name,) if isinstance(item, (NftTable, NftRules)) else ()


def _devices(plan: Plan, ns: str) -> Iterator[str]:
    for item in plan:
        if isinstance(item, Link) and item.ns == ns:
            yield item.name
        if isinstance(item, Veth) and item.peer_ns == ns:
            yield item.peer


AnyFault = MtuFault | MacFault | HairpinFault | SysctlFault | FilterFault | RouteFault | FlushFault | ProxyStopFault


def in_force(faults: Sequence[PlanFault], plan: Plan) -> tuple[str, ...]:
    """A line for each fault; ``plan`` is what they would strike."""
    return tuple(
        fault.says() + (" (there is nothing of it just now)" if is_dormant(plan, fault) else "") for fault in faults
    )
