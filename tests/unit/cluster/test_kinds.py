"""Kinds by their names, and the field tables behind them."""

from __future__ import annotations

import pytest

from emulator.cluster.kinds import KINDS, Kind, kind_of, plural, resource
from emulator.cluster.schema import field_faults, kubernetes_release, upstream_kind
from emulator.errors import NotFound


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ("po", "Pod"),
        ("pod", "Pod"),
        ("pods", "Pod"),
        ("Pod", "Pod"),
        ("deploy", "Deployment"),
        ("deployments.apps", "Deployment"),
        ("deployment.v1.apps", "Deployment"),
        ("netpol", "NetworkPolicy"),
        ("ns", "Namespace"),
        ("crd", "CustomResourceDefinition"),
    ],
)
def test_a_kind_is_found_by_each_of_its_names(argument: str, kind: str) -> None:
    assert resource(argument).kind == kind


@pytest.mark.parametrize(
    ("argument", "group"),
    [
        ("networkpolicies", "networking.k8s.io"),
        ("networkpolicies.projectcalico.org", "projectcalico.org"),
        ("networkpolicy.v3.projectcalico.org", "projectcalico.org"),
        ("node", ""),
    ],
)
def test_namesakes_are_told_by_their_group(argument: str, group: str) -> None:
    assert resource(argument).group == group


def test_an_unknown_name_is_answered_as_kubectl_does() -> None:
    with pytest.raises(NotFound, match=r'server doesn.t have a resource type "podz", did you mean "pods"\?'):
        resource("podz")


def test_no_two_kinds_share_a_name() -> None:
    names = [name for kind in KINDS for name in {kind.plural, kind.singular, *kind.short_names}]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if upstream_kind(kind.api_version, kind.kind)])
def test_plural_and_scope_are_those_of_upstream(kind: Kind) -> None:
    entry = upstream_kind(kind.api_version, kind.kind)
    assert entry is not None
    assert (kind.plural, kind.namespaced) == (entry.plural, entry.namespaced)


def test_custom_kinds_get_a_plural_and_are_not_known() -> None:
    kind = kind_of("example.com/v1", "Gadget")
    assert (kind.plural, kind.group, kind.known) == ("gadgets", "example.com", False)
    assert [plural(word) for word in ("policy", "class", "gateway", "mesh")] == [
        "policies",
        "classes",
        "gateways",
        "meshes",
    ]


def test_an_older_version_of_a_known_kind_is_that_kind() -> None:
    kind = kind_of("autoscaling/v1", "HorizontalPodAutoscaler")
    assert (kind.api_version, kind.known) == ("autoscaling/v1", True)


def test_every_upstream_kind_compiles_and_accepts_its_least_object() -> None:
    from emulator.cluster.schema import _tables

    for name, entry in _tables().kinds.items():
        group_version, _, kind = name.lstrip("/").rpartition("/")
        faults = field_faults({"apiVersion": group_version, "kind": kind, "metadata": {"name": "x"}}, entry)
        assert all(reason == "Required value" for _, reason in faults), (name, faults)
        assert field_faults({"metadata": {"name": "x"}, "nonsense": 1}, entry), name


def test_the_tables_say_which_kubernetes_they_are_from() -> None:
    assert kubernetes_release().startswith("1.")
