"""By which address calico-node makes its node known: IP autodetection.

======================== ==========================================================================================
``first-found``          the default: the first interface that has an address, from the last one backwards
``interface=REGEX,…``    the first that matches, in the same order; ``skip-interface=REGEX,…`` the first that does not
``cidr=CIDR,…``          the first address in one of them
``can-reach=ADDRESS``    the one that a packet to there would leave with
``kubernetes-internal-ip`` the node's InternalIP
======================== ==========================================================================================

They come in the variables ``IP_AUTODETECTION_METHOD`` and ``IP6_AUTODETECTION_METHOD`` of the DaemonSet calico-node, or
from the operator's Installation. Two nodes with one address are refused, as calico-node refuses to start then.

The MTU is not the interface's: Felix takes the smallest of all interfaces that look like a machine's own.

Sources: projectcalico/calico node/pkg/lifecycle/startup (startup.go, checkConflicts), its autodetection package
(autodetection_methods.go, filtered.go, interfaces.go, reachaddr.go), felix/dataplane/linux/int_dataplane.go
(findHostMTU); tigera/operator api/v1/installation_types.go (NodeAddressAutodetection).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_interface
from typing import Any

import msgspec

from emulator.cluster.decode import decode
from emulator.cluster.model import Cluster, Interface, Machine, Node
from emulator.cluster.system_pods import environments
from emulator.cluster.validation import forbidden, invalid, parse_address, parse_cidr, required
from emulator.cni.go_regexp import compile_pattern
from emulator.cni.node_interfaces import Found, of_interface, of_other_families, seen_as, towards, with_address
from emulator.errors import ManifestError, Problem, UserError
from emulator.plan.addressing import contains, families_of, family_of, of_family
from emulator.plan.model import Family

CALICO_NODE = "calico-node"
VARIABLE: dict[Family, str] = {4: "IP_AUTODETECTION_METHOD", 6: "IP6_AUTODETECTION_METHOD"}
OWN_ADDRESS: dict[Family, str] = {4: "IP", 6: "IP6"}
AUTODETECT = "autodetect"
FIRST, INTERNAL = "first-found", "kubernetes-internal-ip"
WITH_VALUE = ("can-reach", "interface", "skip-interface", "cidr")
METHODS = (FIRST, INTERNAL, *(f"{name}=…" for name in WITH_VALUE))


class Autodetection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """NodeAddressAutodetection of an Installation: one of these."""

    first_found: bool | None = None
    kubernetes: str | None = None
    interface: str | None = None
    skip_interface: str | None = None
    can_reach: str | None = None
    cidrs: list[str] | None = None


class CalicoNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """What of an Installation's ``calicoNetwork`` is emulated."""

    node_address_autodetection_v4: Autodetection | None = msgspec.field(name="nodeAddressAutodetectionV4", default=None)
    node_address_autodetection_v6: Autodetection | None = msgspec.field(name="nodeAddressAutodetectionV6", default=None)


_latest: list[tuple[Cluster, Cluster]] = []  # the last cluster, and how calico-node sees it


def detected(cluster: Cluster) -> Cluster:
    """The cluster, each node with the addresses that calico-node finds. Raises ManifestError for a method that it does
    not know, UserError where it would find nothing."""
    if not (_latest and _latest[0][0] is cluster):
        _latest[:] = [(cluster, _detected(cluster))]
    return _latest[0][1]


def check_conflicts(cluster: Cluster) -> None:
    """Raise UserError if two nodes of a cluster as :func:`detected` have the same address: calico-node of the second
    one does not start."""
    owner: dict[str, str] = {}
    for node in cluster.nodes:
        for family in families_of(cluster.topology.pod_cidrs):
            address = of_family(node.addresses, family)
            if address and owner.setdefault(address, node.name) != node.name:
                raise UserError(
                    f"calico-node does not start on {node.name}: Calico node {owner[address]!r} is already using the "
                    f"IPv{family} address {address}",
                    hint=f"choose another one by {VARIABLE[family]} in the DaemonSet calico-node (docs/calico.md)",
                )


def _detected(cluster: Cluster) -> Cluster:
    families = families_of(cluster.topology.pod_cidrs)
    told = environments(cluster, CALICO_NODE)
    operator = _installation(cluster)
    machines = {machine.name: machine for machine in cluster.topology.of_kind("node")}
    nodes = []
    for node in cluster.nodes:
        machine, said = machines[node.name], told.get(node.name, {})
        found = []
        for family in families:
            method = _method(said, family) or operator.get(family, FIRST)
            one = _Search(node, machine, family).by(method)
            if one is not None:
                found.append(one)
            elif method != FIRST:
                raise UserError(
                    f"calico-node does not start on {node.name}: {method} finds no IPv{family} address",
                    hint=f"it has {_there(machine)}; {VARIABLE[family]} says which to take (docs/calico.md)",
                )
        mtu = min(interface.mtu for interface in machine.interfaces)
        if len(found) < len(families):
            nodes.append(node)  # what it lacks is refused for the pods' sake (emulator.cni.limits)
        else:
            nodes.append(seen_as(node, (*found, *of_other_families(found, families)), mtu))
    if all(one == node for one, node in zip(nodes, cluster.nodes, strict=True)):
        return cluster
    return msgspec.structs.replace(cluster, nodes=tuple(nodes))


def _there(machine: Machine) -> str:
    return ", ".join(f"{interface.name}: {' '.join(interface.addresses)}" for interface in machine.interfaces)


# -- what is asked for ------------------------------------------------------------------------------------------


def _method(said: Mapping[str, str], family: Family) -> str:
    """The method in calico-node's environment; empty if there is none."""
    subject = f"DaemonSet {CALICO_NODE}"
    path = f"spec.template.spec.containers[{CALICO_NODE}].env"
    own = said.get(OWN_ADDRESS[family], AUTODETECT)
    if own != AUTODETECT:
        reason = forbidden(f"only {AUTODETECT} is emulated: a DaemonSet gives every node the same address")
        raise ManifestError([Problem("", subject, f"{path}[{OWN_ADDRESS[family]}]", reason)])
    method = said.get(VARIABLE[family], "")
    if method and (reason := _faults(method, family)):
        raise ManifestError([Problem("", subject, f"{path}[{VARIABLE[family]}]", reason)])
    return method


def _faults(method: str, family: Family) -> str:
    name, equals, value = method.partition("=")
    if method in (FIRST, INTERNAL):
        return ""
    if not equals or name not in WITH_VALUE:
        return invalid(method, f"must be one of {', '.join(METHODS)}")
    if name == "can-reach":
        address = parse_address(value)
        if address is None or address.version != family:
            return invalid(method, f"must name an IPv{family} address: host names are not emulated")
        return ""
    for part in _parts(value):
        try:
            parse_cidr(part) if name == "cidr" else compile_pattern(part)
        except ValueError as error:
            return invalid(part, str(error))
    return ""


def _parts(value: str) -> list[str]:
    return re.split(r"\s*,\s*", value)


def _installation(cluster: Cluster) -> dict[Family, str]:
    """The methods in the operator's Installation, by family. Raises ManifestError."""
    for obj in cluster.objects:
        group = str(obj.get("apiVersion", "")).partition("/")[0]
        if (group, obj.get("kind")) == ("operator.tigera.io", "Installation"):
            return _read_installation(obj)
    return {}


def _read_installation(obj: dict[str, Any]) -> dict[Family, str]:
    subject = f"Installation {obj['metadata']['name']}"
    spec = obj.get("spec")
    given = spec.get("calicoNetwork") if isinstance(spec, dict) else None
    network, faults = decode(given if given is not None else {}, CalicoNetwork)
    problems = [
        Problem(
            "",
            subject,
            f"spec.calicoNetwork.{path}" if path else "spec.calicoNetwork",
            forbidden("not emulated: pools and BGP have resources of their own (docs/calico.md)")
            if reason.startswith("unknown field") and "." not in path
            else reason,
        )
        for path, reason in faults
    ]
    found: dict[Family, str] = {}
    if network is not None:
        pairs: tuple[tuple[Family, str, Autodetection | None], ...] = (
            (4, "nodeAddressAutodetectionV4", network.node_address_autodetection_v4),
            (6, "nodeAddressAutodetectionV6", network.node_address_autodetection_v6),
        )
        for family, field, wish in pairs:
            if wish is None:
                continue
            methods = _methods(wish)
            reason = required("exactly one way of detection") if len(methods) != 1 else _faults(methods[0], family)
            if reason:
                problems.append(Problem("", subject, f"spec.calicoNetwork.{field}", reason))
            else:
                found[family] = methods[0]
    if problems:
        raise ManifestError(problems)
    return found


def _methods(wish: Autodetection) -> list[str]:
    """As the operator hands them to calico-node."""
    methods = [FIRST] if wish.first_found else []
    if wish.kubernetes is not None:
        methods.append(INTERNAL if wish.kubernetes == "NodeInternalIP" else wish.kubernetes)
    named = (("interface", wish.interface), ("skip-interface", wish.skip_interface), ("can-reach", wish.can_reach))
    methods += [f"{name}={value}" for name, value in named if value is not None]
    return methods + ([f"cidr={','.join(wish.cidrs)}"] if wish.cidrs is not None else [])


# -- looking ----------------------------------------------------------------------------------------------------


class _Search:
    """The search on one machine, for an address of one family."""

    def __init__(self, node: Node, machine: Machine, family: Family) -> None:
        self._node, self._machine, self._family = node, machine, family

    def by(self, method: str) -> Found | None:
        """What a method finds."""
        name, _, value = method.partition("=")
        if method == INTERNAL:
            address = of_family(self._node.addresses, self._family)
            return with_address(self._machine, address) if address else None
        if name == "can-reach":
            interface = towards(self._machine, value)
            return of_interface(interface, self._family) if interface is not None else None
        if name == "cidr":
            ranges = _parts(value)
            return self._first(lambda one: any(contains(cidr, one.bare) for cidr in ranges))
        if name in ("interface", "skip-interface"):
            patterns = [compile_pattern(part) for part in _parts(value)]
            wanted = name == "interface"
            return self._first(lambda one: any(pattern.search(one.interface.name) for pattern in patterns) == wanted)
        return self._first(lambda _: True)

    def _first(self, fits: Callable[[Found], bool]) -> Found | None:
        """The first address that fits; interfaces from the last one backwards (interfaces.go: GetInterfaces)."""
        backwards: list[Interface] = list(reversed(self._machine.interfaces))
        for interface in backwards:
            for address in interface.addresses:
                one = Found(interface, address)
                if family_of(address) == self._family and not ip_interface(address).is_link_local and fits(one):
                    return one
        return None
