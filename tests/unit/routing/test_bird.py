"""emulator.routing.bird: configurations that BIRD takes and that nobody's name can end early."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.errors import CnilabError
from emulator.routing.bird import FamilyRouting, Peer, Speaker, bird_config, mesh_peer, router_id

V4 = FamilyRouting(
    version=4,
    local="192.168.50.11",
    blocks=("10.244.0.0/26",),
    pools=("10.244.0.0/16",),
    peers=(
        mesh_peer("192.168.50.11", "192.168.50.9", 64512, "n0"),
        mesh_peer("192.168.50.11", "192.168.50.12", 64512, "n2"),
    ),
)
V6 = FamilyRouting(
    version=6,
    local="fd00:50::b",
    blocks=("fd00:10:244::/122",),
    pools=("fd00:10:244::/56",),
    peers=(mesh_peer("fd00:50::b", "fd00:50::c", 64512, "n2"),),
)


def speaker(*families: FamilyRouting, node: str = "n1") -> Speaker:
    return Speaker(node=node, router_id="192.168.50.11", asn=64512, families=families)


@pytest.mark.requires("bird")
@pytest.mark.parametrize(
    "families",
    [(V4,), (V6,), (V4, V6), (FamilyRouting(4, "10.0.0.1", (), ("10.244.0.0/16",), ()),)],
    ids=["ipv4", "ipv6", "dual-stack", "alone-without-blocks"],
)
def test_bird_itself_takes_the_configuration(tmp_path: Path, families: tuple[FamilyRouting, ...]) -> None:
    path = tmp_path / "bird.cfg"
    path.write_text(bird_config(speaker(*families)), encoding="utf-8")
    run = subprocess.run(["bird", "-p", "-c", path], capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_timers_are_calicos() -> None:
    text = bird_config(speaker(V4))
    for line in ("connect delay time 2;", "connect retry time 5;", "error wait time 5,30;", "scan time 2;"):
        assert line in text


def test_the_side_whose_peer_is_higher_as_a_string_waits() -> None:
    nine, twelve = V4.peers
    assert nine.passive  # "192.168.50.9" > "192.168.50.11" as strings, although 9 < 11
    assert twelve.passive
    assert not mesh_peer("192.168.50.9", "192.168.50.11", 64512, "n1").passive


@given(st.lists(st.ip_addresses(v=4), min_size=2, max_size=2, unique=True))
def test_exactly_one_side_of_a_session_waits(pair: list[object]) -> None:
    one, other = (str(address) for address in pair)
    assert mesh_peer(one, other, 1, "a").passive != mesh_peer(other, one, 1, "b").passive


def test_a_session_is_named_by_its_peers_address() -> None:
    assert V4.peers[0].protocol == "Mesh_192_168_50_9"
    assert V6.peers[0].protocol == "Mesh_fd00_50__c"


def test_a_block_is_exported_whole_and_nothing_beneath_it() -> None:
    text = bird_config(speaker(V4))
    assert text.index("if ( net = 10.244.0.0/26 ) then { accept; }") < text.index(
        "if ( net ~ 10.244.0.0/26 ) then { reject; }"
    )
    assert "route 10.244.0.0/26 blackhole;" in text


def test_a_block_of_one_address_has_no_blackhole() -> None:
    single = FamilyRouting(4, "10.0.0.1", ("10.244.0.7/32",), ("10.244.0.0/16",), ())
    assert "blackhole" not in bird_config(speaker(single))


def test_the_router_id_is_the_ipv4_address_or_hashed_from_the_name() -> None:
    assert router_id("n1", ("fd00::1", "10.0.0.1")) == "10.0.0.1"
    hashed = [router_id(f"n{number}", ("fd00::1",)) for number in range(200)]
    assert len(set(hashed)) == 200
    assert not any(ip_address(item).is_multicast or item.startswith("0.") for item in hashed)
    assert router_id("n1", ("fd00::1",)) == hashed[1]


@pytest.mark.parametrize("name", ["n1;\nprotocol kernel evil {}", "n1\n", 'a"b', "", "a b", "-a"])
def test_a_name_that_could_end_a_line_is_refused(name: str) -> None:
    with pytest.raises(CnilabError, match="node name"):
        bird_config(speaker(V4, node=name))
    with pytest.raises(CnilabError, match="node name"):
        bird_config(speaker(FamilyRouting(4, "10.0.0.1", (), (), (Peer("10.0.0.2", 1, name, "Mesh_x"),))))


@pytest.mark.parametrize("address", ["10.0.0.2; reboot", "fd00::1"])
def test_what_is_no_address_of_the_family_is_refused(address: str) -> None:
    with pytest.raises((CnilabError, ValueError)):
        bird_config(speaker(FamilyRouting(4, "10.0.0.1", (), (), (Peer(address, 1, "n2", "Mesh_x"),))))
