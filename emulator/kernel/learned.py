"""Waiting for routes that a routing daemon must bring.

The kernel announces every new route to those who joined the multicast group; so the wait ends within a millisecond of
the last route, and costs nothing meanwhile.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from errno import ENOBUFS

from emulator.errors import DaemonError
from emulator.kernel.daemons import Supervisor
from emulator.kernel.messages import PROTOCOLS, TYPES
from emulator.kernel.netlink import Channel, attributes, link_indexes
from emulator.plan.describe import describe
from emulator.plan.model import Route

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE = 0x40, 0x400
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 9, 15
NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, weight less one, device index
RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
SHOWN = 5  # routes named in the message; the number of the others follows
TICK = 0.5  # seconds between two looks at the daemons, and between two words about them

Hops = frozenset[tuple[str, int]]  # gateway and device index
Seen = tuple[str, Hops, int, int]  # destination, next hops, table, type


def read_route(body: memoryview) -> Seen:
    """The identity of a route in a message of the kernel's."""
    family, length, _, _, table, _, _, kind, _ = RTMSG.unpack_from(body)
    found = attributes(body, RTMSG.size)
    size = 4 if family == socket.AF_INET else 16
    network = socket.inet_ntop(family, bytes(found[RTA_DST]) if RTA_DST in found else bytes(size))
    number = int(struct.unpack("=I", found[RTA_TABLE])[0]) if RTA_TABLE in found else table
    return f"{network}/{length}", read_hops(family, found), number, kind


def read_hops(family: int, found: dict[int, memoryview]) -> Hops:
    """The next hops in a route's attributes; one without gateway for a route that needs none."""
    if RTA_MULTIPATH not in found:
        index = int(struct.unpack("=I", found[RTA_OIF])[0]) if RTA_OIF in found else 0
        return frozenset({(_gateway(family, found), index)})
    hops, data = set(), found[RTA_MULTIPATH]
    while len(data) >= NEXT_HOP.size:
        length, _, _, index = NEXT_HOP.unpack_from(data)
        if length < NEXT_HOP.size:
            break
        hops.add((_gateway(family, attributes(data[:length], NEXT_HOP.size)), index))
        data = data[(length + 3) & ~3 :]
    return frozenset(hops)


def _gateway(family: int, found: dict[int, memoryview]) -> str:
    return socket.inet_ntop(family, bytes(found[RTA_GATEWAY])) if RTA_GATEWAY in found else ""


class _Watch:
    """The missing routes of one namespace, kept up to date by the kernel's announcements."""

    def __init__(self, wanted: Sequence[Route], channel: Channel, netns: str | int) -> None:
        self.channel = Channel(netns, RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE)
        self._asker = channel
        self._indexes = link_indexes(channel)
        self._wanted = list(wanted)
        self.missing: list[Route] = []
        self.look()

    def look(self) -> None:
        """Compare with the whole table."""
        there: set[Seen] = set()
        for family in {socket.AF_INET6 if ":" in item.destination else socket.AF_INET for item in self._wanted}:
            for protocol in {item.protocol for item in self._wanted}:
                query = RTMSG.pack(family, 0, 0, 0, 0, PROTOCOLS[protocol], 0, 0, 0)
                there.update(read_route(body) for body in self._asker.dump(RTM_GETROUTE, query))
        self.missing = [item for item in self._wanted if not any(self._is(item, seen) for seen in there)]

    def hear(self) -> None:
        """Take in what the kernel announced."""
        try:
            for kind, body in self.channel.notifications():
                if kind not in (RTM_NEWROUTE, RTM_DELROUTE):
                    continue
                seen = read_route(body)
                if kind == RTM_NEWROUTE:
                    self.missing = [item for item in self.missing if not self._is(item, seen)]
                elif any(self._is(item, seen) for item in self._wanted):
                    self.look()
        except OSError as error:
            if error.errno != ENOBUFS:
                raise
            self.look()  # announcements were lost

    def _is(self, item: Route, seen: Seen) -> bool:
        destination, hops, table, kind = seen
        if (item.destination, item.table, TYPES[item.type]) != (destination, table, kind):
            return False
        if item.hops:
            return hops == {(via, self._indexes.get(device, 0)) for via, device in item.hops}
        return len(hops) == 1 and all(
            (not item.via or item.via == via) and (not item.device or self._indexes.get(item.device) == index)
            for via, index in hops
        )


def wait_learned(
    wanted: Sequence[Route],
    channel: Callable[[str], AbstractContextManager[Channel]],
    netns: Callable[[str], str | int],
    supervisor: Supervisor,
    timeout: float,
    progress: Callable[[str], None],
) -> None:
    """Return once every route of ``wanted`` is in its kernel table.

    Raises DaemonError with the routes that are missing when for ``timeout`` seconds none has come (a large
    mesh takes longer as a whole, and is not stuck), or as soon as a daemon of a namespace that still waits has died;
    ``log`` holds what its daemons said last.
    """
    grouped: defaultdict[str, list[Route]] = defaultdict(list)
    for item in wanted:
        grouped[item.ns].append(item)
    with ExitStack() as stack:
        watches: dict[str, _Watch] = {}
        poll = select.poll()
        by_descriptor: dict[int, _Watch] = {}
        for ns, members in grouped.items():
            watch = watches[ns] = _Watch(members, stack.enter_context(channel(ns)), netns(ns))
            stack.callback(watch.channel.close)
            poll.register(watch.channel, select.POLLIN)
            by_descriptor[watch.channel.fileno()] = watch
        deadline = time.monotonic() + timeout
        total = least = len(wanted)
        speak = 0.0
        while missing := [item for watch in watches.values() for item in watch.missing]:
            now = time.monotonic()
            if len(missing) < least:
                least, deadline = len(missing), now + timeout
            if now >= speak:
                speak = now + TICK
                progress(f"waiting for routing: {total - len(missing)} of {total} routes")
            dead = {item.ns for item in supervisor.status() if item.state == "died"} & {item.ns for item in missing}
            left = deadline - now
            if left <= 0 or dead:
                raise _overdue(missing, dead, timeout, supervisor)
            for descriptor, _ in poll.poll(1000 * min(left, TICK)):
                by_descriptor[descriptor].hear()


def _overdue(missing: Sequence[Route], dead: set[str], timeout: float, supervisor: Supervisor) -> DaemonError:
    words = "; ".join(f"{item.ns}: {describe(item)}" for item in missing[:SHOWN])
    more = f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    why = f"the routing daemon of {', '.join(sorted(dead))} died" if dead else f"none came for {timeout:g} s"
    log = tuple(line for ns in dict.fromkeys(item.ns for item in missing[:SHOWN]) for line in supervisor.last_lines(ns))
    return DaemonError(f"{len(missing)} routes are missing ({why}): {words}{more}", log=log)
