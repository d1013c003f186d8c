"""kube-router's own service proxy: IPVS as kube-proxy's ipvs mode has it, with other rules around it.

::

    kube-dummy-if (dummy, up) holds all Service addresses ─▶ the packet is for this node: INPUT
    filter INPUT ─ KUBE-ROUTER-SERVICES: a Service's port and some ICMP pass, else REJECT on Service addresses
    IPVS (LOCAL_IN) ─ virtual server IP:port, scheduler by annotation ─▶ real server; the packet leaves by OUTPUT
    nat POSTROUTING ─ from outside of this node's pods, and to elsewhere: SNAT to the node's address
                    ─ KUBE-ROUTER-HAIRPIN: a pod that reaches itself, where the Service is annotated for it

What tells it from kube-proxy: nothing marks packets, so a pod of the node sees the client's address behind a NodePort
too; a NodePort is served on the node's first address only; an address whose policy is Local and that has no endpoint on
the node is not there at all; an endpoint that goes takes its connections with it (``--ipvs-graceful-termination`` is
off); one that ends but still serves gets new connections; loadBalancerSourceRanges, ``ipMode: Proxy``, topology hints
and SCTP mean nothing to it. A cluster IP answers ping: the node does.

Annotations of a Service, all ``kube-router.io/service.…``: ``scheduler`` (rr, lc, dh, sh, mh), ``schedflags`` (of mh),
``local`` ("true": both policies are Local), ``hairpin``, ``hairpin.externalips``, ``skiplbips``. Others are refused.

Follows cloudnativelabs/kube-router 2.x, pkg/controllers/proxy: network_services_controller.go,
service_endpoints_sync.go, network_service_graceful.go, linux_networking.go, utils.go, as they are in 2026, with the
default options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from emulator.cluster.model import Cluster, Node
from emulator.cluster.services import EndpointSlice, Service, ServicePort
from emulator.cluster.validation import forbidden, unsupported
from emulator.errors import ManifestError, Problem
from emulator.plan.addressing import families_of, family_of, host_prefix, of_family
from emulator.plan.model import (
    Address,
    AnyObject,
    Chain,
    Dummy,
    Family,
    IpSet,
    IptablesRules,
    Jump,
    Route,
    Rule,
    Sysctl,
)
from emulator.policy.kube_router_chains import COMPONENT, ICMP
from emulator.proxy.endpoints import Target, proxied, slices_by_service, targets
from emulator.proxy.model import ProxySettings
from emulator.proxy.virtual_servers import VirtualServers, plain

OWNER = "kube-router-services"
DEVICE = "kube-dummy-if"
LOCAL_TABLE = 255
SERVICES_CHAIN, HAIRPIN_CHAIN = "KUBE-ROUTER-SERVICES", "KUBE-ROUTER-HAIRPIN"
LOCAL_IPS, SERVICE_IPS, SERVICE_PORTS = "kube-router-local-ips", "kube-router-svip", "kube-router-svip-prt"
PROTOCOLS = ("TCP", "UDP")

PREFIX = "kube-router.io/service."
SCHEDULER, SCHEDULER_FLAGS, LOCAL, HAIRPIN, HAIRPIN_EXTERNAL, SKIP_BALANCER, DSR = (
    f"{PREFIX}{name}"
    for name in ("scheduler", "schedflags", "local", "hairpin", "hairpin.externalips", "skiplbips", "dsr")
)
KNOWN = frozenset((SCHEDULER, SCHEDULER_FLAGS, LOCAL, HAIRPIN, HAIRPIN_EXTERNAL, SKIP_BALANCER))
SCHEDULERS = ("rr", "lc", "dh", "sh", "mh")
MAGLEV = "mh"
FLAGS = {"flag-1": 1, "flag-2": 2, "flag-3": 3}

_SYSCTLS = (
    ("vs/conntrack", "1", "IPVS connections are in conntrack, so that iptables can change their source"),
    ("vs/expire_nodest_conn", "1", "connections to a real server that went end with the next packet"),
    ("vs/expire_quiescent_template", "1", "clients stick to no real server of weight 0"),
    ("vs/conn_reuse_mode", "0", "a client's port that comes again is no reason to schedule anew"),
    ("conf/all/arp_ignore", "1", f"nobody is told by ARP of the addresses on {DEVICE}"),
    ("conf/all/arp_announce", "2", f"no address of {DEVICE} in ARP requests"),
)


def load(settings: ProxySettings) -> KubeRouterProxy:
    """The entry point. What kube-proxy is told is of no concern here."""
    return KubeRouterProxy()


class KubeRouterProxy:
    """kube-router's network services controller (``--run-service-proxy``) on every node."""

    name = "kube-router"
    title = "kube-router's service proxy (IPVS)"
    requires: tuple[str, ...] = ("ipvs", "dummy", "ipset", "ipset-program", "iptables")
    stand_in = ""

    def __init__(self) -> None:
        self._slices: Sequence[EndpointSlice] = ()
        self._grouped: dict[tuple[str, int], list[EndpointSlice]] = {}

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        """The device, its addresses, ipsets, iptables rules and virtual servers of one node. Raises ManifestError for
        an annotation that is wrong or not emulated."""
        if cluster.slices is not self._slices:
            self._slices, self._grouped = cluster.slices, slices_by_service(cluster.slices)
        wanted = [_Wanted(service) for service in cluster.services if proxied(service, COMPONENT)]
        if faults := [fault for each in wanted for fault in each.faults()]:
            raise ManifestError(faults)
        for name, value, why in _SYSCTLS:
            yield Sysctl(ns=node.ns, name=f"net/ipv4/{name}", value=value, component=COMPONENT, why=why)
        yield Dummy(ns=node.ns, name=DEVICE, component=COMPONENT, why="holds all Service addresses")
        for family in families_of(node.addresses):
            part = _Part(cluster, node, family)
            for each in wanted:
                part.add(each, self._grouped)
            yield from part.objects()


class _Wanted:
    """A Service with what its annotations say (buildServicesInfo)."""

    def __init__(self, service: Service) -> None:
        notes = service.annotations
        self.service = service
        self.local_inside = service.internal_policy == "Local" or notes.get(LOCAL) == "true"
        self.local_outside = service.external_policy == "Local" or notes.get(LOCAL) == "true"
        self.scheduler = notes.get(SCHEDULER, SCHEDULERS[0])
        given = [flag.strip() for flag in notes.get(SCHEDULER_FLAGS, "").split(",") if flag.strip()]
        self.unknown_flags = [flag for flag in given if flag not in FLAGS]
        self.flags = tuple(sorted({FLAGS[flag] for flag in given if flag in FLAGS and self.scheduler == MAGLEV}))
        self.hairpin = HAIRPIN in notes
        self.hairpin_outside = HAIRPIN_EXTERNAL in notes
        self.outside = tuple(map(plain, service.external_ips))
        if SKIP_BALANCER not in notes:
            self.outside += tuple(plain(each.address) for each in service.load_balancer)

    def faults(self) -> Iterator[Problem]:
        """What of the annotations cannot be done. The real one would take round robin for a scheduler that it does not
        know, and pass over the rest."""
        for name, value in self.service.annotations.items():
            if name == SCHEDULER and value not in SCHEDULERS:
                yield self._fault(name, unsupported(value, SCHEDULERS))
            elif name == SCHEDULER_FLAGS and self.unknown_flags:
                yield self._fault(name, unsupported(self.unknown_flags[0], FLAGS))
            elif name == DSR:
                yield self._fault(name, forbidden("direct server return is not emulated"))
            elif name.startswith(PREFIX) and name not in KNOWN:
                yield self._fault(name, forbidden("this annotation of kube-router's is not emulated"))

    def _fault(self, name: str, reason: str) -> Problem:
        return Problem("", f"Service {self.service.key}", f"metadata.annotations[{name}]", reason)


class _Part:
    """One node's part of one family, gathered Service by Service."""

    def __init__(self, cluster: Cluster, node: Node, family: Family) -> None:
        self.node = node
        self.family = family
        self.ipvs = VirtualServers(cluster, node, family)
        self.hairpins: dict[tuple[str, ...], str] = {}  # rule: why

    def add(self, wanted: _Wanted, slices: dict[tuple[str, int], list[EndpointSlice]]) -> None:
        for port in wanted.service.ports:
            if port.protocol in PROTOCOLS:
                offered = {
                    family: _usable(targets(slices.get((wanted.service.key, family), ()), port)) for family in (4, 6)
                }
                self._port(wanted, port, offered)

    def _port(self, wanted: _Wanted, port: ServicePort, offered: dict[int, Sequence[Target]]) -> None:
        service, chosen = wanted.service, offered[self.family]
        # Whether the node has endpoints is asked without regard to families (hasActiveEndpoints).
        active = any(self._here(target) for found in offered.values() for target in found)
        here = [target for target in chosen if self._here(target)]
        cluster_ips = self._mine(map(plain, service.cluster_ips))
        outside = self._mine(wanted.outside)
        if active or not wanted.local_inside:
            for address in cluster_ips:
                self._serve(wanted, port, address, port.port, here if wanted.local_inside else chosen)
        if active or not wanted.local_outside:
            behind = here if wanted.local_outside else chosen
            # GetPrimaryNodeIP: one address of one family
            if port.node_port and family_of(self.node.addresses[0]) == self.family:
                self._serve(wanted, port, plain(self.node.addresses[0]), port.node_port, behind)
            for address in outside:
                self._serve(wanted, port, address, port.port, behind)
        if wanted.hairpin and cluster_ips:
            reached = [(address, port.port) for address in cluster_ips]
            if wanted.hairpin_outside:
                reached += [(address, port.port) for address in self._mine(map(plain, service.external_ips))]
            if port.node_port:
                reached += [(address, port.node_port) for address in self._mine(map(plain, self.node.addresses))]
            for target in here:
                for address, number in reached:
                    self._hairpin(plain(target.address), address, number, service.key)

    def _mine(self, addresses: Iterator[str] | Sequence[str]) -> list[str]:
        """Those of the family, each once."""
        return list(dict.fromkeys(each for each in addresses if family_of(each) == self.family))

    def _here(self, target: Target) -> bool:
        return target.endpoint.node == self.node.name

    def _serve(self, wanted: _Wanted, port: ServicePort, address: str, number: int, chosen: Sequence[Target]) -> None:
        self.ipvs.serve(wanted.service, port, address, number, chosen, scheduler=wanted.scheduler, flags=wanted.flags)

    def _hairpin(self, endpoint: str, address: str, number: int, key: str) -> None:
        itself = host_prefix(endpoint)
        virtual = ("-m", "ipvs", "--vaddr", address, "--vport", str(number))
        rule = ("-s", itself, "-d", itself, *virtual, "-j", "SNAT", "--to-source", address)
        self.hairpins.setdefault(rule, f"an endpoint of {key} that reaches itself sees the Service's address")

    # -- objects

    def objects(self) -> Iterator[AnyObject]:
        ns, source = self.node.ns, of_family(self.node.addresses, self.family)
        for address, key in self.ipvs.bound.items():
            yield Address(
                ns=ns,
                device=DEVICE,
                address=host_prefix(address),
                scope="link",
                component=COMPONENT,
                why=f"of Service {key}: packets to it are for this node, and IPVS sees them",
            )
            # IPv6 has the kernel's own routes beside it, which the real one deletes
            if self.family == 4:
                yield Route(
                    ns=ns,
                    destination=host_prefix(address),
                    device=DEVICE,
                    type="local",
                    scope="host",
                    protocol="kernel",
                    source=source,
                    table=LOCAL_TABLE,
                    component=COMPONENT,
                    why="what the node itself sends there comes from the node's address, not from the Service's",
                )
        yield from self._sets()
        yield self._firewall()
        yield self._nat(source)
        yield self.ipvs.planned(COMPONENT, graceful=False)

    def _sets(self) -> Iterator[IpSet]:
        """What syncIpvsFirewall puts into the three sets."""
        served = self.ipvs.servers.values()
        loopback = ("127.0.0.1",) if self.family == 4 else ("::1",)
        for name, kind, members, why in (
            (LOCAL_IPS, "hash:ip", (*loopback, *self.ipvs.own), f"the node's own addresses, without those on {DEVICE}"),
            (SERVICE_IPS, "hash:ip", (each.address for each in served), "addresses that IPVS answers for"),
            (
                SERVICE_PORTS,
                "hash:ip,port",
                (f"{each.address},{each.protocol.lower()}:{each.port}" for each in served),
                "addresses and ports that IPVS answers for",
            ),
        ):
            yield IpSet(
                ns=self.node.ns,
                name=self._set_name(name),
                type=kind,
                family=self.family,
                members=tuple(sorted(set(members))),
                component=COMPONENT,
                why=why,
            )

    def _set_name(self, name: str) -> str:
        return name if self.family == 4 else f"inet6:{name}"

    def _match(self, name: str, directions: str, *, negated: bool = False) -> tuple[str, ...]:
        return ("-m", "set", *(("!",) if negated else ()), "--match-set", self._set_name(name), directions)

    def _firewall(self) -> IptablesRules:
        """setupIpvsFirewall, with ``--ipvs-permit-all``, which is the default."""
        icmp, kind, refusal = (
            ("icmp", "--icmp-type", "icmp-port-unreachable")
            if self.family == 4
            else ("ipv6-icmp", "--icmpv6-type", "icmp6-port-unreachable")
        )
        rules = [
            Rule((*_comment(comment), "-p", icmp, kind, name, "-j", "ACCEPT")) for name, comment in ICMP[self.family]
        ]
        rules += [
            Rule(
                (
                    *_comment("allow input traffic to ipvs services"),
                    *self._match(SERVICE_PORTS, "dst,dst"),
                    *("-j", "ACCEPT"),
                ),
                "on to IPVS, past the rest of INPUT",
            ),
            Rule(
                (
                    *_comment("reject all unexpected traffic to service IPs"),
                    *self._match(LOCAL_IPS, "dst", negated=True),
                    *("-j", "REJECT", "--reject-with", refusal),
                ),
                "a Service's address has no other ports; the node's own have",
            ),
        ]
        jump = Rule(
            (
                *_comment("handle traffic to IPVS service IPs in custom chain"),
                *self._match(SERVICE_IPS, "dst"),
                *("-j", SERVICES_CHAIN),
            )
        )
        # Put first by the real one, but its policies' chains are then put before it: they are there already.
        return self._rules(
            "filter", (Chain(SERVICES_CHAIN, tuple(rules)),), (Jump("INPUT", jump),), "what comes to Service addresses"
        )

    def _nat(self, source: str) -> IptablesRules:
        """ensureMasqueradeIptablesRule and syncHairpinIptablesRules."""
        through = ("-m", "ipvs", "--ipvs", "--vdir", "ORIGINAL", "--vmethod", "MASQ")
        jumps = [
            Jump(
                "POSTROUTING",
                Rule(
                    (
                        *(*through, "!", "-s", cidr, "!", "-d", cidr),
                        *("-j", "SNAT", "--to-source", source, "--random-fully"),
                    ),
                    "answers of endpoints elsewhere come back by this node, which has to translate them",
                ),
            )
            for cidr in self.node.pod_ranges
            if family_of(cidr) == self.family
        ]
        chains: tuple[Chain, ...] = ()
        if self.hairpins:
            chains = (Chain(HAIRPIN_CHAIN, tuple(Rule(args, why) for args, why in self.hairpins.items())),)
            hairpin = Rule(("-m", "ipvs", "--vdir", "ORIGINAL", "-j", HAIRPIN_CHAIN), "pods that reach themselves")
            jumps.append(Jump("POSTROUTING", hairpin))
        return self._rules("nat", chains, tuple(jumps), "which source the endpoints see")

    def _rules(self, table: str, chains: tuple[Chain, ...], jumps: tuple[Jump, ...], why: str) -> IptablesRules:
        return IptablesRules(
            ns=self.node.ns,
            family=self.family,
            table=table,  # type: ignore[arg-type]
            owner=OWNER,
            chains=chains,
            jumps=jumps,
            component=COMPONENT,
            why=why,
        )


def _usable(offered: Sequence[Target]) -> Sequence[Target]:
    """buildEndpointSliceInfo: whatever serves, be it about to end, and neither hints nor readiness beyond that."""
    return [target for target in offered if target.endpoint.ready or target.endpoint.serving]


def _comment(text: str) -> tuple[str, ...]:
    return ("-m", "comment", "--comment", text)
