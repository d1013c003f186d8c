"""A machine's private view: its own network, mount and UTS namespace, with a private /run and /etc.

::

    lab process ──thread──▶ unshare(NET)  bind /run/netns/n1
                            enter the pristine view, unshare(NS, UTS)
                            /run   empty tmpfs            (locks, sockets, pid files of this machine only)
                            /etc   overlay over the lab's (config files of this machine only)
                            /sys   of this network namespace
                            ──▶ Mininet's shell, started from here, inherits all of it

The thread ends; the namespaces stay with the shell and with the descriptors of the handle.

The pristine view is a mount namespace from before the first pod: a copy of the lab's own would hold the files of all
namespaces under /run/netns, and keep every pod alive after its removal. To unmount the copies one by one takes
milliseconds each (the kernel waits for an RCU grace period), seconds for fifty machines.
"""

from __future__ import annotations

import os

from emulator.errors import SandboxError
from emulator.kernel.namespaces import CLONE_FS, MachineHandle, bind, in_thread
from emulator.kernel.netns import NETNS_DIRECTORY
from emulator.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    set_hostname,
    setns,
    umount,
    unshare,
)

ETC_LAYERS = "/run/.etc"  # in the machine: upper and work directory of its /etc
STATE_LAYERS = "/run/.var-lib"  # the same of its /var/lib, where it has one of its own
PLUGIN_STATE = "/var/lib/cni"  # where CNI plugins and runtimes keep leases and results


def pristine_view() -> int:
    """A mount namespace like the lab's, but without namespace files, as a descriptor. Raises SandboxError."""

    def body() -> int:
        unshare(CLONE_NEWNS)
        mount("", "/", flags=MS_REC | MS_PRIVATE)
        _let_go_of_namespaces()
        return _open("mnt")

    try:
        return in_thread(body)
    except OSError as error:
        raise SandboxError(f"cannot make a mount namespace: {error}") from error


def become_machine(ns: str, hostname: str, view: int) -> MachineHandle:
    """Turn this thread into a machine: new namespaces, named and mounted. Only for a thread that ends soon.

    ``view`` is a descriptor of :func:`pristine_view`. Raises SandboxError if the kernel refuses a namespace or a mount.
    """
    try:
        unshare(CLONE_NEWNET)
        bind(ns)
        unshare(CLONE_FS)  # setns(2) refuses a mount namespace to a thread that shares its root directory with others
        setns(view, CLONE_NEWNS)
        unshare(CLONE_NEWNS | CLONE_NEWUTS)
        mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        _private("/etc", ETC_LAYERS)
        _own_sys()
        set_hostname(hostname)
        return MachineHandle(ns, *(_open(kind) for kind in ("net", "mnt", "uts")))
    except OSError as error:
        raise SandboxError(f"cannot make {ns}: {error}") from error


def _open(kind: str) -> int:
    return os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def _let_go_of_namespaces() -> None:
    """Unmount the copies of all namespace files."""
    with open("/proc/thread-self/mounts", encoding="utf-8") as mounts:
        targets = [line.split(" ")[1] for line in mounts]
    for target in reversed(targets):
        if target.startswith(NETNS_DIRECTORY + "/"):
            umount(target)


def own_plugin_state() -> None:
    """Give the machine that this thread is in a /var/lib/cni of its own: the machines share a file system, and must not
    share leases. Once per machine; nothing of the host's is seen in it, or changed. Raises OSError."""
    if not os.path.isdir(PLUGIN_STATE):
        _private("/var/lib", STATE_LAYERS)
        os.makedirs(PLUGIN_STATE, mode=0o755)
    mount("tmpfs", PLUGIN_STATE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")


def _private(folder: str, layers: str) -> None:
    """Changes under ``folder`` go to the machine's own tmpfs, below ``layers``.

    Where overlayfs is refused (user namespaces before Linux 5.11, some containers), it becomes a tmpfs of links
    to the lab's files: new files can be made and files replaced all the same.
    """
    upper, work = f"{layers}/upper", f"{layers}/work"
    os.makedirs(upper)
    os.makedirs(work)
    options = f"lowerdir={folder},upperdir={upper},workdir={work}"
    for wording in (options, f"{options},userxattr"):
        try:
            mount("overlay", folder, "overlay", MS_NOSUID | MS_NODEV, wording)
        except OSError:
            continue
        return
    lower = f"{layers}/lower"
    os.mkdir(lower)
    mount(folder, lower, flags=MS_BIND | MS_REC)
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for name in os.listdir(lower):
        os.symlink(f"{lower}/{name}", f"{folder}/{name}")


def _own_sys() -> None:
    """Show the devices of this network namespace under /sys/class/net."""
    try:
        mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:
        pass  # refused in a user namespace whose /sys is masked, as in containers: nothing of ours reads it


def same_namespace(pid: int, handle: MachineHandle) -> bool:
    """Whether a process lives in the machine, by its mount or network namespace."""
    for kind, descriptor in (("net", handle.net), ("mnt", handle.mnt)):
        try:
            if os.stat(f"/proc/{pid}/ns/{kind}").st_ino == os.fstat(descriptor).st_ino:
                return True
        except OSError:
            return False
    return False


def processes_of(handle: MachineHandle) -> list[int]:
    """Every process that lives in the machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and same_namespace(int(name), handle)]
