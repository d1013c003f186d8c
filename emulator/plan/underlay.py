"""The physical network of a topology as plan objects: machines, switches, cables.

::

    node/n1 [eth0]───────[s1-n1]──┐
    node/n2 [eth0]───────[s1-n2]──┤ bridge s1        (all switches share the namespace "underlay")
    host/client [eth0]─[s1-client]┘

These are the objects that Mininet builds (``emulator.kernel``): namespaces of the roles node, router, host and
underlay, and the cables between them. Pods belong to the CNI style.

The loopback device of every namespace is up without being in the plan: whoever makes a namespace sets it up.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

from emulator.cluster.model import Interface, LinkQuality, Machine, Switch, SwitchPort, Topology
from emulator.plan.addressing import contains, families_of, family_of, stable_mac
from emulator.plan.model import (
    UNDERLAY,
    Address,
    AnyObject,
    Bridge,
    BridgePort,
    Chain,
    Impairment,
    IptablesRules,
    Jump,
    Namespace,
    Route,
    Rule,
    Sysctl,
    Veth,
)
from emulator.plan.neighbours import room_for_neighbours

COMPONENT = "topology"

# What a distribution's systemd sets (sysctl.d/50-default.conf: loose), and 0 for `all`, as the kernel takes the
# larger of the two. A new namespace would inherit the host's values (net.core.devconf_inherit_init_net = 0).
LOOSE_REVERSE_PATH_FILTER = "2"


def underlay(topology: Topology) -> Iterator[AnyObject]:
    """Everything below the CNI, in an order that can be built."""
    yield Namespace(
        ns=UNDERLAY, role="underlay", hostname=UNDERLAY, component=COMPONENT, why="holds all switches of the underlay"
    )
    for name, why in (
        ("net/bridge/bridge-nf-call-iptables", "a switch forwards frames; it has no firewall"),
        ("net/bridge/bridge-nf-call-ip6tables", "a switch forwards frames; it has no firewall"),
        ("net/bridge/bridge-nf-call-arptables", "a switch forwards frames; it has no firewall"),
    ):
        yield Sysctl(ns=UNDERLAY, name=name, value="0", component=COMPONENT, why=why)
    yield Sysctl(
        ns=UNDERLAY,
        name="net/ipv6/conf/all/disable_ipv6",
        value="1",
        component=COMPONENT,
        why="switch ports have no address and send nothing of their own",
    )
    ipv6 = uses_ipv6(topology)
    for machine in topology.machines:
        yield Namespace(
            ns=machine.ns, role=machine.kind, hostname=machine.name, component=COMPONENT, why=_ROLE[machine.kind]
        )
        yield from _machine_sysctls(machine, ipv6=ipv6)
    for switch in topology.switches:
        yield Bridge(
            ns=UNDERLAY,
            name=switch.name,
            mtu=switch.mtu,
            mac=stable_mac(f"switch {switch.name}"),
            component=COMPONENT,
            why="a learning switch",
        )
    yield from _cables(topology)
    for machine in topology.machines:
        yield from _addressing(machine)
        yield from _masquerading(machine)
    yield from room_for_neighbours(topology, COMPONENT)


_ROLE = {
    "node": "a Kubernetes node",
    "router": "a router of the underlay",
    "host": "a machine outside of the cluster",
}


def uses_ipv6(topology: Topology) -> bool:
    """Whether any address of the topology is IPv6."""
    cidrs = topology.pod_cidrs + topology.service_cidrs + topology.node_cidrs
    return 6 in families_of(cidrs) or any(
        family_of(address) == 6
        for machine in topology.machines
        for interface in machine.interfaces
        for address in interface.addresses
    )


def ipv6_sysctls(ns: str, *, enabled: bool, component: str) -> Iterator[Sysctl]:
    """IPv6 of a namespace: off where the topology has none, else without duplicate detection and router discovery.

    Both must be set before the first device is made: devices copy ``conf/default``.
    """
    if not enabled:
        yield Sysctl(
            ns=ns,
            name="net/ipv6/conf/all/disable_ipv6",
            value="1",
            component=component,
            why="no IPv6 here: no MLD or router solicitations between the packets that matter",
        )
        return
    for name, value, why in (
        ("net/ipv6/conf/all/disable_ipv6", "0", "the topology has IPv6 addresses"),
        ("net/ipv6/conf/all/accept_dad", "0", "addresses are usable at once; the plan has no duplicates"),
        ("net/ipv6/conf/default/accept_dad", "0", "addresses are usable at once; the plan has no duplicates"),
        ("net/ipv6/conf/default/dad_transmits", "0", "no probes for duplicate addresses"),
        ("net/ipv6/conf/default/accept_ra", "0", "addresses are static: no router solicitations"),
    ):
        yield Sysctl(ns=ns, name=name, value=value, component=component, why=why)


def _machine_sysctls(machine: Machine, *, ipv6: bool) -> Iterator[Sysctl]:
    forwards = machine.kind != "host"
    why = {"node": "pods' packets are routed by their node", "router": "a router forwards", "host": "not a router"}
    forwarding = "1" if forwards else "0"
    # First: writing ip_forward resets other per-device settings (Documentation/networking/ip-sysctl.rst).
    yield Sysctl(
        ns=machine.ns, name="net/ipv4/ip_forward", value=forwarding, component=COMPONENT, why=why[machine.kind]
    )
    yield Sysctl(
        ns=machine.ns,
        name="net/ipv4/conf/all/rp_filter",
        value="0",
        component=COMPONENT,
        why="the kernel takes the larger of this and the device's own value",
    )
    yield Sysctl(
        ns=machine.ns,
        name="net/ipv4/conf/default/rp_filter",
        value="0" if machine.kind == "router" else LOOSE_REVERSE_PATH_FILTER,
        component=COMPONENT,
        why="a router takes what comes; paths may be asymmetric"
        if machine.kind == "router"
        else "loose reverse path filter, the default of Debian and Ubuntu",
    )
    yield from ipv6_sysctls(machine.ns, enabled=ipv6, component=COMPONENT)
    if ipv6:
        yield Sysctl(
            ns=machine.ns,
            name="net/ipv6/conf/all/forwarding",
            value=forwarding,
            component=COMPONENT,
            why=why[machine.kind],
        )


def _cables(topology: Topology) -> Iterator[AnyObject]:
    """Every cable once: a veth, the switch ports at its ends, and what it does to packets in each direction."""
    switches = {switch.name: switch for switch in topology.switches}
    machines = {machine.name: machine for machine in topology.machines}
    laid: set[tuple[str, str]] = set()
    for machine in topology.machines:
        for interface in machine.interfaces:
            if interface.peer in switches:
                switch = switches[interface.peer]
                port = _port(switch, interface.peer_device)
                yield _machine_to_switch(machine, interface, switch, port)
                yield _bridge_port(switch, port)
                yield from _impairment(machine.ns, interface.name, interface.quality, f"leaving {machine.name}")
                yield from _impairment(UNDERLAY, port.device, port.quality, f"towards {machine.name}")
            elif (machine.ns, interface.name) not in laid:
                other = machines[interface.peer]
                far = next(item for item in other.interfaces if item.name == interface.peer_device)
                laid.add((other.ns, far.name))
                yield Veth(
                    ns=machine.ns,
                    name=interface.name,
                    mtu=interface.mtu,
                    mac=interface.mac,
                    peer_ns=other.ns,
                    peer=far.name,
                    peer_mac=far.mac,
                    peer_mtu=far.mtu if far.mtu != interface.mtu else 0,
                    component=COMPONENT,
                    why=f"cable to {other.name}",
                    peer_why=f"cable to {machine.name}",
                )
                yield from _impairment(machine.ns, interface.name, interface.quality, f"leaving {machine.name}")
                yield from _impairment(other.ns, far.name, far.quality, f"leaving {other.name}")
    for switch in topology.switches:
        for port in switch.ports:
            if port.machine not in switches:
                continue
            yield _bridge_port(switch, port)
            yield from _impairment(UNDERLAY, port.device, port.quality, f"towards {port.machine}")
            if (UNDERLAY, port.device) in laid:
                continue
            far_port = _port(switches[port.machine], port.machine_device)
            laid.add((UNDERLAY, far_port.device))
            yield Veth(
                ns=UNDERLAY,
                name=port.device,
                mtu=port.mtu,
                mac=stable_mac(f"port {port.device}"),
                peer_ns=UNDERLAY,
                peer=far_port.device,
                peer_mac=stable_mac(f"port {far_port.device}"),
                peer_mtu=far_port.mtu if far_port.mtu != port.mtu else 0,
                component=COMPONENT,
                why=f"cable from switch {switch.name} to switch {port.machine}",
                peer_why=f"cable from switch {port.machine} to switch {switch.name}",
            )


def _machine_to_switch(machine: Machine, interface: Interface, switch: Switch, port: SwitchPort) -> Veth:
    return Veth(
        ns=machine.ns,
        name=interface.name,
        mtu=interface.mtu,
        mac=interface.mac,
        peer_ns=UNDERLAY,
        peer=port.device,
        peer_mac=stable_mac(f"port {port.device}"),
        peer_mtu=port.mtu if port.mtu != interface.mtu else 0,
        component=COMPONENT,
        why=f"cable to switch {switch.name}",
        peer_why=f"port of switch {switch.name} for {machine.name}",
    )


def _port(switch: Switch, device: str) -> SwitchPort:
    return next(port for port in switch.ports if port.device == device)


def _bridge_port(switch: Switch, port: SwitchPort) -> BridgePort:
    return BridgePort(
        ns=UNDERLAY,
        device=port.device,
        bridge=switch.name,
        component=COMPONENT,
        why=f"{port.machine} is plugged into switch {switch.name}",
    )


def _impairment(ns: str, device: str, quality: LinkQuality, direction: str) -> Iterator[Impairment]:
    if quality != LinkQuality():
        yield Impairment(
            ns=ns,
            device=device,
            bandwidth=quality.bandwidth,
            delay=quality.delay,
            jitter=quality.jitter,
            loss=quality.loss,
            component=COMPONENT,
            why=f"the link's quality, {direction}",
        )


def _addressing(machine: Machine) -> Iterator[AnyObject]:
    for interface in machine.interfaces:
        for address in interface.addresses:
            yield Address(
                ns=machine.ns,
                device=interface.name,
                address=address,
                component=COMPONENT,
                why=f"address of {machine.name} towards {interface.peer}",
            )
    for route in machine.routes:
        yield Route(
            ns=machine.ns,
            destination=route.destination,
            via=route.via,
            device=_device_towards(machine, route.via),
            protocol="static",
            component=COMPONENT,
            why=route.why or "configured on the machine",
        )


NAT_CHAIN = "UNDERLAY-NAT"


def _masquerading(machine: Machine) -> Iterator[IptablesRules]:
    """What a router with NAT does to packets from the segments that it hides: they leave with its own address."""
    hidden = [
        (interface.name, str(ip_interface(address).network))
        for interface in machine.interfaces
        if interface.name in machine.nat
        for address in interface.addresses
    ]
    for family in families_of(tuple(cidr for _, cidr in hidden)):
        yield IptablesRules(
            ns=machine.ns,
            family=family,
            table="nat",
            owner="topology",
            chains=(
                Chain(
                    NAT_CHAIN,
                    tuple(
                        Rule(("-s", cidr, "!", "-o", device, "-j", "MASQUERADE"), f"from behind {device} to outside")
                        for device, cidr in hidden
                        if family_of(cidr) == family
                    ),
                ),
            ),
            jumps=(Jump("POSTROUTING", Rule(("-j", NAT_CHAIN), "packets that leave the router")),),
            component=COMPONENT,
            why="the router hides a segment: nobody outside knows its addresses, which others may have as well",
        )


def _device_towards(machine: Machine, gateway: str) -> str:
    """The interface on whose subnet ``gateway`` is; empty leaves it to the kernel."""
    for interface in machine.interfaces:
        if any(contains(address, gateway) for address in interface.addresses):
            return interface.name
    return ""
