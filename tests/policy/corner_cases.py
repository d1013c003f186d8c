"""NetworkPolicy's corner cases: named, with the verdicts that the API's text gives, written out by hand.

Six pods, each serving the same ports; those of a pod without a name for one have none::

    x (team: x)   web  n1  app: web              TCP 80 is "http"
                  db   n2  app: db               TCP 81 is "http"
    y (team: y)   mon  n2  app: mon, tier: ""    UDP 80 is "http"
                  ops  n1  app: ops, tier: back
    z             dev  n1  app: dev
                  far  n2  app: far

A question reads ``x/db>x/web:81/tcp``; without a port TCP 80 is meant. Ends are also ``n1`` and ``n2``, nodes,
``client``, the host outside, and ``service/x/api``. It is asked in every address family; ``@4`` and ``@6`` say in one
only.

Sources: kubernetes/kubernetes staging/src/k8s.io/api/networking/v1/types.go, pkg/apis/networking/v1/defaults.go,
test/e2e/network/netpol/network_policy.go; kubernetes.io/docs/concepts/services-networking/network-policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, cast

import yaml

from emulator.lab.verdicts import Ask
from emulator.policy.model import Family
from emulator.traffic.model import Protocol
from tests.policy.worlds import NODES, Object, namespace, pod

SPACES = (namespace("x", {"team": "x"}), namespace("y", {"team": "y"}), namespace("z", {}))
PODS = (
    pod("x", "web", "n1", {"app": "web"}, ("http", "", "", "", "")),
    pod("x", "db", "n2", {"app": "db"}, ("", "http", "", "", "")),
    pod("y", "mon", "n2", {"app": "mon", "tier": ""}, ("", "", "http", "", "")),
    pod("y", "ops", "n1", {"app": "ops", "tier": "back"}, ("",) * 5),
    pod("z", "dev", "n1", {"app": "dev"}, ("",) * 5),
    pod("z", "far", "n2", {"app": "far"}, ("",) * 5),
)
BASE: tuple[Object, ...] = (*SPACES, *PODS)


@dataclass(frozen=True)
class Addresses:
    """Those of a lab: by place, one for each family, and the CIDRs that pods have theirs of. ``seen of n2`` are those
    by which other nodes' pods know the node: where there is a tunnel between, of its device."""

    by_place: dict[str, tuple[str, ...]]
    pods: tuple[str, ...]

    def block(self, place: str, *without: str, length: int = 0) -> list[Object]:
        """ipBlocks of a place's own addresses alone, one for each family; ``length`` takes so many bits off, and leaves
        the host bits as they are; less the addresses of other places."""
        found = []
        for address in self.by_place[place]:
            block: Object = {"cidr": f"{address}/{ip_address(address).max_prefixlen - length}"}
            found.append({"ipBlock": self._less(block, *without)})
        return found

    def has_family_of(self, address: str) -> bool:
        """Whether pods have addresses of that one's family."""
        return any((":" in cidr) == (":" in address) for cidr in self.pods)

    def pod_blocks(self, *without: str) -> list[Object]:
        """ipBlocks of all pods, less the addresses of these places."""
        return [{"ipBlock": self._less({"cidr": cidr}, *without)} for cidr in self.pods]

    def _less(self, block: Object, *without: str) -> Object:
        version = ip_network(block["cidr"], strict=False).version
        alike = [one for place in without for one in self.by_place[place] if ip_address(one).version == version]
        return {**block, "except": [f"{one}/{ip_address(one).max_prefixlen}" for one in alike]} if alike else block


Makes = Callable[[Addresses], list[Object]]


@dataclass(frozen=True)
class Step:
    """What there is beside the base (or in place of what is called the same), and who gets through then."""

    objects: tuple[Object, ...] | Makes = ()
    open: str = ""
    shut: str = ""
    without: tuple[str, ...] = ()  # pods of the base that are not there

    def state(self, addresses: Addresses) -> list[Object]:
        """All objects of this moment."""
        given = self.objects(addresses) if callable(self.objects) else self.objects
        named = {_name(one): one for one in BASE if _name(one)[2] not in self.without}
        return [*(named | {_name(one): one for one in given}).values()]


@dataclass(frozen=True)
class Case:
    """``name`` is what the API does; the steps follow each other in one lab."""

    name: str
    steps: tuple[Step, ...] = field(default=())


def questions(text: str, families: Sequence[Family]) -> Iterator[Ask]:
    """What a line of questions asks, in each of these families."""
    for word in text.split():
        word, _, only = word.partition("@")
        source, _, target = word.partition(">")
        head, _, last = target.rpartition("/")
        protocol = cast(Protocol, last if last in ("tcp", "udp", "sctp", "icmp") else "")
        target, _, port = (head if protocol else target).partition(":")
        number = 0 if protocol == "icmp" else int(port or 80)
        for family in families:
            if only in ("", str(family)):
                yield Ask(_end(source), _end(target), protocol or "tcp", number, family)


def _end(text: str) -> str:
    if text.startswith("service/"):
        return text
    return f"pod/{text}" if "/" in text else f"node/{text}" if text in NODES else text


def _name(one: Object) -> tuple[str, str, str]:
    where = one["metadata"].get("namespace", "")
    return one["kind"], where, f"{where}/{one['metadata']['name']}"


def policy(spec: str | dict[str, Any], where: str = "x", name: str = "p") -> Object:
    """A NetworkPolicy; the spec as YAML."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": where},
        "spec": yaml.safe_load(spec) if isinstance(spec, str) else deepcopy(spec),
    }


def case(name: str, *steps: Step) -> Case:
    return Case(name, steps)


def let_in(rules: str, open: str = "", shut: str = "", subject: str = "web") -> Step:
    """Under one policy for ingress of a pod of x."""
    spec = f"{{podSelector: {{matchLabels: {{app: {subject}}}}}, ingress: {rules}}}"
    return Step((policy(spec),), open, shut)


def let_out(rules: str, open: str = "", shut: str = "", subject: str = "web") -> Step:
    """Under one policy for egress of a pod of x."""
    spec = f"{{podSelector: {{matchLabels: {{app: {subject}}}}}, policyTypes: [Egress], egress: {rules}}}"
    return Step((policy(spec),), open, shut)


def spec(text: str, open: str = "", shut: str = "") -> Step:
    """Under one policy of x."""
    return Step((policy(text),), open, shut)


def blocks(direction: str, peers: Callable[[Addresses], list[Object]], open: str = "", shut: str = "") -> Step:
    """Under one policy for x/web, with one rule of peers that depend on addresses."""
    section, field_ = ("ingress", "from") if direction == "Ingress" else ("egress", "to")

    def made(at: Addresses) -> list[Object]:
        return [
            policy(
                {
                    "podSelector": {"matchLabels": {"app": "web"}},
                    "policyTypes": [direction],
                    section: [{field_: peers(at)}],
                }
            )
        ]

    return Step(made, open, shut)


def relabelled(key: str, **labels: str) -> Object:
    """A pod or namespace of the base with other labels."""
    (found,) = [one for one in BASE if _name(one)[2] in (key, f"/{key}")]
    copy: Object = deepcopy(found)
    copy["metadata"]["labels"] = labels
    return copy


def hosted(where: str, name: str, node: str, app: str) -> Object:
    """A pod in its node's network."""
    found = pod(where, name, node, {"app": app}, ("",) * 5, host=True)
    found["spec"]["containers"][0]["ports"] = []
    return found


WEB = "podSelector: {matchLabels: {app: web}}"
DB, MON, ALL = "{podSelector: {matchLabels: {app: db}}}", "{matchLabels: {app: mon}}", "{namespaceSelector: {}}"
TEAM_Y = "{namespaceSelector: {matchLabels: {team: y}}}"
CLOSED_IN = "x/db>x/web y/mon>x/web x/web>x/db n2>x/web"  # with every pod of x isolated for ingress
FREE_OUT = "x/web>y/mon x/web>client y/ops>y/mon z/dev>y/mon x/web>n2"

SUBJECTS = (
    case("an_empty_spec_closes_ingress_of_the_whole_namespace_only", spec("{}", FREE_OUT, CLOSED_IN)),
    case("a_null_subject_means_every_pod_of_the_namespace", spec("{podSelector: null}", FREE_OUT, CLOSED_IN)),
    case("an_empty_subject_means_every_pod_of_the_namespace", spec("{podSelector: {}}", FREE_OUT, CLOSED_IN)),
    case(
        "a_policy_selects_pods_of_its_own_namespace_only",
        Step((policy("{podSelector: {matchLabels: {app: web}}}", where="y"),), "y/mon>x/web x/web>y/mon x/web>y/ops"),
    ),
    case(
        "host_network_pods_are_their_node_and_not_selected",
        Step(
            (policy("{policyTypes: [Ingress, Egress]}"), hosted("x", "agent", "n2", "agent")),
            "y/ops>x/agent z/far>x/agent x/agent>x/db",
            "x/agent>x/web x/web>x/agent x/web>x/db",
        ),
    ),
    case(
        "host_network_pods_are_no_peers",
        Step(
            (policy("{ingress: [{from: [{podSelector: {}}]}]}"), hosted("x", "agent", "n2", "web")),
            "x/db>x/web x/web>x/db",
            "x/agent>x/web y/mon>x/web",
        ),
    ),
)

TYPES = (
    case(
        "an_empty_egress_list_does_not_make_a_policy_one_of_egress",
        spec("{egress: []}", "x/web>y/mon x/web>client", "y/mon>x/web x/db>x/web"),
    ),
    case(
        "an_egress_rule_without_types_closes_ingress_too",
        spec("{egress: [{}]}", "x/web>y/mon x/web>client", "y/mon>x/web x/web>x/db"),
        spec(
            f"{{{WEB}, egress: [{{to: [{{podSelector: {{}}}}]}}]}}", "x/web>x/db", "x/web>y/mon x/web>client x/db>x/web"
        ),
    ),
    case(
        "empty_types_are_filled_in_like_missing_ones",
        spec("{policyTypes: [], ingress: [{}]}", "y/mon>x/web x/web>y/mon"),
        spec("{policyTypes: [], egress: [{to: [{podSelector: {}}]}]}", "", "x/web>y/mon y/mon>x/web"),
    ),
    case(
        "each_direction_is_isolated_by_itself",
        spec("{policyTypes: [Ingress]}", FREE_OUT, CLOSED_IN),
        spec("{policyTypes: [Egress]}", "y/mon>x/web z/dev>x/db", "x/web>y/mon x/web>x/db x/web>client x/web>n2"),
        spec("{policyTypes: [Egress, Ingress]}", "y/mon>z/dev", "y/mon>x/web x/web>y/mon x/web>client"),
    ),
    case(
        "rules_of_a_direction_that_is_no_type_do_nothing",
        spec("{policyTypes: [Egress], ingress: [], egress: [{}]}", "y/mon>x/web x/web>y/mon"),
        spec("{policyTypes: [Egress], ingress: [{}]}", "y/mon>x/web", "x/web>y/mon x/web>x/db"),
        spec("{policyTypes: [Ingress], egress: [{}]}", "x/web>y/mon", "y/mon>x/web"),
    ),
    case(
        "the_same_type_twice_counts_once",
        spec("{policyTypes: [Egress, Egress]}", "y/mon>x/web", "x/web>y/mon"),
    ),
)

RULES = (
    case(
        "no_rules_let_nothing_in_and_one_empty_rule_lets_all_in",
        let_in("[]", "x/web>x/db", "x/db>x/web y/mon>x/web y/mon>x/web/icmp"),
        let_in("null", "x/web>x/db", "x/db>x/web y/mon>x/web"),
        let_in("[{}]", "x/db>x/web y/mon>x/web y/mon>x/web:53/udp y/mon>x/web:80/sctp y/mon>x/web/icmp n2>x/web"),
    ),
    case(
        "no_rules_let_nothing_out_and_one_empty_rule_lets_all_out",
        let_out("[]", "x/db>x/web", "x/web>x/db x/web>y/mon/icmp x/web>client"),
        let_out("[{}]", "x/web>x/db x/web>y/mon:53/udp x/web>y/mon:80/sctp x/web>client x/web>y/mon/icmp"),
    ),
    *(
        case(
            f"{word}_peers_and_ports_restrict_nothing",
            let_in(f"[{{from: {value}, ports: {value}}}]", "x/db>x/web y/mon>x/web:53/udp y/mon>x/web/icmp n2>x/web"),
            let_in(f"[{{from: {value}, ports: [{{port: 80}}]}}]", "y/mon>x/web n2>x/web", "y/mon>x/web:81 n2>x/web:81"),
            let_in(f"[{{from: [{DB}], ports: {value}}}]", "x/db>x/web:81 x/db>x/web:53/udp", "y/mon>x/web:81"),
            let_out(f"[{{to: {value}, ports: {value}}}]", "x/web>y/mon x/web>y/mon:53/udp x/web>client x/web>n2"),
        )
        for word, value in (("null", "null"), ("empty", "[]"))
    ),
    case(
        "peers_and_ports_pair_inside_one_rule_only",
        let_in(
            f"[{{from: [{DB}], ports: [{{port: 80}}]}}, {{from: [{TEAM_Y}], ports: [{{port: 81}}]}}]",
            "x/db>x/web:80 y/mon>x/web:81",
            "x/db>x/web:81 y/mon>x/web:80 z/dev>x/web:80 z/dev>x/web:81",
        ),
    ),
    case(
        "peers_and_ports_of_two_policies_do_not_mix",
        Step(
            (
                policy(f"{{{WEB}, ingress: [{{from: [{DB}], ports: [{{port: 80}}]}}]}}"),
                policy(f"{{podSelector: {{}}, ingress: [{{from: [{TEAM_Y}], ports: [{{port: 81}}]}}]}}", name="q"),
            ),
            "x/db>x/web:80 y/mon>x/web:81 y/mon>x/db:81",
            "x/db>x/web:81 y/mon>x/web:80 x/web>x/db:80 x/web>x/db:81",
        ),
    ),
    case(
        "what_one_policy_lets_in_no_other_refuses",
        Step(
            (
                policy("{}", name="closed"),
                policy(f"{{{WEB}, ingress: [{{from: [{DB}]}}]}}", name="a"),
                policy(f"{{{WEB}, ingress: [{{from: [{TEAM_Y}]}}]}}", name="z"),
            ),
            "x/db>x/web y/mon>x/web y/ops>x/web",
            "z/dev>x/web x/web>x/db y/mon>x/db",
        ),
    ),
    case(
        "egress_and_ingress_must_both_let_it_pass",
        Step(
            (
                policy(f"{{{WEB}, policyTypes: [Egress], egress: [{{}}]}}"),
                policy("{podSelector: {matchLabels: {app: db}}}", name="q"),
            ),
            "x/web>y/mon",
            "x/web>x/db",
        ),
        Step(
            (
                policy(f"{{{WEB}, policyTypes: [Egress]}}"),
                policy("{podSelector: {matchLabels: {app: db}}, ingress: [{}]}", name="q"),
            ),
            "y/mon>x/db",
            "x/web>x/db",
        ),
    ),
)

PEERS = (
    case(
        "a_pod_selector_means_pods_of_the_policys_namespace",
        let_in("[{from: [{podSelector: {}}]}]", "x/db>x/web", "y/mon>x/web z/dev>x/web n2>x/web"),
        let_in(f"[{{from: [{{podSelector: {MON}}}]}}]", "", "y/mon>x/web x/db>x/web"),
    ),
    case(
        "a_namespace_selector_means_all_pods_there",
        let_in(f"[{{from: [{TEAM_Y}]}}]", "y/mon>x/web y/ops>x/web", "x/db>x/web z/dev>x/web"),
    ),
    case(
        "two_selectors_of_one_item_must_both_match",
        let_in(
            f"[{{from: [{{namespaceSelector: {{matchLabels: {{team: y}}}}, podSelector: {MON}}}]}}]",
            "y/mon>x/web",
            "y/ops>x/web x/db>x/web",
        ),
    ),
    case(
        "of_two_items_either_is_enough",
        let_in(f"[{{from: [{TEAM_Y}, {DB}]}}]", "y/mon>x/web y/ops>x/web x/db>x/web", "z/dev>x/web"),
    ),
    case(
        "an_empty_namespace_selector_means_every_pod_and_nothing_outside",
        let_in(f"[{{from: [{ALL}]}}]", "x/db>x/web y/mon>x/web z/dev>x/web", "n2>x/web"),
        let_out(f"[{{to: [{ALL}]}}]", "x/web>x/db x/web>y/mon", "x/web>client x/web>n2"),
    ),
    case(
        "an_empty_pod_selector_as_a_peer_means_nothing_outside",
        let_out("[{to: [{podSelector: {}}]}]", "x/web>x/db", "x/web>y/mon x/web>client x/web>n2"),
    ),
    case(
        "a_null_selector_is_not_given_and_an_empty_one_is_everything",
        let_in("[{from: [{namespaceSelector: null, podSelector: {}}]}]", "x/db>x/web", "y/mon>x/web"),
        let_in(
            "[{from: [{namespaceSelector: {}, podSelector: null}]}]", "x/db>x/web y/mon>x/web z/dev>x/web", "n2>x/web"
        ),
        let_in("[{from: [{namespaceSelector: {}, podSelector: {}}]}]", "x/db>x/web y/mon>x/web", "n2>x/web"),
        let_in(
            f"[{{from: [{{namespaceSelector: {{}}, podSelector: {MON}}}]}}]", "y/mon>x/web", "y/ops>x/web x/db>x/web"
        ),
    ),
    case(
        "not_in_and_does_not_exist_are_true_where_the_key_is_missing",
        let_in(
            "[{from: [{namespaceSelector: {}, podSelector: {matchExpressions: "
            "[{key: tier, operator: NotIn, values: [back]}]}}]}]",
            "z/dev>x/web x/db>x/web y/mon>x/web",
            "y/ops>x/web",
        ),
        let_in(
            "[{from: [{namespaceSelector: {}, podSelector: {matchExpressions: "
            "[{key: tier, operator: DoesNotExist}]}}]}]",
            "z/dev>x/web x/db>x/web",
            "y/ops>x/web y/mon>x/web",
        ),
        let_in(
            "[{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: NotIn, values: [y]}]}}]}]",
            "z/dev>x/web x/db>x/web",
            "y/mon>x/web",
        ),
    ),
    case(
        "in_with_an_empty_value_needs_the_key",
        let_in(
            "[{from: [{namespaceSelector: {}, podSelector: {matchExpressions: "
            "[{key: tier, operator: In, values: ['']}]}}]}]",
            "y/mon>x/web",
            "z/dev>x/web x/db>x/web y/ops>x/web",
        ),
    ),
    case(
        "exists_ignores_the_value",
        let_in(
            "[{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]}]",
            "y/mon>x/web y/ops>x/web",
            "z/dev>x/web x/db>x/web",
        ),
    ),
    case(
        "all_requirements_of_a_selector_must_be_met",
        let_in(
            "[{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: ops}, matchExpressions: "
            "[{key: tier, operator: Exists}, {key: tier, operator: NotIn, values: ['']}]}}]}]",
            "y/ops>x/web",
            "y/mon>x/web z/dev>x/web",
        ),
    ),
    case(
        "every_namespace_has_its_name_as_a_label",
        let_in(
            "[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]",
            "z/dev>x/web z/far>x/web",
            "y/mon>x/web x/db>x/web",
        ),
    ),
)

FRIEND = "[{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: friend}}}]}]"
BEFORE = let_in(FRIEND, "", "x/db>x/web y/mon>x/web").objects
TEAM_C = let_in("[{from: [{namespaceSelector: {matchLabels: {team: c}}}]}]").objects
assert not callable(BEFORE)
assert not callable(TEAM_C)

LIVE = (
    case(
        "a_relabelled_pod_is_a_peer_at_once_and_no_longer",
        Step(BEFORE, "", "y/mon>x/web x/db>x/web"),
        Step((*BEFORE, relabelled("y/mon", app="mon", role="friend")), "y/mon>x/web", "x/db>x/web y/ops>x/web"),
        Step((*BEFORE, relabelled("y/mon", app="mon", role="foe")), "", "y/mon>x/web x/db>x/web"),
    ),
    case(
        "a_relabelled_pod_comes_under_a_policy_at_once_and_leaves_it",
        Step((policy("{podSelector: {matchLabels: {role: shy}}}"),), "y/mon>x/web"),
        Step((policy("{podSelector: {matchLabels: {role: shy}}}"), relabelled("x/web", role="shy")), "", "y/mon>x/web"),
        Step((policy("{podSelector: {matchLabels: {role: shy}}}"),), "y/mon>x/web"),
    ),
    case(
        "a_relabelled_namespaces_pods_are_peers_at_once_and_no_longer",
        Step(TEAM_C, "", "y/mon>x/web"),
        Step((*TEAM_C, relabelled("y", team="c")), "y/mon>x/web y/ops>x/web", "z/dev>x/web"),
        Step(TEAM_C, "", "y/mon>x/web y/ops>x/web"),
    ),
    case(
        "a_new_pod_is_a_peer_and_a_subject_from_its_first_packet_on",
        Step(BEFORE, "", "x/db>x/web"),
        Step((*BEFORE, pod("z", "new", "n2", {"role": "friend"}, ("",) * 5)), "z/new>x/web", "x/db>x/web"),
        Step((*BEFORE, pod("x", "late", "n2", {"app": "web"}, ("",) * 5)), "x/late>x/db", "x/db>x/late y/mon>x/late"),
    ),
    case(
        "pods_of_a_new_namespace_are_peers_by_its_labels",
        Step(TEAM_C, "", "y/mon>x/web"),
        Step(
            (*TEAM_C, namespace("w", {"team": "c"}), pod("w", "new", "n2", {}, ("",) * 5)), "w/new>x/web", "y/mon>x/web"
        ),
    ),
    case(
        "a_pod_that_comes_back_with_another_address_is_the_same_peer_and_subject",
        let_in(f"[{{from: [{DB}]}}]", "x/db>x/web", "y/mon>x/web"),
        Step(let_in(f"[{{from: [{DB}]}}]").objects, "", "y/mon>x/web", without=("x/db",)),
        let_in(f"[{{from: [{DB}]}}]", "x/db>x/web", "y/mon>x/web"),
        Step(let_in(f"[{{from: [{DB}]}}]").objects, without=("x/web",)),
        let_in(f"[{{from: [{DB}]}}]", "x/db>x/web", "y/mon>x/web"),
    ),
)

BLOCKS = (
    case(
        "a_block_matches_pods_by_their_addresses",
        blocks("Ingress", lambda at: at.block("y/mon"), "y/mon>x/web", "y/ops>x/web x/db>x/web n2>x/web"),
        blocks("Egress", lambda at: at.block("y/mon"), "x/web>y/mon", "x/web>x/db x/web>client"),
        blocks("Ingress", lambda at: at.pod_blocks(), "y/mon>x/web x/db>x/web"),
    ),
    case(
        "a_block_matches_nodes_and_the_world",
        blocks("Ingress", lambda at: at.block("seen of n2"), "n2>x/web", "y/mon>x/web"),
        blocks("Egress", lambda at: at.block("client"), "x/web>client", "x/web>y/mon x/web>n2"),
    ),
    case(
        "host_bits_of_a_block_are_masked",
        blocks("Egress", lambda at: at.block("client", length=8), "x/web>client", "x/web>y/mon x/web>n2"),
        blocks("Egress", lambda at: at.block("n2", length=8), "x/web>n2", "x/web>y/mon x/web>client"),
    ),
    case(
        "an_except_narrows_its_own_block_only",
        blocks("Ingress", lambda at: at.pod_blocks("y/mon"), "x/db>x/web y/ops>x/web", "y/mon>x/web"),
        blocks("Ingress", lambda at: [*at.pod_blocks("y/mon"), *at.block("y/mon")], "x/db>x/web y/mon>x/web"),
        blocks("Ingress", lambda at: [*at.pod_blocks("y/mon"), yaml.safe_load(TEAM_Y)], "x/db>x/web y/mon>x/web"),
        blocks("Ingress", lambda at: [*at.pod_blocks("y/mon"), *at.pod_blocks("x/db")], "x/db>x/web y/mon>x/web"),
        blocks(
            "Ingress", lambda at: at.pod_blocks("y/mon", "x/db"), "y/ops>x/web z/far>x/web", "x/db>x/web y/mon>x/web"
        ),
    ),
    case(
        "an_except_is_no_denial_to_other_rules_and_policies",
        Step(
            lambda at: [
                policy(
                    {
                        "podSelector": {"matchLabels": {"app": "web"}},
                        "ingress": [
                            {"from": at.pod_blocks("y/mon")},
                            {"from": at.block("y/mon"), "ports": [{"port": 81}]},
                        ],
                    }
                ),
            ],
            "x/db>x/web y/mon>x/web:81",
            "y/mon>x/web:80",
        ),
        Step(
            lambda at: [
                policy({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": at.pod_blocks("y/mon")}]}),
                policy({"podSelector": {}, "ingress": [{"from": [yaml.safe_load(TEAM_Y)]}]}, name="q"),
            ],
            "x/db>x/web y/mon>x/web",
            "x/web>x/db",
        ),
    ),
    case(
        "a_block_of_one_family_never_matches_the_other",
        blocks(
            "Ingress",
            lambda at: [{"ipBlock": {"cidr": "0.0.0.0/0"}}],
            "y/mon>x/web@4 n2>x/web@4",
            "y/mon>x/web@6 n2>x/web@6",
        ),
        blocks(
            "Ingress",
            lambda at: [{"ipBlock": {"cidr": "::/0"}}],
            "y/mon>x/web@6 n2>x/web@6",
            "y/mon>x/web@4 n2>x/web@4",
        ),
        blocks(
            "Egress",
            lambda at: [{"ipBlock": {"cidr": "0.0.0.0/0"}}],
            "x/web>y/mon@4 x/web>client@4",
            "x/web>y/mon@6 x/web>client@6",
        ),
        blocks(
            "Egress",
            lambda at: [{"ipBlock": {"cidr": "::/0"}}],
            "x/web>y/mon@6 x/web>client@6",
            "x/web>y/mon@4 x/web>client@4",
        ),
    ),
)

PORTS = (
    case(
        "a_port_is_of_tcp_unless_it_says_otherwise",
        let_in("[{ports: [{port: 80}]}]", "y/mon>x/web:80", "y/mon>x/web:80/udp y/mon>x/web:80/sctp y/mon>x/web:81"),
    ),
    case(
        "a_port_without_any_field_is_all_of_tcp_and_nothing_else",
        let_in(
            "[{ports: [{}]}]",
            "y/mon>x/web:80 y/mon>x/web:81 y/mon>x/web:7000",
            "y/mon>x/web:80/udp y/mon>x/web:53/udp y/mon>x/web:80/sctp",
        ),
    ),
    case(
        "a_protocol_alone_is_all_of_its_ports",
        let_in(
            "[{ports: [{protocol: UDP}]}]",
            "y/mon>x/web:80/udp y/mon>x/web:53/udp",
            "y/mon>x/web:80 y/mon>x/web:80/sctp",
        ),
    ),
    case(
        "sctp_alone_isolates_and_opens_no_tcp",
        let_in(
            "[{ports: [{protocol: SCTP, port: 80}]}]",
            "y/mon>x/web:80/sctp",
            "y/mon>x/web:80 y/mon>x/web:80/udp y/mon>x/web:81/sctp",
        ),
    ),
    case(
        "no_ports_are_every_protocol_and_icmp",
        let_in(
            f"[{{from: [{TEAM_Y}]}}]",
            "y/mon>x/web:80 y/mon>x/web:53/udp y/mon>x/web:80/sctp y/mon>x/web/icmp",
            "x/db>x/web/icmp x/db>x/web:53/udp x/db>x/web:80/sctp",
        ),
    ),
    case(
        "a_range_includes_both_of_its_ends",
        let_in(
            "[{ports: [{port: 80, endPort: 82}]}]",
            "y/mon>x/web:80 y/mon>x/web:81 y/mon>x/web:82",
            "y/mon>x/web:79 y/mon>x/web:83 y/mon>x/web:80/udp",
        ),
        let_out(
            "[{ports: [{port: 80, endPort: 82, protocol: UDP}]}]",
            "x/web>y/mon:80/udp x/web>y/mon:82/udp",
            "x/web>y/mon:79/udp x/web>y/mon:83/udp x/web>y/mon:81",
        ),
    ),
    case(
        "a_range_may_be_one_port",
        let_in("[{ports: [{port: 80, endPort: 80}]}]", "y/mon>x/web:80", "y/mon>x/web:79 y/mon>x/web:81"),
    ),
    case(
        "a_named_port_is_another_number_on_each_pod",
        spec(
            "{ingress: [{ports: [{port: http}]}]}",
            "y/mon>x/web:80 y/mon>x/db:81 x/web>x/db:81",
            "y/mon>x/web:81 y/mon>x/db:80 x/web>x/db:80",
        ),
        let_out(
            f"[{{to: [{ALL}], ports: [{{port: http}}]}}]",
            "x/web>x/db:81",
            "x/web>x/db:80 x/web>y/ops:80 x/web>y/mon:80",
        ),
    ),
    case(
        "a_named_port_is_of_its_protocol",
        let_out(
            f"[{{to: [{TEAM_Y}], ports: [{{port: http, protocol: UDP}}]}}]",
            "x/web>y/mon:80/udp",
            "x/web>y/mon:80 x/web>y/ops:80/udp x/web>y/mon:53/udp x/web>x/db:81",
        ),
        spec(
            "{ingress: [{ports: [{port: http, protocol: UDP}]}]}", "", "y/mon>x/web:80 y/mon>x/web:80/udp y/mon>x/db:81"
        ),
    ),
    case(
        "a_name_that_no_pod_has_opens_nothing_and_still_isolates",
        let_in("[{ports: [{port: grpc}]}]", "x/web>y/mon", "y/mon>x/web:80 y/mon>x/web:81 y/mon>x/web:53/udp"),
        let_out("[{ports: [{port: grpc}]}]", "y/mon>x/web", "x/web>y/mon:80 x/web>x/db:81 x/web>client"),
    ),
    case(
        "a_named_port_is_never_one_outside",
        let_out("[{ports: [{port: http}]}]", "x/web>x/db:81 z/dev>client", "x/web>client x/web>n2 x/web>x/db:80"),
        blocks("Egress", lambda at: at.block("client"), "x/web>client"),
    ),
)

ALWAYS = (
    case(
        "a_pod_and_its_own_node_always_reach_each_other",
        spec(
            "{policyTypes: [Ingress, Egress]}",
            "n1>x/web x/web>n1 n2>x/db x/db>n2 n1>x/web:53/udp n1>x/web/icmp x/web>n1/icmp",
            "n2>x/web x/web>n2 n1>x/db x/db>n1",
        ),
    ),
    case(
        "a_pod_always_reaches_its_own_address",
        spec("{policyTypes: [Ingress, Egress]}", "x/web>x/web x/web>x/web:53/udp x/db>x/db", "x/web>x/db"),
    ),
    case(
        "answers_pass_whatever_direction_is_closed",
        let_out(
            "[]",
            "y/mon>x/web y/mon>x/web:53/udp y/mon>x/web:80/sctp y/mon>x/web/icmp",
            "x/web>y/mon x/web>y/mon:53/udp",
        ),
        let_in("[]", "x/web>y/mon x/web>y/mon:53/udp x/web>y/mon:80/sctp x/web>client", "y/mon>x/web"),
    ),
)

VIP = ("10.96.7.7", "fd00:10:96::77")
NODE_PORT = 30080


def service(at: Addresses, policy: str = "Cluster") -> Object:
    """x/api: x/db's TCP 81 as port 7000, and as a port of every node."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "api", "namespace": "x"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "db"},
            "clusterIP": VIP[0],
            "clusterIPs": [one for one in VIP if at.has_family_of(one)],
            "ipFamilyPolicy": "PreferDualStack",
            "externalTrafficPolicy": policy,
            "ports": [{"port": 7000, "targetPort": 81, "nodePort": NODE_PORT}],
        },
    }


def vip_blocks(at: Addresses) -> list[Object]:
    return [{"ipBlock": {"cidr": f"{one}/{ip_address(one).max_prefixlen}"}} for one in VIP if at.has_family_of(one)]


def from_pod(rules: Callable[[Addresses], list[Object]], open: str = "", shut: str = "") -> Step:
    """With x/api, under a policy for egress of x/web."""
    return Step(
        lambda at: [
            service(at),
            policy({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": rules(at)}),
        ],
        open,
        shut,
    )


def from_outside(sources: str, policy_: str, open: str = "", shut: str = "") -> Step:
    """With x/api, under a policy for ingress of x/db that lets one place in."""
    return Step(
        lambda at: [
            service(at, policy_),
            policy({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": at.block(sources)}]}),
        ],
        open,
        shut,
    )


SERVICES = (
    case(
        "a_services_traffic_is_judged_behind_its_translation",
        from_pod(
            lambda at: [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": 81}]}],
            "x/web>service/x/api:7000 x/web>x/db:81",
            "x/web>x/db:80",
        ),
        from_pod(lambda at: [{"ports": [{"port": 7000}]}], "y/mon>service/x/api:7000", "x/web>service/x/api:7000"),
        Step(
            lambda at: [service(at), policy("{ingress: [{ports: [{port: 81}]}]}")],
            "y/mon>service/x/api:7000 x/web>service/x/api:7000",
            "y/mon>x/db:80",
        ),
    ),
    case(
        "a_block_of_a_services_address_matches_nothing",
        from_pod(
            lambda at: [{"to": vip_blocks(at)}], "y/mon>service/x/api:7000", "x/web>service/x/api:7000 x/web>x/db:81"
        ),
        from_pod(lambda at: [{"to": at.block("x/db")}], "x/web>service/x/api:7000"),
    ),
    case(
        "a_masqueraded_sender_is_its_node",
        from_outside("client", "Cluster", "", f"client>n1:{NODE_PORT}"),
        from_outside("seen of n1", "Cluster", f"client>n1:{NODE_PORT}", "y/ops>x/db:81"),
        from_outside("client", "Local", f"client>n2:{NODE_PORT}", "y/ops>x/db:81"),
        from_outside("n1", "Local", "", f"client>n2:{NODE_PORT}"),
    ),
)

CASES = (*SERVICES, *SUBJECTS, *TYPES, *RULES, *PEERS, *LIVE, *BLOCKS, *PORTS, *ALWAYS)
