"""kube-proxy's iptables rules of one Service: its lines in the shared chains, and the chains of its own.

::

    nat     KUBE-SERVICES   cluster IP ──────────────────────────────► KUBE-SVC ─┬─► KUBE-SEP: DNAT to an endpoint
                            external IP ──► KUBE-EXT ──────────────────────┘     └─► KUBE-SEP ...
                            load balancer IP ──► KUBE-FW (ranges) ──► KUBE-EXT
            KUBE-NODEPORTS  node port ──► KUBE-EXT
    filter  KUBE-SERVICES, KUBE-EXTERNAL-SERVICES   what has nowhere to go: REJECT, or DROP where only others have
            KUBE-PROXY-FIREWALL                     what KUBE-FW did not let through: DROP

KUBE-SVL stands for KUBE-SVC where a policy Local sends to the endpoints of this node only.

All of it is text for ``iptables-restore``, written once and shared between nodes. What goes into the text is checked
first: names, addresses and numbers that could end a word, or a rule, are refused.

Source: kubernetes/kubernetes pkg/proxy/iptables/proxier.go (syncProxyRules, writeServiceToEndpointRules).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from emulator.cluster.services import Service, ServicePort
from emulator.errors import CnilabError
from emulator.plan.model import Family
from emulator.proxy.endpoints import Choice, Target, cluster_ip, externally_accessible, uses_cluster, uses_local
from emulator.proxy.names import endpoint_chain, port_name, service_hash

LOCAL_SOURCE = "-m addrtype --src-type LOCAL"
LONGEST_NAME = 191  # characters of namespace/name:port, each a DNS label; with the longest words, a comment has 250

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_ADDRESS = re.compile(r"[0-9a-fA-F.:]+")
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Wording:
    """What is the same for all Services of a node's rules.

    ``from_pods`` and ``not_from_pods`` are the matches that tell pods' traffic from other, empty without a detector.
    ``node_ip`` is the node's own address. ``large``: a large cluster, whose endpoints' rules have no comments.
    """

    family: Family
    from_pods: str
    not_from_pods: str
    masquerade_all: bool
    large: bool
    node_ip: str


@dataclass
class Lines:
    """The rules of one Service: lines for the chains that all share, and ``chains`` with their whole text."""

    services: str = ""
    node_ports: str = ""
    filter_services: str = ""
    filter_external: str = ""
    filter_node_ports: str = ""
    filter_firewall: str = ""
    chains: dict[str, str] = field(default_factory=dict)


def service_lines(service: Service, choices: Sequence[tuple[ServicePort, Choice]], wording: Wording) -> Lines:
    """All rules of the Service, whose ports have these endpoints. Raises CnilabError for what cannot be written."""
    lines = Lines()
    for port, choice in choices:
        _Port(service, port, choice, wording, lines).write()
    return lines


class _Port:
    """One Service port while its rules are written."""

    def __init__(self, service: Service, port: ServicePort, choice: Choice, wording: Wording, lines: Lines) -> None:
        self.service, self.port, self.choice, self.wording, self.lines = service, port, choice, wording, lines
        self.name = port_name(service.key, port.name)
        self.protocol = port.protocol.lower()
        _check(self.name, service, port)
        code = service_hash(self.name, self.protocol)
        self.cluster_chain, self.local_chain = f"KUBE-SVC-{code}", f"KUBE-SVL-{code}"
        self.external_chain, self.firewall_chain = f"KUBE-EXT-{code}", f"KUBE-FW-{code}"
        self.match = f"-m {self.protocol} -p {self.protocol}"
        family = wording.family
        self.address = _address(cluster_ip(service, family), self.name)
        self.external_ips = [_address(each, self.name) for each in service.external_ips if _is(each, family)]
        self.balancer_ips = [
            _address(each.address, self.name)
            for each in service.load_balancer
            if not each.proxy and _is(each.address, family)
        ]
        self.ranges = [_range(each, self.name) for each in service.source_ranges if _is(each, family)]

    def write(self) -> None:
        service, choice = self.service, self.choice
        family = self.wording.family
        self.has_internal = choice.anywhere and bool(service.internal_policy == "Cluster" or choice.local)
        self.has_external = choice.anywhere and bool(service.external_policy == "Cluster" or choice.local)
        self.filtered = choice.anywhere and bool(self.balancer_ips) and bool(self.ranges)
        self._cluster_address()
        self._external_addresses()
        self._balancer_addresses()
        if self.port.node_port:
            self._node_port()
        if service.health_port:
            self.lines.filter_node_ports += (
                f'-A KUBE-NODEPORTS -m comment --comment "{self.name} health check node port" '
                f"-m tcp -p tcp --dport {service.health_port} -j ACCEPT\n"
            )
        chains = self.lines.chains
        if choice.anywhere and externally_accessible(service, self.port, family):
            chains[self.external_chain] = self._external()
        if self.filtered:
            chains[self.firewall_chain] = self._firewall()
        hashed = {
            (each.address, each.port): endpoint_chain(self.name, self.protocol, _endpoint(each, self.name))
            for each in choice.reachable
        }
        internal = self.local_chain if service.internal_policy == "Local" else self.cluster_chain
        for chain, found, used in (
            (self.cluster_chain, choice.cluster, uses_cluster(service, self.port, family)),
            (self.local_chain, choice.local, uses_local(service, self.port, family)),
        ):
            if found and used:
                first = self._off_cluster(chain) if chain == internal and self.has_internal else ""
                chains[chain] = first + self._balance(chain, found, hashed)
        for each in choice.reachable:
            chain = hashed[each.address, each.port]
            chains[chain] = self._endpoint(chain, each)

    # ------------------------------------------------------------ the shared chains

    def _cluster_address(self) -> None:
        where = f"{self.match} -d {self.address} --dport {self.port.port}"
        if self.has_internal:
            chain = self.local_chain if self.service.internal_policy == "Local" else self.cluster_chain
            self.lines.services += (
                f'-A KUBE-SERVICES -m comment --comment "{self.name} cluster IP" {where} -j {chain}\n'
            )
        else:
            words, target = self._nowhere()
            self.lines.filter_services += f'-A KUBE-SERVICES -m comment --comment "{words}" {where} -j {target}\n'

    def _external_addresses(self) -> None:
        for address in self.external_ips:
            where = f"{self.match} -d {address} --dport {self.port.port}"
            if self.choice.anywhere:
                self.lines.services += (
                    f'-A KUBE-SERVICES -m comment --comment "{self.name} external IP" {where} '
                    f"-j {self.external_chain}\n"
                )
            self._nothing_external(where)

    def _balancer_addresses(self) -> None:
        to = self.firewall_chain if self.filtered else self.external_chain
        for address in self.balancer_ips:
            where = f"{self.match} -d {address} --dport {self.port.port}"
            if self.choice.anywhere:
                self.lines.services += (
                    f'-A KUBE-SERVICES -m comment --comment "{self.name} loadbalancer IP" {where} -j {to}\n'
                )
            if self.filtered:
                self.lines.filter_firewall += (
                    f'-A KUBE-PROXY-FIREWALL -m comment --comment "{self.name} traffic not accepted by '
                    f'{self.firewall_chain}" {where} -j DROP\n'
                )
        for address in self.balancer_ips:
            self._nothing_external(f"{self.match} -d {address} --dport {self.port.port}")

    def _node_port(self) -> None:
        where = f"{self.match} --dport {self.port.node_port}"
        if self.choice.anywhere:
            # Not subject to loadBalancerSourceRanges: a balancer in front hides the source.
            self.lines.node_ports += (
                f"-A KUBE-NODEPORTS -m comment --comment {self.name} {where} -j {self.external_chain}\n"
            )
        self._nothing_external(f"-m addrtype --dst-type LOCAL {where}")

    def _nothing_external(self, where: str) -> None:
        """Refuse what no endpoint can take. In a chain with a short cut, only what that left over comes here."""
        if not self.has_external:
            words, target = self._nowhere()
            self.lines.filter_external += (
                f'-A KUBE-EXTERNAL-SERVICES -m comment --comment "{words}" {where} -j {target}\n'
            )

    def _nowhere(self) -> tuple[str, str]:
        if not self.choice.anywhere:
            return f"{self.name} has no endpoints", "REJECT"
        return f"{self.name} has no local endpoints", "DROP"

    # ------------------------------------------------------------ the Service's own chains

    def _off_cluster(self, chain: str) -> str:
        """Masquerade what comes from outside of the cluster to a cluster IP: its way back must lead through here."""
        wording = self.wording
        if not wording.masquerade_all and not wording.not_from_pods:
            return ""
        detector = "" if wording.masquerade_all else f"{wording.not_from_pods} "
        return (
            f'-A {chain} -m comment --comment "{self.name} cluster IP" {self.match} -d {self.address} '
            f"--dport {self.port.port} {detector}-j KUBE-MARK-MASQ\n"
        )

    def _external(self) -> str:
        chain, to = self.external_chain, f"for {self.name} external destinations"
        if self.service.external_policy == "Cluster":
            text = f'-A {chain} -m comment --comment "masquerade traffic {to}" -j KUBE-MARK-MASQ\n'
        else:
            text = ""
            if self.wording.from_pods:
                # As if it had gone out to a load balancer and come back in, by neither policy.
                text += (
                    f'-A {chain} -m comment --comment "pod traffic {to}" {self.wording.from_pods} '
                    f"-j {self.cluster_chain}\n"
                )
            text += (
                f'-A {chain} -m comment --comment "masquerade LOCAL traffic {to}" {LOCAL_SOURCE} -j KUBE-MARK-MASQ\n'
                f'-A {chain} -m comment --comment "route LOCAL traffic {to}" {LOCAL_SOURCE} -j {self.cluster_chain}\n'
            )
        if self.has_external:
            local = self.service.external_policy == "Local"
            text += f"-A {chain} -j {self.local_chain if local else self.cluster_chain}\n"
        return text

    def _firewall(self) -> str:
        chain = self.firewall_chain
        start = f'-A {chain} -m comment --comment "{self.name} loadbalancer IP" -s'
        sources = list(self.ranges)
        node = self.wording.node_ip
        if node and any(ip_address(node) in ip_network(each) for each in self.ranges):
            # The node's own traffic to a balancer IP that is one of its addresses has that address as source.
            sources += self.balancer_ips
        text = "".join(f"{start} {source} -j {self.external_chain}\n" for source in sources)
        return text + (
            f'-A {chain} -m comment --comment "other traffic to {self.name} will be dropped by KUBE-PROXY-FIREWALL"\n'
        )

    def _balance(self, chain: str, found: Sequence[Target], hashed: Mapping[tuple[str, int], str]) -> str:
        """First those that a client had before, then one at random: the i-th of n with probability 1/(n-i)."""
        text, count = "", len(found)
        named = [(self._comment(f'"{self.name} -> {each.text}"'), hashed[each.address, each.port]) for each in found]
        if self.service.affinity:
            for comment, to in named:
                text += (
                    f"-A {chain}{comment} -m recent --name {to} --rcheck --seconds {self.service.affinity} --reap "
                    f"-j {to}\n"
                )
        for place, (comment, to) in enumerate(named):
            left = count - place
            chance = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
            text += f"-A {chain}{comment}{chance} -j {to}\n"
        return text

    def _endpoint(self, chain: str, target: Target) -> str:
        comment = self._comment(self.name)
        remember = f" -m recent --name {chain} --set" if self.service.affinity else ""
        return (
            f"-A {chain}{comment} -s {target.address} -j KUBE-MARK-MASQ\n"
            f"-A {chain}{comment}{remember} {self.match} -j DNAT --to-destination {target.text}\n"
        )

    def _comment(self, text: str) -> str:
        return "" if self.wording.large else f" -m comment --comment {text}"


def _is(address: str, family: Family) -> bool:
    return (":" in address) == (family == 6)


def _check(name: str, service: Service, port: ServicePort) -> None:
    """Names are what a user gives: nothing but letters, digits, dots and dashes may come into a rule."""
    words = (service.namespace, service.name, *([port.name] if port.name else []))
    if len(name) > LONGEST_NAME or not all(_NAME.fullmatch(word) for word in words):
        raise CnilabError(f"failed to write the rules of Service {name!r}: no such name fits into an iptables comment")
    numbers = (port.port, port.node_port, service.health_port, service.affinity)
    if not all(isinstance(number, int) for number in numbers) or port.protocol not in ("TCP", "UDP", "SCTP"):
        raise CnilabError(f"failed to write the rules of Service {name!r}: {numbers} are no ports of {port.protocol!r}")


def _address(address: str, name: str) -> str:
    if not _ADDRESS.fullmatch(address):
        raise CnilabError(f"failed to write the rules of Service {name!r}: {address!r} is no address")
    return address


def _range(cidr: str, name: str) -> str:
    try:
        return str(ip_network(cidr.strip(), strict=False))  # the API server lets blanks around it pass
    except ValueError as error:
        raise CnilabError(f"failed to write the rules of Service {name!r}: {error}") from error


def _endpoint(target: Target, name: str) -> str:
    _address(target.address, name)
    if not isinstance(target.port, int):
        raise CnilabError(f"failed to write the rules of Service {name!r}: {target.port!r} is no port")
    return target.text
