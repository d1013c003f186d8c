from __future__ import annotations

from types import ModuleType

from emulator.report.headers import Block, blocks


def of(found: tuple[Block, ...], layer: str, depth: int = 0) -> Block:
    (block,) = (block for block in found if block.layer == layer and block.depth == depth)
    return block


def test_nothing_is_marked_at_the_first_hop(synthetic: ModuleType) -> None:
    found = blocks(synthetic.echo("10.244.1.2", "10.244.2.2"), None)
    assert [block.layer for block in found] == ["eth", "ip", "ttl", "l4"]
    assert not any(block.change for block in found)


def test_a_router_changes_ttl_and_macs_and_nothing_else(synthetic: ModuleType) -> None:
    sent = synthetic.echo("10.244.1.2", "10.244.2.2")
    found = blocks(synthetic.changed(sent, ttl=63, source_mac="02:00:00:00:00:01"), sent)
    assert [block.layer for block in found if block.change] == ["eth", "ttl"]
    assert of(found, "ttl").parts[0].was == "64"


def test_masquerade_marks_the_source_and_says_what_it_was(synthetic: ModuleType) -> None:
    sent = synthetic.echo("10.244.1.2", "192.168.50.100")
    found = of(blocks(synthetic.changed(sent, source="192.168.50.11"), sent), "ip")
    assert found.change == "changed"
    assert [part.was for part in found.parts] == ["10.244.1.2", ""]


def test_encapsulation_adds_outer_headers_and_leaves_the_inner_ones_unmarked(synthetic: ModuleType) -> None:
    steps = synthetic.flannel_vxlan(synthetic.echo("10.244.1.2", "10.244.2.2"))
    found = blocks(steps[4][3], steps[3][3])
    assert {block.change for block in found if block.depth == 0} == {"added"}
    assert {block.change for block in found if block.depth == 1} == {""}
    assert of(found, "tunnel").text == "udp 41691 → 8472 VXLAN vni 1 +50 B"


def test_decapsulation_shows_what_was_removed(synthetic: ModuleType) -> None:
    steps = synthetic.flannel_vxlan(synthetic.echo("10.244.1.2", "10.244.2.2"))
    found = blocks(steps[8][3], steps[7][3])
    assert of(found, "tunnel").change == "removed"
    assert [block.layer for block in found if block.change] == ["tunnel"]


def test_a_router_under_the_tunnel_changes_the_outer_ttl_only(synthetic: ModuleType) -> None:
    steps = synthetic.through_racks(synthetic.echo("10.244.1.2", "10.244.2.2"))
    found = blocks(steps[6][3], steps[5][3])
    assert [(block.layer, block.depth) for block in found if block.change] == [("ttl", 0)]


def test_ipv6_says_hop_limit(synthetic: ModuleType) -> None:
    assert of(blocks(synthetic.echo("fd00::1", "fd00::2"), None), "ttl").text == "hop limit 64"


def test_an_icmp_error_names_the_mtu(synthetic: ModuleType) -> None:
    error = synthetic.too_big(synthetic.echo("10.244.1.2", "10.244.2.2"), "10.244.1.1", 1450)[0][3]
    assert of(blocks(error, None), "l4").text == "ICMP fragmentation needed mtu 1450"
