"""emulator.plan.render and describe: plans for people and programs."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from emulator.errors import UserError
from emulator.plan.describe import describe
from emulator.plan.model import AnyObject, FdbEntry, Route, Vxlan
from emulator.plan.render import as_json, as_text, from_json, reason


def test_a_route_reads_as_ip_route_would_print_it() -> None:
    tunnel = Route(ns="node/n1", destination="10.244.2.0/24", via="10.244.2.0", device="flannel.1", onlink=True)
    assert describe(tunnel) == "route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"
    assert describe(Route(ns="n", destination="10.0.0.0/26", type="blackhole", protocol="bird", learned=True)) == (
        "route blackhole 10.0.0.0/26 proto bird (learned)"
    )
    assert describe(Route(ns="n", destination="::/0", via="fe80::1", device="eth0")) == (
        "route default (IPv6) via fe80::1 dev eth0"
    )


def test_every_class_of_object_has_words(planned: Any) -> None:
    for kind in get_args(AnyObject):
        assert describe.dispatch(kind) is not describe.dispatch(object), kind
    for spec in ("flannel", "calico"):
        for item in planned(spec, wire_accurate=True).plan:
            assert "\n" not in describe(item)
            assert reason(item), describe(item)


def test_text_groups_by_namespace_and_stands_in_flanneld_s_order(planned: Any) -> None:
    text = as_text(planned("flannel").plan, ("node/n1",))
    order = [text.index(word) for word in ("vxlan flannel.1", "neighbour 10.244.2.0", "fdb", "route 10.244.2.0/24")]
    assert order == sorted(order)
    assert "flanneld: pods of n2, through the tunnel" in text
    assert "-A FLANNEL-FWD -s 10.244.0.0/16" in text
    assert "node/n2" not in text


@pytest.mark.parametrize("spec", ["flannel", "calico"])
def test_json_and_back_is_the_same_plan(planned: Any, spec: str) -> None:
    plan = planned(spec, wire_accurate=True).plan
    assert from_json(as_json(plan)) == plan


def test_json_names_its_schema_and_leaves_defaults_out(planned: Any) -> None:
    document = json.loads(as_json(planned("flannel").plan))
    assert document["schema"] == "cnilab.plan/v1"
    tunnel = next(item for item in document["fragments"]["node/n1"] if item["kind"] == Vxlan.__name__)
    assert tunnel["vni"] == 1
    assert "learning" not in tunnel
    assert any(item["kind"] == FdbEntry.__name__ for item in document["fragments"]["node/n1"])


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": "other/v1", "style": "", "topology": "", "fragments": {}}']
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        from_json(text)
