"""What the real projects do otherwise than the API says: by packets, and told beside each verdict, in faithful mode.

Each deviation that docs/policy-felix.md and docs/policy-kube-router.md list stands here with a question whose answer it
turns round; what the API says is in tests/policy/corner_cases.py. Not here: ``::/0`` under kube-router, which needs
addresses that no pod or host of a lab has (tests/unit/policy/test_kube_router_quirks.py), and Weave's
(tests/kernel/test_policy_weave.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from emulator import Lab
from emulator.kernel import registry
from emulator.lab.verdicts import MatrixWish
from emulator.policy.model import Family
from tests.policy.corner_cases import BASE, Addresses, policy, questions
from tests.policy.site import Site
from tests.policy.styles import topology_for
from tests.policy.worlds import Object

pytestmark = pytest.mark.requires("netns", "veth", "iptables", "ipset", "ip", "mnexec")

WEB = "podSelector: {matchLabels: {app: web}}"
ADMIN: Object = {
    "apiVersion": "policy.networking.k8s.io/v1alpha1",
    "kind": "AdminNetworkPolicy",
    "metadata": {"name": "closed"},
    "spec": {
        "priority": 1,
        "subject": {"namespaces": {"matchLabels": {"team": "x"}}},
        "ingress": [{"action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": "y"}}}]}],
    },
}
SERVICE: Object = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "own", "namespace": "x"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 7000, "targetPort": 80}]},
}


@dataclass(frozen=True)
class Deviating:
    """Under ``objects`` the packets of ``asked`` pass or not (``passes``), against what the API says; ``told`` begins
    the line that says why. ``open`` where the API leaves it open."""

    objects: Callable[[Addresses], list[Object]]
    asked: str
    passes: bool
    told: str
    open: bool = False


def under(spec: str) -> Callable[[Addresses], list[Object]]:
    return lambda _: [policy(spec)]


def blocks(at: Addresses) -> list[Object]:
    """All but y/mon; and in another item, more than that."""
    wider = [{"ipBlock": {"cidr": cidr}} for cidr in ("10.0.0.0/8", "fd00::/16") if at.has_family_of(cidr)]
    rule = {"from": [*at.pod_blocks("y/mon"), *wider]}
    return [policy({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [rule]})]


def named_in_blocks(at: Addresses) -> list[Object]:
    rule = {"to": at.pod_blocks(), "ports": [{"port": "http"}]}
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": [rule]}
    return [policy(spec)]


FELIX = {
    "judges_what_a_pod_sends_to_its_own_node": Deviating(
        under(f"{{{WEB}, policyTypes: [Egress]}}"), "x/web>n1 x/web>n1/icmp", False, "what a pod sends to its own node"
    ),
    "drops_tunnels_of_pods": Deviating(under(f"{{{WEB}}}"), "x/web>y/mon:4789/udp", False, "UDP to port 4789"),
    "does_not_read_admin_network_policies": Deviating(
        lambda _: [ADMIN], "y/mon>x/web", True, "AdminNetworkPolicy is not read"
    ),
    "judges_a_pod_that_reaches_itself_through_its_service": Deviating(
        lambda _: [SERVICE, policy(f"{{{WEB}}}")],
        "x/web>service/x/own:7000",
        False,
        "a pod that reaches itself through its Service",
        open=True,
    ),
}
KUBE_ROUTER = {
    "lets_echo_requests_pass": Deviating(under("{}"), "y/mon>x/web/icmp", True, "ICMP echo requests"),
    "judges_what_a_pod_sends_to_its_own_node": Deviating(
        under(f"{{{WEB}, policyTypes: [Egress]}}"), "x/web>n1", False, "egress policies judge"
    ),
    "lets_an_ingress_rule_open_egress_among_a_policys_pods": Deviating(
        under("{policyTypes: [Ingress, Egress], ingress: [{}]}"),
        "x/web>x/db x/db>x/web",
        True,
        "a policy of both types",
    ),
    "lets_an_egress_rule_open_ingress_among_a_policys_pods": Deviating(
        under("{policyTypes: [Ingress, Egress], egress: [{}]}"), "x/web>x/db x/db>x/web", True, "a policy of both types"
    ),
    "narrows_all_blocks_of_a_rule_by_an_except_of_one": Deviating(
        blocks, "y/mon>x/web", False, "an except narrows all ipBlocks"
    ),
    "opens_all_ports_for_a_name_that_no_pod_has": Deviating(
        under(f"{{{WEB}, ingress: [{{from: [{{namespaceSelector: {{}}}}], ports: [{{port: grpc}}]}}]}}"),
        "y/mon>x/web:81 y/mon>x/web:53/udp",
        True,
        "a named port that no pod has",
    ),
    "opens_a_named_port_without_peers_to_every_destination": Deviating(
        under(f"{{{WEB}, policyTypes: [Egress], egress: [{{ports: [{{port: http}}]}}]}}"),
        "x/web>client x/web>y/ops:80",
        True,
        "a named port without peers",
    ),
    "opens_no_named_port_in_a_block": Deviating(
        named_in_blocks, "x/web>x/db:81", False, "a named port opens nothing in an ipBlock"
    ),
    "does_not_read_admin_network_policies": Deviating(
        lambda _: [ADMIN], "y/mon>x/web", True, "kube-router does not read AdminNetworkPolicy"
    ),
}


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    with Lab(topology_for(request.param), request.param, dns="off", policy_mode="faithful") as lab:
        found = Site(lab, request.param)
        found.become(BASE)
        yield found
    patch.undo()


@pytest.mark.parametrize("site", ["calico", "canal"], indirect=True)
@pytest.mark.parametrize("case", FELIX.values(), ids=FELIX.keys())
def test_felix_deviates_by_packets_and_it_is_told(site: Site, case: Deviating) -> None:
    reproduced(site, case)


@pytest.mark.parametrize("site", ["kube-router"], indirect=True)
@pytest.mark.parametrize("case", KUBE_ROUTER.values(), ids=KUBE_ROUTER.keys())
def test_kube_router_deviates_by_packets_and_it_is_told(site: Site, case: Deviating) -> None:
    reproduced(site, case)


def reproduced(site: Site, case: Deviating) -> None:
    cluster = site.lab.cluster()
    families: tuple[Family, ...] = tuple(6 if ":" in cidr else 4 for cidr in cluster.topology.pod_cidrs)
    at = Addresses({one.key: one.addresses for one in cluster.pods}, cluster.topology.pod_cidrs)
    site.become([*BASE, *case.objects(at)])
    asks = [
        ask
        for ask in questions(case.asked, families)
        if ask.family == 4 or "service" not in ask.target  # a Service is of one family unless it says otherwise
    ]
    assert [(asks[number], cell.verdict) for number, cell in site.faults(asks, [case.passes] * len(asks))] == []
    taken = site.lab.matrix(MatrixWish(asks=tuple(asks)))
    assert any(one.what.startswith(case.told) for one in taken.deviations), taken.deviations
    for cell in taken.cells:
        assert cell.specification == ("either" if case.open else "deny" if case.passes else "allow")
        if not case.open:
            assert cell.deviation is not None
            assert cell.deviation.what.startswith(case.told)
            assert not cell.wrong
