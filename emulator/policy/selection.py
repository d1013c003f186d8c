"""Which pods, namespaces and network sets a selector means.

What selectors see of a pod: its labels, those of its namespace, and those of its service account. Calico's expressions
also see the labels that Calico itself gives an endpoint. Sources: apimachinery labels/selector.go (Requirement.Matches)
and projectcalico/calico libcalico-go/lib/backend/k8s/conversion/workload_endpoint_default.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from emulator.cluster.calico_selectors import Selector as Test
from emulator.cluster.calico_selectors import parse_selector
from emulator.cluster.model import Pod
from emulator.policy.model import Expression, LabelSelector, NetworkSet, PodSet, Requirement, Selector

Labels = Mapping[str, str]
NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"
ACCOUNT_LABEL = "projectcalico.org/serviceaccount"
NAME_LABEL = "projectcalico.org/name"  # Calico gives it to namespaces and service accounts


@cache
def test_of(selector: Selector) -> Test:
    """The test that a selector is. Raises ValueError for a Calico expression that is none."""
    if isinstance(selector, Expression):
        return parse_selector(selector.text)
    requirements = selector.requirements
    return lambda labels: all(_holds(requirement, labels) for requirement in requirements)


def selects(selector: Selector | None, labels: Labels) -> bool:
    """Whether the selector fits the labels; none given fits all."""
    return selector is None or selector == LabelSelector() or test_of(selector)(labels)


def contains(pods: PodSet, pod: Pod, namespace: Labels, account: Labels) -> bool:
    """Whether a pod is in the set, given the labels of its namespace and of its service account."""
    if pod.host_network or pods.global_only or (pods.namespace and pods.namespace != pod.namespace):
        return False
    if pods.account_names and pod.service_account not in pods.account_names:
        return False
    return (
        selects(pods.pods, endpoint_labels(pod) if isinstance(pods.pods, Expression) else pod.labels)
        and selects(pods.namespaces, _named(pods.namespaces, pod.namespace, namespace))
        and selects(pods.accounts, _named(pods.accounts, pod.service_account, account))
    )


def contains_set(pods: PodSet, one: NetworkSet, namespace: Labels) -> bool:
    """Whether the CIDRs of a Calico network set belong to ``pods``; ``namespace`` are its namespace's labels."""
    if not pods.network_sets or pods.accounts is not None or pods.account_names:
        return False
    if (pods.namespace and pods.namespace != one.namespace) or (pods.global_only and one.namespace):
        return False
    given = pods.namespaces is not None
    if given and not (one.namespace and selects(pods.namespaces, _named(pods.namespaces, one.namespace, namespace))):
        return False
    own = {**one.labels, NAMESPACE_LABEL: one.namespace} if one.namespace else one.labels
    return selects(pods.pods, own)


def endpoint_labels(pod: Pod) -> dict[str, str]:
    """The labels that Calico's selectors see on the endpoint of a pod."""
    return {
        **pod.labels,
        NAMESPACE_LABEL: pod.namespace,
        ORCHESTRATOR_LABEL: "k8s",
        ACCOUNT_LABEL: pod.service_account,
    }


def _named(selector: Selector | None, name: str, labels: Labels) -> Labels:
    return {**labels, NAME_LABEL: name} if isinstance(selector, Expression) else labels


def _holds(requirement: Requirement, labels: Labels) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
    return value is None
