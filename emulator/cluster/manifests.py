"""Kubernetes manifests, read and checked as the API server would before it stores anything.

Every fault of every object is told at once: file, object, field path, reason. What comes out is complete
where it matters here: ``metadata.namespace`` is set on namespaced objects, ``replicas`` and ``protocol``
have their defaults, nulls in labels and annotations are empty strings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from emulator.cluster import validation
from emulator.cluster.admin_policy_rules import admin_policy_faults
from emulator.cluster.calico_policy_rules import calico_policy_faults
from emulator.cluster.collection import no_collection
from emulator.cluster.decode import Fault
from emulator.cluster.kinds import INITIAL_NAMESPACES, Kind, kind_of
from emulator.cluster.manifest_files import Given, expanded, parse_manifests, read_manifests
from emulator.cluster.network_policy_rules import network_policy_faults
from emulator.cluster.schema import KindEntry, field_faults, kubernetes_release, upstream_kind
from emulator.cluster.service_rules import service_faults
from emulator.cluster.workload_rules import annotation_faults, label_faults, workload_faults
from emulator.cluster.workloads import GENERATED_MAX, WORKLOADS, safe_hash
from emulator.errors import ManifestError, Problem

__all__ = ["Loaded", "load", "load_manifests", "parse", "validate", "validate_objects"]

Object = dict[str, Any]

# Kinds that have an effect here, or will have: naming one of them is no surprise for its user
_CONSUMED = frozenset(
    (
        *WORKLOADS,
        "Namespace",
        "Service",
        "Endpoints",
        "EndpointSlice",
        "ConfigMap",
        "Secret",
        "ServiceAccount",
        "NetworkPolicy",
        "Ingress",
        "IngressClass",
        # Calico's, which its style reads
        "IPPool",
        "BGPConfiguration",
        "BGPPeer",
        "BlockAffinity",
        "Node",
        "GlobalNetworkPolicy",
        "Tier",
        "NetworkSet",
        "GlobalNetworkSet",
        # The cluster-wide policies of policy.networking.k8s.io
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
        "ClusterNetworkPolicy",
    )
)
_CONTROLLERS = ("Deployment", "ReplicaSet", "StatefulSet")
_NAME_RULES: dict[str, Callable[[str], list[str]]] = {
    "Namespace": validation.faults_of_label_name,
    "Service": validation.faults_of_rfc1035_label,
    "Role": validation.faults_of_path_segment,
    "RoleBinding": validation.faults_of_path_segment,
    "ClusterRole": validation.faults_of_path_segment,
    "ClusterRoleBinding": validation.faults_of_path_segment,
}


class Loaded(msgspec.Struct, frozen=True):
    """Checked objects in the order given, and notices for people: kinds without effect here, each once."""

    objects: list[Object]
    notices: list[str]


def load_manifests(sources: Sequence[str | Path], *, namespaces: Iterable[str] = ()) -> list[Object]:
    """The objects of ``load``, without the notices."""
    return load(sources, namespaces=namespaces).objects


@no_collection()
def load(sources: Sequence[str | Path], *, namespaces: Iterable[str] = ()) -> Loaded:
    """The objects of files, folders (``*.yaml``, ``*.yml``, ``*.json`` below them, sorted) and ``-``, standard input.

    ``namespaces`` are those that exist already besides the four that every cluster has. Raises
    ManifestError with every problem.
    """
    problems: list[Problem] = []
    return _checked(read_manifests(sources, problems), problems, namespaces)


@no_collection()
def parse(text: str, source: str = "<text>", *, namespaces: Iterable[str] = ()) -> Loaded:
    """The objects of a YAML text. Raises ManifestError with every problem."""
    problems: list[Problem] = []
    return _checked(parse_manifests(text, source, problems), problems, namespaces)


def validate_objects(
    objects: Sequence[Object], source: str = "<api>", *, namespaces: Iterable[str] = ()
) -> list[Object]:
    """The objects of ``validate``, without the notices."""
    return validate(objects, source, namespaces=namespaces).objects


@no_collection()
def validate(objects: Sequence[Object], source: str = "<api>", *, namespaces: Iterable[str] = ()) -> Loaded:
    """Objects that came by another way than a file (the API), checked and completed, as copies."""
    given = [part for value in objects for part in expanded(Given(value, source, ""), 0)]
    return _checked(given, [], namespaces)


def _checked(given: Iterable[Given], problems: list[Problem], namespaces: Iterable[str]) -> Loaded:
    objects: list[Object] = []
    notices: dict[str, None] = {}
    seen: dict[tuple[str, str, str, str], str] = {}
    needs_namespace: list[tuple[Given, str, str]] = []
    existing = {*INITIAL_NAMESPACES, *namespaces}
    for one in given:
        before = len(problems)
        thing = _well_formed(one, problems)
        if thing is None:
            continue
        kind = kind_of(thing["apiVersion"], thing["kind"])
        entry = upstream_kind(thing["apiVersion"], thing["kind"])
        _name_if_generated(thing, len(objects))
        subject = _subject(thing, kind, entry)
        faults = field_faults(thing, entry) if entry is not None else []
        faults = faults or [
            *_metadata_faults(thing, kind),
            *(_rule_faults if entry is not None else _custom_faults)(thing),
        ]
        if entry is None and kind.kind in (*WORKLOADS, "Namespace"):
            faults.append(("apiVersion", f'no matches for kind "{kind.kind}" in version "{thing["apiVersion"]}"'))
        problems += [Problem(one.source, subject, path, reason) for path, reason in faults]
        if len(problems) > before:
            continue
        _complete(thing, namespaced=_is_namespaced(kind, entry, thing))
        metadata = thing["metadata"]
        identity = (kind.group, kind.kind, metadata.get("namespace", ""), metadata["name"])
        if identity in seen:
            reason = f"{validation.duplicate(metadata['name'])}: this object is in {seen[identity]} already"
            problems.append(Problem(one.source, subject, "metadata.name", reason))
        seen.setdefault(identity, one.source)
        if kind.kind == "Namespace" and kind.group == "":
            existing.add(metadata["name"])
        elif "namespace" in metadata:
            needs_namespace.append((one, subject, metadata["namespace"]))
        _notice(kind, entry, notices)
        objects.append(thing)
    for one, subject, namespace in needs_namespace:
        if namespace not in existing:
            problems.append(Problem(one.source, subject, "metadata.namespace", f'namespaces "{namespace}" not found'))
    if problems:
        raise ManifestError(problems)
    return Loaded(objects, list(notices))


def _rule_faults(thing: Object) -> Iterator[Fault]:
    yield from workload_faults(thing)
    yield from service_faults(thing)
    yield from network_policy_faults(thing)


def _custom_faults(thing: Object) -> Iterator[Fault]:
    """The faults of custom resources that have an effect here, whose fields Kubernetes' own tables do not hold."""
    # Names and namespaces are checked beside this, and nothing can be said of an object without any
    if isinstance(thing["metadata"].get("name"), str):
        yield from calico_policy_faults(thing)
        yield from admin_policy_faults(thing)


_SCENARIO = frozenset(("name", "topology", "steps"))


def _well_formed(one: Given, problems: list[Problem]) -> Object | None:
    """A private copy of the object if it is one at all: a mapping with apiVersion, kind and metadata."""
    found = len(problems)
    if not isinstance(one.value, dict):
        problems.append(Problem(one.source, one.place, "", "not a Kubernetes object: a mapping is expected"))
        return None
    if one.value.keys() >= _SCENARIO and "apiVersion" not in one.value:
        reason = "a scenario, not a Kubernetes object: `cnilab run` plays it, and its manifests may be given here"
        problems.append(Problem(one.source, one.place, "", reason))
        return None
    for field in ("apiVersion", "kind"):
        value = one.value.get(field)
        if not isinstance(value, str) or not value:
            reason = (
                validation.required() if value in (None, "") else f"must be a string, got {validation.shown(value)}"
            )
            problems.append(Problem(one.source, one.place, field, reason))
    kind, version = one.value.get("kind"), one.value.get("apiVersion")
    if isinstance(version, str) and version:
        group, slash, number = version.rpartition("/")
        wrong = validation.faults_of_label_name(number) or (validation.faults_of_subdomain(group) if slash else [])
        if wrong:
            problems.append(Problem(one.source, one.place, "apiVersion", validation.invalid(version, wrong[0])))
    if isinstance(kind, str) and kind and not (kind.isascii() and kind.isalnum() and len(kind) <= validation.LABEL_MAX):
        reason = "must consist of ASCII letters and digits"
        problems.append(Problem(one.source, one.place, "kind", validation.invalid(kind, reason)))
    metadata = one.value.get("metadata")
    if not isinstance(metadata, dict):
        reason = (
            "expected a mapping" if metadata is not None else validation.required("name or generateName is required")
        )
        path = "metadata" if metadata is not None else "metadata.name"
        problems.append(Problem(one.source, one.place, path, reason))
    if len(problems) > found:
        return None
    try:
        # By way of JSON: no value is shared with another object (YAML aliases) or with the caller
        thing: Object = msgspec.json.decode(msgspec.json.encode(one.value))
    except (msgspec.MsgspecError, UnicodeError, TypeError, RecursionError) as error:
        problems.append(Problem(one.source, one.place, "", f"cannot be written as JSON: {error}"))
        return None
    return thing


def _name_if_generated(thing: Object, index: int) -> None:
    metadata = thing["metadata"]
    prefix = metadata.get("generateName")
    if not metadata.get("name") and isinstance(prefix, str) and prefix:
        metadata["name"] = prefix[:GENERATED_MAX] + safe_hash(f"{thing['kind']}/{prefix}/{index}", 5)


def _is_namespaced(kind: Kind, entry: KindEntry | None, thing: Object) -> bool:
    if entry is not None:
        return entry.namespaced
    # Of a kind that nobody knows: what its author wrote tells
    return kind.namespaced if kind.known else bool(thing["metadata"].get("namespace"))


def _subject(thing: Object, kind: Kind, entry: KindEntry | None) -> str:
    metadata = thing["metadata"]
    name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
    parts = [part for part in (namespace, name) if isinstance(part, str)]
    if not _is_namespaced(kind, entry, thing):
        parts = parts[-1:] if isinstance(name, str) else []
    shown = "/".join(parts)
    return f"{kind.kind} {shown}" if shown.isprintable() and len(shown) < 320 else kind.kind


def _metadata_faults(thing: Object, kind: Kind) -> list[Fault]:
    metadata = thing["metadata"]
    faults: list[Fault] = []
    for field in ("name", "namespace"):
        if not isinstance(metadata.get(field, ""), str | None):
            return [(f"metadata.{field}", f"expected a string, got {validation.shown(metadata[field])}")]
    for field in ("labels", "annotations"):
        values = metadata.get(field)
        if values is None:
            continue
        if not isinstance(values, dict):
            return [(f"metadata.{field}", f"expected a mapping, got {validation.shown(values)}")]
        for key, value in values.items():
            if not isinstance(value, str | None):
                return [
                    (f"metadata.{field}.{key}", f"expected a string, got {validation.shown(value)}; put it in quotes")
                ]
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not name:
        faults.append(("metadata.name", validation.required("name or generateName is required")))
    else:
        rule = _NAME_RULES.get(kind.kind, validation.faults_of_subdomain)
        faults += [("metadata.name", validation.invalid(name, reason)) for reason in rule(name)]
    if namespace:
        reasons = validation.faults_of_label_name(namespace)
        faults += [("metadata.namespace", validation.invalid(namespace, reason)) for reason in reasons]
    faults += label_faults(metadata.get("labels"), "metadata.labels")
    faults += annotation_faults(metadata.get("annotations"), "metadata.annotations")
    return faults


def _complete(thing: Object, *, namespaced: bool) -> None:
    """Defaults, as the API server fills them in."""
    metadata = thing["metadata"]
    if namespaced:
        metadata["namespace"] = metadata.get("namespace") or "default"
    else:
        metadata.pop("namespace", None)
    _without_nulls(metadata)
    if thing["kind"] not in WORKLOADS:
        return
    spec = thing["spec"]
    if thing["kind"] in _CONTROLLERS and spec.get("replicas") is None:
        spec["replicas"] = 1
    pod = thing
    if thing["kind"] != "Pod":
        pod = spec["template"]
        _without_nulls(pod.get("metadata") or {})
    for field in ("containers", "initContainers"):
        for container in pod["spec"].get(field) or ():
            for port in container.get("ports") or ():
                port["protocol"] = port.get("protocol") or "TCP"


def _without_nulls(metadata: Object) -> None:
    for field in ("labels", "annotations"):
        if isinstance(metadata.get(field), dict):
            metadata[field] = {key: value or "" for key, value in metadata[field].items()}


def _notice(kind: Kind, entry: KindEntry | None, notices: dict[str, None]) -> None:
    if entry is None and not kind.known:
        release = ".".join(kubernetes_release().split(".")[:2])
        shown = f"{kind.kind} ({kind.api_version})"
        notices[f"{shown} is not a kind of Kubernetes {release}: kept as it is, its fields were not checked"] = None
    elif kind.kind not in _CONSUMED:
        notices[f"{kind.kind} ({kind.api_version}) has no effect on the emulated network: kept as it is"] = None


def namespaces_in(objects: Collection[Object]) -> list[str]:
    """The names of the Namespace objects among ``objects``."""
    return [thing["metadata"]["name"] for thing in objects if thing["kind"] == "Namespace"]
