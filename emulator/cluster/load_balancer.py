"""Which Service of type LoadBalancer gets which address: MetalLB's controller, or a cloud's, without waiting.

What a Service has it keeps as long as it may; then come those that ask for an address, then the others, each the first
free address of the topology's ranges. A Service that cannot be served stays pending, and a line says why.

Sources: metallb/metallb controller/service.go (convergeBalancer, allocateIPs, getDesiredLbIPs),
internal/allocator/allocator.go; kubernetes.io, "Service", spec.loadBalancerClass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address

import msgspec

from emulator.cluster.model import AddressRange, LoadBalancer, Topology
from emulator.cluster.nlb_addresses import nlb_addresses
from emulator.cluster.services import Ingress, Service
from emulator.cluster.validation import parse_address

POOL = "default"  # what annotations call the topology's ranges
PREFIXES = ("metallb.io", "metallb.universe.tf")  # of annotations, the deprecated one last


class _Denied(Exception):
    """Why a Service gets no address."""


def with_addresses(
    services: tuple[Service, ...], topology: Topology, before: Iterable[Service] = ()
) -> tuple[tuple[Service, ...], tuple[str, ...]]:
    """The Services with the addresses that the topology's balancer gives, and a line for each that it should serve and
    does not. ``before`` are the Services of the step before. Those that nothing changes are the same objects."""
    balancer = topology.load_balancer
    if balancer is None:
        return services, ()
    held = {service.key: service.load_balancer for service in before if service.load_balancer}
    if balancer.kind == "nlb":
        mine = [service for service in services if serves(balancer, service)]
        given, denied = nlb_addresses(mine, topology, held)
    else:
        given, denied = _Assignment(services, balancer, held).done()
    found = (_settled(one, given.get(one.key, ())) if serves(balancer, one) else one for one in services)
    return tuple(found), tuple(f"Service {key} is pending: {reason}" for key, reason in denied.items())


def _settled(service: Service, ingress: tuple[Ingress, ...]) -> Service:
    return service if ingress == service.load_balancer else msgspec.structs.replace(service, load_balancer=ingress)


def serves(balancer: LoadBalancer, service: Service) -> bool:
    """Whether the Service is this balancer's business: one of another class is somebody else's."""
    return service.type == "LoadBalancer" and service.load_balancer_class in ("", balancer.service_class)


class _Assignment:
    """Working state of one assignment: who has what."""

    def __init__(
        self, services: Sequence[Service], balancer: LoadBalancer, held: Mapping[str, tuple[Ingress, ...]]
    ) -> None:
        self._services = services
        self._balancer = balancer
        self._held = held
        self._taken: dict[str, str] = {}
        self._next: dict[int, Iterator[str]] = {family: _addresses(balancer.ranges, family) for family in (4, 6)}
        self._first: dict[int, str] = {}
        self._given: dict[str, tuple[str, ...]] = {}
        self._denied: dict[str, str] = {}

    def done(self) -> tuple[dict[str, tuple[Ingress, ...]], dict[str, str]]:
        """What each has, and why who has nothing does not, by ``namespace/name``."""
        mine = [service for service in self._services if serves(self._balancer, service)]
        for step in (self._keep, self._claim, self._choose):
            for service in mine:
                if service.key not in self._denied and len(self._given.get(service.key, ())) < len(service.families):
                    try:
                        step(service)
                    except _Denied as error:
                        self._denied[service.key] = str(error)
        proxy = self._balancer.proxy
        given = {key: tuple(Ingress(each, proxy=proxy) for each in found) for key, found in self._given.items()}
        return given, self._denied

    def _keep(self, service: Service) -> None:
        """What it has, unless that is no longer what it asks for, or not ours to give."""
        held = tuple(one.address for one in self._held.get(service.key, service.load_balancer))
        wanted = _wanted(service)
        if not held or (wanted and set(wanted) != set(held)):
            return
        families = sorted(map(_family, held))
        partly = service.family_policy == "PreferDualStack" and len(held) == 1 and families[0] in service.families
        if (partly or families == sorted(service.families)) and all(map(self._may_have, held)):
            self._take(service, held)

    def _claim(self, service: Service) -> None:
        """What it asks for by name."""
        wanted = _wanted(service)
        if not wanted:
            return
        if {_family(address) for address in wanted} != set(service.families) or len(wanted) != len(service.families):
            raise _Denied(f"the requested {' and '.join(wanted)} does not match the ipFamilies of the Service")
        for address in wanted:
            if not self._ours(address):
                raise _Denied(f"{address} is not in {', '.join(map(str, self._balancer.ranges))}")
            if address in self._taken:
                shared = " (sharing one by the annotation allow-shared-ip is not emulated)" if _shares(service) else ""
                raise _Denied(f"{address} is {self._taken[address]}'s{shared}")
        self._take(service, wanted)

    def _choose(self, service: Service) -> None:
        """The first free addresses."""
        pool = _annotation(service, "address-pool")
        if pool not in ("", POOL):
            raise _Denied(f"there is no address pool {pool!r}: the topology's is called {POOL}")
        found = {_family(address): address for address in self._given.get(service.key, ())}
        for family in service.families:
            if family not in found and (address := self._free(family)):
                found[family] = address
        lacking = [family for family in service.families if family not in found]
        if lacking and (service.family_policy != "PreferDualStack" or not found):
            raise _Denied(f"there is no free IPv{lacking[0]} address in {self._named(lacking[0])}")
        self._take(service, found.values())

    def _named(self, family: int) -> str:
        ranges = [str(one) for one in self._balancer.ranges if family == one.family]
        return ", ".join(ranges) or "the topology's loadBalancer.addresses"

    def _free(self, family: int) -> str:
        # What was taken stays taken until all are served: nobody need look at it again.
        first = self._first.get(family, "")
        if not first or first in self._taken:
            self._first[family] = next((each for each in self._next[family] if each not in self._taken), "")
        return self._first[family]

    def _take(self, service: Service, addresses: Iterable[str]) -> None:
        self._given[service.key] = tuple(addresses)
        self._taken.update(dict.fromkeys(self._given[service.key], service.key))

    def _may_have(self, address: str) -> bool:
        return address not in self._taken and self._ours(address)

    def _ours(self, address: str) -> bool:
        return any(one.holds(address) for one in self._balancer.ranges)


def _addresses(ranges: Iterable[AddressRange], family: int) -> Iterator[str]:
    make = type(ip_address("::" if family == 6 else "0.0.0.0"))
    return (str(make(number)) for one in ranges if one.family == family for number in _numbers(one))


def _numbers(one: AddressRange) -> Iterator[int]:
    yield from range(one.low, one.high + 1)


def _wanted(service: Service) -> tuple[str, ...]:
    """The addresses that its author asks for. Raises _Denied for what is none."""
    text = _annotation(service, "loadBalancerIPs")
    if text and service.load_balancer_ip:
        raise _Denied("it has both spec.loadBalancerIP and the annotation loadBalancerIPs")
    parsed = [parse_address(part.strip()) for part in (text or service.load_balancer_ip).split(",")]
    if not text and not service.load_balancer_ip:
        return ()
    if None in parsed:
        where = "the annotation loadBalancerIPs" if text else "spec.loadBalancerIP"
        raise _Denied(f"{where} is {(text or service.load_balancer_ip)[:100]!r}")
    return tuple(map(str, parsed))


def _annotation(service: Service, name: str) -> str:
    return next((text for prefix in PREFIXES if (text := service.annotations.get(f"{prefix}/{name}"))), "")


def _shares(service: Service) -> bool:
    return bool(_annotation(service, "allow-shared-ip"))


def _family(address: str) -> int:
    return 6 if ":" in address else 4
