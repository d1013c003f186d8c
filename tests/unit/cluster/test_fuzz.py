"""Whatever text or structure comes in: a value comes out, or an error of ours with a place in the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.cluster.assemble import assemble
from emulator.cluster.ipam import HostLocal
from emulator.cluster.manifests import parse, validate
from emulator.cluster.model import Topology
from emulator.cluster.topology import load_topology, parse_topology
from emulator.errors import AddressesExhausted, InputError, ManifestError, Problem, TopologyError

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

TOPOLOGY_WORDS = [
    "name", "podCIDRs", "serviceCIDRs", "pods", "switches", "nodes", "routers", "hosts", "links", "cidrs", "mtu",
    "labels", "zone", "asn", "switch", "addresses", "routes", "defaultRoute", "count", "prefix", "ports", "from",
    "to", "via", "bandwidth", "delay", "jitter", "loss", "peerAddresses", "s1", "n1", "tor",
]  # fmt: skip
MANIFEST_WORDS = [
    "apiVersion", "kind", "metadata", "name", "namespace", "labels", "annotations", "spec", "template",
    "containers", "image", "ports", "containerPort", "protocol", "hostPort", "selector", "matchLabels",
    "matchExpressions", "replicas", "items", "data", "initContainers", "env", "nodeSelector", "affinity", "v1",
    "apps/v1",
]  # fmt: skip
KINDS = ["Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "Namespace", "Service", "List", "Odd"]
NASTY = [
    "../../x",
    "a;reboot",
    "$(reboot)",
    "`id`",
    "a'b",
    'a"b',
    "a\nb",
    "a\0b",
    "-rf",
    "",
    " ",
    "é",
    "..",
    "a" * 300,
    "\ud800",
]


def values(words: list[str]) -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.sampled_from([*words, *NASTY, "192.168.50.0/24", "10.244.0.0/16", "fd00::/64", "10.0.0.1"])
        | st.text(max_size=10)
    )
    keys = st.sampled_from(words) | st.text(max_size=5)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6), max_leaves=25
    )


def problems_of(call: Callable[[], object]) -> tuple[Problem, ...]:
    """What ``call`` is refused for, nothing if it is not. Any other exception is the fault that this file looks for."""
    try:
        call()
    except InputError as error:
        assert error.problems, "an error without a problem helps nobody"  # noqa: PT017
        return error.problems
    return ()


def topology_of(text: str) -> Topology | None:
    problems = problems_of(lambda: parse_topology(text, "t.yaml"))
    assert all(problem.source == "t.yaml" and problem.reason for problem in problems)
    return None if problems else parse_topology(text, "t.yaml")


@FUZZ
@given(st.text(max_size=200))
def test_any_text_as_topology_is_a_value_or_a_topology_error(text: str) -> None:
    topology_of(text)


@FUZZ
@given(values(TOPOLOGY_WORDS))
def test_any_structure_as_topology_is_a_value_or_a_topology_error(value: Any) -> None:
    topology_of(json.dumps(value))


MACHINES = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["n1", "n2", "tor", "s1", *NASTY])},
        optional={
            "switch": st.sampled_from(["s1", "s2", "n1"]),
            "addresses": st.lists(st.sampled_from(["192.168.50.9", "192.168.50.10/24", "fd00::9", "x"]), max_size=2),
            "routes": st.lists(st.sampled_from([{"to": "default", "via": "192.168.50.9"}, {"to": "::/0", "via": "x"}])),
        },
    ),
    max_size=3,
)


@FUZZ
@given(
    st.fixed_dictionaries(
        {
            "switches": st.lists(
                st.fixed_dictionaries(
                    {"name": st.sampled_from(["s1", "s2", *NASTY])},
                    optional={
                        "cidrs": st.lists(
                            st.sampled_from(
                                ["192.168.50.0/24", "192.168.50.0/30", "192.168.50.0/32", "fd00::/64", "fd00::/127"]
                            )
                        ),
                        "mtu": st.integers(0, 70_000),
                    },
                ),
                max_size=3,
            ),
            "nodes": MACHINES,
            "routers": MACHINES,
            "hosts": MACHINES,
            "links": st.lists(
                st.fixed_dictionaries(
                    {
                        "from": st.sampled_from(["n1", "s1", "s2", "tor"]),
                        "to": st.sampled_from(["n1", "n2", "s1", "s2", "x"]),
                    },
                    optional={"cidrs": st.just(["172.16.0.0/31"]), "loss": st.floats(), "mtu": st.integers(0, 70_000)},
                ),
                max_size=4,
            ),
        }
    )
)
def test_a_nearly_right_topology_is_a_value_or_a_topology_error(value: Any) -> None:
    topology = topology_of(json.dumps(value))
    if topology is not None:
        for name in [machine.name for machine in topology.machines] + [switch.name for switch in topology.switches]:
            assert name not in NASTY
        addresses = [a for machine in topology.machines for i in machine.interfaces for a in i.addresses]
        assert len(set(addresses)) == len(addresses)


@FUZZ
@given(st.text(max_size=200))
def test_any_text_as_manifest_is_a_value_or_a_manifest_error(text: str) -> None:
    for source in ("m.yaml", "m.json"):
        problems = problems_of(partial(parse, text, source))
        assert all(problem.source == source and problem.reason for problem in problems)


@FUZZ
@given(values(MANIFEST_WORDS))
def test_any_structure_as_manifest_is_a_value_or_a_manifest_error(value: Any) -> None:
    for call in (partial(parse, json.dumps(value), "m.yaml"), partial(validate, [value], "m.yaml")):
        problems = problems_of(call)
        assert all(problem.source == "m.yaml" and problem.reason for problem in problems)


@FUZZ
@given(
    st.fixed_dictionaries(
        {
            "apiVersion": st.sampled_from(["v1", "apps/v1", "batch/v1", "odd.example/v1", ""]),
            "kind": st.sampled_from(KINDS),
            "metadata": st.fixed_dictionaries(
                {"name": st.sampled_from(["a", *NASTY])}, optional={"labels": values(["a", *NASTY])}
            ),
        },
        optional={
            "spec": values(MANIFEST_WORDS)
            | st.fixed_dictionaries(
                {"containers": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["c", *NASTY])}), max_size=2)},
                optional={"nodeSelector": values(["a"]), "affinity": values(["nodeAffinity"])},
            )
            | st.fixed_dictionaries(
                {
                    "selector": st.just({"matchLabels": {"a": "b"}}) | values(MANIFEST_WORDS),
                    "template": st.just(
                        {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
                    )
                    | values(MANIFEST_WORDS),
                },
                optional={"replicas": st.integers(-1, 400) | st.none()},
            )
        },
    )
)
def test_a_nearly_right_object_is_refused_or_can_be_assembled(value: Any) -> None:
    try:
        objects = validate([value], "m.yaml").objects
        topology = load_topology("single-node")
        cluster = assemble(topology, objects, HostLocal(topology.pod_cidrs))
    except (ManifestError, AddressesExhausted):
        return
    assert all(pod.name not in NASTY for pod in cluster.pods)


@pytest.mark.parametrize("name", [name for name in NASTY if name not in (" ",)])
def test_no_injection_name_gets_through_anywhere(name: str) -> None:
    quoted = json.dumps(name)
    topology = "switches: [{name: s1, cidrs: [192.168.50.0/24]}]\n"
    topology += f"nodes: [{{name: {quoted}, switch: s1, defaultRoute: false}}]"
    with pytest.raises(TopologyError):
        parse_topology(topology, "t.yaml")
    for field in ("name", "namespace"):
        metadata = {"name": "a", field: name}
        if field == "namespace" and not name:
            continue
        with pytest.raises(ManifestError):
            validate([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}])
