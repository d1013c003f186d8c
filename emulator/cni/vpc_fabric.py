"""A topology laid over the fabric of a VPC: segments with nodes become subnets, their switches the VPC's router.

::

    n1 ──┐                              n1 eth0 ─── n1-eth0 ┌─────┐
    n2 ──┤ s1 ── tor ── s2 ── client    n2 eth0 ─── n2-eth0 │ vpc │ tor-eth0 ─── eth0 tor ── s2 ── client
    n3 ──┘                              n3 eth0 ─── n3-eth0 └─────┘ 169.254.100.0/30

Each network interface (ENI) has a cable of its own into the router's namespace, which answers for the subnet's .1 and
for every address that it knows (``emulator.cni.vpc_router``). A router of the topology that is on such a segment is
now at the VPC's edge: behind a virtual private gateway, which translates nothing, or, where the topology's ``vpc``
section says so, behind an internet gateway. A NAT gateway is a machine of its own in a public subnet.

A load balancer of kind ``cloud`` becomes what that is in AWS: no machine, but addresses of the subnets behind which the
fabric itself spreads connections (``emulator.balancer.nlb``).

Within a VPC frames are up to 9001 bytes long: a link that the topology leaves at Ethernet's 1500 gets that.

Sources: AWS's VPC user guide (subnet sizing: the first four addresses and the last are reserved; route tables; internet
and NAT gateways), Site-to-Site VPN user guide (inside addresses are /30 of 169.254.0.0/16), EC2 user guide (MTU 9001
inside, 1500 through an internet gateway).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_interface, ip_network

from msgspec.structs import replace

from emulator.cluster.eni_ipam import RESERVED
from emulator.cluster.instance_types import DEFAULT_INSTANCE_TYPE, INSTANCE_TYPE_LABEL
from emulator.cluster.model import (
    Interface,
    InternetGateway,
    LinkQuality,
    LoadBalancer,
    Machine,
    NatGateway,
    RouteTable,
    StaticRoute,
    Switch,
    SwitchPort,
    Topology,
    Vpc,
    VpcRoute,
    VpcSubnet,
)
from emulator.cluster.nlb import CLASS
from emulator.cluster.nlb_addresses import nlb_ranges
from emulator.errors import UserError
from emulator.plan.addressing import contains, default_route, digest, family_of, first_address, stable_mac

ETHERNET_MTU = 1500  # bytes
JUMBO_MTU = 9001  # bytes: the most that EC2 carries within a VPC
DEVICE_MAX = 15  # bytes of a device's name
TRANSFER = "169.254.100.0/22"  # the /30 networks between the VPC and its gateways
GATEWAYS_MAX = 256  # /30 networks in TRANSFER
FIRST_PUBLIC = 10  # the first public address that is given out is the tenth of the gateway's range
NAMES = ("vpc", "aws-vpc", "vpc-router", "aws-vpc-router")
MAIN = "main"
UNTOUCHED = LinkQuality()
_TYPE = {INSTANCE_TYPE_LABEL: DEFAULT_INSTANCE_TYPE}


@dataclass(frozen=True)
class _Edge:
    """A gateway's link: the address of the inner end, its own (outer) one, the interface that the link replaces, and
    the internet gateway that stands between, if one does."""

    inner: str
    outer: str
    interface: Interface
    internet: InternetGateway | None


def lay_fabric(topology: Topology) -> Topology:
    """``topology`` with its VPC laid; one that has it already as it is. Raises UserError for what a VPC cannot be."""
    if topology.vpc is not None and topology.vpc.router:
        return topology
    return _Fabric(topology).laid()


def port_name(machine: str, device: str) -> str:
    """The router's end of the cable to a machine's interface: ``n1-eth0``."""
    wanted = f"{machine}-{device}"
    plain = wanted.replace(".", "-")
    if plain == wanted and len(wanted) <= DEVICE_MAX:
        return wanted
    return f"{plain[: DEVICE_MAX - 5]}-{digest(wanted, 4)}"


class _Fabric:
    """Working state of one laying: the tables that the steps fill in turn."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.switches = {switch.name: switch for switch in topology.switches}
        taken = {machine.name for machine in topology.machines} | set(self.switches)
        self.router = next((name for name in NAMES if name not in taken), "")
        self.subnets: dict[str, VpcSubnet] = {}  # by switch
        self.ports: list[Interface] = []  # of the VPC's router
        self.edges: dict[str, _Edge] = {}  # by the router that is a gateway
        self.owners: dict[str, str] = {}  # address of a router in a subnet -> that router
        self.behind: dict[str, str] = {}  # CIDR outside of the VPC -> the gateway's address
        self.transfers = IPv4Network(TRANSFER).subnets(new_prefix=30)

    def laid(self) -> Topology:
        """The whole of it."""
        topology = self.topology
        given = topology.vpc
        self._refuse_what_cannot_be()
        for segment in self._segments():
            if self._in_vpc(segment):
                self.subnets |= dict.fromkeys((switch.name for switch in segment), self._subnet(segment))
        if not self.subnets:
            raise UserError("aws-vpc needs nodes on a switch: a VPC's subnet is what a switch's segment becomes")
        internet = given.internet_gateway if given is not None else None
        for machine in topology.machines:
            if machine.kind == "router":
                self._note_gateway(machine, internet)
        nodes = [self._instance(machine) for machine in topology.of_kind("node")]
        routers = [self._gateway(machine) for machine in topology.of_kind("router")]
        hosts = [self._instance(machine) for machine in topology.of_kind("host")]
        if internet is not None:
            routers.insert(0, self._internet_gateway(internet))
        vpc = given if given is not None and given.route_tables else self._with_tables(given)
        nat = self._addressed(vpc.nat_gateways, [*nodes, *hosts])
        routers += [self._nat_gateway(each) for each in nat]
        vpc = replace(
            vpc,
            subnets=self._unique(),
            router=self.router,
            nat_gateways=nat,
            public=_public(vpc, nat, [*nodes, *hosts]),
        )
        told = tuple(StaticRoute(cidr, via, "told by the gateways") for cidr, via in self.behind.items())
        fabric = Machine(self.router, "router", tuple(self.ports), told)
        return replace(
            topology,
            load_balancer=_in_a_vpc(topology.load_balancer, vpc),
            machines=(*nodes, fabric, *routers, *hosts),
            switches=tuple(switch for switch in topology.switches if switch.name not in self.subnets),
            pod_cidrs=vpc.cidrs,
            node_cidrs=tuple(dict.fromkeys(vpc.subnet_of(_address(node)).cidr for node in nodes)),
            vpc=vpc,
        )

    # -- what is there --------------------------------------------------------------------------------------

    def _refuse_what_cannot_be(self) -> None:
        topology = self.topology
        if 6 in map(family_of, topology.pod_cidrs + topology.node_cidrs):
            raise UserError(
                f"aws-vpc carries IPv4 only, and topology {topology.name} has IPv6 addresses",
                hint="use an IPv4 topology, such as three-nodes: clusters with IPv6 prefixes on ENIs are not built",
            )
        if any(machine.nat for machine in topology.machines):
            raise UserError(
                f"aws-vpc has no subnets with the same addresses, and topology {topology.name} has switches behind NAT",
                hint="a VPC's NAT gateway is part of the section vpc: docs/topology.md",
            )
        if not self.router:
            raise UserError(f"aws-vpc needs a name for its router, and {', '.join(NAMES)} are taken")

    def _segments(self) -> Iterator[list[Switch]]:
        """Switches that are cabled together."""
        left = dict(self.switches)
        while left:
            segment = [left.pop(next(iter(left)))]
            for switch in segment:
                segment += [left.pop(port.machine) for port in switch.ports if port.machine in left]
            yield segment

    def _in_vpc(self, segment: list[Switch]) -> bool:
        names = {switch.name for switch in segment}
        if self.topology.vpc is not None and any(subnet.name in names for subnet in self.topology.vpc.subnets):
            return True
        return any(
            interface.peer in names for machine in self.topology.of_kind("node") for interface in machine.interfaces
        )

    def _subnet(self, segment: list[Switch]) -> VpcSubnet:
        names = {switch.name for switch in segment}
        for switch in segment:
            for port in switch.ports:
                if port.machine in names and port.quality != LinkQuality():
                    raise UserError(
                        f"aws-vpc cannot impair the link between switches {switch.name} and {port.machine}: "
                        "they become one subnet of the VPC",
                        hint="impair the links of the machines",
                    )
        cidrs = list(dict.fromkeys(cidr for switch in segment for cidr in switch.cidrs))
        if len(cidrs) != 1:
            raise UserError(
                f"aws-vpc makes a subnet of switch {segment[0].name}, and it has {len(cidrs)} CIDRs in place of one"
            )
        given = self.topology.vpc.subnets if self.topology.vpc is not None else ()
        subnet = next((each for each in given if each.name in names), VpcSubnet(segment[0].name, cidrs[0]))
        if not 16 <= ip_network(subnet.cidr).prefixlen <= 28:
            raise UserError(
                f"aws-vpc: {subnet.cidr} of switch {subnet.name} cannot be a VPC's subnet: they are /16 to /28"
            )
        return subnet

    # -- instances ------------------------------------------------------------------------------------------

    def _instance(self, machine: Machine) -> Machine:
        """A node, or a host, of the VPC; one that is elsewhere as it is."""
        inside = [interface for interface in machine.interfaces if interface.peer in self.subnets]
        if not inside and machine.kind == "host":
            return machine
        if len(machine.interfaces) != 1 or not inside:
            raise UserError(
                f"aws-vpc needs {machine.kind} {machine.name} on one switch and nothing else: "
                "further network interfaces are the CNI's to attach"
            )
        (interface,) = inside
        subnet = self.subnets[interface.peer]
        network = ip_network(subnet.cidr)
        for text in interface.addresses:
            offset = int(ip_interface(text).ip) - int(network.network_address)
            if offset < RESERVED or offset == network.num_addresses - 1:
                raise UserError(
                    f"aws-vpc: {machine.kind} {machine.name} cannot have {ip_interface(text).ip}: AWS keeps the first"
                    f" four addresses of {subnet.cidr} and the last one",
                    hint="give it another address in the topology",
                )
        port = self._port(interface)
        return replace(
            machine,
            interfaces=(
                replace(
                    interface,
                    addresses=tuple(f"{ip_interface(text).ip}/{network.prefixlen}" for text in interface.addresses),
                    mtu=_jumbo(interface.mtu),
                    peer=self.router,
                    peer_device=self._plug_in(machine.name, interface.name, _jumbo(port.mtu), port.quality),
                ),
            ),
            routes=tuple(self._instance_route(route, subnet) for route in machine.routes),
            labels=machine.labels if machine.kind == "host" else {**_TYPE, **machine.labels},
        )

    def _instance_route(self, route: StaticRoute, subnet: VpcSubnet) -> StaticRoute:
        if route.via not in self.owners:
            return route
        gateway = first_address(subnet.cidr, 1)
        return StaticRoute(route.destination, gateway, f"{gateway} is the VPC's router on {subnet.cidr}")

    def _plug_in(self, machine: str, device: str, mtu: int, quality: LinkQuality = UNTOUCHED, address: str = "") -> str:
        """The name of a new port of the VPC's router."""
        name = port_name(machine, device)
        addresses = (address,) if address else ()
        self.ports.append(Interface(name, stable_mac(f"vpc port {name}"), addresses, mtu, machine, device, quality))
        return name

    def _port(self, interface: Interface) -> SwitchPort:
        return next(port for port in self.switches[interface.peer].ports if port.device == interface.peer_device)

    # -- gateways -------------------------------------------------------------------------------------------

    def _note_gateway(self, router: Machine, internet: InternetGateway | None) -> None:
        """A router on a segment of the VPC, however often, has one link to it."""
        inside = [interface for interface in router.interfaces if interface.peer in self.subnets]
        if not inside:
            return
        link = next(self.transfers, None)
        if link is None:
            raise UserError(f"aws-vpc: more than {GATEWAYS_MAX} routers are on the VPC's segments")
        behind_igw = internet is not None and internet.router == router.name
        self.edges[router.name] = _Edge(str(link[1]), str(link[2]), inside[0], internet if behind_igw else None)
        for interface in inside:
            self.owners |= {str(ip_interface(text).ip): router.name for text in interface.addresses}

    def _gateway(self, router: Machine) -> Machine:
        """A router at the VPC's edge: its first interface on a segment becomes the link to the VPC."""
        edge = self.edges.get(router.name)
        if edge is None:
            return router
        port = self._port(edge.interface)
        if edge.internet is None:
            name = self._plug_in(router.name, edge.interface.name, port.mtu, port.quality, f"{edge.inner}/30")
            link = replace(edge.interface, addresses=(f"{edge.outer}/30",), peer=self.router, peer_device=name)
        else:
            link = replace(edge.interface, addresses=(f"{edge.outer}/30",), peer=edge.internet.name, peer_device="eth1")
        interfaces = tuple(
            link if interface == edge.interface else interface
            for interface in router.interfaces
            if interface == edge.interface or interface.peer not in self.subnets
        )
        routes = []
        for route in router.routes:
            if route.destination in self.topology.pod_cidrs or self._is_inside(route.destination):
                continue  # pods have addresses of the VPC, which is behind this router's own link
            if self._is_inside(route.via):
                neighbour = self.edges.get(self.owners.get(route.via, ""))
                if neighbour is not None:
                    self.behind.setdefault(route.destination, neighbour.outer)
                route = replace(route, via=edge.inner)
            routes.append(route)
        if edge.internet is None:
            routes += [
                StaticRoute(subnet.cidr, edge.inner, f"{subnet.cidr} is a subnet of the VPC")
                for subnet in self._unique()
            ]
        else:
            why = f"public addresses of the VPC are behind {edge.internet.name}"
            routes.append(StaticRoute(edge.internet.cidr, edge.inner, why))
        return replace(router, interfaces=interfaces, routes=tuple(routes))

    def _internet_gateway(self, gateway: InternetGateway) -> Machine:
        """Between the VPC and the router that stands for the internet."""
        edge = self.edges.get(gateway.router)
        link = next(self.transfers, None)
        if edge is None or link is None:
            raise UserError(
                f"aws-vpc: internet gateway {gateway.name} leads to router {gateway.router}, which is on no switch "
                "that becomes a subnet of the VPC",
                hint="link the router to one of the subnets' switches",
            )
        self.edges[gateway.name] = _Edge(str(link[1]), str(link[2]), edge.interface, None)
        port = self._plug_in(gateway.name, "eth0", ETHERNET_MTU, address=f"{link[1]}/30")
        interfaces = (
            Interface("eth0", stable_mac(f"{gateway.name} eth0"), (f"{link[2]}/30",), ETHERNET_MTU, self.router, port),
            Interface(
                "eth1",
                stable_mac(f"{gateway.name} eth1"),
                (f"{edge.inner}/30",),
                edge.interface.mtu,
                gateway.router,
                edge.interface.name,
            ),
        )
        routes = [
            StaticRoute(subnet.cidr, str(link[1]), f"{subnet.cidr} is a subnet of the VPC") for subnet in self._unique()
        ]
        routes.append(StaticRoute(default_route(4), edge.outer, f"the internet is behind {gateway.router}"))
        return Machine(gateway.name, "router", interfaces, tuple(routes))

    def _addressed(self, gateways: tuple[NatGateway, ...], machines: list[Machine]) -> tuple[NatGateway, ...]:
        """NAT gateways with an address each: the first of their subnet that is free, unless they have one."""
        taken = {str(ip_interface(text).ip) for each in machines for one in each.interfaces for text in one.addresses}
        found = []
        for gateway in sorted(gateways, key=lambda each: not each.address):
            subnet = next(each for each in self.subnets.values() if each.name == gateway.subnet)
            offsets = range(RESERVED, ip_network(subnet.cidr).num_addresses - 1)
            free = (first_address(subnet.cidr, offset) for offset in offsets)
            address = next((each for each in free if each not in taken and gateway.address in ("", each)), "")
            if not address:
                raise UserError(
                    f"aws-vpc: NAT gateway {gateway.name} cannot have {gateway.address or 'an address'} in"
                    f" {subnet.cidr}: it is taken, or AWS keeps it",
                    hint="give it another address in the topology's vpc section, or a larger subnet",
                )
            taken.add(address)
            found.append(replace(gateway, address=address))
        return tuple(found)

    def _nat_gateway(self, gateway: NatGateway) -> Machine:
        subnet = next(each for each in self.subnets.values() if each.name == gateway.subnet)
        port = self._plug_in(gateway.name, "eth0", JUMBO_MTU)
        length = ip_network(subnet.cidr).prefixlen
        interface = Interface(
            "eth0",
            stable_mac(f"{gateway.name} eth0"),
            (f"{gateway.address}/{length}",),
            JUMBO_MTU,
            self.router,
            port,
        )
        router = first_address(subnet.cidr, 1)
        route = StaticRoute(default_route(4), router, f"{router} is the VPC's router on {subnet.cidr}")
        return Machine(gateway.name, "router", (interface,), (route,))

    # -- the VPC --------------------------------------------------------------------------------------------

    def _is_inside(self, address: str) -> bool:
        return any(contains(subnet.cidr, address) for subnet in self.subnets.values())

    def _unique(self) -> tuple[VpcSubnet, ...]:
        return tuple(dict.fromkeys(self.subnets.values()))

    def _with_tables(self, given: Vpc | None) -> Vpc:
        """The VPC of a topology that describes none, or no tables: a default route by each subnet's first router."""
        subnets, first = self._unique(), dict[str, str]()
        for address, router in self.owners.items():
            name = next(subnet.name for subnet in subnets if contains(subnet.cidr, address))
            internet = self.edges[router].internet
            first.setdefault(name, internet.name if internet is not None else router)
        if len(set(first.values())) <= 1:
            routes = tuple(VpcRoute(default_route(4), gateway) for gateway in dict.fromkeys(first.values()))
            tables: tuple[RouteTable, ...] = (RouteTable(MAIN, routes),)
        else:
            tables = tuple(
                RouteTable(each.name, (VpcRoute(default_route(4), first[each.name]),) if each.name in first else ())
                for each in subnets
            )
            self.subnets = {switch: replace(each, route_table=each.name) for switch, each in self.subnets.items()}
        vpc = given or Vpc(tuple(subnet.cidr for subnet in subnets), ())
        return replace(vpc, subnets=self._unique(), route_tables=tables)


def _public(vpc: Vpc, nat: tuple[NatGateway, ...], instances: list[Machine]) -> tuple[tuple[str, str], ...]:
    """Private addresses with their public ones: instances of subnets whose table leads to the internet gateway get one
    when they are launched, NAT gateways have an Elastic IP."""
    gateway = vpc.internet_gateway
    if gateway is None:
        return ()
    tables = {each.name for each in vpc.route_tables if any(route.target == gateway.name for route in each.routes)}
    private = [
        _address(machine)
        for machine in instances
        if any(contains(subnet.cidr, _address(machine)) and subnet.route_table in tables for subnet in vpc.subnets)
    ]
    private += [each.address for each in nat]
    return tuple((address, first_address(gateway.cidr, FIRST_PUBLIC + n)) for n, address in enumerate(private))


def _in_a_vpc(balancer: LoadBalancer | None, vpc: Vpc) -> LoadBalancer | None:
    """A cloud's load balancer, as AWS has it; others as they are."""
    if balancer is None or balancer.kind != "cloud":
        return balancer
    return replace(balancer, kind="nlb", ranges=nlb_ranges(vpc), service_class=balancer.service_class or CLASS)


def _address(machine: Machine) -> str:
    return str(ip_interface(machine.interfaces[0].addresses[0]).ip)


def _jumbo(mtu: int) -> int:
    return JUMBO_MTU if mtu == ETHERNET_MTU else mtu
