"""kube-router's own service proxy: what the golden files cannot show."""

from __future__ import annotations

import msgspec
import pytest

from emulator.cluster.services import Endpoint, Service
from emulator.errors import ManifestError, UserError
from emulator.plan.model import Address, AnyObject, IpSet, IptablesRules, IpvsServers, Route, VirtualServer
from emulator.proxy import kube_router
from tests.golden.service_constructs import NODE_PORT, SETTINGS, backends, base_cluster, on, service, six

ANNOTATION = "kube-router.io/service."


def planned(made: Service, *endpoints: Endpoint, node: int = 0) -> list[AnyObject]:
    slices = (backends(made, *endpoints),) if endpoints else ()
    cluster = msgspec.structs.replace(base_cluster(), services=(made,), slices=slices)
    return list(kube_router.load(SETTINGS).node(cluster, cluster.nodes[node]))


def served(made: Service, *endpoints: Endpoint, node: int = 0) -> dict[str, list[str]]:
    """The addresses behind each virtual server."""
    servers: dict[str, VirtualServer] = {}
    for item in planned(made, *endpoints, node=node):
        if isinstance(item, IpvsServers):
            servers |= item.servers
    return {name: [each.address for each in server.servers] for name, server in servers.items()}


def test_a_local_policy_without_an_endpoint_here_leaves_the_address_out() -> None:
    inside = service(internal_policy="Local")
    outside = service(type="NodePort", ports=(NODE_PORT,), external_policy="Local", external_ips=("198.51.100.7",))

    assert served(inside, on("n2", 2)) == {}
    assert not [item for item in planned(inside, on("n2", 2)) if isinstance(item, (Address, Route))]
    assert served(outside, on("n2", 2)) == {"TCP 10.96.0.41:80": ["10.244.1.2"]}
    assert served(outside, on("n2", 2), node=1) == {
        "TCP 10.96.0.41:80": ["10.244.1.2"],
        "TCP 192.168.50.12:30080": ["10.244.1.2"],
        "TCP 198.51.100.7:80": ["10.244.1.2"],
    }


def test_what_still_serves_is_sent_to_though_others_are_ready() -> None:
    ending = on("n1", 3, ready=False, serving=True, terminating=True)
    gone = on("n1", 4, ready=False, serving=False, terminating=True)

    assert served(service(), on("n1", 2), ending, gone) == {"TCP 10.96.0.41:80": ["10.244.0.2", "10.244.0.3"]}


def test_hints_mean_nothing() -> None:
    found = served(service(), on("n1", 2, zones=("a",)), on("n2", 2, zones=("b",)))

    assert found == {"TCP 10.96.0.41:80": ["10.244.0.2", "10.244.1.2"]}


def test_a_node_port_is_on_the_nodes_first_address_only() -> None:
    made = service(type="NodePort", ports=(NODE_PORT,), families=(6, 4), cluster_ips=("fd00:10:96::7", "10.96.0.47"))

    assert list(served(made, six("n1", 7))) == [
        "TCP 10.96.0.47:80",
        "TCP 192.168.50.11:30080",
        "TCP [fd00:10:96::7]:80",
    ]


def test_the_nodes_own_address_is_served_and_not_bound() -> None:
    items = planned(service(external_ips=("192.168.50.11",)), on("n1", 2))

    assert [item.address for item in items if isinstance(item, Address)] == ["10.96.0.41/32"]
    (ports,) = (item for item in items if isinstance(item, IpSet) and item.name == "kube-router-svip-prt")
    assert "192.168.50.11,tcp:80" in ports.members


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({}, True),
        ({"service.kubernetes.io/service-proxy-name": "kube-router"}, True),
        ({"service.kubernetes.io/service-proxy-name": "other"}, False),
        ({"service.kubernetes.io/headless": ""}, False),
    ],
)
def test_labels_may_leave_a_service_to_others(labels: dict[str, str], names: bool) -> None:
    assert bool(served(service(labels=labels), on("n1", 2))) is names


def test_only_local_endpoints_have_hairpin_rules() -> None:
    made = service(annotations={f"{ANNOTATION}hairpin": ""})

    def chains(*endpoints: Endpoint) -> list[int]:
        return [
            len(chain.rules)
            for item in planned(made, *endpoints)
            if isinstance(item, IptablesRules) and item.table == "nat"
            for chain in item.chains
        ]

    assert chains(on("n1", 2), on("n1", 3), on("n2", 2)) == [2]
    assert chains(on("n2", 2)) == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("scheduler", "wrr", 'supported values: "dh", "lc", "mh", "rr", "sh"'),
        ("schedflags", "flag-1,flag-4", 'supported values: "flag-1", "flag-2", "flag-3"'),
        ("dsr", "tunnel", "direct server return is not emulated"),
        ("advertise.clusterip", "true", "not emulated"),
    ],
)
def test_annotations_that_cannot_be_followed_are_refused_by_name(name: str, value: str, reason: str) -> None:
    with pytest.raises(ManifestError) as caught:
        planned(service(annotations={ANNOTATION + name: value}), on("n1", 2))

    (problem,) = caught.value.problems
    assert (problem.subject, problem.path) == ("Service ns1/web", f"metadata.annotations[{ANNOTATION}{name}]")
    assert reason in problem.reason


def test_flags_are_of_the_maglev_scheduler_alone() -> None:
    notes = {f"{ANNOTATION}scheduler": "sh", f"{ANNOTATION}schedflags": "flag-1"}
    (servers,) = (
        item
        for item in planned(service(annotations=notes), on("n1", 2))
        if isinstance(item, IpvsServers) and item.servers
    )

    assert [(each.scheduler, each.flags) for each in servers.servers.values()] == [("sh", ())]


@pytest.mark.parametrize("hostile", ["10.244.0.2,tcp -exist", "10.244.0.2\nflush", "example.com", ""])
def test_hostile_addresses_are_refused(hostile: str) -> None:
    with pytest.raises(UserError, match="no IP address"):
        planned(service(), Endpoint(address=hostile, node="n1"))
    with pytest.raises(UserError, match="no IP address"):
        planned(service(external_ips=(hostile,)), on("n1", 2))
