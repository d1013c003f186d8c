"""kube-proxy's nftables rules of one Service: the elements of the table's maps that lead to it, and its own chains.

::

    @service-ips        cluster IP ─▶ service-… (policy Local: local-…) ─▶ endpoint-…   numgen, then DNAT
                        external IP, load balancer ─▶ external-… ─▶ service-… or local-…
    @service-nodeports  node port ─▶ external-…
    @firewall-ips       load balancer ─▶ firewall-…                                     source ranges
    @no-endpoint-services, @no-endpoint-nodeports                                       reject-chain, or drop

All of it is text for nft(8). What goes into the text is checked first: names and addresses that could begin another
rule are refused.

Source: kubernetes/kubernetes pkg/proxy/nftables/proxier.go (syncProxyRules, writeServiceToEndpointRules).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network

from emulator.cluster.services import EndpointSlice, Service, ServicePort
from emulator.errors import UserError
from emulator.plan.addressing import of_family
from emulator.plan.model import Family, NftChain, NftElement, NftPart, NftSet
from emulator.plan.nftables import LONGEST_COMMENT
from emulator.proxy.endpoints import Choice, Target, cluster_ip, externally_accessible
from emulator.proxy.model import ProxySettings
from emulator.proxy.names import endpoint_name, port_name, service_name

NO_ENDPOINTS = "goto reject-chain"
NO_LOCAL_ENDPOINTS = "drop"

_NAME = re.compile(r"[A-Za-z0-9.-]*")  # whatever RFC 1123 and 1035 allow; an unnamed port has an empty name


def service_part(
    service: Service,
    family: Family,
    ports: Sequence[tuple[ServicePort, Choice]],
    settings: ProxySettings,
    sources: tuple[str, ...],
) -> NftPart:
    """The Service's part of the table, given where each port may send to on the node. ``sources`` are the ranges that
    reach its load balancer, none for all."""
    sets: list[NftSet] = []
    chains: list[NftChain] = []
    elements = {("cluster-ips", ip := cluster_ip(service, family)): NftElement("cluster-ips", ip)}
    for port, choice in ports:
        writer = _Port(service, port, choice, family, settings)
        chains += writer.chains(sources)
        sets += writer.affinity_sets()
        for item in writer.elements(bool(sources)):
            elements.setdefault((item.of, item.key), item)
    return NftPart(tuple(sets), tuple(chains), tuple(elements.values()))


class _Port:
    """What one Service port puts into the table of one node."""

    def __init__(
        self, service: Service, port: ServicePort, choice: Choice, family: Family, settings: ProxySettings
    ) -> None:
        self.service = service
        self.port = port
        self.choice = choice
        self.settings = settings
        self.family = family
        self.ip = "ip" if family == 4 else "ip6"
        self.protocol = port.protocol.lower()
        self.cluster_ip = cluster_ip(service, family)
        self.external = (
            *(each for each in service.external_ips if (":" in each) == (family == 6)),
            *balancer_addresses(service, family),
        )
        self.has_internal = bool(choice.internal(service))
        self.has_external = bool(choice.external(service))
        self.uses_external = choice.anywhere and externally_accessible(service, port, family)
        self.base = service_name(service.key, self.protocol, port.name)
        self.names = {
            (target.address, target.port): endpoint_name(
                service.key, self.protocol, port.name, target.address, target.port
            )
            for target in choice.reachable
        }

    def _name(self, target: Target) -> str:
        return self.names[target.address, target.port]

    def elements(self, firewalled: bool) -> Iterator[NftElement]:
        """Where the maps lead to."""
        comment = port_name(self.service.key, self.port.name)[:LONGEST_COMMENT]
        key = f". {self.protocol} . {self.port.port}"
        local = self.service.internal_policy == "Local"
        verdict = NO_LOCAL_ENDPOINTS if self.choice.anywhere else NO_ENDPOINTS
        if self.has_internal:
            yield NftElement(
                "service-ips", f"{self.cluster_ip} {key}", f"goto {'local' if local else 'service'}-{self.base}"
            )
        else:
            yield NftElement("no-endpoint-services", f"{self.cluster_ip} {key}", verdict, comment)
        for address in self.external:
            if self.choice.anywhere:
                yield NftElement("service-ips", f"{address} {key}", f"goto external-{self.base}")
            if not self.has_external:
                yield NftElement("no-endpoint-services", f"{address} {key}", verdict, comment)
        if firewalled:
            for address in balancer_addresses(self.service, self.family):
                yield NftElement("firewall-ips", f"{address} {key}", f"goto firewall-{self.base}")
        if self.port.node_port:
            node_key = f"{self.protocol} . {self.port.node_port}"
            if self.choice.anywhere:
                yield NftElement("service-nodeports", node_key, f"goto external-{self.base}")
            if not self.has_external:
                yield NftElement("no-endpoint-nodeports", node_key, verdict, comment)

    def chains(self, sources: tuple[str, ...]) -> Iterator[NftChain]:
        """The chains that the maps lead to, those that are jumped to first."""
        for target in self.choice.reachable:
            yield NftChain(f"endpoint-{self._name(target)}", tuple(self._endpoint(target)))
        local = self.service.internal_policy == "Local"
        for prefix, chosen, internal in (
            ("service", self.choice.cluster, not local),
            ("local", self.choice.local, local),
        ):
            if chosen:
                rules = (*self._masquerade_others(internal), *self._balance(chosen))
                yield NftChain(f"{prefix}-{self.base}", rules)
        if self.uses_external:
            yield NftChain(f"external-{self.base}", tuple(self._from_outside()))
        if sources and balancer_addresses(self.service, self.family):
            yield NftChain(f"firewall-{self.base}", (f"{self.ip} saddr != {{ {', '.join(sources)} }} drop",))

    def affinity_sets(self) -> Iterator[NftSet]:
        """For each endpoint the clients that it has, for as long as they stay."""
        if self.service.affinity:
            kind = "ipv4_addr" if self.family == 4 else "ipv6_addr"
            for target in self.choice.reachable:
                yield NftSet(
                    f"affinity-{self._name(target)}",
                    kind,
                    flags=("dynamic", "timeout"),
                    timeout=self.service.affinity,
                )

    def _endpoint(self, target: Target) -> Iterator[str]:
        yield f"{self.ip} saddr {target.address} jump mark-for-masquerade"  # its answer must come back this way
        if self.service.affinity:
            yield f"update @affinity-{self._name(target)} {{ {self.ip} saddr }}"
        yield f"meta l4proto {self.protocol} dnat to {target.text}"

    def _masquerade_others(self, internal: bool) -> Iterator[str]:
        """Traffic to the cluster IP from elsewhere: the way back must lead through this node."""
        if not internal:
            return
        pods = of_family(self.settings.pod_cidrs, self.family)
        if self.settings.masquerade_all:
            yield f"{self.ip} daddr {self.cluster_ip} jump mark-for-masquerade"
        elif pods:
            yield f"{self.ip} daddr {self.cluster_ip} {self.ip} saddr != {pods} jump mark-for-masquerade"

    def _balance(self, chosen: Sequence[Target]) -> Iterator[str]:
        names = [self._name(target) for target in chosen]
        if self.service.affinity:
            for name in names:
                yield f"{self.ip} saddr @affinity-{name} goto endpoint-{name}"
        verdicts = ", ".join(f"{number} : goto endpoint-{name}" for number, name in enumerate(names))
        yield f"numgen random mod {len(names)} vmap {{ {verdicts} }}"

    def _from_outside(self) -> Iterator[str]:
        local = self.service.external_policy == "Local"
        if not local:
            yield "jump mark-for-masquerade"
        else:
            pods = of_family(self.settings.pod_cidrs, self.family)
            if pods and self.choice.cluster:
                yield f'{self.ip} saddr {pods} goto service-{self.base} comment "short-circuit pod traffic"'
            yield 'fib saddr type local jump mark-for-masquerade comment "masquerade local traffic"'
            if self.choice.cluster:
                yield f'fib saddr type local goto service-{self.base} comment "short-circuit local traffic"'
        if self.has_external:
            yield f"goto {'local' if local else 'service'}-{self.base}"


def balancer_addresses(service: Service, family: Family) -> tuple[str, ...]:
    """Load balancer addresses that kube-proxy short-cuts: not those of ``ipMode: Proxy``."""
    return tuple(
        each.address for each in service.load_balancer if not each.proxy and (":" in each.address) == (family == 6)
    )


def check(service: Service, slices: Sequence[EndpointSlice]) -> None:
    """Names are names and addresses are addresses: text from a manifest must not become a rule. Raises UserError."""
    for name in (service.namespace, service.name, *(port.name for port in service.ports)):
        if not _NAME.fullmatch(name):
            raise UserError(f"Service {service.key}: {name!r} is no name of Kubernetes'")
    addresses = [
        *service.cluster_ips,
        *service.external_ips,
        *(each.address for each in service.load_balancer if each.address),
        *(endpoint.address for each in slices for endpoint in each.endpoints),
    ]
    for address in addresses:
        try:
            ip_address(address)
        except ValueError as error:
            raise UserError(f"Service {service.key}: {address!r} is no IP address") from error
    for cidr in service.source_ranges:
        try:
            ip_network(cidr.strip(), strict=False)
        except ValueError as error:
            raise UserError(f"Service {service.key}: {cidr!r} is no CIDR") from error
