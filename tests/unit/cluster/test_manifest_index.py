"""An index that is taken over from change to change finds what one made anew would."""

from __future__ import annotations

import random
from typing import Any

from emulator.cluster.manifest_index import Manifests, of_kinds

KINDS = [
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("serving.knative.dev/v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("v1", "Pod"),
    ("apps/v1", "Deployment"),
]


def thing(kind: tuple[str, str], number: int) -> dict[str, Any]:
    return {"apiVersion": kind[0], "kind": kind[1], "metadata": {"name": f"t{number}"}}


def same(found: Any, wanted: list[dict[str, Any]]) -> bool:
    return [id(one) for one in found] == [id(one) for one in wanted]


def check(index: Manifests, objects: list[dict[str, Any]]) -> None:
    assert same(index, objects)
    for kinds in ([kind] for kind in KINDS):
        wanted = [one for one in objects if (one["apiVersion"], one["kind"]) in kinds]
        assert same(index.of(*kinds), wanted)
        assert same(of_kinds(objects, *kinds), wanted)
    both = (KINDS[3], KINDS[0])
    assert same(index.of(*both), [one for one in objects if (one["apiVersion"], one["kind"]) in both])
    assert same(index.named(["Service", "Pod"]), [one for one in objects if one["kind"] in ("Service", "Pod")])
    assert same(index.others(["Service", "Pod"]), [one for one in objects if one["kind"] not in ("Service", "Pod")])


def test_taking_over_makes_no_difference() -> None:
    chance = random.Random(7)
    objects: list[dict[str, Any]] = []
    index = Manifests.following(objects)
    for number in range(300):
        objects = list(objects)
        for _ in range(chance.randint(1, 3)):
            kind = chance.choice(KINDS)
            match chance.randrange(4):
                case 0 if len(objects) > 5:
                    del objects[chance.randrange(len(objects))]
                case 1:
                    objects.insert(chance.randint(0, len(objects)), thing(kind, number))
                case 2 if objects:
                    objects[chance.randrange(len(objects))] = thing(kind, number)
                case _ if objects:
                    at = chance.randrange(len(objects))
                    objects[at] = dict(objects[at])
        index = Manifests.following(objects, index)
        check(index, objects)


def test_what_a_change_does_not_touch_is_the_same_tuple() -> None:
    objects = [thing(kind, number) for number, kind in enumerate(KINDS * 3)]
    index = Manifests.following(objects)
    services, maps = index.of(KINDS[0]), index.of(KINDS[1])
    changed = [*objects]
    changed[7] = dict(changed[7])  # a ConfigMap
    later = Manifests.following(changed, index)
    assert later.of(KINDS[0]) is services
    assert later.of(KINDS[1]) is not maps
    longer = Manifests.following([*changed, thing(KINDS[1], 99)], later)
    assert longer.of(KINDS[0]) is services
    assert Manifests.following(longer, longer) is longer


def test_kinds_of_one_name_are_told_apart_by_their_api() -> None:
    index = Manifests.following([thing(KINDS[0], 1), thing(KINDS[2], 2)])
    assert [one["metadata"]["name"] for one in index.of(("v1", "Service"))] == ["t1"]
