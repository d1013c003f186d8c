"""emulator.cni.calico_bgp: meshes, reflectors and racks, and the routes that come of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emulator.cluster.assemble import assemble
from emulator.errors import ManifestError, UserError
from emulator.plan.build import build
from emulator.plan.model import Daemon, File, Route

FABRIC = """\
name: fabric
podCIDRs: [10.244.0.0/16]
pods: 1
switches:
  - {name: s1, cidrs: [192.168.51.0/24]}
  - {name: s2, cidrs: [192.168.52.0/24]}
nodes:
  - {name: n1, switch: s1, zone: r1, asn: 64513}
  - {name: n2, switch: s1, zone: r1, asn: 64513}
  - {name: n3, switch: s2, zone: r2, asn: 64514}
  - {name: n4, switch: s2, zone: r2, asn: 64514}
routers: [{name: tor1, switch: s1, asn: 64513}, {name: tor2, switch: s2, asn: 64514}]
links:
  - {from: tor1, to: tor2, cidrs: [10.0.0.0/30]}
"""


def resource(kind: str, name: str, spec: dict[str, Any], **meta: Any) -> dict[str, Any]:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name, **meta}, "spec": spec}


NO_MESH = resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False})
REFLECTOR = resource("Node", "n1", {"bgp": {"routeReflectorClusterID": "244.0.0.1"}}, labels={"rr": "true"})
REFLECTED = resource("BGPPeer", "rr", {"nodeSelector": "all()", "peerSelector": "rr == 'true'"})
TORS = tuple(
    resource(
        "BGPPeer",
        f"rack-{number}",
        {
            "nodeSelector": f"topology.kubernetes.io/zone == 'r{number}'",
            "peerIP": f"192.168.5{number}.1",
            "asNumber": 64512 + number,
        },
    )
    for number in (1, 2)
)


def learned(made: Any, ns: str) -> dict[str, str]:
    return {item.destination: item.via for item in made.of(Route, ns) if item.learned and item.type == "unicast"}


def bird(made: Any, ns: str) -> str:
    (file,) = [item for item in made.of(File, ns) if item.path.endswith(("bird.cfg", "bird.conf"))]
    return str(file.content)


def sessions(text: str) -> dict[str, str]:
    """Each session's statements, by its name."""
    found = {}
    for part in text.split("protocol bgp ")[1:]:
        name, _, body = part.partition(" ")
        found[name] = body.partition("\n}")[0]
    return found


def test_reflectors_and_their_clients_leave_the_mesh(planned: Any) -> None:
    made = planned("calico", objects=(NO_MESH, REFLECTOR, REFLECTED))
    of_reflector, of_client = sessions(bird(made, "node/n1")), sessions(bird(made, "node/n2"))
    assert set(of_reflector) == {"Node_192_168_50_12", "Node_192_168_50_13"}
    assert all("rr client;" in body and "rr cluster id 244.0.0.1;" in body for body in of_reflector.values())
    assert set(of_client) == {"Node_192_168_50_11"}
    assert "rr " not in of_client["Node_192_168_50_11"]


def test_clients_learn_each_others_blocks_by_their_own_addresses(planned: Any) -> None:
    made = planned("calico", objects=(NO_MESH, REFLECTOR, REFLECTED))
    assert learned(made, "node/n2") == {"10.244.0.0/26": "192.168.50.11", "10.244.0.128/26": "192.168.50.13"}
    (route,) = [item for item in made.of(Route, "node/n2") if item.destination == "10.244.0.128/26"]
    assert route.why == "block of n3, learned by BGP from n1"


def test_a_node_that_nobody_peers_with_is_refused(planned: Any) -> None:
    with pytest.raises(UserError, match=r"from n1 to the pods of n2 .* get lost: tor has no route"):
        planned("calico", objects=(NO_MESH,))


def test_one_side_of_a_session_between_nodes_waits(planned: Any) -> None:
    made = planned("calico", objects=(NO_MESH, REFLECTOR, REFLECTED))
    assert "passive on" in sessions(bird(made, "node/n1"))["Node_192_168_50_12"]
    assert "passive" not in sessions(bird(made, "node/n2"))["Node_192_168_50_11"]


def test_racks_of_their_own_as_hear_of_each_other_by_their_routers(planned: Any) -> None:
    made = planned("calico", FABRIC, objects=(NO_MESH, *TORS))
    assert learned(made, "node/n1") == {
        "10.244.0.64/26": "192.168.51.12",
        "10.244.0.128/26": "192.168.51.1",
        "10.244.0.192/26": "192.168.51.1",
    }
    assert learned(made, "router/tor1") == {
        "10.244.0.0/26": "192.168.51.11",
        "10.244.0.64/26": "192.168.51.12",
        "10.244.0.128/26": "10.0.0.2",
        "10.244.0.192/26": "10.0.0.2",
    }
    assert {item.ns for item in made.of(Daemon)} == {f"node/n{n}" for n in range(1, 5)} | {"router/tor1", "router/tor2"}


def test_a_router_is_the_reflector_of_its_rack(planned: Any) -> None:
    made = planned("calico", FABRIC, objects=(NO_MESH, *TORS))
    of_router = sessions(bird(made, "router/tor1"))
    assert set(of_router) == {"Node_192_168_51_11", "Node_192_168_51_12", "Fabric_10_0_0_2"}
    assert "rr client;" in of_router["Node_192_168_51_11"]
    assert "next hop self ebgp;" in of_router["Node_192_168_51_11"]
    assert "neighbor 10.0.0.2 as 64514;" in of_router["Fabric_10_0_0_2"]
    assert "rr " not in of_router["Fabric_10_0_0_2"]


def test_routers_that_nobody_peers_with_run_nothing(planned: Any) -> None:
    made = planned("calico:vxlan", FABRIC)
    assert made.of(Daemon) == []


def test_one_as_for_all_leaves_racks_to_the_default_route(planned: Any) -> None:
    """The downward default design: nodes refuse paths with their own number in it, and send all to their router."""
    same = FABRIC.replace(", asn: 64513}\n  - {name: n2", "}\n  - {name: n2").replace(
        "zone: r1, asn: 64513", "zone: r1"
    )
    same = same.replace("zone: r2, asn: 64514", "zone: r2")
    made = planned("calico", same, objects=(NO_MESH, *TORS))
    assert learned(made, "node/n1") == {}
    assert learned(made, "router/tor1")["10.244.0.128/26"] == "10.0.0.2"


def test_a_router_of_another_number_than_the_peering_says_is_no_peer(planned: Any) -> None:
    other = FABRIC.replace("{name: tor1, switch: s1, asn: 64513}", "{name: tor1, switch: s1, asn: 64999}")
    with pytest.raises(UserError, match="get lost"):
        planned("calico", other, objects=(NO_MESH, *TORS))


def test_passwords_stand_at_both_ends(planned: Any) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "bgp", "namespace": "kube-system"},
        "stringData": {"tor": "hush hush"},
    }
    peers = [msgspec.json.decode(msgspec.json.encode(peer)) for peer in TORS]
    peers[0]["spec"]["password"] = {"secretKeyRef": {"name": "bgp", "key": "tor"}}
    made = planned("calico", FABRIC, objects=(NO_MESH, secret, *peers))
    assert 'password "hush hush";' in sessions(bird(made, "node/n1"))["Node_192_168_51_1"]
    assert 'password "hush hush";' in sessions(bird(made, "router/tor1"))["Node_192_168_51_11"]
    assert "password" not in bird(made, "node/n3")


def test_a_pool_that_is_not_exported_is_unknown_to_others(planned: Any) -> None:
    hidden = resource("IPPool", "p", {"cidr": "10.244.0.0/16", "disableBGPExport": True})
    with pytest.raises(UserError, match="get lost"):
        planned("calico", FABRIC, objects=(NO_MESH, *TORS, hidden))


def test_the_restart_time_is_that_of_the_resources(planned: Any) -> None:
    made = planned("calico", objects=(resource("BGPConfiguration", "default", {"nodeMeshMaxRestartTime": "5s"}),))
    assert "graceful restart time 5;" in sessions(bird(made, "node/n1"))["Mesh_192_168_50_12"]


def test_a_borrowed_address_is_told_to_routers_too(planned: Any) -> None:
    made = planned("calico", FABRIC, objects=(NO_MESH, *TORS))
    pod = made.cluster.pods[0]
    borrowed = msgspec.structs.replace(pod, addresses=("10.244.0.140",))
    cluster = msgspec.structs.replace(made.cluster, pods=(borrowed, *made.cluster.pods[1:]))
    ways = {item.ns: item.via for item in build(cluster, made.style) if isinstance(item, Route) and item.learned
            and item.destination == "10.244.0.140/32"}  # fmt: skip
    assert ways == {
        "node/n2": "192.168.51.11",
        "node/n3": "192.168.52.1",
        "node/n4": "192.168.52.1",
        "router/tor1": "192.168.51.11",
        "router/tor2": "10.0.0.1",
    }


# The environment of calico-node


def calico_node(value: str) -> dict[str, Any]:
    container = {"name": "calico-node", "image": "calico/node", "env": [{"name": "CALICO_ROUTER_ID", "value": value}]}
    labels = {"k8s-app": "calico-node"}
    template = {"metadata": {"labels": labels}, "spec": {"hostNetwork": True, "containers": [container]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "calico-node", "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def test_one_router_id_for_all_nodes_leaves_them_without_routes(planned: Any) -> None:
    made = planned("calico", objects=[calico_node("192.168.50.11")])
    assert [learned(made, f"node/{name}") for name in ("n1", "n2", "n3")] == [{}, {}, {}]
    for name in ("n1", "n2", "n3"):
        assert "router id 192.168.50.11;" in bird(made, f"node/{name}")


def test_hashed_router_ids_differ_and_change_nothing_else(planned: Any) -> None:
    made, plain = planned("calico", objects=[calico_node("hash")]), planned("calico")
    ids = {bird(made, f"node/{name}").partition("router id ")[2].partition(";")[0] for name in ("n1", "n2", "n3")}
    assert len(ids) == 3
    assert not any(each.startswith("192.168.50.") for each in ids)
    assert [learned(made, f"node/{name}") for name in ("n1", "n2")] == [
        learned(plain, f"node/{n}") for n in ("n1", "n2")
    ]


def test_an_empty_router_id_is_none(planned: Any) -> None:
    assert "router id 192.168.50.12;" in bird(planned("calico", objects=[calico_node("")]), "node/n2")


@pytest.mark.parametrize("value", ["n1", "fd00::1", "0.0.0.0", "192.168.50.11; }"])
def test_what_is_no_router_id_is_refused(planned: Any, value: str) -> None:
    with pytest.raises(ManifestError, match="must be hash, or an IPv4 address") as caught:
        planned("calico", objects=[calico_node(value)])
    assert caught.value.problems[0].subject == "DaemonSet calico-node"


def test_one_nodes_changed_environment_changes_the_others_routes(planned: Any) -> None:
    plain = planned("calico")
    only_n3 = calico_node("192.168.50.11")
    only_n3["spec"]["template"]["spec"]["nodeName"] = "n3"
    cluster = assemble(plain.cluster.topology, [only_n3], plain.ipam, plain.cluster)
    plan = build(cluster, plain.style, previous=(plain.cluster, plain.plan))
    known = {
        name: {
            item.destination for item in plan.in_namespace(f"node/{name}") if isinstance(item, Route) and item.learned
        }
        for name in ("n1", "n2", "n3")
    }
    assert known == {
        "n1": {"10.244.0.0/26", "10.244.0.64/26"},  # no session with n3, which has n1's identifier
        "n2": {"10.244.0.0/26", "10.244.0.64/26", "10.244.0.128/26"},
        "n3": {"10.244.0.64/26", "10.244.0.128/26"},
    }


def claim(node: str, cidr: str, state: str = "confirmed", deleted: str = "false") -> dict[str, Any]:
    spec = {"cidr": cidr, "node": node, "state": state, "deleted": deleted}
    return resource("BlockAffinity", f"{node}-claim", spec) | {"apiVersion": "crd.projectcalico.org/v1"}


def test_a_block_with_two_claims_is_announced_by_both_nodes_and_spread_by_the_others(planned: Any) -> None:
    made = planned("calico", objects=(claim("n3", "10.244.0.64/26"),))

    (route,) = [item for item in made.of(Route, "node/n1") if item.destination == "10.244.0.64/26"]
    assert (route.hops, route.via, route.learned) == (
        (("192.168.50.12", "eth0"), ("192.168.50.13", "eth0")),
        "",
        True,
    )
    assert "n2 and n3" in route.why
    for node in ("n2", "n3"):  # whoever believes that it has the block drops what no pod of its own has
        (own,) = [item for item in made.of(Route, f"node/{node}") if item.destination == "10.244.0.64/26"]
        assert own.type == "blackhole"
        assert "route 10.244.0.64/26 blackhole;" in bird(made, f"node/{node}")
    assert "BlockAffinity" in own.why
    assert "route 10.244.0.64/26 blackhole;" not in bird(made, "node/n1")


@pytest.mark.parametrize("how", [("pending", "false"), ("pendingDeletion", "false"), ("confirmed", "true")])
def test_a_claim_that_does_not_count_changes_nothing(planned: Any, how: tuple[str, str]) -> None:
    assert learned(planned("calico", objects=(claim("n3", "10.244.0.64/26", *how),)), "node/n1") == learned(
        planned("calico"), "node/n1"
    )


def test_felixs_routes_go_by_the_block_and_not_by_claims(planned: Any) -> None:
    made = planned("calico:vxlan", objects=(claim("n3", "10.244.0.64/26"),))
    assert list(made.of(Route)) == list(planned("calico:vxlan").of(Route))
