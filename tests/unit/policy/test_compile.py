"""Compiling step by step: what changed is judged anew, and everything else is the same object again."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.errors import ManifestError
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from tests.policy.judging import BASE, Judge, relabelled

DENY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "deny", "namespace": "x"},
    "spec": {"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"from": [{"namespaceSelector": {}}]}]},
}
OTHER: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "other", "namespace": "y"},
    "spec": {"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "z"}}}]}]},
}
POD_XA = next(one for one in BASE if one["kind"] == "Pod" and one["metadata"]["namespace"] == "x")


def judge() -> Judge:
    return Judge(more=(DENY, OTHER))


def same_as_fresh(compiled: Compiled) -> bool:
    fresh = compile_policies(compiled.cluster)
    return (fresh.members, fresh.ingress, fresh.egress) == (compiled.members, compiled.ingress, compiled.egress)


def test_same_cluster_is_the_same_compiled() -> None:
    one = judge()
    assert compile_policies(one.cluster, one.compiled) is one.compiled


def test_relabelled_pod_leaves_and_joins_and_all_else_stays() -> None:
    one = judge()
    before = one.compiled
    after = one.then(relabelled(POD_XA, app="c"))
    assert after.of_pod("x/a", "ingress") == ()
    assert before.of_pod("x/a", "ingress")[0].key == "NetworkPolicy x/deny"
    assert after.policies is before.policies
    assert after.ingress["y/a"] is before.ingress["y/a"]
    changed = [sets for sets, members in after.members.items() if before.members[sets] is not members]
    assert changed == [after.policies[0].subject if after.policies[0].namespace == "x" else after.policies[1].subject]
    assert same_as_fresh(after)


def test_relabelled_namespace_changes_who_is_a_peer() -> None:
    one = judge()
    assert one.reaching("y/a") == {"z/a", "z/b"}
    after = one.then(relabelled(next(thing for thing in BASE if thing["metadata"]["name"] == "z"), team="q"))
    assert one.reaching("y/a") == set()
    assert same_as_fresh(after)


def test_changed_policy_leaves_the_others_alone() -> None:
    one = judge()
    before = one.compiled
    after = one.then({**OTHER, "spec": {}})
    assert [policy.name for policy in after.policies if policy not in before.policies] == ["other"]
    kept = {policy.name: policy for policy in before.policies}
    assert next(policy for policy in after.policies if policy.name == "deny") is kept["deny"]
    assert after.ingress["x/a"] is before.ingress["x/a"]


def test_service_accounts_labels_are_live() -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "y"}}
    policy: dict[str, Any] = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "g"},
        "spec": {"serviceAccountSelector": "role == 'web'", "types": ["Ingress"]},
    }
    one = Judge(more=(account, policy))
    assert one.compiled.ingress == {}
    after = one.then(relabelled(account, role="web"))
    assert set(after.ingress) == {"y/a", "y/b"}
    assert same_as_fresh(after)


def test_policy_of_an_unknown_tier_is_refused() -> None:
    policy = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "g"},
        "spec": {"tier": "gone"},
    }
    with pytest.raises(ManifestError, match=r"spec\.tier: .*there is no such Tier"):
        Judge(more=(policy,))
