"""The lab's HTTP API on its Unix socket: Kubernetes-shaped, with our own verbs beside it under ``/cnilab/v1``.

``/api/v1/...`` and ``/apis/GROUP/VERSION/...`` list, get, create, replace, patch, delete and watch objects as the API
server does: same paths, same List and Status objects, same codes. What changes one object changes the lab before
the answer is sent. The verbs (apply of many objects at once, probe, capture, fault, ...) are described in docs/api.md.
"""

from __future__ import annotations

import re
import socket
import socketserver
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from emulator import __version__
from emulator.cluster.kinds import KINDS, Kind
from emulator.errors import AlreadyExists, CheckFailed, CnilabError, InputError, NotFound, Unsupported, UserError
from emulator.lab.runtime import Runtime
from emulator.lab.selectors import field_matches, label_matches
from emulator.lab.store import Expired, Object, Ref

MAX_BODY = 64 * 1024 * 1024  # bytes: ten thousand generous objects
JSON = "application/json"

Query = dict[str, str]


class Stream(NamedTuple):
    """An answer sent piece by piece."""

    chunks: Iterator[bytes]
    content_type: str = JSON


class ApiError(CnilabError):
    """An HTTP-level refusal with the code and reason of the API server."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


Verb = Callable[[dict[str, str], Query, Any], Any]


class Api:
    """Routes requests. ``verbs`` are (method, path pattern, function): the function gets the path's fields, the query
    and the decoded body, and returns JSON-able data or a :class:`Stream`."""

    def __init__(self, runtime: Runtime, verbs: list[tuple[str, str, Verb]]) -> None:
        self._runtime = runtime
        self._verbs = [(method, _pattern(path), function) for method, path, function in verbs]
        self._kinds = {(kind.group, kind.plural): kind for kind in KINDS}

    def handle(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        """Answer one request: the status code, and data or a Stream. Never raises for what a client can cause."""
        try:
            return self._route(method, target, body)
        except Exception as error:
            code, status = failure(error)
            return code, status

    def _route(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(target)
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        path = unquote(parts.path).rstrip("/") or "/"
        data = _decode(body) if body else None
        for verb_method, pattern, function in self._verbs:
            match = pattern.fullmatch(path)
            if match and verb_method == method:
                return 200, function(match.groupdict(), query, data)
        discovery = self._discovery(path) if method == "GET" else None
        if discovery is not None:
            return 200, discovery
        match = _RESOURCE.fullmatch(path)
        if match is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        kind = self._kind(match["group"] or "", match["version"], match["plural"])
        namespace, name = match["namespace"] or "", match["name"] or ""
        if method == "GET":
            return 200, self._read(kind, namespace, name, query)
        if method == "POST" and not name:
            return 201, self._create(kind, namespace, data)
        if method in ("PUT", "PATCH") and name:
            return 200, self._update(kind, Ref(kind.group, kind.kind, namespace, name), data, method)
        if method == "DELETE" and name:
            ref = Ref(kind.group, kind.kind, namespace, name)
            self._existing(ref, kind)
            self._runtime.delete([ref])
            return 200, _status(200, "Success", "", "", {"name": name, "kind": kind.plural})
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _kind(self, group: str, version: str, plural: str) -> Kind:
        kind = self._kinds.get((group, plural))
        if kind is not None:
            return kind
        for obj in self._runtime.store.all():  # kinds that only a manifest told us of
            obj_group, _, obj_version = obj["apiVersion"].rpartition("/")
            name = obj["kind"]
            if obj_group == group and obj_version == version and plural in (name.lower() + "s", name.lower() + "es"):
                return Kind(
                    kind=name,
                    api_version=obj["apiVersion"],
                    plural=plural,
                    singular=name.lower(),
                    short_names=(),
                    namespaced="namespace" in obj["metadata"],
                    known=False,
                )
        raise ApiError(404, "NotFound", "the server could not find the requested resource")

    def _read(self, kind: Kind, namespace: str, name: str, query: Query) -> Any:
        if name:
            return self._existing(Ref(kind.group, kind.kind, namespace, name), kind)

        def wanted(obj: Object) -> bool:
            labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
            return label_matches(labels, obj) and field_matches(fields, obj)

        if query.get("watch") in ("true", "1"):
            return Stream(self._watch(kind, namespace, query, wanted))
        version = self._runtime.store.version
        items = [obj for obj in self._runtime.store.select(kind.group, kind.kind, namespace) if wanted(obj)]
        return {
            "apiVersion": kind.api_version,
            "kind": f"{kind.kind}List",
            "metadata": {"resourceVersion": str(version)},
            "items": items,
        }

    def _watch(self, kind: Kind, namespace: str, query: Query, wanted: Callable[[Object], bool]) -> Iterator[bytes]:
        deadline = time.monotonic() + float(query.get("timeoutSeconds", "1800"))
        text = query.get("resourceVersion", "")
        since = int(text) if text.isdigit() else 0
        if since == 0:  # as the API server: first what is there, then what changes
            since = self._runtime.store.version
            for obj in self._runtime.store.select(kind.group, kind.kind, namespace):
                if wanted(obj):
                    yield msgspec.json.encode({"type": "ADDED", "object": obj}) + b"\n"
        try:
            for event in self._runtime.store.watch(since, deadline):
                same = event.ref.kind == kind.kind and event.ref.group == kind.group
                if same and (not namespace or event.ref.namespace == namespace) and wanted(event.object):
                    yield msgspec.json.encode({"type": event.type, "object": event.object}) + b"\n"
        except Expired:
            status = _status(410, "Failure", "Expired", "too old resource version")
            yield msgspec.json.encode({"type": "ERROR", "object": status}) + b"\n"

    def _existing(self, ref: Ref, kind: Kind) -> Object:
        obj = self._runtime.store.get(ref)
        if obj is None:
            raise ApiError(404, "NotFound", f'{_resource(kind)} "{ref.name}" not found')
        return obj

    def _create(self, kind: Kind, namespace: str, data: Any) -> Object:
        obj = _matching(kind, namespace, "", data)
        ref = Ref(kind.group, kind.kind, obj["metadata"].get("namespace", ""), obj["metadata"].get("name", ""))
        if self._runtime.store.get(ref) is not None:
            raise ApiError(409, "AlreadyExists", f'{_resource(kind)} "{ref.name}" already exists')
        self._runtime.apply([obj])
        return self._existing(ref, kind)

    def _update(self, kind: Kind, ref: Ref, data: Any, method: str) -> Object:
        known = self._runtime.store.get(ref)
        if method == "PATCH":
            if not isinstance(data, dict):
                raise ApiError(415, "UnsupportedMediaType", "only merge patches and apply patches are understood")
            obj = merge(known or {}, data)
        else:
            obj = data
        obj = _matching(kind, ref.namespace, ref.name, obj)
        version = (data.get("metadata") or {}).get("resourceVersion") if isinstance(data, dict) else None
        if known is not None and version not in (None, known["metadata"]["resourceVersion"]):
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {_resource(kind)} "{ref.name}": the object has been modified; '
                "please apply your changes to the latest version and try again",
            )
        self._runtime.apply([obj])
        return self._existing(ref, kind)

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
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?"
)


def _pattern(path: str) -> re.Pattern[str]:
    """``/cnilab/v1/captures/{id}`` as an expression."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path)))


def _group(name: str, versions: list[str]) -> Object:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[-1]}


def _resource(kind: Kind) -> str:
    return f"{kind.plural}.{kind.group}" if kind.group else kind.plural


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as json_error:
        import yaml  # apply patches may be YAML (kubectl apply --server-side)

        try:
            return yaml.load(body, yaml.CSafeLoader)
        except yaml.YAMLError:
            raise ApiError(400, "BadRequest", f"the body is not JSON: {json_error}") from None


def _matching(kind: Kind, namespace: str, name: str, data: Any) -> Object:
    """``data`` as an object of ``kind`` that agrees with the path it was sent to."""
    if not isinstance(data, dict) or not isinstance(data.get("metadata", {}), dict):
        raise ApiError(400, "BadRequest", "the body is not an object")
    metadata = dict(data.get("metadata") or {})
    for field, value in (("namespace", namespace), ("name", name)):
        if value and metadata.setdefault(field, value) != value:
            raise ApiError(400, "BadRequest", f"the {field} of the object does not match the {field} on the request")
    obj = {"apiVersion": kind.api_version, "kind": kind.kind, **data, "metadata": metadata}
    if obj["kind"] != kind.kind:
        raise ApiError(400, "BadRequest", f"{obj['kind']} in body does not match {kind.kind} of the path")
    return obj


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386, JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


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
    elif isinstance(error, InputError):
        code, reason = 422, "Invalid"
    elif isinstance(error, (Unsupported, UserError, CheckFailed)):
        code, reason = 400, "BadRequest"
    message = error.message if isinstance(error, CnilabError) else f"{type(error).__name__}: {error}"
    status = _status(code, "Failure", reason, message)
    from emulator.lab.wire import error_to_wire

    status["cnilab"] = error_to_wire(error)
    return code, status


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 for :class:`Server`'s ``api``."""

    protocol_version = "HTTP/1.1"
    server: Server

    def _serve(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            self._send(413, _status(413, "Failure", "RequestEntityTooLarge", "the body is too large"))
            return
        body = self.rfile.read(int(length))
        code, answer = self.server.api.handle(self.command, self.path, body)
        if isinstance(answer, Stream):
            self._send_stream(answer)
        else:
            self._send(code, answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names that http.server looks for

    def _send(self, code: int, data: Any) -> None:
        body = msgspec.json.encode(data)
        self.send_response(code)
        self.send_header("Content-Type", JSON)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_stream(self, stream: Stream) -> None:
        self.send_response(200)
        self.send_header("Content-Type", stream.content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in stream.chunks:
                if chunk:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            close = getattr(stream.chunks, "close", None)
            if close is not None:
                close()

    def address_string(self) -> str:
        """There is no address behind a Unix socket."""
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the client prints what matters."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on ``path``, which only its owner may use."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, api: Api) -> None:
        self.api = api
        super().__init__(path, Handler, bind_and_activate=False)
        import os

        mask = os.umask(0o177)  # the socket is 0600 from its first moment on
        try:
            self.server_bind()
        finally:
            os.umask(mask)
        self.server_activate()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A Unix peer has no address; http.server wants one to print."""
        request, _ = super().get_request()
        return request, ("local", 0)
