"""Each shipped topology is a Mininet topology too, the same in machines, switches, cables and impairments."""

from __future__ import annotations

import importlib.util
from collections import Counter
from types import ModuleType

import pytest

from emulator.cluster.shipped import shipped_folder
from emulator.cluster.topology import load_topology, topology_names

pytest.importorskip("mininet")


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """The file as ``mn --custom`` runs it: by its path, not as part of a package."""
    path = shipped_folder("topologies") / "mininet_topos.py"
    spec = importlib.util.spec_from_file_location("mininet_topos", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_mn_offers_each_shipped_topology_by_its_name(module: ModuleType) -> None:
    assert sorted(module.topos) == topology_names()


@pytest.mark.parametrize("name", topology_names())
def test_hosts_switches_and_links_are_those_of_the_topology(module: ModuleType, name: str) -> None:
    built, topology = module.topos[name](), load_topology(name)
    assert sorted(built.hosts()) == sorted(machine.name for machine in topology.machines)
    assert sorted(built.switches()) == sorted(switch.name for switch in topology.switches)
    cables = Counter(frozenset((m.name, i.peer)) for m in topology.machines for i in m.interfaces)
    routers = {machine.name for machine in topology.machines}
    # A cable between two machines is in the interfaces of both
    expected = Counter({ends: count // (2 if ends <= routers else 1) for ends, count in cables.items()})
    assert Counter(frozenset(link) for link in built.links()) == expected


def test_machines_have_their_addresses_and_routes(module: ModuleType) -> None:
    built = module.topos["racks"]()
    tor = built.nodeInfo("tor1")
    assert tor["addresses"] == (("tor1-eth0", "192.168.51.1/24"), ("tor1-eth1", "172.16.0.1/31"))
    assert ("0.0.0.0/0", "172.16.0.0") in tor["routes"]
    assert tor["forward"] is True
    assert built.nodeInfo("client")["forward"] is False


def test_impairments_have_mininets_names_and_units(module: ModuleType) -> None:
    from emulator.cluster.model import LinkQuality

    quality = LinkQuality(bandwidth=100, delay=5, jitter=1, loss=0.5)
    assert module._link(quality) == {"bw": 100, "delay": "5ms", "jitter": "1ms", "loss": 0.5}
    assert module._link(LinkQuality()) == {}
