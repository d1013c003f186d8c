"""Static routes of the underlay: defaults for nodes and hosts, every subnet on every router.

Routers do not speak a routing protocol among themselves (that is the CNI's business, where it has one);
each gets a static route to each subnet by the fewest router hops, ties going to the file's order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulator.cluster import validation
from emulator.cluster.model import StaticRoute
from emulator.cluster.validation import IPAddress, Network

if TYPE_CHECKING:
    from emulator.cluster.topology_file import Faults, HostEntry, NodeEntry, RouterEntry

DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


Place = tuple[str, Network]


@dataclass(frozen=True)
class Leg:
    """One address of a machine, in the subnet that it is from. ``segment`` is the segment's name, as those behind NAT
    may share subnets; nobody outside of it has a route to such a subnet (``nat``)."""

    machine: str
    kind: str
    device: str
    address: IPAddress
    subnet: Network
    segment: str
    nat: bool = False

    @property
    def place(self) -> Place:
        """What tells subnets apart."""
        return self.segment, self.subnet


def machine_routes(
    entries: Mapping[str, tuple[str, NodeEntry | RouterEntry | HostEntry]],
    legs: list[Leg],
    faults: Faults,
    pod_cidrs: list[Network],
) -> dict[str, tuple[StaticRoute, ...]]:
    """The routes of each machine by its name, explicit ones before those that follow from the topology."""
    own: dict[str, list[Leg]] = {name: [] for name in entries}
    on_subnet: dict[Place, list[Leg]] = defaultdict(list)
    for leg in legs:
        own[leg.machine].append(leg)
        if leg.kind == "router":
            on_subnet[leg.place].append(leg)
    subnets = list(dict.fromkeys(leg.subnet for leg in legs if not leg.nat))
    routers = [name for name, (kind, _) in entries.items() if kind == "router"]
    neighbours = _neighbours(routers, own, on_subnet)

    routes: dict[str, tuple[StaticRoute, ...]] = {}
    for name, (kind, entry) in entries.items():
        wanted = {route.destination: route for route in _explicit(name, kind, entry, own[name], faults)}
        if kind == "router":
            derived = _router_routes(name, own, subnets, neighbours)
        else:
            derived = _default_routes(name, own[name], on_subnet) if getattr(entry, "default_route", True) else []
        for route in derived:
            wanted.setdefault(route.destination, route)
        routes[name] = tuple(wanted.values())
        if kind == "node":
            _check_node(name, getattr(entry, "default_route", True), own[name], wanted, pod_cidrs, faults)
    return routes


def _explicit(
    name: str, kind: str, entry: NodeEntry | RouterEntry | HostEntry, legs: list[Leg], faults: Faults
) -> list[StaticRoute]:
    routes: list[StaticRoute] = []
    for index, route in enumerate(entry.routes):
        subject, path = f"{kind} {name}", f"routes[{index}]"
        via = validation.parse_address(route.via)
        assert via is not None  # the file's own check went before
        destination = DEFAULT[via.version] if route.to == "default" else str(validation.parse_cidr(route.to))
        if validation.parse_cidr(destination).version != via.version:
            faults.add(subject, f"{path}.via", validation.invalid(route.via, f"is of another family than {route.to}"))
        elif not any(via in leg.subnet for leg in legs):
            faults.add(subject, f"{path}.via", validation.invalid(route.via, "is in no subnet that this machine is on"))
        elif any(via == leg.address for leg in legs):
            faults.add(subject, f"{path}.via", validation.invalid(route.via, "is this machine's own address"))
        elif any(known.destination == destination for known in routes):
            faults.add(subject, f"{path}.to", validation.duplicate(route.to))
        else:
            routes.append(StaticRoute(destination, str(via), "given in the topology"))
    return routes


def _default_routes(name: str, legs: list[Leg], on_subnet: Mapping[Place, list[Leg]]) -> list[StaticRoute]:
    """By the first router on the first subnet that has one, for each family."""
    routes: dict[int, StaticRoute] = {}
    for leg in legs:
        for router in on_subnet.get(leg.place, ()):
            family = leg.subnet.version
            why = f"{router.machine} is the first router on {leg.subnet}"
            routes.setdefault(family, StaticRoute(DEFAULT[family], str(router.address), why))
    return list(routes.values())


def _neighbours(
    routers: list[str], own: Mapping[str, list[Leg]], on_subnet: Mapping[Place, list[Leg]]
) -> dict[int, dict[str, dict[str, IPAddress]]]:
    """By family and router: the routers that share a subnet with it, and their address there."""
    result: dict[int, dict[str, dict[str, IPAddress]]] = {4: {}, 6: {}}
    for name in routers:
        for family in result:
            result[family][name] = {}
        for leg in own[name]:
            for other in on_subnet[leg.place]:
                if other.machine != name:
                    result[leg.subnet.version][name].setdefault(other.machine, other.address)
    return result


def _router_routes(
    name: str,
    own: Mapping[str, list[Leg]],
    subnets: list[Network],
    neighbours: Mapping[int, Mapping[str, Mapping[str, IPAddress]]],
) -> list[StaticRoute]:
    connected = {leg.subnet for leg in own[name]}
    routes: list[StaticRoute] = []
    for family in (4, 6):
        links = neighbours[family]
        missing = {subnet for subnet in subnets if subnet.version == family} - connected
        found: dict[Network, StaticRoute] = {}
        # Breadth first: the queue holds each reachable router with the first hop towards it
        queue: list[tuple[str, IPAddress]] = list(links[name].items())
        seen = {name, *links[name]}
        for router, first_hop in queue:
            for leg in own[router]:
                if leg.subnet in missing:
                    found.setdefault(
                        leg.subnet, StaticRoute(str(leg.subnet), str(first_hop), f"{leg.subnet} is behind {router}")
                    )
            for further in links[router]:
                if further not in seen:
                    seen.add(further)
                    queue.append((further, first_hop))
        routes += [found[subnet] for subnet in subnets if subnet in found]
        # A leaf sends what it does not know to its only neighbour, if that one knows more than the leaf itself;
        # of two routers alone neither is upstream, and defaults at each other would be a loop
        if len(links[name]) == 1:
            ((upstream, address),) = links[name].items()
            if len(links[upstream]) > 1:
                routes.append(StaticRoute(DEFAULT[family], str(address), f"{upstream} is the only router upstream"))
    return routes


def _check_node(
    name: str,
    wants_default: bool,
    legs: list[Leg],
    routes: Mapping[str, StaticRoute],
    pod_cidrs: list[Network],
    faults: Faults,
) -> None:
    families = {leg.subnet.version for leg in legs}
    for cidr in pod_cidrs:
        if cidr.version not in families:
            faults.add(f"node {name}", "", f"has no IPv{cidr.version} address, but podCIDRs has {cidr}")
    for family in sorted(families):
        if wants_default and DEFAULT[family] not in routes:
            faults.add(
                f"node {name}",
                "",
                f"has no router on its segment, hence no IPv{family} default route, which proxy ARP, REJECT and"
                " NodePort need; add a router, or write defaultRoute: false if that is what you want to see",
            )
