"""What the API server would admit of a wish, before anybody works out what it comes to.

Pure: from the objects that users have given, and what they ask for, to the objects that they would have given then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from emulator.cluster.kinds import INITIAL_NAMESPACES
from emulator.cluster.service_records import carried_over
from emulator.cluster.service_rules import status_faults
from emulator.errors import ManifestError, NotFound, Problem, UserError
from emulator.lab.objects import NAMESPACE_KIND, NODE_KIND, POD_KIND
from emulator.lab.store import Object, Ref, Store


class Forbidden(UserError):
    """What no user of a cluster may do either (HTTP 403)."""


class Conflict(UserError):
    """Somebody else has changed the object meanwhile (HTTP 409)."""


def qualified(ref: Ref) -> str:
    """An object's name for people."""
    return f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name


def refuse_nodes(objects: Sequence[Object]) -> None:
    """Raises Forbidden if there is a Node among the objects."""
    for obj in objects:
        if obj["kind"] == NODE_KIND and obj["apiVersion"] == "v1":
            raise Forbidden(
                f"Node {obj['metadata']['name']}: nodes are part of the topology, not of manifests",
                hint="labels, annotations and addresses of nodes are given in the topology file",
            )


def updating(obj: Object, store: Store) -> Object:
    """``obj`` as it is to be checked if it replaces a Service: without what it repeats of another type's fields."""
    metadata = obj.get("metadata") if isinstance(obj, dict) else None
    if not isinstance(metadata, dict) or (obj.get("apiVersion"), obj.get("kind")) != ("v1", "Service"):
        return obj
    name, namespace = metadata.get("name"), metadata.get("namespace") or "default"
    held = store.get(Ref("", "Service", namespace, name)) if isinstance(name, str) else None
    return carried_over(obj, held) if held is not None else obj


def check_update(ref: Ref, held: Object | None, given: Collection[Ref], version: str) -> None:
    """Raises Conflict if the object held is not of the ``version`` that the client knows (empty: any), and Forbidden if
    it is not one of those ``given``, but a pod made of a template."""
    if version and held is not None and held["metadata"]["resourceVersion"] != version:
        raise Conflict(
            f"the object {qualified(ref)} has been modified; "
            "please apply your changes to the latest version and try again"
        )
    if held is not None and ref.kind == POD_KIND and ref not in given:
        raise Forbidden(
            f"the pod {qualified(ref)} is made from a template",
            hint="change the workload or the topology that it belongs to",
        )


def with_service_status(given: Mapping[Ref, Object], ref: Ref, status: Object | None) -> dict[Ref, Object]:
    """The objects given with another status of a Service: the addresses that a load balancer gave it. Raises
    ManifestError."""
    service = given[ref]
    faults = list(status_faults({**service, "status": status}))
    if faults:
        subject = f"Service {qualified(ref)}"
        raise ManifestError([Problem("<api>", subject, path, reason) for path, reason in faults])
    return {**given, ref: {**service, "status": status or {}}}


def deleted(given: Mapping[Ref, Object], refs: Sequence[Ref], store: Store) -> dict[Ref, Object]:
    """The objects given, less ``refs`` and what lives in namespaces among them. Raises NotFound, Forbidden."""
    for ref in refs:
        if ref.kind == NODE_KIND and not ref.group:
            raise Forbidden(
                f"the node {ref.name} is part of the topology", hint="a scenario's node-crash takes one down"
            )
        if ref.kind == NAMESPACE_KIND and not ref.group and ref.name in INITIAL_NAMESPACES:
            raise Forbidden(f'namespaces "{ref.name}" is forbidden: this namespace may not be deleted')
        if ref not in given and store.get(ref) is None:
            raise NotFound(f"{ref.kind} {qualified(ref)} not found")
    emptied = {ref.name for ref in refs if ref.kind == NAMESPACE_KIND and ref in given}
    rest = dict(given)
    for ref in refs:
        rest.pop(ref, None)
    for ref in [ref for ref in rest if ref.namespace in emptied]:
        del rest[ref]
    return rest
