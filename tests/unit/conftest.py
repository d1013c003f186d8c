"""Plans for tests, made from a topology the way a lab makes them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import Ipam
from emulator.cluster.model import Cluster
from emulator.cluster.topology import load_topology, parse_topology
from emulator.cni.style import Style
from emulator.cni.styles import load_style
from emulator.plan.build import build
from emulator.plan.model import Plan

# Small ones of their own, so that a change of a shipped topology breaks golden plans only.
TOPOLOGIES = {
    "dual-stack": """\
name: dual-stack
podCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]
serviceCIDRs: [10.96.0.0/12, "fd00:10:96::/112"]
pods: 1
switches:
  - {name: s1, cidrs: [192.168.50.0/24, "fd00:50::/64"]}
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}, {name: n3, switch: s1}]
routers: [{name: tor, switch: s1}]
""",
    "ipv6": """\
name: ipv6
podCIDRs: ["fd00:10:244::/56"]
serviceCIDRs: ["fd00:10:96::/112"]
pods: 1
switches:
  - {name: s1, cidrs: ["fd00:50::/64"]}
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}, {name: n3, switch: s1}]
routers: [{name: tor, switch: s1}]
""",
    "racks": """\
name: racks
podCIDRs: [10.244.0.0/16]
pods: 1
switches:
  - {name: s1, cidrs: [192.168.51.0/24]}
  - {name: s2, cidrs: [192.168.52.0/24]}
nodes:
  - {name: n1, switch: s1}
  - {name: n2, switch: s1}
  - {name: n3, switch: s2}
  - {name: n4, switch: s2}
routers: [{name: tor1, switch: s1}, {name: tor2, switch: s2}]
links:
  - {from: tor1, to: tor2, cidrs: [10.0.0.0/30]}
""",
}


@dataclass(frozen=True)
class Planned:
    """A cluster, planned: what a test asserts about."""

    style: Style
    ipam: Ipam
    cluster: Cluster
    plan: Plan

    def of(self, kind: type, ns: str = "") -> list[Any]:
        """The plan's objects of one class, in one namespace or all."""
        return [item for item in self.plan if isinstance(item, kind) and ns in ("", item.ns)]

    def one(self, kind: type, ns: str, **fields: Any) -> Any:
        """The only object of that class and namespace with these fields."""
        (found,) = [
            item for item in self.of(kind, ns) if all(getattr(item, name) == value for name, value in fields.items())
        ]
        return found

    def then(self, *, objects: tuple[dict[str, Any], ...] = (), gone: tuple[str, ...] = ()) -> Planned:
        """The next plan of the same lab: other objects, or pods that died."""
        ipam = self.ipam.copy()
        cluster = assemble(self.cluster.topology, objects, ipam, self.cluster, gone=gone)
        plan = build(cluster, self.style, wire_accurate=self.plan.wire_accurate, previous=(self.cluster, self.plan))
        return Planned(self.style, ipam, cluster, plan)


Planning = Callable[..., Planned]


@pytest.fixture
def planned() -> Planning:
    """``planned("flannel", "three-nodes")``: a name from above or of a shipped topology, or the text of one."""

    def plan(
        spec: str,
        topology: str = "three-nodes",
        *,
        objects: tuple[dict[str, Any], ...] = (),
        wire_accurate: bool = False,
    ) -> Planned:
        text = TOPOLOGIES.get(topology, topology)
        style = load_style(spec)
        described = style.prepare(parse_topology(text, "test") if "\n" in text else load_topology(text))
        ipam = style.ipam(described)
        cluster = assemble(described, objects, ipam)
        style.check(cluster)
        return Planned(style, ipam, cluster, build(cluster, style, wire_accurate=wire_accurate))

    return plan


def pod(name: str, node: str = "n1", namespace: str = "default") -> dict[str, Any]:
    """A pod's manifest."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "agnhost"}]},
    }


@pytest.fixture
def manifest() -> Callable[..., dict[str, Any]]:
    """``manifest("web", node="n1")``: a pod's manifest."""
    return pod


@pytest.fixture(autouse=True)
def _scapy_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ``Ether()`` without addresses would have scapy ask by ARP, on the machine's own network."""
    if "scapy.layers.l2" in sys.modules:

        def refuse(*_args: object) -> None:
            raise AssertionError("give Ether() its addresses: scapy would ask the machine's network for them")

        monkeypatch.setattr(sys.modules["scapy.layers.l2"].conf.neighbor, "resolve", refuse)
