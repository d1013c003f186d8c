"""What runs in the plan: daemons with their files, and the CNI plugins that attach a pod."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from emulator.plan.object import Key, PlanObject


class File(PlanObject, frozen=True, kw_only=True):
    """A file in the node's private ``/etc`` or ``/run``."""

    path: str
    content: str
    mode: int = 0o644

    @property
    def key(self) -> Key:
        return ("file", self.ns, self.path)


class Daemon(PlanObject, frozen=True, kw_only=True):
    """A supervised process in a node, in the foreground.

    ``files`` are the paths of the :class:`File` objects that it reads; when one changes, ``reload`` is
    run, or the daemon is restarted if that is empty. ``again`` are further arguments for when it is started after it
    died, with traces of its former life about. It counts as ready once the Unix socket ``ready_socket`` accepts
    connections (empty: as soon as it runs). ``module`` is a Python module of ours that the daemon is; its arguments
    are those of ``argv`` after the first, and a connection to its ``ready_socket`` has it read its files again.

    ``before_devices``: it decides on packets, so it starts, and is told of changes, before new devices can send any.
    ``loss`` is what goes undone while it is dead, for people.
    """

    name: str
    argv: tuple[str, ...]
    files: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    ready_socket: str = ""
    again: tuple[str, ...] = ()
    module: str = ""
    before_devices: bool = False
    loss: str = ""

    @property
    def key(self) -> Key:
        return ("daemon", self.ns, self.name)


class PluginDevice(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device that a CNI plugin made, as the kernel shows it: ``kind`` is ``veth``, ``bridge``, ...; ``plugin`` the
    plugin's type; ``bridge`` the one that it is a port of, if any. MTU in bytes."""

    ns: str
    name: str
    kind: str
    mac: str
    mtu: int
    plugin: str
    bridge: str = ""


class CniAttachment(PlanObject, frozen=True, kw_only=True):
    """A pod is attached to a network by real CNI plugins, as a container runtime runs them, in ``node``.

    ``network`` is the configuration list, as JSON text; ``plugins`` are the folders that hold the binaries. ``args``
    are the pairs of CNI_ARGS; ``capabilities`` what the runtime offers to plugins that declare a capability of that
    name, as JSON text. ``offloads``: whether the devices that plugins make keep them.

    What comes of it is known only once the plugins have run: ``devices`` and ``addresses`` (with their prefix length)
    are empty before, and two attachments that differ in nothing else are the same.
    """

    node: str
    network: str
    plugins: tuple[str, ...]
    container: str
    device: str = "eth0"
    args: tuple[tuple[str, str], ...] = ()
    capabilities: str = "{}"
    offloads: bool = True
    devices: tuple[PluginDevice, ...] = ()
    addresses: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return ("attachment", self.ns, self.device)


ProcessObject: TypeAlias = File | Daemon | CniAttachment
