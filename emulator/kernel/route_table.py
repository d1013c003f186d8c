"""A namespace's main routing table as it is now, in the words of ``ip route``.

Connected, local and multicast routes that the kernel makes by itself are left out.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

import msgspec

from emulator.kernel.messages import PROTOCOLS, TYPES
from emulator.kernel.netlink import Channel, attributes, link_indexes

RTM_GETROUTE = 26
RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
NEXT_HOP = struct.Struct("=HBBi")  # length, flags, hops, index
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 9, 15
RTM_F_CLONED = 0x200
RTPROT_KERNEL = 2
MAIN = 254

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_TYPE_NAMES = {number: name for name, number in TYPES.items()}


class TableRoute(msgspec.Struct, frozen=True, omit_defaults=True):
    """One route. ``hops`` are pairs of gateway and device; several: the kernel spreads flows over them."""

    destination: str
    type: str = "unicast"
    protocol: str = ""
    hops: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = [] if self.type == "unicast" else [self.type]
        words.append("default" if self.destination in ("0.0.0.0/0", "::/0") else self.destination)
        for via, device in self.hops:
            words += ["via", via] if via else []
            words += ["dev", device] if device else []
        words += ["proto", self.protocol] if self.protocol else []
        return " ".join(words)


def read_routes(channel: Channel) -> list[TableRoute]:
    """The routes of the namespace that the socket is in."""
    names = {index: name for name, index in link_indexes(channel).items()}
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in channel.dump(RTM_GETROUTE, RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
            _, length, _, _, table, protocol, _, kind, flags = RTMSG.unpack_from(body)
            told = attributes(body, RTMSG.size)
            if RTA_TABLE in told:
                table = int.from_bytes(told[RTA_TABLE], sys.byteorder)
            if table != MAIN or flags & RTM_F_CLONED or protocol == RTPROT_KERNEL or kind not in _TYPE_NAMES:
                continue
            size = 4 if family == socket.AF_INET else 16
            network = socket.inet_ntop(family, bytes(told[RTA_DST]) if RTA_DST in told else bytes(size))
            unicast = _TYPE_NAMES[kind] == "unicast"
            found.append(
                TableRoute(
                    f"{network}/{length}",
                    _TYPE_NAMES[kind],
                    _PROTOCOL_NAMES.get(protocol, str(protocol)),
                    tuple(_hops(family, told, names)) if unicast else (),
                )
            )
    return found


def _hops(family: int, told: dict[int, memoryview], names: dict[int, str]) -> Iterator[tuple[str, str]]:
    if RTA_MULTIPATH in told:
        data = told[RTA_MULTIPATH]
        while len(data) >= NEXT_HOP.size:
            length, _, _, index = NEXT_HOP.unpack_from(data)
            if length < NEXT_HOP.size:
                return
            inner = attributes(data[:length], NEXT_HOP.size)
            yield _gateway(family, inner), names.get(index, str(index))
            data = data[(length + 3) & ~3 :]
        return
    index = int(struct.unpack("=i", told[RTA_OIF])[0]) if RTA_OIF in told else 0
    yield _gateway(family, told), names.get(index, str(index) if index else "")


def _gateway(family: int, told: dict[int, memoryview]) -> str:
    return socket.inet_ntop(family, bytes(told[RTA_GATEWAY])) if RTA_GATEWAY in told else ""
