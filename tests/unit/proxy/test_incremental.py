"""A proxy that remembers what it wrote writes what one that remembers nothing would."""

from __future__ import annotations

import random
from types import ModuleType

import msgspec
import pytest

from emulator.cluster.model import Cluster
from emulator.cluster.services import EndpointSlice
from emulator.proxy import iptables, ipvs, kube_router, nftables
from emulator.proxy.endpoints import changed_keys
from tests.golden.service_constructs import SETTINGS, backends, base_cluster, on, service

SERVICES = tuple(
    service(
        f"s{number}",
        cluster_ips=(f"10.96.1.{number}",),
        internal_policy="Local" if number % 4 == 0 else "Cluster",
        external_ips=("198.51.100.7",) if number in (3, 5) else (),
    )
    for number in range(1, 13)
)


def step(cluster: Cluster, chance: random.Random) -> Cluster:
    """The next cluster: mostly slices differ, as in a rollout; at times Services."""
    slices = list(cluster.slices)
    match chance.randrange(7):
        case 0 if slices:
            slices.pop(chance.randrange(len(slices)))
        case 1:
            chance.shuffle(slices)
        case 2:
            many = tuple(sorted(chance.sample(SERVICES, chance.randint(4, len(SERVICES))), key=lambda one: one.name))
            return msgspec.structs.replace(cluster, services=many)
        case _:
            of = chance.choice(SERVICES)
            ends = [on(chance.choice(("n1", "n2")), chance.randint(2, 9)) for _ in range(chance.randint(0, 3))]
            made = msgspec.structs.replace(backends(of, *ends), name=f"{of.name}-{chance.choice('ab')}")
            slices = [one for one in slices if one.name != made.name]
            slices.insert(chance.randint(0, len(slices)), made)
    return msgspec.structs.replace(cluster, slices=tuple(slices))


@pytest.mark.parametrize("mode", [iptables, nftables, ipvs, kube_router], ids=lambda mode: mode.__name__)
def test_remembering_makes_no_difference(mode: ModuleType) -> None:
    chance = random.Random(3866)
    cluster = msgspec.structs.replace(base_cluster(), services=SERVICES, slices=())
    proxy = mode.load(SETTINGS)
    for turn in range(120):
        cluster = step(cluster, chance)
        fresh = mode.load(SETTINGS)
        for node in cluster.nodes:
            assert list(proxy.node(cluster, node)) == list(fresh.node(cluster, node)), f"turn {turn}, {node.name}"


def test_changed_keys_are_those_of_new_gone_and_moved_slices() -> None:
    def made(name: str, service_name: str) -> EndpointSlice:
        return EndpointSlice("ns1", name, service_name, 4, (), ())

    a, b, c = made("a", "one"), made("b", "two"), made("c", "three")

    assert changed_keys((a, b), (a, b)) == set()
    assert changed_keys((a, b), (a, c)) == {"ns1/two", "ns1/three"}
    assert changed_keys((a, b), (c, a, b)) == {"ns1/three"}
    assert changed_keys((a, b), (b, a)) == {"ns1/one", "ns1/two"}
    assert changed_keys((a,), (made("a", "one"),)) == {"ns1/one"}
