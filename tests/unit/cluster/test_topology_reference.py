"""docs/topology.md says what the code does: its example loads, its tables hold every field."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from emulator.cluster.topology import parse_topology, topology_names
from emulator.cluster.topology_file import (
    DnsEntry,
    HostEntry,
    InternetGatewayEntry,
    LinkEntry,
    NatGatewayEntry,
    NodeEntry,
    RouterEntry,
    RouteTableEntry,
    SubnetEntry,
    SwitchEntry,
    VpcEntry,
    _Outline,
)

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "topology.md"


@pytest.fixture(scope="module")
def text() -> str:
    return REFERENCE.read_text(encoding="utf-8")


def test_the_example_loads_and_has_what_it_promises(text: str) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    topology = parse_topology(example, "docs/topology.md")
    assert [node.name for node in topology.of_kind("node")] == ["n1", "worker-1", "worker-2", "far"]
    by_name = {machine.name: machine for machine in topology.machines}
    assert by_name["far"].interfaces[0].mtu == 1400
    assert by_name["tor"].interfaces[1].addresses == ("172.16.0.0/31", "fd00:172:16::/127")
    assert by_name["worker-2"].pods == 2
    assert topology.upstream is not None
    assert topology.upstream.records["client.example"] == topology.upstream.addresses


@pytest.mark.parametrize(
    "entry", [_Outline, SwitchEntry, NodeEntry, RouterEntry, HostEntry, LinkEntry, VpcEntry, DnsEntry]
)
def test_every_field_is_in_the_reference(entry: type[msgspec.Struct], text: str) -> None:
    for field in msgspec.structs.fields(entry):
        assert f"`{field.encode_name}`" in text, f"{entry.__name__}.{field.encode_name} is not documented"


@pytest.mark.parametrize("entry", [SubnetEntry, RouteTableEntry, InternetGatewayEntry, NatGatewayEntry])
def test_every_field_of_a_vpcs_parts_is_in_the_reference(entry: type[msgspec.Struct], text: str) -> None:
    assert "{" + ", ".join(sorted(field.encode_name for field in msgspec.structs.fields(entry))) + "}" in _sorted(text)


def _sorted(text: str) -> str:
    """The text with the names in each ``{a, b}`` in alphabetical order."""
    return re.sub(r"\{([^}]*)\}", lambda found: "{" + ", ".join(sorted(found[1].split(", "))) + "}", text)


def test_every_shipped_topology_is_in_the_reference(text: str) -> None:
    assert all(f"| `{name}` |" in text for name in topology_names())


def test_the_messages_shown_are_the_messages_given() -> None:
    from emulator.errors import TopologyError

    faulty = "switches: [{name: s1, cidrs: [192.168.50.1/24]}]\nnodes: [{name: n1, %sswitch: s1}]"
    for part, shown in (("pod: 3, ", 'nodes[0].pod: unknown field "pod", did you mean "pods"?'), ("", "did you mean")):
        with pytest.raises(TopologyError) as error:
            parse_topology(faulty % part, "mine.yaml")
        assert shown in str(error.value)
        assert str(error.value).splitlines()[0] in REFERENCE.read_text(encoding="utf-8")
