"""Pod addresses as ipamd of the AWS VPC CNI hands them out: secondary addresses, or /28 prefixes, of interfaces.

A node has its primary interface from the start. ipamd fills it with addresses for pods, and keeps a stock so that a
pod need not wait for EC2: by default one whole interface more than is in use (``WARM_ENI_TARGET`` 1), or so many
addresses (``WARM_IP_TARGET``), with prefixes one unused prefix (``WARM_PREFIX_TARGET`` 1). So on an m5.large, which has
nine addresses for pods on each interface, the first pod brings the second interface.

Sources: aws/amazon-vpc-cni-k8s pkg/ipamd/ipamd.go (isDatastorePoolTooLow, isDatastorePoolTooHigh,
increaseDatastorePool), pkg/ipamd/datastore.

Two liberties: pods take the first interface that has an address (ipamd takes any, Go's map order), and an address that
was given back goes to the end of its interface's queue in place of 30 seconds of cool-down.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_interface
from itertools import chain

from emulator.cluster.instance_types import ADDRESSES_PER_PREFIX, INSTANCE_TYPE_LABEL, InstanceType, instance_type
from emulator.cluster.model import Eni, Interface, Machine, Topology, Vpc, VpcSubnet
from emulator.errors import AddressesExhausted

RESERVED = 4  # the first addresses of a subnet: network, router, DNS, kept for later; the last one is reserved too
PREFIX_LENGTH = 28


@dataclass
class _Subnet:
    """What is taken of a subnet. ``start`` is where the search for a free address begins."""

    network: IPv4Network
    taken: set[int]
    start: int

    def take(self) -> IPv4Address | None:
        """The next free address; None if there is none."""
        size = self.network.num_addresses
        for offset in chain(range(self.start, size - 1), range(RESERVED, self.start)):
            if offset not in self.taken:
                self.taken.add(offset)
                self.start = offset
                return self.network[offset]
        return None

    def take_prefix(self) -> IPv4Network | None:
        """The next block of sixteen of which nothing is taken."""
        for base in range(0, self.network.num_addresses, ADDRESSES_PER_PREFIX):
            block = range(base, base + ADDRESSES_PER_PREFIX)
            if base >= RESERVED and block.stop < self.network.num_addresses and self.taken.isdisjoint(block):
                self.taken.update(block)
                return IPv4Network((int(self.network[base]), PREFIX_LENGTH))
        return None

    def give_back(self, network: IPv4Network) -> None:
        base = int(network.network_address) - int(self.network.network_address)
        self.taken.difference_update(range(base, base + network.num_addresses))


@dataclass
class _Interface:
    """An attached interface: what it has for pods, and which of it is free, in the order of handing out."""

    index: int
    address: IPv4Address
    prefixes: list[IPv4Network] = field(default_factory=list)
    free: deque[IPv4Address] = field(default_factory=deque)
    used: int = 0

    def add(self, network: IPv4Network) -> None:
        self.prefixes.append(network)
        self.free.extend(network)

    def unused_prefixes(self) -> int:
        """How many of its prefixes no pod has an address of."""
        free = set(self.free)
        return sum(free.issuperset(network) for network in self.prefixes)

    def copy(self) -> _Interface:
        return _Interface(self.index, self.address, list(self.prefixes), deque(self.free), self.used)


@dataclass
class _Instance:
    """A node: the subnet that its interfaces are in, what its type allows, and its interfaces by index."""

    name: str
    subnet: str
    type: InstanceType
    interfaces: list[_Interface]

    def available(self) -> int:
        return sum(len(interface.free) for interface in self.interfaces)

    def spare(self) -> Iterator[_Interface]:
        """The interfaces that can have more for pods."""
        return (interface for interface in self.interfaces if len(interface.prefixes) < self.type.slots)


class EniPools:
    """The address manager of a whole cluster: every node's ipamd, and EC2 behind them.

    ``topology`` has had its VPC laid: its nodes have one interface each, in a subnet of the VPC.
    """

    def __init__(self, topology: Topology, *, prefixes: bool = False) -> None:
        assert topology.vpc is not None
        self._vpc: Vpc = topology.vpc
        self._prefixes = prefixes
        self._machines = {machine.name: machine for machine in topology.of_kind("node")}
        self._subnets = {subnet.cidr: _fresh(subnet, topology) for subnet in self._vpc.subnets}
        self._instances: dict[str, _Instance] = {}
        self._leases: dict[str, tuple[str, int, IPv4Address]] = {}  # node, index of the interface, address

    def add_node(self, node: str) -> None:
        """Make ``node`` known: ipamd starts on it and fills its primary interface."""
        if node in self._instances:
            return
        machine = self._machines[node]
        address = IPv4Address(ip_interface(_primary(machine).addresses[0]).ip)
        instance = _Instance(
            node, self._vpc.subnet_of(str(address)).cidr, instance_type(node, machine.labels), [_Interface(0, address)]
        )
        self._instances[node] = instance
        if not self._prefixes and not self._vpc.warm_ips:
            self._fill(instance, instance.interfaces[0], instance.type.slots)
        self._stock_up(instance)

    def ranges(self, node: str) -> tuple[str, ...]:
        """Everything that the interfaces of ``node`` have for pods."""
        return tuple(str(each) for interface in self._instances[node].interfaces for each in interface.prefixes)

    def interfaces(self, node: str) -> tuple[Eni, ...]:
        """The network interfaces of ``node``, the primary one first."""
        instance, primary = self._instances[node], _primary(self._machines[node])
        return tuple(
            Eni(
                index=each.index,
                device=primary.name if each.index == 0 else f"eth{each.index}",
                mac=primary.mac if each.index == 0 else _mac(node, f"eth{each.index}"),
                subnet=instance.subnet,
                address=str(each.address),
                prefixes=tuple(map(str, each.prefixes)),
            )
            for each in instance.interfaces
        )

    def allocate(self, node: str, owner: str) -> tuple[str, ...]:
        """The address of ``owner``. Raises AddressesExhausted that names the limit."""
        lease = self._leases.get(owner)
        if lease is not None and lease[0] == node:
            return (str(lease[2]),)
        self.release(owner)
        instance = self._instances[node]
        if not instance.available():
            self._grow(instance, 1)
        interface = next((each for each in instance.interfaces if each.free), None)
        if interface is None:
            raise self._exhausted(instance, owner)
        address = interface.free.popleft()
        interface.used += 1
        self._leases[owner] = (node, interface.index, address)
        self._stock_up(instance)
        return (str(address),)

    def release(self, owner: str) -> None:
        """Give the address of ``owner`` back; an interface that is too many is detached."""
        lease = self._leases.pop(owner, None)
        if lease is None:
            return
        node, index, address = lease
        instance = self._instances[node]
        interface = next(each for each in instance.interfaces if each.index == index)
        interface.free.append(address)
        interface.used -= 1
        self._detach_surplus(instance)

    def copy(self) -> EniPools:
        """An independent copy."""
        twin = object.__new__(EniPools)
        twin._vpc, twin._prefixes, twin._machines = self._vpc, self._prefixes, self._machines
        twin._subnets = {
            cidr: _Subnet(each.network, set(each.taken), each.start) for cidr, each in self._subnets.items()
        }
        twin._instances = {
            name: _Instance(each.name, each.subnet, each.type, [one.copy() for one in each.interfaces])
            for name, each in self._instances.items()
        }
        twin._leases = dict(self._leases)
        return twin

    # -- the stock ------------------------------------------------------------------------------------------

    def _stock_up(self, instance: _Instance) -> None:
        """As much as the targets want, as far as instance type and subnet allow."""
        if self._prefixes:
            if not any(each.unused_prefixes() for each in instance.interfaces):
                self._grow(instance, 1)
        elif self._vpc.warm_ips:
            self._grow(instance, self._vpc.warm_ips - instance.available())
        else:
            wanted = self._vpc.warm_enis * instance.type.slots
            while instance.available() < wanted and self._attach(instance):
                if not self._fill(instance, instance.interfaces[-1], instance.type.slots):
                    break

    def _grow(self, instance: _Instance, wanted: int) -> None:
        """``wanted`` more addresses (or prefixes): on the interfaces that are there, then on new ones. Without an exact
        target a new interface is filled at once."""
        while wanted > 0:
            interface = next(instance.spare(), None)
            if interface is None:
                if not self._attach(instance):
                    return
                interface = instance.interfaces[-1]
            exact = self._prefixes or self._vpc.warm_ips
            got = self._fill(instance, interface, wanted if exact else instance.type.slots)
            if not got:
                return
            wanted -= got

    def _fill(self, instance: _Instance, interface: _Interface, wanted: int) -> int:
        """How many of ``wanted`` addresses or prefixes the interface could be given."""
        subnet = self._subnets[instance.subnet]
        given = 0
        while given < wanted and len(interface.prefixes) < instance.type.slots:
            if self._prefixes:
                network = subnet.take_prefix()
            else:
                address = subnet.take()
                network = IPv4Network(address) if address is not None else None
            if network is None:
                break
            interface.add(network)
            given += 1
        return given

    def _attach(self, instance: _Instance) -> bool:
        """One interface more, with its own address; False where the type or the subnet does not allow it."""
        if len(instance.interfaces) >= instance.type.enis:
            return False
        address = self._subnets[instance.subnet].take()
        if address is None:
            return False
        instance.interfaces.append(_Interface(len(instance.interfaces), address))
        return True

    def _detach_surplus(self, instance: _Instance) -> None:
        """The last interfaces, while they are unused and the stock is larger than the target by one of them."""
        if self._prefixes or self._vpc.warm_ips:
            return
        subnet = self._subnets[instance.subnet]
        keep = (self._vpc.warm_enis + 1) * instance.type.slots
        while len(instance.interfaces) > 1 and not instance.interfaces[-1].used and instance.available() >= keep:
            gone = instance.interfaces.pop()
            for network in (IPv4Network(gone.address), *gone.prefixes):
                subnet.give_back(network)

    def _exhausted(self, instance: _Instance, owner: str) -> AddressesExhausted:
        kind = instance.type
        held = sum(len(each.prefixes) for each in instance.interfaces)
        if held < kind.enis * kind.slots:
            what = f"a free /{PREFIX_LENGTH} prefix" if self._prefixes else "a free address"
            return AddressesExhausted(
                f"node {instance.name}: no address for {owner}: subnet {instance.subnet} does not have {what} left",
                hint="give the subnet a larger cidr in the topology's vpc section, or hoard less (warmIPTarget there)",
            )
        what = "prefixes of sixteen addresses" if self._prefixes else "addresses"
        most = kind.max_pods(prefixes=self._prefixes)
        hint = f"give the node a larger instance type (label {INSTANCE_TYPE_LABEL}), or run fewer pods on it"
        return AddressesExhausted(
            f"node {instance.name}: no address for {owner}: an {kind.name} takes {kind.enis} network interfaces with"
            f" {kind.slots} {what} for pods each, and all are in use (max-pods {most})",
            hint=hint if self._prefixes else f"{hint}, or use aws-vpc:prefix",
        )


def _fresh(subnet: VpcSubnet, topology: Topology) -> _Subnet:
    """The subnet before ipamd takes anything: AWS's own addresses, those of the machines in it, and those that are kept
    for load balancers."""
    network = IPv4Network(subnet.cidr)
    taken = {*range(RESERVED), network.num_addresses - 1}
    first = RESERVED
    for machine in topology.machines:
        for interface in machine.interfaces:
            for text in interface.addresses:
                address = ip_interface(text).ip
                if isinstance(address, IPv4Address) and address in network:
                    offset = int(address) - int(network.network_address)
                    taken.add(offset)
                    if machine.kind == "node":
                        first = max(first, offset + 1)
    if topology.load_balancer is not None and topology.load_balancer.kind == "nlb":
        for kept in topology.load_balancer.ranges:
            if IPv4Address(kept.first) in network:
                base = int(network.network_address)
                taken.update(range(kept.low - base, kept.high - base + 1))
    return _Subnet(network, taken, min(first, network.num_addresses - 1))


def _primary(machine: Machine) -> Interface:
    return machine.interfaces[0]


def _mac(node: str, device: str) -> str:
    """A locally administered unicast address, the same in each run."""
    digest = hashlib.sha256(f"{node}/{device}/eni".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
