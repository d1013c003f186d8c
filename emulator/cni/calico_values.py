"""Single values of Calico's resources, as they may be written. Where they must be otherwise, ValueError says how."""

from __future__ import annotations

import base64
import binascii
import re
from ipaddress import ip_address
from typing import Any

AS_MAX = 4294967295
LONGEST_PASSWORD = 80  # bytes: TCP_MD5SIG_MAXKEYLEN in linux/tcp.h

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def as_number(value: object) -> int:
    """An AS number: an integer, or text, plain or dotted (RFC 5396)."""
    high, dot, low = str(value).rpartition(".")
    if low.isdecimal() and (high.isdecimal() or not dot) and len(low) < 11 and len(high) < 6:
        number = (int(high) << 16) + int(low) if dot else int(low)
        if 0 < number <= AS_MAX and (not dot or int(low) < 65536):
            return number
    raise ValueError(f"must be an AS number between 1 and {AS_MAX}")


def peer_address(text: str) -> tuple[str, int]:
    """Address and port of ``10.0.0.1``, ``10.0.0.1:1790``, ``[fd00::1]:1790``; port 0 if there is none."""
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        number = int(port) if port else 0
        return str(ip_address(host)), number if 0 <= number < 65536 else 0
    except ValueError:
        raise ValueError("must be an address, or an address and a port") from None


def cluster_id(text: str) -> str:
    """The cluster ID of a route reflector."""
    try:
        good = ip_address(text).version == 4
    except ValueError:
        good = False
    if not good:
        raise ValueError("must be written as an IPv4 address")
    return text


def seconds(text: str) -> int:
    """Seconds of ``1m30s``."""
    match = _DURATION.fullmatch(text)
    hours, minutes, rest = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + rest
    if not 0 < total < 4096:  # the capability has twelve bits for it (RFC 4724, section 3)
        raise ValueError("must be a duration of 1s to 4095s, such as 90s")
    return total


def md5_password(text: str) -> str:
    """A password of a BGP session; BIRD's strings know no escapes."""
    if not 0 < len(text) <= LONGEST_PASSWORD or not text.isascii() or not text.isprintable() or '"' in text:
        raise ValueError("must be 1 to 80 printable ASCII characters without quotes")
    return text


def secret_value(secret: dict[str, Any], key: str) -> str | None:
    """What a Secret has under a key, None if it has none; empty for what is no text."""
    plain = (secret.get("stringData") or {}).get(key)
    if plain is not None:
        return str(plain)
    encoded = (secret.get("data") or {}).get(key)
    if encoded is None:
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
