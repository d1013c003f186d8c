"""The lab's HTTP API on its Unix socket: Kubernetes-shaped, with our own verbs beside it under ``/cnilab/v1``.

``/api/v1/...`` and ``/apis/GROUP/VERSION/...`` list, get, create, replace, patch, delete and watch objects as the API
server does: same paths, same List and Status objects, same codes. What changes one object changes the lab before
the answer is sent. The verbs (apply of many objects at once, probe, capture, fault, ...) are described in docs/api.md.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from emulator import __version__
from emulator.cluster.kinds import KINDS, Kind, kind_of
from emulator.cluster.workloads import GENERATED_MAX, SAFE_ALPHABET
from emulator.errors import AlreadyExists, CheckFailed, CnilabError, InputError, NotFound, Unsupported, UserError
from emulator.lab.admission import Conflict, Forbidden
from emulator.lab.patches import merge, strategic_merge
from emulator.lab.runtime import Runtime
from emulator.lab.selectors import field_matches, label_matches
from emulator.lab.store import Event, Expired, Object, Ref, ref_of

JSON = "application/json"
YAML = ("application/yaml", "application/x-yaml", "text/yaml")
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
WATCH_SECONDS = 1800.0  # how long a watch lasts that does not say so itself; the API server takes 30 to 60 minutes
HEARTBEAT = 1.0  # seconds after which a silent watch is looked at: its client may have gone
SHORT_NAME = 5  # random characters that generateName adds

Query = dict[str, str]


class Stream(NamedTuple):
    """An answer sent piece by piece."""

    chunks: Iterator[bytes]
    content_type: str = JSON


class ApiError(UserError):
    """An HTTP-level refusal with the code and reason of the API server."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


Verb = Callable[[dict[str, str], Query, Any], Any]


class Api:
    """Routes requests. ``verbs`` are (method, path pattern, function): the function gets the path's fields, the query
    and the decoded body, and returns JSON-able data or a :class:`Stream`. ``warnings`` go with every answer."""

    def __init__(
        self,
        runtime: Runtime,
        verbs: list[tuple[str, str, Verb]],
        warnings: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self._runtime = runtime
        self.warnings = warnings
        self._verbs = [(method, _pattern(path), function) for method, path, function in verbs]
        self._kinds = {(kind.group, kind.plural): kind for kind in KINDS}

    def handle(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Answer one request: the status code, and data or a Stream. Never raises for what a client can cause."""
        try:
            return self._route(method, target, body, headers or {})
        except Exception as error:
            return failure(error)

    def _route(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
        parts = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        path = unquote(parts.path).rstrip("/") or "/"
        headers = {key.title(): value for key, value in headers.items()}
        kind_of_body = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        found = False
        for verb_method, pattern, function in self._verbs:
            match = pattern.fullmatch(path)
            found = found or match is not None
            if match and verb_method == method:
                return 200, function(match.groupdict(), query, _decode(body, kind_of_body))
        discovery = self._discovery(path)
        if discovery is not None and method == "GET":
            return 200, discovery
        match = _RESOURCE.fullmatch(path)
        if found or discovery is not None:
            raise _not_allowed()
        if match is None:
            raise _not_found()
        accept = headers.get("Accept", "")
        if accept and "json" not in accept and "*" not in accept:
            raise ApiError(406, "NotAcceptable", "only the following media types are accepted: application/json")
        kind = self._kind(match["group"] or "", match["version"], match["plural"])
        namespace, name = match["namespace"] or "", match["name"] or ""
        if (namespace and not kind.namespaced) or (name and kind.namespaced and not namespace):
            raise _not_found()
        if method == "GET":
            return 200, self._read(kind, namespace, name, query)
        if kind.namespaced and not namespace:
            raise _not_allowed()  # objects of all namespaces at once can be read, nothing else
        if match["status"]:
            if method not in ("PUT", "PATCH"):
                raise _not_allowed()
            ref = Ref(kind.group, kind.kind, namespace, name)
            return 200, self._set_status(
                kind, ref, _decode(body, kind_of_body), kind_of_body if method == "PATCH" else ""
            )
        if method == "POST" and not name:
            return 201, self._create(kind, namespace, _decode(body, kind_of_body))
        if method == "PUT" and name:
            return 200, self._replace(kind, Ref(kind.group, kind.kind, namespace, name), _decode(body, kind_of_body))
        if method == "PATCH" and name:
            ref = Ref(kind.group, kind.kind, namespace, name)
            return self._patch(kind, ref, _decode(body, kind_of_body), kind_of_body)
        if method == "DELETE":
            return 200, self._delete(kind, namespace, name, query, _decode(body, kind_of_body))
        raise _not_allowed()

    def _kind(self, group: str, version: str, plural: str) -> Kind:
        kind = self._kinds.get((group, plural))
        if kind is not None and kind.version == version:
            return kind
        for obj in self._runtime.store.all():  # kinds and versions that only a manifest told us of
            kind = kind_of(obj["apiVersion"], obj["kind"])
            if (kind.group, kind.version, kind.plural) == (group, version, plural):
                return kind if kind.known else msgspec.structs.replace(kind, namespaced="namespace" in obj["metadata"])
        raise _not_found()

    def _read(self, kind: Kind, namespace: str, name: str, query: Query) -> Any:
        wanted = _filter(query)
        if query.get("watch") in ("true", "1"):
            return Stream(self._watch(kind, namespace, name, query, wanted))
        if name:
            return self._existing(Ref(kind.group, kind.kind, namespace, name), kind)
        version, items = self._runtime.store.snapshot(kind.group, kind.kind, namespace)
        return {
            "apiVersion": kind.api_version,
            "kind": f"{kind.kind}List",
            "metadata": {"resourceVersion": str(version)},
            "items": [obj for obj in items if wanted(obj)],
        }

    def _watch(
        self, kind: Kind, namespace: str, name: str, query: Query, wanted: Callable[[Object], bool]
    ) -> Iterator[bytes]:
        """The events of a watch. What is wrong with the request is said here, not in the middle of the answer."""
        try:
            deadline = time.monotonic() + float(query.get("timeoutSeconds") or WATCH_SECONDS)
            since = int(query.get("resourceVersion") or 0)
        except ValueError as error:
            raise ApiError(400, "BadRequest", f"the watch cannot be read: {error}") from None
        if query.get("sendInitialEvents") in ("true", "1"):  # clients then fall back to list and watch
            message = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            raise ApiError(422, "Invalid", message)

        def mine(obj: Object | None) -> bool:
            return obj is not None and (not name or obj["metadata"]["name"] == name) and wanted(obj)

        def events() -> Iterator[bytes]:
            nonlocal since
            if since == 0:  # as the API server: first what is there, then what changes
                since, there = self._runtime.store.snapshot(kind.group, kind.kind, namespace)
                yield from (_event("ADDED", obj) for obj in there if mine(obj))
            try:
                while time.monotonic() < deadline:
                    yield b""
                    for event in self._runtime.store.watch(since, min(deadline, time.monotonic() + HEARTBEAT)):
                        since = event.version
                        ref = event.ref
                        if (ref.group, ref.kind, namespace or ref.namespace) == (kind.group, kind.kind, ref.namespace):
                            yield from _seen_through(event, mine)
            except Expired as error:
                yield _event("ERROR", _status(410, "Failure", "Expired", str(error)))

        return events()

    def _existing(self, ref: Ref, kind: Kind) -> Object:
        obj = self._runtime.store.get(ref)
        if obj is None:
            raise ApiError(404, "NotFound", f'{_resource(kind)} "{ref.name}" not found')
        return obj

    def _create(self, kind: Kind, namespace: str, data: Any) -> Object:
        obj = _matching(kind, namespace, "", data)
        self._check_namespace(namespace)
        metadata = obj["metadata"]
        prefix = metadata.get("generateName")
        if not metadata.get("name") and isinstance(prefix, str) and prefix:
            metadata["name"] = prefix[:GENERATED_MAX] + "".join(
                secrets.choice(SAFE_ALPHABET) for _ in range(SHORT_NAME)
            )
        if not isinstance(metadata.get("name"), str) or not metadata["name"]:
            raise ApiError(
                422, "Invalid", f'{kind.kind} "" is invalid: metadata.name: Required value: name is required'
            )
        return self._runtime.create(obj)

    def _replace(self, kind: Kind, ref: Ref, data: Any) -> Object:
        obj = _matching(kind, ref.namespace, ref.name, data)
        self._existing(ref, kind)
        return self._runtime.update(ref, lambda _known: obj, _version(data))

    def _patch(self, kind: Kind, ref: Ref, data: Any, content_type: str) -> tuple[int, Object]:
        how = _patching(content_type)
        if not isinstance(data, dict):
            raise ApiError(400, "BadRequest", "the patch is not an object")
        before = self._runtime.store.get(ref)
        if before is None and content_type != APPLY_PATCH:
            raise ApiError(404, "NotFound", f'{_resource(kind)} "{ref.name}" not found')
        self._check_namespace(ref.namespace)

        def change(known: Object | None) -> Object:
            return _matching(kind, ref.namespace, ref.name, how(known or {}, data))

        after = self._runtime.update(ref, change, _version(data))
        return (201 if before is None else 200), after

    def _set_status(self, kind: Kind, ref: Ref, data: Any, patch: str | None) -> Object:
        """PUT or PATCH of the subresource ``status``: what of the object is not status is ignored."""
        self._existing(ref, kind)
        if not isinstance(data, dict):
            raise ApiError(400, "BadRequest", "the body is not an object")
        how = _patching(patch) if patch is not None else lambda _known, new: new

        def change(known: Object) -> Object:
            wanted = how(known, data)
            status = wanted.get("status") if isinstance(wanted, dict) else None
            if status is not None and not isinstance(status, dict):
                raise ApiError(400, "BadRequest", "the status is not an object")
            return {**known, "status": status or {}}

        return self._runtime.update_status(ref, change)

    def _delete(self, kind: Kind, namespace: str, name: str, query: Query, data: Any) -> Object:
        if not name:
            wanted = _filter(query)
            refs = [ref_of(obj) for obj in self._runtime.store.select(kind.group, kind.kind, namespace) if wanted(obj)]
            self._runtime.delete(refs, _grace(query, data))
            return _status(200, "Success", "", "", {"kind": kind.plural})
        ref = Ref(kind.group, kind.kind, namespace, name)
        held = self._existing(ref, kind)
        conditions = data.get("preconditions") if isinstance(data, dict) else None
        for field, value in (conditions or {}).items() if isinstance(conditions, dict) else ():
            if value is not None and held["metadata"].get(field) != value:
                raise ApiError(
                    409, "Conflict", f"the {field} in the precondition ({value}) does not match the object's"
                )
        self._runtime.delete([ref], _grace(query, data))
        return _status(200, "Success", "", "", {"name": name, "kind": kind.plural, "uid": held["metadata"]["uid"]})

    def _check_namespace(self, namespace: str) -> None:
        if namespace and self._runtime.store.get(Ref("", "Namespace", "", namespace)) is None:
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found')

    def _discovery(self, path: str) -> Any:
        if path == "/version":
            return {"major": "1", "minor": "34", "gitVersion": f"v1.34.0+cnilab.{__version__}", "platform": "linux"}
        if path in ("/healthz", "/readyz", "/livez"):
            return {"status": "ok"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        groups = sorted({kind.group for kind in KINDS} - {""})
        versions = {group: sorted({kind.version for kind in KINDS if kind.group == group}) for group in groups}
        if path == "/apis":
            return {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [_group(name, versions[name]) for name in groups],
            }
        match = re.fullmatch(r"/api/(?P<v>v1)|/apis/(?P<group>[^/]+)/(?P<version>[^/]+)", path)
        if match is None:
            return None
        group, version = (match["group"] or ""), (match["version"] or "v1")
        found = [kind for kind in KINDS if kind.group == group and kind.version == version]
        if not found:
            return None
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{group}/{version}" if group else version,
            "resources": [
                {
                    "name": kind.plural,
                    "singularName": kind.singular,
                    "namespaced": kind.namespaced,
                    "kind": kind.kind,
                    "shortNames": list(kind.short_names),
                    "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
                }
                for kind in found
            ],
        }


_RESOURCE = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?P<status>/status)?)?"
)


def _pattern(path: str) -> re.Pattern[str]:
    """``/cnilab/v1/captures/{id}`` as an expression."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path)))


def _group(name: str, versions: list[str]) -> Object:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[-1]}


def _resource(kind: Kind) -> str:
    return f"{kind.plural}.{kind.group}" if kind.group else kind.plural


def _not_found() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def _not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def _decode(body: bytes, content_type: str) -> Any:
    """The body as plain data; None if there is none. Raises ApiError."""
    if not body:
        return None
    if content_type in YAML or content_type == APPLY_PATCH:
        from emulator.cluster.strict_yaml import Malformed, documents

        try:
            values = [document.value for document in documents(body.decode())]
        except (Malformed, UnicodeDecodeError) as error:
            raise ApiError(400, "BadRequest", f"the body is not YAML: {error}") from None
        if len(values) != 1:
            raise ApiError(400, "BadRequest", f"the body holds {len(values)} YAML documents, not one")
        return values[0]
    if content_type and not content_type.endswith("json"):
        raise ApiError(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {content_type}")
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "BadRequest", f"the body is not JSON: {error}") from None


def _filter(query: Query) -> Callable[[Object], bool]:
    """Whether an object fits the selectors of a query. Raises UserError at once for one that cannot be read."""
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    nothing: Object = {"metadata": {}}
    label_matches(labels, nothing)
    field_matches(fields, nothing)
    return lambda obj: label_matches(labels, obj) and field_matches(fields, obj)


def _event(kind: str, obj: Object) -> bytes:
    return msgspec.json.encode({"type": kind, "object": obj}) + b"\n"


def _seen_through(event: Event, mine: Callable[[Object | None], bool]) -> Iterator[bytes]:
    """An event as a watcher with selectors sees it: what begins to fit comes, what no longer fits goes."""
    before, after = mine(event.before), event.type != "DELETED" and mine(event.object)
    if after:
        yield _event("MODIFIED" if before else "ADDED", event.object)
    elif before:
        yield _event("DELETED", event.object)


def _version(data: Any) -> str:
    """The resourceVersion that an object or patch insists on; empty for none."""
    metadata = data.get("metadata") if isinstance(data, dict) else None
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return version if isinstance(version, str) else ""


def _patching(content_type: str) -> Callable[[Any, Any], Any]:
    """How a patch of a content type is merged. Raises ApiError."""
    if content_type not in (MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH, JSON, ""):
        message = f"patches of type {content_type} are not understood: {MERGE_PATCH}, {STRATEGIC_PATCH}, {APPLY_PATCH}"
        raise ApiError(415, "UnsupportedMediaType", message)
    return merge if content_type == MERGE_PATCH else strategic_merge


def _grace(query: Query, data: Any) -> float | None:
    """``gracePeriodSeconds`` of a delete's options: in the body, or in the query. Raises ApiError."""
    given = data.get("gracePeriodSeconds") if isinstance(data, dict) else None
    given = query.get("gracePeriodSeconds") if given is None else given
    if given is None:
        return None
    try:
        seconds = int(given)
    except (TypeError, ValueError):
        seconds = -1
    if seconds < 0 or isinstance(given, (bool, float)):
        raise ApiError(422, "Invalid", f"gracePeriodSeconds: Invalid value: {given!r}: must be a non-negative integer")
    return seconds


def _matching(kind: Kind, namespace: str, name: str, data: Any) -> Object:
    """``data`` as an object of ``kind`` that agrees with the path it was sent to."""
    if not isinstance(data, dict) or not isinstance(data.get("metadata", {}), dict):
        raise ApiError(400, "BadRequest", "the body is not an object")
    metadata = dict(data.get("metadata") or {})
    for field, value in (("namespace", namespace), ("name", name)):
        if value and metadata.setdefault(field, value) != value:
            raise ApiError(400, "BadRequest", f"the {field} of the object does not match the {field} on the request")
    obj = {"apiVersion": kind.api_version, "kind": kind.kind, **data, "metadata": metadata}
    for field, wanted in (("kind", kind.kind), ("apiVersion", kind.api_version)):
        if obj[field] != wanted:
            raise ApiError(
                400, "BadRequest", f"the {field} of the object, {obj[field]!r}, is not {wanted} as in the path"
            )
    return obj


def _status(code: int, status: str, reason: str, message: str, details: Object | None = None) -> Object:
    body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": status, "code": code}
    if reason:
        body["reason"] = reason
    if message:
        body["message"] = message
    if details:
        body["details"] = details
    return body


def failure(error: Exception) -> tuple[int, Object]:
    """An exception as an HTTP code and a Status object; ours travel whole in ``cnilab`` so that the client can raise
    the same one again."""
    code, reason = HTTPStatus.INTERNAL_SERVER_ERROR.value, "InternalError"
    if isinstance(error, ApiError):
        code, reason = error.code, error.reason
    elif isinstance(error, NotFound):
        code, reason = 404, "NotFound"
    elif isinstance(error, AlreadyExists):
        code, reason = 409, "AlreadyExists"
    elif isinstance(error, Conflict):
        code, reason = 409, "Conflict"
    elif isinstance(error, Forbidden):
        code, reason = 403, "Forbidden"
    elif isinstance(error, InputError):
        code, reason = 422, "Invalid"
    elif isinstance(error, (Unsupported, UserError, CheckFailed)):
        code, reason = 400, "BadRequest"
    message = error.message if isinstance(error, CnilabError) else f"{type(error).__name__}: {error}"
    status = _status(code, "Failure", reason, message)
    from emulator.lab.wire import error_to_wire

    status["cnilab"] = error_to_wire(error)
    return code, status
