"""Selectors as Felix knows them: text in Calico's language, which sets take their names from.

A Kubernetes peer becomes such a text in three steps, which can be told from the result: its own selectors, the
namespaces that they are for, the whole as a parsed selector prints itself::

    podSelector {role: web} in namespace shop
    (projectcalico.org/namespace == 'shop') && (projectcalico.org/orchestrator == 'k8s' && role == 'web')
    (projectcalico.org/namespace == "shop" && (projectcalico.org/orchestrator == "k8s" && role == "web"))

The labels of a namespace are on its pods with ``pcns.`` before them, those of a service account with ``pcsa.``. A
matchExpression ``In`` of one value is written as the ``==`` of a matchLabel: the neutral form does not tell the two
apart.

Sources: projectcalico/calico libcalico-go/lib/backend/k8s/conversion/conversion.go (k8sSelectorToCalico),
libcalico-go/lib/backend/syncersv1/updateprocessors/rules.go (getEndpointSelector, parseServiceAccounts),
networkpolicyprocessor.go, felix/calc/rule_scanner.go (combineMatchesIfPossible).
"""

from __future__ import annotations

from functools import lru_cache

from emulator.cluster.calico_selectors import canonical
from emulator.policy.model import Expression, LabelSelector, PodSet, Policy, Requirement, Selector
from emulator.policy.selection import ACCOUNT_LABEL, NAMESPACE_LABEL, ORCHESTRATOR_LABEL

ALL = "all()"
_ORCHESTRATED = f"{ORCHESTRATOR_LABEL} == 'k8s'"
_OF_NAMESPACES, _OF_ACCOUNTS = "pcns.", "pcsa."


@lru_cache(maxsize=65536)
def endpoint_selector(pods: PodSet | None, without: PodSet | None = None) -> str:
    """The canonical text for the endpoints in ``pods`` (None: not restricted), less those in ``without``."""
    text = _combined(pods) if pods is not None else ""
    if without is not None:
        text = f"({text}) && (!({_own(without)}))" if text else _own(without)
    return canonical(text or ALL)


def subject_selector(policy: Policy) -> str:
    """A policy's selector as Felix gets it, which is not parsed and printed again before it goes into a hash."""
    subject = policy.subject
    text = _own(subject, all_pods=not policy.namespace)
    if policy.namespace:
        namespace = f"{NAMESPACE_LABEL} == '{policy.namespace}'"
        text = f"({text}) && {namespace}" if text else namespace
    elif subject.namespaces is not None:
        selected = canonical(_text(subject.namespaces, namespaces=True), _OF_NAMESPACES)
        selected = selected.replace("all()", f"has({NAMESPACE_LABEL})")
        text = f"({text}) && {selected}" if text else selected
    if accounts := _accounts(subject):
        text = f"({text}) && {accounts}" if text else accounts
    return text or ALL


def _combined(pods: PodSet) -> str:
    """GetEntityRuleSelector: the pods' own conditions, in the namespaces that are meant."""
    where = ""
    if pods.namespaces is not None:
        where = canonical(_text(pods.namespaces, namespaces=True), _OF_NAMESPACES)
        where = where.replace("all()", f"has({NAMESPACE_LABEL})").replace("global()", f"!has({NAMESPACE_LABEL})")
    elif pods.namespace:
        where = f"{NAMESPACE_LABEL} == '{pods.namespace}'"
    elif pods.global_only:
        where = f"!has({NAMESPACE_LABEL})"
    parts = [part for part in (_accounts(pods), _own(pods)) if part]
    own = f"({') && ('.join(parts)})" if len(parts) > 1 else "".join(parts)
    if where and own:
        return f"({where}) && ({own})"
    return where or own


def _own(pods: PodSet, *, all_pods: bool = False) -> str:
    """What is asked of the endpoints themselves. Kubernetes' selectors are for pods, so they ask for its orchestrator;
    Calico's are taken as they are."""
    if isinstance(pods.pods, Expression):
        return pods.pods.text
    if pods.pods is None and (all_pods or _is_calicos(pods)):
        return ""
    return _text(pods.pods)


def _is_calicos(pods: PodSet) -> bool:
    """Whether no Kubernetes policy can mean the set: then it asks for no orchestrator."""
    special = pods.network_sets or pods.global_only or pods.account_names or pods.accounts is not None
    return bool(special) or isinstance(pods.namespaces, Expression)


def _accounts(pods: PodSet) -> str:
    selected = ""
    if pods.accounts is not None:
        selected = canonical(_text(pods.accounts, namespaces=True), _OF_ACCOUNTS)
    if not pods.account_names:
        return selected
    names = canonical(f"{ACCOUNT_LABEL} in {{ {_listed(pods.account_names)} }}")
    return f"({selected}) && ({names})" if selected else names


def _text(selector: Selector | None, *, namespaces: bool = False) -> str:
    """k8sSelectorToCalico."""
    if isinstance(selector, Expression):
        return selector.text
    requirements = selector.requirements if isinstance(selector, LabelSelector) else ()
    if namespaces:
        return " && ".join(map(_requirement, requirements)) or ALL
    return " && ".join((_ORCHESTRATED, *map(_requirement, requirements)))


def _requirement(one: Requirement) -> str:
    match one.operator:
        case "In" if len(one.values) == 1:
            return f"{one.key} == '{one.values[0]}'"
        case "In":
            return f"{one.key} in {{ {_listed(one.values)} }}"
        case "NotIn":
            return f"{one.key} not in {{ {_listed(one.values)} }}"
        case "Exists":
            return f"has({one.key})"
    return f"! has({one.key})"


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)
