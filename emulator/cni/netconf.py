"""CNI network configuration lists: read, checked by the rules of the specification, and in one normal form.

What libcni accepts is accepted: a ``.conf`` with a single plugin becomes a list of one; ``disableCheck`` and its like
may be words; with ``cniVersions`` the highest version that is known here is taken; plugins may stand in files of their
own, ``<folder>/<network name>/*.conf``, unless ``loadOnlyInlinedPlugins`` is set.

Of containerd's configuration templates one field is understood: ``{{.PodCIDR}}``, the node's own range of pod
addresses. Without it host-local would hand out the same addresses on every node.

Sources: containernetworking/cni SPEC.md (sections 1 and 3), libcni/conf.go, pkg/utils/utils.go; containerd
docs/cri/config.md (conf_template).
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import msgspec

from emulator.errors import InputError, NotFound, Problem

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
UNVERSIONED = "0.1.0"  # pkg/types: a configuration without cniVersion

POD_CIDR = "{{.PodCIDR}}"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_TEMPLATE = re.compile(r"\{\{.*?\}\}")
_WORDS = {"true": True, "false": False}

Plugin = dict[str, Any]


class Network(msgspec.Struct, frozen=True, omit_defaults=True):
    """A configuration list that is in order. ``version`` is the one to speak with all its plugins."""

    name: str
    version: str
    plugins: tuple[Plugin, ...]
    disable_check: bool = False
    disable_gc: bool = False


def load_network(path: str) -> Network:
    """The list in a ``.conflist`` file, or the single plugin in a ``.conf``. Raises NotFound, InputError."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise NotFound(f"there is no CNI configuration {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem(path, "", "", f"cannot be read: {error}")]) from None
    return parse_network(text, path)


def parse_network(text: str, source: str) -> Network:
    """The list in ``text``; ``source`` names it, and its folder may hold further plugins. Raises InputError."""
    reader = _Reader(source)
    network = reader.network(text)
    if reader.problems or network is None:
        raise InputError(reader.problems)
    return network


def as_text(network: Network) -> str:
    """The normal form: what a plan carries, and :func:`from_text` reads."""
    data: dict[str, Any] = {"cniVersion": network.version, "name": network.name}
    if network.disable_check:
        data["disableCheck"] = True
    if network.disable_gc:
        data["disableGC"] = True
    return json.dumps({**data, "plugins": list(network.plugins)}, separators=(",", ":"))


def from_text(text: str) -> Network:
    """The network of a normal form."""
    data = json.loads(text)
    return Network(
        data["name"],
        data["cniVersion"],
        tuple(data["plugins"]),
        data.get("disableCheck", False),
        data.get("disableGC", False),
    )


def at_node(network: Network, pod_ranges: tuple[str, ...]) -> Network:
    """The list as it is on one node, whose pods have addresses of ``pod_ranges``."""
    text = json.dumps(network.plugins)
    if POD_CIDR not in text or not pod_ranges:
        return network
    return msgspec.structs.replace(network, plugins=tuple(json.loads(text.replace(POD_CIDR, pod_ranges[0]))))


def at_least(version: str, other: str) -> bool:
    """Whether a version of the specification is not older than another."""
    return VERSIONS.index(version) >= VERSIONS.index(other)


class _Reader:
    """Collects everything that is wrong with one file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []

    def network(self, text: str) -> Network | None:
        data = self._object(text, self.source)
        if data is None:
            return None
        if "plugins" not in data and "type" in data:
            data = {key: data[key] for key in ("name", "cniVersion") if key in data} | {"plugins": [data]}
        name = data.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            reason = "is required" if name is None else f"{name!r} is no network name"
            self._say("name", f"{reason}: letters, digits and . _ -, with a letter or digit first")
        version = self._version(data)
        only_inlined = self._flag(data, "loadOnlyInlinedPlugins")
        plugins = self._inlined(data)
        if not only_inlined and isinstance(name, str) and _NAME.fullmatch(name):
            plugins += self._beside(name)
        if not plugins and not self.problems:
            self._say("plugins", "no plugin in the list")
        flags = self._flag(data, "disableCheck"), self._flag(data, "disableGC")
        return Network(name, version, tuple(plugins), *flags) if not self.problems else None  # type: ignore[arg-type]

    def _object(self, text: str, source: str) -> dict[str, Any] | None:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            self.problems.append(Problem(source, "", "", f"is no JSON: {error.msg.lower()} ({where})"))
            return None
        if not isinstance(data, dict):
            self.problems.append(Problem(source, "", "", "must be a JSON object"))
            return None
        for found in sorted(set(_TEMPLATE.findall(text)) - {POD_CIDR}):
            reason = f"{found} is not understood: of the templates of containerd's conf_template only {POD_CIDR} is"
            self.problems.append(Problem(source, "", "", reason))
        return data

    def _version(self, data: dict[str, Any]) -> str:
        given = data.get("cniVersion", UNVERSIONED)
        listed = data.get("cniVersions", [])
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            self._say("cniVersions", "must be a list of versions")
            listed = []
        if not isinstance(given, str):
            self._say("cniVersion", f'must be a text like "{VERSIONS[-2]}"')
            return UNVERSIONED
        known = [item for item in (given, *listed) if item in VERSIONS]
        if not known or (given not in VERSIONS and not listed):
            self._say("cniVersion", f"{given!r} is no version of the specification: {', '.join(VERSIONS)}")
            return UNVERSIONED
        return str(max(known, key=VERSIONS.index))

    def _flag(self, data: dict[str, Any], key: str) -> bool:
        value = data.get(key, False)
        if isinstance(value, str):
            value = _WORDS.get(value.lower(), value)
        if not isinstance(value, bool):
            self._say(key, "must be true or false")
            return False
        return value

    def _inlined(self, data: dict[str, Any]) -> list[Plugin]:
        plugins = data.get("plugins", [])
        if not isinstance(plugins, list):
            self._say("plugins", "must be a list")
            return []
        if "plugins" in data and not plugins:
            self._say("plugins", "no plugin in the list")
        for number, plugin in enumerate(plugins):
            self._check(plugin, f"plugins[{number}]", self.source)
        return plugins

    def _beside(self, name: str) -> list[Plugin]:
        folder = os.path.join(os.path.dirname(self.source), name)
        try:
            files = sorted(file for file in os.listdir(folder) if file.endswith(".conf"))
        except OSError:
            return []
        found = []
        for file in files:
            path = os.path.join(folder, file)
            try:
                with open(path, encoding="utf-8") as opened:
                    plugin = self._object(opened.read(), path)
            except (OSError, UnicodeDecodeError) as error:
                self.problems.append(Problem(path, "", "", f"cannot be read: {error}"))
                continue
            if plugin is not None:
                self._check(plugin, "", path)
                found.append(plugin)
        return found

    def _check(self, plugin: Any, path: str, source: str) -> None:
        def say(field: str, reason: str) -> None:
            self.problems.append(Problem(source, "", f"{path}.{field}".strip("."), reason))

        if not isinstance(plugin, dict):
            say("", "must be an object")
            return
        self._check_type(plugin.get("type"), "type", say)
        ipam = plugin.get("ipam")
        if isinstance(ipam, dict) and "type" in ipam:
            self._check_type(ipam["type"], "ipam.type", say)
        capabilities = plugin.get("capabilities", {})
        if not isinstance(capabilities, dict) or not all(isinstance(value, bool) for value in capabilities.values()):
            say("capabilities", "must map names of capabilities to true or false")

    @staticmethod
    def _check_type(kind: Any, field: str, say: Any) -> None:
        """A type names a program in the folders of plugins, and nothing anywhere else."""
        if kind is None:
            say(field, "is required: the name of the plugin's program")
        elif not isinstance(kind, str) or not _NAME.fullmatch(kind):
            say(field, f"{kind!r} is no plugin name: letters, digits and . _ -, with a letter or digit first; no path")

    def _say(self, path: str, reason: str) -> None:
        self.problems.append(Problem(self.source, "", path, reason))
