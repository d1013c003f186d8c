"""emulator.plan.neighbours: room in the kernel's table for the neighbours of large segments."""

from __future__ import annotations

from collections import Counter

from emulator.cluster.topology import load_topology, parse_topology
from emulator.plan.describe import describe
from emulator.plan.model import Neighbour
from emulator.plan.neighbours import room_for_neighbours

LARGE = """\
name: large
podCIDRs: [10.244.0.0/16, "fd00:10:244::/48"]
switches:
  - {name: s1, cidrs: [192.168.50.0/24, "fd00:50::/64"]}
  - {name: s2}
  - {name: s3, cidrs: [203.0.113.0/24]}
nodes:
  - {prefix: a, count: 12, switch: s1}
  - {prefix: b, count: 12, switch: s2}
routers: [{name: tor, switch: s1}]
hosts: [{name: client, switch: s3}]
links:
  - {from: s1, to: s2}
  - {from: tor, to: s3}
"""


def rooms(topology: str) -> tuple[Neighbour, ...]:
    return room_for_neighbours(parse_topology(topology, "large.yaml"), "topology")


def test_small_topologies_leave_their_neighbours_to_the_kernel() -> None:
    for name in ("three-nodes", "racks", "dual-stack", "ipv6"):
        assert room_for_neighbours(load_topology(name), "topology") == ()


def test_each_machine_of_fifty_has_room_for_every_other() -> None:
    made = room_for_neighbours(load_topology("fifty-nodes"), "topology")

    assert Counter(item.ns for item in made if item.ns.startswith("node/")) == {f"node/n{n}": 50 for n in range(1, 51)}
    assert len({item.key for item in made}) == len(made)
    assert not any(item.mac for item in made)


def test_switches_that_are_cabled_together_are_one_segment_of_both_families() -> None:
    of_first = [item.address for item in rooms(LARGE) if item.ns == "node/a1"]

    assert len(of_first) == 2 * 24  # 23 nodes and the router, not itself
    assert {"192.168.50.1", "192.168.50.34", "fd00:50::1", "fd00:50::34"} <= set(of_first)
    assert "192.168.50.11" not in of_first
    assert {item.device for item in rooms(LARGE) if item.ns == "node/a1"} == {"eth0"}


def test_no_room_is_made_for_who_is_behind_a_router() -> None:
    assert not any(item.address.startswith("203.0.113.") for item in rooms(LARGE) if item.ns.startswith("node/"))


def test_room_is_told_from_a_permanent_entry() -> None:
    room = Neighbour(ns="node/n1", device="eth0", address="192.168.50.12", mac="")

    assert describe(room) == "neighbour 192.168.50.12 dev eth0 (room, found by ARP)"
