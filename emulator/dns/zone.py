"""The cluster's zone: what CoreDNS' ``kubernetes`` plugin answers, straight from the Services and their endpoints.

Stands for coredns ``plugin/kubernetes`` (kubernetes.go, handler.go, parse.go, reverse.go, ns.go) with
``plugin/backend_lookup.go``, under kubeadm's Corefile: ``kubernetes cluster.local in-addr.arpa ip6.arpa { pods
insecure; fallthrough in-addr.arpa ip6.arpa; ttl 30 }``. The names themselves are those of the Kubernetes DNS
specification 1.1.0 (kubernetes/dns ``docs/specification.md``), what goes beyond it is CoreDNS':

- ``HOST.SERVICE`` exists for ClusterIP Services too, and PTR for their endpoints;
- SRV at the Service's own name lists every port, unnamed ones too; at ``_port._proto.SERVICE`` the underscores may be
  left out, and A and AAAA are answered as well;
- ``A-B-C-D.NAMESPACE.pod`` is any address (``pods insecure``), also below further labels.

There is no zone file: indexes by name and address are kept up to date, one Service or EndpointSlice at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, TypeVar

from emulator.cluster.services import Endpoint, EndpointSlice, Service
from emulator.dns.records import AS_ASKED, Answer, Labels, Rcode, Record, Soa, Srv, labels_of
from emulator.dns.reverse import address_of, canonical, is_reverse

TTL = 30  # seconds: kubeadm's Corefile; the plugin's own default is 5
VERSION = "1.1.0"  # of the specification: dns-version.<zone>
VERSION_TTL = 28800
NO_PORT = -1  # of a Service or endpoint without ports: it has addresses, but no SRV
CHAIN = 8  # CNAMEs in a row within the zone

Key = tuple[str, str]
At = TypeVar("At", Key, str)


class Question(NamedTuple):
    """A name under the zone taken apart (parse.go); what it does not say is empty."""

    branch: str = ""
    namespace: str = ""
    name: str = ""
    endpoint: str = ""
    protocol: str = ""
    port: str = ""


class _Found(NamedTuple):
    """An address and port (or, for ExternalName, another name) that a name stands for; ``owner`` is its own name."""

    host: str
    port: int
    owner: str
    external: bool = False

    @property
    def kind(self) -> str:
        return "CNAME" if self.external else "AAAA" if ":" in self.host else "A"


class _NoName(Exception):
    """There is no such name."""


class Zone:
    """The zone ``domain`` and the reverse trees. ``servers`` are the addresses of the pods that serve it."""

    def __init__(self, domain: str, ttl: int = TTL) -> None:
        self.domain = domain
        self.servers: tuple[str, ...] = ()
        self._apex = labels_of(domain)
        self._ttl = ttl
        self._serial = 1
        self._namespaces: frozenset[str] = frozenset()
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, EndpointSlice] = {}
        self._slices_of: dict[Key, dict[Key, None]] = {}
        self._by_cluster_ip: dict[str, dict[Key, None]] = {}
        self._by_endpoint: dict[str, dict[Key, None]] = {}

    # Keeping up

    def set_namespaces(self, names: Iterable[str]) -> None:
        """The namespaces that exist."""
        self._namespaces = frozenset(names)
        self._serial += 1

    def put_service(self, service: Service) -> None:
        """Add or replace a Service."""
        key = (service.namespace, service.name)
        self.drop_service(key)
        self._services[key] = service
        for address in service.cluster_ips:
            self._by_cluster_ip.setdefault(_spelled(address), {})[key] = None
        self._serial += 1

    def drop_service(self, key: Key) -> None:
        """Forget the Service (namespace, name), if it is there."""
        old = self._services.pop(key, None)
        for address in old.cluster_ips if old is not None else ():
            _unindex(self._by_cluster_ip, _spelled(address), key)
        self._serial += 1

    def put_slice(self, item: EndpointSlice) -> None:
        """Add or replace an EndpointSlice."""
        key = (item.namespace, item.name)
        self.drop_slice(key)
        self._slices[key] = item
        self._slices_of.setdefault((item.namespace, item.service), {})[key] = None
        for endpoint in item.endpoints:
            self._by_endpoint.setdefault(_spelled(endpoint.address), {})[key] = None
        self._serial += 1

    def drop_slice(self, key: Key) -> None:
        """Forget the EndpointSlice (namespace, name), if it is there."""
        old = self._slices.pop(key, None)
        if old is not None:
            _unindex(self._slices_of, (old.namespace, old.service), key)
            for address in {endpoint.address for endpoint in old.endpoints}:
                _unindex(self._by_endpoint, _spelled(address), key)
        self._serial += 1

    @property
    def serial(self) -> int:
        """The SOA's; it grows with every change."""
        return self._serial & 0xFFFFFFFF

    # Answering

    def lookup(self, labels: Labels, kind: str) -> Answer | None:
        """The answer to a question for a name in lower case; None if it is for another resolver to answer."""
        if is_reverse(labels):
            return self._reverse(labels, kind)
        if labels[-len(self._apex) :] != self._apex:
            return None
        try:
            return self._answer(labels, kind)
        except _NoName:
            return self._negative("NXDOMAIN", self.domain)

    def _answer(self, labels: Labels, kind: str) -> Answer:
        base = labels[: -len(self._apex)]
        if not base and kind == "SOA":
            return Answer(answer=(self._soa(self.domain),))
        if not base and kind == "NS":
            return self._name_servers()
        if base == ("dns-version",):
            text = (Record(AS_ASKED, "TXT", VERSION_TTL, VERSION),) if kind == "TXT" else ()
            # CoreDNS knows the name for TXT alone and denies it to all else; a name that exists has to exist (RFC 8020)
            return Answer(answer=text) if text else self._negative("NOERROR", self.domain)
        if base == ("ns", "dns"):
            own = tuple(Record(AS_ASKED, kind, self._ttl, address) for _, address in self._servers(kind))
            return Answer(answer=own) if own else self._negative("NOERROR", self.domain)
        found = self._find(_parsed(base))
        if kind == "SRV":
            return self._srv(found)
        if kind == "CNAME":
            target = [item.host for item in found[:1] if item.external]
            records: tuple[Record, ...] = tuple(Record(AS_ASKED, "CNAME", self._ttl, name) for name in target)
            chase = ""
        elif kind in ("A", "AAAA"):
            records, chase = self._addresses(labels, found, kind)
        else:
            records, chase = (), ""
        return Answer(answer=records, chase=chase) if records else self._negative("NOERROR", self.domain)

    def _addresses(
        self, labels: Labels, found: list[_Found], kind: str, chain: Collection[Labels] = ()
    ) -> tuple[tuple[Record, ...], str]:
        """Records of a name, through aliases within the zone; and the alias that leads out of it."""
        owner = ".".join(labels) if chain else AS_ASKED
        records = [Record(owner, kind, self._ttl, host) for host in _unique(found, kind)]
        for item in found:
            if not item.external:
                continue
            target = labels_of(item.host)
            if target == labels or target in chain or len(chain) >= CHAIN:
                continue  # it would go round for ever
            alias = Record(owner, "CNAME", self._ttl, item.host)
            if target[-len(self._apex) :] != self._apex:
                return (*records, alias), item.host
            try:
                behind = self._find(_parsed(target[: -len(self._apex)]))
            except _NoName:
                continue  # an alias of nothing is no answer at all
            more, chase = self._addresses(target, behind, kind, (*chain, labels))
            if more:
                return (*records, alias, *more), chase
        return tuple(records), ""

    def _srv(self, found: list[_Found]) -> Answer:
        found = [item for item in found if not item.external]
        weight = max(1, 100 // len(found)) if found else 0
        with_port = [item for item in found if item.port != NO_PORT]
        targets = dict.fromkeys((item.owner, item.port) for item in with_port)
        addresses = dict.fromkeys((item.owner, item.kind, item.host) for item in with_port)
        if not targets:
            return self._negative("NOERROR", self.domain)
        return Answer(
            answer=tuple(Record(AS_ASKED, "SRV", self._ttl, Srv(0, weight, port, owner)) for owner, port in targets),
            additional=tuple(Record(owner, kind, self._ttl, host) for owner, kind, host in addresses),
        )

    def _negative(self, rcode: Rcode, zone: str) -> Answer:
        """NXDOMAIN, or NOERROR without data; the SOA tells for how long to believe it (RFC 2308)."""
        return Answer(rcode=rcode, authority=(self._soa(zone),))

    def _soa(self, zone: str) -> Record:
        data = Soa(f"ns.dns.{zone}", f"hostmaster.{zone}", self.serial, 7200, 1800, 86400, self._ttl)
        return Record(zone, "SOA", min(self._ttl, 300), data)

    # Who serves the zone

    def _name_servers(self) -> Answer:
        servers = [(name, kind, address) for kind in ("A", "AAAA") for name, address in self._servers(kind)]
        names = dict.fromkeys(name for name, _, _ in servers)
        if not names:
            return self._negative("NOERROR", self.domain)
        return Answer(
            answer=tuple(Record(AS_ASKED, "NS", self._ttl, name) for name in names),
            additional=tuple(Record(name, kind, self._ttl, address) for name, kind, address in dict.fromkeys(servers)),
        )

    def _servers(self, kind: str) -> Iterator[tuple[str, str]]:
        """Name and address of each Service that our pods are endpoints of; the pods themselves if there is none."""
        found: dict[tuple[str, str], None] = {}
        for address in self.servers:
            for key in self._by_endpoint.get(_spelled(address), ()):
                item = self._slices[key]
                service = self._services.get((item.namespace, item.service))
                if service is None:
                    continue
                name = f"{service.name}.{service.namespace}.svc.{self.domain}"
                if service.headless:
                    hosts = [(f"{_host(one)}.{name}", _spelled(one.address)) for one in self._ready(service, item)]
                else:
                    hosts = [(name, _spelled(ip)) for ip in service.cluster_ips[:1]]
                found.update(dict.fromkeys(hosts))
        if not found:
            found = dict.fromkeys((f"ns.dns.{self.domain}", _spelled(address)) for address in self.servers)
        return (pair for pair in found if (":" in pair[1]) == (kind == "AAAA") and kind in ("A", "AAAA"))

    # What a name stands for

    def _find(self, question: Question) -> list[_Found]:
        """Everything behind a name; nothing for a name that only has names below it. Raises _NoName."""
        if not question.namespace:
            return []
        if question.namespace not in self._namespaces:
            raise _NoName
        if not question.name:
            return []
        if question.branch == "pod":
            return [self._pod(question)]
        service = self._services.get((question.namespace, question.name))
        found = list(self._of_service(service, question)) if service is not None else []
        if not found:
            raise _NoName
        return found

    def _pod(self, question: Question) -> _Found:
        name = question.name
        dotted = name.count("-") == 3 and "--" not in name
        address = canonical(name.replace("-", "." if dotted else ":"))
        if not address:
            raise _NoName
        return _Found(address, 0, f"{name}.{question.namespace}.pod.{self.domain}")

    def _of_service(self, service: Service, question: Question) -> Iterator[_Found]:
        name = f"{service.name}.{service.namespace}.svc.{self.domain}"
        if service.type == "ExternalName":
            target = service.external_name.rstrip(".")
            if not question.endpoint and target and not canonical(target):
                yield _Found(target, 0, name, external=True)
        elif service.headless or question.endpoint:
            for key in self._slices_of.get((service.namespace, service.name), ()):
                item = self._slices[key]
                ports = [(port.port, port.name, str(port.protocol)) for port in item.ports] or [(NO_PORT, "", "")]
                wanted = [number for number, called, protocol in ports if _matches(question, called, protocol)]
                for endpoint in self._ready(service, item):
                    host = _host(endpoint)
                    if not question.endpoint or question.endpoint == host.lower():
                        for number in wanted:
                            yield _Found(_spelled(endpoint.address), number, f"{host}.{name}")
        else:
            declared = [(port.port, port.name, str(port.protocol)) for port in service.ports]
            for number, called, protocol in declared or [(NO_PORT, "", "")]:
                if _matches(question, called, protocol):
                    for address in service.cluster_ips:
                        yield _Found(_spelled(address), number, name)

    @staticmethod
    def _ready(service: Service, item: EndpointSlice) -> Iterator[Endpoint]:
        """The endpoints that DNS names: those that are ready, and all if the Service publishes the others too."""
        everyone = service.publish_not_ready and item.made_by_us
        return (endpoint for endpoint in item.endpoints if everyone or endpoint.ready)

    # Addresses to names

    def _reverse(self, labels: Labels, kind: str) -> Answer | None:
        if len(labels) == 2:
            soa = self._soa(".".join(labels))
            return Answer(answer=(soa,)) if kind == "SOA" else Answer(authority=(soa,))
        address = address_of(labels) if kind == "PTR" else ""
        names = dict.fromkeys(self._names_of(address)) if address else {}
        if not names:
            return None  # `fallthrough in-addr.arpa ip6.arpa`: somebody upstream may know
        return Answer(answer=tuple(Record(AS_ASKED, "PTR", self._ttl, name) for name in names))

    def _names_of(self, address: str) -> Iterator[str]:
        for namespace, name in self._by_cluster_ip.get(address, ()):
            yield f"{name}.{namespace}.svc.{self.domain}"
            return
        for key in self._by_endpoint.get(address, ()):
            item = self._slices[key]
            service = self._services.get((item.namespace, item.service))
            if service is None:
                continue
            for endpoint in self._ready(service, item):
                if _spelled(endpoint.address) == address:
                    yield f"{_host(endpoint)}.{item.service}.{item.namespace}.svc.{self.domain}"


def _parsed(base: Labels) -> Question:
    """A name less the zone's. Raises _NoName for what cannot be the name of anything."""
    if not base:
        return Question()
    branch, rest = base[-1], base[:-1][::-1]
    if branch not in ("svc", "pod") or len(rest) > 4:
        raise _NoName
    namespace, name, *below = (*rest, *("",) * (2 - len(rest)))
    if len(below) == 2:
        return Question(branch, namespace, name, "", below[0].removeprefix("_"), below[1].removeprefix("_"))
    return Question(branch, namespace, name, *below)


def _matches(question: Question, port: str, protocol: str) -> bool:
    """Whether ``_port._proto`` of the question, if it has one, is this port."""
    return question.port in ("", port.lower()) and question.protocol in ("", protocol.lower())


def _host(endpoint: Endpoint) -> str:
    """An endpoint's name within its Service."""
    return endpoint.hostname or _spelled(endpoint.address).replace(".", "-").replace(":", "-")


def _spelled(address: str) -> str:
    """The address of an object, which the API server has seen to be one: IPv6 alone has several spellings."""
    return canonical(address) if ":" in address else address


def _unique(found: list[_Found], kind: str) -> dict[str, None]:
    return dict.fromkeys(item.host for item in found if item.kind == kind)


def _unindex(index: dict[At, dict[Key, None]], at: At, key: Key) -> None:
    entry = index.get(at)
    if entry is not None:
        entry.pop(key, None)
        if not entry:
            del index[at]
