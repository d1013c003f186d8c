"""AWS' Network Load Balancer, as the AWS Load Balancer Controller makes one for each Service of type LoadBalancer.

::

    client ── VIP:80 ─┐                        ┌─ instance: node:nodePort ── kube-proxy: KUBE-EXT-… ── a pod anywhere
    (igw: public ─────┤ VPC: one VIP per zone ─┤
     to private)      │ DNAT, no hop           └─ ip: pod:port, by whichever interface has the pod's address
                      └─ unless preserved: source becomes the VIP of the zone

It is no machine: the fabric itself turns connections to targets, and turns what they answer back on its way, wherever
it would go by the route tables. So targets may see the clients' addresses and answer them directly, as instances do by
default and pods do not. A target that is its own client then answers itself, and the client never hears of it: AWS has
no hairpin either. Answers leave by the route table of the load balancer's subnet, not by that of the target's.

Each zone's address sends to the targets of its zone, or with cross-zone load balancing to all. Targets that fail their
health checks (``emulator.balancer.health``) get nothing; a zone without a healthy one does not answer, unless there is
none anywhere: then all get traffic. Real ones take such a zone's address out of DNS.

Sources: docs.aws.amazon.com "Network Load Balancers" (zones, cross-zone load balancing, client IP preservation, health
checks), "Troubleshoot your Network Load Balancer" (hairpinning); kubernetes-sigs/aws-load-balancer-controller
pkg/service; the subnets and addresses are ``emulator.cluster.nlb_addresses``, the annotations ``emulator.cluster.nlb``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from emulator.balancer.announcing import EXCLUDED, balanced
from emulator.balancer.health import (
    HEALTHY,
    Check,
    Watched,
    health_checker,
    health_notices,
    http_check,
    place,
    tcp_check,
)
from emulator.cluster.model import Cluster, LoadBalancer, Machine, Node, Vpc, VpcSubnet
from emulator.cluster.nlb import TRAFFIC_PORT, NlbSettings, nlb_settings
from emulator.cluster.services import EndpointSlice, Service, ServicePort
from emulator.cni.style import Style
from emulator.cni.vpc_router import AFTER_MAIN, MAIN_TABLE, table_numbers
from emulator.errors import Unsupported
from emulator.plan.addressing import host_prefix
from emulator.plan.model import Address, AnyObject, NftChain, NftRules, PolicyRule
from emulator.proxy.endpoints import targets

COMPONENT = "Network Load Balancer"
TABLE = "nlb"
RETURNS = AFTER_MAIN - 100  # priority of the rules for answers: after main, before the tables of subnets


@dataclass(frozen=True)
class _Target:
    """A registered target: where connections go, its zone, what its health is known by, and how it is asked."""

    address: str
    port: int
    zone: str
    name: str
    check: Check


@dataclass(frozen=True)
class _Listener:
    """A port of a Service at the load balancer's address in one zone, with its targets there that may get traffic."""

    service: Service
    port: ServicePort
    address: str
    subnet: VpcSubnet
    preserves: bool
    sticky: bool
    targets: tuple[_Target, ...]

    @property
    def match(self) -> str:
        return f"ip daddr {self.address} {self.port.protocol.lower()} dport {self.port.port}"

    @property
    def comment(self) -> str:
        return f'comment "{self.service.key}{f":{self.port.name}" if self.port.name else ""}"'


@dataclass(frozen=True)
class Nlb:
    """The AWS Load Balancer Controller, and the load balancers that it makes."""

    balancer: LoadBalancer
    style: Style
    title: str = "AWS Network Load Balancer"
    stand_in: str = "nftables in the VPC for its load balancers, a daemon of cnilab's for their health checks"
    requires: tuple[str, ...] = ("nft-program", "nft-nat")

    def check(self, cluster: Cluster) -> None:
        if self.balancer.targets == "passthrough":
            raise Unsupported(
                f"a load balancer with targets: passthrough is not possible under {self.style.name}: "
                f"{self.style.strict_underlay}",
                hint="targets: instance or ip (docs/load-balancers.md)",
            )

    def notices(self, cluster: Cluster) -> tuple[str, ...]:
        return tuple(self._notices(cluster))

    def _notices(self, cluster: Cluster) -> Iterator[str]:
        vpc = _vpc(cluster)
        for service, slices in balanced(cluster, self.balancer):
            settings = nlb_settings(service, self.balancer)
            if settings.targets == "instance" and not all(port.node_port for port in service.ports):
                yield (
                    f"Service {service.key} has no node ports (allocateLoadBalancerNodePorts: false): its load "
                    "balancer has no targets, it would have to be aws-load-balancer-nlb-target-type: ip"
                )
            for port in service.ports:
                names = [one.name for one in self._registered(cluster, vpc, service, settings, port, slices)]
                yield from health_notices(cluster.target_health, names)

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]:
        return ()

    def machine(self, cluster: Cluster, machine: Machine) -> Iterator[AnyObject]:
        vpc = _vpc(cluster)
        if machine.name != vpc.router:
            return
        listeners: list[_Listener] = []
        watched: list[Watched] = []
        for service, slices in balanced(cluster, self.balancer):
            settings = nlb_settings(service, self.balancer)
            zones = [
                (private, vpc.subnet_of(private))
                for private in (one.private or one.address for one in service.load_balancer)
            ]
            for address, subnet in zones:
                yield Address(
                    ns=machine.ns,
                    device="lo",
                    address=host_prefix(address),
                    component=COMPONENT,
                    why=f"the address of {service.key} in subnet {subnet.name}{subnet.zone and f' ({subnet.zone})'}",
                )
            sources = {subnet.zone: address for address, subnet in reversed(zones)}
            for port in service.ports:
                enabled = [
                    one
                    for one in self._registered(cluster, vpc, service, settings, port, slices)
                    if one.zone in sources
                ]
                watched += [Watched(one.name, one.address, one.check, sources[one.zone]) for one in enabled]
                healthy = [one for one in enabled if cluster.target_health.get(one.name) == HEALTHY] or enabled
                listeners += [
                    _Listener(
                        service,
                        port,
                        address,
                        subnet,
                        settings.preserves(port.protocol),
                        settings.sticky,
                        tuple(one for one in healthy if settings.cross_zone or one.zone == subnet.zone),
                    )
                    for address, subnet in zones
                ]
        if not listeners:
            return
        numbers = {name: number for name, number in table_numbers(vpc).items() if number != MAIN_TABLE}
        for name, number in numbers.items():
            yield PolicyRule(
                ns=machine.ns,
                priority=RETURNS,
                table=number,
                fwmark=number,
                component=COMPONENT,
                why=f"answers to clients of load balancers in subnets with route table {name}",
            )
        yield NftRules(
            ns=machine.ns,
            family="ip",
            name=TABLE,
            hooks=tuple(_chains(listeners, numbers)),
            component=COMPONENT,
            why="turns connections to load balancers to their targets",
        )
        yield from health_checker(machine.ns, watched)

    def _registered(
        self,
        cluster: Cluster,
        vpc: Vpc,
        service: Service,
        settings: NlbSettings,
        port: ServicePort,
        slices: Sequence[EndpointSlice],
    ) -> Iterator[_Target]:
        """The members of a target group, in all zones."""
        group = f"{service.key}:{port.port}/{port.protocol}"
        if settings.targets == "ip":
            for each in targets([one for one in slices if one.family == 4], port):
                if each.endpoint.ready:
                    check = _check(service, settings, each.port)
                    name = f"{group} {place(each.address, check.port)}"
                    yield _Target(each.address, each.port, vpc.subnet_of(each.address).zone, name, check)
            return
        if not port.node_port:
            return
        for node in cluster.nodes:
            if EXCLUDED not in node.labels:
                (address, *_), check = node.addresses, _check(service, settings, port.node_port)
                name = f"{group} {node.name} ({place(address, check.port)})"
                yield _Target(address, port.node_port, vpc.subnet_of(address).zone, name, check)


def _vpc(cluster: Cluster) -> Vpc:
    assert cluster.topology.vpc is not None, "the topology has not been prepared"
    return cluster.topology.vpc


def _check(service: Service, settings: NlbSettings, port: int) -> Check:
    """How a target that gets its traffic on ``port`` is asked."""
    of_node = settings.targets == "instance" and service.health_port
    protocol = settings.check_protocol or ("http" if of_node else "tcp")
    if of_node:
        usual = http_check(service.health_port, settings.times)
    else:
        usual = tcp_check(port, settings.times)
    asked = settings.check_port
    number = usual.port if not asked else port if asked == TRAFFIC_PORT else int(asked)
    path = settings.check_path or (usual.path if of_node else "/")
    return Check(protocol, number, path if protocol == "http" else "", usual.times, settings.check_codes)


def _chains(listeners: Sequence[_Listener], numbers: dict[str, int]) -> Iterator[NftChain]:
    addresses = ", ".join(dict.fromkeys(one.address for one in listeners))
    if allowed := [
        f"{one.match} ip saddr != {{ {', '.join(ranges)} }} drop {one.comment}"
        for one in listeners
        if (ranges := [cidr for cidr in one.service.source_ranges if ":" not in cidr])
    ]:
        yield NftChain("allowed", tuple(allowed), hook="type filter hook prerouting priority -110")
    yield NftChain(
        "listeners",
        tuple(rule for one in listeners for rule in _turned(one)),
        hook="type nat hook prerouting priority -100",
    )
    # Answers to health checks come to these addresses, too
    silence = f"ip daddr {{ {addresses} }} ct state new drop"
    yield NftChain("silence", (silence,), hook="type filter hook input priority 0")
    hidden = tuple(
        f"meta l4proto {one.port.protocol.lower()} ct original ip daddr {one.address} ct original proto-dst "
        f"{one.port.port} ct status dnat snat to {one.address} {one.comment}"
        for one in listeners
        if not one.preserves
    )
    if hidden:
        yield NftChain("sources", hidden, hook="type nat hook postrouting priority 100")
    if numbers:
        ways = {one.address: numbers[one.subnet.route_table] for one in listeners}
        marks = tuple(f"ct original ip daddr {address} ct mark set {number:#x}" for address, number in ways.items())
        yield NftChain("ways", marks, hook="type filter hook forward priority -150")
        back = "ct direction reply ct mark != 0x0 meta mark set ct mark"
        yield NftChain("returns", (back,), hook="type filter hook prerouting priority -150")


def _turned(one: _Listener) -> Iterator[str]:
    key = "ip saddr" if one.sticky else f"ip saddr . {one.port.protocol.lower()} sport"
    count = len(one.targets)
    for index, each in enumerate(one.targets):
        picked = f" jhash {key} mod {count} seed 0x1 {index}" if count > 1 else ""
        yield f"{one.match}{picked} dnat to {place(each.address, each.port)} {one.comment}"
