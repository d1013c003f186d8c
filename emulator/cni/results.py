"""What CNI plugins answer: results of every version of the specification in one form, and errors.

Sources: containernetworking/cni SPEC.md (section 5), pkg/types/{020,040,100}; pkg/types/types.go for the error codes.
"""

from __future__ import annotations

import json
from ipaddress import ip_interface, ip_network
from typing import Any

import msgspec

from emulator.cni.netconf import UNVERSIONED, VERSIONS, at_least

CODES = {
    1: "incompatible CNI version",
    2: "unsupported field",
    3: "unknown container",
    4: "invalid environment variables",
    5: "I/O failure",
    6: "failed to decode content",
    7: "invalid network configuration",
    8: "invalid network namespace",
    11: "try again later",
    50: "the plugin is not available",
    51: "the plugin is not available, and existing containers may have limited connectivity",
    999: "internal error",
}


class Interface(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device that a result names. ``sandbox`` is the pod's namespace, empty for one in the node."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0


class Ip(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address with its prefix length; ``interface`` is a place in the list of interfaces, -1 if none is named."""

    address: str
    gateway: str = ""
    interface: int = -1


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """A route; ``via`` is empty where the address's gateway is meant. Zeroes: not said."""

    destination: str
    via: str = ""
    mtu: int = 0
    priority: int = 0
    table: int = 0


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the last plugin of a chain says of the whole attachment."""

    version: str
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[Route, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses with their prefix lengths."""
        return tuple(ip.address for ip in self.ips)


def parse_result(data: Any) -> Result:
    """A result, by the version that it claims to be of. Raises ValueError that says what is wrong, and where."""
    if not isinstance(data, dict):
        raise ValueError("is no JSON object")
    version = data.get("cniVersion", UNVERSIONED)
    if version not in VERSIONS:
        raise ValueError(f"is of cniVersion {version!r}, which does not exist")
    if not at_least(version, "0.3.0"):
        return _of_020(version, data)
    interfaces = tuple(_interface(item, f"interfaces[{n}]") for n, item in enumerate(_list(data, "interfaces")))
    ips = tuple(_ip(item, f"ips[{n}]", len(interfaces)) for n, item in enumerate(_list(data, "ips")))
    return Result(version, interfaces, ips, _routes(_list(data, "routes"), "routes"))


def error_of(stdout: bytes) -> tuple[int, str] | None:
    """Code and words of an error that a plugin printed; None if it printed none."""
    try:
        data = json.loads(stdout)
    except ValueError:
        return None
    if not isinstance(data, dict) or not isinstance(data.get("code"), int) or "msg" not in data or not data["code"]:
        return None
    details = f"; {data['details']}" if data.get("details") else ""
    return data["code"], f"{data['msg']}{details}"


def code_in_words(code: int) -> str:
    """``7, invalid network configuration``; codes from 100 on are the plugin's own."""
    return f"{code}, {CODES[code]}" if code in CODES else str(code)


def _of_020(version: str, data: dict[str, Any]) -> Result:
    ips: list[Ip] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        entry = data.get(key)
        if entry is None:
            continue
        if not isinstance(entry, dict):
            raise ValueError(f"{key} must be an object")
        ips.append(Ip(_address(entry.get("ip"), f"{key}.ip"), _text(entry, "gateway", key)))
        routes += _routes(_list(entry, "routes"), f"{key}.routes")
    return Result(version, (), tuple(ips), tuple(routes))


def _interface(item: Any, path: str) -> Interface:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ValueError(f"{path} has no name")
    return Interface(
        item["name"], _text(item, "mac", path).lower(), _text(item, "sandbox", path), _number(item, "mtu", path)
    )


def _ip(item: Any, path: str, interfaces: int) -> Ip:
    if not isinstance(item, dict):
        raise ValueError(f"{path} must be an object")
    index = item.get("interface")
    if index is None:
        index = -1
    elif not isinstance(index, int) or not 0 <= index < max(interfaces, 1):
        raise ValueError(f"{path}.interface is {index!r}, and there are {interfaces} interfaces")
    return Ip(_address(item.get("address"), f"{path}.address"), _text(item, "gateway", path), index)


def _routes(items: list[Any], path: str) -> tuple[Route, ...]:
    found = []
    for number, item in enumerate(items):
        where = f"{path}[{number}]"
        if not isinstance(item, dict):
            raise ValueError(f"{where} must be an object")
        try:
            destination = str(ip_network(str(item.get("dst")), strict=False))
        except ValueError:
            raise ValueError(f"{where}.dst is {item.get('dst')!r}, which is no CIDR") from None
        numbers = (_number(item, key, where) for key in ("mtu", "priority", "table"))
        found.append(Route(destination, _text(item, "gw", where), *numbers))
    return tuple(found)


def _address(text: Any, path: str) -> str:
    if not isinstance(text, str) or "/" not in text:
        raise ValueError(f"{path} is {text!r}: an address with its prefix length was expected")
    try:
        return ip_interface(text).with_prefixlen
    except ValueError:
        raise ValueError(f"{path} is {text!r}, which is no address") from None


def _list(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list")
    return value


def _text(data: dict[str, Any], key: str, path: str) -> str:
    value = data.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{path}.{key} must be a text")
    return value


def _number(data: dict[str, Any], key: str, path: str) -> int:
    value = data.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{path}.{key} must be a number")
    return value
