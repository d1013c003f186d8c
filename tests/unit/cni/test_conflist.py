"""The conflist style plans an attachment for each pod, and nothing that plugins make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.model import Cluster
from emulator.cluster.topology import load_topology
from emulator.cni.styles import load_style, settle, style_key, style_names
from emulator.errors import UserError
from emulator.plan.build import build
from emulator.plan.diff import diff
from emulator.plan.model import CniAttachment, File, Namespace, Plan, PluginDevice, Veth

NETWORK = {
    "cniVersion": "1.0.0",
    "name": "net",
    "plugins": [{"type": "bridge", "ipam": {"type": "host-local", "subnet": "{{.PodCIDR}}"}}],
}


@pytest.fixture
def spec(tmp_path: Path) -> str:
    file = tmp_path / "10-my.conflist"
    file.write_text(json.dumps(NETWORK))
    return f"conflist={file}"


def planned(spec: str, *pods: dict[str, Any]) -> tuple[Cluster, Plan]:
    topology = load_topology("three-nodes")
    style = load_style(spec)
    cluster = assemble(topology, list(pods), style.ipam(topology), None)
    style.check(cluster)
    return cluster, build(cluster, style)


def attachment(plan: Plan, pod: str) -> CniAttachment:
    return next(item for item in plan if isinstance(item, CniAttachment) and item.ns == f"pod/{pod}")


def pod(name: str, annotations: dict[str, str] | None = None, **port: Any) -> dict[str, Any]:
    ports = [{"containerPort": 80, **port}]
    metadata = {"name": name, "namespace": "default", "annotations": annotations or {}}
    spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "ports": ports}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_the_style_is_called_after_its_file(spec: str) -> None:
    style = load_style(spec)
    assert (style.name, style.mode, style.title) == ("conflist", "10-my", "net · bridge")
    assert style_key(f"{spec};/opt/x") == "conflist:10-my"


def test_other_styles_keep_their_spelling() -> None:
    assert style_key("flannel:host-gw") == settle("flannel:host-gw", ["/x"]) == "flannel:host-gw"


def test_it_stands_in_no_list_of_styles_as_it_needs_a_file() -> None:
    assert "conflist" not in style_names()
    for spelling in ("conflist", "conflist:bridge", "conflist="):
        with pytest.raises(UserError, match="needs a CNI configuration"):
            load_style(spelling)


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert settle("conflist=a.conflist", ["bin", "/opt/x"]) == f"conflist={tmp_path}/a.conflist;{tmp_path}/bin:/opt/x"
    assert settle("conflist=/a.conflist;/b", ["bin"]) == "conflist=/a.conflist;/b"


def test_a_pods_fragment_holds_its_namespace_and_the_attachment_only(spec: str) -> None:
    _, plan = planned(spec)
    kinds = {type(item) for item in plan.fragments["pod/default/n1-p1"]}
    assert {Namespace, CniAttachment} <= kinds
    assert Veth not in kinds


def test_each_node_has_its_own_range_in_the_configuration(spec: str) -> None:
    _, plan = planned(spec)
    subnets = [
        json.loads(attachment(plan, f"default/{node}-p1").network)["plugins"][0]["ipam"]["subnet"]
        for node in ("n1", "n2")
    ]
    assert subnets == ["10.244.1.0/24", "10.244.2.0/24"]
    (file,) = (item for item in plan.fragments["node/n2"] if isinstance(item, File))
    assert file.path == "/etc/cni/net.d/10-my.conflist"
    assert "10.244.2.0/24" in file.content


def test_plugins_are_told_the_pods_name_and_a_container_of_64_digits(spec: str) -> None:
    _, plan = planned(spec)
    item = attachment(plan, "default/n1-p1")
    assert len(item.container) == 64
    assert item.args == (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", "default"),
        ("K8S_POD_NAME", "n1-p1"),
        ("K8S_POD_INFRA_CONTAINER_ID", item.container),
    )
    assert attachment(planned(spec)[1], "default/n1-p1").container == item.container


def test_host_ports_annotations_and_bandwidth_are_offered(spec: str) -> None:
    annotations = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1Mi"}
    _, plan = planned(spec, pod("web", annotations, hostPort=8080, protocol="UDP"))
    assert json.loads(attachment(plan, "default/web").capabilities) == {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}],
        "bandwidth": {
            "ingressRate": 10_000_000,
            "ingressBurst": 4294967295,
            "egressRate": 1_048_576,
            "egressBurst": 4294967295,
        },
        "io.kubernetes.cri.pod-annotations": annotations,
    }


@pytest.mark.parametrize("value", ["fast", "1", "2P", "-1M"])
def test_a_bandwidth_that_kubernetes_refuses_is_refused(spec: str, value: str) -> None:
    with pytest.raises(UserError, match="a quantity of bit/s from 1k to 1P was expected"):
        planned(spec, pod("web", {"kubernetes.io/egress-bandwidth": value}))


def test_a_pod_that_replaces_one_of_its_name_is_another_container(spec: str) -> None:
    topology, style = load_topology("three-nodes"), load_style(spec)
    ipam = style.ipam(topology)
    before = assemble(topology, [pod("web")], ipam, None)
    after = assemble(topology, [pod("web")], ipam, before, gone=["default/web"])
    old, new = build(before, style), build(after, style)
    assert attachment(old, "default/web").container != attachment(new, "default/web").container
    steps = [(step.verb, type(step.subject).__name__) for step in diff(old, new)]
    assert steps[0] == ("remove", "CniAttachment")
    assert ("remove", "Namespace") in steps
    assert steps[-1] == ("add", "CniAttachment")


def test_a_host_port_that_comes_attaches_the_pod_anew(spec: str) -> None:
    topology, style = load_topology("three-nodes"), load_style(spec)
    ipam = style.ipam(topology)
    before = assemble(topology, [pod("web")], ipam, None)
    after = assemble(topology, [pod("web", hostPort=8080)], ipam, before)
    old = build(before, style)
    steps = diff(old, build(after, style, previous=(before, old)))
    verbs = [step.verb for step in steps if isinstance(step.subject, CniAttachment)]
    assert verbs == ["remove", "add"]


def test_what_came_of_an_attachment_makes_no_difference(spec: str) -> None:
    _, plan = planned(spec)
    device = PluginDevice("node/n1", "veth1", "veth", "02:00:00:00:00:01", 1500, "bridge", "cni0")
    name = "pod/default/n1-p1"
    told = tuple(
        CniAttachment(**{**{f: getattr(item, f) for f in item.__struct_fields__}, "devices": (device,)})
        if isinstance(item, CniAttachment)
        else item
        for item in plan.fragments[name]
    )
    annotated = Plan(style=plan.style, topology=plan.topology, fragments={**plan.fragments, name: told})
    assert diff(plan, annotated) == []


def test_wire_accurate_switches_the_offloads_of_plugins_devices_off(spec: str) -> None:
    cluster, _ = planned(spec)
    plan = build(cluster, load_style(spec), wire_accurate=True)
    assert not attachment(plan, "default/n1-p1").offloads


def test_pods_have_no_address_before_the_plugins_gave_one(spec: str) -> None:
    cluster, _ = planned(spec)
    assert {item.addresses for item in cluster.pods} == {()}
    assert cluster.nodes[0].pod_ranges == ("10.244.1.0/24",)
