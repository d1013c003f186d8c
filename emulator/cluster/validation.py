"""Kubernetes' rules for names, labels, ports and addresses, in the API server's own words.

Each ``faults_of_*`` function returns the reasons why a value is refused, none if it is fine. The wording
is that of ``k8s.io/apimachinery/pkg/util/validation``, so that a search for the message finds the
Kubernetes answer. ``invalid``, ``required``, ... build the reason of a field error as
``k8s.io/apimachinery/pkg/util/validation/field`` does.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Any

LABEL_MAX = 63  # bytes: RFC 1123 label, also label values and the name part of qualified names
SUBDOMAIN_MAX = 253  # bytes: RFC 1123 subdomain
PORT_NAME_MAX = 15  # characters: RFC 6335 service name
ANNOTATIONS_MAX = 256 * 1024  # bytes: all keys and values of one object's annotations

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = _LABEL + r"(\." + _LABEL + ")*"
_RFC1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = "(" + _QUALIFIED + ")?"
_ENV = r"[^=\x00-\x1f\x7f]+"

_LABEL_RE, _SUBDOMAIN_RE, _RFC1035_RE = re.compile(_LABEL), re.compile(_SUBDOMAIN), re.compile(_RFC1035)
_QUALIFIED_RE, _VALUE_RE, _ENV_RE = re.compile(_QUALIFIED), re.compile(_VALUE), re.compile(_ENV)
_PORT_CHARACTERS_RE = re.compile("[-a-z0-9]+")
_DOMAIN_LABEL_RE = re.compile("[-_a-zA-Z0-9]+")


def _by_example(reason: str, pattern: str, *examples: str) -> str:
    """``validation.RegexError``, with its doubled blank before "or"."""
    return f"{reason} (e.g. " + " or ".join(f"'{e}', " for e in examples) + f"regex used for validation is '{pattern}')"


_LABEL_REASON = _by_example(
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end"
    " with an alphanumeric character",
    _LABEL,
    "my-name",
    "123-abc",
)
_SUBDOMAIN_REASON = _by_example(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start"
    " and end with an alphanumeric character",
    _SUBDOMAIN,
    "example.com",
)
_RFC1035_REASON = _by_example(
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character,"
    " and end with an alphanumeric character",
    _RFC1035,
    "my-name",
    "abc-123",
)
_QUALIFIED_REASON = _by_example(
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    _QUALIFIED,
    "MyName",
    "my.name",
    "123-abc",
)
_VALUE_REASON = _by_example(
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start"
    " and end with an alphanumeric character",
    _VALUE,
    "MyValue",
    "my_value",
    "12345",
)


def _size(text: str) -> int:
    """Length in bytes; a lone surrogate (which only an escape can bring in) counts like any other character."""
    return len(text.encode("utf-8", "surrogatepass"))


def _named(value: str, limit: int, pattern: re.Pattern[str], reason: str) -> list[str]:
    faults = [f"must be no more than {limit} bytes"] if _size(value) > limit else []
    # fullmatch, not match with $: "$" would let a trailing newline through
    if not pattern.fullmatch(value):
        faults.append(reason)
    return faults


def faults_of_label_name(value: str) -> list[str]:
    """RFC 1123 label: namespaces, containers, StatefulSet pods, switches."""
    return _named(value, LABEL_MAX, _LABEL_RE, _LABEL_REASON)


def faults_of_subdomain(value: str) -> list[str]:
    """RFC 1123 subdomain: most object names, nodes."""
    return _named(value, SUBDOMAIN_MAX, _SUBDOMAIN_RE, _SUBDOMAIN_REASON)


def faults_of_domain(value: str) -> list[str]:
    """A name of the DNS as RFC 1035 bounds it, in letters, digits, ``-`` and ``_``; a final dot is fine."""
    name = value[:-1] if value.endswith(".") else value
    if _size(name) > SUBDOMAIN_MAX:
        return [f"must be no more than {SUBDOMAIN_MAX} bytes"]
    faults = []
    for label in name.split("."):
        if _size(label) > LABEL_MAX:
            faults.append(f"each label must be no more than {LABEL_MAX} bytes")
        elif not _DOMAIN_LABEL_RE.fullmatch(label):
            faults.append("must be a DNS name: labels of letters, digits, '-' and '_' between dots")
    return list(dict.fromkeys(faults))


def faults_of_rfc1035_label(value: str) -> list[str]:
    """RFC 1035 label: Service names."""
    return _named(value, LABEL_MAX, _RFC1035_RE, _RFC1035_REASON)


def faults_of_path_segment(value: str) -> list[str]:
    """A name that becomes part of a URL path: RBAC objects, which allow ``system:node``."""
    if value in (".", ".."):
        return [f"may not be '{value}'"]
    faults = [f"may not contain '{mark}'" for mark in "/%" if mark in value]
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
        faults.append("may not contain control characters")
    return faults


def faults_of_qualified_name(value: str) -> list[str]:
    """A label key: an optional subdomain and ``/``, then a name."""
    prefix, slash, name = value.rpartition("/")
    if "/" in prefix:
        example = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        return [f"a qualified name {_QUALIFIED_REASON} {example}"]
    faults = []
    if slash and not prefix:
        faults.append("prefix part must be non-empty")
    elif slash:
        faults += [f"prefix part {reason}" for reason in faults_of_subdomain(prefix)]
    if not name:
        faults.append("name part must be non-empty")
    elif _size(name) > LABEL_MAX:
        faults.append(f"name part must be no more than {LABEL_MAX} bytes")
    if not _QUALIFIED_RE.fullmatch(name):
        faults.append(f"name part {_QUALIFIED_REASON}")
    return faults


def faults_of_label_value(value: str) -> list[str]:
    """The value of a label."""
    return _named(value, LABEL_MAX, _VALUE_RE, _VALUE_REASON)


def faults_of_port(number: int) -> list[str]:
    """A port number that something listens on."""
    return [] if 1 <= number <= 65535 else ["must be between 1 and 65535, inclusive"]


def faults_of_port_name(value: str) -> list[str]:
    """An RFC 6335 service name."""
    faults = []
    if len(value) > PORT_NAME_MAX:
        faults.append(f"must be no more than {PORT_NAME_MAX} characters")
    if not _PORT_CHARACTERS_RE.fullmatch(value):
        faults.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not any("a" <= character <= "z" for character in value):
        faults.append("must contain at least one letter (a-z)")
    if "--" in value:
        faults.append("must not contain consecutive hyphens")
    if value.startswith("-") or value.endswith("-"):
        faults.append("must not begin or end with a hyphen")
    return faults


def faults_of_environment_name(value: str) -> list[str]:
    """The name of an environment variable (relaxed rule of Kubernetes 1.34: printable, no ``=``)."""
    return (
        []
        if _ENV_RE.fullmatch(value)
        else ["a valid environment variable name must consist only of printable ASCII characters other than '='"]
    )


def faults_of_address(value: str) -> list[str]:
    """An IPv4 or IPv6 address without prefix length or zone."""
    return [] if parse_address(value) is not None else ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]


def faults_of_cidr(value: str) -> list[str]:
    """A network with its prefix length; host bits must be zero."""
    try:
        parse_cidr(value)
    except ValueError as error:
        return [str(error)]
    return []


Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_address(text: str) -> IPAddress | None:
    """The address, or None if it is none. A zone (``fe80::1%eth0``) is refused: it means nothing elsewhere."""
    if "%" in text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def parse_cidr(text: str) -> Network:
    """The network; ValueError says what is wrong with it.

    ``10.0.0.0/255.0.0.0`` and ``10.0.0.0`` alone, which Python would take, are refused as Kubernetes does.
    """
    base, slash, length = text.partition("/")
    address = parse_address(base)
    if address is None or not slash or not length.isascii() or not length.isdigit() or len(length) > 3:
        raise ValueError("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
    try:
        network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    except ValueError:
        raise ValueError("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)") from None
    if network.network_address != address:
        raise ValueError(f"must not have bits set beyond the prefix length, did you mean {network}?")
    return network


def network_around(address: IPAddress, length: int) -> Network:
    """The network of that prefix length that the address is in. Raises ValueError for a length that it cannot have."""
    return ipaddress.ip_network(f"{address}/{length}", strict=False)


def is_within(part: Network, whole: Network) -> bool:
    """Whether all of a network lies in another of the same family."""
    return part.version == whole.version and part.subnet_of(whole)  # type: ignore[arg-type]


def shown(value: Any) -> str:
    """A value as it is quoted in a message: JSON, cut to a length that a terminal bears."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def invalid(value: Any, detail: str) -> str:
    """The reason of a field that holds a value which it must not hold."""
    return f"Invalid value: {shown(value)}: {detail}"


def required(detail: str = "") -> str:
    """The reason of a field that is missing or empty."""
    return f"Required value: {detail}" if detail else "Required value"


def duplicate(value: Any) -> str:
    """The reason of a list entry that is there already."""
    return f"Duplicate value: {shown(value)}"


def unsupported(value: Any, supported: Iterable[str]) -> str:
    """The reason of an enumeration's unknown value."""
    return f"Unsupported value: {shown(value)}: supported values: " + ", ".join(f'"{s}"' for s in sorted(supported))


def forbidden(detail: str) -> str:
    """The reason of a field that must not be given here."""
    return f"Forbidden: {detail}"
