"""Random worlds, step by step, as the clusters that a lab would make of them."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.style import Style
from tests.policy.worlds import TOPOLOGY, World, changed

TWO = parse_topology(TOPOLOGY, "policies.yaml")


def steps(
    data: st.DataObject, first: st.SearchStrategy[World], style: Style, count: int
) -> Iterator[tuple[World, Cluster]]:
    """A world drawn of ``first`` and then ``count - 1`` changes of it, each with the cluster that follows from the one
    before."""
    world = data.draw(first)
    ipam = style.ipam(TWO)
    cluster: Cluster | None = None
    for _ in range(count):
        cluster = assemble(TWO, validate(list(world.objects)).objects, ipam, cluster)
        yield world, cluster
        world = data.draw(changed(world))
