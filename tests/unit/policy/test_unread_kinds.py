"""A policy of a kind that the real project does not read has no effect, and that is what is told of its verdicts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emulator.cni.styles import load_style
from emulator.policy import weave
from emulator.policy.enforcer import Enforcer, PolicyMode
from emulator.policy.flow import Flow
from tests.policy.judging import Judge

DENIAL = """
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: closed}
spec:
  priority: 1
  subject: {namespaces: {matchLabels: {team: x}}}
  ingress:
    - action: Deny
      from: [{namespaces: {matchLabels: {team: y}}}]
"""
OTHER = """---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: own, namespace: x}
spec:
  podSelector: {}
  ingress: [{from: [{namespaceSelector: {}}]}]
"""


@pytest.mark.parametrize("beside", ["", OTHER], ids=["alone", "beside another"])
@pytest.mark.parametrize(
    ("load", "told"),
    [
        (load_style("calico").enforcer, "AdminNetworkPolicy is not read"),
        (load_style("kube-router").enforcer, "kube-router does not read AdminNetworkPolicy"),
        (weave.load, "weave-npc does not read AdminNetworkPolicy"),
    ],
    ids=["felix", "kube-router", "weave-npc"],
)
def test_its_denial_does_not_hold_and_the_kind_is_why(
    load: Callable[[PolicyMode], Enforcer | None], told: str, beside: str
) -> None:
    judge, enforcer = Judge(DENIAL + beside), load("faithful")
    assert enforcer is not None
    flow = Flow(judge.end("y/a"), judge.end("x/a"), "TCP", 80)
    assert not judge.allows("y/a", "x/a")
    deviation = enforcer.deviates(judge.compiled, flow, allowed=False)
    assert deviation is not None
    assert deviation.what.startswith(told)
    assert deviation.unenforced
    other = Flow(judge.end("z/a"), judge.end("x/a"), "TCP", 80)
    assert enforcer.deviates(judge.compiled, other, allowed=True) is None
