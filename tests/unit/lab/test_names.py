"""What people call things."""

from __future__ import annotations

import pytest

from emulator.cluster.model import Cluster, Interface, Machine, Pod, Topology
from emulator.errors import NotFound, UserError
from emulator.lab.names import common_address, resolve, split_port


def machine(name: str, kind: str, *addresses: str) -> Machine:
    interface = Interface("eth0", "02:00:00:00:00:01", addresses, 1500, "s1", f"s1-{name}")
    return Machine(name, kind, (interface,))  # type: ignore[arg-type]


MACHINES = (
    machine("n1", "node", "192.168.50.11/24"),
    machine("client", "host", "203.0.113.10/24"),
    machine("web", "host", "203.0.113.11/24"),
)
PODS = (
    Pod("default", "web-0", "n1", ("10.244.1.2", "fd00::2")),
    Pod("default", "web", "n1", ("10.244.1.3",)),
    Pod("shop", "cart", "n1", ("10.244.1.4",)),
)
CLUSTER = Cluster(Topology("t", MACHINES, (), (), (), ()), (), PODS, {})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("web-0", "pod/default/web-0"),
        ("default/web-0", "pod/default/web-0"),
        ("pod/web-0", "pod/default/web-0"),
        ("pod/shop/cart", "pod/shop/cart"),
        ("shop/cart", "pod/shop/cart"),
        ("n1", "node/n1"),
        ("node/n1", "node/n1"),
        ("host/web", "host/web"),
        ("10.244.1.2", "10.244.1.2"),
        ("fd00:0::2", "fd00::2"),
    ],
)
def test_name_means_one_place(text: str, label: str) -> None:
    assert resolve(CLUSTER, text).label == label


def test_pod_comes_before_a_machine_of_the_same_name() -> None:
    assert resolve(CLUSTER, "web").label == "pod/default/web"
    assert resolve(CLUSTER, "host/web").label == "host/web"


@pytest.mark.parametrize("text", ["web-1", "node/client", "shop/web-0", "pod/", "", "../x", "a;b"])
def test_unknown_name_is_not_found(text: str) -> None:
    with pytest.raises(NotFound):
        resolve(CLUSTER, text)


def test_near_name_is_suggested() -> None:
    with pytest.raises(NotFound) as caught:
        resolve(CLUSTER, "clent")
    assert "client" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("web-0", ("web-0", 0)),
        ("web-0:80", ("web-0", 80)),
        ("10.0.0.1:443", ("10.0.0.1", 443)),
        ("fd00::1", ("fd00::1", 0)),
        ("[fd00::1]:80", ("fd00::1", 80)),
        ("[fd00::1]", ("fd00::1", 0)),
    ],
)
def test_port_is_split_off(text: str, parts: tuple[str, int]) -> None:
    assert split_port(text) == parts


@pytest.mark.parametrize("text", ["a:0", "a:65536", "a:x", "a:", "[fd00::1]80", "[fd00::1", "a:٣"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        split_port(text)


def test_common_address_prefers_the_targets_first_and_respects_families() -> None:
    dual, four = resolve(CLUSTER, "web-0"), resolve(CLUSTER, "shop/cart")
    assert common_address(dual, dual) == "10.244.1.2"
    assert common_address(dual, dual, 6) == "fd00::2"
    with pytest.raises(UserError, match="no common IPv6"):
        common_address(four, dual, 6)
