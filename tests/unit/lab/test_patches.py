"""Patches as the API server applies them."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.lab.patches import merge, strategic_merge

POD = {
    "metadata": {"labels": {"app": "web", "tier": "front"}, "finalizers": ["a"]},
    "spec": {
        "containers": [
            {"name": "web", "image": "x", "ports": [{"containerPort": 80, "name": "http"}], "args": ["a", "b"]},
            {"name": "side", "image": "y"},
        ],
        "tolerations": [{"key": "k"}],
    },
}


@pytest.mark.parametrize(
    ("patch", "result"),
    [
        ({"a": {"b": 2}}, {"a": {"b": 2, "c": [1, 2]}}),
        ({"a": {"b": None}}, {"a": {"c": [1, 2]}}),
        ({"a": {"c": [3]}}, {"a": {"b": 1, "c": [3]}}),
        ({"a": None, "d": 1}, {"d": 1}),
        ({"a": 5}, {"a": 5}),
        ([1], [1]),
    ],
)
def test_merge_patch(patch: Any, result: Any) -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}}, patch) == result


def patched(patch: dict[str, Any]) -> Any:
    before = repr(POD)
    result = strategic_merge(POD, patch)
    assert repr(POD) == before, "the patch changed what it was applied to"
    return result


def containers(*changes: dict[str, Any]) -> Any:
    return patched({"spec": {"containers": list(changes)}})["spec"]["containers"]


def test_containers_are_merged_by_name() -> None:
    web, side = containers({"name": "web", "image": "z"})
    assert (web["image"], web["ports"], side["image"]) == ("z", POD["spec"]["containers"][0]["ports"], "y")  # type: ignore[index]


def test_new_container_is_added_at_the_end() -> None:
    assert [item["name"] for item in containers({"name": "third"})] == ["web", "side", "third"]


def test_container_is_deleted_by_directive() -> None:
    assert [item["name"] for item in containers({"name": "web", "$patch": "delete"})] == ["side"]


def test_list_is_replaced_by_directive() -> None:
    assert containers({"$patch": "replace"}, {"name": "only"}) == [{"name": "only"}]


def test_ports_are_merged_by_number() -> None:
    (web, _) = containers({"name": "web", "ports": [{"containerPort": 80, "name": "www"}, {"containerPort": 81}]})
    assert web["ports"] == [{"containerPort": 80, "name": "www"}, {"containerPort": 81}]


@pytest.mark.parametrize(("field", "value"), [("args", ["c"]), ("image", "q")])
def test_other_fields_of_a_container_are_replaced(field: str, value: Any) -> None:
    assert containers({"name": "web", field: value})[0][field] == value


def test_lists_without_a_merge_key_are_replaced() -> None:
    assert patched({"spec": {"tolerations": [{"key": "l"}]}})["spec"]["tolerations"] == [{"key": "l"}]


def test_plain_lists_are_merged_and_cut_by_directive() -> None:
    assert patched({"metadata": {"finalizers": ["b"]}})["metadata"]["finalizers"] == ["a", "b"]
    assert patched({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}})["metadata"]["finalizers"] == []


def test_null_removes_and_order_hints_are_ignored() -> None:
    patch = {"metadata": {"labels": {"tier": None}}, "spec": {"$setElementOrder/containers": [{"name": "web"}]}}
    assert patched(patch)["metadata"]["labels"] == {"app": "web"}
    assert patched(patch)["spec"] == POD["spec"]
