"""Addresses, as host-local and Calico hand them out."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.cluster.ipam import Blocks, HostLocal, Ipam
from emulator.errors import AddressesExhausted, TopologyError


def with_nodes(ipam: Ipam, *names: str) -> Ipam:
    for name in names or ("n1", "n2", "n3"):
        ipam.add_node(name)
    return ipam


def test_host_local_gives_the_nth_node_subnet_n() -> None:
    ipam = with_nodes(HostLocal(["10.244.0.0/16", "fd00:10:244::/56"]))
    assert ipam.ranges("n1") == ("10.244.1.0/24", "fd00:10:244:1::/64")
    assert ipam.ranges("n3") == ("10.244.3.0/24", "fd00:10:244:3::/64")


def test_host_local_starts_behind_the_gateway() -> None:
    ipam = with_nodes(HostLocal(["10.244.0.0/16", "fd00:10:244::/56"]))
    assert ipam.allocate("n1", "default/a") == ("10.244.1.2", "fd00:10:244:1::2")
    assert ipam.allocate("n1", "default/b") == ("10.244.1.3", "fd00:10:244:1::3")
    assert ipam.allocate("n2", "default/c") == ("10.244.2.2", "fd00:10:244:2::2")


def test_host_local_gives_a_pod_that_returns_another_address() -> None:
    ipam = with_nodes(HostLocal(["10.244.0.0/16"]))
    assert ipam.allocate("n1", "default/a") == ("10.244.1.2",)
    ipam.release("default/a")
    assert ipam.allocate("n1", "default/a") == ("10.244.1.3",)


def test_host_local_comes_round_to_what_was_given_back() -> None:
    ipam = with_nodes(HostLocal(["10.244.0.0/16"]))
    for number in range(253):
        ipam.allocate("n1", f"default/p{number}")
    ipam.release("default/p7")
    assert ipam.allocate("n1", "default/new") == ("10.244.1.9",)


def test_a_full_24_is_refused_with_the_node_the_range_and_the_count() -> None:
    ipam = with_nodes(HostLocal(["10.244.0.0/16"]))
    given_out = [ipam.allocate("n1", f"default/p{number}")[0] for number in range(253)]
    assert given_out[-1] == "10.244.1.254"
    with pytest.raises(AddressesExhausted) as error:
        ipam.allocate("n1", "default/one-more")
    assert error.value.message == ("node n1: no free address for default/one-more: all 253 of 10.244.1.0/24 are taken")
    assert error.value.hint


def test_more_nodes_than_ranges_are_refused() -> None:
    ipam = with_nodes(HostLocal(["10.244.0.0/22"]))
    with pytest.raises(AddressesExhausted, match=r"node n4: 10\.244\.0\.0/22 has 4 ranges of /24"):
        ipam.add_node("n4")


@pytest.mark.parametrize("kind", [HostLocal, Blocks])
def test_a_pool_smaller_than_one_range_is_refused(kind: type[HostLocal] | type[Blocks]) -> None:
    with pytest.raises(TopologyError, match="is too small for"):
        kind(["10.244.0.0/28"])


def test_calico_uses_all_64_addresses_of_a_block_from_the_first() -> None:
    ipam = with_nodes(Blocks(["10.244.0.0/16", "fd00:10:244::/56"]))
    assert ipam.ranges("n2") == ("10.244.0.64/26", "fd00:10:244::40/122")
    assert ipam.allocate("n2", "default/a") == ("10.244.0.64", "fd00:10:244::40")
    rest = [ipam.allocate("n2", f"default/p{number}")[0] for number in range(63)]
    assert rest[-1] == "10.244.0.127"


def test_calico_claims_another_block_when_the_first_is_full() -> None:
    ipam = with_nodes(Blocks(["10.244.0.0/16"]))
    for number in range(65):
        last = ipam.allocate("n1", f"default/p{number}")
    assert last == ("10.244.0.192",)
    assert ipam.ranges("n1") == ("10.244.0.0/26", "10.244.0.192/26")


def test_calico_hands_out_given_back_addresses_last() -> None:
    ipam = with_nodes(Blocks(["10.244.0.0/16"]))
    ipam.allocate("n1", "default/a")
    ipam.release("default/a")
    later = [ipam.allocate("n1", f"default/p{number}")[0] for number in range(64)]
    assert later[0] == "10.244.0.1"
    assert later[-1] == "10.244.0.0"


def test_calico_borrows_from_another_nodes_block_when_the_pool_is_used_up() -> None:
    ipam = with_nodes(Blocks(["10.244.0.0/25"]), "n1", "n2")
    borrowed = [ipam.allocate("n1", f"default/p{number}")[0] for number in range(65)][-1]
    assert borrowed == "10.244.0.64"
    assert ipam.ranges("n1") == ("10.244.0.0/26",)


def test_calico_borrows_once_a_node_has_twenty_blocks() -> None:
    ipam = with_nodes(Blocks(["10.244.0.0/16"], blocks_per_node=2), "n1", "n2")
    last = [ipam.allocate("n1", f"default/p{number}")[0] for number in range(129)][-1]
    assert ipam.ranges("n1") == ("10.244.0.0/26", "10.244.0.128/26")
    assert last == "10.244.0.64"


def test_strict_affinity_refuses_to_borrow() -> None:
    ipam = with_nodes(Blocks(["10.244.0.0/25"], strict=True), "n1", "n2")
    for number in range(64):
        ipam.allocate("n1", f"default/p{number}")
    with pytest.raises(AddressesExhausted, match=r"its 1 blocks of 64 addresses .* may not borrow"):
        ipam.allocate("n1", "default/one-more")


def test_a_node_with_all_its_blocks_full_and_nobody_to_borrow_from_is_refused() -> None:
    ipam = with_nodes(Blocks(["10.244.0.0/16"], blocks_per_node=1), "n1")
    for number in range(64):
        ipam.allocate("n1", f"default/p{number}")
    with pytest.raises(AddressesExhausted, match=r"its 1 blocks of 64 addresses .*, the most that a node may hold"):
        ipam.allocate("n1", "default/one-more")


def test_a_full_pool_is_refused_with_its_size() -> None:
    ipam = with_nodes(Blocks(["10.244.0.0/26"]), "n1", "n2")
    for number in range(64):
        ipam.allocate("n2", f"default/p{number}")
    with pytest.raises(AddressesExhausted, match=r"all 1 blocks of 64 addresses in 10\.244\.0\.0/26 are full"):
        ipam.allocate("n1", "default/one-more")


@pytest.mark.parametrize("kind", [HostLocal, Blocks])
def test_nothing_is_taken_when_one_family_is_full(kind: type[HostLocal] | type[Blocks]) -> None:
    ipam = with_nodes(kind(["10.244.0.0/16", "fd00::/120"], 24, 126 if kind is Blocks else 124), "n1")
    count = 20 * 4 if kind is Blocks else 14  # twenty blocks of four, or a range of sixteen
    for number in range(count):
        ipam.allocate("n1", f"default/p{number}")
    with pytest.raises(AddressesExhausted):
        ipam.allocate("n1", "default/one-more")
    ipam.release("default/p0")
    assert len(ipam.allocate("n1", "default/one-more")) == 2


@pytest.mark.parametrize("kind", [HostLocal, Blocks])
def test_what_happens_to_a_copy_does_not_reach_the_original(kind: type[HostLocal] | type[Blocks]) -> None:
    ipam = with_nodes(kind(["10.244.0.0/16"]))
    (first,) = ipam.allocate("n1", "default/a")
    twin = ipam.copy()
    (second,) = twin.allocate("n1", "default/b")
    twin.release("default/a")
    twin.add_node("n4")
    assert ipam.allocate("n1", "default/c") == (second,)
    assert ipam.allocate("n1", "default/a") == (first,)
    assert twin.ranges("n4")
    with pytest.raises(KeyError):
        ipam.allocate("n4", "default/d")


@pytest.mark.parametrize("kind", [HostLocal, Blocks])
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.sampled_from(["n1", "n2", "n3"])), max_size=60))
def test_no_address_belongs_to_two_owners_and_a_copy_is_independent(
    kind: type[HostLocal] | type[Blocks], steps: list[tuple[bool, int, str]]
) -> None:
    ipam: Ipam = with_nodes(kind(["10.244.0.0/16", "fd00:10:244::/56"]))
    held: dict[str, tuple[str, ...]] = {}
    for take, number, node in steps:
        owner = f"default/p{number}"
        before = ipam
        ipam = ipam.copy()
        if take:
            held[owner] = ipam.allocate(node, owner)
            ranges = [ipaddress.ip_network(text) for text in ipam.ranges(node)]
            assert all(any(ipaddress.ip_address(a) in r for r in ranges) for a in held[owner])
            assert ipam.allocate(node, owner) == held[owner]
        else:
            ipam.release(owner)
            held.pop(owner, None)
        before.release(owner)  # does not reach the copy
    every = [address for addresses in held.values() for address in addresses]
    assert len(set(every)) == len(every)


# Addresses that pods ask for


def blocks(**options: bool) -> Blocks:
    made = Blocks(["10.244.0.0/24"], **options)
    for node in ("n1", "n2", "n3"):
        made.add_node(node)
    return made


def test_an_address_that_is_asked_for_is_given_wherever_the_pod_runs() -> None:
    made = blocks()
    assert made.assign("n3", "default/vm", ["10.244.0.9"]) == ("10.244.0.9",)
    assert made.ranges("n3") == ("10.244.0.128/26",)  # the block stays with n1
    assert "10.244.0.9" not in {made.allocate("n1", f"default/p{number}")[0] for number in range(63)}


def test_a_block_that_nobody_has_is_claimed_and_left_out_later() -> None:
    made = Blocks(["10.244.0.0/24"])
    made.add_node("n1")
    made.assign("n1", "default/vm", ["10.244.0.70"])
    assert made.ranges("n1") == ("10.244.0.0/26", "10.244.0.64/26")
    made.add_node("n2")
    made.add_node("n3")
    assert (made.ranges("n2"), made.ranges("n3")) == (("10.244.0.128/26",), ("10.244.0.192/26",))


def test_a_block_out_of_order_does_not_come_twice() -> None:
    made = Blocks(["10.244.0.0/24"])
    made.add_node("n1")
    made.assign("n1", "default/vm", ["10.244.0.140"])
    made.add_node("n2")
    made.add_node("n3")
    ranges = [cidr for node in ("n1", "n2", "n3") for cidr in made.ranges(node)]
    assert sorted(ranges) == ["10.244.0.0/26", "10.244.0.128/26", "10.244.0.192/26", "10.244.0.64/26"]


@pytest.mark.parametrize(
    ("address", "strict", "reason"),
    [
        ("10.245.0.1", False, "is in no IP pool"),
        ("10.244.0.0", False, "is in use by default/a"),
        ("10.244.0.9", True, "is of 10.244.0.0/26, a block of n1"),
    ],
)
def test_what_cannot_be_given_is_told_and_nothing_is_taken(address: str, strict: bool, reason: str) -> None:
    made = blocks(strict=strict)
    made.allocate("n1", "default/a")
    with pytest.raises(ValueError, match=reason):
        made.assign("n3", "default/vm", ["10.244.0.200", address])
    assert made.ranges("n3") == ("10.244.0.128/26",)
    assert made.allocate("n1", "default/a") == ("10.244.0.0",)


def test_a_given_back_address_can_be_asked_for_again() -> None:
    made = blocks()
    made.assign("n1", "default/vm", ["10.244.0.9"])
    made.release("default/vm")
    assert made.copy().assign("n3", "default/vm", ["10.244.0.9"]) == ("10.244.0.9",)
