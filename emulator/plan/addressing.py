"""Arithmetic on addresses and names that plans need: families, first addresses, device names and MACs.

Everything is a pure function of its arguments, so that the same cluster gives the same plan, byte for byte:
where a real component takes a random number (a veth's name, a VTEP's MAC), a hash of the owner's name stands in.
"""

from __future__ import annotations

import hashlib
from functools import cache
from ipaddress import ip_address, ip_interface, ip_network
from typing import Literal

from emulator.plan.model import Family


@cache
def family_of(address: str) -> Family:
    """4 or 6, of an address, an address with prefix length, or a CIDR."""
    return 6 if ":" in address else 4


@cache
def host_prefix(address: str) -> str:
    """``address`` as the CIDR that holds nothing else: ``10.244.1.2/32``, ``fd00::2/128``."""
    return f"{address}/{128 if ':' in address else 32}"


@cache
def first_address(cidr: str, offset: int) -> str:
    """The address ``offset`` places after the base of ``cidr``: ``10.244.1.0/24``, 1 -> ``10.244.1.1``."""
    return str(ip_network(cidr)[offset])


@cache
def prefix_length(cidr: str) -> int:
    """The prefix length of a CIDR."""
    return ip_network(cidr).prefixlen


@cache
def contains(cidr: str, address: str) -> bool:
    """Whether ``address`` (or the network it is written as) lies in ``cidr``. Families never mix."""
    if family_of(cidr) != family_of(address):
        return False
    return ip_interface(address).ip in ip_interface(cidr).network


@cache
def default_route(family: Family) -> str:
    """The CIDR of everything."""
    return "0.0.0.0/0" if family == 4 else "::/0"


@cache
def address_order(address: str) -> tuple[int, int]:
    """A sort key: by family, then by number."""
    parsed = ip_address(address)
    return parsed.version, int(parsed)


def of_family(addresses: tuple[str, ...], family: Family) -> str:
    """The first of ``addresses`` (or CIDRs) that is of ``family``; empty if there is none."""
    return next((item for item in addresses if family_of(item) == family), "")


def families_of(addresses: tuple[str, ...]) -> tuple[Family, ...]:
    """The families of ``addresses``, each once, in their order."""
    return tuple(dict.fromkeys(family_of(item) for item in addresses))


@cache
def digest(text: str, digits: int, algorithm: Literal["sha1", "sha256"] = "sha256") -> str:
    """The first hex ``digits`` of a hash of ``text``."""
    return hashlib.new(algorithm, text.encode(), usedforsecurity=False).hexdigest()[:digits]


@cache
def stable_mac(owner: str) -> str:
    """A locally administered unicast MAC, the same for the same ``owner`` in every run.

    The kernel would take a random one; a fixed one lets captures of two runs be compared.
    """
    raw = bytearray.fromhex(digest(f"mac {owner}", 12))
    raw[0] = raw[0] & 0xFC | 0x02
    return raw.hex(":")
