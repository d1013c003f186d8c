"""Addresses as names under in-addr.arpa and ip6.arpa (RFC 1035, 3.5; RFC 3596, 2.5)."""

from __future__ import annotations

import ipaddress

from emulator.dns.records import Labels

IN_ADDR: Labels = ("in-addr", "arpa")
IP6: Labels = ("ip6", "arpa")


def reverse_name(address: str) -> str:
    """``10.0.0.1`` -> ``1.0.0.10.in-addr.arpa``."""
    return ipaddress.ip_address(address).reverse_pointer


def is_reverse(labels: Labels) -> bool:
    """Whether a name is under one of the two trees."""
    return labels[-2:] in (IN_ADDR, IP6)


def address_of(labels: Labels) -> str:
    """The address that a name in lower case stands for, in its usual spelling; empty if none."""
    digits = labels[:-2][::-1]
    if labels[-2:] == IN_ADDR and len(digits) == 4:
        return canonical(".".join(digits))
    if labels[-2:] == IP6 and len(digits) == 32 and all(len(digit) == 1 for digit in digits):
        text = "".join(digits)
        return canonical(":".join(text[start : start + 4] for start in range(0, 32, 4)))
    return ""


def canonical(text: str) -> str:
    """An address in the spelling that all comparisons use; empty if it is none. No zones (``%eth0``)."""
    if "%" in text:
        return ""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
