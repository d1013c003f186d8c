"""The routes that daemons bring to a node's pods, whatever block their addresses are of."""

from __future__ import annotations

from typing import Any

from emulator.cluster.assemble import assemble
from emulator.cluster.topology import load_topology
from emulator.cni.styles import load_style
from emulator.lab.learned_routes import learned_routes
from emulator.plan.build import build

BORROWER: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "vm", "annotations": {"cni.projectcalico.org/ipAddrs": '["10.244.0.9"]'}},
    "spec": {"nodeName": "n3", "containers": [{"name": "web", "image": "web"}]},
}


def test_routes_to_a_nodes_pods_are_its_blocks_and_the_addresses_that_it_borrowed() -> None:
    topology, calico = load_topology("three-nodes"), load_style("calico")
    cluster = assemble(topology, [BORROWER], calico.ipam(topology))
    found = learned_routes(build(cluster, calico), cluster, to={"n3"})
    assert {(route.ns, route.destination, route.type) for route in found} == {
        ("node/n1", "10.244.0.128/26", "unicast"),
        ("node/n2", "10.244.0.128/26", "unicast"),
        ("node/n3", "10.244.0.128/26", "blackhole"),
        ("node/n1", "10.244.0.9/32", "unicast"),
        ("node/n2", "10.244.0.9/32", "unicast"),
    }
