"""Segmentation, receive and checksum offloads of a device, off: frames are captured as they would be on a wire.

By the ioctl of ethtool(8), on any socket of the namespace; ethtool netlink would need a generic netlink socket and
a family look-up in each. Source: linux/ethtool.h.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Sequence

from emulator.errors import ApplyError
from emulator.kernel.syscalls import inside
from emulator.plan.describe import describe
from emulator.plan.model import AnyObject, Offloads

SIOCETHTOOL = 0x8946
ETHTOOL_GRXCSUM, ETHTOOL_SRXCSUM = 0x14, 0x15
ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 0x16, 0x17
ETHTOOL_GTSO, ETHTOOL_STSO = 0x1E, 0x1F
ETHTOOL_GGSO, ETHTOOL_SGSO = 0x23, 0x24
ETHTOOL_GGRO, ETHTOOL_SGRO = 0x2B, 0x2C

# The order matters: segmentation needs transmit checksums, so it goes off before them and comes on after.
FEATURES = {
    "tso": (ETHTOOL_GTSO, ETHTOOL_STSO),
    "gso": (ETHTOOL_GGSO, ETHTOOL_SGSO),
    "gro": (ETHTOOL_GGRO, ETHTOOL_SGRO),
    "tx": (ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM),
    "rx": (ETHTOOL_GRXCSUM, ETHTOOL_SRXCSUM),
}
# A bridge has no receive checksum to switch ("off [fixed]").
OPTIONAL = frozenset({"rx"})


def _ethtool(control: socket.socket, device: str, command: int, value: int) -> int:
    data = array.array("I", [command, value])
    address, _ = data.buffer_info()
    fcntl.ioctl(control.fileno(), SIOCETHTOOL, struct.pack("16sP16x", device.encode(), address))
    return data[1]


def read_offloads(control: socket.socket, device: str) -> dict[str, bool]:
    """What is switched on. ``control`` is any socket of the device's namespace. Raises OSError."""
    return {name: bool(_ethtool(control, device, get, 0)) for name, (get, _) in FEATURES.items()}


def switch(
    items: Sequence[Offloads], netns: Callable[[str], str | int], done: Callable[[AnyObject], None], *, on: bool = False
) -> None:
    """Switch the offloads of each device; one visit per namespace. Raises ApplyError."""
    grouped: defaultdict[str, list[Offloads]] = defaultdict(list)
    for item in items:
        grouped[item.ns].append(item)
    for ns, members in grouped.items():
        with inside(netns(ns)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for item in members:
                _switch(control, item, on)
                done(item)


def _switch(control: socket.socket, item: Offloads, on: bool) -> None:
    for name in reversed(FEATURES) if on else FEATURES:
        try:
            _ethtool(control, item.device, FEATURES[name][1], int(on))
        except OSError as error:
            if name in OPTIONAL:
                continue
            words = describe(item)
            raise ApplyError(f"failed to set {words} in {item.ns}: {name}: {error.strerror}", subject=words) from error
