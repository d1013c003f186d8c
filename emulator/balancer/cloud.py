"""A cloud's network load balancer: a router of the topology that passes connections on to nodes or pods.

::

    instance     client ── VIP:80 ── balancer: DNAT to node:nodePort, masquerade ── node ── kube-proxy: KUBE-EXT-…
      + preserveClientIP             DNAT alone; answers come back by it ──────────── node ── …
    ip           client ── VIP:80 ── balancer: DNAT to pod:port, masquerade ───────── pod
    passthrough  client ── VIP:80 ── balancer: routed as it is, to a node ────────── node ── kube-proxy takes the VIP

A target is chosen by the hash of the client's address and port, or by its address alone with sessionAffinity. Those
that fail their health check (``emulator.balancer.health``) get nothing: nodes are asked on the Service's health check
node port under externalTrafficPolicy Local, else by a connection to the node port, or where packets are passed through
on kube-proxy's own port; pods by a connection to theirs. If all fail, all get traffic, as AWS and Google have it. What
no port of a Service is for gets no answer.

Sources: docs.aws.amazon.com "Network Load Balancers: target groups" (health, fail open, client IP preservation);
cloud.google.com "External passthrough Network Load Balancer overview"; kubernetes.io, "Service", ipMode; kubernetes/
cloud-provider-gcp (kube-proxy's healthz port for nodes); nft(8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from emulator.balancer.announcing import EXCLUDED, balanced
from emulator.balancer.health import (
    Check,
    Watched,
    fit,
    health_checker,
    health_notices,
    http_check,
    place,
    tcp_check,
)
from emulator.cluster.model import Cluster, LoadBalancer, Machine, Node
from emulator.cluster.services import EndpointSlice, Service, ServicePort
from emulator.cni.bgp_fabric import gateway
from emulator.cni.style import Style
from emulator.errors import Unsupported, UserError
from emulator.plan.addressing import contains, default_route, family_of, host_prefix, of_family
from emulator.plan.model import Address, AnyObject, Family, NftChain, NftRules, PolicyRule, Route
from emulator.proxy.endpoints import targets
from emulator.proxy.health import OWN_PORT

COMPONENT = "cloud load balancer (stand-in)"
TABLE = "balancer"
FIRST_MARK = 0x100  # of the nodes' marks and routing tables; they count up from here
RULE_PRIORITY = 1000


@dataclass(frozen=True)
class Target:
    """Where a connection may go. ``mark`` says the node where packets are passed through. ``name`` is what its health
    is known by."""

    address: str
    port: int
    mark: int
    name: str
    check: Check


@dataclass(frozen=True)
class Cloud:
    """A balancer in the network, outside of the cluster."""

    balancer: LoadBalancer
    style: Style
    stand_in: str = "a router with nftables for a cloud's load balancer, a daemon of cnilab's for its health checks"
    requires: tuple[str, ...] = ("nft-program", "nft-nat")

    @property
    def title(self) -> str:
        return f"cloud load balancer · {self.balancer.targets} targets"

    def check(self, cluster: Cluster) -> None:
        if reason := self.style.strict_underlay:
            raise Unsupported(
                f"a load balancer of kind cloud is not emulated under {self.style.name}: {reason}",
                hint="take a topology without loadBalancer (docs/load-balancers.md)",
            )
        machine = self._machine(cluster)
        if self.balancer.targets == "ip":
            for node in cluster.nodes:
                for cidr in node.pod_ranges:
                    if not self._knows(cluster, machine, cidr):
                        raise UserError(
                            f"the load balancer on {machine.name} cannot send to pods: {machine.name} has no route to "
                            f"those of {node.name} ({cidr})",
                            hint="use targets: instance, or a CNI that tells the router about pods "
                            "(docs/load-balancers.md)",
                        )
        if self.balancer.targets == "passthrough":
            for node in cluster.nodes:
                if any(gateway(machine, address)[0] != address for address in node.addresses):
                    raise UserError(
                        f"the load balancer on {machine.name} cannot pass packets to {node.name} as they are: they "
                        "share no link",
                        hint="use targets: instance, or a router next to the nodes",
                    )

    def notices(self, cluster: Cluster) -> tuple[str, ...]:
        return tuple(self._notices(cluster))

    def _notices(self, cluster: Cluster) -> Iterator[str]:
        for service, slices in balanced(cluster, self.balancer):
            if self.balancer.targets == "instance" and not all(port.node_port for port in service.ports):
                yield (
                    f"Service {service.key} has no node ports (allocateLoadBalancerNodePorts: false): the load "
                    "balancer has nowhere to send to"
                )
            for port in service.ports:
                names = [
                    each.name for family in (4, 6) for each in self._targets(cluster, service, port, slices, family)
                ]
                yield from health_notices(cluster.target_health, names)

    def node(self, cluster: Cluster, node: Node) -> Iterable[AnyObject]:
        return ()

    def machine(self, cluster: Cluster, machine: Machine) -> Iterator[AnyObject]:
        if machine.name != self.balancer.machine:
            return
        watched: list[Watched] = []
        for family in dict.fromkeys(one.family for one in self.balancer.ranges):
            candidates = [
                (service, port, one.address, self._targets(cluster, service, port, slices, family))
                for service, slices in balanced(cluster, self.balancer)
                for one in service.load_balancer
                if family_of(one.address) == family
                for port in service.ports
            ]
            if not candidates:
                continue
            for *_, each in candidates:
                watched += [Watched(one.name, one.address, one.check, _own(machine, one.address)) for one in each]
            found = [
                (service, port, address, fit(cluster.target_health, each, [one.name for one in each]))
                for service, port, address, each in candidates
            ]
            addresses = tuple(dict.fromkeys(address for _, _, address, _ in found))
            if self.balancer.targets == "passthrough":
                yield from self._ways(cluster, machine, family)
            else:
                for address in addresses:
                    yield Address(
                        ns=machine.ns,
                        device=_device(machine, address),
                        address=host_prefix(address),
                        component=COMPONENT,
                        why="the load balancer's address for "
                        + ", ".join(dict.fromkeys(service.key for service, _, known, _ in found if known == address)),
                    )
            yield NftRules(
                ns=machine.ns,
                family="ip" if family == 4 else "ip6",
                name=TABLE,
                hooks=tuple(self._chains(family, addresses, found)),
                component=COMPONENT,
                why="sends connections to Services' addresses to their targets",
            )
        yield from health_checker(machine.ns, watched)

    # -- targets ----------------------------------------------------------------------------------------------

    def _targets(
        self, cluster: Cluster, service: Service, port: ServicePort, slices: Sequence[EndpointSlice], family: Family
    ) -> tuple[Target, ...]:
        """Everything that connections may go to if it passes its health check."""
        group = f"{service.key}:{port.port}/{port.protocol}"
        if self.balancer.targets == "ip":
            mine = [one for one in slices if one.family == family]
            return tuple(
                Target(each.address, each.port, 0, f"{group} {place(each.address, each.port)}", self._check(each.port))
                for each in targets(mine, port)
                if each.endpoint.ready
            )
        if not port.node_port and self.balancer.targets == "instance":
            return ()
        if service.health_port:
            check = http_check(service.health_port, self.balancer.health)
        elif self.balancer.targets == "passthrough":
            check = http_check(OWN_PORT, self.balancer.health)
        else:
            check = self._check(port.node_port)
        return tuple(
            Target(address, port.node_port, number, f"{group} {node.name} ({place(address, check.port)})", check)
            for number, node in enumerate(cluster.nodes, FIRST_MARK)
            if EXCLUDED not in node.labels and (address := of_family(node.addresses, family))
        )

    def _check(self, port: int) -> Check:
        return tcp_check(port, self.balancer.health)

    # -- rules --------------------------------------------------------------------------------------------------

    def _chains(
        self,
        family: Family,
        addresses: Sequence[str],
        found: Sequence[tuple[Service, ServicePort, str, tuple[Target, ...]]],
    ) -> Iterator[NftChain]:
        ip = "ip" if family == 4 else "ip6"
        every = f"{ip} daddr {{ {', '.join(addresses)} }}"
        passes = self.balancer.targets == "passthrough"
        allowed, listeners = [], []
        for service, port, address, chosen in found:
            protocol = port.protocol.lower()
            match = f"{ip} daddr {address} {protocol} dport {port.port}"
            comment = f'comment "{service.key}{f":{port.name}" if port.name else ""}"'
            if ranges := [cidr for cidr in service.source_ranges if family_of(cidr) == family]:
                allowed.append(f"{match} {ip} saddr != {{ {', '.join(ranges)} }} drop {comment}")
            key = f"{ip} saddr" if service.affinity else f"{ip} saddr . {protocol} sport"
            for index, each in enumerate(chosen):
                picked = f" jhash {key} mod {len(chosen)} seed 0x1 {index}" if len(chosen) > 1 else ""
                to = place(each.address, each.port)
                verdict = f"meta mark set {each.mark:#x} accept" if passes else f"dnat to {to}"
                listeners.append(f"{match}{picked} {verdict} {comment}")
        if allowed:
            yield NftChain("allowed", tuple(allowed), hook="type filter hook prerouting priority -110")
        if passes:
            yield NftChain("listeners", (*listeners, f"{every} drop"), hook="type filter hook prerouting priority -109")
            return
        yield NftChain("listeners", tuple(listeners), hook="type nat hook prerouting priority -100")
        yield NftChain("silence", (f"{every} drop",), hook="type filter hook input priority 0")
        if not self.balancer.preserve_client_ip:
            rule = f"ct original {every} ct status dnat masquerade"
            yield NftChain("sources", (rule,), hook="type nat hook postrouting priority 100")

    def _ways(self, cluster: Cluster, machine: Machine, family: Family) -> Iterator[AnyObject]:
        for number, node in enumerate(cluster.nodes, FIRST_MARK):
            address = of_family(node.addresses, family)
            via, device = gateway(machine, address) if address else ("", "")
            if not via:
                continue
            yield PolicyRule(
                ns=machine.ns,
                priority=RULE_PRIORITY + number,
                table=number,
                family=family,
                fwmark=number,
                component=COMPONENT,
                why=f"connections that were given to {node.name}",
            )
            yield Route(
                ns=machine.ns,
                destination=default_route(family),
                via=via,
                device=device,
                table=number,
                protocol="static",
                component=COMPONENT,
                why=f"to {node.name}, whatever the destination: it takes the load balancer's addresses by its rules",
            )

    def _machine(self, cluster: Cluster) -> Machine:
        return next(one for one in cluster.topology.machines if one.name == self.balancer.machine)

    def _knows(self, cluster: Cluster, machine: Machine, cidr: str) -> bool:
        base = cidr.partition("/")[0]
        known = [route.destination for route in machine.routes if route.destination != default_route(family_of(cidr))]
        known += [item.destination for item in self.style.router(cluster, machine) if isinstance(item, Route)]
        return any(contains(each, base) for each in known)


def _own(machine: Machine, address: str) -> str:
    """The machine's own address towards ``address``: health checks do not come from that of a Service."""
    device = gateway(machine, address)[1]
    own = (text.partition("/")[0] for item in machine.interfaces if item.name == device for text in item.addresses)
    return of_family(tuple(own), family_of(address))


def _device(machine: Machine, address: str) -> str:
    """The interface that is on the address's subnet; an address that is routed to the machine needs none."""
    return next(
        (item.name for item in machine.interfaces if any(contains(own, address) for own in item.addresses)), "lo"
    )
