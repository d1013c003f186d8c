"""The VPC itself as plan objects: what its router's namespace does for every network interface (ENI).

::

    n1 eth0 ──── n1-eth0 ┐  proxy ARP: .1, and whatever the VPC knows         (the mapping service)
    n1 eth1 ──── n1-eth1 ┤  raw: a packet's source is an address of its ENI   (source/destination check)
    n2 eth0 ──── n2-eth0 ┤  mangle: TTL + 1, since no router of ours is seen
    …                    ┘  routes: each address to its ENI; what is left of the CIDR: nowhere

Real packets between instances go from hypervisor to hypervisor, encapsulated, and no TTL is touched; here one router
takes their place, so it gives back what a Linux router takes. Addresses that nobody has are not answered for.

Sources: AWS's VPC user guide (route tables, source/destination checks, NAT and internet gateways); measured on a model
of this shape with the real plugin's rules on its nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface

from emulator.cluster.model import Cluster, Interface, Machine, NatGateway, RouteTable, Topology, Vpc
from emulator.cni.vpc_fabric import port_name
from emulator.plan.addressing import digest, first_address, host_prefix
from emulator.plan.model import (
    Address,
    AnyObject,
    Chain,
    IpSet,
    IptablesRules,
    Jump,
    Neighbour,
    PolicyRule,
    Route,
    Rule,
    Sysctl,
)

VPC = "VPC"
MAIN_TABLE = 254
FIRST_TABLE = 101  # of the VPC's route tables, where there are several
AFTER_MAIN = 33000  # priority of their rules: main, with the local routes, comes before them as in every real table
SET_NAME_MAX = 31  # bytes: IPSET_MAXNAMELEN less the NUL


@dataclass(frozen=True)
class _Attached:
    """An ENI of an instance: its port, the owner, what it may send from."""

    port: str
    machine: str
    device: str
    mac: str
    address: str
    prefixes: tuple[str, ...]

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(sorted((self.address, *(prefix.removesuffix("/32") for prefix in self.prefixes))))


def vpc_router(cluster: Cluster, vpc: Vpc, router: Machine) -> Iterator[AnyObject]:
    """Everything in the namespace of the VPC's router but its cables."""
    ns = router.ns
    attached = list(_attached(cluster, vpc))
    yield from _without_a_trace(ns)
    for subnet in vpc.subnets:
        yield Address(
            ns=ns,
            device="lo",
            address=host_prefix(first_address(subnet.cidr, 1)),
            component=VPC,
            why=f"the router of subnet {subnet.name}",
        )
    for cidr in vpc.cidrs:
        yield Route(
            ns=ns,
            destination=cidr,
            type="blackhole",
            component=VPC,
            why="an address of the VPC that no ENI has: no answer to ARP, and packets are dropped in silence",
        )
    for eni in attached:
        yield from _eni(ns, eni)
    for gateway in vpc.nat_gateways:
        yield from _eni(
            ns,
            _Attached(
                port_name(gateway.name, "eth0"), gateway.name, "eth0", _mac(cluster, gateway), gateway.address, ()
            ),
        )
    yield from _route_tables(cluster.topology, vpc, ns, attached)
    yield from _source_destination_check(ns, [eni for eni in attached if eni.machine not in vpc.unchecked])


def internet_gateway(vpc: Vpc, gateway: Machine, balanced: tuple[tuple[str, str], ...] = ()) -> Iterator[AnyObject]:
    """One public address for one private one, both ways; what has none does not get through. ``balanced`` are those of
    load balancers."""
    yield from _without_a_trace(gateway.ns)
    pairs = (*vpc.public, *balanced)
    inward = tuple(
        Rule(("-i", "eth1", "-d", f"{public}/32", "-j", "DNAT", "--to-destination", private), f"{public} is {private}")
        for private, public in pairs
    )
    outward = tuple(
        Rule(("-o", "eth1", "-s", f"{private}/32", "-j", "SNAT", "--to-source", public), f"{private} is {public}")
        for private, public in pairs
    )
    yield IptablesRules(
        ns=gateway.ns,
        family=4,
        table="nat",
        owner="igw",
        chains=(Chain("IGW-IN", inward), Chain("IGW-OUT", outward)),
        jumps=(
            Jump("PREROUTING", Rule(("-j", "IGW-IN"), "public to private addresses")),
            Jump("POSTROUTING", Rule(("-j", "IGW-OUT"), "private to public addresses")),
        ),
        component="internet gateway",
        why="translates addresses one to one",
    )
    known = tuple(
        Rule(("-s", f"{private}/32", "-j", "RETURN"), f"{private} has a public address") for private, _ in pairs
    )
    yield IptablesRules(
        ns=gateway.ns,
        family=4,
        table="filter",
        owner="igw",
        chains=(
            Chain("IGW-KNOWN", (*known, Rule(("-j", "DROP"), "no public address: nobody could answer this packet"))),
        ),
        jumps=(Jump("FORWARD", Rule(("-i", "eth0", "-j", "IGW-KNOWN"), "out to the internet")),),
        component="internet gateway",
        why="lets out what has a public address",
    )


def nat_gateway(gateway: NatGateway, machine: Machine) -> Iterator[AnyObject]:
    """Many private addresses behind the gateway's own; it is a hop, and takes one from the TTL as a router does."""
    for device in ("all", "eth0"):
        yield Sysctl(
            ns=machine.ns,
            name=f"net/ipv4/conf/{device}/send_redirects",
            value="0",
            component="NAT gateway",
            why="packets leave where they came in, and nobody is to be told of a shorter way",
        )
    yield IptablesRules(
        ns=machine.ns,
        family=4,
        table="nat",
        owner="natgw",
        chains=(
            Chain(
                "NAT-GATEWAY",
                (
                    Rule(
                        ("-o", "eth0", "-j", "SNAT", "--to-source", gateway.address, "--random-fully"),
                        "private subnets reach the internet by this address",
                    ),
                ),
            ),
        ),
        jumps=(Jump("POSTROUTING", Rule(("-j", "NAT-GATEWAY"), "everything that leaves")),),
        component="NAT gateway",
        why="the way out of private subnets, and no way in",
    )


def gateway_address(topology: Topology, vpc: Vpc, name: str) -> tuple[str, str]:
    """A gateway's address on its link to the VPC, and the router's port there. KeyError if there is none."""
    for machine in topology.of_kind("router"):
        if machine.name == name:
            for interface in machine.interfaces:
                if interface.peer == vpc.router:
                    return str(ip_interface(interface.addresses[0]).ip), interface.peer_device
    raise KeyError(name)


def _attached(cluster: Cluster, vpc: Vpc) -> Iterator[_Attached]:
    """Every ENI of nodes, and the single one of hosts in the VPC."""
    for node in cluster.nodes:
        for eni in node.enis:
            yield _Attached(port_name(node.name, eni.device), node.name, eni.device, eni.mac, eni.address, eni.prefixes)
    for host in cluster.topology.of_kind("host"):
        for interface in host.interfaces:
            if interface.peer == vpc.router:
                yield _Attached(interface.peer_device, host.name, interface.name, interface.mac, _plain(interface), ())


def _plain(interface: Interface) -> str:
    return str(ip_interface(interface.addresses[0]).ip)


def _mac(cluster: Cluster, gateway: NatGateway) -> str:
    machine = next(each for each in cluster.topology.of_kind("router") if each.name == gateway.name)
    return machine.interfaces[0].mac


def _without_a_trace(ns: str) -> Iterator[AnyObject]:
    yield IptablesRules(
        ns=ns,
        family=4,
        table="mangle",
        owner="vpc",
        chains=(),
        jumps=(
            Jump(
                "PREROUTING",
                Rule(("-j", "TTL", "--ttl-inc", "1"), "the fabric is no hop: gives back what this router will take"),
            ),
        ),
        component=VPC,
        why="the fabric does not decrement the TTL",
    )


def _eni(ns: str, eni: _Attached) -> Iterator[AnyObject]:
    owner = f"{eni.device} of {eni.machine}"
    yield Sysctl(
        ns=ns,
        name=f"net/ipv4/conf/{eni.port}/proxy_arp",
        value="1",
        component=VPC,
        why="the VPC's mapping service answers ARP for every address that it knows",
    )
    yield Sysctl(ns=ns, name=f"net/ipv4/neigh/{eni.port}/proxy_delay", value="0", component=VPC, why="answers at once")
    yield Neighbour(
        ns=ns,
        device=eni.port,
        address=eni.address,
        mac=eni.mac,
        component=VPC,
        why=f"the mapping service knows the MAC of {owner}, and never asks",
    )
    yield Route(
        ns=ns,
        destination=host_prefix(eni.address),
        device=eni.port,
        scope="link",
        component=VPC,
        why=f"local: the primary address of {owner}",
    )
    for prefix in eni.prefixes:
        what = "a secondary address" if prefix.endswith("/32") else "a delegated prefix"
        yield Route(
            ns=ns,
            destination=prefix,
            via=eni.address,
            device=eni.port,
            onlink=True,
            component=VPC,
            why=f"local: {what} of {owner}",
        )


def table_numbers(vpc: Vpc) -> dict[str, int]:
    """The router's tables by the names of route tables: a single route table is its own, else each has one."""
    several = len(vpc.route_tables) > 1
    return {table.name: FIRST_TABLE + n if several else MAIN_TABLE for n, table in enumerate(vpc.route_tables)}


def _route_tables(topology: Topology, vpc: Vpc, ns: str, attached: list[_Attached]) -> Iterator[AnyObject]:
    """Of several route tables each is a table that its subnets' ENIs look in."""
    numbers = table_numbers(vpc)
    for table in vpc.route_tables:
        yield from _routes(topology, vpc, ns, table, numbers[table.name])
    if len(vpc.route_tables) < 2:
        return
    for eni in attached:
        yield _table_rule(vpc, ns, eni.port, eni.address, numbers)
    for gateway in vpc.nat_gateways:
        yield _table_rule(vpc, ns, port_name(gateway.name, "eth0"), gateway.address, numbers)


def _table_rule(vpc: Vpc, ns: str, port: str, address: str, numbers: dict[str, int]) -> PolicyRule:
    subnet = vpc.subnet_of(address)
    return PolicyRule(
        ns=ns,
        priority=AFTER_MAIN,
        table=numbers[subnet.route_table],
        iif=port,
        component=VPC,
        why=f"subnet {subnet.name} has route table {subnet.route_table}",
    )


def _routes(topology: Topology, vpc: Vpc, ns: str, table: RouteTable, number: int) -> Iterator[Route]:
    for route in table.routes:
        via, port = gateway_address(topology, vpc, route.target)
        yield Route(
            ns=ns,
            destination=route.destination,
            via=via,
            device=port,
            table=number,
            onlink=True,
            component=VPC,
            why=f"route table {table.name}: by {route.target}",
        )


def _source_destination_check(ns: str, attached: list[_Attached]) -> Iterator[AnyObject]:
    """EC2's default: an instance may neither send from nor get packets for an address that its ENI does not have."""
    names = {eni.port: _set_name(eni.port) for eni in attached}
    if not attached:
        return
    for eni in attached:
        yield IpSet(
            ns=ns,
            name=names[eni.port],
            type="hash:net",
            family=4,
            members=eni.members,
            component=VPC,
            why=f"the addresses of {eni.device} of {eni.machine}",
        )
    directions = (
        ("raw", "PREROUTING", "VPC-SOURCE-CHECK", "-i", "src", "source check: not an address of {}"),
        ("filter", "FORWARD", "VPC-DEST-CHECK", "-o", "dst", "destination check: not an address of {}"),
    )
    for table, hook, chain, option, side, why in directions:
        rules = tuple(
            Rule(
                (option, eni.port, "-m", "set", "!", "--match-set", names[eni.port], side, "-j", "DROP"),
                why.format(f"{eni.device} of {eni.machine}"),
            )
            for eni in attached
        )
        yield IptablesRules(
            ns=ns,
            family=4,
            table="raw" if table == "raw" else "filter",
            owner="vpc",
            chains=(Chain(chain, rules),),
            jumps=(Jump(hook, Rule(("-j", chain), "source/destination check, on by default")),),
            component=VPC,
            why="source/destination check of every ENI",
        )


def _set_name(port: str) -> str:
    name = f"eni-{port}"
    return name if len(name) <= SET_NAME_MAX else f"eni-{digest(port, 12)}"
