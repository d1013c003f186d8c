"""What is refused of policies: NetworkPolicy as the API server does, Calico's as Calico does, the cluster-wide ones."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.cluster.manifests import parse, validate
from emulator.cluster.network_policy_rules import legacy_network
from emulator.errors import ManifestError
from tests.policy.judging import Judge

KUBERNETES = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: "
CALICO = "apiVersion: projectcalico.org/v3\nkind: %s\nmetadata: {name: %s}\nspec: "
CLUSTER = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: "
BASELINE = (
    "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {name: %s}\nspec: "
)


def faults(text: str) -> set[tuple[str, str]]:
    """Field path and reason of everything that is refused."""
    try:
        parse(text)
    except ManifestError as error:
        return {(problem.path, problem.reason) for problem in error.problems}
    return set()


def port(fields: str) -> str:
    return f"{{ingress: [{{ports: [{fields}]}}]}}"


def peer(fields: str) -> str:
    return f"{{egress: [{{to: [{fields}]}}]}}"


PORT, PEER = "spec.ingress[0].ports[0]", "spec.egress[0].to[0]"


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        (port("{endPort: 90}"), f"{PORT}.endPort", "may not be specified when `port` is not specified"),
        (port("{port: web, endPort: 90}"), f"{PORT}.endPort", "may not be specified when `port` is non-numeric"),
        (port("{port: 90, endPort: 89}"), f"{PORT}.endPort", "must be greater than or equal to `port`"),
        (port("{port: 90, endPort: 65536}"), f"{PORT}.endPort", "must be between 1 and 65535, inclusive"),
        (port("{port: 0}"), f"{PORT}.port", "must be between 1 and 65535, inclusive"),
        (port("{port: '80'}"), f"{PORT}.port", "must contain at least one letter (a-z)"),
        (port("{port: a23456789-123456}"), f"{PORT}.port", "must be no more than 15 characters"),
        (port("{port: a--b}"), f"{PORT}.port", "must not contain consecutive hyphens"),
        (port("{port: -a}"), f"{PORT}.port", "must not begin or end with a hyphen"),
        (port("{port: Web}"), f"{PORT}.port", "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"),
        (port("{protocol: tcp}"), f"{PORT}.protocol",
         'Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"'),
        (port("{protocol: ''}"), f"{PORT}.protocol", "Unsupported value"),
        (peer("{}"), PEER, "Required value: must specify a peer"),
        (peer("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}"), PEER,
         "Forbidden: may not specify both ipBlock and another peer"),
        (peer("{ipBlock: {cidr: ''}}"), f"{PEER}.ipBlock.cidr", "Required value"),
        (peer("{ipBlock: {except: []}}"), f"{PEER}.ipBlock.cidr", "Required value"),
        (peer("{ipBlock: {cidr: 10.0.0.0}}"), f"{PEER}.ipBlock.cidr", "must be a valid CIDR value"),
        (peer("{ipBlock: {cidr: 10.0.0.0/33}}"), f"{PEER}.ipBlock.cidr", "must be a valid CIDR value"),
        (peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}"), f"{PEER}.ipBlock.except[0]",
         "must be a strict subset of `cidr`"),
        (peer("{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}"), f"{PEER}.ipBlock.except[1]",
         "must be a strict subset of `cidr`"),
        (peer("{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/64']}}"), f"{PEER}.ipBlock.except[0]",
         "must be a strict subset of `cidr`"),
        (peer("{podSelector: {matchLabels: {a b: c}}}"), f"{PEER}.podSelector.matchLabels", "name part must consist"),
        (peer("{podSelector: {matchLabels: {a: -b}}}"), f"{PEER}.podSelector.matchLabels", "a valid label must be"),
        (peer("{namespaceSelector: {matchExpressions: [{key: a, operator: Is}]}}"),
         f"{PEER}.namespaceSelector.matchExpressions[0].operator", "not a valid selector operator"),
        ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}", "spec.podSelector.matchExpressions[0].values",
         "must be specified when `operator` is 'In' or 'NotIn'"),
        ("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
         "spec.podSelector.matchExpressions[0].values", "may not be specified when `operator` is 'Exists'"),
        ("{podSelector: {matchExpressions: [{key: a, operator: In, values: ['b c']}]}}",
         "spec.podSelector.matchExpressions[0].values[0]", "a valid label must be"),
        ("{policyTypes: [ingress]}", "spec.policyTypes[0]",
         'Unsupported value: "ingress": supported values: "Egress", "Ingress"'),
        ("{policyTypes: [Ingress, Egress, Ingress]}", "spec.policyTypes", "may not specify more than two policyTypes"),
        ("{ingress: [{from: [{podSelector: {}, ports: [{port: 80}]}]}]}", "spec.ingress[0].from[0].ports",
         'unknown field "spec.ingress[0].from[0].ports"'),
        ("{ingress: [{to: []}]}", "spec.ingress[0].to", 'unknown field "spec.ingress[0].to"'),
    ],
)  # fmt: skip
def test_network_policy_is_refused_in_the_api_servers_words(spec: str, path: str, reason: str) -> None:
    found = faults(KUBERNETES + spec)
    assert [one for one in found if one[0] == path and reason in one[1]], found


@pytest.mark.parametrize(
    "spec",
    [
        "null", "{}", "{podSelector: null, ingress: null}", "{policyTypes: [Egress, Egress]}",
        port("{port: 80, endPort: 80}"), port("{}"), port("{protocol: null, port: 1, endPort: 65535}"),
        peer("{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.2.3/9]}}"), peer("{ipBlock: {cidr: 010.0.0.0/08}}"),
        peer("{podSelector: {}, namespaceSelector: {}}"), peer("{podSelector: {matchLabels: {a: ''}}}"),
    ],
)  # fmt: skip
def test_network_policy_that_the_api_server_takes(spec: str) -> None:
    assert faults(KUBERNETES + spec) == set()


def test_every_fault_is_told_at_once_and_duplicate_keys_are_one() -> None:
    assert len(faults(KUBERNETES + "{ingress: [{ports: [{port: 0}, {endPort: 1}]}], policyTypes: [A]}")) == 3
    assert faults(KUBERNETES + "{podSelector: {}, podSelector: {}}")


def calico(kind: str, spec: str, name: str = "a") -> str:
    return CALICO % (kind, name) + spec


RULE = "spec.ingress[0]"


@pytest.mark.parametrize(
    ("rule", "path", "reason"),
    [
        ("{action: allow}", f"{RULE}.action", "Unsupported value"),
        ("{}", f"{RULE}.action", "Required value"),
        ("{action: Allow, protocol: tcp}", f"{RULE}.protocol", "protocol name invalid"),
        ("{action: Allow, protocol: 0}", f"{RULE}.protocol", "protocol number invalid"),
        ("{action: Allow, source: {ports: [80]}}", f"{RULE}.source.ports",
         "rules that specify ports must set protocol to TCP or UDP or SCTP"),
        ("{action: Allow, protocol: ICMP, destination: {notPorts: [80]}}", f"{RULE}.destination.notPorts",
         "rules that specify ports must set protocol to TCP or UDP or SCTP"),
        ("{action: Allow, protocol: TCP, destination: {ports: ['90:80']}}", f"{RULE}.destination.ports[0]", "invalid"),
        ("{action: Allow, protocol: TCP, destination: {ports: [0]}}", f"{RULE}.destination.ports[0]", "invalid"),
        ("{action: Allow, protocol: TCP, destination: {ports: ['a b']}}", f"{RULE}.destination.ports[0]", "invalid"),
        ("{action: Allow, icmp: {type: 8}}", f"{RULE}.icmp",
         "rules that specify ICMP fields must set protocol to ICMP"),
        ("{action: Allow, protocol: ICMP, icmp: {code: 8}}", f"{RULE}.icmp.code",
         "ICMP code specified without an ICMP type"),
        ("{action: Allow, protocol: ICMP, ipVersion: 6}", f"{RULE}.ipVersion",
         "must set ipversion to '4' with protocol icmp"),
        ("{action: Allow, source: {nets: [10.0.0.1/8]}}", f"{RULE}.source.nets[0]", "invalid CIDR"),
        ("{action: Allow, source: {nets: [10.0.0.0/8]}, destination: {notNets: ['fd00::/8']}}",
         f"{RULE}.destination.notNets", "rule contains both IPv4 and IPv6 CIDRs"),
        ("{action: Allow, ipVersion: 6, source: {nets: [10.0.0.0/8]}}", f"{RULE}.source.nets",
         "rule IP version doesn't match CIDR version"),
        ("{action: Allow, source: {selector: 'a =='}}", f"{RULE}.source.selector", "is no selector"),
        ("{action: Allow, source: {selector: global()}}", f"{RULE}.source.selector", "EntityRule namespaceSelector"),
        ("{action: Allow, source: {namespaceSelector: 'global() || has(a)'}}", f"{RULE}.source.namespaceSelector",
         "global() cannot be combined with other selectors"),
        ("{action: Allow, destination: {services: {name: a, namespace: b}}}", f"{RULE}.destination.services",
         "not allowed in ingress rule destination"),
        ("{action: Allow, source: {services: {name: a}}}", f"{RULE}.source.services.namespace",
         "must specify a namespace"),
        ("{action: Allow, source: {services: {name: a, namespace: b}, selector: all()}}", f"{RULE}.source.services",
         "cannot specify Selector/NotSelector and Services on the same rule"),
        ("{action: Allow, http: {methods: [GET]}}", f"{RULE}.http", "Envoy"),
        ("{action: Allow, sources: {}}", f"{RULE}.sources", f'unknown field "{RULE}.sources"'),
    ],
)  # fmt: skip
def test_rules_of_calico_are_refused_in_its_words(rule: str, path: str, reason: str) -> None:
    found = faults(calico("GlobalNetworkPolicy", f"{{ingress: [{rule}]}}"))
    assert [one for one in found if one[0] == path and reason in one[1]], found


@pytest.mark.parametrize(
    ("kind", "name", "spec", "path", "reason"),
    [
        ("GlobalNetworkPolicy", "a", "{doNotTrack: true, applyOnForward: true}", "spec.doNotTrack", "host endpoints"),
        ("GlobalNetworkPolicy", "a", "{applyOnForward: true}", "spec.applyOnForward", "host endpoints"),
        ("GlobalNetworkPolicy", "a", "{preDNAT: true}", "spec.preDNAT", "host endpoints"),
        ("GlobalNetworkPolicy", "a", "{types: [Egress, Egress]}", "spec.types", "type specified more than once"),
        ("GlobalNetworkPolicy", "a", "{selector: global()}", "spec.selector", "EntityRule namespaceSelector"),
        ("GlobalNetworkPolicy", "a.b.c", "{}", "metadata.name", "lower case alphanumeric characters or '-'"),
        ("NetworkPolicy", "a", "{namespaceSelector: all()}", "spec.namespaceSelector", "unknown field"),
        ("NetworkPolicy", "a", "{order: .nan}", "", ""),
        ("Tier", "default", "{order: 5}", "spec.order", "default tier order must be 1000000"),
        ("Tier", "a.b", "{}", "metadata.name", "lowercase RFC 1123 label"),
        ("Tier", "a", "{defaultAction: Allow}", "spec.defaultAction", "Unsupported value"),
        ("NetworkSet", "a", "{nets: [nowhere]}", "spec.nets[0]", "invalid CIDR"),
    ],
)
def test_resources_of_calico_are_refused(kind: str, name: str, spec: str, path: str, reason: str) -> None:
    found = faults(calico(kind, spec, name))
    assert [one for one in found if path in one[0] and reason in one[1]], found


def test_calicos_networkpolicy_is_not_kubernetes() -> None:
    assert faults(calico("NetworkPolicy", "{selector: app == 'a', order: 5, egress: [{action: Log}]}")) == set()
    assert faults(calico("NetworkPolicy", "{podSelector: {}}"))


def admin(rules: str) -> str:
    return f"{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {rules}}}"


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ("{priority: 1, subject: {namespaces: {}}}", "spec.tier", "Required value"),
        ("{tier: admin, priority: 1, subject: {namespaces: {}}}", "spec.tier", 'supported values: "Admin", "Baseline"'),
        ("{tier: Admin, priority: 1001, subject: {namespaces: {}}}", "spec.priority", "between 0 and 1000"),
        ("{tier: Admin, priority: 1, subject: {}}", "spec.subject", "exactly one field must be set"),
        ("{tier: Admin, priority: 1, subject: {nodes: {}}}", "spec.subject.nodes", "unknown field"),
        (admin("ingress: [{action: Allow, from: [{namespaces: {}}]}]"),
         "spec.ingress[0].action", 'supported values: "Accept", "Deny", "Pass"'),
        (admin("ingress: [{action: Deny, from: []}]"),
         "spec.ingress[0].from", "must have at least 1 item"),
        (admin("egress: [{action: Accept, to: [{domainNames: [a.b]}]}]"),
         "spec.egress[0].to[0].domainNames", "not emulated: peers by domain name"),
        (admin("egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}],"
               " protocols: [{destinationNamedPort: web}]}]"),
         "spec.egress[0]", "no namedPorts for networks/nodes"),
        (admin("egress: [{action: Deny, to: [{namespaces: {}}],"
               " protocols: [{tcp: {destinationPort: {range: {start: 5, end: 5}}}}]}]"),
         "spec.egress[0].protocols[0].tcp.destinationPort.range", "Start port must be less than End port"),
    ],
)  # fmt: skip
def test_cluster_network_policy_is_refused(spec: str, path: str, reason: str) -> None:
    found = faults(CLUSTER + spec)
    assert [one for one in found if one[0] == path and reason in one[1]], found


def test_rules_have_a_limit() -> None:
    rules = ", ".join(["{action: Deny, from: [{namespaces: {}}]}"] * 26)
    spec = f"{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{rules}]}}"
    assert ("spec.ingress", "Too many: 26: must have at most 25 items") in faults(CLUSTER + spec)


def test_there_is_one_baseline_policy_which_passes_nothing_on() -> None:
    spec = "{subject: {namespaces: {}}, ingress: [{action: %s, from: [{namespaces: {}}]}]}"
    assert faults(BASELINE % "default" + spec % "Deny") == set()
    assert {path for path, _ in faults(BASELINE % "a" + spec % "Pass")} == {"metadata.name", "spec.ingress[0].action"}


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"), ("010.0.0.0/08", "10.0.0.0/8"), ("fd00::1/64", "fd00::/64"),
        ("10.0.0.0", ""), ("10.0.0.0/255.0.0.0", ""), ("10.0.0.0/-1", ""), ("::ffff:1.2.3.4/120", ""),
        ("fe80::1%eth0/64", ""), ("a/8", ""), ("/8", ""), ("10.0.0.0/٣", ""), ("10.0.0.0/" + "0" * 99 + "8", ""),
    ],
)  # fmt: skip
def test_older_fields_take_cidrs_with_host_bits(text: str, network: str) -> None:
    assert str(legacy_network(text) or "") == network


WORDS = st.sampled_from(
    ["ingress", "egress", "from", "to", "ports", "port", "endPort", "protocol", "ipBlock", "cidr", "except", "types",
     "podSelector", "namespaceSelector", "matchLabels", "matchExpressions", "key", "operator", "values", "action",
     "source", "destination", "selector", "nets", "order", "tier", "subject", "namespaces", "pods", "networks",
     "priority", "policyTypes", "protocols", "tcp", "destinationPort", "range", "start", "end", "icmp", "services"]
)  # fmt: skip
LEAVES: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["Allow", "TCP", "10.0.0.0/8", "all()", "In", "Admin", "Ingress", "a'; reboot", "$(x)", "\n-A"])
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=20
)
KINDS = st.sampled_from(
    [("networking.k8s.io/v1", "NetworkPolicy")]
    + [("projectcalico.org/v3", kind) for kind in ("NetworkPolicy", "GlobalNetworkPolicy", "Tier", "NetworkSet")]
    + [("policy.networking.k8s.io/v1alpha1", kind) for kind in ("AdminNetworkPolicy", "BaselineAdminNetworkPolicy")]
    + [("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy")]
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(KINDS, TREES)
def test_whatever_a_policy_holds_it_is_taken_or_refused_with_a_place(kind: tuple[str, str], spec: Any) -> None:
    thing = {"apiVersion": kind[0], "kind": kind[1], "metadata": {"name": "default"}, "spec": spec}
    try:
        validate([thing])
        Judge(more=(thing,))
    except ManifestError as error:
        problems = error.problems
    else:
        problems = ()
    assert all(problem.reason for problem in problems)
