"""emulator.cluster.eni_ipam: which interface a pod's address is of, and when a node gets another interface."""

from __future__ import annotations

import pytest

from emulator.cluster.eni_ipam import EniPools
from emulator.cluster.instance_types import INSTANCE_TYPES, instance_type
from emulator.cluster.topology import parse_topology
from emulator.cni.vpc_fabric import lay_fabric
from emulator.errors import AddressesExhausted, UserError


def pools(kind: str = "t3.small", cidr: str = "10.0.0.0/24", vpc: str = "", *, prefixes: bool = False) -> EniPools:
    text = f"""\
name: small
switches: [{{name: s1, cidrs: [{cidr}]}}]
nodes:
  - {{name: n1, switch: s1, labels: {{node.kubernetes.io/instance-type: {kind}}}}}
  - {{name: n2, switch: s1, labels: {{node.kubernetes.io/instance-type: {kind}}}}}
routers: [{{name: tor, switch: s1}}]
{vpc}
"""
    made = EniPools(lay_fabric(parse_topology(text, "test")), prefixes=prefixes)
    made.add_node("n1")
    return made


def shape(made: EniPools, node: str = "n1") -> list[tuple[str, int]]:
    """The node's interfaces, with the number of addresses or prefixes on each."""
    return [(eni.device, len(eni.prefixes)) for eni in made.interfaces(node)]


def test_a_node_starts_with_a_full_primary_interface() -> None:
    assert shape(pools()) == [("eth0", 3)]


def test_the_first_pod_brings_a_second_interface_in_stock() -> None:
    made = pools()
    made.allocate("n1", "default/a")
    assert shape(made) == [("eth0", 3), ("eth1", 3)]


def test_pods_take_the_primary_interface_first() -> None:
    made = pools()
    addresses = [made.allocate("n1", f"default/{n}")[0] for n in range(4)]
    first, second = made.interfaces("n1")[:2]
    assert [f"{each}/32" for each in addresses[:3]] == list(first.prefixes)
    assert f"{addresses[3]}/32" == second.prefixes[0]


def test_an_interfaces_own_address_is_no_pods() -> None:
    made = pools()
    handed_out = {made.allocate("n1", f"default/{n}")[0] for n in range(9)}
    assert handed_out.isdisjoint(eni.address for eni in made.interfaces("n1"))


def test_the_first_four_addresses_and_the_last_of_a_subnet_are_never_handed_out() -> None:
    made = pools("m5.large", "10.0.0.0/27")
    made.add_node("n2")
    for number in range(16):
        made.allocate("n1" if number % 2 else "n2", f"default/{number}")
    everything = {prefix for node in ("n1", "n2") for prefix in made.ranges(node)}
    assert everything.isdisjoint(f"10.0.0.{last}/32" for last in (0, 1, 2, 3, 31))


def test_a_pod_too_many_names_the_instance_types_limit() -> None:
    made = pools("t3.micro")
    for number in range(2):
        made.allocate("n1", f"default/{number}")
    with pytest.raises(AddressesExhausted, match=r"t3\.micro takes 2 network interfaces with 1 addresses.*max-pods 4"):
        made.allocate("n1", "default/more")


def test_a_full_subnet_is_named() -> None:
    made = pools("m5.large", "10.0.0.0/28")
    room = len(made.ranges("n1"))
    for number in range(room):
        made.allocate("n1", f"default/{number}")
    with pytest.raises(AddressesExhausted, match=r"subnet 10\.0\.0\.0/28 does not have a free address left"):
        made.allocate("n1", "default/more")


def test_a_returned_address_waits_at_the_end_of_the_queue() -> None:
    made = pools()
    (first,) = made.allocate("n1", "default/a")
    made.release("default/a")
    assert made.allocate("n1", "default/b") != (first,)


def test_a_pod_keeps_its_address_and_gets_another_on_another_node() -> None:
    made = pools()
    made.add_node("n2")
    kept = made.allocate("n1", "default/a")
    assert made.allocate("n1", "default/a") == kept
    (moved,) = made.allocate("n2", "default/a")
    assert f"{moved}/32" in made.ranges("n2")


def test_an_interface_that_is_too_many_is_detached_and_its_addresses_are_free_again() -> None:
    made = pools()
    for number in range(4):
        made.allocate("n1", f"default/{number}")
    assert len(shape(made)) == 3
    for number in range(4):
        made.release(f"default/{number}")
    assert shape(made) == [("eth0", 3)]


def test_with_a_warm_ip_target_addresses_come_one_by_one() -> None:
    made = pools(vpc="vpc: {subnets: [{switch: s1}], warmIPTarget: 2}")
    assert shape(made) == [("eth0", 2)]
    made.allocate("n1", "default/a")
    assert shape(made) == [("eth0", 3)]
    made.allocate("n1", "default/b")
    assert shape(made) == [("eth0", 3), ("eth1", 1)]


def test_without_a_warm_interface_the_second_comes_with_the_pod_that_needs_it() -> None:
    made = pools(vpc="vpc: {subnets: [{switch: s1}], warmENITarget: 0}")
    for number in range(3):
        made.allocate("n1", f"default/{number}")
    assert shape(made) == [("eth0", 3)]
    made.allocate("n1", "default/more")
    assert shape(made) == [("eth0", 3), ("eth1", 3)]


def test_prefixes_are_blocks_of_sixteen_with_one_in_stock() -> None:
    made = pools(prefixes=True)
    assert shape(made) == [("eth0", 1)]
    (address,) = made.allocate("n1", "default/a")
    assert (address, made.ranges("n1")) == ("10.0.0.16", ("10.0.0.16/28", "10.0.0.32/28"))


def test_seventeen_pods_fit_on_one_interface_with_prefixes() -> None:
    made = pools(prefixes=True)
    for number in range(17):
        made.allocate("n1", f"default/{number}")
    assert shape(made) == [("eth0", 3)]


def test_a_copy_is_independent() -> None:
    made = pools()
    twin = made.copy()
    for number in range(5):
        twin.allocate("n1", f"default/{number}")
    assert shape(made) == [("eth0", 3)]
    assert made.allocate("n1", "default/x") == twin.allocate("n1", "default/0")


@pytest.mark.parametrize(
    ("kind", "most"), [("t3.small", 11), ("t3.medium", 17), ("m5.large", 29), ("m5.xlarge", 58), ("c5.4xlarge", 234)]
)
def test_max_pods_are_those_of_eni_max_pods(kind: str, most: int) -> None:
    assert INSTANCE_TYPES[kind].max_pods() == most


def test_with_prefixes_kubernetes_limit_holds() -> None:
    assert INSTANCE_TYPES["m5.large"].max_pods(prefixes=True) == 110


def test_an_unknown_instance_type_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"m9\.huge") as caught:
        instance_type("n1", {"node.kubernetes.io/instance-type": "m9.huge"})
    assert "m5.large" in caught.value.hint
