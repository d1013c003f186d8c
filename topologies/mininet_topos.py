"""The topologies of this folder for Mininet's own command line::

    mn --custom topologies/mininet_topos.py --topo three-nodes

Machines become hosts (with addresses, MACs and routes, forwarding on routers and nodes), switches become
switches, links keep bandwidth, delay, jitter and loss; add ``--link tc`` for these to take effect. Mininet
numbers the ports itself but in the same order, and builds no pods and no CNI: that is what ``cnilab up`` is for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from mininet.node import Node
from mininet.topo import Topo

# "mn --custom" runs this file by itself: the package of the checkout that it is in may not be installed
CHECKOUT = Path(__file__).resolve().parent.parent
if (CHECKOUT / "setup.cfg").is_file():
    sys.path.insert(0, str(CHECKOUT))

from emulator.cluster.model import Interface, LinkQuality, Machine  # noqa: E402
from emulator.cluster.topology import load_topology, topology_names  # noqa: E402


class Routed(Node):  # type: ignore[misc]
    """A machine with all its addresses and static routes; nodes and routers forward, and some routers masquerade."""

    def config(
        self,
        *,
        addresses: tuple[tuple[str, str], ...] = (),
        routes: tuple[tuple[str, str], ...] = (),
        hidden: tuple[tuple[str, str], ...] = (),
        forward: bool = False,
        **parameters: Any,
    ) -> Any:
        """Mininet calls this when the links are there."""
        result = super().config(**parameters)
        if forward:
            self.cmd("sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for device, address in addresses:
            nodad = "nodad" if ":" in address else ""
            self.cmd(f"ip addr replace {address} dev {device} {nodad}")
        for destination, via in routes:
            self.cmd(f"ip route replace {destination} via {via}")
        for device, cidr in hidden:
            tool = "ip6tables" if ":" in cidr else "iptables"
            self.cmd(f"{tool} -t nat -A POSTROUTING -s {cidr} ! -o {device} -j MASQUERADE")
        return result


class CnilabTopo(Topo):  # type: ignore[misc]
    """One shipped topology as a Mininet ``Topo``."""

    def build(self, name: str = "three-nodes") -> None:
        """Add the hosts, switches and links of the topology ``name``."""
        topology = load_topology(name)
        for number, switch in enumerate(topology.switches, 1):
            # Mininet derives the datapath id from digits in the name, which ours need not have
            self.addSwitch(switch.name, dpid=f"{number:016x}")
        for machine in topology.machines:
            self.addHost(machine.name, cls=Routed, ip=None, **_parameters(machine))
        machines = {machine.name: machine for machine in topology.machines}
        done: set[frozenset[tuple[str, str]]] = set()
        for machine in topology.machines:
            for interface in machine.interfaces:
                ends = frozenset(((machine.name, interface.name), (interface.peer, interface.peer_device)))
                if ends in done:
                    continue
                done.add(ends)
                options = {
                    **_link(interface.quality),
                    "intfName1": _device(machine.name, interface.name),
                    "addr1": interface.mac,
                }
                if interface.peer in machines:
                    far = _interface(machines[interface.peer], interface.peer_device)
                    options |= {"intfName2": _device(interface.peer, far.name), "addr2": far.mac}
                self.addLink(machine.name, interface.peer, **options)
        for switch in topology.switches:
            for port in switch.ports:
                ends = frozenset(((switch.name, port.device), (port.machine, port.machine_device)))
                if port.machine not in machines and ends not in done:
                    done.add(ends)
                    self.addLink(switch.name, port.machine, **_link(port.quality))


def _parameters(machine: Machine) -> dict[str, Any]:
    return {
        "addresses": tuple(
            (_device(machine.name, interface.name), address)
            for interface in machine.interfaces
            for address in interface.addresses
        ),
        "routes": tuple((route.destination, route.via) for route in machine.routes),
        "hidden": tuple(
            (_device(machine.name, interface.name), str(ip_interface(address).network))
            for interface in machine.interfaces
            if interface.name in machine.nat
            for address in interface.addresses
        ),
        "forward": machine.kind != "host",
    }


def _device(machine: str, device: str) -> str:
    """Mininet makes both ends in one namespace before it moves them: ``eth0`` alone would clash."""
    return f"{machine}-{device}"[-15:]


def _interface(machine: Machine, device: str) -> Interface:
    return next(interface for interface in machine.interfaces if interface.name == device)


def _link(quality: LinkQuality) -> dict[str, Any]:
    """Mininet's names and units: Mbit/s, "5ms", per cent."""
    options: dict[str, Any] = {}
    if quality.bandwidth:
        options["bw"] = quality.bandwidth
    if quality.delay:
        options["delay"] = f"{quality.delay}ms"
    if quality.jitter:
        options["jitter"] = f"{quality.jitter}ms"
    if quality.loss:
        options["loss"] = quality.loss
    return options


def _builder(name: str) -> Callable[[], CnilabTopo]:
    return lambda: CnilabTopo(name=name)


topos = {name: _builder(name) for name in topology_names()}
