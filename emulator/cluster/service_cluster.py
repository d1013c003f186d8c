"""The cluster with its Services and their endpoints, taken over from the cluster of before as far as they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from emulator.cluster.collection import no_collection
from emulator.cluster.endpoints import Inputs, endpoint_slices
from emulator.cluster.load_balancer import with_addresses
from emulator.cluster.manifest_index import of_kinds
from emulator.cluster.model import Cluster
from emulator.cluster.service_records import Held, service_records
from emulator.cluster.services import Service

Object = dict[str, Any]

_SERVICE = ("v1", "Service")
_ENDPOINTS = (("discovery.k8s.io/v1", "EndpointSlice"), ("v1", "Endpoints"))


@no_collection()
def with_services(cluster: Cluster, previous: Cluster | None = None, *, down: Iterable[str] = ()) -> Cluster:
    """``cluster`` with the records of the Services among its objects, and with their endpoints.

    ``previous`` is the cluster of the step before: Services keep their addresses, and records that did not change are
    the same objects again. ``down`` are the nodes that are not ready. Raises ManifestError for what the API server
    would refuse.
    """
    manifests = service_manifests(cluster)
    if not manifests and not (previous is not None and (previous.services or previous.slices)):
        slices = endpoint_slices(_inputs(cluster, frozenset(down)))  # a user's slices may be there without a Service
        return msgspec.structs.replace(cluster, slices=slices) if slices else cluster
    services = _records(manifests, cluster, previous)
    services, pending = with_addresses(services, cluster.topology, previous.services if previous is not None else ())
    if previous is not None and services == previous.services:
        services = previous.services
    cluster = msgspec.structs.replace(cluster, services=services, pending=pending)
    return with_endpoints(cluster, previous, down=down)


def _records(manifests: Sequence[Object], cluster: Cluster, previous: Cluster | None) -> tuple[Service, ...]:
    cidrs = cluster.topology.service_cidrs
    if previous is None or previous.topology.service_cidrs != cidrs:
        return service_records(manifests, cidrs)
    before = service_manifests(previous)
    if before is manifests:
        return previous.services
    return service_records(manifests, cidrs, list(map(Held, before, previous.services)))


def with_endpoints(cluster: Cluster, previous: Cluster | None, *, down: Iterable[str] = ()) -> Cluster:
    """``cluster``, whose Services are there already, with their endpoints."""
    now = _inputs(cluster, frozenset(down))
    before = _inputs(previous, previous.not_ready_nodes) if previous is not None else None
    slices = endpoint_slices(now, before, previous.slices if previous is not None else ())
    return msgspec.structs.replace(cluster, slices=slices, not_ready_nodes=now.down)


def service_manifests(cluster: Cluster) -> Sequence[Object]:
    """The Service objects of a cluster; the records ``cluster.services`` are in the same order."""
    return of_kinds(cluster.objects, _SERVICE)


def _inputs(cluster: Cluster, down: frozenset[str]) -> Inputs:
    given = tuple(of_kinds(cluster.objects, *_ENDPOINTS))
    return Inputs(cluster.services, cluster.pods, cluster.nodes, given, down)
