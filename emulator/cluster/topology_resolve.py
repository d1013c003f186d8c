"""From the entries of a topology file to machines with devices, addresses and routes.

Cables decide the segments and the devices; :mod:`emulator.cluster.topology_segments` then gives every
machine its addresses, :mod:`emulator.cluster.topology_routes` its routes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from emulator.cluster import validation
from emulator.cluster.decode import near
from emulator.cluster.model import (
    Interface,
    LinkQuality,
    LoadBalancer,
    Machine,
    StaticRoute,
    Switch,
    SwitchPort,
    Topology,
    Upstream,
    Vpc,
)
from emulator.cluster.topology_balancer import resolve_balancer
from emulator.cluster.topology_dns import resolve_dns
from emulator.cluster.topology_file import Faults, HostEntry, LinkEntry, NodeEntry, RouterEntry, TopologyFile
from emulator.cluster.topology_routes import Leg, machine_routes
from emulator.cluster.topology_rules import DEVICE_MAX, MTU_MIN_IPV6, PORTS_MAX, RESERVED_DEVICES, ZONE_LABEL
from emulator.cluster.topology_segments import End, Segment, assign_addresses, check_nat, check_ranges
from emulator.cluster.topology_vpc import resolve_vpc

DEFAULT_MTU = 1500  # bytes: Ethernet

MachineEntry = NodeEntry | RouterEntry | HostEntry


@dataclass
class _Port:
    """A switch's end of a cable."""

    switch: str
    device: str
    machine: str
    machine_device: str
    quality: LinkQuality
    mtu: int


@dataclass(frozen=True)
class _Cable:
    link: LinkEntry
    subject: str
    path: str


def resolve(file: TopologyFile, faults: Faults) -> Topology | None:
    """The topology of ``file``, or None with the reasons in ``faults``."""
    return _Resolver(file, faults).resolve()


class _Resolver:
    """Working state of one resolution: the tables that the steps fill in turn."""

    def __init__(self, file: TopologyFile, faults: Faults) -> None:
        self.file = file
        self.faults = faults
        self.entries: dict[str, tuple[str, MachineEntry]] = {}
        for kind, entries in (("node", file.nodes), ("router", file.routers), ("host", file.hosts)):
            self.entries |= {entry.name: (kind, entry) for entry in entries}
        self.switches = {switch.name: switch for switch in file.switches}
        self.segments: list[Segment] = []
        self.ends: dict[str, list[End]] = {name: [] for name in self.entries}
        self.ports: dict[str, list[_Port]] = {name: [] for name in self.switches}
        self.devices: set[str] = {*self.switches, *RESERVED_DEVICES}

    def resolve(self) -> Topology | None:
        cables = [cable for cable in self._cables() if self._both_ends_exist(cable)]
        if self.faults.problems:
            return None
        segment_of = self._switch_segments(cables)
        for cable in cables:
            self._lay(cable, segment_of)
        self._check_machines_and_ports()
        check_ranges(self.file.pod_cidrs, self.file.service_cidrs, self.segments, self.faults)
        check_nat(self.segments, self.ends, self.faults)
        if self.faults.problems:
            return None
        for segment in self.segments:
            assign_addresses(segment, self.faults)
        if self.faults.problems:
            return None
        vpc = resolve_vpc(self.file, self.faults)
        machines = self._machines()
        upstream = resolve_dns(self.file.dns, machines, self.faults)
        balancer = resolve_balancer(self.file, machines, self.faults)
        return None if self.faults.problems else self._topology(machines, vpc, upstream, balancer)

    def _cables(self) -> Iterator[_Cable]:
        """The links, those in the short form ``switch:`` first."""
        numbers: Counter[str] = Counter()
        for kind, entry in self.entries.values():
            path = f"{kind}s[{numbers[kind]}].switch"
            numbers[kind] += 1
            if entry.switch:
                link = LinkEntry(from_=entry.name, to=entry.switch, addresses=entry.addresses)
                yield _Cable(link, f"{kind} {entry.name}", path)
        for index, link in enumerate(self.file.links):
            yield _Cable(link, f"link {link.from_}–{link.to}", f"links[{index}]")

    def _both_ends_exist(self, cable: _Cable) -> bool:
        link, known = cable.link, [*self.switches, *self.entries]
        before = len(self.faults.problems)
        short = not cable.path.startswith("links")
        for name, field_ in ((link.from_, "from"), (link.to, "to")):
            path = cable.path if short else f"{cable.path}.{field_}"
            what = "switch" if short else "switch, node, router or host"
            if name not in (self.switches if short and field_ == "to" else known):
                reason = f"there is no {what} of this name" + near(name, [*self.switches] if short else known)
                self.faults.add(cable.subject, path, validation.invalid(name, reason))
        if link.from_ == link.to:
            self.faults.add(cable.subject, cable.path, "both ends are the same")
        if len(self.faults.problems) > before:
            return False
        touches_switch = link.from_ in self.switches or link.to in self.switches
        both_switches = link.from_ in self.switches and link.to in self.switches
        if touches_switch and link.cidrs:
            self.faults.add(
                cable.subject, f"{cable.path}.cidrs", "belong to the switch; only a link of two machines has its own"
            )
        if touches_switch and link.peer_addresses:
            self.faults.add(cable.subject, f"{cable.path}.peerAddresses", "a switch has no addresses")
        if both_switches and link.addresses:
            self.faults.add(cable.subject, f"{cable.path}.addresses", "a switch has no addresses")
        return len(self.faults.problems) == before

    def _switch_segments(self, cables: list[_Cable]) -> dict[str, Segment]:
        """The segment of each switch; a ring of switches would flood for ever and is refused."""
        group = {name: name for name in self.switches}

        def root(name: str) -> str:
            while group[name] != name:
                name = group[name]
            return name

        for cable in cables:
            one, other = cable.link.from_, cable.link.to
            if one in self.switches and other in self.switches:
                if root(one) == root(other):
                    self.faults.add(cable.subject, cable.path, "closes a loop of switches, which run no spanning tree")
                else:
                    group[root(other)] = root(one)
        segments: dict[str, Segment] = {}
        for name, switch in self.switches.items():
            segment = segments.setdefault(root(name), Segment(f"switch {root(name)}", [], switch.nat))
            if segment.nat != switch.nat:
                self.faults.add(f"switch {name}", "nat", f"is not that of {segment.name}, with which it is one segment")
            for text in switch.cidrs:
                cidr = validation.parse_cidr(text)
                if cidr not in segment.cidrs:
                    segment.cidrs.append(cidr)
        self.segments += segments.values()
        return {name: segments[root(name)] for name in self.switches}

    def _lay(self, cable: _Cable, segment_of: dict[str, Segment]) -> None:
        link = cable.link
        switch_mtus = [self.switches[name].mtu for name in (link.from_, link.to) if name in self.switches]
        mtu = min([*([link.mtu] if link.mtu is not None else []), *switch_mtus], default=DEFAULT_MTU)
        if not switch_mtus:
            segment = Segment(cable.subject, [validation.parse_cidr(text) for text in link.cidrs])
            self.segments.append(segment)
            one = self._end(cable, link.from_, link.to, mtu, segment, link.addresses, "addresses")
            other = self._end(cable, link.to, link.from_, mtu, segment, link.peer_addresses, "peerAddresses")
            one.peer_device, other.peer_device = other.device, one.device
        elif len(switch_mtus) == 2:
            segment = segment_of[link.from_]
            one_device, other_device = self._port_name(link.from_, link.to), self._port_name(link.to, link.from_)
            self._port(link.from_, one_device, link.to, other_device, link.quality, mtu)
            self._port(link.to, other_device, link.from_, one_device, link.quality, mtu)
        else:
            switch, machine = (link.from_, link.to) if link.from_ in self.switches else (link.to, link.from_)
            segment = segment_of[switch]
            end = self._end(cable, machine, switch, mtu, segment, link.addresses, "addresses")
            end.peer_device = self._port_name(switch, machine)
            self._port(switch, end.peer_device, machine, end.device, link.quality, mtu)
        if mtu < MTU_MIN_IPV6 and any(cidr.version == 6 for cidr in segment.cidrs):
            reason = validation.invalid(mtu, f"must be at least {MTU_MIN_IPV6}: the segment has IPv6")
            self.faults.add(cable.subject, f"{cable.path}.mtu", reason)

    def _end(
        self, cable: _Cable, machine: str, peer: str, mtu: int, segment: Segment, wanted: list[str], field_: str
    ) -> End:
        path = cable.path.removesuffix(".switch") + f".{field_}"
        end = End(
            machine, self.entries[machine][0], peer, mtu, cable.link.quality, segment, wanted, cable.subject, path
        )
        end.device = f"eth{len(self.ends[machine])}"
        self.ends[machine].append(end)
        segment.ends.append(end)
        return end

    def _port(
        self, switch: str, device: str, machine: str, machine_device: str, quality: LinkQuality, mtu: int
    ) -> None:
        self.ports[switch].append(_Port(switch, device, machine, machine_device, quality, mtu))

    def _port_name(self, switch: str, machine: str) -> str:
        # A dot in a device name breaks its sysctl path (net.ipv4.conf.<device>.forwarding)
        wanted = f"{switch}-{machine}".replace(".", "-")
        name, attempt = wanted, 0
        while len(name) > DEVICE_MAX or name in self.devices:
            digest = hashlib.sha256(f"{switch}/{machine}/{attempt}".encode()).hexdigest()[:4]
            name, attempt = f"{wanted[: DEVICE_MAX - 5]}-{digest}", attempt + 1
        self.devices.add(name)
        return name

    def _check_machines_and_ports(self) -> None:
        for name, (kind, _) in self.entries.items():
            if not self.ends[name]:
                self.faults.add(f"{kind} {name}", "", "is not linked to anything: give it a switch or a link")
        for switch, ports in self.ports.items():
            if len(ports) > PORTS_MAX:
                self.faults.add(f"switch {switch}", "", f"has {len(ports)} ports, a Linux bridge takes {PORTS_MAX}")
        for segment in self.segments:
            if segment.ends and not segment.cidrs:
                path = (
                    "cidrs"
                    if segment.name.startswith("switch ")
                    else f"{segment.ends[0].path.rpartition('.')[0]}.cidrs"
                )
                self.faults.add(segment.name, path, validation.required("the machines on it need addresses"))

    def _machines(self) -> list[Machine]:
        """All machines in the order nodes, routers, hosts, each in the file's order."""
        legs = [
            Leg(end.machine, end.kind, end.device, address, cidr, end.segment.name, end.segment.nat)
            for ends in self.ends.values()
            for end in ends
            for address, cidr in end.addresses
        ]
        routes = machine_routes(self.entries, legs, self.faults, [*map(validation.parse_cidr, self.file.pod_cidrs)])
        macs: set[str] = set()
        return [self._machine(name, kind, entry, routes[name], macs) for name, (kind, entry) in self.entries.items()]

    def _machine(
        self, name: str, kind: str, entry: MachineEntry, routes: tuple[StaticRoute, ...], macs: set[str]
    ) -> Machine:
        interfaces = tuple(
            Interface(
                name=end.device,
                mac=_mac(name, end.device, macs),
                addresses=tuple(f"{address}/{cidr.prefixlen}" for address, cidr in end.addresses),
                mtu=end.mtu,
                peer=end.peer,
                peer_device=end.peer_device,
                quality=end.quality,
            )
            for end in self.ends[name]
        )
        if isinstance(entry, NodeEntry):
            zone = entry.zone or self._zone_of(name)
            labels = {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                **({ZONE_LABEL: zone} if zone else {}),
                **entry.labels,
            }
            return Machine(
                name,
                "node",
                interfaces,
                routes,
                labels,
                annotations=entry.annotations,
                pods=entry.pods or 0,
                asn=entry.asn,
                node_ips=self._node_ips(entry),
            )
        if isinstance(entry, RouterEntry):
            nat = tuple(end.device for end in self.ends[name] if end.segment.nat)
            return Machine(name, "router", interfaces, routes, asn=entry.asn, nat=nat)
        return Machine(name, "host", interfaces, routes, ports=tuple(entry.ports))

    def _node_ips(self, entry: NodeEntry) -> tuple[str, ...]:
        """The kubelet's ``--node-ip``: it refuses an address that no interface of its machine has."""
        own = [str(address) for end in self.ends[entry.name] for address, _ in end.addresses]
        given = tuple(str(validation.parse_address(text)) for text in entry.node_ip.split(",")) if entry.node_ip else ()
        for address in given:
            if address not in own:
                reason = validation.invalid(address, f"the node's own addresses are {', '.join(own)}")
                self.faults.add(f"node {entry.name}", "nodeIP", reason)
        return given

    def _zone_of(self, node: str) -> str:
        """The availability zone of the VPC's subnet that the node is in."""
        zones = {subnet.switch: subnet.zone for subnet in self.file.vpc.subnets} if self.file.vpc is not None else {}
        return next((zones[end.peer] for end in self.ends[node] if zones.get(end.peer)), "")

    def _topology(
        self, machines: list[Machine], vpc: Vpc | None, upstream: Upstream | None, balancer: LoadBalancer | None
    ) -> Topology:
        switches = tuple(
            Switch(
                name=name,
                ports=tuple(
                    SwitchPort(p.device, p.machine, p.machine_device, p.quality, p.mtu) for p in self.ports[name]
                ),
                cidrs=tuple(switch.cidrs),
                mtu=switch.mtu,
            )
            for name, switch in self.switches.items()
        )
        node_cidrs = [
            str(cidr)
            for segment in self.segments
            if any(end.kind == "node" for end in segment.ends)
            for cidr in segment.cidrs
        ]
        return Topology(
            name=self.file.name,
            machines=tuple(machines),
            switches=switches,
            pod_cidrs=tuple(_canonical(self.file.pod_cidrs)),
            service_cidrs=tuple(_canonical(self.file.service_cidrs)),
            node_cidrs=tuple(dict.fromkeys(node_cidrs)),
            vpc=vpc,
            upstream=upstream,
            load_balancer=balancer,
        )


def _canonical(cidrs: list[str]) -> Iterator[str]:
    return (str(validation.parse_cidr(text)) for text in cidrs)


def _mac(machine: str, device: str, macs: set[str]) -> str:
    """A locally administered unicast address (bit 0x02 of the first byte set, bit 0x01 clear), stable over runs."""
    attempt = 0
    while True:
        digest = hashlib.sha256(f"{machine}/{device}/{attempt}".encode()).digest()
        mac = ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
        if mac not in macs:
            macs.add(mac)
            return mac
        attempt += 1
