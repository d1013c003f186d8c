"""emulator.cni.calico_settings: what Calico's resources say, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.cluster.model import Node
from emulator.cni.calico_reading import read_settings
from emulator.cni.calico_settings import Encapsulation, Settings
from emulator.errors import ManifestError

NODES = (
    Node("n1", ("192.168.50.11",), "eth0", 1500, labels={"zone": "a"}),
    Node("n2", ("192.168.50.12",), "eth0", 1500, labels={"zone": "b"}, asn=64600),
)


def resource(
    kind: str, spec: dict[str, Any], name: str = "default", version: str = "projectcalico.org/v3", **meta: Any
) -> Any:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **meta}, "spec": spec}


def read(*objects: Any, cidrs: tuple[str, ...] = ("10.244.0.0/16",), **default: Any) -> Settings:
    return read_settings(objects, NODES, cidrs, Encapsulation(**default))


def faults(*objects: Any, cidrs: tuple[str, ...] = ("10.244.0.0/16",)) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read(*objects, cidrs=cidrs)
    return [str(problem) for problem in caught.value.problems]


def test_without_manifests_there_is_a_pool_for_each_pod_cidr() -> None:
    settings = read(cidrs=("10.244.0.0/16", "fd00:10:244::/56"), vxlan="Always")
    assert [
        (pool.name, pool.cidr, pool.block, pool.encapsulation.vxlan, pool.nat_outgoing) for pool in settings.pools
    ] == [
        ("default-ipv4-ippool", "10.244.0.0/16", 26, "Always", True),
        ("default-ipv6-ippool", "fd00:10:244::/56", 122, "Always", True),
    ]
    assert (settings.mesh, settings.asns) == (True, {"n1": 64512, "n2": 64600})


def test_there_is_no_ipip_for_ipv6() -> None:
    pools = read(cidrs=("10.244.0.0/16", "fd00:10:244::/56"), ipip="Always").pools
    assert [pool.encapsulation.kind for pool in pools] == ["ipip", ""]


@pytest.mark.parametrize("version", ["projectcalico.org/v3", "crd.projectcalico.org/v1"])
def test_a_pool_is_what_its_manifest_says(version: str) -> None:
    spec = {
        "cidr": "10.244.128.0/17",
        "vxlanMode": "CrossSubnet",
        "blockSize": 28,
        "natOutgoing": True,
        "nodeSelector": "zone == 'a'",
        "disableBGPExport": True,
    }
    (pool,) = read(resource("IPPool", spec, "mine", version)).pools
    assert (pool.name, pool.cidr, pool.block, pool.nodes) == ("mine", "10.244.128.0/17", 28, frozenset({"n1"}))
    assert (pool.encapsulation, pool.nat_outgoing, pool.exported) == (Encapsulation(vxlan="CrossSubnet"), True, False)


def test_a_pool_that_does_not_say_so_is_not_masqueraded() -> None:
    (pool,) = read(resource("IPPool", {"cidr": "10.244.0.0/16"})).pools
    assert (pool.nat_outgoing, pool.encapsulation.kind, pool.nodes) == (False, "", None)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"cidr": "10.244.0.1/16"}, "spec.cidr: Invalid value"),
        ({"cidr": "192.168.0.0/16"}, "must lie within the pod CIDRs of the topology: 10.244.0.0/16"),
        ({"cidr": "10.244.0.0/16", "blockSize": 19}, "spec.blockSize: Invalid value: 19: must be between 20 and 32"),
        ({"cidr": "10.244.0.0/27"}, "spec.cidr: Invalid value: \"10.244.0.0/27\": is smaller than a block of /26"),
        ({"cidr": "10.244.0.0/16", "ipipMode": "always"}, "spec.ipipMode: Unsupported value: \"always\""),
        ({"cidr": "10.244.0.0/16", "ipipMode": "Always", "vxlanMode": "Always"}, "IPIP or VXLAN, not both"),
        ({"cidr": "10.244.0.0/16", "ipipmode": "Always"}, 'unknown field "ipipmode", did you mean "ipipMode"?'),
        ({"cidr": "10.244.0.0/16", "allowedUses": ["Tunnel"]}, "spec.allowedUses: Forbidden: not emulated"),
        ({"cidr": "10.244.0.0/16", "nodeSelector": "zone = 'a'"}, "spec.nodeSelector: Invalid value"),
        ({"cidr": "10.244.0.0/16", "disabled": True}, "the cluster has IPv4 pods, and no pool"),
        ({}, "spec.cidr: Required value"),
    ],
)  # fmt: skip
def test_a_pool_with_a_fault_is_refused_with_the_field(spec: dict[str, Any], fault: str) -> None:
    assert any(fault in text for text in faults(resource("IPPool", spec, "mine")))


def test_pools_must_not_overlap() -> None:
    one, other = ({"cidr": cidr} for cidr in ("10.244.0.0/16", "10.244.64.0/18"))
    assert faults(resource("IPPool", one, "a"), resource("IPPool", other, "b")) == [
        'IPPool b: spec.cidr: Invalid value: "10.244.64.0/18": overlaps with IPPool a, 10.244.0.0/16'
    ]


def test_each_family_needs_a_pool() -> None:
    found = faults(resource("IPPool", {"cidr": "10.244.0.0/16"}), cidrs=("10.244.0.0/16", "fd00::/56"))
    assert "the cluster has IPv6 pods" in found[0]


def test_the_clusters_bgp_is_what_its_configuration_says() -> None:
    spec = {"nodeToNodeMeshEnabled": False, "asNumber": "1.10", "nodeMeshMaxRestartTime": "1m30s"}
    settings = read(resource("BGPConfiguration", spec))
    assert (settings.mesh, settings.asns["n1"], settings.mesh_restart_time) == (False, 65546, 90)
    assert settings.asns["n2"] == 64600, "a node's own number counts more"


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"asNumber": 0}, "spec.asNumber: Invalid value: 0"),
        ({"asNumber": "65536.1"}, "spec.asNumber"),
        ({"nodeMeshMaxRestartTime": "5 s"}, "spec.nodeMeshMaxRestartTime: Invalid value"),
        ({"prefixAdvertisements": []}, "spec.prefixAdvertisements: Forbidden: not emulated"),
        ({"nodeToNodeMeshEnabled": "no"}, "spec.nodeToNodeMeshEnabled: expected true or false"),
    ],
)
def test_a_configuration_with_a_fault_is_refused(spec: dict[str, Any], fault: str) -> None:
    assert any(fault in text for text in faults(resource("BGPConfiguration", spec)))


def test_configurations_of_single_nodes_are_refused() -> None:
    assert "only the cluster's" in faults(resource("BGPConfiguration", {}, "node.n1"))[0]


def test_a_node_resource_makes_a_route_reflector() -> None:
    node = resource(
        "Node", {"bgp": {"routeReflectorClusterID": "244.0.0.1", "asNumber": 65001}}, "n1", labels={"rr": "yes"}
    )
    peer = resource("BGPPeer", {"nodeSelector": "!has(rr)", "peerSelector": "has(rr)"}, "reflectors")
    settings = read(node, peer)
    assert (settings.clusters, settings.asns["n1"]) == ({"n1": "244.0.0.1"}, 65001)
    (peering,) = settings.peerings
    assert (peering.scope, peering.nodes, peering.peers) == ("Node", ("n2",), ("n1",))


def test_a_peer_without_nodes_is_global() -> None:
    (peering,) = read(resource("BGPPeer", {"peerIP": "10.0.0.1:1790", "asNumber": 64700})).peerings
    assert (peering.scope, peering.nodes, peering.address, peering.port) == ("Global", ("n1", "n2"), "10.0.0.1", 1790)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({}, "spec.peerIP: Required value: either peerIP with asNumber, or peerSelector"),
        ({"peerIP": "10.0.0.1"}, "spec.asNumber: Required value"),
        ({"peerIP": "10.0.0", "asNumber": 1}, "spec.peerIP: Invalid value"),
        ({"peerIP": "10.0.0.1", "asNumber": 1, "node": "n9"}, 'spec.node: Invalid value: "n9"'),
        ({"peerIP": "10.0.0.1", "asNumber": 1, "node": "n1", "nodeSelector": "all()"}, "spec.nodeSelector: Forbidden"),
        ({"peerSelector": "all()", "asNumber": 1}, "spec.asNumber: Forbidden"),
        ({"peerIP": "10.0.0.1", "asNumber": 1, "filters": []}, "spec.filters: Forbidden: not emulated"),
        (
            {"peerIP": "10.0.0.1", "asNumber": 1, "failureDetectionMode": "BFDIfDirectlyConnected"},
            "spec.failureDetectionMode: Forbidden: open-source Calico has no BFD",
        ),
    ],
)
def test_a_peer_with_a_fault_is_refused(spec: dict[str, Any], fault: str) -> None:
    assert any(fault in text for text in faults(resource("BGPPeer", spec, "p")))


def test_a_password_comes_from_a_secret_of_calicos_namespace() -> None:
    peer = resource(
        "BGPPeer",
        {"peerIP": "10.0.0.1", "asNumber": 1, "password": {"secretKeyRef": {"name": "bgp", "key": "p"}}},
    )
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp", "namespace": "kube-system"}}
    assert read(peer, {**secret, "data": {"p": "aHVzaA=="}}).peerings[0].password == "hush"
    assert read(peer, {**secret, "stringData": {"p": "hush"}}).peerings[0].password == "hush"
    assert "there is no such Secret in kube-system or calico-system" in faults(peer)[0]
    assert "has no such key" in faults(peer, {**secret, "stringData": {"q": "hush"}})[0]
    (told,) = faults(peer, {**secret, "stringData": {"p": 'a";b'}})
    assert "printable ASCII characters without quotes" in told
    assert 'a\\"' not in told, "a secret is not shown"


def test_vxlan_alone_needs_no_bird() -> None:
    assert not read(vxlan="Always").runs_bird
    assert read().runs_bird
    assert read(ipip="Always").runs_bird
    assert read(resource("BGPPeer", {"peerIP": "10.0.0.1", "asNumber": 1}), vxlan="Always").runs_bird


def test_an_annotation_of_the_topologys_node_makes_a_route_reflector_too() -> None:
    annotated = Node(
        "n1",
        ("192.168.50.11",),
        "eth0",
        1500,
        annotations={"projectcalico.org/RouteReflectorClusterID": "244.0.0.1"},
    )
    settings = read_settings((), (annotated,), ("10.244.0.0/16",), Encapsulation())
    assert settings.clusters == {"n1": "244.0.0.1"}


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"cidr": "10.244.0.64/33"}, "spec.cidr: Invalid value"),
        ({"node": "n9"}, 'spec.node: Invalid value: "n9": the topology\'s nodes are n1, n2'),
        ({"state": "mine"}, 'spec.state: Unsupported value: "mine"'),
        ({"type": "virtual"}, "spec.type: Forbidden: not emulated"),
    ],
)
def test_a_claim_to_a_block_is_refused_with_its_field(spec: dict[str, str], fault: str) -> None:
    good = {"cidr": "10.244.0.64/26", "node": "n1", "state": "confirmed"}
    (found,) = faults(resource("BlockAffinity", {**good, **spec}, "a"))
    assert fault in found
