"""The ``vpc`` section of a topology file: what the segments are in a cloud, for styles that live in one.

Styles that do not still build the same switches and routers; ``docs/topology.md`` is the reference.
"""

from __future__ import annotations

from collections import Counter

from emulator.cluster import validation
from emulator.cluster.decode import near
from emulator.cluster.model import (
    InternetGateway,
    NatGateway,
    RouteTable,
    Vpc,
    VpcRoute,
    VpcSubnet,
)
from emulator.cluster.topology_file import (
    Faults,
    InternetGatewayEntry,
    NatGatewayEntry,
    RouteTableEntry,
    SubnetEntry,
    TopologyFile,
    VpcEntry,
)
from emulator.cluster.topology_rules import overlap

DEFAULT = "0.0.0.0/0"
MAIN = "main"
LARGEST, SMALLEST = 16, 28  # prefix lengths of a VPC's CIDRs and subnets (AWS VPC user guide, subnet sizing)
WARM_MAX = 500  # addresses or interfaces in stock: more than any instance type takes


def resolve_vpc(file: TopologyFile, faults: Faults) -> Vpc | None:
    """The VPC that ``file`` describes; None if it describes none, or wrongly, with the reasons in ``faults``."""
    if file.vpc is None:
        return None
    before = len(faults.problems)
    reader = _Reader(file, file.vpc, faults)
    vpc = reader.vpc()
    return vpc if len(faults.problems) == before else None


class _Reader:
    """Working state of one reading."""

    def __init__(self, file: TopologyFile, entry: VpcEntry, faults: Faults) -> None:
        self.file, self.entry, self.faults = file, entry, faults
        self.switches = {switch.name: switch for switch in file.switches}
        self.tables = [table.name for table in entry.route_tables]
        self.names = Counter(
            [entry.name for group in (file.nodes, file.routers, file.hosts) for entry in group]
            + [*self.switches]
            + [gateway.name for gateway in entry.nat_gateways]
            + ([entry.internet_gateway.name] if entry.internet_gateway is not None else [])
        )

    def vpc(self) -> Vpc:
        entry = self.entry
        subnets = tuple(self.subnet(each, f"subnets[{n}]") for n, each in enumerate(entry.subnets))
        if not subnets:
            self.wrong("subnets", validation.required("a VPC has at least one subnet"))
        self.each_switch_with_nodes_is_a_subnet()
        for field, values in (
            ("subnets", [each.switch for each in entry.subnets]),
            ("routeTables", self.tables),
            ("natGateways", [each.name for each in entry.nat_gateways]),
        ):
            for value in [value for value, times in Counter(values).items() if times > 1]:
                self.wrong(field, validation.duplicate(value))
        cidrs = tuple(self.cidr(text, f"cidrs[{n}]") for n, text in enumerate(entry.cidrs))
        cidrs = cidrs or tuple(subnet.cidr for subnet in subnets)
        self.subnets_lie_in(cidrs, subnets)
        for field, target in (("warmENITarget", entry.warm_enis), ("warmIPTarget", entry.warm_ips)):
            if not 0 <= target <= WARM_MAX:
                self.wrong(field, validation.invalid(target, f"must be between 0 and {WARM_MAX}"))
        internet = self.internet_gateway(entry.internet_gateway, cidrs) if entry.internet_gateway is not None else None
        return Vpc(
            cidrs=cidrs,
            subnets=subnets,
            route_tables=tuple(self.table(each, f"routeTables[{n}]") for n, each in enumerate(entry.route_tables)),
            internet_gateway=internet,
            nat_gateways=tuple(
                self.nat_gateway(each, f"natGateways[{n}]", subnets) for n, each in enumerate(entry.nat_gateways)
            ),
            warm_enis=entry.warm_enis,
            warm_ips=entry.warm_ips,
            unchecked=self.unchecked(),
        )

    def wrong(self, path: str, reason: str) -> None:
        self.faults.add("", f"vpc.{path}", reason)

    def known(self, name: str, names: list[str], what: str, path: str) -> bool:
        if name in names:
            return True
        self.wrong(path, validation.invalid(name, f"there is no {what} of this name{near(name, names)}"))
        return False

    def cidr(self, text: str, path: str) -> str:
        """An IPv4 CIDR of a size that AWS allows."""
        try:
            network = validation.parse_cidr(text)
        except ValueError as error:
            self.wrong(path, validation.invalid(text, str(error)))
            return DEFAULT
        if network.version != 4 or not LARGEST <= network.prefixlen <= SMALLEST:
            self.wrong(path, validation.invalid(text, f"must be an IPv4 range of /{LARGEST} to /{SMALLEST}"))
            return DEFAULT
        return str(network)

    def subnet(self, entry: SubnetEntry, path: str) -> VpcSubnet:
        found = self.known(entry.switch, [*self.switches], "switch", f"{path}.switch")
        own = self.switches[entry.switch].cidrs if found else []
        if found and len(own) != 1:
            self.wrong(f"{path}.switch", f"{entry.switch} has {len(own)} CIDRs, a subnet's switch has one")
        cidr = self.cidr(entry.cidr or (own[0] if own else DEFAULT), f"{path}.cidr" if entry.cidr else f"{path}.switch")
        if entry.cidr and own and cidr != DEFAULT and not _within(own[0], cidr):
            self.wrong(f"{path}.cidr", validation.invalid(entry.cidr, f"does not hold {own[0]} of {entry.switch}"))
        if self.tables:
            if not entry.route_table:
                self.wrong(f"{path}.routeTable", validation.required("say which of the route tables it has"))
            else:
                self.known(entry.route_table, self.tables, "route table", f"{path}.routeTable")
        elif entry.route_table:
            self.known(entry.route_table, self.tables, "route table", f"{path}.routeTable")
        for reason in validation.faults_of_label_value(entry.zone):
            self.wrong(f"{path}.zone", validation.invalid(entry.zone, reason))
        return VpcSubnet(entry.switch, cidr, entry.zone, entry.route_table or MAIN)

    def each_switch_with_nodes_is_a_subnet(self) -> None:
        named = {each.switch for each in self.entry.subnets}
        for node in self.file.nodes:
            linked = {link.to for link in self.file.links if link.from_ == node.name}
            linked |= {link.from_ for link in self.file.links if link.to == node.name} | {node.switch}
            for switch in sorted(linked & set(self.switches) - named):
                self.wrong("subnets", f"switch {switch} has nodes and is not one of them")

    def unchecked(self) -> tuple[str, ...]:
        instances = [each.name for group in (self.file.nodes, self.file.hosts) for each in group]
        for number, name in enumerate(self.entry.no_source_dest_check):
            self.known(name, instances, "node or host", f"noSourceDestCheck[{number}]")
        return tuple(self.entry.no_source_dest_check)

    def subnets_lie_in(self, cidrs: tuple[str, ...], subnets: tuple[VpcSubnet, ...]) -> None:
        for number, subnet in enumerate(subnets):
            if subnet.cidr != DEFAULT and not any(_within(subnet.cidr, cidr) for cidr in cidrs):
                self.wrong(f"subnets[{number}]", f"{subnet.cidr} is in none of the VPC's CIDRs, {', '.join(cidrs)}")
            for other in subnets[:number]:
                if _overlap(subnet.cidr, other.cidr) and subnet.name != other.name:
                    self.wrong(f"subnets[{number}]", f"{subnet.cidr} overlaps {other.cidr} of {other.name}")

    def table(self, entry: RouteTableEntry, path: str) -> RouteTable:
        self.named(entry.name, f"{path}.name")
        targets = [router.name for router in self.file.routers] + [each.name for each in self.entry.nat_gateways]
        if self.entry.internet_gateway is not None:
            targets = [name for name in targets if name != self.entry.internet_gateway.router]
            targets.append(self.entry.internet_gateway.name)
        routes = []
        for number, route in enumerate(entry.routes):
            self.known(route.target, targets, "gateway", f"{path}.routes[{number}].target")
            destination = DEFAULT
            if route.to != "default":
                for reason in validation.faults_of_cidr(route.to):
                    self.wrong(f"{path}.routes[{number}].to", validation.invalid(route.to, reason))
                    break
                else:
                    destination = str(validation.parse_cidr(route.to))
            routes.append(VpcRoute(destination, route.target))
        return RouteTable(entry.name, tuple(routes))

    def internet_gateway(self, entry: InternetGatewayEntry, cidrs: tuple[str, ...]) -> InternetGateway:
        self.machine_name(entry.name, "internetGateway.name")
        self.known(entry.router, [each.name for each in self.file.routers], "router", "internetGateway.router")
        cidr = self.cidr(entry.cidr, "internetGateway.cidr")
        taken = [*cidrs, *(text for switch in self.file.switches for text in switch.cidrs)]
        for other in taken:
            if cidr != DEFAULT and other != DEFAULT and _overlap(cidr, other):
                self.wrong("internetGateway.cidr", validation.invalid(entry.cidr, f"overlaps {other}"))
        return InternetGateway(entry.name, entry.router, cidr)

    def nat_gateway(self, entry: NatGatewayEntry, path: str, subnets: tuple[VpcSubnet, ...]) -> NatGateway:
        self.machine_name(entry.name, f"{path}.name")
        if self.known(entry.subnet, [each.name for each in subnets], "subnet", f"{path}.subnet") and entry.address:
            cidr = next(each.cidr for each in subnets if each.name == entry.subnet)
            address = validation.parse_address(entry.address)
            if address is None or address not in validation.parse_cidr(cidr):
                self.wrong(f"{path}.address", validation.invalid(entry.address, f"must be an address of {cidr}"))
        return NatGateway(entry.name, entry.subnet, entry.address)

    def machine_name(self, name: str, path: str) -> None:
        self.named(name, path)
        if self.names[name] > 1:
            self.wrong(path, f"{validation.duplicate(name)}: machines, switches and gateways share one set of names")

    def named(self, name: str, path: str) -> None:
        for reason in validation.faults_of_label_name(name):
            self.wrong(path, validation.invalid(name, reason))


def _within(inner: str, outer: str) -> bool:
    one, other = validation.parse_cidr(inner), validation.parse_cidr(outer)
    return overlap(one, other) and one.prefixlen >= other.prefixlen


def _overlap(one: str, other: str) -> bool:
    return overlap(validation.parse_cidr(one), validation.parse_cidr(other))
