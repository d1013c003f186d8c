"""What each Kubernetes workload wants to run: names, labels and number of its pods.

Names look as the controllers make them: ``web-<template hash>-<random>`` for Deployments, ``db-0`` for
StatefulSets, ``agent-<random>`` for DaemonSets. What is random there is a hash here, so that the same
input gives the same names, and a counter in the hash gives a replacement another name than its
predecessor's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from emulator.cluster.model import ReplicaSet, Topology
from emulator.cluster.podspec import (
    ContainerSpec,
    Meta,
    PodSpec,
    PortSpec,
    RollingUpdate,
    Strategy,
    Template,
    Workload,
    WorkloadSpec,
)
from emulator.errors import ManifestError, Problem

# No vowels and no 0, 1, 3: k8s.io/apimachinery/pkg/util/rand, so that no word comes out
SAFE_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
GENERATED_MAX = 58  # bytes of a generated name before its five random characters (apiserver names/generate.go)

WORKLOADS = frozenset(("Pod", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"))

TOPOLOGY_OWNER = "Topology"
TOPOLOGY_PORT = 80  # agnhost in a topology's pods listens here, TCP and UDP


class Update(NamedTuple):
    """How a StatefulSet or DaemonSet goes from one revision to the next. ``ordered``: one pod after another, also when
    it is scaled (podManagementPolicy OrderedReady)."""

    on_delete: bool = False
    max_unavailable: int | str = 1
    partition: int = 0
    ordered: bool = False


AT_ONCE = Update()


@dataclass(frozen=True)
class Wanted:
    """Pods that one owner wants.

    ``names`` are fixed names with the node that they are bound to (empty: any node). If there are none,
    ``replicas`` pods named ``stem`` and five characters are wanted, or one on each node that fits if
    ``per_node``. ``revision`` is the label that tells pods of this template from those of an older one;
    without it a pod of the owner is kept as it is. ``update`` says how the older ones are replaced.
    ``min_ready``: seconds that a pod must be ready to be available.
    """

    namespace: str
    owner: str
    template: Template
    labels: dict[str, str]
    names: tuple[tuple[str, str], ...] = ()
    stem: str = ""
    replicas: int = 0
    per_node: bool = False
    revision: tuple[str, str] = ("", "")
    update: Update = AT_ONCE
    min_ready: int = 0
    labels_by_name: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """``namespace/owner``: what counts made pods, and finds the pods of earlier."""
        return f"{self.namespace}/{self.owner}"


def safe_hash(text: str, length: int) -> str:
    """A hash of ``text`` in Kubernetes' alphabet for generated names."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    characters = []
    for _ in range(length):
        number, index = divmod(number, len(SAFE_ALPHABET))
        characters.append(SAFE_ALPHABET[index])
    return "".join(characters)


Deployments = Callable[[Workload, str], Sequence[ReplicaSet]]


def wanted_pods(
    topology: Topology, objects: Sequence[dict[str, Any]], deployments: Deployments | None = None
) -> Iterator[Wanted]:
    """What the topology's ``pods: N`` and the workloads among ``objects`` ask for, in that order.

    ``deployments`` tells which ReplicaSets a Deployment has, given the name of the one with its template; without it,
    that one alone.
    """
    yield from _of_topology(topology)
    for kind, workload in _parsed([thing for thing in objects if thing.get("kind", "") in WORKLOADS]):
        match kind:
            case "Pod":
                yield workload
            case "Deployment":
                yield from _of_deployment(workload, deployments)
            case "ReplicaSet":
                yield _of_replica_set(workload)
            case "StatefulSet":
                yield _of_stateful_set(workload)
            case "DaemonSet":
                yield _of_daemon_set(workload)


class _Parsed(NamedTuple):
    """Manifests of workloads with their kinds and records; a Pod's is what it wants."""

    objects: Sequence[dict[str, Any]]
    records: Sequence[tuple[str, Any]]


_latest = _Parsed((), ())  # it holds on to the manifests, so none of them can be taken for another


def _parsed(objects: Sequence[dict[str, Any]]) -> Sequence[tuple[str, Any]]:
    """The kind and record of each manifest: the same as last time, if it is the same object."""
    global _latest
    known = dict(zip(map(id, _latest.objects), _latest.records, strict=True))
    records = [known.get(id(thing)) or _record(thing) for thing in objects]
    _latest = _Parsed(objects, records)
    return records


def _record(thing: dict[str, Any]) -> tuple[str, Any]:
    kind = thing["kind"]
    return kind, _of_pod(_convert(thing, Template)) if kind == "Pod" else _convert(thing, Workload)


def _convert(thing: dict[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(thing, kind)
    except msgspec.ValidationError as error:
        meta = thing.get("metadata")
        name = f" {meta.get('namespace', 'default')}/{meta.get('name', '')}" if isinstance(meta, dict) else ""
        raise ManifestError([Problem("", f"{thing.get('kind')}{name}", "", str(error))]) from None


_AGNHOST = Template(
    Meta(),
    PodSpec(
        containers=[
            ContainerSpec(
                name="agnhost",
                image="registry.k8s.io/e2e-test-images/agnhost:2.53",
                ports=[PortSpec(TOPOLOGY_PORT, "TCP", "http"), PortSpec(TOPOLOGY_PORT, "UDP", "udp")],
            )
        ]
    ),
)


def _of_topology(topology: Topology) -> Iterator[Wanted]:
    for node in topology.of_kind("node"):
        if node.pods:
            names = tuple((f"{node.name}-p{number}", node.name) for number in range(1, node.pods + 1))
            yield Wanted("default", TOPOLOGY_OWNER, _AGNHOST, {"app": "p", "node": node.name}, names)


def _of_pod(pod: Template) -> Wanted:
    meta = pod.metadata or Meta()
    return Wanted(meta.namespace or "default", "", pod, meta.labels or {}, names=((meta.name, ""),))


def _of_deployment(workload: Workload, deployments: Deployments | None) -> Iterator[Wanted]:
    """A Deployment's pods belong to the ReplicaSets of its templates: this one's and, while it rolls, older ones'."""
    name = replica_set_name(workload)
    namespace = workload.metadata.namespace or "default"
    sets = (
        [ReplicaSet(namespace, workload.metadata.name, name, _replicas(workload.spec), workload.spec.template)]
        if deployments is None
        else deployments(workload, name)
    )
    for one in sets:
        template: Template = one.template
        meta = template.metadata
        revision = one.name.rpartition("-")[2]
        labels = {**((meta.labels if meta is not None else None) or {}), "pod-template-hash": revision}
        yield Wanted(
            namespace,
            f"ReplicaSet/{one.name}",
            template,
            labels,
            stem=f"{one.name}-",
            replicas=one.replicas,
            min_ready=workload.spec.min_ready_seconds or 0,
        )


def replica_set_name(workload: Workload) -> str:
    """The name of the ReplicaSet with a Deployment's present template."""
    return f"{workload.metadata.name}-{template_hash(workload)}"


def _of_replica_set(workload: Workload) -> Wanted:
    name = workload.metadata.name
    return Wanted(
        workload.metadata.namespace or "default",
        f"ReplicaSet/{name}",
        workload.spec.template,
        _template_labels(workload),
        stem=f"{name}-",
        replicas=_replicas(workload.spec),
        min_ready=workload.spec.min_ready_seconds or 0,
    )


def _of_stateful_set(workload: Workload) -> Wanted:
    name, spec = workload.metadata.name, workload.spec
    revision = ("controller-revision-hash", f"{name}-{template_hash(workload)}")
    start = (spec.ordinals or {}).get("start", 0)
    ordinals = range(start, start + _replicas(spec))
    template = spec.template
    pod_spec = msgspec.structs.replace(template.spec or PodSpec(), subdomain=spec.service_name)
    return Wanted(
        workload.metadata.namespace or "default",
        f"StatefulSet/{name}",
        msgspec.structs.replace(template, spec=pod_spec),
        {**_template_labels(workload), revision[0]: revision[1]},
        names=tuple((f"{name}-{ordinal}", "") for ordinal in ordinals),
        revision=revision,
        update=_update(spec, ordered=spec.pod_management_policy != "Parallel"),
        min_ready=spec.min_ready_seconds or 0,
        labels_by_name={
            f"{name}-{ordinal}": {
                "apps.kubernetes.io/pod-index": str(ordinal),
                "statefulset.kubernetes.io/pod-name": f"{name}-{ordinal}",
            }
            for ordinal in ordinals
        },
    )


def _of_daemon_set(workload: Workload) -> Wanted:
    name = workload.metadata.name
    rolling = workload.spec.update_strategy.rolling_update if workload.spec.update_strategy is not None else None
    if rolling is not None and rolling.max_surge not in (None, 0, "0", "0%"):
        subject = f"DaemonSet {workload.metadata.namespace or 'default'}/{name}"
        reason = "two pods of a DaemonSet on one node are not emulated: leave it out, and maxUnavailable decides"
        raise ManifestError([Problem("", subject, "spec.updateStrategy.rollingUpdate.maxSurge", reason)])
    revision = ("controller-revision-hash", template_hash(workload))
    return Wanted(
        workload.metadata.namespace or "default",
        f"DaemonSet/{name}",
        workload.spec.template,
        {**_template_labels(workload), revision[0]: revision[1], "pod-template-generation": "1"},
        stem=f"{name}-",
        per_node=True,
        revision=revision,
        update=_update(workload.spec, ordered=False),
        min_ready=workload.spec.min_ready_seconds or 0,
    )


def _update(spec: WorkloadSpec, *, ordered: bool) -> Update:
    strategy = spec.update_strategy or Strategy()
    rolling = strategy.rolling_update or RollingUpdate()
    return Update(
        on_delete=strategy.type == "OnDelete",
        max_unavailable=1 if rolling.max_unavailable is None else rolling.max_unavailable,
        partition=rolling.partition or 0,
        ordered=ordered,
    )


def _replicas(spec: WorkloadSpec) -> int:
    return 1 if spec.replicas is None else spec.replicas


def _template_labels(workload: Workload) -> dict[str, str]:
    meta = workload.spec.template.metadata
    return (meta.labels if meta is not None else None) or {}


def template_hash(workload: Workload) -> str:
    """Ten characters that change with the parts of the template which change the pods."""
    return safe_hash(msgspec.json.encode(workload.spec.template, order="deterministic").decode(), 10)
