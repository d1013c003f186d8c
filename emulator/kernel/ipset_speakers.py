"""Who speaks to the ipsets of a machine by netlink: its socket stays open, so that a small change takes no process, and
nobody has to enter the machine's namespaces."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable

from emulator.kernel import ipset_messages
from emulator.kernel.namespaces import MachineHandle
from emulator.kernel.netfilter_netlink import close_beside, opened
from emulator.plan.model import AnyObject, IpSet

LET_GO = 1.0  # s in which a set is let go of; whoever refers to it then goes on to do so
PAUSE = 0.001  # s between two tries


def is_machine(ns: str) -> bool:
    """Whether it is the namespace of a node, a router or a host: not a pod's, the underlay's, or none of a lab's."""
    return "/" in ns and not ns.startswith("pod/")


class SetSpeaker:
    """Speaks to the sets of one namespace. ``held`` is what it holds."""

    def __init__(self, asked: socket.socket, held: Callable[[], Iterable[AnyObject]]) -> None:
        self._asked = asked
        self._held = held

    def commit(self, text: str) -> bool:
        """Carry out lines of ``ipset restore``; see :func:`emulator.kernel.ipset_messages.commit`."""
        examples: dict[str, str] = {}
        if "create " in text:
            examples = {item.type.partition(" ")[0]: item.name for item in self._held() if isinstance(item, IpSet)}
        return ipset_messages.commit(text.splitlines(), self._asked, examples)

    def destroyed(self, text: str) -> bool:
        """Carry out a line that destroys a set. Rules of nftables that were replaced a moment ago hold on to it until
        no packet can be at them any more."""
        deadline = time.monotonic() + LET_GO
        while not self.commit(text):
            if time.monotonic() > deadline:
                return False
            time.sleep(PAUSE)
        return True

    def close(self) -> None:
        """Give the socket back."""
        close_beside(self._asked)


class SetSpeakers:
    """Those of a lab's machines. ``handle`` finds a machine's namespaces; ``held`` tells what a namespace holds. Serves
    several threads, each for another namespace."""

    def __init__(self, handle: Callable[[str], MachineHandle], held: Callable[[str], Iterable[AnyObject]]) -> None:
        self._handle = handle
        self._held = held
        self._known: dict[str, tuple[MachineHandle, SetSpeaker]] = {}

    def known(self, ns: str) -> SetSpeaker | None:
        """That of a machine where :meth:`here` was called before."""
        found = self._known.get(ns)
        if found is None:
            return None
        handle, speaker = found
        if handle is self._handle(ns):
            return speaker
        del self._known[ns]  # the node came back, with another namespace
        speaker.close()
        return None

    def here(self, ns: str) -> SetSpeaker:
        """That of the namespace that this thread is in. Whoever asks for one of no machine has to close it."""
        found = self.known(ns)
        if found is None:
            found = SetSpeaker(opened(), lambda: self._held(ns))
            if is_machine(ns):
                self._known[ns] = self._handle(ns), found
        return found

    def forget(self, ns: str) -> None:
        """Close the socket of a machine, if there is one."""
        _, speaker = self._known.pop(ns, (None, None))
        if speaker is not None:
            speaker.close()

    def close(self) -> None:
        """Give all sockets back."""
        for _, speaker in self._known.values():
            speaker.close()
        self._known.clear()
