"""Why a style's value in a row of the comparison is what it is: the objects of its plan that made it so.

They come from the reasons at the packet's hops (``emulator.capture.explain``), which name an object only where it
accounts for what was captured; for what no hop shows (which address a node takes as its source, a bridge's
parameter), from the plan itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from emulator.capture.model import Hop, Reason
from emulator.compare.comparison import FlowColumn
from emulator.plan.describe import describe
from emulator.plan.model import (
    Address,
    BridgePort,
    CniAttachment,
    Daemon,
    File,
    Plan,
    PlanObject,
    Route,
    Sysctl,
    Veth,
)

# How a description begins (emulator.plan.describe).
DEVICES = ("veth ", "bridge ", "vxlan ", "ipip ", "tun ", "wireguard ", "wireguard-go ", "macvlan ", "ipvlan ")
TUNNELS = ("vxlan ", "ipip ", "tun ", "wireguard ", "wireguard-go ", "fdb ", "peer ")
ROUTES = ("route ", "address ", "rule ")
RULES = ("iptables ", "ip6tables ", "nftables ")
LEARNED = "(learned)"  # in a route's description: a daemon brings it
UNDERLAY = "topology"  # the component of what is the same for every style

Cause = tuple[str, Reason]
"""A namespace, and what stands there."""


def causes(label: str, column: FlowColumn, plan: Plan | None) -> tuple[Cause, ...]:
    """What makes the cell of that row in that column, each object once, in the order of the way."""
    find = _CAUSES.get(label)
    if find is None or column.result is None:
        return ()
    return tuple(dict.fromkeys(find(column, plan)))


def _hops(column: FlowColumn) -> tuple[Hop, ...]:
    return column.request.journey.hops if column.request else ()


def _named(hops: Iterable[Hop], kinds: tuple[str, ...], *, underlay: bool = False) -> Iterator[Cause]:
    for hop in hops:
        for reason in hop.reasons:
            if reason.subject.startswith(kinds) and (underlay or reason.component != UNDERLAY):
                yield hop.ns, reason


def _outside_pods(column: FlowColumn) -> list[Hop]:
    return [hop for hop in _hops(column) if not hop.ns.startswith("pod/")]


def _devices(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    """The style's devices on the way; every pod has its veth, so that counts only where there is no other. Where only
    routes show which way it went, those."""
    found = list(_named(_outside_pods(column), DEVICES))
    telling = [(ns, reason) for ns, reason in found if not reason.subject.startswith("veth ")]
    yield from telling or found or _routed(column, plan)


def _routed(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    """What routes the packet; where nothing does, what bridges it."""
    hops = _outside_pods(column)
    found = list(_named(hops, ROUTES, underlay=True))
    if (
        column.path is not None
        and not column.path.routed
        and any(hop.ns.startswith("pod/") for hop in _hops(column)[:1])
    ):
        found = []  # bridged: what its hops name led elsewhere
    yield from found or _named(hops, ("bridge ",))
    if not found:  # frames that stay on one bridge are seen on its ports only
        ports = {(hop.ns, hop.device) for hop in hops if hop.ns.startswith("node/")}
        yield from _of_plan(plan, lambda item: isinstance(item, BridgePort) and (item.ns, item.device) in ports)
    # A proxy takes from the TTL as well, and a fabric that is no hop gives it back.
    yield from _named(hops, ("tun ", "iptables -t mangle "))


def _encapsulated(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    """What puts a header on; without one, what leads the packet out of its node as it is."""
    hops = _hops(column)
    for before, hop in pairwise(hops):
        if hop.packet.tunnel is not None and before.packet.tunnel is None:
            yield from _named((hop,), TUNNELS)
            return
    out = [hop for hop in hops if hop.direction == "out" and hop.ns.startswith(("node/", "router/"))]
    yield from _named(out[:1], ROUTES, underlay=True)
    if not out:
        yield from _named(_outside_pods(column), ("bridge ",))


def _translated(field: str) -> Callable[[FlowColumn, Plan | None], Iterator[Cause]]:
    def find(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
        for before, hop in pairwise(_hops(column)):
            if getattr(before.packet, field) != getattr(hop.packet, field):
                yield from _named((hop,), RULES)

    return find


def _source(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    """The rule that rewrote it, or the address that the sender has."""
    hops = _hops(column)
    rewritten = list(_translated("source")(column, plan))
    yield from rewritten
    if not rewritten and hops:
        yield from _of_plan(plan, lambda item: _has(item, hops[0].packet.source))


def _has(item: PlanObject, address: str) -> bool:
    if isinstance(item, CniAttachment):
        return any(each.partition("/")[0] == address for each in item.addresses)
    return isinstance(item, Address) and item.address.partition("/")[0] == address


def _mtu(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    assert column.result
    ns, mtu = column.result.source_ns, column.result.pod_mtu
    yield from _of_plan(plan, lambda item: isinstance(item, Veth) and item.ns == ns and item.mtu == mtu)
    if plan is not None:
        attached = (item for item in plan if isinstance(item, CniAttachment) and item.ns == ns)
        yield from ((item.ns, _reason(item)) for item in attached)


def _outcome(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    """Why a packet did not arrive: what came back says, or the place where it was last seen; else what let it pass."""
    if column.error is not None:
        first = column.error.journey.hops[0]
        yield from ((first.ns, reason) for reason in first.reasons)
        return
    if not column.arrived:
        if column.request is not None and column.request.journey.verdict:
            last = column.request.journey.hops[-1]
            yield last.ns, Reason(column.request.journey.verdict, "", "")
        elif column.result is not None:
            yield from _mtu(column, plan)  # it never left its pod
        return
    yield from _mtu(column, plan)
    yield from _routed(column, plan)


def _read(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    """Of a table, the planned routes that are in it; of a session, the daemon and its configuration."""
    assert column.result
    ns, state = column.result.source_ns, column.result.state
    if column.result.protocol == "bgp":
        yield from _of_plan(plan, lambda item: isinstance(item, Daemon) and item.ns == ns)
        held = {path for item in plan or () if isinstance(item, Daemon) and item.ns == ns for path in item.files}
        yield from _of_plan(plan, lambda item: isinstance(item, File) and item.ns == ns and item.path in held)
    elif column.result.protocol == "routes":
        lines = [line.split() for line in state.splitlines()]
        yield from _of_plan(
            plan,
            lambda item: isinstance(item, Route) and item.ns == ns and any(_is_line(item, words) for words in lines),
        )


def _is_line(route: Route, words: list[str]) -> bool:
    """Whether a line of a routing table is of that route."""
    head: list[str] = [] if route.type == "unicast" else [route.type]
    head.append("default" if route.destination in ("0.0.0.0/0", "::/0") else route.destination)
    gateways = {via for via, _ in route.hops} | ({route.via} if route.via else set())
    told = {via for key, via in pairwise(words) if key == "via"}
    return words[: len(head)] == head and gateways == told


def _kept_up(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    """Who sets the routes of both ways, and whether they come and go with a daemon's sessions."""
    hops = [*_hops(column), *(column.reply.journey.hops if column.reply else ())]
    routes = list(_named((hop for hop in hops if not hop.ns.startswith("pod/")), ("route ",)))
    yield from routes
    learning = {ns for ns, reason in routes if LEARNED in reason.subject}
    yield from _of_plan(plan, lambda item: isinstance(item, Daemon) and item.ns in learning)


def _cut(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    for hop in _hops(column):
        yield from ((hop.ns, reason) for reason in hop.reasons if reason.component == "kernel")
    yield from _mtu(column, plan)


def _hooks(column: FlowColumn, plan: Plan | None) -> Iterator[Cause]:
    """Bridged frames pass the hooks of a bridge that is told so; routed packets and tunnel packets always do."""
    nodes = {hop.ns for hop in _hops(column) if hop.ns.startswith("node/")}
    bridged = {ns for ns, _ in _named(_hops(column), ("bridge ",))}
    yield from _of_plan(
        plan,
        lambda item: (
            isinstance(item, Sysctl)
            and item.name.startswith("net/bridge/bridge-nf-call")
            and item.value == "1"
            and item.ns in nodes & bridged
        ),
    )
    yield from _routed(column, plan)
    yield from _named(_hops(column), TUNNELS)


def _of_plan(plan: Plan | None, wanted: Callable[[PlanObject], bool]) -> Iterator[Cause]:
    if plan is not None:
        yield from ((item.ns, _reason(item)) for item in plan if wanted(item))


def _reason(item: PlanObject) -> Reason:
    return Reason(describe(item), item.component, item.why)


_CAUSES: dict[str, Callable[[FlowColumn, Plan | None], Iterator[Cause]]] = {
    "verdict": _outcome,
    "what came back": _outcome,
    "answered by": _translated("target"),
    "state": _read,
    "requests of the stream answered": _kept_up,
    "device traversals": _devices,
    "way": _devices,
    "routed hops": _routed,
    "TTL at the receiver": _routed,
    "encapsulation on the wire": _encapsulated,
    "encapsulation, whole flow": _encapsulated,
    "source seen by the receiver": _source,
    "destination rewritten to": _translated("target"),
    "pod MTU, largest packet without fragments": _mtu,
    "fragments seen": _cut,
    "netfilter hook passes": _hooks,
    "why the route exists": _routed,
}
