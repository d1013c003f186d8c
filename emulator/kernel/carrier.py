"""Waits until new cables carry packets.

A veth has a carrier once both its ends are up, but the kernel tells the first end so from a work queue
(net/core/link_watch.c): until then its queue drops what is sent, and a bridge does not forward through it
(br_port_carrier_check). On an idle machine that takes microseconds, on a busy one longer than a first packet; for an
end whose queue does not change the kernel lets up to a second go by since its last look (linkwatch_urgent_event): the
end of a cable between two bridges that comes up last is such a one. Asked for one device, and not for a table of them,
kernels from 6.8 on look at once (rtnl_getlink: linkwatch_sync_dev). So a device that is not ready is asked for by name.
The bridge plugin waits for the same reason (containernetworking/plugins, plugins/main/bridge: port state forwarding).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Literal

from emulator.errors import ApplyError
from emulator.kernel.netlink import ATTRIBUTE, Channel, Request, attributes

RTM_GETLINK = 18
IFLA_IFNAME, IFLA_OPERSTATE, IFLA_LINKINFO = 3, 16, 18
IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_STATE = 5, 1
IF_OPER_UNKNOWN, IF_OPER_UP = 0, 6  # linux/if.h
BR_STATE_FORWARDING = 3  # linux/if_bridge.h
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change

Awaited = Literal["cable", "port", "bridge"]

TIMEOUT = 10.0  # seconds; link_watch works at least once a second
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05  # seconds between looks
NAMED_AT_ONCE = 64  # devices: the answers about them fit into a socket's buffer


def await_carrier(
    channel: Callable[[str], AbstractContextManager[Channel]], wanted: Mapping[str, Mapping[str, Awaited]]
) -> None:
    """Return once all devices carry packets: by namespace and name, with what it is (a ``port`` is a bridge's).

    Raises ApplyError for those that do not within ``TIMEOUT`` seconds.
    """
    deadline = time.monotonic() + TIMEOUT
    pause = FIRST_PAUSE
    missing = {ns: set(devices) for ns, devices in wanted.items() if devices}
    while True:
        for ns in list(missing):
            with channel(ns) as opened:
                missing[ns] -= _carrying(opened, wanted[ns])
                _have_looked_at(opened, missing[ns])
            if not missing[ns]:
                del missing[ns]
        if not missing:
            return
        if time.monotonic() > deadline:
            names = ", ".join(f"{device} in {ns}" for ns, devices in missing.items() for device in sorted(devices))
            raise ApplyError(f"no carrier after {TIMEOUT:g} s on {names}", subject=names)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _have_looked_at(channel: Channel, devices: Iterable[str]) -> None:
    """Have the kernel work out now what it knows of these devices' carriers, where it is one that does."""
    requests = [Request(RTM_GETLINK, 0, _named(device)) for device in devices]
    for start in range(0, len(requests), NAMED_AT_ONCE):
        channel.submit(requests[start : start + NAMED_AT_ONCE])  # a device that is gone is told of later, by its name


def _named(device: str) -> bytes:
    name = device.encode() + b"\0"
    attribute = ATTRIBUTE.pack(ATTRIBUTE.size + len(name), IFLA_IFNAME) + name
    return _IFINFO.pack(0, 0, 0, 0, 0) + attribute + bytes(-len(attribute) & 3)


def _carrying(channel: Channel, wanted: Mapping[str, Awaited]) -> set[str]:
    """The devices among ``wanted`` that carry packets now."""
    found: set[str] = set()
    for body in channel.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)):
        given = attributes(body, _IFINFO.size)
        name = bytes(given[IFLA_IFNAME]).rstrip(b"\0").decode()
        if name not in wanted:
            continue
        state = bytes(given.get(IFLA_OPERSTATE, b"\0"))[0]
        # A bridge whose first port came with a carrier never lost its own, and nobody ever worked out its state.
        up = state == IF_OPER_UP or (wanted[name] == "bridge" and state == IF_OPER_UNKNOWN)
        if up and (wanted[name] != "port" or _port_state(given) == BR_STATE_FORWARDING):
            found.add(name)
    return found


def _port_state(given: Mapping[int, memoryview]) -> int:
    info = attributes(given[IFLA_LINKINFO], 0) if IFLA_LINKINFO in given else {}
    slave = attributes(info[IFLA_INFO_SLAVE_DATA], 0) if IFLA_INFO_SLAVE_DATA in info else {}
    return int(slave[IFLA_BRPORT_STATE][0]) if IFLA_BRPORT_STATE in slave else -1
