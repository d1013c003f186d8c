"""emulator.cni.policy_notes: no policy is without effect unsaid, and no deviation either."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.cni.policy_notes import PolicyNotes
from emulator.cni.styles import load_style
from emulator.policy.enforcement import enforce
from emulator.policy.enforcer import PolicyMode
from tests.policy.worlds import policy as network_policy


def policy(name: str, **spec: Any) -> dict[str, Any]:
    return network_policy("default", name, **spec)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("flannel", "(flanneld has no policies; Canal is flannel with Calico's)"),
        ("aws-vpc", "(its network policy agent works by eBPF, which is not emulated yet)"),
    ],
)
def test_policies_that_nobody_enforces_are_said_in_one_line(planned: Any, spec: str, why: str) -> None:
    made = planned(spec, "single-node", objects=tuple(policy(f"p{number}") for number in range(5)))
    (line,) = PolicyNotes(made.style).labels(made.cluster, None)
    assert line == (
        f"NO POLICY IS ENFORCED: under {spec} nothing makes NetworkPolicy default/p0, NetworkPolicy default/p1, "
        f"NetworkPolicy default/p2 and 2 more hold {why}"
    )
    assert line.isascii()  # it travels in a header


def test_without_policies_there_is_nothing_to_say(planned: Any) -> None:
    made = planned("flannel", "single-node")
    notes = PolicyNotes(made.style)
    assert (notes.labels(made.cluster, None), notes.notices(made.cluster, None)) == ((), ())


@pytest.mark.parametrize("mode", ["faithful", "spec"])
def test_what_an_enforcer_does_otherwise_is_told_with_the_policies_it_meets(planned: Any, mode: PolicyMode) -> None:
    both = {"policyTypes": ["Ingress", "Egress"], "ingress": [{}]}
    made = planned("kube-router", "single-node", objects=(policy("a", **both), policy("b", **both), policy("c")))
    enforcer = load_style("kube-router").enforcer(mode)
    assert enforcer is not None
    notices = PolicyNotes(made.style).notices(made.cluster, enforce(enforcer, made.cluster))
    if mode == "spec":
        assert notices == ()
        return
    icmp, own_node, shared = notices
    assert icmp.startswith("policies: ICMP echo requests and errors pass whatever the policies say (")
    assert own_node.startswith("policies: egress policies judge what a pod sends to its own node")
    assert shared.endswith("pkg/controllers/netpol/pod.go): NetworkPolicy default/a, NetworkPolicy default/b")
