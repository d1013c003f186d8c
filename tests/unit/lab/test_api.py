"""The API answers as the API server does: same codes, same reasons, same objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from emulator.lab.api import Api, Stream
from emulator.lab.runtime import Runtime

PODS = "/api/v1/namespaces/default/pods"
POD = {
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}]}]},
}
MERGE = {"Content-Type": "application/merge-patch+json"}
STRATEGIC = {"content-type": "application/strategic-merge-patch+json"}
APPLY = {"Content-Type": "application/apply-patch+yaml"}


@pytest.fixture
def api(runtime: Runtime) -> Api:
    return Api(runtime, [("POST", "/cnilab/v1/things/{id}", lambda path, _query, _body: path)])


def call(api: Api, method: str, target: str, data: Any = None, headers: dict[str, str] | None = None) -> Any:
    body = data if isinstance(data, bytes) else b"" if data is None else json.dumps(data).encode()
    code, answer = api.handle(method, target, body, headers or {})
    return code, answer if isinstance(answer, Stream) else json.loads(json.dumps(answer))


def code_and_reason(answer: tuple[int, Any]) -> tuple[int, str]:
    code, status = answer
    assert status["kind"] == "Status"
    assert status["code"] == code
    assert status["status"] == "Failure"
    assert status["message"]
    return code, status["reason"]


def watch(api: Api, target: str) -> Iterator[Any]:
    code, stream = call(api, "GET", target)
    assert code == 200
    assert isinstance(stream, Stream)
    return (json.loads(line) for line in stream.chunks if line)


@pytest.mark.parametrize(
    ("method", "target", "data", "headers", "expected"),
    [
        ("GET", "/", None, {}, (404, "NotFound")),
        ("GET", "/api/v2/pods", None, {}, (404, "NotFound")),
        ("GET", "/apis/apps/v1beta1/deployments", None, {}, (404, "NotFound")),
        ("GET", "/apis/apps/v1/pods", None, {}, (404, "NotFound")),
        ("GET", f"{PODS}/nobody", None, {}, (404, "NotFound")),
        ("GET", "/api/v1/pods/n1-p1", None, {}, (404, "NotFound")),
        ("GET", "/api/v1/namespaces/default/nodes", None, {}, (404, "NotFound")),
        ("POST", "/api/v1/namespaces/nowhere/pods", POD, {}, (404, "NotFound")),
        ("PUT", f"{PODS}/web", POD, {}, (404, "NotFound")),
        ("PATCH", f"{PODS}/web", POD, MERGE, (404, "NotFound")),
        ("POST", "/api/v1/pods", POD, {}, (405, "MethodNotAllowed")),
        ("DELETE", "/api/v1/pods", None, {}, (405, "MethodNotAllowed")),
        ("PUT", PODS, POD, {}, (405, "MethodNotAllowed")),
        ("POST", f"{PODS}/web", POD, {}, (405, "MethodNotAllowed")),
        ("GET", "/cnilab/v1/things/1", None, {}, (405, "MethodNotAllowed")),
        ("POST", "/version", None, {}, (405, "MethodNotAllowed")),
        ("POST", PODS, b"{", {}, (400, "BadRequest")),
        ("POST", PODS, b"[" * 100_000, {}, (400, "BadRequest")),
        ("POST", PODS, b"\xff\xfe", {}, (400, "BadRequest")),
        ("POST", PODS, None, {}, (400, "BadRequest")),
        ("POST", PODS, [POD], {}, (400, "BadRequest")),
        ("POST", PODS, {**POD, "metadata": "web"}, {}, (400, "BadRequest")),
        ("POST", PODS, {**POD, "kind": "Node"}, {}, (400, "BadRequest")),
        ("POST", PODS, {**POD, "metadata": {"name": "a", "namespace": "b"}}, {}, (400, "BadRequest")),
        ("GET", f"{PODS}?labelSelector={quote('a b')}", None, {}, (400, "BadRequest")),
        ("GET", f"{PODS}?watch=1&resourceVersion=x", None, {}, (400, "BadRequest")),
        ("GET", f"{PODS}?watch=1&timeoutSeconds=x", None, {}, (400, "BadRequest")),
        ("GET", f"{PODS}?watch=1&labelSelector={quote('a b')}", None, {}, (400, "BadRequest")),
        ("POST", PODS, {**POD, "metadata": {}}, {}, (422, "Invalid")),
        ("POST", PODS, {**POD, "metadata": {"name": "../x"}}, {}, (422, "Invalid")),
        ("POST", PODS, {**POD, "spec": {"containers": "no"}}, {}, (422, "Invalid")),
        ("GET", f"{PODS}?watch=1&sendInitialEvents=true", None, {}, (422, "Invalid")),
        ("POST", PODS, POD, {"Content-Type": "application/vnd.kubernetes.protobuf"}, (415, "UnsupportedMediaType")),
        ("PATCH", f"{PODS}/n1-p1", [], {"Content-Type": "application/json-patch+json"}, (415, "UnsupportedMediaType")),
        ("GET", PODS, None, {"Accept": "application/vnd.kubernetes.protobuf"}, (406, "NotAcceptable")),
        ("DELETE", "/api/v1/namespaces/default", None, {}, (403, "Forbidden")),
        ("DELETE", "/api/v1/nodes/n1", None, {}, (403, "Forbidden")),
        ("PATCH", f"{PODS}/n1-p1", {"metadata": {"labels": {"a": "b"}}}, MERGE, (403, "Forbidden")),
    ],
)
def test_refusal(
    api: Api, runtime: Runtime, method: str, target: str, data: Any, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    version = runtime.store.version
    assert code_and_reason(call(api, method, target, data, headers)) == expected
    assert runtime.store.version == version


def test_object_is_created_read_replaced_and_deleted(api: Api) -> None:
    code, created = call(api, "POST", PODS, POD)
    assert (code, created["status"]["podIP"], created["metadata"]["generation"]) == (201, "10.244.1.3", 1)
    assert code_and_reason(call(api, "POST", PODS, POD)) == (409, "AlreadyExists")
    assert call(api, "GET", f"{PODS}/web") == (200, created)
    created["metadata"]["labels"]["tier"] = "front"
    code, replaced = call(api, "PUT", f"{PODS}/web", created)
    assert (code, replaced["metadata"]["labels"]) == (200, {"app": "web", "tier": "front"})
    assert code_and_reason(call(api, "PUT", f"{PODS}/web", created)) == (409, "Conflict")
    code, status = call(api, "DELETE", f"{PODS}/web")
    assert (code, status["status"]) == (200, "Success")
    assert code_and_reason(call(api, "GET", f"{PODS}/web"))[0] == 404


@pytest.mark.parametrize("headers", [MERGE, STRATEGIC])
def test_object_is_patched(api: Api, headers: dict[str, str]) -> None:
    call(api, "POST", PODS, POD)
    code, patched = call(api, "PATCH", f"{PODS}/web", {"metadata": {"labels": {"app": None, "v": "2"}}}, headers)
    assert (code, patched["metadata"]["labels"]) == (200, {"v": "2"})
    stale = {"metadata": {"resourceVersion": "1", "labels": {"v": "3"}}}
    assert code_and_reason(call(api, "PATCH", f"{PODS}/web", stale, headers)) == (409, "Conflict")


def test_apply_patch_is_yaml_and_creates(api: Api) -> None:
    text = b"metadata: {name: web}\nspec:\n  containers: [{name: c, image: x}]\n"
    assert call(api, "PATCH", f"{PODS}/web", text, APPLY)[0] == 201
    assert call(api, "PATCH", f"{PODS}/web", text, APPLY)[0] == 200


def test_generated_names_differ(api: Api) -> None:
    given = {**POD, "metadata": {"generateName": "job-"}}
    names = {call(api, "POST", PODS, given)[1]["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("job-") for name in names)


def test_deletion_with_another_uid_as_precondition_is_a_conflict(api: Api) -> None:
    call(api, "POST", PODS, POD)
    answer = call(api, "DELETE", f"{PODS}/web", {"preconditions": {"uid": "another"}})
    assert code_and_reason(answer) == (409, "Conflict")


def test_collection_is_deleted_by_selector(api: Api) -> None:
    call(api, "POST", PODS, POD)
    call(api, "POST", PODS, {**POD, "metadata": {"name": "db", "labels": {"app": "db"}}})
    assert call(api, "DELETE", f"{PODS}?labelSelector=app%3Dweb")[0] == 200
    names = [item["metadata"]["name"] for item in call(api, "GET", PODS)[1]["items"]]
    assert names == ["db", "n1-p1", "n2-p1"]


def test_list_is_of_one_namespace_or_all_and_carries_its_version(api: Api, runtime: Runtime) -> None:
    call(api, "POST", "/api/v1/namespaces", {"metadata": {"name": "shop"}})
    call(api, "POST", "/api/v1/namespaces/shop/pods", POD)
    _, everywhere = call(api, "GET", "/api/v1/pods?fieldSelector=metadata.name%3Dweb")
    assert [item["metadata"]["namespace"] for item in everywhere["items"]] == ["shop"]
    assert (everywhere["kind"], everywhere["metadata"]["resourceVersion"]) == ("PodList", str(runtime.store.version))
    assert [item["metadata"]["name"] for item in call(api, "GET", PODS)[1]["items"]] == ["n1-p1", "n2-p1"]


def test_kind_that_only_a_manifest_told_of_is_found_by_its_plural(api: Api, runtime: Runtime) -> None:
    runtime.apply([{"apiVersion": "acme.io/v1", "kind": "Policy", "metadata": {"name": "p", "namespace": "default"}}])
    _, found = call(api, "GET", "/apis/acme.io/v1/namespaces/default/policies")
    assert [item["metadata"]["name"] for item in found["items"]] == ["p"]


def test_watch_begins_with_what_is_there(api: Api) -> None:
    events = watch(api, f"{PODS}?watch=1&timeoutSeconds=0.01")
    assert [(event["type"], event["object"]["metadata"]["name"]) for event in events] == [
        ("ADDED", "n1-p1"),
        ("ADDED", "n2-p1"),
    ]


def test_watch_from_a_version_tells_every_change_in_order(api: Api, runtime: Runtime) -> None:
    version = runtime.store.version
    call(api, "POST", PODS, POD)
    call(api, "PATCH", f"{PODS}/web", {"metadata": {"labels": {"app": "db"}}}, MERGE)
    call(api, "DELETE", f"{PODS}/web")
    events = list(watch(api, f"{PODS}?watch=true&resourceVersion={version}&timeoutSeconds=0.01"))
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))


def test_watcher_with_a_selector_sees_what_leaves_it_go(api: Api, runtime: Runtime) -> None:
    version = runtime.store.version
    call(api, "POST", PODS, POD)
    call(api, "PATCH", f"{PODS}/web", {"metadata": {"labels": {"app": "db"}}}, MERGE)
    call(api, "PATCH", f"{PODS}/web", {"metadata": {"labels": {"app": "web"}}}, MERGE)
    target = f"{PODS}?watch=1&resourceVersion={version}&timeoutSeconds=0.01&labelSelector=app%3Dweb"
    assert [event["type"] for event in watch(api, target)] == ["ADDED", "DELETED", "ADDED"]


def test_watch_from_a_forgotten_version_is_told_that_it_expired(api: Api, runtime: Runtime) -> None:
    from emulator.lab import store

    for number in range(store.HISTORY + 10):
        obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default", "n": number}}
        runtime.store.commit([obj])
    (event,) = watch(api, f"{PODS}?watch=1&resourceVersion=1&timeoutSeconds=1")
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_discovery_lists_groups_and_kinds(api: Api) -> None:
    groups = [group["name"] for group in call(api, "GET", "/apis")[1]["groups"]]
    assert "apps" in groups
    resources = {item["name"]: item for item in call(api, "GET", "/api/v1")[1]["resources"]}
    assert resources["pods"]["namespaced"] is True
    assert resources["nodes"]["namespaced"] is False
    assert call(api, "GET", "/version")[0] == 200


def test_verb_gets_the_fields_of_its_path(api: Api) -> None:
    assert call(api, "POST", "/cnilab/v1/things/a%2Fb") == (404, call(api, "POST", "/cnilab/v1/things/a/b")[1])
    assert call(api, "POST", "/cnilab/v1/things/7") == (200, {"id": "7"})
