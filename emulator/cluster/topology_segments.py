"""Segments of the underlay and the addresses of the machines on them.

A *segment* is what shares a broadcast domain: switches that are cabled together, or a cable between two
machines. Explicit addresses come first, then routers from .1, nodes from .11, hosts from .101. IPv6 host
parts show the same decimal digits: beside ``192.168.50.11`` stands ``fd00:192:168:50::11``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from emulator.cluster import validation
from emulator.cluster.model import LinkQuality
from emulator.cluster.topology_file import Faults
from emulator.cluster.topology_rules import overlap
from emulator.cluster.validation import IPAddress, Network

# Where each kind's host numbers start in a segment
FIRST_HOST_NUMBER = {"router": 1, "node": 11, "host": 101}


@dataclass
class Segment:
    """A broadcast domain. ``taken`` maps each address in it to the machine that has it. ``nat``: it is hidden behind
    its router, which masquerades, so that other such segments may have the same addresses."""

    name: str
    cidrs: list[Network]
    nat: bool = False
    taken: dict[IPAddress, str] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)


@dataclass
class End:
    """A machine's end of a cable. ``device`` and ``addresses`` are filled in as they are decided."""

    machine: str
    kind: str
    peer: str
    mtu: int
    quality: LinkQuality
    segment: Segment
    wanted: list[str]
    subject: str
    path: str
    device: str = ""
    peer_device: str = ""
    addresses: list[tuple[IPAddress, Network]] = field(default_factory=list)


def check_ranges(pod_cidrs: list[str], service_cidrs: list[str], segments: list[Segment], faults: Faults) -> None:
    """No two of pod, service and segment CIDRs overlap, but those of segments behind NAT among themselves; services
    have no family that pods lack."""
    ranges = [(validation.parse_cidr(text), "podCIDRs") for text in pod_cidrs]
    ranges += [(validation.parse_cidr(text), "serviceCIDRs") for text in service_cidrs]
    ranges += [(cidr, segment.name) for segment in segments if not segment.nat for cidr in segment.cidrs]
    hidden = [segment for segment in segments if segment.nat]
    for segment in hidden:
        _check_disjoint([(cidr, segment.name) for cidr in segment.cidrs], faults)
    ranges += [(cidr, "the switches behind NAT") for cidr in _collapsed(hidden)]
    _check_disjoint(ranges, faults)
    families = {validation.parse_cidr(text).version for text in pod_cidrs}
    for text in service_cidrs:
        family = validation.parse_cidr(text).version
        if family not in families:
            reason = validation.invalid(text, f"there is no IPv{family} range in podCIDRs")
            faults.add("", "serviceCIDRs", reason)


def _check_disjoint(ranges: Iterable[tuple[Network, str]], faults: Faults) -> None:
    # Sorted by first address, a range that overlaps any earlier one overlaps the widest of them
    widest: tuple[Network, str] | None = None
    for cidr, name in sorted(ranges, key=lambda one: (one[0].version, int(one[0].network_address), one[0].prefixlen)):
        if widest is not None and overlap(cidr, widest[0]):
            faults.add("", name, validation.invalid(str(cidr), f"overlaps {widest[0]} of {widest[1]}"))
        else:
            widest = cidr, name


def _collapsed(segments: list[Segment]) -> list[Network]:
    """What the segments cover, each address once."""
    cidrs = {cidr for segment in segments for cidr in segment.cidrs}
    v4 = [cidr for cidr in cidrs if isinstance(cidr, ipaddress.IPv4Network)]
    v6 = [cidr for cidr in cidrs if isinstance(cidr, ipaddress.IPv6Network)]
    return [*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6)]


def check_nat(segments: list[Segment], ends: dict[str, list[End]], faults: Faults) -> None:
    """A segment behind NAT has one router, which leads somewhere else; no machine is on two with the same addresses."""
    for segment in segments:
        if not segment.nat:
            continue
        routers = list(dict.fromkeys(end.machine for end in segment.ends if end.kind == "router"))
        if len(routers) != 1:
            reason = f"a segment behind NAT has one router, which masquerades; this one has {len(routers)}"
            faults.add(segment.name, "nat", reason)
        elif all(end.segment.nat for end in ends[routers[0]]):
            faults.add(segment.name, "nat", f"its router {routers[0]} leads to no segment that is not behind NAT")
    for machine, own in ends.items():
        if sum(end.segment.nat for end in own) > 1:
            subnets = {(id(end.segment), cidr): end.peer for end in own for cidr in end.segment.cidrs}
            ranges = [(cidr, f"{machine}, towards {peer}") for (_, cidr), peer in subnets.items()]
            _check_disjoint(ranges, faults)


def assign_addresses(segment: Segment, faults: Faults) -> None:
    """Give each end on ``segment`` its addresses: one per CIDR, explicit ones before chosen ones."""
    for end in segment.ends:
        for index, text in enumerate(end.wanted):
            _take_explicit(segment, end, text, f"{end.path}[{index}]", faults)
    for kind, first in FIRST_HOST_NUMBER.items():
        for cidr in segment.cidrs:
            number = first if cidr.num_addresses > 2 else 0
            for end in segment.ends:
                if end.kind != kind or any(network == cidr for _, network in end.addresses):
                    continue
                address, number = _next_free(cidr, number, segment.taken)
                if address is None:
                    reason = f"{cidr} has no free address left for {kind} {end.machine}"
                    faults.add(segment.name, "cidrs", reason)
                    return
                segment.taken[address] = end.machine
                end.addresses.append((address, cidr))
    for end in segment.ends:
        end.addresses.sort(key=lambda pair: segment.cidrs.index(pair[1]))


def _take_explicit(segment: Segment, end: End, text: str, path: str, faults: Faults) -> None:
    base, _, length = text.partition("/")
    address = ipaddress.ip_address(base)
    cidr = next((cidr for cidr in segment.cidrs if address in cidr), None)
    if cidr is None:
        cidrs = ", ".join(map(str, segment.cidrs))
        reason = f"is outside the segment ({cidrs})"
    elif length and int(length) != cidr.prefixlen:
        reason = f"the segment is {cidr}: leave the prefix length out"
    elif not _usable(address, cidr):
        reason = f"is the network or broadcast address of {cidr}"
    elif address in segment.taken:
        reason = f"{segment.taken[address]} has this address"
    else:
        segment.taken[address] = end.machine
        end.addresses.append((address, cidr))
        return
    faults.add(end.subject, path, validation.invalid(text, reason))


def _usable(address: IPAddress, cidr: Network) -> bool:
    """Neither network nor broadcast address; in IPv6 not the subnet-router anycast address (RFC 4291, 2.6.1)."""
    if cidr.max_prefixlen - cidr.prefixlen <= 1:
        return True
    return address != cidr.network_address and (cidr.version == 6 or address != cidr.broadcast_address)


def _next_free(cidr: Network, number: int, taken: dict[IPAddress, str]) -> tuple[IPAddress | None, int]:
    """The first free address from host ``number`` on, or from the start of a small or crowded segment."""
    size = cidr.num_addresses
    base = int(cidr.network_address)
    make = type(cidr.network_address)
    while (offset := number if cidr.version == 4 else int(str(number), 16)) < size:
        address = make(base + offset)
        number += 1
        if _usable(address, cidr) and address not in taken:
            return address, number
    # Of len(taken) + 3 addresses one is free, if any is: the others are taken, network or broadcast address
    for offset in range(min(size, len(taken) + 3)):
        address = make(base + offset)
        if _usable(address, cidr) and address not in taken:
            return address, number
    return None, number
