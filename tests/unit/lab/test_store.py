"""The store behaves as the API server's storage does."""

from __future__ import annotations

import threading
import time

import pytest

from emulator.lab.store import HISTORY, Expired, Ref, Store, ref_of


def pod(name: str, **spec: object) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def test_object_keeps_its_uid_while_its_version_and_generation_grow() -> None:
    store = Store()
    store.commit([pod("a")])
    first = store.get(Ref("", "Pod", "default", "a"))
    store.commit([pod("a", nodeName="n1")])
    second = store.get(Ref("", "Pod", "default", "a"))
    assert first is not None
    assert second is not None
    assert first["metadata"]["uid"] == second["metadata"]["uid"]
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    assert (first["metadata"]["generation"], second["metadata"]["generation"]) == (1, 2)


def test_put_that_says_nothing_new_is_no_event() -> None:
    store = Store()
    store.commit([pod("a")])
    version = store.version
    assert store.commit([pod("a")]) == []
    assert store.version == version


def test_what_was_handed_in_is_not_shared_with_the_store() -> None:
    store = Store()
    given = pod("a", nodeName="n1")
    store.commit([given])
    given["spec"] = {"nodeName": "elsewhere"}
    held = store.get(Ref("", "Pod", "default", "a"))
    assert held is not None
    assert held["spec"] == {"nodeName": "n1"}


def test_list_is_sorted_and_limited_to_a_namespace() -> None:
    store = Store()
    other = pod("z")
    other["metadata"] = {"name": "z", "namespace": "shop"}
    store.commit([other, pod("b"), pod("a")])
    assert [obj["metadata"]["name"] for obj in store.select("", "Pod")] == ["a", "b", "z"]
    assert [obj["metadata"]["name"] for obj in store.select("", "Pod", "shop")] == ["z"]


def test_list_is_without_what_was_deleted_and_with_what_came_again() -> None:
    store = Store()
    store.commit([pod("a"), pod("b")])
    store.commit(deletes=[ref_of(pod("a")), ref_of(pod("b"))])
    assert store.select("", "Pod") == []
    store.commit([pod("b")])
    assert [obj["metadata"]["name"] for obj in store.select("", "Pod")] == ["b"]


def test_versions_of_one_group_name_the_same_object() -> None:
    beta = {"apiVersion": "apps/v1beta1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"}}
    assert ref_of(beta) == ref_of({**beta, "apiVersion": "apps/v1"})


def test_watch_delivers_what_came_before_and_after_it_started_in_order() -> None:
    store = Store()
    store.commit([pod("a")])
    seen: list[tuple[str, str]] = []

    def follow() -> None:
        for event in store.watch(0, time.monotonic() + 5):
            seen.append((event.type, event.ref.name))
            if len(seen) == 4:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    store.commit([pod("b")])
    store.commit([pod("a", nodeName="n1")])
    store.commit(deletes=[Ref("", "Pod", "default", "b")])
    thread.join(5)
    assert seen == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


def test_watch_from_a_forgotten_version_is_refused() -> None:
    store = Store()
    for number in range(HISTORY + 2):
        store.commit([pod("a", number=number)])
    with pytest.raises(Expired):
        next(store.watch(1, time.monotonic()))
