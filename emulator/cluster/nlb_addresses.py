"""Which subnets and addresses an AWS Network Load Balancer gets: one address for each availability zone.

An internet-facing one is in public subnets (their route table leads to the internet gateway) and has a public address
beside each private one; an internal one is in private subnets. Of several subnets in one zone the first by name is
taken. Private addresses are from the end of the subnet, public ones from the end of the gateway's range; AWS takes any
that are free.

Source: kubernetes-sigs/aws-load-balancer-controller docs/deploy/subnet_discovery.md; docs.aws.amazon.com "Availability
Zones for your Network Load Balancer".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network

from emulator.cluster.model import AddressRange, LoadBalancer, Topology, Vpc, VpcSubnet
from emulator.cluster.nlb import Denied, NlbSettings, nlb_settings
from emulator.cluster.services import Ingress, Service

MOST = 16  # addresses of a subnet, or of the internet gateway's range, that are kept for load balancers
SHARE = 4  # at most one in so many


def nlb_ranges(vpc: Vpc) -> tuple[AddressRange, ...]:
    """The addresses that are kept for load balancers: the last ones of each subnet, and of the public range."""
    cidrs = [subnet.cidr for subnet in vpc.subnets]
    cidrs += [vpc.internet_gateway.cidr] if vpc.internet_gateway is not None else []
    return tuple(_end(cidr) for cidr in cidrs)


def _end(cidr: str) -> AddressRange:
    network = ip_network(cidr)
    count = min(MOST, network.num_addresses // SHARE)
    return AddressRange(str(network[-1 - count]), str(network[-2]))  # the last address of a subnet is AWS' own


def public_subnets(vpc: Vpc) -> tuple[VpcSubnet, ...]:
    """Those whose route table leads to the internet gateway."""
    gateway = vpc.internet_gateway
    if gateway is None:
        return ()
    tables = {each.name for each in vpc.route_tables if any(route.target == gateway.name for route in each.routes)}
    return tuple(subnet for subnet in vpc.subnets if subnet.route_table in tables)


def nlb_addresses(
    services: Iterable[Service], topology: Topology, held: Mapping[str, tuple[Ingress, ...]]
) -> tuple[dict[str, tuple[Ingress, ...]], dict[str, str]]:
    """By ``namespace/name`` what each Service has, one :class:`Ingress` for each zone; and why others have nothing.
    ``held`` is what they had before, which they keep as far as it fits."""
    vpc, balancer = topology.vpc, topology.load_balancer
    assert vpc is not None
    assert balancer is not None
    machines = {
        text.partition("/")[0] for each in topology.machines for one in each.interfaces for text in one.addresses
    }
    pool = _Pool(vpc, balancer, machines | {public for _, public in vpc.public})
    given: dict[str, tuple[Ingress, ...]] = {}
    denied: dict[str, str] = {}
    plans: list[tuple[Service, NlbSettings, Sequence[VpcSubnet]]] = []
    for service in services:
        try:
            settings = nlb_settings(service, balancer)
            plans.append((service, settings, subnets_of(vpc, settings)))
        except Denied as error:
            denied[service.key] = str(error)
    # What somebody has, or asks for by its digits, is nobody else's to take
    plans.sort(key=lambda each: not (held.get(each[0].key) or each[1].addresses))
    for service, settings, subnets in plans:
        try:
            given[service.key] = pool.take(service, settings, subnets, held.get(service.key, ()))
        except Denied as error:
            denied[service.key] = str(error)
    return given, denied


def subnets_of(vpc: Vpc, settings: NlbSettings) -> tuple[VpcSubnet, ...]:
    """One for each zone. Raises Denied."""
    public = public_subnets(vpc)
    if settings.subnets:
        known = {subnet.name: subnet for subnet in vpc.subnets}
        for name in settings.subnets:
            if name not in known:
                raise Denied(f"there is no subnet {name[:60]!r}")
        found = [known[name] for name in settings.subnets]
    elif settings.internet_facing:
        found = sorted(public, key=lambda subnet: subnet.name)
        if not found:
            raise Denied("no subnet's route table leads to an internet gateway, and it is to be internet-facing")
    else:
        found = sorted((subnet for subnet in vpc.subnets if subnet not in public), key=lambda subnet: subnet.name)
        if not found:
            raise Denied("there is no private subnet, and it is to be internal")
    zones: dict[str, VpcSubnet] = {}
    for subnet in found:
        if settings.subnets and subnet.zone in zones:
            raise Denied(f"subnets {zones[subnet.zone].name} and {subnet.name} are in one availability zone")
        zones.setdefault(subnet.zone, subnet)
    return tuple(zones.values())


class _Pool:
    """Who has what of the addresses that are kept for load balancers."""

    def __init__(self, vpc: Vpc, balancer: LoadBalancer, taken: set[str]) -> None:
        self._vpc = vpc
        self._ranges = balancer.ranges
        self._taken = taken

    def take(
        self, service: Service, settings: NlbSettings, subnets: Sequence[VpcSubnet], before: Sequence[Ingress]
    ) -> tuple[Ingress, ...]:
        """An address in each subnet. Raises Denied, with nothing taken."""
        stray = [text for text in settings.addresses if not any(_within(text, subnet.cidr) for subnet in subnets)]
        if stray:
            raise Denied(f"{stray[0][:60]} is in none of its subnets, {', '.join(each.name for each in subnets)}")
        found = []
        taken = set(self._taken)
        for subnet in subnets:
            wanted = [text for text in settings.addresses if _within(text, subnet.cidr)]
            had = [one.private or one.address for one in before]
            private = self._one(subnet.cidr, wanted or had, taken, must=bool(wanted))
            public = ""
            if settings.internet_facing:
                assert self._vpc.internet_gateway is not None
                earlier = [one.address for one in before if one.private == private]
                public = self._one(self._vpc.internet_gateway.cidr, earlier, taken)
            found.append(Ingress(public or private, proxy=True, private=private if public else ""))
        self._taken = taken
        return tuple(found)

    def _one(self, cidr: str, liked: Sequence[str], taken: set[str], *, must: bool = False) -> str:
        """A free address of ``cidr``, the last first; one of those ``liked`` if it is free."""
        (kept,) = [one for one in self._ranges if _within(one.first, cidr)]
        for text in liked:
            if text not in taken and _within(text, cidr) and kept.holds(text):
                taken.add(text)
                return text
            if must:
                reason = "is taken" if kept.holds(text) else f"is not of {kept}, which are kept for load balancers"
                raise Denied(f"{text[:60]} {reason}")
        address = next(
            (text for number in range(kept.high, kept.low - 1, -1) if (text := str(ip_address(number))) not in taken),
            "",
        )
        if not address:
            raise Denied(f"there is no free address in {kept} of {cidr}")
        taken.add(address)
        return address


def _within(address: str, cidr: str) -> bool:
    try:
        return ip_address(address) in ip_network(cidr)
    except ValueError:
        return False
