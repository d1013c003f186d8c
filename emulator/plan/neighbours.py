"""Room for the neighbours of large segments in the kernel's table of ARP and NDP entries.

Machines on one segment are each other's neighbours: fifty of them, in a BGP mesh, make 2,450 entries. A real node's
kernel holds its own 49; here one kernel holds all, and its table, which all network namespaces share, ends at
``gc_thresh3``, 1,024 entries. What is beyond finds no MAC: packets vanish, sessions flap, a mesh never comes up. The
limit belongs to the machine, so a lab does not change it.

The kernel neither counts nor reclaims entries that somebody put there (``NTF_EXT_LEARNED``). So each neighbour on
large segments gets such an entry **without a MAC**, in state none. It is room and nothing else: the first packet makes
the kernel ask by ARP or NDP, the entry holds what was answered, gets stale and is asked for again, as any. On the wire
nothing differs; ``ip neigh`` shows ``extern_learn`` beside these entries.

Small topologies have none: there the kernel keeps its neighbours as it does on a real node.

Source: net/core/neighbour.c (``neigh_add``; ``neigh_alloc``, ``exempt_from_gc``; ``neigh_update``: only an
administrator's update takes the flag away); Documentation/networking/ip-sysctl.rst, ``neigh/default/gc_thresh*``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_interface

from emulator.cluster.model import Topology
from emulator.plan.model import Neighbour

FEW = 512  # neighbours: gc_thresh2, from which on the kernel reclaims entries that it made five seconds before

_Domain = tuple[str, IPv4Network | IPv6Network]  # a broadcast domain, by one of its switches, and a subnet in it
_Member = tuple[str, str, str, str]  # a machine, its namespace, device and address


def room_for_neighbours(topology: Topology, component: str) -> tuple[Neighbour, ...]:
    """An entry without MAC for each neighbour of each machine; none where all together are at most ``FEW``."""
    domains = _domains(topology)
    if sum(len(members) * (len(members) - 1) for members in domains.values()) <= FEW:
        return ()
    return tuple(
        Neighbour(
            ns=ns,
            device=device,
            address=address,
            mac="",
            component=component,
            why=f"room for {other}: all machines of a lab share one kernel's table, which would be full",
        )
        for members in domains.values()
        for machine, ns, device, _ in members
        for other, _, _, address in members
        if other != machine
    )


def _domains(topology: Topology) -> dict[_Domain, list[_Member]]:
    switch_of = dict(_cabled(topology))
    domains: defaultdict[_Domain, list[_Member]] = defaultdict(list)
    for machine in topology.machines:
        for interface in machine.interfaces:
            if interface.peer in switch_of:
                for address in map(ip_interface, interface.addresses):
                    member = (machine.name, machine.ns, interface.name, str(address.ip))
                    domains[switch_of[interface.peer], address.network].append(member)
    return domains


def _cabled(topology: Topology) -> Iterator[tuple[str, str]]:
    """Each switch, with the first of those that it is cabled together with: they are one broadcast domain."""
    switches = {switch.name: switch for switch in topology.switches}
    seen: set[str] = set()
    for first in switches:
        waiting = [first]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                yield name, first
                waiting += [port.machine for port in switches[name].ports if port.machine in switches]
