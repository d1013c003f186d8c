"""A pod's network namespace as its node's container runtime has it: bound at a path below /run/netns, from before ADD
until after DEL. To be called in a thread that has entered the node.
"""

from __future__ import annotations

import os

from emulator.kernel.netns import NETNS_DIRECTORY, netns_path
from emulator.kernel.syscalls import MS_BIND, mount, umount


def open_pod(ns: str) -> int:
    """A descriptor of the pod's namespace, for the caller to close."""
    # The lab's own mounts, by way of its main thread: this thread sees the node's.
    return os.open(f"/proc/{os.getpid()}/root{netns_path(ns)}", os.O_RDONLY | os.O_CLOEXEC)


def bind(ns: str, descriptor: int) -> str:
    """Bind the namespace in the node, unless it is; the path."""
    path = netns_path(ns)
    if not _bound(path, descriptor):
        unbind(ns)
        os.makedirs(NETNS_DIRECTORY, exist_ok=True)
        with open(path, "w", encoding="utf-8"):
            pass
        mount(f"/proc/self/fd/{descriptor}", path, flags=MS_BIND)
    return path


def unbind(ns: str) -> None:
    """Undo it; nothing is wrong if a plugin was faster."""
    path = netns_path(ns)
    try:
        umount(path)
    except OSError:
        pass  # never bound, or a plugin was faster
    try:
        os.unlink(path)
    except OSError:
        pass


def _bound(path: str, descriptor: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except OSError:
        return False


def mounts_of(number: int) -> list[str]:
    """Where this thread's mounts hold a network namespace."""
    with open("/proc/thread-self/mountinfo", encoding="utf-8") as file:
        fields = [line.split() for line in file]
    return [words[4] for words in fields if words[3] == f"net:[{number}]"]
