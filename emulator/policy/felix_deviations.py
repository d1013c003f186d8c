"""Where Felix does not do what the APIs say.

- What a pod sends to its own node is judged by its egress policies (``cali-wl-to-host`` comes before
  DefaultEndpointToHostAction), while the API has a pod and its node always talk. The other way, Felix judges nothing.
- UDP to port 4789 and IP-in-IP from pods are dropped before any policy.
- AdminNetworkPolicy and BaselineAdminNetworkPolicy are not read by the current release, ClusterNetworkPolicy is.
- A pod that reaches itself through its Service is judged as any other peer. The API leaves that open.

Sources: projectcalico/calico felix/rules/static.go (filterWorkloadToHostChain), endpoints.go; kubernetes/api
networking/v1 types.go; kubernetes/kubernetes issues 95879, 125611.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from emulator.policy.compiled import Compiled
from emulator.policy.enforcer import Deviation, PolicyMode
from emulator.policy.evaluate import evaluate, judge, protocol_number
from emulator.policy.felix_endpoints import VXLAN_PORT
from emulator.policy.flow import Flow
from emulator.policy.model import PolicyKind

_UDP, _IPIP = 17, 4

OWN_NODE = Deviation(
    what="what a pod sends to its own node is judged by its egress policies, though the API always lets it pass",
    source="projectcalico/calico felix/rules/static.go filterWorkloadToHostChain",
)
TUNNELLED = Deviation(
    what=f"UDP to port {VXLAN_PORT} and IP-in-IP packets from pods are dropped, whatever policies say",
    source="projectcalico/calico felix/rules/endpoints.go",
)
HAIRPIN = Deviation(
    what="a pod that reaches itself through its Service is judged like any other peer; the API leaves that open",
    source="kubernetes/kubernetes#95879",
)


def deviations_of(compiled: Compiled, kinds: Collection[PolicyKind], mode: PolicyMode) -> Iterator[Deviation]:
    """What these policies meet of Felix's deviations. In ``spec`` mode: what is left of them."""
    for policy in compiled.policies:
        if policy.kind not in kinds:
            what = f"{policy.kind} is not read by the current Felix, which knows ClusterNetworkPolicy"
            yield Deviation(what=what, policy=policy.key, source="libcalico-go model", unenforced=True)
    judging = [policy for policy in compiled.policies if policy.kind in kinds]
    if mode == "faithful":
        if any(policy.egress is not None and compiled.selected(policy) for policy in judging):
            yield OWN_NODE
        if judging:
            yield TUNNELLED
    if compiled.cluster.services and any(compiled.selected(policy) for policy in judging):
        yield HAIRPIN


def deviation_of(
    compiled: Compiled, flow: Flow, kinds: Collection[PolicyKind], mode: PolicyMode, *, allowed: bool
) -> Deviation | None:
    """Why Felix's verdict on the flow is the opposite of ``allowed``, the specification's; None if it is the same."""
    seen = compiled.of_kinds(kinds)
    if mode == "spec":
        return None
    verdict = evaluate(seen, flow).allowed
    reason: Deviation | None = None
    if seen is not compiled and verdict != allowed:
        reason = next(deviations_of(compiled, kinds, mode), None)
    if flow.source.kind == "pod" and verdict:
        number = protocol_number(flow.protocol)
        elsewhere = flow.destination.name != flow.source.name
        pod = seen.pods.get(flow.source.name)
        to_own_node = pod is not None and flow.destination.kind == "node" and flow.destination.name == pod.node
        if elsewhere and (number == _IPIP or (number == _UDP and flow.port == VXLAN_PORT)):
            verdict, reason = False, TUNNELLED
        elif to_own_node and not _egress_allows(seen, flow):
            verdict, reason = False, OWN_NODE
    return reason if verdict != allowed else None


def _egress_allows(compiled: Compiled, flow: Flow) -> bool:
    """What the source's egress policies say of a flow to its own node, as if it were another."""
    moved = msgspec.structs.replace(compiled.pods[flow.source.name], node="")
    seen = msgspec.structs.replace(compiled, pods={**compiled.pods, flow.source.name: moved})
    return judge(seen, flow, "egress").allowed
