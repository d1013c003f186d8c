"""What people call things: ``web-0``, ``shop/cart-1``, ``node/n1``, ``client``, ``service/web``, ``10.244.1.2:80``.

A bare name means a pod of namespace ``default`` first, then a machine of the topology; a prefix (``pod/``, ``node/``,
``host/``, ``router/``, ``service/``) or a namespace says which, where two share it. ``lb/web`` is the address that a
load balancer gave to the Service ``web``. As a target, what holds a dot and is none of these is a DNS name, and
``dns/web`` always is: whoever asks resolves it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from emulator.cluster.coredns import CLUSTER_DOMAIN
from emulator.cluster.model import Cluster, Machine, Pod
from emulator.cluster.services import Service, ServicePort
from emulator.errors import NotFound, UserError

PODS = ("pod", "pods", "po")
SERVICES = ("service", "services", "svc")
BALANCERS = ("lb", "loadbalancer")
DNS = "dns"

_DNS_NAME = re.compile(r"(?=.{1,254}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_OF_SERVICE = re.compile(rf"([^.]+)\.([^.]+)\.svc(\.{re.escape(CLUSTER_DOMAIN)})?\.?", re.IGNORECASE)


class Place(NamedTuple):
    """Somewhere traffic starts or ends. ``ns`` is empty for a bare address and for a Service; ``label`` is for people.
    ``port`` is the name of the Service's port, where the text named one. ``name`` is a DNS name, of which only who asks
    for it gets to know the addresses."""

    label: str
    ns: str
    addresses: tuple[str, ...]
    pod: Pod | None = None
    machine: Machine | None = None
    service: Service | None = None
    port: str = ""
    name: str = ""

    def sender(self, target: str) -> str:
        """The address that packets to ``target`` have when they leave, if it is a pod's of its own; else nothing."""
        if self.pod is None or self.pod.host_network:
            return ""
        return next((one for one in self.pod.addresses if (":" in one) == (":" in target)), "")


def split_port(text: str) -> tuple[str, int]:
    """``TO[:PORT]`` apart; port 0 where none is given. IPv6 addresses with a port stand in brackets. The name of a
    Service's port stays where it is."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UserError(f"{text!r} is not an address with a port", hint="write it as [fd00::1]:80")
        return host, _port(rest[1:], text) if rest else 0
    if text.count(":") > 1:
        return text, 0
    host, colon, port = text.partition(":")
    if host.partition("/")[0] in (*SERVICES, *BALANCERS) and port and not port.isdigit():
        return text, 0
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
            return _at_machine(cluster, machine)
    elif head in ("node", "host", "router"):
        machine = _machine(cluster, rest)
        if machine is not None and machine.kind == head:
            return _at_machine(cluster, machine)
    elif head in (*SERVICES, *BALANCERS):
        return _at_service(cluster, text, rest, balanced=head in BALANCERS)
    else:
        namespace, _, name = rest.partition("/") if head in PODS else (head, "", rest)
        if head in PODS and not name:
            namespace, name = "default", namespace
        pod = _pod(cluster, namespace, name)
        if pod is not None:
            return _at_pod(pod)
    raise NotFound(f"there is no pod or machine {text!r} in this lab", hint=_near(cluster, text))


def resolve_target(cluster: Cluster, text: str) -> Place:
    """What ``text`` names as the target of a request: as :func:`resolve`, or a DNS name. Raises NotFound, UserError."""
    head, slash, rest = text.partition("/")
    if slash and head == DNS:
        if not _is_dns_name(rest):
            raise UserError(
                f"{rest!r} is no DNS name", hint="labels of 1 to 63 letters, digits, - and _, with dots between"
            )
        return _at_name(cluster, rest)
    try:
        return resolve(cluster, text)
    except NotFound:
        # An address with a mistake in it is no name: the last label of one is never a number
        if "." not in text or not _is_dns_name(text) or text.rstrip(".").rpartition(".")[2].isdigit():
            raise
    return _at_name(cluster, text)


def service_port(place: Place, port: int, protocol: str) -> ServicePort:
    """The port of the Service at ``place`` that a request means: of that number, of the name in the text, or the only
    one. Raises UserError with those that there are."""
    assert place.service is not None
    wanted = [
        each
        for each in place.service.ports
        if port in (0, each.port)
        and (not place.port or place.port == each.name)
        and (protocol in ("", "icmp") or protocol == each.protocol.lower())
    ]
    if len(wanted) == 1 or (wanted and (port or place.port) and protocol in ("", "icmp")):
        return wanted[0]
    known = ", ".join(
        f"{each.port}/{each.protocol.lower()}{f' ({each.name})' if each.name else ''}" for each in place.service.ports
    )
    asked = place.port or (str(port) if port else "a request without a port")
    raise UserError(
        f"{place.label}: {asked} means {'none' if not wanted else 'more than one'} of its ports",
        hint=f"it has {known}" if known else "it has none",
    )


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


def _is_dns_name(text: str) -> bool:
    return _DNS_NAME.fullmatch(text) is not None


def _at_name(cluster: Cluster, name: str) -> Place:
    """A DNS name; with the Service of which it is the one by the Kubernetes DNS specification, if there is one."""
    spelt = _OF_SERVICE.fullmatch(name)
    wanted = (spelt[2].lower(), spelt[1].lower()) if spelt else None
    service = next((each for each in cluster.services if (each.namespace, each.name) == wanted), None)
    return Place(name, "", (), service=service, name=name)


def _at_service(cluster: Cluster, text: str, rest: str, *, balanced: bool) -> Place:
    """``NAME``, ``NAMESPACE/NAME``, with ``:PORT-NAME`` behind: where its ClusterIP answers, or its load balancer if
    that is asked for. A headless Service is no place: its pods are."""
    name, _, port = rest.partition(":")
    namespace, slash, tail = name.partition("/")
    namespace, name = (namespace, tail) if slash else ("default", namespace)
    for service in cluster.services:
        if (service.namespace, service.name) == (namespace, name) and balanced:
            addresses = tuple(each.address for each in service.load_balancer)
            if not addresses:
                raise UserError(
                    f"no load balancer has given the Service {service.key} an address",
                    hint="it must be of type LoadBalancer, and the topology must have one: docs/load-balancers.md",
                )
            return Place(f"lb/{service.key}", "", addresses, service=service, port=port)
        if (service.namespace, service.name) == (namespace, name):
            if not service.cluster_ips:
                kind = "a headless Service" if service.headless else f"of type {service.type}"
                raise UserError(
                    f"{text!r} is {kind}: it has no address of its own", hint="ask for a pod, or for its DNS name"
                )
            return Place(f"service/{service.key}", "", service.cluster_ips, service=service, port=port)
    import difflib

    known = [each.name if each.namespace == "default" else each.key for each in cluster.services]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(f'service/{each}' for each in close)}?" if close else "`cnilab get services -A`"
    raise NotFound(f"there is no Service {namespace}/{name} in this lab", hint=hint)


def _at_machine(cluster: Cluster, machine: Machine) -> Place:
    """All its addresses; of a node those first that Kubernetes knows it by."""
    addresses = [address.partition("/")[0] for interface in machine.interfaces for address in interface.addresses]
    internal = [address for node in cluster.nodes if node.name == machine.name for address in node.addresses]
    return Place(machine.ns, machine.ns, tuple(dict.fromkeys((*internal, *addresses))), machine=machine)


def _near(cluster: Cluster, text: str) -> str:
    import difflib

    names = [pod.key if pod.namespace != "default" else pod.name for pod in cluster.pods]
    names += [machine.name for machine in cluster.topology.machines]
    close = difflib.get_close_matches(text.split("/", 1)[-1], names, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(close)}?" if close else "`cnilab get pods -A` and `cnilab get machines` list them"
    )
