"""Taking a matrix: every request in flight at once, answers told from silence, and silence told from slowness.

An answer is proof, silence is not: a packet may be late. So there are two windows. After the first (100 ms) those
denials stand that policies explain, provided that this machine was quick (every answer came within a quarter of it).
Every other silence is asked again, from another source port, and gets the second window (1 s). Both verdicts are told.

Every probe leaves from a source port that connection tracking cannot remember (``emulator.traffic.freshports``): an
allowed flow stays in its tables after its end, and a later one in its place would pass as part of it.

A refusal by ICMP would often be silence, too: a kernel sends few errors a second to one host (icmp_ratelimit). On nodes
that limit is lifted for the time of the requests, so that it does not look as if packets had been dropped.

An answer must be the target's own, so each probed port is served for the time of the requests: TCP is let in if the
handshake succeeds, UDP if an answer comes back, SCTP if INIT ACK does. A RST or an ICMP error is then a denial.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, cast

import msgspec

from emulator.cluster.model import Cluster
from emulator.errors import UserError
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.lab.expected import Expected, expected
from emulator.lab.machinery import Machinery
from emulator.lab.names import Place, resolve
from emulator.lab.pods import servers_of
from emulator.lab.runtime import Runtime
from emulator.lab.verdicts import (
    FIRST_WINDOW,
    SECOND_WINDOW,
    Cell,
    Group,
    Matrix,
    MatrixWish,
    Observed,
    PortWish,
    Round,
)
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.enforcer import Enforcer
from emulator.traffic.model import Probe, ProbeResult, Protocol, Server

Family = Literal[4, 6]

LARGEST = 250_000  # requests of one matrix: some ten seconds, and a table that nobody reads any more
MOST_PORTS = 16  # that are taken from containers and policies unasked
QUICK = 4  # the machine was quick if its slowest answer took no more than the window divided by this
SYSTEM_NAMESPACE = "kube-system"
# Which ICMP errors a kernel limits (ip-sysctl.rst): none
_UNLIMITED = (("net/ipv4/icmp_ratemask", "0"), ("net/ipv6/icmp/ratemask", ""))
_HOLDER = "verdicts of "  # before the namespace's name: what serves for the time of the requests is apart from the rest


class _Wanted(NamedTuple):
    """A request with its places resolved."""

    source: Place
    target: Place
    port: PortWish
    family: Family
    address: str


class MatrixTaker:
    """Takes matrices of one lab, one at a time."""

    def __init__(self, runtime: Runtime, machinery: Machinery, style: Callable[[], str]) -> None:
        self._runtime = runtime
        self._machinery = machinery
        self._style = style
        self._one = threading.Lock()
        self._numbers = itertools.count(1)

    def take(self, wish: MatrixWish) -> Matrix:
        """Raises NotFound and UserError for places and ports that cannot be asked."""
        with self._one:
            return self._take(wish)

    def _take(self, wish: MatrixWish) -> Matrix:
        with self._runtime.still():
            cluster, enforcement = self._runtime.current, self._runtime.enforcement
            down = self._runtime.down_nodes
        compiled = enforcement.compiled if enforcement is not None else compile_policies(cluster)
        enforcer = self._runtime.enforcer
        ports = wish.ports or () if wish.asks else (wish.ports or default_ports(cluster, compiled))
        if wish.asks:
            wanted = list(_asked(cluster, wish, down))
        else:
            wanted = list(_every(cluster, wish, ports, down))
        if len(wanted) > LARGEST:
            raise UserError(
                f"{len(wanted)} requests are more than one matrix can hold ({LARGEST})",
                hint="name fewer places (--from, --to, -n) or ports (--port)",
            )
        rounds: list[Round] = []
        up = [node for node in cluster.nodes if node.name not in down]
        nodes = [node.ns for node in up]
        self._machinery.begin_sessions(up)
        with self._serving(cluster, wanted) as opened, talkative(nodes):
            cells = self._ask(wanted, compiled, enforcer, rounds, patient=wish.patient)
        return Matrix(
            cells=tuple(cells),
            sources=tuple(dict.fromkeys(each.source.label for each in wanted)),
            targets=tuple(dict.fromkeys(each.target.label for each in wanted)),
            ports=tuple(dict.fromkeys(each.port for each in wanted)),
            rounds=tuple(rounds),
            style=self._style(),
            enforcer=enforcer.title if enforcer is not None else "",
            mode=enforcer.mode if enforcer is not None else "faithful",
            policies=tuple(policy.key for policy in compiled.policies),
            deviations=tuple(enforcer.deviations(cluster, compiled)) if enforcer is not None else (),
            opened=opened,
            changed=self._runtime.current is not cluster,
        )

    @contextmanager
    def _serving(self, cluster: Cluster, wanted: Sequence[_Wanted]) -> Iterator[int]:
        """Every probed port is served while the block runs, by the pod's own process where there is one; yields how
        many were opened for that."""
        declared = {ns: set(server.ports) for ns, server in servers_of(cluster.pods, cluster.topology.machines).items()}
        missing: dict[str, set[tuple[int, str]]] = {}
        for each in wanted:
            port = (each.port.port, each.port.protocol.upper())
            if each.target.ns and each.port.port and port not in declared.get(each.target.ns, ()):
                missing.setdefault(each.target.ns, set()).add(port)
        servers = [
            Server(ns=_HOLDER + ns, netns=netns_path(ns), hostname=ns.rpartition("/")[2], ports=tuple(sorted(found)))
            for ns, found in missing.items()
        ]
        if servers:
            self._machinery.traffic.serve(servers)
        try:
            yield sum(len(server.ports) for server in servers)
        finally:
            if servers:
                self._machinery.traffic.stop([server.ns for server in servers])

    def _ask(
        self,
        wanted: Sequence[_Wanted],
        compiled: Compiled,
        enforcer: Enforcer | None,
        rounds: list[Round],
        *,
        patient: bool,
    ) -> list[Cell]:
        window = SECOND_WINDOW if patient else FIRST_WINDOW
        results = self._volley(wanted, window, rounds)
        cells = [
            _cell(each, result, _expected(each, result, compiled, enforcer), window)
            for each, result in zip(wanted, results, strict=True)
        ]
        quick = rounds[-1].slowest <= window / QUICK
        doubtful = [
            number
            for number, cell in enumerate(cells)
            if cell.verdict == "dropped" and not (quick and cell.expected == "deny")
        ]
        if doubtful and not patient:
            again = self._volley([wanted[number] for number in doubtful], SECOND_WINDOW, rounds)
            for number, result in zip(doubtful, again, strict=True):
                before, each = cells[number], wanted[number]
                cell = _cell(each, result, _expected(each, result, compiled, enforcer), SECOND_WINDOW)
                first = before.verdict if before.verdict != cell.verdict else ""
                cells[number] = msgspec.structs.replace(cell, first=first)
        return cells

    def _volley(self, wanted: Sequence[_Wanted], window: float, rounds: list[Round]) -> list[ProbeResult]:
        probes = [
            Probe(
                id=f"m{next(self._numbers)}",
                netns=netns_path(each.source.ns),
                target=each.address,
                protocol=each.port.protocol,
                port=each.port.port,
                timeout=window,
                knock=True,
                fresh=True,
                sender=each.source.sender(each.address),
            )
            for each in wanted
        ]
        began = time.monotonic()
        results = self._machinery.traffic.probe(probes)
        slowest = max((time for result in results for time in result.times), default=0.0) / 1e6
        rounds.append(Round(len(probes), window, round(time.monotonic() - began, 6), slowest))
        return results


@contextmanager
def talkative(namespaces: Sequence[str]) -> Iterator[None]:
    """While the block runs, these machines send an ICMP error for each packet that deserves one. Namespaces that are
    gone by then are left alone."""
    before: list[tuple[str, str, str]] = []
    for ns in namespaces:
        for name, unlimited in _UNLIMITED:
            if (old := _swapped(ns, name, unlimited)) is not None:
                before.append((ns, name, old))
    try:
        yield
    finally:
        for ns, name, old in before:
            _swapped(ns, name, old)


def _swapped(ns: str, name: str, value: str) -> str | None:
    """Set a kernel parameter of a namespace; what it was, None if it is not there."""
    try:
        with inside(netns_path(ns)), open(f"/proc/sys/{name}", "r+", encoding="ascii") as file:
            old = file.read()
            file.seek(0)
            file.write(value or "\n")
    except OSError:
        return None  # no IPv6 in this kernel, or the node is gone
    return old


def default_ports(cluster: Cluster, compiled: Compiled) -> tuple[PortWish, ...]:
    """The ports that containers declare and policies name; HTTP's where nobody speaks of any. Raises UserError if they
    are too many for a table."""
    found = {
        PortWish(cast(Protocol, port.protocol.lower()), port.port)
        for pod in compiled.pods.values()
        if pod.namespace != SYSTEM_NAMESPACE
        for container in pod.containers
        for port in container.ports
    }
    for policy in compiled.policies:
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            for match in (*rule.ports, *rule.not_ports):
                if match.first and match.protocol in ("TCP", "UDP", "SCTP"):
                    found.add(PortWish(cast(Protocol, match.protocol.lower()), match.first))
    if len(found) > MOST_PORTS:
        raise UserError(
            f"pods and policies name {len(found)} ports, more than {MOST_PORTS}", hint="say which with --port"
        )
    return tuple(sorted(found, key=lambda each: (each.port, each.protocol))) or (PortWish("tcp", 80),)


def _every(cluster: Cluster, wish: MatrixWish, ports: Iterable[PortWish], down: frozenset[str]) -> Iterator[_Wanted]:
    given = [name for name in (*wish.sources, *wish.targets) if name]
    for place in (resolve(cluster, name) for name in given):
        _check_up(place, down)
    groups = list(_group(cluster, wish, down))
    sources = [resolve(cluster, name) for name in wish.sources] or [p for p in groups if p.service is None]
    targets = [resolve(cluster, name) for name in wish.targets] or groups
    if not sources or not targets:
        raise UserError("there is nobody to ask", hint="the lab has no pods of these namespaces: --from, --to, -n")
    for source in sources:
        if not source.ns:
            raise UserError(f"{source.label!r}: packets can only be sent from a pod or a machine of the lab")
        for target in targets:
            for port in ports:
                if target.service is not None and not _has_port(target, port):
                    continue
                for family, address in _addresses(cluster, source, target, wish.families or (4, 6)):
                    yield _Wanted(source, target, port, family, address)


def _asked(cluster: Cluster, wish: MatrixWish, down: frozenset[str]) -> Iterator[_Wanted]:
    for ask in wish.asks:
        source, target = resolve(cluster, ask.source), resolve(cluster, ask.target)
        if not source.ns:
            raise UserError(f"{ask.source!r}: packets can only be sent from a pod or a machine of the lab")
        _check_up(source, down)
        families: tuple[Family, ...] = (ask.family,) if ask.family else (4, 6)
        found = list(_addresses(cluster, source, target, families))
        if not found:
            raise UserError(f"{source.label} and {target.label} have no common address family")
        yield _Wanted(source, target, PortWish(ask.protocol, ask.port), *found[0])


def _check_up(place: Place, down: frozenset[str]) -> None:
    node = place.pod.node if place.pod is not None else place.machine.name if place.machine is not None else ""
    if node in down:
        raise UserError(f"{place.label}: node {node} is down", hint="the fault node-return brings it back")


def _group(cluster: Cluster, wish: MatrixWish, down: frozenset[str]) -> Iterator[Place]:
    """The places that a matrix is of where none are named. Cluster DNS' own pods are left out unless their namespace is
    asked for: what a user's policies are about is not how CoreDNS reaches things."""
    for group in wish.groups:
        yield from _GROUPS[group](cluster, wish.namespaces, down)


def _pods(cluster: Cluster, namespaces: Sequence[str], down: frozenset[str]) -> Iterator[Place]:
    for pod in cluster.pods:
        here = pod.namespace in namespaces if namespaces else pod.namespace != SYSTEM_NAMESPACE
        if here and pod.addresses and not pod.host_network and not pod.terminating and pod.node not in down:
            yield resolve(cluster, f"pod/{pod.key}")


def _nodes(cluster: Cluster, namespaces: Sequence[str], down: frozenset[str]) -> Iterator[Place]:
    yield from (resolve(cluster, f"node/{node.name}") for node in cluster.nodes if node.name not in down)


def _hosts(cluster: Cluster, namespaces: Sequence[str], down: frozenset[str]) -> Iterator[Place]:
    yield from (resolve(cluster, one.ns) for one in cluster.topology.machines if one.kind == "host")


def _services(cluster: Cluster, namespaces: Sequence[str], down: frozenset[str]) -> Iterator[Place]:
    for one in cluster.services:
        here = one.namespace in namespaces if namespaces else one.namespace != SYSTEM_NAMESPACE
        if here and one.cluster_ips and one.selects:
            yield resolve(cluster, f"service/{one.key}")


_GROUPS = {"pods": _pods, "nodes": _nodes, "hosts": _hosts, "services": _services}
assert set(_GROUPS) == set(Group.__args__)  # type: ignore[attr-defined]


def _has_port(target: Place, port: PortWish) -> bool:
    assert target.service is not None
    return any((each.port, each.protocol.lower()) == (port.port, port.protocol) for each in target.service.ports)


def _addresses(
    cluster: Cluster, source: Place, target: Place, families: Iterable[Family]
) -> Iterator[tuple[Family, str]]:
    """The target's address of each family that both have: of a node, the one that Kubernetes knows it by."""
    found = target.addresses
    if target.machine is not None and target.machine.kind == "node":
        found = cluster.node(target.machine.name).addresses or found
    for family in families:
        address = next((each for each in found if (":" in each) == (family == 6)), "")
        if address and any((":" in each) == (family == 6) for each in source.addresses):
            yield family, address


def _expected(each: _Wanted, result: ProbeResult, compiled: Compiled, enforcer: Enforcer | None) -> Expected:
    # A node sends from the address of whatever device leads there
    local = result.local_address or next(one for one in each.source.addresses if (":" in one) == (each.family == 6))
    return expected(
        compiled,
        enforcer,
        each.source,
        each.target,
        each.port.protocol,
        each.port.port,
        family=each.family,
        local=local,
        remote=each.address,
    )


def _cell(each: _Wanted, result: ProbeResult, wanted: Expected, window: float) -> Cell:
    return Cell(
        source=each.source.label,
        target=each.target.label,
        protocol=each.port.protocol,
        port=each.port.port,
        family=each.family,
        address=each.address,
        verdict=observed(result),
        specification=wanted.verdict,
        detail=result.detail,
        window=window,
        microseconds=result.times[0] if result.times else 0.0,
        egress=wanted.egress,
        ingress=wanted.ingress,
        deviation=wanted.deviation,
        why=wanted.why,
    )


def observed(result: ProbeResult) -> Observed:
    """What a probe's result says of its connection: a prohibition by ICMP is a refusal, too."""
    if result.verdict == "delivered":
        return "allowed"
    if result.verdict == "unreachable" and "prohibited" in result.detail:
        return "refused"
    return result.verdict
