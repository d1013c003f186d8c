"""Making, entering and removing network namespaces, and running code inside a machine.

A pod is a network namespace and nothing else: it is made by unshare(2) in this thread and bound to a file under
/run/netns. A machine (node, router, host) has a mount and a UTS namespace too; code that must see its files or
start a process there runs in a short-lived thread that enters all three, since setns(2) moves one thread only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from emulator.kernel.netns import NETNS_DIRECTORY, netns_path
from emulator.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_BIND,
    mount,
    setns,
    umount,
    unshare,
)

CLONE_FS = 0x00000200
THIS_NETNS = "/proc/thread-self/ns/net"
SYSCTLS = "/proc/sys/"

T = TypeVar("T")


def bind(ns: str) -> None:
    """Give the network namespace of this thread its file, so that it lives on and can be found."""
    os.makedirs(NETNS_DIRECTORY, exist_ok=True)
    path = netns_path(ns)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        mount(THIS_NETNS, path, flags=MS_BIND)
    except OSError:
        os.unlink(path)
        raise


def release(ns: str) -> None:
    """Take the file away. The kernel removes the namespace once nobody holds it; it is no error if it is gone."""
    path = netns_path(ns)
    try:
        umount(path)
    except OSError:
        pass  # not a mount: made, but never bound
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def create(wanted: Iterable[tuple[str, Sequence[tuple[str, str]]]], made: Callable[[str], None]) -> None:
    """Make pod namespaces: pairs of plan name and the sysctls (name, value) that must be set before any device is.

    ``made`` is told of each. This thread comes back to where it was. Raises OSError; what is made by then stays.
    """
    here = os.open(THIS_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for ns, sysctls in wanted:
            unshare(CLONE_NEWNET)
            bind(ns)
            made(ns)
            for name, value in sysctls:
                write_sysctl(name, value)
    finally:
        setns(here, CLONE_NEWNET)
        os.close(here)


def write_sysctl(name: str, value: str) -> None:
    """Set a kernel parameter of the namespace that this thread is in. Raises OSError that names it."""
    try:
        descriptor = os.open(SYSCTLS + name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"sysctl {name} = {value}: {os.strerror(error.errno or 0)}") from error


def read_sysctl(name: str) -> str:
    """A kernel parameter of the namespace that this thread is in."""
    descriptor = os.open(SYSCTLS + name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536).decode().strip()
    finally:
        os.close(descriptor)


def is_off_anyway(name: str, value: str) -> bool:
    """Whether a kernel parameter that does not exist is as good as one with that value: while br_netfilter is not
    loaded, no bridge asks iptables, and only the machine's root could load it."""
    return name.startswith("net/bridge/bridge-nf-call-") and value == "0"


@dataclass(frozen=True)
class MachineHandle:
    """The namespaces of a running machine, as open descriptors: they stay valid when its shell dies."""

    ns: str
    net: int
    mnt: int
    uts: int

    def close(self) -> None:
        """Let go of the namespaces."""
        for descriptor in (self.net, self.mnt, self.uts):
            os.close(descriptor)


class _Thread(threading.Thread, Generic[T]):
    """A thread that hands over its function's result or exception."""

    def __init__(self, function: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._function())
        except BaseException as error:  # handed to the caller, whatever it is
            self._error = error

    def outcome(self) -> T:
        self.join()
        if self._error is not None:
            raise self._error
        return self._result[0]


def in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own, which may change its namespaces at will; hand back what it returns."""
    thread = _Thread(function)
    thread.start()
    return thread.outcome()


def enter(machine: MachineHandle) -> None:
    """Move this thread into the machine for good. Only for threads that end soon."""
    unshare(CLONE_FS)  # setns(2) refuses a mount namespace to a thread that shares its root directory with others
    setns(machine.net, CLONE_NEWNET)
    setns(machine.uts, CLONE_NEWUTS)
    setns(machine.mnt, CLONE_NEWNS)


def within(machine: MachineHandle, function: Callable[[], T]) -> T:
    """Run ``function`` inside the machine: its network, its files, its host name. Processes started there stay."""

    def body() -> T:
        enter(machine)
        return function()

    return in_thread(body)


def in_parallel(functions: Mapping[str, Callable[[], T]], limit: int) -> dict[str, T | Exception]:
    """Run each function in a thread of its own, at most ``limit`` at a time; its result or exception by its name."""
    results: dict[str, T | Exception] = {}
    gate = threading.Semaphore(limit)

    def body(name: str) -> None:
        with gate:
            try:
                results[name] = functions[name]()
            except Exception as error:  # the caller reports it, by name
                results[name] = error

    threads = [threading.Thread(target=body, args=(name,), daemon=True) for name in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
