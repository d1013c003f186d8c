"""weave-npc's rules with real packets, on a hand-made place: two nodes, whose bridges are joined by a cable.

::

    one 10.32.0.2 ┐                                                        ┌ three 10.32.0.4
    two 10.32.0.3 ┴ weave (n1) ─ vethwe-bridge ══════ vethwe-bridge ─ weave (n2)
"""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.kernel.applier import Applier
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation, diff
from emulator.plan.model import Address, AnyObject, Bridge, BridgePort, Namespace, Plan, Route, Sysctl, Veth
from emulator.policy.compile import compile_policies
from emulator.policy.weave import BRIDGE, BRIDGE_PORT, load
from tests.policy.worlds import TOPOLOGY, namespace, pod
from tests.policy.worlds import policy as network_policy

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.requires("veth", "bridge", "iptables", "bridge-nf", "ipset", "ipset-program"),
]

N1, N2 = "pod/n1", "pod/n2"
PODS = {"one": ("x", "n1", "10.32.0.2"), "two": ("y", "n1", "10.32.0.3"), "three": ("y", "n2", "10.32.0.4")}
PATIENCE = 0.7  # seconds until silence counts as such


def wired() -> Iterator[AnyObject]:
    for ns in (N1, N2, *(f"pod/{name}" for name in PODS)):
        yield Namespace(ns=ns, role="pod", hostname=ns.removeprefix("pod/"))
    yield Veth(ns=N1, name=BRIDGE_PORT, mtu=1376, peer_ns=N2, peer=BRIDGE_PORT)
    for ns, address in ((N1, "10.32.0.1/12"), (N2, "10.40.0.1/12")):
        yield Sysctl(ns=ns, name="net/bridge/bridge-nf-call-iptables", value="1")
        yield Bridge(ns=ns, name=BRIDGE, mtu=1376)
        yield BridgePort(ns=ns, device=BRIDGE_PORT, bridge=BRIDGE)
        yield Address(ns=ns, device=BRIDGE, address=address)
    for name, (_, node, address) in PODS.items():
        host = f"vethwepl{name}"
        yield Veth(ns=f"pod/{name}", name="eth0", mtu=1376, peer_ns=f"pod/{node}", peer=host)
        yield BridgePort(ns=f"pod/{node}", device=host, bridge=BRIDGE, hairpin=True)
        yield Address(ns=f"pod/{name}", device="eth0", address=f"{address}/12")
        yield Route(ns=f"pod/{name}", destination="0.0.0.0/0", via="10.32.0.1" if node == "n1" else "10.40.0.1")


def cluster_with(*policies: dict[str, Any]) -> Cluster:
    """The pods of the place, with its addresses."""
    topology = parse_topology(TOPOLOGY, "policies.yaml")
    objects = [namespace("x", {}), namespace("y", {"team": "y"})]
    objects += [
        pod(space, name, node, {"app": name}, ("web", "", "", "", "")) for name, (space, node, _) in PODS.items()
    ]
    made = assemble(topology, validate([*objects, *policies]).objects, load_style("flannel").ipam(topology))
    pods = tuple(msgspec.structs.replace(one, addresses=(PODS[one.name][2],)) for one in made.pods)
    return msgspec.structs.replace(made, pods=pods)


class Place:
    """The place, with the policies in force."""

    def __init__(self) -> None:
        self.applier = Applier()
        self.applier.apply([Operation(verb="add", new=item) for item in wired()])
        self.plan = Plan(style="none", topology="place", fragments={})
        self.servers = []
        for name in PODS:
            with inside(netns_path(f"pod/{name}")):
                for port in (80, 81):
                    self.servers.append(socket.create_server(("0.0.0.0", port)))
        for server in self.servers:
            threading.Thread(target=_serve, args=(server,), daemon=True).start()

    def enforce(self, *policies: dict[str, Any], mode: Any = "faithful") -> None:
        cluster = cluster_with(*policies)
        compiled = compile_policies(cluster)
        enforcer = load(mode)
        fragments = {
            f"policy/{node.name}": tuple(
                msgspec.structs.replace(item, ns=f"pod/{node.name}") for item in enforcer.node(cluster, compiled, node)
            )
            for node in cluster.nodes
        }
        after = msgspec.structs.replace(self.plan, fragments=fragments)
        self.applier.apply(diff(self.plan, after))
        self.plan = after

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.applier.close()


def _serve(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


def reaches(source: str, target: str, port: int = 80) -> bool:
    address = PODS[target][2] if target in PODS else target
    with inside(netns_path(f"pod/{source}")):
        sock = socket.socket()
    with sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect((address, port))
        except TimeoutError:
            return False
    return True


def dropped() -> tuple[int, int]:
    """The packets that the rules of n1 and of n2 have dropped so far."""
    counts = []
    for node in (N1, N2):
        with inside(netns_path(node)):
            printed = subprocess.run(["iptables", "-nvxL"], capture_output=True, text=True, check=True).stdout
        counts.append(sum(int(found[1]) for found in re.finditer(r"^\s*(\d+)\s+\d+\s+DROP\s", printed, re.MULTILINE)))
    return counts[0], counts[1]


policy = partial(network_policy, "x", "p")
TEAM_Y = {"namespaceSelector": {"matchLabels": {"team": "y"}}}


def test_without_policies_all_pods_talk(place: Place) -> None:
    place.enforce()
    assert [reaches("three", "one"), reaches("two", "one"), reaches("one", "three")] == [True, True, True]


def test_ingress_is_dropped_for_pods_of_this_node_and_of_others(place: Place) -> None:
    place.enforce(policy())
    here, there = dropped()
    assert [reaches("three", "one"), reaches("two", "one"), reaches("one", "three")] == [False, False, True]
    assert dropped()[0] > here  # where the destination is
    assert dropped()[1] == there


def test_egress_is_dropped_before_it_leaves_its_node_but_not_to_the_node(place: Place) -> None:
    place.enforce(policy(policyTypes=["Egress"]))
    here, there = dropped()
    assert [reaches("one", "three"), reaches("one", "two"), reaches("three", "one")] == [False, False, True]
    assert dropped()[0] > here  # where the source is
    assert dropped()[1] == there
    with inside(netns_path(N1)), socket.create_server(("10.32.0.1", 80)):
        assert reaches("one", "10.32.0.1")


def test_a_namespace_is_let_in_by_its_list_of_sets(place: Place) -> None:
    place.enforce(policy(ingress=[{"from": [TEAM_Y], "ports": [{"port": 80}]}]))
    assert [reaches("three", "one"), reaches("two", "one"), reaches("three", "one", 81)] == [True, True, False]


def test_a_policy_with_a_named_port_has_no_effect_unless_the_api_is_to_be_followed(place: Place) -> None:
    named = policy(ingress=[{"ports": [{"port": "web"}]}])
    place.enforce(named)
    assert [reaches("three", "one", 80), reaches("three", "one", 81)] == [True, True]
    place.enforce(named, mode="spec")
    assert [reaches("three", "one", 80), reaches("three", "one", 81)] == [True, False]


def test_of_a_range_only_its_first_port_is_open_unless_the_api_is_to_be_followed(place: Place) -> None:
    span = policy(ingress=[{"ports": [{"port": 80, "endPort": 90}]}])
    place.enforce(span)
    assert [reaches("three", "one", 80), reaches("three", "one", 81)] == [True, False]
    place.enforce(span, mode="spec")
    assert [reaches("three", "one", 80), reaches("three", "one", 81)] == [True, True]


def test_the_kernel_shows_blocks_with_their_excepts(place: Place) -> None:
    block = {"ipBlock": {"cidr": "10.32.0.0/12", "except": ["10.32.0.3/32"]}}
    place.enforce(policy(ingress=[{"from": [block]}]))
    assert [reaches("three", "one"), reaches("two", "one")] == [True, False]
