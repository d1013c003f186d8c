"""weave-npc's rules, read as a kernel would: random worlds in spec mode, and each deviation in faithful mode."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate
from emulator.cluster.model import Cluster
from emulator.cni.styles import load_style
from emulator.plan.model import AnyObject, IpSet
from emulator.policy.compile import compile_policies
from emulator.policy.compiled import Compiled
from emulator.policy.evaluate import evaluate
from emulator.policy.flow import End, Flow
from emulator.policy.weave import BRIDGE, BRIDGE_PORT, WeavePolicies, load
from emulator.policy.weave_names import SYMBOLS, set_name
from tests.policy.reading import Packet, Reader
from tests.policy.stepping import TWO, steps
from tests.policy.worlds import namespace, pod, policy, worlds

STYLE = load_style("flannel")
HOSTS = ("172.31.0.10", "203.0.113.7")
PROBED = (("TCP", 80), ("UDP", 53), ("TCP", 81), ("SCTP", 80))


def ends(cluster: Cluster) -> list[End]:
    found = [End("pod", one.key, one.addresses[0]) for one in cluster.pods]
    found += [End("node", node.name, node.addresses[0]) for node in cluster.nodes]
    return found + [End("external", address, address) for address in HOSTS]


def read(readers: dict[str, Reader], cluster: Cluster, flow: Flow) -> bool:
    """Whether the nodes on the way let it pass: pods of two nodes are on one bridge, over ``vethwe-bridge``."""
    nodes = {one.key: one.node for one in cluster.pods}
    source, destination = nodes.get(flow.source.name, ""), nodes.get(flow.destination.name, "")
    both = bool(source and destination)
    for name in dict.fromkeys(name for name in (source, destination) if name):
        local = cluster.node(name).addresses
        if flow.source.kind == "node" and flow.source.name == name:
            continue  # OUTPUT: nothing is asked
        hook = "INPUT" if flow.destination.kind == "node" and flow.destination.name == name else "FORWARD"
        packet = Packet(
            flow.source.address,
            flow.destination.address,
            flow.protocol,
            flow.port,
            incoming=BRIDGE if source == name or both else "eth0",
            outgoing=BRIDGE if destination == name or both else "eth0",
            bridged_in=("vethwepl1" if source == name else BRIDGE_PORT) if both else "",
            bridged_out=("vethwepl2" if destination == name else BRIDGE_PORT) if both else "",
            local=local,
        )
        if readers[name].verdict(hook, packet) != "ACCEPT":
            return False
    return True


def check(cluster: Cluster, compiled: Compiled, enforcer: WeavePolicies) -> None:
    objects: list[AnyObject] = [item for node in cluster.nodes for item in enforcer.node(cluster, compiled, node)]
    readers = {node.name: Reader(objects, node.ns, 4) for node in cluster.nodes}
    places = ends(cluster)
    for source in places:
        for destination in places:
            if "pod" not in (source.kind, destination.kind) or source.name == destination.name:
                continue
            for protocol, port in PROBED:
                flow = Flow(source, destination, protocol, port)
                expected = evaluate(compiled, flow).allowed
                seen = read(readers, cluster, flow)
                if enforcer.mode == "spec":
                    assert seen == expected, flow
                assert (enforcer.deviates(compiled, flow, allowed=expected) is not None) == (seen != expected), flow


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_rules_of_every_step_are_what_the_specification_says(data: st.DataObject) -> None:
    enforcers = load("spec"), load("faithful")
    compiled: Compiled | None = None
    for _, cluster in steps(data, worlds(spaces=2, each=2, policies_max=5), STYLE, 2):
        compiled = compile_policies(cluster, compiled)
        for enforcer in enforcers:
            check(cluster, compiled, enforcer)


@pytest.mark.parametrize("key", ["default:", "ingress-default-allow:default", ":app=web", "kube-system:"])
def test_a_name_is_the_hash_as_a_number_in_base_85(key: str) -> None:
    import hashlib

    name = set_name(key)
    assert len(name) <= 31
    assert name.startswith("weave-")
    digits = [SYMBOLS.index(letter) for letter in name.removeprefix("weave-")]
    number = sum(digit * 85**place for place, digit in enumerate(digits))
    assert number.to_bytes(20) == hashlib.sha1(key.encode()).digest()


def test_names_are_those_that_clusters_show() -> None:
    assert set_name("default:") == "weave-k?Z;25^M}|1s7P3|H9i;*;MhG"
    assert set_name("ingress-default-allow:kube-public") == "weave-Rzff}h:=]JaaJl/G;(XJpGjZ["


NAMED = ("web", "", "", "", "")


def planned(mode: Any, **spec: Any) -> tuple[Cluster, Compiled, WeavePolicies]:
    objects = [
        namespace("x", {}),
        namespace("y", {"team": "y"}),
        pod("x", "a", "n1", {"app": "a"}, NAMED),
        pod("y", "c", "n2", {"app": "c"}, NAMED),
        policy("x", "p", **spec),
    ]
    cluster = assemble(TWO, validate(objects).objects, STYLE.ipam(TWO))
    return cluster, compile_policies(cluster), load(mode)


@pytest.mark.parametrize("mode", ["faithful", "spec"])
@pytest.mark.parametrize(
    ("ports", "port", "specified", "told"),
    [
        ([{"port": "web"}], 81, False, "weave-npc refuses a policy with a named port, all of it"),
        (
            [{"port": 79, "endPort": 90}],
            80,
            True,
            "weave-npc does not read endPort: the first port of the range alone is open",
        ),
    ],
    ids=["named port", "endPort"],
)
def test_a_deviation_is_reproduced_told_and_left_out_in_spec_mode(
    mode: Any, ports: list[Any], port: int, specified: bool, told: str
) -> None:
    cluster, compiled, enforcer = planned(mode, ingress=[{"ports": ports}])
    a, c = (End("pod", key, compiled.pods[key].addresses[0]) for key in ("x/a", "y/c"))
    flow = Flow(c, a, "TCP", port)
    objects = [item for node in cluster.nodes for item in enforcer.node(cluster, compiled, node)]
    readers = {node.name: Reader(objects, node.ns, 4) for node in cluster.nodes}
    assert evaluate(compiled, flow).allowed == specified
    assert read(readers, cluster, flow) == (specified if mode == "spec" else not specified)
    notices = [one.what for one in enforcer.deviations(cluster, compiled) if "IPv6" not in one.what]
    deviation = enforcer.deviates(compiled, flow, allowed=specified)
    assert (deviation.what if deviation else "") == ("" if mode == "spec" else told)
    assert notices == ([] if mode == "spec" else [told])


def test_namespaces_are_lists_of_the_sets_of_their_pods() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "y"}}}
    cluster, compiled, enforcer = planned("faithful", ingress=[{"from": [peer]}])
    sets = {item.name: item for item in enforcer.node(cluster, compiled, cluster.nodes[0]) if isinstance(item, IpSet)}
    found = sets[set_name(":team=y")]
    assert (found.type, found.members) == ("list:set", (set_name("y:"),))
    assert sets[set_name("y:")].members == (compiled.pods["y/c"].addresses[0],)
    assert sets[set_name("ingress-default-allow:x")].members == ()
    assert sets[set_name("egress-default-allow:x")].members == (compiled.pods["x/a"].addresses[0],)
    assert msgspec.json.encode(found)  # names of most printable characters are plain text
