"""What is in Felix's sets: the addresses of endpoints, named ports, endpoints of Services.

Sources: projectcalico/calico felix/labelindex, felix/ipsets (ipset_defs.go: types and members), felix/calc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from emulator.plan.model import Family, IpSet
from emulator.policy.compiled import Compiled, address_of, port_numbers
from emulator.policy.felix_matches import SetRef
from emulator.policy.felix_rules import COMPONENT, ipset_name
from emulator.policy.selection import contains_set, selects

_HALVES = {"0.0.0.0/0": ("0.0.0.0/1", "128.0.0.0/1"), "::/0": ("::/1", "8000::/1")}  # hash:net has no /0

MOST_REMEMBERED = 50_000  # sets in nodes: those of policies that are long gone are among them


class Members:
    """The members of sets at one step; those that did not change are taken from the step before."""

    def __init__(self, compiled: Compiled, before: Members | None = None, touched: Iterable[str] | None = None) -> None:
        """``touched`` are the pods that differ from those of the step ``before``."""
        self._compiled = compiled
        self._found: dict[tuple[SetRef, Family], tuple[str, ...]] = {}
        self._keys: dict[SetRef, frozenset[str]] = {}
        # What was written into nodes, at this step and those before
        self._written: dict[tuple[str, SetRef, Family], IpSet] = before._written if before is not None else {}
        if before is not None and touched is not None:
            self._keep(before, frozenset(touched))

    def _keep(self, before: Members, touched: frozenset[str]) -> None:
        old, new = before._compiled, self._compiled
        same_networks = old.networks == new.networks and old.network_sets == new.network_sets
        same_namespaces = old.cluster.namespaces is new.cluster.namespaces or not new.network_sets
        if not (same_networks and same_namespaces and old.cluster.nodes == new.cluster.nodes):
            return
        for (ref, family), members in before._found.items():
            if ref.service is not None or ref.nodes is not None:
                continue
            keys = before._keys.get(ref)
            if keys is None or keys is not self._maybe_pods(ref, keys) or not touched.isdisjoint(keys):
                continue
            self._found[ref, family] = members
            self._keys[ref] = keys

    def _maybe_pods(self, ref: SetRef, old: frozenset[str]) -> frozenset[str] | None:
        """``old`` if the set's pods are the same as before; something else if not, or if that is not known."""
        if ref.pods is None or ref.pods not in self._compiled.members:
            return None
        found = self._pods(ref)
        return old if found == old else found

    def of(self, ref: SetRef, family: Family) -> tuple[str, ...]:
        """The members in one family, sorted, as ipset(8) writes them."""
        key = (ref, family)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = tuple(sorted(set(self._members(ref, family))))
        return found

    def written(self, ns: str, ref: SetRef, family: Family, why: str) -> IpSet:
        """The set in a node: the same object as long as its members are."""
        members = self.of(ref, family)
        known = self._written.get((ns, ref, family))
        if known is not None and known.members is members and known.why == why:
            return known
        if len(self._written) > MOST_REMEMBERED:
            self._written.clear()
        made = self._written[ns, ref, family] = IpSet(
            ns=ns,
            name=ipset_name(family, ref.name),
            type=ref.type,
            family=family,
            members=members,
            component=COMPONENT,
            why=why,
        )
        return made

    def _members(self, ref: SetRef, family: Family) -> Iterable[str]:
        compiled = self._compiled
        if ref.service is not None:
            endpoints = compiled.endpoints(ref.service, family)
            if ref.with_ports:
                return (f"{address},{protocol.lower()}:{port}" for address, protocol, port in endpoints)
            return (address for address, _, _ in endpoints)
        if ref.nodes is not None:
            nodes = (node for node in compiled.cluster.nodes if selects(ref.nodes, node.labels))
            return (address for node in nodes for address in node.addresses if (":" in address) == (family == 6))
        keys = self._keys[ref] = self._pods(ref)
        pods = [(address, compiled.pods[key]) for key in keys if (address := address_of(compiled.pods[key], family))]
        if ref.port:
            protocol = ref.protocol.lower()
            return (
                f"{address},{protocol}:{number}"
                for address, pod in pods
                for number in port_numbers(pod, ref.protocol, ref.port)
            )
        return [*(address for address, _ in pods), *self._nets(ref, family)]

    def _pods(self, ref: SetRef) -> frozenset[str]:
        members = self._compiled.members
        assert ref.pods is not None
        found = members.get(ref.pods)
        if found is None:  # no policy mentions it: the pods of a named port without a peer are all pods
            found = frozenset(self._compiled.pods)
        return found if ref.without is None else found - members[ref.without]

    def _nets(self, ref: SetRef, family: Family) -> list[str]:
        """The CIDRs of Calico's network sets that the selectors fit."""
        compiled, namespaces = self._compiled, self._compiled.cluster.namespaces
        assert ref.pods is not None
        if not compiled.network_sets or not ref.pods.network_sets:
            return []
        found: list[str] = []
        for one in compiled.network_sets:
            labels = namespaces.get(one.namespace, {})
            wanted = contains_set(ref.pods, one, labels)
            if wanted and not (ref.without is not None and contains_set(ref.without, one, labels)):
                found += [net for net in one.nets if (":" in net) == (family == 6)]
        return [part for net in found for part in _HALVES.get(net, (_single(net),))]


def _single(net: str) -> str:
    """A block of one address as ipset prints it."""
    return net.removesuffix("/128" if ":" in net else "/32")


def ipsets(ns: str, family: Family, refs: Mapping[SetRef, str], members: Members) -> Iterable[IpSet]:
    """The sets that a node's rules match; ``refs`` say what for."""
    return (members.written(ns, ref, family, why) for ref, why in refs.items())
