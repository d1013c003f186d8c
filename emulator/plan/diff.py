"""What must be done to turn one plan into another, in an order that can be executed as it stands.

Three rules keep the list short. What vanishes with its namespace or device is not removed one by one. A change
of ``component`` or ``why`` is no change. A route that a routing daemon must bring (``learned``) is never an
operation: it is waited for.

A pod lives and dies as a whole: if its devices or addresses differ, it is another pod under an old name (a
StatefulSet's), and its namespace is removed and made anew, so that no socket of the dead pod survives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from emulator.cluster.changes import difference
from emulator.errors import CnilabError
from emulator.plan.model import (
    FAULT,
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    Chain,
    CniAttachment,
    Daemon,
    Dummy,
    FdbEntry,
    File,
    Impairment,
    Ipip,
    IpSet,
    IptablesRules,
    IpvsServers,
    Jump,
    Key,
    Namespace,
    Neighbour,
    NftRules,
    NftTable,
    Offloads,
    Plan,
    PolicyRule,
    ProxyRules,
    Route,
    Rule,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
    Wireguard,
    WireguardPeer,
)

Verb = Literal["add", "remove", "replace"]
Objects = Mapping[Key, AnyObject]


class Operation(msgspec.Struct, frozen=True):
    """One step. ``new`` is empty when removing, ``old`` when adding.

    A daemon that is replaced by its equal is to be reloaded: one of its files changed.
    """

    verb: Verb
    new: AnyObject | None = None
    old: AnyObject | None = None

    @property
    def subject(self) -> AnyObject:
        """The object that the step is about: the new one if there is one."""
        item = self.new if self.new is not None else self.old
        if item is None:
            raise CnilabError("an operation without an object")
        return item


def diff(old: Plan | None, new: Plan) -> list[Operation]:
    """The steps from ``old`` (nothing, if it is None) to ``new``: removals, replacements, additions."""
    before, after = _changed(old.fragments if old else {}, new.fragments)
    return _Difference(before, after, old, new).operations()


def _changed(
    old: Mapping[str, tuple[AnyObject, ...]], new: Mapping[str, tuple[AnyObject, ...]]
) -> tuple[dict[Key, AnyObject], dict[Key, AnyObject]]:
    """Of those fragments that are not the very same in both plans the objects that are not, by key; and all namespaces,
    which tell whether a pod is there before and after."""
    before: dict[Key, AnyObject] = {}
    after: dict[Key, AnyObject] = {}
    for name, fragment in old.items():
        other = new.get(name, ())
        if other is not fragment:
            before.update((item.key, item) for item in (*_namespaces(fragment), *difference(fragment, other)[0]))
    for name, fragment in new.items():
        other = old.get(name, ())
        if other is not fragment:
            after.update((item.key, item) for item in (*_namespaces(fragment), *difference(other, fragment)[1]))
    return before, after


def _namespaces(fragment: Iterable[AnyObject]) -> list[Namespace]:
    return [item for item in fragment if isinstance(item, Namespace)]


class _Difference:
    """The working state of one diff: what goes, what stays, what comes."""

    def __init__(self, before: Objects, after: Objects, old: Plan | None, new: Plan) -> None:
        self.old_plan = old
        self.new_plan = new
        self.removed = [item for key, item in before.items() if key not in after]
        self.added = [item for key, item in after.items() if key not in before]
        self.replaced: list[tuple[AnyObject, AnyObject]] = []
        self.dead_namespaces = {item.ns for item in self.removed if isinstance(item, Namespace)}
        self.dead_devices: set[tuple[str, str]] = set()

        pairs = [
            (was, after[key])
            for key, was in before.items()
            if key in after and was is not after[key] and not equivalent(was, after[key])
        ]
        reborn = _reborn_pods(self.removed, self.added, pairs, before, after)
        rebuilt_devices = self._split_pairs(pairs, reborn)
        self._bury(reborn)
        if rebuilt_devices or reborn:
            self._restore_survivors(reborn)
        self._unpair()

    def _split_pairs(self, pairs: Iterable[tuple[AnyObject, AnyObject]], reborn: set[str]) -> bool:
        rebuilt = False
        for was, now in pairs:
            if was.ns in reborn:
                continue
            if _must_be_made_anew(was, now):
                rebuilt = True
                self.removed.append(was)
                self.added.append(now)
            else:
                self.replaced.append((was, now))
        return rebuilt

    def _bury(self, reborn: set[str]) -> None:
        """Find out every namespace and device that goes."""
        if reborn and self.old_plan is not None:
            self.dead_namespaces |= reborn
            listed = {item.key for item in self.removed}
            for item in self.old_plan:
                if item.ns in reborn and item.key not in listed:
                    self.removed.append(item)
        for item in self.removed:
            self.dead_devices.update(_ends(item))
        for item in self.removed:
            if isinstance(item, Vxlan) and (item.ns, item.underlay) in self.dead_devices:
                self.dead_devices.add((item.ns, item.name))

    def _restore_survivors(self, reborn: set[str]) -> None:
        """What the new plan still wants, but vanishes with a device or namespace that is made anew, comes again."""
        listed = {item.key for item in self.added}
        gone = {item.key for item in self.removed}
        for item in self.new_plan:
            if item.key in listed:
                continue
            if item.ns in reborn or not self.dead_devices.isdisjoint(_devices_of(item)):
                self.added.append(item)
                listed.add(item.key)
                if item.key not in gone:
                    self.dead_devices.update(_ends(item))
        self.replaced = [(was, now) for was, now in self.replaced if now.key not in listed]

    def _unpair(self) -> None:
        """Take replacements apart whose old half vanishes with a device, or whose new half waits for one."""
        coming = {end for item in self.added for end in _ends(item)}
        together = []
        for was, now in self.replaced:
            if not coming.isdisjoint(_devices_of(now)) or not self.dead_devices.isdisjoint(_devices_of(was)):
                self.removed.append(was)
                self.added.append(now)
            else:
                together.append((was, now))
        self.replaced = together

    def operations(self) -> list[Operation]:
        steps = [
            Operation(verb="remove", old=item)
            for item in sorted(self.removed, key=_rank, reverse=True)
            if self._needs_removal(item)
        ]
        for was, now in sorted(self.replaced, key=lambda pair: _rank(pair[1])):
            steps.extend(_replacement(was, now))
        steps.extend(
            Operation(verb="add", new=item)
            for item in sorted(self.added, key=_rank)
            if not (isinstance(item, Route) and item.learned)
        )
        steps.extend(self._reloads(steps))
        return steps

    def _needs_removal(self, item: AnyObject) -> bool:
        if isinstance(item, Namespace):
            return True
        if isinstance(item, CniAttachment):
            return True  # plugins hold more than the pod's namespace: leases, rules and devices of the node
        if isinstance(item, Daemon):
            return True  # a process holds its namespace alive: it must be ended, it does not vanish
        if isinstance(item, Sysctl) and item.component != FAULT:
            return False  # there is no way back to "never set"; whoever wants another value says so
        if isinstance(item, Route) and item.learned:
            return False
        if item.ns in self.dead_namespaces:
            return False
        if isinstance(item, Veth):
            return item.peer_ns not in self.dead_namespaces
        return self.dead_devices.isdisjoint(_devices_of(item))

    def _reloads(self, steps: list[Operation]) -> list[Operation]:
        """Daemons that are not touched themselves, but read a file that is."""
        written: defaultdict[str, set[str]] = defaultdict(set)
        touched: set[Key] = set()
        for step in steps:
            if isinstance(step.subject, File) and step.verb != "remove":
                written[step.subject.ns].add(step.subject.path)
            elif isinstance(step.subject, Daemon):
                touched.add(step.subject.key)
        if not written or self.old_plan is None:
            return []
        running = {item.key for item in self.old_plan if isinstance(item, Daemon)}
        return [
            Operation(verb="replace", new=item, old=item)
            for item in self.new_plan
            if isinstance(item, Daemon)
            and item.key in running
            and item.key not in touched
            and written[item.ns].intersection(item.files)
        ]


def equivalent(one: AnyObject, other: AnyObject) -> bool:
    """Whether the kernel could not tell the two apart: equal but for the words that explain them."""
    if one == other:
        return True
    if isinstance(one, IptablesRules) and isinstance(other, IptablesRules):
        return _same_rules(one, other)
    return _without_words(one) == _without_words(other)


def _same_rules(one: IptablesRules, other: IptablesRules) -> bool:
    """Chain by chain: in a table of thousands of rules most are the same objects, and one that differs is enough."""
    if len(one.chains) != len(other.chains) or len(one.jumps) != len(other.jumps):
        return False
    if not all(was == now or _same_chain(was, now) for was, now in zip(one.chains, other.chains, strict=True)):
        return False
    return msgspec.structs.replace(
        one, component="", why="", chains=(), jumps=tuple(map(_jump_without_words, one.jumps))
    ) == msgspec.structs.replace(
        other, component="", why="", chains=(), jumps=tuple(map(_jump_without_words, other.jumps))
    )


def _same_chain(one: Chain, other: Chain) -> bool:
    if one.name != other.name or len(one.rules) != len(other.rules):
        return False
    return all(
        was == now or _rule_without_words(was) == _rule_without_words(now)
        for was, now in zip(one.rules, other.rules, strict=True)
    )


def _rule_without_words(rule: Rule) -> Rule:
    return msgspec.structs.replace(rule, why="")


def _jump_without_words(jump: Jump) -> Jump:
    return msgspec.structs.replace(jump, rule=_rule_without_words(jump.rule))


def _without_words(item: AnyObject) -> AnyObject:
    if isinstance(item, Veth):
        return msgspec.structs.replace(item, component="", why="", peer_why="")
    if isinstance(item, CniAttachment):
        return msgspec.structs.replace(item, component="", why="", devices=(), addresses=())
    return msgspec.structs.replace(item, component="", why="")


def _reborn_pods(
    removed: Iterable[AnyObject],
    added: Iterable[AnyObject],
    pairs: Iterable[tuple[AnyObject, AnyObject]],
    before: Objects,
    after: Objects,
) -> set[str]:
    """The pods' namespaces that exist in both plans, with other devices or addresses."""
    changed = {item.ns for item in (*removed, *added) if isinstance(item, (Veth, Address))}
    changed |= {was.ns for was, now in pairs if _must_be_made_anew(was, now)}
    return {
        ns for ns in changed if ns.startswith("pod/") and ("namespace", ns) in before and ("namespace", ns) in after
    }


def _must_be_made_anew(was: AnyObject, now: AnyObject) -> bool:
    """Whether the difference is one that the kernel cannot make in place."""
    if type(was) is not type(now):
        return True
    if isinstance(was, Vxlan) and isinstance(now, Vxlan):
        return (was.vni, was.port, was.local, was.underlay, was.learning) != (
            now.vni,
            now.port,
            now.local,
            now.underlay,
            now.learning,
        )
    if isinstance(was, Ipip) and isinstance(now, Ipip):
        return (was.local, was.remote) != (now.local, now.remote)
    if isinstance(was, Wireguard) and isinstance(now, Wireguard):
        return was.userspace != now.userspace
    if isinstance(was, Veth) and isinstance(now, Veth):
        return (was.peer_ns, was.peer) != (now.peer_ns, now.peer)
    if isinstance(was, IpSet) and isinstance(now, IpSet):
        return (was.type, was.family) != (now.type, now.family)
    return isinstance(was, (Namespace, CniAttachment))


def _replacement(was: AnyObject, now: AnyObject) -> list[Operation]:
    if isinstance(was, Route) and isinstance(now, Route):
        if now.learned:
            return [] if was.learned else [Operation(verb="remove", old=was)]
        if was.learned:
            return [Operation(verb="add", new=now)]
    return [Operation(verb="replace", new=now, old=was)]


def _ends(item: AnyObject) -> tuple[tuple[str, str], ...]:
    """The devices that an object is: none, one, or both ends of a veth."""
    if isinstance(item, Veth):
        return (item.ns, item.name), (item.peer_ns, item.peer)
    if isinstance(item, (Bridge, Vxlan, Ipip, Tun, Dummy, Wireguard)):
        return ((item.ns, item.name),)
    return ()


def _devices_of(item: AnyObject) -> tuple[tuple[str, str], ...]:
    """The devices without which an object cannot be."""
    if isinstance(item, BridgePort):
        return (item.ns, item.device), (item.ns, item.bridge)
    if isinstance(item, (Address, Neighbour, FdbEntry, Route, Offloads, Impairment, WireguardPeer)):
        return ((item.ns, item.device),)
    if isinstance(item, Vxlan):
        return ((item.ns, item.underlay),)
    if isinstance(item, Sysctl):
        return ((item.ns, sysctl_device(item.name)),)
    return ()


def sysctl_device(name: str) -> str:
    """The device that a parameter belongs to; empty for one of the whole namespace.

    ``net/ipv4/conf/flannel.1/rp_filter`` -> ``flannel.1``.
    """
    parts = name.split("/")
    if len(parts) == 5 and parts[2] in ("conf", "neigh") and parts[3] not in ("all", "default"):
        return parts[3]
    return ""


_ORDER: dict[type, int] = {
    Namespace: 0,
    # 1: parameters of the whole namespace, which devices copy when they are made
    Bridge: 2,
    Veth: 2,
    Vxlan: 3,  # its underlay device first
    Ipip: 3,
    Tun: 3,
    Dummy: 3,
    Wireguard: 3,
    BridgePort: 4,
    # 5: parameters of a device
    Offloads: 6,
    Address: 7,
    FdbEntry: 8,
    Neighbour: 9,
    # 10: routes on the link; 11: via a gateway, which must be reachable by then
    PolicyRule: 12,
    IpSet: 13,
    IptablesRules: 14,
    ProxyRules: 14,
    NftTable: 15,
    NftRules: 15,
    IpvsServers: 15,
    Impairment: 16,
    File: 17,
    Daemon: 18,
    WireguardPeer: 19,  # told to the process that serves the device, where it is no part of the kernel
    CniAttachment: 20,  # the node is ready by then
}


def _rank(item: AnyObject) -> int:
    if isinstance(item, Sysctl):
        return 5 if sysctl_device(item.name) else 1
    if isinstance(item, Route):
        return 11 if item.via else 10
    return _ORDER[type(item)]
