"""EndpointSlices: the endpoints of each Service, from its selector and the pods, or as the user gave them.

Stands for three controllers of kube-controller-manager: endpointslice (k8s.io/endpointslice, reconciler.go and
utils.go), endpointslicemirroring for Endpoints objects that a user gives, and what of endpointslice/topologycache and
trafficdist concerns hints (:mod:`emulator.cluster.endpoint_hints`).

Pure, and incremental: slices that did not change are the same objects again, and when one pod changes only those
Services are looked at whose selector could match it.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec

from emulator.cluster import validation
from emulator.cluster.changes import places, trimmed
from emulator.cluster.endpoint_hints import hint_mode, hinted, zone_shares
from emulator.cluster.model import Node, Pod
from emulator.cluster.service_spec import (
    SERVICE_NAME_LABEL,
    SKIP_MIRROR_LABEL,
    EndpointPortSpec,
    EndpointSpec,
    EndpointsSpec,
    SliceSpec,
    Subset,
)
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Service
from emulator.cluster.workloads import safe_hash

Object = dict[str, Any]
Family = Literal[4, 6]

SLICE_MAX = 100  # endpoints: kube-controller-manager --max-endpoints-per-slice
FEW = 8  # changed slices of the user; each is looked for among all, which costs a fraction of making all anew
MIRROR_MAX = 1000  # endpoints of a subset: --mirroring-max-endpoints-per-subset
ZONE_LABEL = "topology.kubernetes.io/zone"


class Inputs(NamedTuple):
    """What endpoints are made of. ``down`` are nodes that are not ready, and neither are their pods; ``given`` the
    user's EndpointSlice and Endpoints objects."""

    services: tuple[Service, ...]
    pods: tuple[Pod, ...]
    nodes: tuple[Node, ...]
    given: tuple[Object, ...] = ()
    down: frozenset[str] = frozenset()


def endpoint_slices(
    now: Inputs, before: Inputs | None = None, slices: tuple[EndpointSlice, ...] = ()
) -> tuple[EndpointSlice, ...]:
    """All slices, in the order of the Services, those of the user last. ``slices`` are what came of ``before``."""
    if before is None:
        return (*_made(now, now.services, {}, _taken(now.given)), *_given(now, {}))
    if _unchanged(now, before):
        return slices
    border = bisect_left(slices, True, key=lambda one: not one.made_by_us)
    ours: Sequence[EndpointSlice] = slices[:border]
    theirs = _theirs(now, before, slices[border:])
    stale = _stale(now, before)
    if stale:
        keys = {service.key for service in stale}
        names = {service.name for service in stale}
        old: defaultdict[str, list[EndpointSlice]] = defaultdict(list)
        for one in ours:
            if one.service in names and (key := one.service_key) in keys:
                old[key].append(one)
        made = _grouped(_made(now, stale, old, _taken(now.given)))
        if now.services is before.services:
            ours = list(_spliced(ours, made))
        else:
            made = _grouped(ours) | made
            ours = [one for service in now.services if service.selects for one in made.get(service.key, ())]
    elif now.services is not before.services:
        made = _grouped(ours)
        ours = [one for service in now.services if service.selects for one in made.get(service.key, ())]
    result = (*ours, *theirs)
    same = len(result) == len(slices) and all(map(operator.is_, result, slices))
    return slices if same else result


def _theirs(now: Inputs, before: Inputs, theirs: tuple[EndpointSlice, ...]) -> tuple[EndpointSlice, ...]:
    """The user's slices; ``theirs`` are those of before."""
    same_services = now.services is before.services
    if same_services and now.given is before.given:
        return theirs
    if same_services and len(now.given) == len(before.given):
        at = places(before.given, now.given)
        if len(at) <= FEW:
            found = list(theirs)
            if all(_replaced(before.given[place], now.given[place], found) for place in at):
                return tuple(found)
    return tuple(_given(now, {(one.namespace, one.name): one for one in theirs}, before.given))


def _replaced(old: Object, new: Object, records: list[EndpointSlice]) -> bool:
    """Put the record of a slice in the place of that of its predecessor; False if it is not as simple as that."""
    if old["kind"] != "EndpointSlice" or new["kind"] != "EndpointSlice" or _place(old) != _place(new):
        return False
    was, made = slice_record(old), slice_record(new)
    if was is None or made is None:
        return was is made
    at = [i for i, one in enumerate(records) if one.name == was.name and one.namespace == was.namespace]
    if len(at) != 1 or records[at[0]] != was:
        return False
    if made != was:
        records[at[0]] = made
    return True


def _stale(now: Inputs, before: Inputs) -> Sequence[Service]:
    """The Services whose endpoints may not be what they were."""
    if _nodes_differ(now, before):
        return now.services
    touched = _touched(now, before)
    if now.services is before.services:
        return touched
    known = {id(service) for service in before.services} - {id(service) for service in touched}
    return [service for service in now.services if id(service) not in known]


def _unchanged(now: Inputs, before: Inputs) -> bool:
    return all(one is other or one == other for one, other in zip(now, before, strict=True))


def _nodes_differ(now: Inputs, before: Inputs) -> bool:
    if now.nodes is before.nodes:
        return False
    return [(node.name, node.labels) for node in now.nodes] != [(node.name, node.labels) for node in before.nodes]


def _grouped(slices: Iterable[EndpointSlice]) -> dict[str, list[EndpointSlice]]:
    groups: dict[str, list[EndpointSlice]] = {}
    for one in slices:
        groups.setdefault(one.service_key, []).append(one)
    return groups


def _spliced(ours: Iterable[EndpointSlice], made: dict[str, list[EndpointSlice]]) -> Iterator[EndpointSlice]:
    """``ours`` with the slices of some Services replaced where they stand. Every Service with a selector has one."""
    names = {key.partition("/")[2] for key in made}
    done: set[str] = set()
    for one in ours:
        if one.service not in names or (key := one.service_key) not in made:
            yield one
        elif key not in done:
            done.add(key)
            yield from made[key]


# Which Services a change concerns


class _Index:
    """Services by one of the labels that they select by. A memo: the same tuple of Services has the same index."""

    def __init__(self, services: tuple[Service, ...]) -> None:
        self.services = services
        self.by_label: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
        for number, service in enumerate(services):
            if service.selects:
                key, value = next(iter(service.selector.items()))
                self.by_label[service.namespace, key, value].append(number)

    def matching(self, pods: Iterable[Pod]) -> set[int]:
        """The numbers of the Services that select any of ``pods``."""
        found: set[int] = set()
        for pod in pods:
            for key, value in pod.labels.items():
                for number in self.by_label.get((pod.namespace, key, value), ()):
                    if number not in found and _selects(self.services[number], pod):
                        found.add(number)
        return found


_index: _Index | None = None


def _indexed(services: tuple[Service, ...]) -> _Index:
    global _index
    if _index is None or _index.services is not services:
        _index = _Index(services)
    return _index


def _selects(service: Service, pod: Pod) -> bool:
    labels = pod.labels
    return all(labels.get(key) == value for key, value in service.selector.items())


def _touched(now: Inputs, before: Inputs) -> Sequence[Service]:
    """The Services whose endpoints may differ because of pods that came, went or changed."""
    was, is_ = trimmed(before.pods, now.pods)
    old = {(pod.namespace, pod.name): pod for pod in was}
    changed: list[Pod] = []
    for pod in is_:
        known = old.pop((pod.namespace, pod.name), None)
        if known is not pod and known != pod:
            changed += [pod] if known is None else [known, pod]
    changed += old.values()
    flipped = now.down ^ before.down
    if flipped:
        changed += [pod for pod in now.pods if pod.node in flipped]
    found = {now.services[number].key: now.services[number] for number in _indexed(now.services).matching(changed)}
    if flipped:  # hints count the nodes that are ready
        found |= {service.key: service for service in now.services if service.selects and hint_mode(service) == "auto"}
    return list(found.values())


# Our controller's slices


class _Group(NamedTuple):
    """Endpoints that fit into the same slices."""

    family: Family
    ports: tuple[EndpointPort, ...]
    endpoints: tuple[Endpoint, ...]


def _made(
    now: Inputs,
    services: Sequence[Service],
    old: Mapping[str, Sequence[EndpointSlice]],
    taken: Collection[tuple[str, str]],
) -> Iterator[EndpointSlice]:
    selecting = [service for service in services if service.selects]
    if not selecting:
        return
    by_label: defaultdict[tuple[str, str, str], list[Pod]] = defaultdict(list)
    wanted = {(one.namespace, *next(iter(one.selector.items()))) for one in selecting}
    for pod in now.pods:
        for key, value in pod.labels.items():
            if (place := (pod.namespace, key, value)) in wanted:
                by_label[place].append(pod)
    zones = {node.name: node.labels.get(ZONE_LABEL, "") for node in now.nodes}
    shares = zone_shares(now.nodes, now.down)
    # Services that differ by name only (and benchmarks are full of them) share their endpoints
    memo: dict[object, list[_Group]] = {}
    for service in selecting:
        label = next(iter(service.selector.items()))
        signature = (
            service.namespace,
            tuple(service.selector.items()),
            service.ports,
            service.families,
            service.publish_not_ready,
            service.name if service.headless else "",
        )
        groups = memo.get(signature)
        if groups is None:
            pods = [pod for pod in by_label.get((service.namespace, *label), ()) if _selects(service, pod)]
            groups = memo[signature] = list(_groups(service, pods, zones, now.down))
        yield from _sliced(service, groups, old.get(service.key, ()), taken, shares)


def _groups(service: Service, pods: Sequence[Pod], zones: Mapping[str, str], down: Collection[str]) -> Iterator[_Group]:
    by_ports: dict[tuple[EndpointPort, ...], list[Pod]] = {}
    for pod in pods:
        by_ports.setdefault(tuple(_ports(service, pod)), []).append(pod)
    for family in service.families:
        for ports, members in by_ports.items():
            endpoints = tuple(
                _endpoint(service, pod, address, zones.get(pod.node, ""), up=pod.node not in down)
                for pod in members
                for address in pod.addresses
                if (":" in address) == (family == 6)
            )
            if endpoints:
                yield _Group(family, ports, endpoints)


def _ports(service: Service, pod: Pod) -> Iterator[EndpointPort]:
    """The Service's ports as ``pod`` has them; one whose name the pod does not know is left out (FindPort)."""
    for port in service.ports:
        if isinstance(port.target, int):
            yield EndpointPort(port.name, port.protocol, port.target, port.app_protocol)
            continue
        numbers = (
            one.port
            for container in pod.containers
            for one in container.ports
            if one.name == port.target and one.protocol == port.protocol
        )
        number = next(numbers, 0)
        if number:
            yield EndpointPort(port.name, port.protocol, number, port.app_protocol)


def _endpoint(service: Service, pod: Pod, address: str, zone: str, *, up: bool) -> Endpoint:
    serving = pod.ready and up
    return Endpoint(
        address=address,
        node=pod.node,
        pod=pod.key,
        hostname=pod.hostname if pod.named_host and pod.subdomain == service.name else "",
        zone=zone,
        ready=service.publish_not_ready or (serving and not pod.terminating),
        serving=serving,
        terminating=pod.terminating,
    )


def _sliced(
    service: Service,
    groups: Sequence[_Group],
    old: Sequence[EndpointSlice],
    taken: Collection[tuple[str, str]],
    shares: Mapping[str, float],
) -> Iterator[EndpointSlice]:
    """The groups in slices of at most a hundred. What was in a slice stays in it; a family without endpoints has one
    empty slice."""
    names = {one.name for one in old}
    mode = hint_mode(service)
    for family in service.families:
        mine = [one for one in old if one.family == family]
        parts: list[tuple[tuple[EndpointPort, ...], tuple[Endpoint, ...], EndpointSlice | None]] = []
        for group in groups:
            if group.family == family:
                same = [one for one in mine if one.endpoints and one.ports == group.ports]
                parts += [(group.ports, endpoints, known) for endpoints, known in _filled(group.endpoints, same)]
        if not parts:
            parts = [((), (), next((one for one in mine if not one.endpoints), None))]
        lists = hinted([endpoints for _, endpoints, _ in parts], mode, shares) if mode else [part[1] for part in parts]
        for (ports, _, known), endpoints in zip(parts, lists, strict=True):
            if known is not None and known.ports == ports and known.endpoints == endpoints:
                yield known
                continue
            name = known.name if known is not None else _name(service, family, names, taken)
            names.add(name)
            yield EndpointSlice(service.namespace, name, service.name, family, ports, endpoints)


def _filled(
    endpoints: tuple[Endpoint, ...], old: Sequence[EndpointSlice]
) -> Iterator[tuple[tuple[Endpoint, ...], EndpointSlice | None]]:
    """``endpoints`` spread over the slices of before, each where it was; new ones fill the fullest that has room, then
    further slices (reconciler.go, reconcileByPortMapping)."""
    if not old:
        for start in range(0, len(endpoints), SLICE_MAX):
            yield endpoints[start : start + SLICE_MAX], None
        return
    rest = {(one.address, one.pod): one for one in endpoints}
    kept = [[rest.pop(key) for one in known.endpoints if (key := (one.address, one.pod)) in rest] for known in old]
    new = list(rest.values())
    for place in sorted(range(len(old)), key=lambda place: len(kept[place]), reverse=True):
        if kept[place] and new:
            room = SLICE_MAX - len(kept[place])
            kept[place] += new[:room]
            new = new[room:]
    for place, known in enumerate(old):
        if not kept[place] and new:  # it emptied: its successor takes its name over
            kept[place], new = new[:SLICE_MAX], new[SLICE_MAX:]
        if kept[place]:
            yield tuple(kept[place]), known
    for start in range(0, len(new), SLICE_MAX):
        yield tuple(new[start : start + SLICE_MAX]), None


def _name(service: Service, family: Family, names: Collection[str], taken: Collection[tuple[str, str]]) -> str:
    """``<service>-<five characters>``, as generateName makes them; random there."""
    number = 0
    while True:
        name = f"{service.name}-{safe_hash(f'{service.key}/{family}/{number}', 5)}"
        if name not in names and (service.namespace, name) not in taken:
            return name
        number += 1


# The user's


def _taken(given: Iterable[Object]) -> set[tuple[str, str]]:
    """The names that the user's own slices have."""
    return {_place(thing) for thing in given if thing["kind"] == "EndpointSlice"}


def _place(thing: Object) -> tuple[str, str]:
    return thing["metadata"].get("namespace") or "default", thing["metadata"]["name"]


def _given(
    now: Inputs, old: Mapping[tuple[str, str], EndpointSlice], before: Iterable[Object] = ()
) -> Iterator[EndpointSlice]:
    """Slices that the user wrote, and those that mirror Endpoints objects of Services without selector. ``old`` are
    those made of the objects ``before``."""
    if not now.given:
        return
    same = {id(thing) for thing in before}
    selectorless = {(one.namespace, one.name) for one in now.services if not one.selects}
    for thing in now.given:
        if thing["kind"] == "EndpointSlice":
            made = old.get(_place(thing)) if id(thing) in same else None
            made = made if made is not None else slice_record(thing)
            found = [made] if made is not None else []
        elif _place(thing) in selectorless:
            found = list(_mirrored(thing))
        else:
            found = []
        for one in found:
            known = old.get((one.namespace, one.name))
            yield known if known == one else one


def slice_record(thing: Object) -> EndpointSlice | None:
    """A user's EndpointSlice; None if nobody here looks at it: host names for addresses, or no Service's label."""
    spec = msgspec.convert(thing, SliceSpec)
    service = (thing["metadata"].get("labels") or {}).get(SERVICE_NAME_LABEL) or ""
    if spec.address_type == "FQDN" or not service:
        return None
    namespace, name = _place(thing)
    return EndpointSlice(
        namespace=namespace,
        name=name,
        service=service,
        family=6 if spec.address_type == "IPv6" else 4,
        ports=tuple(_given_ports(spec.ports)),
        endpoints=tuple(_given_endpoint(one) for one in spec.endpoints or ()),
        made_by_us=False,
    )


def _given_ports(ports: Iterable[EndpointPortSpec] | None) -> Iterator[EndpointPort]:
    for port in ports or ():
        if port.port is not None:  # "all ports" means nothing to a proxy, which skips such a one
            yield EndpointPort(port.name or "", cast("Any", port.protocol or "TCP"), port.port, port.app_protocol or "")


def _given_endpoint(spec: EndpointSpec) -> Endpoint:
    """Of several addresses of one endpoint the first counts, as for kube-proxy. What is unsaid is ready and serving."""
    conditions, hints, target = spec.conditions, spec.hints, spec.target_ref
    return Endpoint(
        address=str(validation.parse_address(spec.addresses[0])),
        node=spec.node_name or "",
        pod=f"{target.namespace}/{target.name}" if target is not None and target.kind == "Pod" else "",
        hostname=spec.hostname or "",
        zone=spec.zone or "",
        ready=conditions is None or conditions.ready is not False,
        serving=conditions is None or conditions.serving is not False,
        terminating=conditions is not None and conditions.terminating is True,
        zones=tuple(hint.name for hint in (hints.for_zones if hints is not None else None) or ()),
        nodes=tuple(hint.name for hint in (hints.for_nodes if hints is not None else None) or ()),
    )


def _mirrored(thing: Object) -> Iterator[EndpointSlice]:
    """pkg/controller/endpointslicemirroring: slices for each subset and family of an Endpoints object."""
    namespace, name = _place(thing)
    if (thing["metadata"].get("labels") or {}).get(SKIP_MIRROR_LABEL) == "true":
        return
    parts: dict[tuple[Family, tuple[EndpointPort, ...]], list[Endpoint]] = {}
    for subset in msgspec.convert(thing, EndpointsSpec).subsets or ():
        ports = tuple(_given_ports(subset.ports))
        for endpoint in list(_subset_endpoints(subset))[:MIRROR_MAX]:
            family: Family = 6 if ":" in endpoint.address else 4
            parts.setdefault((family, ports), []).append(endpoint)
    number = 0
    for (family, ports), endpoints in parts.items():
        for start in range(0, len(endpoints), SLICE_MAX):
            mirror = f"{name}-{safe_hash(f'mirror/{namespace}/{name}/{number}', 5)}"
            number += 1
            some = tuple(endpoints[start : start + SLICE_MAX])
            yield EndpointSlice(namespace, mirror, name, family, ports, some, made_by_us=False)


def _subset_endpoints(subset: Subset) -> Iterator[Endpoint]:
    for ready, addresses in ((True, subset.addresses), (False, subset.not_ready_addresses)):
        for one in addresses or ():
            target = one.target_ref
            yield Endpoint(
                address=str(validation.parse_address(one.ip)),
                node=one.node_name or "",
                pod=f"{target.namespace}/{target.name}" if target is not None and target.kind == "Pod" else "",
                hostname=one.hostname or "",
                ready=ready,
                serving=ready,
            )
