"""A block that two nodes announce: which of them a packet went to decides whether it arrives, packet by packet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from emulator import Lab
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.lab.records import ProbeRequest

pytestmark = pytest.mark.requires(*load_style("calico").requires)

EACH = 6  # pods of a node: 36 pairs, so that one in 2^35 runs has all of them go one way
TOPOLOGY = f"""\
name: shared-block
podCIDRs: [10.244.0.0/16]
pods: {EACH}
switches: [{{name: s1, cidrs: [192.168.50.0/24]}}]
nodes: [{{prefix: n, count: 3, switch: s1}}]
routers: [{{name: tor, switch: s1}}]
"""
CLAIM: dict[str, Any] = {
    "apiVersion": "crd.projectcalico.org/v1",
    "kind": "BlockAffinity",
    "metadata": {"name": "n3-claim"},
    "spec": {"cidr": "10.244.0.64/26", "node": "n3", "state": "confirmed", "deleted": "false"},
}
PAIRS = [(f"n1-p{one}", f"n2-p{other}") for one in range(1, EACH + 1) for other in range(1, EACH + 1)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(parse_topology(TOPOLOGY, "shared-block"), "calico") as started:
        yield started


def asked(lab: Lab) -> list[tuple[bool, set[str]]]:
    """Of each pair: whether the request was answered, and the namespaces that it was seen in."""
    with lab.capture() as capture:
        answers = lab.probes([ProbeRequest(source, target, timeout=0.9) for source, target in PAIRS])
    seen: dict[tuple[str, str], set[str]] = {}
    for journey in capture.journeys():
        packet = journey.hops[0].packet
        if packet.protocol == "icmp" and packet.icmp_type == 8:
            seen.setdefault((packet.source, packet.target), set()).update(hop.ns for hop in journey.hops)
    address = {pod: lab.resolve(pod).addresses[0] for pair in PAIRS for pod in pair}
    return [
        (answer.reached, seen[address[source], address[target]])
        for (source, target), answer in zip(PAIRS, answers, strict=True)
    ]


def test_a_pair_is_lost_if_and_only_if_its_packet_went_to_the_node_without_the_pod(lab: Lab) -> None:
    lab.apply(CLAIM)

    found = asked(lab)

    for answered, places in found:
        assert answered == ("node/n2" in places)
        assert answered == ("node/n3" not in places)
    assert Counter(answered for answered, _ in found).keys() == {True, False}
    assert [answered for answered, _ in asked(lab)] == [answered for answered, _ in found]  # a pair keeps its luck


def test_without_the_claim_every_pair_talks(lab: Lab) -> None:
    lab.apply(CLAIM)
    lab.delete("blockaffinity", "n3-claim")

    assert all(answered for answered, _ in asked(lab))
