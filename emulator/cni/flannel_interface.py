"""Which interface flanneld takes on each node, and by which address it tells the others to reach it.

::

    nothing said                        the interface of the default route
    --iface, --iface-regex              the first that matches, by name or address
    --iface-can-reach                   the one that `ip route get` names
    --public-ip, node-public-ip         the one that has the address, unless one of the above is given
    public-ip-overwrite                 the others send there; this node's tunnel stays on its interface

The tunnel's own end (``local``, ``dev``, MTU) is the interface's, what the others put into their forwarding entries is
the public address. Both come as records of the cluster's nodes (:class:`Seen`).

Sources: flannel-io/flannel main.go, pkg/ipmatch/match.go (LookupExtIface), pkg/ip/iface.go, pkg/subnet/kube/kube.go
(AcquireLease, GetStoredPublicIP), pkg/subnet/kube/annotations.go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from emulator.cluster.model import Cluster, Interface, Machine, Node
from emulator.cluster.validation import invalid, parse_address
from emulator.cni.flannel_options import Options, read_options
from emulator.cni.go_regexp import compile_pattern
from emulator.cni.node_interfaces import (
    Found,
    by_name,
    of_default_route,
    of_interface,
    of_other_families,
    seen_as,
    towards,
    with_address,
)
from emulator.errors import ManifestError, Problem, UserError
from emulator.plan.addressing import families_of, family_of, of_family
from emulator.plan.model import Family

PREFIX = "flannel.alpha.coreos.com/"
OVERWRITE: dict[Family, str] = {4: f"{PREFIX}public-ip-overwrite", 6: f"{PREFIX}public-ipv6-overwrite"}
NODE_PUBLIC: dict[Family, str] = {4: f"{PREFIX}node-public-ip", 6: f"{PREFIX}node-public-ipv6"}
DAEMON_SET = "kube-flannel-ds"


@dataclass(frozen=True)
class Seen:
    """``own``: by name, each node with the interface that its flanneld took. ``told``: the cluster with each node as
    the others know it, by its public address. ``nat``: nodes whose public address, as flanneld was told at its start,
    is not their interface's."""

    own: dict[str, Node]
    told: Cluster
    nat: tuple[str, ...] = ()


_latest: list[tuple[Cluster, str, Seen]] = []  # of the last cluster: every node and pod asks for it


def seen(cluster: Cluster, daemon_set: str = DAEMON_SET, more: dict[str, str] | None = None) -> Seen:
    """What flanneld finds on every node. Raises ManifestError or UserError where it would not start."""
    if not (_latest and _latest[0][0] is cluster and _latest[0][1] == daemon_set):
        _latest[:] = [(cluster, daemon_set, _seen(cluster, read_options(cluster, daemon_set, more)))]
    return _latest[0][2]


def _seen(cluster: Cluster, options: dict[str, Options]) -> Seen:
    families = families_of(cluster.topology.pod_cidrs)
    own: dict[str, Node] = {}
    nodes: list[Node] = []
    nat: list[str] = []
    machines = {machine.name: machine for machine in cluster.topology.of_kind("node")}
    for node in cluster.nodes:
        said = options[node.name]
        public = {family: _annotated(node, NODE_PUBLIC[family], family) for family in families}
        public = {family: public[family] or (said.public if family == 4 else said.public_v6) for family in families}
        found = _Lookup(machines[node.name], families, public).interface(said)
        own[node.name] = seen_as(node, (*found, *of_other_families(found, families))) if found else node
        inside = own[node.name].addresses
        outside = {family: public[family] or of_family(inside, family) for family in families}
        if any(outside[family] != of_family(inside, family) for family in families):
            nat.append(node.name)
        told = {family: _annotated(node, OVERWRITE[family], family) or outside[family] for family in families}
        rest = [address for address in inside if family_of(address) not in families]
        addresses = (*(address for address in told.values() if address), *rest)
        nodes.append(msgspec.structs.replace(own[node.name], addresses=addresses))
    if all(known == node for known, node in zip(nodes, cluster.nodes, strict=True)):
        return Seen({node.name: node for node in cluster.nodes}, cluster)
    return Seen(own, msgspec.structs.replace(cluster, nodes=tuple(nodes)), tuple(nat))


def _annotated(node: Node, name: str, family: Family) -> str:
    text = node.annotations.get(name, "")
    address = parse_address(text) if text else None
    if text and (address is None or address.version != family):
        reason = invalid(text, f"must be an IPv{family} address")
        raise ManifestError([Problem("", f"node {node.name}", f"annotations[{name}]", reason)])
    return str(address) if address is not None else ""


class _Lookup:
    """The search on one machine. ``public`` are the addresses that flanneld was given as its public ones."""

    def __init__(self, machine: Machine, families: tuple[Family, ...], public: dict[Family, str]) -> None:
        self._machine = machine
        self._families = families
        self._public = public

    def interface(self, said: Options) -> tuple[Found, ...]:
        """The interface's addresses, one of each family."""
        if said.ifaces or said.patterns or said.can_reach:
            tried: list[str] = []
            ways: list[tuple[Callable[[str], tuple[Found, ...]], str]] = [
                *((self._named, text) for text in said.ifaces),
                *((self._matching, text) for text in said.patterns),
                *([(self._reaching, said.can_reach)] if said.can_reach else []),
            ]
            for way, text in ways:
                try:
                    return way(text)
                except _NotFound as error:
                    tried.append(str(error))
            raise said.refuse(f"flanneld finds no interface on node {self._machine.name}: {'; '.join(tried)}")
        for family in self._families:
            if self._public[family]:
                try:
                    return self._named(self._public[family])
                except _NotFound as error:
                    raise said.refuse(f"flanneld finds no interface on node {self._machine.name}: {error}") from None
        return self._default()

    def _named(self, text: str) -> tuple[Found, ...]:
        address = parse_address(text)
        if address is None:
            interface = by_name(self._machine, text)
            if interface is None:
                raise _NotFound(f"there is no {text} ({self._there()})")
            return self._whole(interface)
        found = with_address(self._machine, text)
        if found is None:
            raise _NotFound(f"no interface has {text} ({self._there()})")
        if len(self._families) == 1 and address.version == self._families[0]:
            return (found,)
        # An address of one family says nothing of the other, unless the other's public address does.
        others = [self._public[family] for family in self._families if family != address.version]
        further = with_address(self._machine, others[0]) if len(others) == 1 and others[0] else None
        if further is None or further.interface is not found.interface or address.version not in self._families:
            raise _NotFound(f"{text} is of one family only: name the interface")
        pair = {family_of(one.address): one for one in (found, further)}
        return tuple(pair[family] for family in self._families)

    def _matching(self, text: str) -> tuple[Found, ...]:
        pattern = compile_pattern(text)
        for interface in self._machine.interfaces:
            there = [Found(interface, address) for address in interface.addresses]
            found = {family_of(one.address): one for one in reversed(there) if pattern.search(one.bare)}
            if all(family in found for family in self._families):
                return tuple(found[family] for family in self._families)
        if pattern.search("lo"):
            raise _NotFound(f"{text} matches lo, which has no address of the node's")
        for interface in self._machine.interfaces:
            if pattern.search(interface.name):
                return self._whole(interface)
        raise _NotFound(f"{text} matches none ({self._there()})")

    def _reaching(self, address: str) -> tuple[Found, ...]:
        interface = towards(self._machine, address)
        if interface is None:
            raise _NotFound(f"no interface leads to {address}")
        return self._whole(interface)

    def _default(self) -> tuple[Found, ...]:
        looked = [of_default_route(self._machine, family) for family in self._families]
        chosen = {interface.name: interface for interface in looked if interface is not None}
        if len(chosen) > 1:
            raise UserError(
                f"flanneld does not start on node {self._machine.name}: its default routes of the two families leave "
                f"by {' and '.join(chosen)}",
                hint=f"name the interface by --iface in the DaemonSet {DAEMON_SET}",
            )
        # A node with defaultRoute: false has lost the route after flanneld's start. What lacks an address is refused
        # for the pods' sake, where all styles are asked (emulator.cni.limits).
        interface = next(iter(chosen.values()), self._machine.interfaces[0])
        found = [of_interface(interface, family) for family in self._families]
        return tuple(one for one in found if one is not None)

    def _whole(self, interface: Interface) -> tuple[Found, ...]:
        found: Sequence[Found | None] = [of_interface(interface, family) for family in self._families]
        addresses = tuple(one for one in found if one is not None)
        if len(addresses) < len(self._families):
            missing = next(family for family, one in zip(self._families, found, strict=True) if one is None)
            raise _NotFound(f"{interface.name} has no IPv{missing} address")
        return addresses

    def _there(self) -> str:
        return ", ".join(
            f"{interface.name}: {', '.join(interface.addresses)}" for interface in self._machine.interfaces
        )


class _NotFound(Exception):
    """One way of looking led to nothing."""
