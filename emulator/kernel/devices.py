"""The lab's namespaces and devices by name: how to enter a namespace, a socket in it, the indexes of its devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from emulator.errors import ApplyError
from emulator.kernel.netlink import Channel, link_indexes
from emulator.kernel.netns import netns_path
from emulator.kernel.underlay import LabNet
from emulator.plan.describe import describe
from emulator.plan.model import UNDERLAY, AnyObject

LOOPBACK = 1  # the index of lo in every namespace


def refused(item: AnyObject, reason: str) -> ApplyError:
    """The error for an object that the kernel would not take."""
    words = describe(item)
    return ApplyError(f"failed to set {words} in {item.ns}: {reason}", subject=words)


class Devices:
    """The lab's sockets and device indexes."""

    def __init__(self, net: LabNet) -> None:
        self._net = net
        self._channels: dict[str, Channel] = {}
        self._indexes: dict[str, dict[str, int]] = {}

    def begin(self) -> None:
        """Start a change: look devices up afresh, since others may have made some (``exec node/n1 ip link add``)."""
        self._indexes.clear()

    def close(self) -> None:
        """Give all descriptors back."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def netns(self, ns: str) -> str | int:
        """What :func:`~emulator.kernel.syscalls.inside` needs to enter a namespace."""
        if ns == UNDERLAY or ns.startswith("pod/"):
            return netns_path(ns)
        return self._net.handle(ns).net

    @contextmanager
    def channel(self, ns: str) -> Iterator[Channel]:
        """A socket in the namespace. Those of machines stay open; a pod is rarely spoken to again."""
        if ns.startswith("pod/"):
            with Channel(netns_path(ns)) as fresh:
                yield fresh
            return
        if ns not in self._channels:
            self._channels[ns] = Channel(self.netns(ns))
        yield self._channels[ns]

    def indexes(self, ns: str) -> dict[str, int]:
        """The devices of a namespace by name, looked up once per change."""
        if ns not in self._indexes:
            with self.channel(ns) as channel:
                self._indexes[ns] = link_indexes(channel)
        return self._indexes[ns]

    def new_index(self, ns: str, device: str) -> int:
        """A free index for a device that is about to be made: whoever chooses it need not ask for it."""
        known = self.indexes(ns)
        known[device] = index = max(known.values(), default=LOOPBACK) + 1
        return index

    def index(self, item: AnyObject, device: str) -> int:
        """The index of a device in the object's namespace. Raises ApplyError if it is not there."""
        try:
            return self.indexes(item.ns)[device]
        except KeyError:
            raise refused(item, f"there is no device {device}") from None

    def found(self, ns: str, indexes: Mapping[str, int]) -> None:
        """A namespace is known to have these devices."""
        self._indexes[ns] = dict(indexes)

    def look_again(self, ns: str) -> None:
        """The devices of a namespace are other ones than before."""
        self._indexes.pop(ns, None)

    def forget(self, ns: str) -> None:
        """A namespace is going: let go of it."""
        channel = self._channels.pop(ns, None)
        if channel is not None:
            channel.close()
        self._indexes.pop(ns, None)
