"""The network state of the host, as a value: taken before and after a lab it must be equal.

Reads only. What counts up by itself is left out (packet counters, lifetimes, the number of tracked connections), so
that two snapshots of an untouched host are equal with ``==``; :func:`changes` says what differs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

State = dict[str, Any]

# Read-only or counting by themselves (Documentation/networking/nf_conntrack-sysctl.rst, ip-sysctl.rst)
_VOLATILE_SYSCTLS = {"nf_conntrack_count", "flush", "fib_notify_on_flag_change", "stat_refresh"}
_VOLATILE_KEYS = {"valid_life_time", "preferred_life_time", "expires", "used", "cache", "stats", "stats64", "users"}


def snapshot(marker: str = "") -> State:
    """Interfaces, addresses, routes, rules, rulesets, net sysctls and mounts of the caller's namespaces, and network
    namespaces and processes of the machine.

    With a ``marker`` (``NAME=value`` in the environment) only processes that carry it count, and the network
    namespaces that they are in: on a machine where others make namespaces too, that is what can be compared.
    """
    processes = _processes(marker)
    return {
        "interfaces": _ip("-d", "link"),
        "addresses": _ip("addr"),
        "routes": _ip("-4", "route", "show", "table", "all"),
        "routes6": _ip("-6", "route", "show", "table", "all"),
        "rules": _ip("-4", "rule"),
        "rules6": _ip("-6", "rule"),
        "nftables": _text("nft", "list", "ruleset"),
        "iptables": _without_comments(_text("iptables-save")),
        "ip6tables": _without_comments(_text("ip6tables-save")),
        "ipsets": _text("ipset", "list"),
        "sysctls": _sysctls(),
        "mounts": _mounts(),
        "netns": sorted({netns for _, netns in processes.values() if netns}),
        "processes": {pid: command for pid, (command, _) in processes.items()} if marker else {},
    }


def changes(before: State, after: State) -> list[str]:
    """What differs between two snapshots, a line each; empty if they are equal."""
    lines = []
    for part in before:
        old, new = before[part], after[part]
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [key for key in sorted(old.keys() | new.keys(), key=str) if old.get(key) != new.get(key)]
            lines += [f"{part} {key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys]
        elif isinstance(old, list) and isinstance(new, list):
            gone, came = [item for item in old if item not in new], [item for item in new if item not in old]
            lines += [f"{part}: gone: {_distinct(item, came)}" for item in gone]
            lines += [f"{part}: new: {_distinct(item, gone)}" for item in came]
        else:
            lines.append(f"{part}: {old!r} -> {new!r}")
    return lines


def _distinct(item: Any, others: list[Any]) -> str:
    """An item in short: its name, and what differs from the item of that name on the other side."""
    if isinstance(item, dict) and "ifname" in item:
        for other in others:
            if isinstance(other, dict) and other.get("ifname") == item["ifname"]:
                item = {key: value for key, value in item.items() if key == "ifname" or other.get(key) != value}
    return repr(item)


def _ip(*arguments: str) -> list[Any]:
    said = subprocess.run(["ip", "-j", *arguments], capture_output=True, text=True, check=True).stdout
    return [_steady(item) for item in json.loads(said or "[]")]


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(part) for key, part in value.items() if key not in _VOLATILE_KEYS}
    if isinstance(value, list):
        return [_steady(part) for part in value]
    return value


def _text(*argv: str) -> str:
    """What a program prints, or why it says nothing: a user who may not read a ruleset cannot change it either."""
    if shutil.which(argv[0]) is None:
        return "not installed"
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else f"refused: {done.stderr.strip().splitlines()[:1]}"


def _without_comments(rules: str) -> list[str]:
    """iptables-save dates its comments and counts packets behind its policies."""
    return [line.split(" [")[0] for line in rules.splitlines() if not line.startswith("#")]


def _sysctls() -> dict[str, str]:
    found = {}
    for directory, _, files in os.walk("/proc/sys/net"):
        for name in files:
            if name in _VOLATILE_SYSCTLS:
                continue
            path = os.path.join(directory, name)
            try:
                with open(path, errors="replace") as file:
                    found[path.removeprefix("/proc/sys/")] = file.read().strip()
            except OSError:
                found[path.removeprefix("/proc/sys/")] = "unreadable"
    return found


def _mounts() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return file.read().splitlines()


def _processes(marker: str) -> dict[int, tuple[str, int]]:
    """By pid: command line and network namespace (inode; 0 if we may not know)."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            if marker:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if marker.encode() not in file.read().split(b"\0"):
                        continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            netns = os.stat(f"/proc/{entry}/ns/net").st_ino
        except PermissionError:
            if marker:
                continue
            command, netns = "", 0
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(entry)] = (command, netns)
    return found
