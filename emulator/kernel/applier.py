"""Carry out the difference of two plans: all of it, or nothing.

Operations are gathered by kind, since the kernel is fast when it is asked for much at once. Removals come first, the
other way round; then what is new, from the namespaces up to the daemons. Every object that is set or taken away is
written down. When one is refused, the list is run backwards, objects that fell with a device or namespace included, and
the error goes to the caller; if even that fails, the lab is ``broken`` and must be torn down.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from emulator.errors import CnilabError
from emulator.kernel import offloads
from emulator.kernel.carrier import Awaited, await_carrier
from emulator.kernel.daemons import Supervisor
from emulator.kernel.devices import Devices
from emulator.kernel.impairment import Impairments
from emulator.kernel.inventory import Inventory
from emulator.kernel.node_files import remove_files, write_files
from emulator.kernel.rulesets import Backend, Rulesets
from emulator.kernel.sysctls import Sysctls
from emulator.kernel.underlay import LabNet
from emulator.kernel.wireguard import Wireguards
from emulator.kernel.wiring import Wired, Wiring
from emulator.plan.diff import Operation
from emulator.plan.model import (
    AnyObject,
    CniAttachment,
    Daemon,
    Dummy,
    File,
    Impairment,
    Ipip,
    IpSet,
    IptablesRules,
    IpvsServers,
    Namespace,
    NftRules,
    NftTable,
    Offloads,
    ProxyRules,
    Route,
    Sysctl,
    Tun,
    Wireguard,
    WireguardPeer,
)

if TYPE_CHECKING:
    from emulator.kernel.attachments import Attachments

Progress = Callable[[str], None]
T = TypeVar("T")

_RULESETS = (IptablesRules, NftTable, NftRules, IpvsServers, IpSet, ProxyRules)
# What can be loaded before the devices that it names are there
_BEFORE_DEVICES = (IptablesRules, IpSet, NftTable)
_NOT_WIRED = (*_RULESETS, Offloads, Impairment, File, Daemon, CniAttachment, WireguardPeer)


class Applier:
    """The one that changes the kernel. Not for several threads at once.

    ``net`` is the Mininet to build the underlay in (None: a new one). ``allow_missing`` lets impairments go that this
    kernel cannot do; ``labels`` then says which. ``on_death`` hears of daemons that die, ``on_report`` what daemons of
    ours mean for the lab, ``on_namespace`` of each namespace as it is made, before anything is in it: whoever captures
    must be there for the first packet.
    """

    def __init__(
        self,
        net: LabNet | None = None,
        *,
        allow_missing: bool = False,
        on_death: Callable[[str, str, str], None] | None = None,
        on_namespace: Callable[[str], None] | None = None,
        on_report: Callable[[str], None] | None = None,
        iptables: Backend = "",
    ) -> None:
        self.net = net if net is not None else LabNet()
        self.inventory = Inventory()
        self.devices = Devices(self.net)
        self.sysctls = Sysctls(self.devices.netns)
        self.wiring = Wiring(self.net, self.devices, self.sysctls, self.inventory)
        self.rulesets = Rulesets(self.net, iptables, self.inventory.held_in)
        self.supervisor = Supervisor(self.net, on_death, on_report=on_report)
        self.attachments: Attachments | None = None  # before the first pod that plugins attach
        self.impairments = Impairments(self.devices.netns, allow_missing=allow_missing)
        self.wireguards = Wireguards(self.net, self.devices.netns, self.wiring.set_mtu)
        self.broken = False
        self._on_namespace = on_namespace

    @property
    def labels(self) -> tuple[str, ...]:
        """What every output must say: wishes of the topology that this kernel could not grant."""
        return self.impairments.labels

    def apply(self, operations: Sequence[Operation], progress: Progress | None = None) -> None:
        """Carry out the operations, or none of them.

        Raises ApplyError (or DaemonError, Unsupported) with the lab as it was before; with ``broken`` set on the
        error and on this object, the lab must be torn down.
        """
        if self.broken:
            raise CnilabError("the lab is half-wired after a failed change", hint="take it down: `cnilab down`")
        removed = [step.old for step in operations if step.verb == "remove" and step.old is not None]
        replaced = [
            (step.old, step.new)
            for step in operations
            if step.verb == "replace" and step.old is not None and step.new is not None
        ]
        added = [step.new for step in operations if step.verb == "add" and step.new is not None]
        self.impairments.check([*added, *(new for _, new in replaced)])
        _require_devices(added)
        journal = _Journal(self.inventory)
        try:
            self._execute(removed, replaced, added, journal, progress or _silent)
        except BaseException as error:
            self._undo(journal, error)
            raise

    def wait_learned(
        self, objects: Iterable[AnyObject], timeout: float = 30.0, progress: Progress | None = None
    ) -> None:
        """Return once every route among ``objects`` (a plan, say) that a daemon must bring is in the kernel (see
        :mod:`emulator.kernel.learned`)."""
        from emulator.kernel.learned import wait_learned

        wanted = [item for item in objects if isinstance(item, Route) and item.learned]
        wait_learned(wanted, self.devices.channel, self.devices.netns, self.supervisor, timeout, progress or _silent)

    def repair_proxy(self, *, always: bool = False) -> list[str]:
        """Put a service proxy's rules back where somebody flushed them (see :meth:`Rulesets.repair`); what was done, a
        line each."""
        return self.rulesets.repair(
            [item for item in self.inventory if isinstance(item, (ProxyRules, NftRules, IpvsServers))], always=always
        )

    def close(self) -> None:
        """End daemons and shells and let go of all descriptors. The namespaces die with the sandbox."""
        self.supervisor.close()
        self.rulesets.close()
        self.devices.close()
        self.net.close()

    # ------------------------------------------------------------ forwards

    def _execute(
        self,
        removed: Sequence[AnyObject],
        replaced: Sequence[tuple[AnyObject, AnyObject]],
        added: Sequence[AnyObject],
        journal: _Journal,
        progress: Progress,
    ) -> None:
        self.wiring.begin()
        if removed:
            progress(f"removing {_count(removed)}")
        self._change(removed, replaced, [item for item in added if not _is_learned(item)], journal, progress)

    def _change(
        self,
        removed: Sequence[AnyObject],
        replaced: Sequence[tuple[AnyObject, AnyObject]],
        added: Sequence[AnyObject],
        journal: _Journal,
        progress: Progress,
    ) -> None:
        late = _sets_in_use(removed, replaced, added)
        if removed:
            self._remove([item for item in removed if item not in late], journal)
        self._make(added, replaced, journal, progress)
        self.rulesets.remove(late, journal.taken)

    def _remove(self, removed: Sequence[AnyObject], journal: _Journal) -> None:
        dead = {item.ns for item in removed if isinstance(item, Namespace)}
        for ns in dead:
            self.rulesets.forget(ns)
        attached = _of(removed, CniAttachment)
        if attached and self.attachments is not None:
            self.attachments.remove(attached, dead, journal.taken)
        peers = [item for item in _of(removed, WireguardPeer) if item.ns not in dead]
        self.wireguards.remove(peers, self._wireguard, journal.taken)
        self.supervisor.stop(_of(removed, Daemon), journal.taken)
        removed = [item for item in removed if item.ns not in dead or not isinstance(item, _NOT_WIRED)]
        remove_files(self.net, _of(removed, File), journal.taken)
        self.rulesets.remove([item for item in removed if isinstance(item, _RULESETS)], journal.taken)
        self.impairments.remove(_of(removed, Impairment), journal.taken)
        offloads.switch(_of(removed, Offloads), self.devices.netns, journal.taken, on=True)
        # Only faults take parameters away again; the namespace, if it dies, takes its own along.
        self.sysctls.restore([item for item in _of(removed, Sysctl) if item.ns not in dead], journal.taken)
        wired: list[Any] = [item for item in removed if not isinstance(item, (*_NOT_WIRED, Sysctl)) or item.ns in dead]
        self.wiring.remove(wired, journal.taken)

    def _make(
        self,
        added: Sequence[AnyObject],
        replaced: Sequence[tuple[AnyObject, AnyObject]],
        journal: _Journal,
        progress: Progress,
    ) -> None:
        rules = [item for item in added if isinstance(item, _RULESETS)]
        changed = [(old, new) for old, new in replaced if isinstance(old, _RULESETS) and isinstance(new, _RULESETS)]
        if rules or changed:
            progress(f"loading {len(rules) + len(changed)} rulesets")
        # Of machines that are there already, so that they judge the first packet of a pod that comes
        born = {item.ns for item in added if isinstance(item, Namespace)}
        early = [item for item in rules if isinstance(item, _BEFORE_DEVICES) and item.ns not in born]
        changed_early = [pair for pair in changed if isinstance(pair[1], _BEFORE_DEVICES)]
        self.rulesets.load(early, changed_early, journal.put)
        judges = self._tell_judges(added, replaced, born, journal)
        wired: list[Wired] = [item for item in added if not isinstance(item, _NOT_WIRED)]
        rewired: list[Any] = [pair for pair in replaced if not isinstance(pair[1], _NOT_WIRED)]
        if wired or rewired:
            progress(f"wiring {_count([*wired, *(new for _, new in rewired)])}")
        judged = {item.ns for item in (*early, *(new for _, new in changed_early), *judges)}
        self.wiring.make(wired, rewired, self._told(journal.put), judged)
        offloads.switch(_of(added, Offloads), self.devices.netns, journal.put)
        self.impairments.set(_of([*added, *(new for _, new in replaced)], Impairment), journal.put)
        self.rulesets.load(
            [item for item in rules if not isinstance(item, _BEFORE_DEVICES) or item.ns in born],
            [pair for pair in changed if not isinstance(pair[1], _BEFORE_DEVICES)],
            journal.put,
        )
        written = _files(judges)
        files = _of([*added, *(new for _, new in replaced)], File)
        write_files(self.net, [item for item in files if (item.ns, item.path) not in written], journal.put)
        ready = {item.key for item in judges}
        daemons = [item for item in _of(added, Daemon) if item.key not in ready]
        restarted = [pair for pair in _daemon_pairs(replaced) if pair[1].key not in ready]
        if daemons or restarted:
            progress(f"starting {len(daemons) + len(restarted)} daemons")
        self.supervisor.start(daemons, journal.put)
        self.supervisor.change(restarted, journal.put)
        self._await_tuns({item.ns for item in (*daemons, *(new for _, new in restarted))})
        told = [*added, *(new for _, new in replaced)]
        self.wireguards.set(_of(told, Wireguard), _of(told, WireguardPeer), self._wireguard, journal.put)
        if attached := _of(added, CniAttachment):
            progress(f"running CNI plugins for {len(attached)} pods")
            self._attach(attached, journal)

    def _tell_judges(
        self,
        added: Sequence[AnyObject],
        replaced: Sequence[tuple[AnyObject, AnyObject]],
        born: Collection[str],
        journal: _Journal,
    ) -> list[Daemon]:
        """Start and reload the daemons that decide on packets, in machines that are there already; those daemons."""
        fresh = [item for item in _of(added, Daemon) if item.before_devices and item.ns not in born]
        pairs = [pair for pair in _daemon_pairs(replaced) if pair[1].before_devices]
        judges = [*fresh, *(new for _, new in pairs)]
        read = _files(judges)
        files = _of([*added, *(new for _, new in replaced)], File)
        write_files(self.net, [item for item in files if (item.ns, item.path) in read], journal.put)
        self.supervisor.start(fresh, journal.put)
        self.supervisor.change(pairs, journal.put)
        return judges

    def restart(self, ns: str, name: str) -> None:
        """Start a daemon again; one that serves a WireGuard device is told everything anew. Raises NotFound,
        DaemonError, ApplyError."""
        self.supervisor.restart(ns, name)
        self._await_tuns([ns])
        device = self._wireguard(ns, name)
        if device is not None and device.userspace:
            held = self.inventory.held_in(ns)
            peers = [item for item in _of(held, WireguardPeer) if item.device == name]
            self.wireguards.set([device], peers, self._wireguard, self.inventory.put)

    def _await_tuns(self, machines: Iterable[str]) -> None:
        """Return once the devices that processes of these machines serve carry packets: they have a carrier when
        somebody has them open, and hear of it from a work queue, too. Machines with a dead process are left alone."""
        served: dict[str, dict[str, Awaited]] = {}
        dead = {one.ns for one in self.supervisor.status() if one.state == "died"}
        for ns in set(machines) - dead:
            for item in self.inventory.held_in(ns):
                if isinstance(item, Tun) or (isinstance(item, Wireguard) and item.userspace):
                    served.setdefault(ns, {})[item.name] = "cable"
        if served:
            await_carrier(self.devices.channel, served)

    def _wireguard(self, ns: str, name: str) -> Wireguard | None:
        item = self.inventory.find(("link", ns, name))
        return item if isinstance(item, Wireguard) else None

    def _attach(self, items: Sequence[CniAttachment], journal: _Journal) -> None:
        if self.attachments is None:
            from emulator.kernel.attachments import Attachments  # few labs have any: the others must not wait for it

            self.attachments = Attachments(self.net)
        self.attachments.add(items, journal.put)

    def _told(self, put: Callable[[AnyObject], None]) -> Callable[[AnyObject], None]:
        """``put``, and whoever wants to hear of namespaces."""
        tell = self._on_namespace
        if tell is None:
            return put

        def put_and_tell(item: AnyObject) -> None:
            put(item)
            if isinstance(item, Namespace):
                tell(item.ns)

        return put_and_tell

    # ------------------------------------------------------------ backwards

    def _undo(self, journal: _Journal, error: BaseException) -> None:
        added, replaced, removed = journal.inverse()
        again = _Journal(self.inventory)
        try:
            self.wiring.begin()
            self.sysctls.restore(_surviving_sysctls(added), again.taken)
            undone = [item for item in reversed(added) if not isinstance(item, Sysctl)]
            self._change(undone, replaced, removed, again, _silent)
        except Exception as second:  # whatever it is: the lab is half-wired
            self.broken = True
            error.broken = True  # type: ignore[attr-defined]
            error.add_note(f"and it could not be undone: {second}")
            if isinstance(error, CnilabError):
                error.hint = "the lab is half-wired: take it down with `cnilab down`"


class _Journal:
    """What was done, in order, with what fell along with it; keeps the inventory in step."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._before: dict[tuple[str | int, ...], AnyObject | None] = {}

    def put(self, item: AnyObject) -> None:
        """The object was set."""
        self._before.setdefault(item.key, self._inventory.find(item.key))
        self._inventory.put(item)

    def taken(self, item: AnyObject) -> None:
        """The object was taken away, and others with it."""
        for fallen in self._inventory.falls_with(item):
            self._before.setdefault(fallen.key, self._inventory.find(fallen.key))
            self._inventory.take(fallen)

    def inverse(self) -> tuple[list[AnyObject], list[tuple[AnyObject, AnyObject]], list[AnyObject]]:
        """What is to be removed, replaced (from, to) and added for everything to be as before."""
        remove: list[AnyObject] = []
        replace: list[tuple[AnyObject, AnyObject]] = []
        add: list[AnyObject] = []
        for key, before in self._before.items():
            now = self._inventory.find(key)
            if before is None:
                if now is not None:
                    remove.append(now)
            elif now is None:
                add.append(before)
            elif now is not before:
                replace.append((now, before))
        return remove, replace, add


def _sets_in_use(
    removed: Sequence[AnyObject], replaced: Sequence[tuple[AnyObject, AnyObject]], added: Sequence[AnyObject]
) -> list[IpSet]:
    """Sets that rules may refer to until those are replaced: they go last. A set that comes again under its name, with
    another type, cannot wait."""
    changed = {old.ns for old, _ in replaced if isinstance(old, (IptablesRules, IpSet))}  # lists refer to sets, too
    coming = {item.key for item in added}
    return [item for item in removed if isinstance(item, IpSet) and item.ns in changed and item.key not in coming]


def _surviving_sysctls(added: Iterable[AnyObject]) -> list[Sysctl]:
    """Parameters of namespaces that were there before."""
    added = list(added)
    born = {item.ns for item in added if isinstance(item, Namespace)}
    return [item for item in added if isinstance(item, Sysctl) and item.ns not in born]


def _require_devices(added: Iterable[AnyObject]) -> None:
    """Raise Unsupported for a kind of device that only some kernels have: manifests may ask for more than the style's
    mode does."""
    added = list(added)
    needed = [
        name
        for name, wanted in (
            ("dummy", any(isinstance(item, Dummy) for item in added)),
            ("ipvs", any(isinstance(item, IpvsServers) for item in added)),
            ("ipip", any(isinstance(item, Ipip) for item in added)),
            ("wireguard", any(isinstance(item, Wireguard) and not item.userspace for item in added)),
        )
        if wanted
    ]
    if needed:
        from emulator.kernel.capabilities import require

        require(needed)


def _daemon_pairs(replaced: Iterable[tuple[AnyObject, AnyObject]]) -> list[tuple[Daemon, Daemon]]:
    return [(old, new) for old, new in replaced if isinstance(old, Daemon) and isinstance(new, Daemon)]


def _files(daemons: Iterable[Daemon]) -> set[tuple[str, str]]:
    """The files that daemons read, by namespace and path."""
    return {(item.ns, path) for item in daemons for path in item.files}


def _of(items: Iterable[AnyObject], kind: type[T]) -> list[T]:
    return [item for item in items if isinstance(item, kind)]


def _is_learned(item: AnyObject) -> bool:
    return isinstance(item, Route) and item.learned


def _count(items: Sequence[AnyObject]) -> str:
    namespaces = sum(isinstance(item, Namespace) for item in items)
    return f"{len(items)} objects" + (f", {namespaces} namespaces" if namespaces else "")


def _silent(_: str) -> None:
    """Nobody watches."""
