"""What of a cluster's Services and endpoints goes into the store after a change: completed objects, and only those
that are not the same as before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator

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
    if old is None or now.services is not old.services or now.objects != old.objects:
        had = _identities(old) if old is not None else set()
        for service, manifest in zip(now.services, service_manifests(now), strict=True):
            if (id(service), id(manifest)) not in had:
                touched.add(service.key)
                yield service_object(service, manifest)
    if not touched and old is not None and now.slices is old.slices:
        return
    known = {id(one) for one in old.slices} if old is not None else set()
    fresh = [one for one in now.slices if id(one) not in known]
    gone = {id(one) for one in now.slices}
    touched |= {one.service_key for one in fresh}
    touched |= {one.service_key for one in old.slices if id(one) not in gone} if old is not None else set()
    if not touched:
        return
    services = {service.key: service for service in now.services if service.key in touched}
    for one in fresh:
        if _ref(one) not in given:
            yield slice_object(one, services.get(one.service_key))
    yield from _endpoints(now, services)


def _identities(cluster: Cluster) -> set[tuple[int, int]]:
    return {
        (id(service), id(manifest))
        for service, manifest in zip(cluster.services, service_manifests(cluster), strict=True)
    }


def _endpoints(now: Cluster, services: dict[str, Service]) -> Iterator[Object]:
    slices: defaultdict[str, list[EndpointSlice]] = defaultdict(list)
    for one in now.slices:
        if one.service_key in services:
            slices[one.service_key].append(one)
    for key, service in services.items():
        if service.selects:
            yield endpoints_object(service, slices[key])


def service_deletes(old: Cluster | None, now: Cluster, given: Collection[Ref]) -> Iterator[Ref]:
    """The EndpointSlices and Endpoints of ours that are no more."""
    if old is None or (now.services is old.services and now.slices is old.slices):
        return
    known = {id(one) for one in now.slices}
    if gone := [one for one in old.slices if id(one) not in known]:
        there = {(one.namespace, one.name) for one in now.slices}
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
