"""Random worlds for policies: namespaces, pods and NetworkPolicies as manifests, and what changes in them.

A world is small and its names are few, so that selectors meet what they select. Addresses in ipBlocks are those that
the assembly of ``TOPOLOGY`` gives to pods, nodes and hosts, or lie around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Object = dict[str, Any]

TOPOLOGY = """\
name: policies
podCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]
serviceCIDRs: [10.96.0.0/12, "fd00:10:96::/112"]
pods: 0
switches:
  - {name: s1, cidrs: [192.168.50.0/24, "fd00:50::/64"]}
  - {name: s2, cidrs: [172.31.0.0/24, "fd00:31::/64"]}
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor}]
hosts: [{name: client, switch: s2}]
links:
  - {from: tor, to: s1}
  - {from: tor, to: s2}
"""

NODES = ("n1", "n2")
NAMESPACES = ("x", "y", "z")
NAMES = ("a", "b", "c")
KEYS, VALUES = ("app", "tier"), ("a", "b", "")
PORT_NAMES = ("web", "dns", "alt")
PORTS = (("TCP", 80), ("TCP", 81), ("UDP", 80), ("UDP", 53), ("SCTP", 80))
CIDRS = {
    "0.0.0.0/0": ("10.244.0.0/16", "10.244.1.0/24", "172.31.0.0/24", "128.0.0.0/1"),
    "10.244.0.0/16": ("10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/25", "10.244.1.2/32", "10.244.2.3/32"),
    "10.244.1.7/24": ("10.244.1.2/32", "10.244.1.2/31"),  # host bits, masked off
    "10.244.2.0/24": ("10.244.2.2/32",),
    "10.244.0.0/26": ("10.244.0.2/31", "10.244.0.16/28"),
    "10.244.1.2/32": (),
    "172.31.0.0/24": ("172.31.0.128/25", "172.31.0.10/32"),
    "192.168.50.0/24": ("192.168.50.11/32",),
    "::/0": ("fd00:10:244::/56", "fd00:10:244:1::/64", "fd00:31::/64"),
    "fd00:10:244::/56": ("fd00:10:244::/64", "fd00:10:244:1::2/128"),
    "fd00:10:244:1::/64": ("fd00:10:244:1::2/127",),
    "fd00:31::/64": ("fd00:31::10/128",),
}


@dataclass(frozen=True)
class World:
    """All objects of a moment, in the order in which they can be made."""

    objects: tuple[Object, ...]

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]


labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2)


def _requirement(key: str, operator: str, values: Sequence[str]) -> Object:
    needs = operator in ("In", "NotIn")
    return {"key": key, "operator": operator, **({"values": list(values)} if needs else {})}


requirements = st.builds(
    _requirement,
    st.sampled_from((*KEYS, "absent")),
    st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=2),
)


def _selector(match: dict[str, str], expressions: list[Object]) -> Object:
    found: Object = {}
    if match:
        found["matchLabels"] = match
    if expressions:
        found["matchExpressions"] = expressions
    return found


pod_selectors: st.SearchStrategy[Object] = st.one_of(
    st.just({}),
    st.builds(_selector, labels, st.just([])),
    st.builds(_selector, st.just({}), st.lists(requirements, min_size=1, max_size=2)),
    st.builds(_selector, labels, st.lists(requirements, min_size=1, max_size=1)),
)
namespace_selectors: st.SearchStrategy[Object] = pod_selectors | st.builds(
    lambda name: {"matchLabels": {"kubernetes.io/metadata.name": name}}, st.sampled_from(NAMESPACES)
)


@st.composite
def blocks(draw: st.DrawFn) -> Object:
    cidr = draw(st.sampled_from(sorted(CIDRS)))
    excepts = draw(st.lists(st.sampled_from(CIDRS[cidr]), max_size=2, unique=True)) if CIDRS[cidr] else []
    return {"cidr": cidr, **({"except": excepts} if excepts else {})}


peers = st.one_of(
    st.builds(lambda pods: {"podSelector": pods}, pod_selectors),
    st.builds(lambda spaces: {"namespaceSelector": spaces}, namespace_selectors),
    st.builds(
        lambda pods, spaces: {"podSelector": pods, "namespaceSelector": spaces}, pod_selectors, namespace_selectors
    ),
    st.builds(lambda block: {"ipBlock": block}, blocks()),
)


@st.composite
def policy_ports(draw: st.DrawFn) -> Object:
    found: Object = {}
    protocol = draw(st.sampled_from((None, "TCP", "UDP", "SCTP")))
    if protocol:
        found["protocol"] = protocol
    port = draw(st.sampled_from((None, 53, 79, 80, 81, *PORT_NAMES)))
    if port is not None:
        found["port"] = port
        if isinstance(port, int) and draw(st.booleans()):
            found["endPort"] = port + draw(st.sampled_from((0, 1, 100)))
    return found


@st.composite
def rules(draw: st.DrawFn, field: str) -> Object:
    found: Object = {}
    if draw(st.integers(0, 3)):
        found[field] = draw(st.lists(peers, min_size=draw(st.sampled_from((0, 1, 1, 1))), max_size=2))
    if draw(st.booleans()):
        found["ports"] = draw(st.lists(policy_ports(), min_size=draw(st.sampled_from((0, 1, 1, 1))), max_size=3))
    return found


@st.composite
def policies(draw: st.DrawFn, namespace: str, name: str) -> Object:
    spec: Object = {"podSelector": draw(pod_selectors)} if draw(st.integers(0, 4)) else {}
    for section, field in (("ingress", "from"), ("egress", "to")):
        if draw(st.booleans()):
            spec[section] = draw(st.lists(rules(field), min_size=draw(st.sampled_from((0, 1, 1, 1))), max_size=2))
    types = draw(st.sampled_from((None, ["Ingress"], ["Egress"], ["Ingress", "Egress"], ["Egress", "Egress"])))
    if types is not None:
        spec["policyTypes"] = types
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def policy(space: str, name: str, **spec: Any) -> Object:
    """A NetworkPolicy, of all pods of the namespace unless its spec says otherwise."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": space},
        "spec": {"podSelector": {}, **spec},
    }


def namespace(name: str, given: dict[str, str]) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": given}}


def pod(space: str, name: str, node: str, given: dict[str, str], names: Sequence[str], host: bool = False) -> Object:
    """A pod that serves every port of ``PORTS``; ``names[i]`` names the i-th, empty for none."""
    ports = [
        {"containerPort": number, "protocol": protocol, **({"name": called} if called else {})}
        for (protocol, number), called in zip(PORTS, names, strict=True)
    ]
    container: Object = {"name": "main", "image": "agnhost", "ports": ports}
    spec: Object = {"nodeName": node, "containers": [container]}
    if host:
        spec["hostNetwork"] = True
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": given},
        "spec": spec,
    }


# Names of the ports in their order: the same name may stand at another number on another pod
port_names = st.permutations((*PORT_NAMES, "", "")).map(list)


@st.composite
def pods(draw: st.DrawFn, space: str, name: str) -> Object:
    return pod(space, name, draw(st.sampled_from(NODES)), draw(labels), draw(port_names))


@st.composite
def worlds(draw: st.DrawFn, spaces: int = 3, each: int = 3, policies_max: int = 4) -> World:
    """A world of up to that many namespaces, pods in each of them, and policies."""
    names = NAMESPACES[: draw(st.integers(min(2, spaces), spaces))]
    found = [namespace(name, draw(labels)) for name in names]
    for name in names:
        count = draw(st.integers(min(2, each), each))
        found += [draw(pods(name, pod_name)) for pod_name in NAMES[:count]]
    for number in range(draw(st.integers(1, policies_max))):
        found.append(draw(policies(draw(st.sampled_from(names)), f"p{number}")))
    return World(tuple(found))


CHANGES = ("relabel pod", "relabel namespace", "policy", "no policy", "new policy", "no pod", "pod")


@st.composite
def changed(draw: st.DrawFn, world: World) -> World:
    """The world after one change: a label, a pod, a namespace or a policy."""
    objects = list(deepcopy(world.objects))
    kind = draw(st.sampled_from(CHANGES))
    of = {
        name: [number for number, one in enumerate(objects) if one["kind"] == name]
        for name in ("Pod", "Namespace", "NetworkPolicy")
    }
    spaces = [objects[number]["metadata"]["name"] for number in of["Namespace"]]
    if kind == "relabel pod" and of["Pod"]:
        objects[draw(st.sampled_from(of["Pod"]))]["metadata"]["labels"] = draw(labels)
    elif kind == "relabel namespace":
        objects[draw(st.sampled_from(of["Namespace"]))]["metadata"]["labels"] = draw(labels)
    elif kind == "policy" and of["NetworkPolicy"]:
        number = draw(st.sampled_from(of["NetworkPolicy"]))
        metadata = objects[number]["metadata"]
        objects[number] = draw(policies(metadata["namespace"], metadata["name"]))
    elif kind == "no policy" and of["NetworkPolicy"]:
        del objects[draw(st.sampled_from(of["NetworkPolicy"]))]
    elif kind == "no pod" and len(of["Pod"]) > 1:
        del objects[draw(st.sampled_from(of["Pod"]))]
    elif kind == "pod":
        space = draw(st.sampled_from(spaces))
        taken = {
            one["metadata"]["name"] for one in objects if one["kind"] == "Pod" and one["metadata"]["namespace"] == space
        }
        name = draw(st.sampled_from(("a", "b", "c", "d", "e")))
        if name not in taken:
            objects.append(draw(pods(space, name)))
    else:
        names = {one["metadata"]["name"] for one in objects if one["kind"] == "NetworkPolicy"}
        name = draw(st.sampled_from([f"p{number}" for number in range(8) if f"p{number}" not in names]))
        objects.append(draw(policies(draw(st.sampled_from(spaces)), name)))
    return World(tuple(objects))
