"""Packets that a machine holds back for a pod which is not there yet.

Where pods share a bridge, a node forwards a packet to an address that nobody has: the packet passes the rules, and then
waits in the neighbour's queue until ARP or NDP finds someone, three seconds long (``mcast_solicit`` times
``retrans_time_ms``). A pod that comes up in that time gets it, judged by rules which did not know the pod. So once the
rules know it, and before it can answer, what waits for it is dropped: its senders are told that the host is
unreachable, as they would have been a moment later.

Source: net/core/neighbour.c (``__neigh_event_send``, ``neigh_invalidate``: the queue of an entry that is deleted goes
back as an error).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from errno import ENOENT
from ipaddress import ip_address

from emulator.errors import ApplyError
from emulator.kernel.netlink import Channel, Request, attributes
from emulator.kernel.tables import NDA_DST, NEIGH, RTM_GETNEIGH
from emulator.plan.model import Address, AnyObject, BridgePort, Veth

RTM_DELNEIGH = 29
NUD_INCOMPLETE = 0x01


def bridged_pods(items: Iterable[AnyObject], machines: Collection[str]) -> dict[tuple[str, str], set[str]]:
    """The addresses of those pods among new objects that are plugged into a bridge of one of the machines, by the
    namespace and the bridge."""
    items = list(items) if machines else []
    ports = {(item.ns, item.device): item.bridge for item in items if isinstance(item, BridgePort)}
    places: dict[str, tuple[str, str]] = {}
    for item in items:
        if isinstance(item, Veth):
            for near, far in (((item.ns, item.name), item.peer_ns), ((item.peer_ns, item.peer), item.ns)):
                if near in ports and near[0] in machines and far.startswith("pod/"):
                    places[far] = (near[0], ports[near])
    found: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for item in items:
        if isinstance(item, Address) and item.ns in places:
            found[places[item.ns]].add(item.address.partition("/")[0])
    return found


def drop_waiting(channel: Channel, device: int, addresses: Collection[str]) -> None:
    """Drop what waits at the device, given by its index, for any of the addresses. Raises ApplyError."""
    requests = []
    for body in channel.dump(RTM_GETNEIGH, NEIGH.pack(0, 0, 0, 0, 0)):
        _, index, state, _, _ = NEIGH.unpack_from(body)
        if index != device or not state & NUD_INCOMPLETE:
            continue
        if str(ip_address(bytes(attributes(body, NEIGH.size)[NDA_DST]))) in addresses:
            requests.append(Request(RTM_DELNEIGH, 0, bytes(body)))
    for refusal in channel.submit(requests) if requests else ():
        if refusal.errno != ENOENT:  # the kernel may have given up by now
            raise ApplyError(f"failed to drop the packets that wait for new pods: {refusal.reason}")
