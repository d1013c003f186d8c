"""From workloads to pods: names, nodes, addresses, and what stays when something changes."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import Blocks, HostLocal
from emulator.cluster.kubernetes import node_object, pod_object
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster, Pod, Topology
from emulator.cluster.topology import load_topology, parse_topology
from emulator.errors import AddressesExhausted, ManifestError

SAFE = "[bcdfghjklmnpqrstvwxz2456789]"


@pytest.fixture
def topology() -> Topology:
    """Three nodes, two of them in zones, no pods of the topology's own."""
    return parse_topology(
        """
switches: [{name: s1, cidrs: [192.168.50.0/24]}]
nodes:
  - {name: n1, switch: s1, zone: a}
  - {name: n2, switch: s1, zone: b}
  - {name: n3, switch: s1}
routers: [{name: tor, switch: s1}]
""",
        "t.yaml",
    )


def workload(kind: str, name: str, *, image: str = "nginx", spec: dict[str, Any] | None = None, **fields: Any) -> Any:
    pod_spec = {"containers": [{"name": "c", "image": image, "ports": [{"containerPort": 80}]}], **(spec or {})}
    if kind == "Pod":
        return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, **fields}, "spec": pod_spec}
    template = {"metadata": {"labels": {"app": name}}, "spec": pod_spec}
    body = {"selector": {"matchLabels": {"app": name}}, "template": template, **fields}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": body}


class Lab:
    """Assembles step by step, each time from the cluster before."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.ipam = HostLocal(topology.pod_cidrs)
        self.cluster: Cluster | None = None

    def apply(self, *objects: Any, gone: tuple[str, ...] = ()) -> Cluster:
        given = validate_objects(objects)
        self.cluster = assemble(self.topology, given, self.ipam, self.cluster, gone=gone)
        steps = 0
        while self.cluster.rolling:  # nobody waits for anything here
            self.cluster = assemble(self.topology, given, self.ipam, self.cluster)
            steps += 1
            assert steps < 50, self.cluster.rolling
        return self.cluster


@pytest.fixture
def lab(topology: Topology) -> Lab:
    return Lab(topology)


def names(cluster: Cluster) -> list[str]:
    return [pod.name for pod in cluster.pods]


def by_name(cluster: Cluster) -> dict[str, Pod]:
    return {pod.name: pod for pod in cluster.pods}


def test_the_topologys_pods_are_named_after_their_nodes_and_answer_on_port_80() -> None:
    topology = load_topology("three-nodes")
    cluster = assemble(topology, [], HostLocal(topology.pod_cidrs))
    assert names(cluster) == [f"n{node}-p{pod}" for node in (1, 2, 3) for pod in (1, 2, 3)]
    pod = by_name(cluster)["n2-p1"]
    assert (pod.key, pod.node, pod.addresses, pod.owner) == ("default/n2-p1", "n2", ("10.244.2.2",), "Topology")
    assert [(port.port, port.protocol) for port in pod.containers[0].ports] == [(80, "TCP"), (80, "UDP")]
    assert pod.labels == {"app": "p", "node": "n2"}


def test_nodes_have_their_addresses_device_and_ranges() -> None:
    topology = load_topology("dual-stack")
    (node, *_) = assemble(topology, [], HostLocal(topology.pod_cidrs)).nodes
    assert node.addresses == ("192.168.50.11", "fd00:192:168:50::11")
    assert node.subnets == ("192.168.50.0/24", "fd00:192:168:50::/64")
    assert node.pod_ranges == ("10.244.1.0/24", "fd00:10:244:1::/64")
    assert (node.device, node.mtu) == ("eth0", 1500)


def test_a_nodes_first_address_is_of_the_pods_first_family() -> None:
    topology = msgspec.structs.replace(load_topology("dual-stack"), pod_cidrs=("fd00:10:244::/56", "10.244.0.0/16"))
    (node, *_) = assemble(topology, [], HostLocal(topology.pod_cidrs)).nodes
    assert node.addresses == ("fd00:192:168:50::11", "192.168.50.11")


def test_deployment_pods_are_named_as_kubernetes_names_them(lab: Lab) -> None:
    cluster = lab.apply(workload("Deployment", "web", replicas=4))
    assert all(re.fullmatch(f"web-{SAFE}{{10}}-{SAFE}{{5}}", name) for name in names(cluster))
    (pod, *_) = cluster.pods
    assert pod.owner == "ReplicaSet/" + pod.name.rpartition("-")[0]
    assert pod.labels == {"app": "web", "pod-template-hash": pod.name.split("-")[1]}


def test_pods_are_spread_over_the_nodes(lab: Lab) -> None:
    cluster = lab.apply(workload("Deployment", "web", replicas=4))
    assert [pod.node for pod in cluster.pods] == ["n1", "n2", "n3", "n1"]


def test_stateful_set_pods_are_numbered_and_know_their_domain(lab: Lab) -> None:
    cluster = lab.apply(workload("StatefulSet", "db", replicas=2, serviceName="db-headless"))
    assert names(cluster) == ["db-0", "db-1"]
    pod = cluster.pods[1]
    assert (pod.hostname, pod.subdomain) == ("db-1", "db-headless")
    assert pod.labels["apps.kubernetes.io/pod-index"] == "1"
    assert pod.labels["statefulset.kubernetes.io/pod-name"] == "db-1"


def test_a_daemon_set_has_one_pod_on_each_node_that_fits(lab: Lab) -> None:
    assert [pod.node for pod in lab.apply(workload("DaemonSet", "agent")).pods] == ["n1", "n2", "n3"]
    selected = workload("DaemonSet", "agent", spec={"nodeSelector": {"topology.kubernetes.io/zone": "b"}})
    assert [pod.node for pod in lab.apply(selected).pods] == ["n2"]


def test_the_same_input_gives_the_same_cluster(topology: Topology) -> None:
    objects = validate_objects([workload("Deployment", "web", replicas=3), workload("DaemonSet", "agent")])
    one = assemble(topology, objects, HostLocal(topology.pod_cidrs))
    assert one == assemble(topology, objects, HostLocal(topology.pod_cidrs))


def test_nothing_changes_when_nothing_changed_not_even_identity(lab: Lab) -> None:
    objects = [workload(kind, kind.lower()) for kind in ("Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")]
    before, after = lab.apply(*objects), lab.apply(*objects)
    assert before == after
    assert all(old is new for old, new in zip(before.pods, after.pods, strict=True))
    assert all(old is new for old, new in zip(before.nodes, after.nodes, strict=True))


def test_a_new_pod_leaves_the_others_as_they_are(lab: Lab) -> None:
    before = lab.apply(workload("Deployment", "web", replicas=3))
    after = lab.apply(workload("Pod", "new"), workload("Deployment", "web", replicas=3))
    assert all(old is new for old, new in zip(before.pods, after.pods[:3], strict=True))
    assert after.pods[3].name == "new"


def test_scaling_keeps_the_pods_that_stay(lab: Lab) -> None:
    three = lab.apply(workload("Deployment", "web", replicas=3))
    assert lab.apply(workload("Deployment", "web", replicas=1)).pods == three.pods[:1]
    again = lab.apply(workload("Deployment", "web", replicas=3))
    assert again.pods[0] is three.pods[0]
    assert not set(names(again)[1:]) & set(names(three)), "a replacement has a name of its own"


def test_a_deleted_deployment_pod_comes_back_under_another_name_and_address(lab: Lab) -> None:
    web = workload("Deployment", "web", replicas=3)
    before = lab.apply(web)
    dead = before.pods[1]
    after = lab.apply(web, gone=(dead.key,))
    (new,) = [pod for pod in after.pods if pod not in before.pods]
    assert new.name != dead.name
    assert new.addresses != dead.addresses
    assert len(after.pods) == 3


def test_names_are_not_used_again_after_several_deaths(lab: Lab) -> None:
    web = workload("Deployment", "web", replicas=2)
    seen = set(names(lab.apply(web)))
    for _ in range(5):
        assert lab.cluster is not None
        dead = lab.cluster.pods[0]
        new = lab.apply(web, gone=(dead.key,)).pods[-1].name
        assert new not in seen
        seen.add(new)


@pytest.mark.parametrize(("kind", "name"), [("StatefulSet", "db-0"), ("Pod", "db")])
def test_a_pod_with_a_fixed_name_comes_back_under_it_with_another_address(lab: Lab, kind: str, name: str) -> None:
    thing = workload(kind, "db")
    before = lab.apply(thing).pods[0]
    after = lab.apply(thing, gone=(before.key,)).pods[0]
    assert before.name == after.name == name
    assert (before.addresses, after.addresses) == (("10.244.1.2",), ("10.244.1.3",))


def test_a_deleted_pod_of_the_topology_comes_back_with_another_address() -> None:
    lab = Lab(load_topology("single-node"))
    lab.apply()
    after = lab.apply(gone=("default/n1-p1",))
    assert by_name(after)["n1-p1"].addresses == ("10.244.1.5",)


def test_a_daemon_set_pod_is_replaced_on_its_node_under_another_name(lab: Lab) -> None:
    agent = workload("DaemonSet", "agent")
    before = lab.apply(agent)
    after = lab.apply(agent, gone=(before.pods[1].key,))
    assert sorted(pod.node for pod in after.pods) == ["n1", "n2", "n3"]
    assert before.pods[1].name not in names(after)


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
def test_a_changed_template_replaces_the_pods(lab: Lab, kind: str) -> None:
    before = lab.apply(workload(kind, "web"))
    after = lab.apply(workload(kind, "web", spec={"subdomain": "elsewhere"}))
    assert len(before.pods) == len(after.pods)
    assert not {pod.addresses for pod in before.pods} & {pod.addresses for pod in after.pods}


def test_a_pods_labels_change_in_place(lab: Lab) -> None:
    before = lab.apply(workload("Pod", "a", labels={"x": "1"})).pods[0]
    after = lab.apply(workload("Pod", "a", labels={"x": "2"})).pods[0]
    assert after.labels == {"x": "2"}
    assert (after.node, after.addresses) == (before.node, before.addresses)


def test_addresses_of_removed_pods_are_free_again(lab: Lab) -> None:
    lab.apply(workload("Pod", "a"))
    lab.apply()
    for number in range(253):
        assert lab.ipam.allocate("n1", f"x/{number}")


def test_node_name_decides_first(lab: Lab) -> None:
    assert lab.apply(workload("Pod", "a", spec={"nodeName": "n3"})).pods[0].node == "n3"


@pytest.mark.parametrize(
    ("operator", "values", "nodes"),
    [
        ("In", ["a", "b"], {"n1", "n2"}),
        ("NotIn", ["a"], {"n2", "n3"}),
        ("Exists", [], {"n1", "n2"}),
        ("DoesNotExist", [], {"n3"}),
    ],
)
def test_required_node_affinity_is_honoured(lab: Lab, operator: str, values: list[str], nodes: set[str]) -> None:
    expression = {"key": "topology.kubernetes.io/zone", "operator": operator, "values": values}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    cluster = lab.apply(workload("Deployment", "web", replicas=6, spec={"affinity": affinity}))
    assert {pod.node for pod in cluster.pods} == nodes


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            {"nodeSelector": {"disk": "ssd"}},
            "Pod default/a: 0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
        ),
        ({"nodeName": "n9"}, 'Pod default/a: spec.nodeName: node "n9" not found'),
    ],
)
def test_a_pod_that_fits_no_node_is_refused_as_the_scheduler_puts_it(lab: Lab, spec: Any, reason: str) -> None:
    with pytest.raises(ManifestError) as error:
        lab.apply(workload("Pod", "a", spec=spec))
    assert str(error.value) == reason


def test_a_host_port_is_taken_once_per_node(lab: Lab) -> None:
    ports = [{"name": "c", "image": "x", "ports": [{"containerPort": 80, "hostPort": 8080}]}]
    with pytest.raises(ManifestError, match="didn't have free ports for the requested pod ports"):
        lab.apply(workload("Deployment", "web", replicas=4, spec={"containers": ports}))


def test_a_node_takes_110_pods(lab: Lab) -> None:
    with pytest.raises(ManifestError, match="3 Too many pods"):
        lab.apply(workload("Deployment", "web", replicas=331))


def test_host_network_pods_have_their_nodes_addresses_and_no_namespace(lab: Lab) -> None:
    (pod,) = lab.apply(workload("Pod", "a", spec={"hostNetwork": True})).pods
    assert pod.addresses == ("192.168.50.11",)
    assert pod.ns == "node/n1"
    assert lab.ipam.allocate("n1", "default/b") == ("10.244.1.2",)


def test_a_pod_of_a_topology_and_one_of_a_manifest_cannot_have_one_name() -> None:
    lab = Lab(load_topology("single-node"))
    with pytest.raises(ManifestError, match='pods "n1-p1" already exists'):
        lab.apply(workload("Pod", "n1-p1"))


def test_a_full_range_is_refused_and_says_where() -> None:
    topology = load_topology("single-node")
    topology = msgspec.structs.replace(topology, pod_cidrs=("10.244.0.0/27",))
    with pytest.raises(AddressesExhausted, match=r"node n1: no free address for default/web-.*10\.244\.0\.16/28"):
        assemble(
            topology, validate_objects([workload("Deployment", "web", replicas=20)]), HostLocal(topology.pod_cidrs, 28)
        )


def test_calico_blocks_serve_the_same_pods() -> None:
    topology = load_topology("three-nodes")
    cluster = assemble(topology, [], Blocks(topology.pod_cidrs))
    assert by_name(cluster)["n2-p1"].addresses == ("10.244.0.64",)
    assert cluster.node("n2").pod_ranges == ("10.244.0.64/26",)


def test_namespaces_and_other_objects_are_kept(lab: Lab) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "x"}}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}
    cluster = lab.apply(namespace, service)
    assert cluster.namespaces["shop"] == {"team": "x", "kubernetes.io/metadata.name": "shop"}
    assert set(cluster.namespaces) == {"default", "kube-system", "kube-public", "kube-node-lease", "shop"}
    assert [thing["kind"] for thing in cluster.objects] == ["Service"]


def test_a_command_makes_a_process_arguments_alone_do_not(lab: Lab) -> None:
    containers = [
        {"name": "a", "image": "x", "command": ["sleep"], "args": ["1"], "env": [{"name": "A", "value": "b"}]},
        {"name": "b", "image": "x", "args": ["netexec"]},
    ]
    (pod,) = lab.apply(workload("Pod", "a", spec={"containers": containers})).pods
    assert [container.command for container in pod.containers] == [("sleep", "1"), ()]
    assert pod.containers[0].env == (("A", "b"),)


def test_restartable_init_containers_run_along(lab: Lab) -> None:
    init = [{"name": "proxy", "image": "x", "restartPolicy": "Always"}, {"name": "once", "image": "x"}]
    (pod,) = lab.apply(workload("Pod", "a", spec={"initContainers": init})).pods
    assert [container.name for container in pod.containers] == ["proxy", "c"]


def test_a_long_name_is_cut_to_a_host_name(lab: Lab) -> None:
    (pod,) = lab.apply(workload("Pod", "a" * 62 + ".b.example")).pods
    assert pod.hostname == "a" * 62


def test_a_pod_as_kubernetes_object_shows_its_owner_and_addresses(lab: Lab) -> None:
    cluster = lab.apply(workload("Deployment", "web"))
    thing = pod_object(cluster.pods[0], cluster.nodes[0])
    (owner,) = thing["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["apiVersion"]) == ("ReplicaSet", "apps/v1")
    assert cluster.pods[0].name.startswith(owner["name"])
    assert thing["spec"]["nodeName"] == "n1"
    assert thing["status"]["podIP"] == "10.244.1.2"
    assert thing["status"]["hostIP"] == "192.168.50.11"
    assert thing["status"]["phase"] == "Running"
    assert validate_objects([thing]), "what get prints can be applied"


def test_a_node_as_kubernetes_object_shows_its_addresses_and_ranges(lab: Lab) -> None:
    thing = node_object(lab.apply().nodes[1])
    assert thing["status"]["addresses"][0] == {"type": "InternalIP", "address": "192.168.50.12"}
    assert thing["spec"] == {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]}
    assert thing["metadata"]["labels"]["topology.kubernetes.io/zone"] == "b"
