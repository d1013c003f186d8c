"""What people call things: ``web-0``, ``shop/cart-1``, ``node/n1``, ``client``, ``10.244.1.2:80``.

A bare name means a pod of namespace ``default`` first, then a machine of the topology; a prefix (``pod/``, ``node/``,
``host/``, ``router/``) or a namespace says which, where two share it.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from emulator.cluster.model import Cluster, Machine, Pod
from emulator.errors import NotFound, UserError


class Place(NamedTuple):
    """Somewhere traffic starts or ends. ``ns`` is empty for a bare address; ``label`` is for people."""

    label: str
    ns: str
    addresses: tuple[str, ...]
    pod: Pod | None = None
    machine: Machine | None = None


def split_port(text: str) -> tuple[str, int]:
    """``TO[:PORT]`` apart; port 0 where none is given. IPv6 addresses with a port stand in brackets."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UserError(f"{text!r} is not an address with a port", hint="write it as [fd00::1]:80")
        return host, _port(rest[1:], text) if rest else 0
    if text.count(":") > 1:
        return text, 0
    host, colon, port = text.partition(":")
    return host, _port(port, text) if colon else 0


def _port(digits: str, text: str) -> int:
    if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits) <= 65535:
        raise UserError(f"{text!r}: {digits!r} is not a port", hint="a port is a number from 1 to 65535")
    return int(digits)


def resolve(cluster: Cluster, text: str) -> Place:
    """Find what ``text`` names. Raises NotFound, with the near names in the hint."""
    try:
        address = str(ipaddress.ip_address(text))
        return Place(address, "", (address,))
    except ValueError:
        pass
    head, slash, rest = text.partition("/")
    if not slash:
        pod = _pod(cluster, "default", head)
        machine = _machine(cluster, head)
        if pod is not None:
            return _at_pod(pod)
        if machine is not None:
            return _at_machine(machine)
    elif head in ("node", "host", "router"):
        machine = _machine(cluster, rest)
        if machine is not None and machine.kind == head:
            return _at_machine(machine)
    else:
        namespace, _, name = rest.partition("/") if head in ("pod", "pods", "po") else (head, "", rest)
        if head in ("pod", "pods", "po") and not name:
            namespace, name = "default", namespace
        pod = _pod(cluster, namespace, name)
        if pod is not None:
            return _at_pod(pod)
    raise NotFound(f"there is no pod or machine {text!r} in this lab", hint=_near(cluster, text))


def common_address(source: Place, target: Place, family: int = 0) -> str:
    """The target's address that the source can use: of its own families, the target's first one.

    ``family`` 4 or 6 insists. Raises UserError where the two share none.
    """
    own = {ipaddress.ip_address(address).version for address in source.addresses}
    for address in target.addresses:
        version = ipaddress.ip_address(address).version
        if version in own and family in (0, version):
            return address
    wanted = f"IPv{family} " if family else ""
    raise UserError(f"{source.label} and {target.label} have no common {wanted}address family")


def _pod(cluster: Cluster, namespace: str, name: str) -> Pod | None:
    for pod in cluster.pods:
        if pod.name == name and pod.namespace == namespace:
            return pod
    return None


def _machine(cluster: Cluster, name: str) -> Machine | None:
    for machine in cluster.topology.machines:
        if machine.name == name:
            return machine
    return None


def _at_pod(pod: Pod) -> Place:
    return Place(f"pod/{pod.key}", pod.ns, pod.addresses, pod=pod)


def _at_machine(machine: Machine) -> Place:
    addresses = tuple(address.partition("/")[0] for interface in machine.interfaces for address in interface.addresses)
    return Place(machine.ns, machine.ns, addresses, machine=machine)


def _near(cluster: Cluster, text: str) -> str:
    import difflib

    names = [pod.key if pod.namespace != "default" else pod.name for pod in cluster.pods]
    names += [machine.name for machine in cluster.topology.machines]
    close = difflib.get_close_matches(text.split("/", 1)[-1], names, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(close)}?" if close else "`cnilab get pods -A` and `cnilab get machines` list them"
    )
