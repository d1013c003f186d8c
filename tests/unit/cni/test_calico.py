"""emulator.cni.calico: what Calico's plugin, Felix and BIRD put where (names and numbers of the real ones)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from emulator.cluster.model import Pod
from emulator.errors import ManifestError, UserError
from emulator.plan.build import build
from emulator.plan.diff import diff
from emulator.plan.model import Address, Bridge, Daemon, File, IpSet, IptablesRules, Route, Sysctl, Veth
from emulator.policy.felix_endpoints import host_device


def test_the_host_end_is_named_by_a_hash_of_namespace_and_pod() -> None:
    assert host_device(Pod(namespace="default", name="nginx", node="n1", addresses=())) == "calic440f455693"


def test_every_host_end_has_the_same_mac_and_no_bridge(planned: Any) -> None:
    made = planned("calico")
    pods = [item for item in made.of(Veth) if item.ns.startswith("pod/")]
    assert {item.peer_mac for item in pods} == {"ee:ee:ee:ee:ee:ee"}
    assert {item.mtu for item in pods} == {1500}
    assert [item.ns for item in made.of(Bridge) if item.ns != "underlay"] == []


def test_a_pod_has_one_address_and_everything_behind_a_gateway_that_nobody_has(planned: Any) -> None:
    made = planned("calico")
    pod = made.cluster.pods[0]
    assert made.one(Address, pod.ns).address == f"{pod.addresses[0]}/32"
    assert {(item.destination, item.via, item.scope) for item in made.of(Route, pod.ns)} == {
        ("169.254.1.1/32", "", "link"),
        ("0.0.0.0/0", "169.254.1.1", "global"),
    }
    assert "169.254.1.1" not in {item.address.partition("/")[0] for item in made.of(Address)}


def test_the_node_answers_arp_for_it_and_routes_to_the_pod(planned: Any) -> None:
    made = planned("calico")
    pod = made.cluster.pods[0]
    device = host_device(pod)
    values = {item.name: item.value for item in made.of(Sysctl, "node/n1") if f"/{device}/" in item.name}
    assert values == {
        f"net/ipv4/conf/{device}/proxy_arp": "1",
        f"net/ipv4/neigh/{device}/proxy_delay": "0",
        f"net/ipv4/conf/{device}/route_localnet": "1",
        f"net/ipv4/conf/{device}/forwarding": "1",
        f"net/ipv4/conf/{device}/rp_filter": "2",
    }
    route = made.one(Route, "node/n1", destination=f"{pod.addresses[0]}/32")
    assert (route.device, route.scope, route.protocol, route.learned) == (device, "link", "boot", False)


def test_routes_to_other_nodes_are_learned_and_never_installed(planned: Any) -> None:
    made = planned("calico")
    blocks = {node.name: node.pod_ranges for node in made.cluster.nodes}
    learned = {
        item.destination: (item.type, item.via, item.protocol) for item in made.of(Route, "node/n1") if item.learned
    }
    assert learned == {
        blocks["n1"][0]: ("blackhole", "", "bird"),
        blocks["n2"][0]: ("unicast", "192.168.50.12", "bird"),
        blocks["n3"][0]: ("unicast", "192.168.50.13", "bird"),
    }
    installed = {step.subject.destination for step in diff(None, made.plan) if isinstance(step.subject, Route)}
    assert not installed & set(learned)


def test_blocks_hold_64_addresses(planned: Any) -> None:
    assert {node.pod_ranges[0].partition("/")[2] for node in planned("calico").cluster.nodes} == {"26"}


def test_a_borrowed_address_is_learned_by_every_other_node(planned: Any) -> None:
    made = planned("calico")
    pod = made.cluster.pods[0]
    assert made.cluster.node("n2").pod_ranges == ("10.244.0.64/26",)
    borrowed = msgspec.structs.replace(pod, addresses=("10.244.0.73",))
    cluster = msgspec.structs.replace(made.cluster, pods=(borrowed, *made.cluster.pods[1:]))
    host = f"{borrowed.addresses[0]}/32"
    routes = {
        item.ns: item for item in build(cluster, made.style) if isinstance(item, Route) and item.destination == host
    }
    assert set(routes) == {"node/n1", "node/n2", "node/n3"}
    assert [ns for ns, item in routes.items() if item.learned] == ["node/n2", "node/n3"]
    assert routes["node/n2"].via == "192.168.50.11"


def test_pods_are_masqueraded_towards_everything_but_pools(planned: Any) -> None:
    made = planned("calico")
    assert {item.name: item.members for item in made.of(IpSet, "node/n1")} == {
        "cali40masq-ipam-pools": ("10.244.0.0/16",),
        "cali40all-ipam-pools": ("10.244.0.0/16",),
    }
    nat = made.one(IptablesRules, "node/n1", table="nat")
    assert "cali-nat-outgoing" in {item.name for item in nat.chains}


def test_bird_runs_on_every_node_with_its_own_files_and_socket(planned: Any) -> None:
    made = planned("calico")
    daemons = made.of(Daemon)
    assert [item.ns for item in daemons] == ["node/n1", "node/n2", "node/n3"]
    assert daemons[0].argv[:4] == ("bird", "-f", "-c", "/etc/calico/confd/config/bird.cfg")
    assert daemons[0].reload == ("birdc", "-s", daemons[0].ready_socket, "configure")
    made.one(File, "node/n1", path=daemons[0].files[0])


def test_a_pod_more_on_a_node_rewrites_that_nodes_filter_rules_only(planned: Any, manifest: Any) -> None:
    before = planned("calico")
    after = before.then(objects=(manifest("extra", node="n2"),))
    replaced = [step.subject for step in diff(before.plan, after.plan) if step.verb == "replace"]
    assert [item.key for item in replaced] == [("iptables", "node/n2", 4, "filter", "felix")]


def test_dual_stack_pods_have_the_ipv6_gateway_that_the_mac_makes(planned: Any) -> None:
    made = planned("calico", "dual-stack")
    pod = made.cluster.pods[0]
    assert made.one(Route, pod.ns, destination="::/0").via == "fe80::ecee:eeff:feee:eeee"
    assert made.one(Address, pod.node and f"node/{pod.node}", device=host_device(pod)).address == (
        "fe80::ecee:eeff:feee:eeee/64"
    )
    values = {item.name: item.value for item in made.of(Sysctl) if f"ipv6/conf/{host_device(pod)}/" in item.name}
    assert {name.rpartition("/")[2]: value for name, value in values.items()} == {
        "proxy_ndp": "1",
        "forwarding": "1",
        "accept_ra": "0",
    }


def test_ipv6_only_needs_no_ipv4_anywhere(planned: Any) -> None:
    made = planned("calico", "ipv6")
    assert {item.family for item in made.of(IptablesRules)} == {6}
    assert all("." not in item.destination for item in made.of(Route))
    assert {item.name for item in made.of(IpSet)} == {"cali60masq-ipam-pools", "cali60all-ipam-pools"}


def test_nodes_behind_routers_are_refused_since_routers_do_not_know_pods(planned: Any) -> None:
    with pytest.raises(UserError, match=r"from n1 to the pods of n3 \(10.244.0.128/26\) get lost: tor1 has no route"):
        planned("calico", "racks")


def test_the_plugin_list_is_that_of_calico_yaml(planned: Any) -> None:
    content = json.loads(planned("calico").one(File, "node/n1", path="/etc/cni/net.d/10-calico.conflist").content)
    assert (content["name"], [plugin["type"] for plugin in content["plugins"]]) == (
        "k8s-pod-network",
        ["calico", "portmap", "bandwidth"],
    )


# Addresses that pods ask for by annotation


def asking(text: str, node: str = "n3", name: str = "vm", key: str = "ipAddrs") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": {f"cni.projectcalico.org/{key}": text}},
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "web"}]},
    }


def test_an_address_of_another_nodes_block_is_announced_as_a_32(planned: Any) -> None:
    made = planned("calico", objects=[asking('["10.244.0.9"]')])
    (pod,) = [pod for pod in made.cluster.pods if pod.name == "vm"]
    assert (pod.node, pod.addresses) == ("n3", ("10.244.0.9",))
    for node in ("node/n1", "node/n2"):
        route = made.one(Route, node, destination="10.244.0.9/32")
        assert (route.via, route.learned) == ("192.168.50.13", True)


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([asking("10.244.0.9")], "must be a JSON list of addresses"),
        ([asking("[]")], "must be a JSON list of addresses"),
        ([asking('["here"]')], "must hold valid IP addresses"),
        ([asking('["10.244.0.9", "10.244.0.10"]')], "holds more than one address of a family"),
        ([asking('["10.99.0.9"]')], "is in no IP pool that is in use"),
        ([asking('["10.244.0.9"]'), asking('["10.244.0.9"]', "n1", "vm2")], "is in use by default/vm"),
        ([asking('["10.244.0.9"]', key="ipAddrsNoIpam")], "not emulated: addresses outside of Calico's IPAM"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(planned: Any, objects: list[Any], reason: str) -> None:
    with pytest.raises(ManifestError) as caught:
        planned("calico", objects=objects)
    (problem,) = caught.value.problems
    assert problem.subject.startswith("Pod default/vm")
    assert problem.path.startswith("metadata.annotations[cni.projectcalico.org/ipAddrs")
    assert reason in problem.reason
