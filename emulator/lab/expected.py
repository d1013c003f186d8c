"""What the policies of a cluster say of a request in names: the specification's verdict, and its reasons in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from emulator.cluster.model import Cluster
from emulator.cluster.services import Service
from emulator.lab.names import Place
from emulator.lab.verdicts import Specified
from emulator.policy.compiled import Compiled
from emulator.policy.enforcer import Deviation, Enforcer
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import End, Flow, Judgement, Verdict

Family = Literal[4, 6]

ECHO_REQUEST = {4: (8, 0), 6: (128, 0)}
NOT_ENFORCED = "enforces no policies"


class Expected(NamedTuple):
    """``verdict`` with its reasons: the judgements of either end, or in ``why`` what leaves it open. ``deviation``: the
    enforcer is known to do the opposite."""

    verdict: Specified
    egress: Judgement | None = None
    ingress: Judgement | None = None
    deviation: Deviation | None = None
    why: str = ""


def expected(
    compiled: Compiled,
    enforcer: Enforcer | None,
    source: Place,
    target: Place,
    protocol: str,
    port: int,
    *,
    family: Family,
    local: str,
    remote: str,
) -> Expected:
    """What becomes of a request from ``local`` to ``remote``, the addresses of its ends."""
    sender = end_of(compiled.cluster, source, local)
    if _is_node_port(compiled.cluster, target, protocol, port):
        return Expected(
            "either", why="a node's port of a Service: judged behind it, by whatever address is its sender's then"
        )
    if target.service is None:
        flow = _flow(sender, end_of(compiled.cluster, target, remote), protocol, port, family)
        return _judged(compiled, enforcer, flow)
    found = []
    for address, real in service_endpoints(compiled.cluster, target.service, protocol, port, family):
        far = end_at(compiled.cluster, address)
        if (far.kind, far.name) == (sender.kind, sender.name):
            return Expected("either", why="a pod that reaches itself through a Service: the API leaves that open")
        found.append(_judged(compiled, enforcer, _flow(sender, far, protocol, real, family)))
    if not found:
        return Expected("either", why="the Service has no endpoint for this port")
    if sender.kind != "pod":
        return Expected("either", why="a node may reach an endpoint under its own address or another: not defined")
    if len({(each.verdict, each.deviation is None) for each in found}) > 1:
        return Expected("either", why="policies allow some of the Service's endpoints and deny others")
    return found[0]


def _is_node_port(cluster: Cluster, target: Place, protocol: str, port: int) -> bool:
    """Whether what is sent there goes on to a Service's endpoint."""
    if target.machine is None or target.machine.kind != "node" or not port:
        return False
    ports = (each for service in cluster.services for each in service.ports)
    return any((each.node_port, each.protocol.lower()) == (port, protocol) for each in ports)


def _judged(compiled: Compiled, enforcer: Enforcer | None, flow: Flow) -> Expected:
    verdict = evaluate(compiled, flow)
    deviation = _deviation(compiled, enforcer, flow, verdict)
    return Expected("allow" if verdict.allowed else "deny", verdict.egress, verdict.ingress, deviation)


def _deviation(compiled: Compiled, enforcer: Enforcer | None, flow: Flow, verdict: Verdict) -> Deviation | None:
    if enforcer is None:
        return None if verdict.allowed else Deviation(NOT_ENFORCED, unenforced=True)
    return enforcer.deviates(compiled, flow, allowed=verdict.allowed)


def _flow(source: End, target: End, protocol: str, port: int, family: Family) -> Flow:
    if protocol == "icmp":
        return Flow(source, target, "ICMP" if family == 4 else "ICMPv6", icmp=ECHO_REQUEST[family])
    return Flow(source, target, protocol.upper(), port)


def end_of(cluster: Cluster, place: Place, address: str) -> End:
    """A place as policies see it; a bare address is whoever has it."""
    if place.pod is not None:
        return End("node", place.pod.node, address) if place.pod.host_network else End("pod", place.pod.key, address)
    if place.machine is not None:
        return End("node" if place.machine.kind == "node" else "external", place.machine.name, address)
    return end_at(cluster, address)


def end_at(cluster: Cluster, address: str) -> End:
    """Whoever has an address, as policies see it."""
    for pod in cluster.pods:
        if address in pod.addresses and not pod.host_network:
            return End("pod", pod.key, address)
    for machine in cluster.topology.machines:
        if any(address == each.partition("/")[0] for one in machine.interfaces for each in one.addresses):
            return End("node" if machine.kind == "node" else "external", machine.name, address)
    return End("external", address, address)


def service_endpoints(
    cluster: Cluster, service: Service, protocol: str, port: int, family: Family
) -> Iterable[tuple[str, int]]:
    """Where a Service's traffic to one of its ports may go: addresses and ports of ready endpoints."""
    names = {each.name for each in service.ports if each.port == port and each.protocol.lower() == protocol}
    for one in cluster.slices:
        if one.service_key == service.key and one.family == family:
            for real in one.ports:
                if real.name in names and real.protocol.lower() == protocol:
                    yield from ((end.address, real.port) for end in one.endpoints if end.ready)


def in_words(judgement: Judgement) -> str:
    """Why one end lets a request pass or not, for people."""
    side = f"{judgement.direction} of {judgement.pod}" if judgement.pod else judgement.direction
    match judgement.reason:
        case "no pod":
            whose = "source" if judgement.direction == "egress" else "target"
            return f"{judgement.direction}: the {whose} is no pod"
        case "itself":
            return f"{side}: a pod always reaches its own address"
        case "own node":
            return f"{side}: a pod and its own node always reach each other"
        case "not isolated":
            return f"{side}: no policy selects it"
        case "rule":
            verb = "allows" if judgement.allowed else "denies"
            return f"{side}: {judgement.policy} {verb} it, {judgement.direction} rule {judgement.rule}"
    return f"{side}: selected by {', '.join(judgement.isolated_by)}, and no rule matches"
