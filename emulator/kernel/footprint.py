"""What CNI plugins make in a node beside devices in the pod, and what of it they leave behind.

A footprint is everything that a plugin can have changed in a node: devices, addresses, routes, rules, sets, files under
/var/lib/cni. The difference of two of them around ADD is what the chain has made for a pod; what of that is there
after DEL was left behind, unless other pods share it: a bridge and its address, base chains, the file in which
host-local keeps the last address. So only what carries the pod's mark counts: its container id, its addresses, a device
that is no bridge, a chain with a hash in its name.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from emulator.kernel.machine import PLUGIN_STATE
from emulator.kernel.netlink import Channel
from emulator.kernel.rule_tools import PATH
from emulator.kernel.rules_readback import read_loaded
from emulator.kernel.tables import Device, read_tables

RESULTS = f"{PLUGIN_STATE}/results"  # the runtime's own cache: libcni's CacheDir
SHARED_KINDS = frozenset({"bridge"})

_HASHED = re.compile(r"[0-9a-fA-F]{8}")
_READ = 4096  # bytes of a file that are searched for a container's id

Trace = tuple[str, str]  # what it is, and the thing itself in the words of its tool


class Footprint(NamedTuple):
    """Everything in one node, at one moment."""

    devices: dict[str, Device]
    traces: frozenset[Trace]


def iptables_backend() -> str:
    """The back end that plugins use: that of the ``iptables`` in their PATH; empty if there is none."""
    try:
        done = subprocess.run(
            ["iptables", "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=10.0,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return "legacy" if "legacy" in done.stdout else "nf_tables"


def read_footprint(channel: Channel, backend: str) -> Footprint:
    """The node that this thread is in; ``channel`` is a socket there."""
    tables = read_tables(channel)
    loaded = read_loaded(backend)
    traces: set[Trace] = {("device", name) for name in tables.devices}
    traces |= {("address", f"{address} dev {device}") for device, address in tables.addresses}
    traces |= {("route", str(route)) for route in tables.routes}
    for (family, table, chain), rules in loaded.chains.items():
        if (family, table, chain) not in loaded.builtin:
            traces.add(("chain", f"{family} {table} {chain}"))
        traces |= {("rule", f"{family} {table} {chain}: {rule}") for rule in rules}
    for name, text in loaded.tables.items():
        traces |= {("nftables rule", f"{name}: {line.strip()}") for line in text.splitlines() if line.strip(" \t{}")}
    for name, members in loaded.sets.items():
        traces |= {("set", name), *(("set member", f"{name}: {member}") for member in members[1:])}
    traces |= {("file", path) for path in _files(PLUGIN_STATE)}
    return Footprint(tables.devices, frozenset(traces))


def left_behind(made: frozenset[Trace], now: Footprint, container: str, addresses: Iterable[str]) -> list[str]:
    """What of ``made``, in the node that this thread is in, is still there and carries the mark of the pod that has
    gone: its container's id, or one of its addresses (without prefix length). In words, in order."""
    left = sorted(made & now.traces)
    plain = [address.partition("/")[0] for address in addresses]
    marks = [re.compile(rf"(?<![\w.:]){re.escape(word)}(?![\w:]|\.\d)") for word in (container, *plain)]
    gone_devices = [name for kind, name in left if kind == "device" and now.devices[name].kind not in SHARED_KINDS]
    marks += [re.compile(rf"(?<!\S){re.escape(name)}(?!\S)") for name in gone_devices]

    def marked(text: str) -> bool:
        return any(mark.search(text) for mark in marks)

    found = []
    for kind, text in left:
        if kind == "device":
            mine = text in gone_devices
        elif kind == "chain":
            mine = bool(_HASHED.search(text)) or any(
                marked(rule) for what, rule in now.traces if what == "rule" and rule.startswith(f"{text}: ")
            )
        elif kind == "file":
            mine = marked(os.path.basename(text)) or container in _beginning(text)
        else:
            mine = marked(text)
        if mine:
            found.append(f"{kind} {text}")
    return found


def _files(folder: str) -> Iterator[str]:
    for path, folders, names in os.walk(folder):
        if path == RESULTS:
            folders.clear()
            continue
        yield from (f"{path}/{name}" for name in names)


def _beginning(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_READ).decode(errors="replace")
    except OSError:
        return ""
