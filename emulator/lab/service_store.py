"""What of a cluster's Services and endpoints goes into the store after a change: completed objects, and only those
that are not the same as before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from emulator.cluster.changes import difference, places
from emulator.cluster.model import Cluster
from emulator.cluster.service_cluster import service_manifests
from emulator.cluster.service_objects import endpoints_object, service_object, slice_object
from emulator.cluster.services import EndpointSlice, Service
from emulator.lab.store import Object, Ref

SERVICE, SLICE, ENDPOINTS = "Service", "EndpointSlice", "Endpoints"
DISCOVERY = "discovery.k8s.io"


def service_puts(old: Cluster | None, now: Cluster, given: Collection[Ref]) -> Iterator[Object]:
    """The Service, EndpointSlice and Endpoints objects that differ from those of ``old``. ``given`` are the objects
    that users wrote: their own slices are among them, and are published as they are."""
    touched: set[str] = set()
    for service, manifest in _changed_services(old, now):
        touched.add(service.key)
        yield service_object(service, manifest)
    gone, fresh = difference(old.slices if old is not None else (), now.slices)
    touched |= {one.service_key for one in (*gone, *fresh)}
    if not touched:
        return
    names = {key.partition("/")[2] for key in touched}
    services = {one.key: one for one in now.services if one.name in names and one.key in touched}
    for one in fresh:
        if _ref(one) not in given:
            yield slice_object(one, services.get(one.service_key))
    yield from _endpoints(now, services)


def _changed_services(old: Cluster | None, now: Cluster) -> Sequence[tuple[Service, Object]]:
    """The Services whose record or manifest is not the same object as before, with their manifests."""
    manifests = service_manifests(now)
    pairs = zip(now.services, manifests, strict=True)
    if old is None:
        return list(pairs)
    before = service_manifests(old)
    if now.services is old.services and manifests is before:
        return ()
    if len(manifests) == len(before):
        at = sorted({*places(old.services, now.services), *places(before, manifests)})
        return [(now.services[place], manifests[place]) for place in at]
    had = {(id(service), id(manifest)) for service, manifest in zip(old.services, before, strict=True)}
    return [pair for pair in pairs if (id(pair[0]), id(pair[1])) not in had]


def _endpoints(now: Cluster, services: dict[str, Service]) -> Iterator[Object]:
    names = {service.name for service in services.values()}
    slices: defaultdict[str, list[EndpointSlice]] = defaultdict(list)
    for one in now.slices:
        if one.service in names and one.service_key in services:
            slices[one.service_key].append(one)
    for key, service in services.items():
        if service.selects:
            yield endpoints_object(service, slices[key])


def service_deletes(old: Cluster | None, now: Cluster, given: Collection[Ref]) -> Iterator[Ref]:
    """The EndpointSlices and Endpoints of ours that are no more."""
    if old is None or (now.services is old.services and now.slices is old.slices):
        return
    gone, fresh = difference(old.slices, now.slices)
    there = {(one.namespace, one.name) for one in fresh}
    lost = [_ref(one) for one in gone if (one.namespace, one.name) not in there]
    yield from (ref for ref in lost if ref not in given)
    if now.services is old.services:
        return
    selecting = {service.key for service in now.services if service.selects}
    for service in old.services:
        if service.selects and service.key not in selecting:
            ref = Ref("", ENDPOINTS, service.namespace, service.name)
            if ref not in given:
                yield ref


def refs_made_here(cluster: Cluster, given: Collection[Ref]) -> set[Ref]:
    """Those of ``given`` that are ours to write though a user may have given them: a Service is completed, and the
    Endpoints object of a Service with selector is the controller's."""
    asked = {ref for ref in given if not ref.group and ref.kind in (SERVICE, ENDPOINTS)}
    if not asked:
        return set()
    made = {Ref("", SERVICE, one.namespace, one.name) for one in cluster.services}
    made |= {Ref("", ENDPOINTS, one.namespace, one.name) for one in cluster.services if one.selects}
    return made & asked


def _ref(one: EndpointSlice) -> Ref:
    return Ref(DISCOVERY, SLICE, one.namespace, one.name)
