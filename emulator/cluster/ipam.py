"""Pod addresses, as each CNI hands them out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from emulator.cluster.validation import IPAddress, Network, invalid, parse_cidr
from emulator.errors import AddressesExhausted, Problem, TopologyError

if TYPE_CHECKING:
    from emulator.cluster.model import Eni, Node


class Ipam(Protocol):
    """The one mutable thing in the pure core: which address is whose. ``copy`` makes a change reversible."""

    def add_node(self, node: str) -> None:
        """Make ``node`` known, in the order of the topology; host-local gives it its range at once."""
        ...

    def ranges(self, node: str) -> tuple[str, ...]:
        """The CIDRs that ``node`` holds now."""
        ...

    def allocate(self, node: str, owner: str) -> tuple[str, ...]:
        """Addresses (no prefix length), one per family, for ``owner`` (``namespace/name``) on ``node``; the same
        ones again if it has them. Raises AddressesExhausted."""
        ...

    def release(self, owner: str) -> None:
        """Give the addresses of ``owner`` back; nothing happens if it has none."""
        ...

    def copy(self) -> Ipam:
        """An independent copy of the whole state."""
        ...


@runtime_checkable
class ConfiguredIpam(Ipam, Protocol):
    """An address manager whose settings stand in the cluster's objects (Calico's IPPool)."""

    def configure(self, objects: Sequence[dict[str, Any]], nodes: Sequence[Node]) -> None:
        """Take the settings that ``objects`` hold; comes before everything else. Raises ManifestError."""
        ...

    def tunnels(self, node: str) -> dict[str, str]:
        """The addresses that tunnel devices of ``node`` have been given, by device."""
        ...


@runtime_checkable
class TakesRequests(Protocol):
    """An address manager that pods may ask for certain addresses, by annotations (Calico's ``ipAddrs``)."""

    def request(self, owner: str, annotations: Mapping[str, str]) -> None:
        """Take what the annotations of ``owner``, a pod about to be made, ask for: it holds for the next ``allocate``,
        until ``release``. Raises ManifestError."""
        ...


@runtime_checkable
class AttachesInterfaces(Protocol):
    """An address manager that gives nodes further network interfaces as their pods need addresses."""

    def interfaces(self, node: str) -> tuple[Eni, ...]:
        """The network interfaces of ``node``, the primary one first."""
        ...


@dataclass
class _Lease:
    """Where an owner's addresses came from: for each family, the table (range or block) and the offset in it."""

    node: str
    addresses: tuple[str, ...]
    places: tuple[tuple[int, int, int], ...]  # family index, number of the range or block, offset


@dataclass
class _Range:
    """A node's range in host-local. ``last`` is the offset that was reserved last (``last_reserved_ip`` file)."""

    network: Network
    used: set[int]
    last: int

    def next_free(self) -> int | None:
        """The first free offset after the last one, starting over at the end; None if there is none.

        Network address, gateway (.1) and, in IPv4, the broadcast address are never handed out.
        """
        first, end = 2, self.network.num_addresses - (1 if self.network.version == 4 else 0)
        if len(self.used) >= end - first:
            return None
        offset = self.last + 1
        while True:
            if offset >= end:
                offset = first
            if offset not in self.used:
                return offset
            offset += 1


class HostLocal:
    """The ``host-local`` plugin with a range per node, as Flannel, Canal and kindnet use it.

    Round robin: an address that was given back is not handed out again before the range has been gone
    through once, so that a pod that returns has another address
    (containernetworking/plugins, ``plugins/ipam/host-local/backend/allocator``).

    The n-th node gets subnet number ``first`` + n - 1 of each CIDR: number 0 is left to a control plane
    that is not emulated, as in a kubeadm cluster whose first worker has 10.244.1.0/24.
    """

    def __init__(self, cidrs: Sequence[str], v4_prefix: int = 24, v6_prefix: int = 64, first: int = 1) -> None:
        self._pools = [(parse_cidr(cidr), v4_prefix if parse_cidr(cidr).version == 4 else v6_prefix) for cidr in cidrs]
        for pool, prefix in self._pools:
            _check_pool(pool, prefix, "a node's range", 2)
        self._first = first
        self._ranges: dict[str, tuple[_Range, ...]] = {}
        self._leases: dict[str, _Lease] = {}

    def add_node(self, node: str) -> None:
        """Give ``node`` its range. Raises AddressesExhausted when the CIDR has no range left."""
        if node in self._ranges:
            return
        number = self._first + len(self._ranges)
        ranges = []
        for pool, prefix in self._pools:
            if number >= 1 << (prefix - pool.prefixlen):
                raise AddressesExhausted(
                    f"node {node}: {pool} has {1 << (prefix - pool.prefixlen)} ranges of /{prefix}, one is reserved for"
                    f" the control plane, the others are taken by {len(self._ranges)} nodes",
                    hint="give the topology a larger podCIDRs range",
                )
            ranges.append(_Range(_nth_subnet(pool, prefix, number), set(), 1))
        self._ranges[node] = tuple(ranges)

    def ranges(self, node: str) -> tuple[str, ...]:
        """The CIDRs of ``node``, one per family."""
        return tuple(str(held.network) for held in self._ranges[node])

    def allocate(self, node: str, owner: str) -> tuple[str, ...]:
        """One address per family. Raises AddressesExhausted, and then nothing was taken."""
        lease = self._leases.get(owner)
        if lease is not None and lease.node == node:
            return lease.addresses
        self.release(owner)
        chosen = []
        for held in self._ranges[node]:
            offset = held.next_free()
            if offset is None:
                raise AddressesExhausted(
                    f"node {node}: no free address for {owner}: all {len(held.used)} of {held.network} are taken",
                    hint="run fewer pods on this node, or give the nodes larger ranges",
                )
            chosen.append((held, offset))
        for held, offset in chosen:
            held.used.add(offset)
            held.last = offset
        addresses = tuple(str(held.network.network_address + offset) for held, offset in chosen)
        places = tuple((index, 0, offset) for index, (_, offset) in enumerate(chosen))
        self._leases[owner] = _Lease(node, addresses, places)
        return addresses

    def release(self, owner: str) -> None:
        """Give the addresses of ``owner`` back."""
        lease = self._leases.pop(owner, None)
        if lease is not None:
            for family, _, offset in lease.places:
                self._ranges[lease.node][family].used.discard(offset)

    def copy(self) -> HostLocal:
        """An independent copy."""
        twin = HostLocal((), first=self._first)
        twin._pools = self._pools
        twin._ranges = {
            node: tuple(_Range(held.network, set(held.used), held.last) for held in ranges)
            for node, ranges in self._ranges.items()
        }
        twin._leases = dict(self._leases)
        return twin


@dataclass
class _Block:
    """A Calico block and the node that it has affinity to. ``free`` is the order of handing out."""

    network: Network
    node: str
    free: list[int]


@dataclass(frozen=True)
class BlockPool:
    """A pool that blocks are cut from. ``nodes`` may take addresses of it; None: all of them."""

    cidr: str
    prefix: int  # length of a block's
    nodes: frozenset[str] | None = None

    def serves(self, node: str) -> bool:
        return self.nodes is None or node in self.nodes


class Blocks:
    """Calico's IPAM: blocks of pools with affinity to a node, claimed on demand.

    A node takes the first free address of its blocks, all of them (64 in a /26, the first and the last
    too: pods have /32 addresses and no broadcast domain). Given-back addresses go to the end of their
    block's list (``Unallocated`` in ``libcalico-go/lib/backend/model/block.go``). A node whose blocks are
    full claims another, up to ``blocks_per_node``; then it borrows from other nodes' blocks unless
    ``strict`` (StrictAffinity). Of several pools of a family the first that has an address is taken.

    Two liberties for the sake of readable addresses: a node claims its first block when it joins rather
    than with its first pod, and blocks are taken in order where Calico starts at a hash of the node's name.
    """

    def __init__(
        self,
        cidrs: Sequence[str],
        v4_prefix: int = 26,
        v6_prefix: int = 122,
        *,
        strict: bool = False,
        blocks_per_node: int = 20,
    ) -> None:
        self._strict = strict
        self._blocks_per_node = blocks_per_node
        self._pools: list[BlockPool] = []
        self._networks: list[Network] = []
        self._blocks: list[list[_Block]] = []
        self._nodes: list[str] = []
        self._leases: dict[str, _Lease] = {}
        self.use_pools([BlockPool(cidr, v4_prefix if parse_cidr(cidr).version == 4 else v6_prefix) for cidr in cidrs])

    def use_pools(self, pools: Iterable[BlockPool]) -> None:
        """From now on addresses come from ``pools``, in this order. What was handed out of others stays so; a pool
        that comes back under its CIDR is the same one. Raises TopologyError for one that holds no block."""
        wanted = {pool.cidr: pool for pool in pools}
        for index, held in enumerate(self._pools):
            self._pools[index] = wanted.pop(held.cidr, BlockPool(held.cidr, held.prefix, frozenset()))
        for pool in wanted.values():
            network = parse_cidr(pool.cidr)
            _check_pool(network, pool.prefix, "a block", 0)
            self._pools.append(pool)
            self._networks.append(network)
            self._blocks.append([])

    def add_node(self, node: str) -> None:
        """Make ``node`` known and claim its first block of each family, if there is one left."""
        if node not in self._nodes:
            self._nodes.append(node)
            for version in self._versions():
                for pool in self._serving(node, version):
                    if self._claim(pool, node):
                        break

    def ranges(self, node: str) -> tuple[str, ...]:
        """The blocks with affinity to ``node``."""
        return tuple(str(block.network) for blocks in self._blocks for block in blocks if block.node == node)

    def allocate(self, node: str, owner: str, *, pools: Collection[str] | None = None) -> tuple[str, ...]:
        """One address per family, of these ``pools`` (CIDRs; None: any). Raises AddressesExhausted, and then nothing
        was taken (a block may be claimed)."""
        lease = self._leases.get(owner)
        if lease is not None and lease.node == node and (pools is None or self._within(lease, pools)):
            return lease.addresses
        self.release(owner)
        if node not in self._nodes:
            raise KeyError(node)
        found = [self._block_for(version, node, owner, pools) for version in self._versions(pools)]
        places, addresses = [], []
        for pool, number in found:
            block = self._blocks[pool][number]
            offset = block.free.pop(0)
            places.append((pool, number, offset))
            addresses.append(str(block.network.network_address + offset))
        self._leases[owner] = _Lease(node, tuple(addresses), tuple(places))
        return tuple(addresses)

    def assign(self, node: str, owner: str, addresses: Sequence[str]) -> tuple[str, ...]:
        """These very addresses, whosever block they are of; the node claims a block that nobody has.

        Raises ValueError with a reason, and then nothing was taken (libcalico-go/lib/ipam/ipam.go, AssignIP).
        """
        lease = self._leases.get(owner)
        if lease is not None and (lease.node, lease.addresses) == (node, tuple(addresses)):
            return lease.addresses
        self.release(owner)
        before = [list(blocks) for blocks in self._blocks]
        try:
            places = [self._place(node, ip_address(address)) for address in addresses]
        except ValueError:
            self._blocks = before  # no block is claimed for half a wish
            raise
        for pool, number, offset in places:
            self._blocks[pool][number].free.remove(offset)
        self._leases[owner] = _Lease(node, tuple(addresses), tuple(places))
        return tuple(addresses)

    def _place(self, node: str, address: IPAddress) -> tuple[int, int, int]:
        """Where a free address is: pool, number of the block, offset."""
        for pool, network in enumerate(self._networks):
            if network.version == address.version and address in network and self._pools[pool].nodes != frozenset():
                break
        else:
            raise ValueError("is in no IP pool that is in use")
        prefix = self._pools[pool].prefix
        block = ip_network(f"{address}/{prefix}", strict=False)
        held = next((n for n, each in enumerate(self._blocks[pool]) if each.network == block), None)
        if held is None:
            self._blocks[pool].append(_Block(block, node, list(range(block.num_addresses))))
            held = len(self._blocks[pool]) - 1
        found = self._blocks[pool][held]
        if found.node != node and self._strict:
            raise ValueError(f"is of {block}, a block of {found.node} (strict affinity)")
        offset = int(address) - int(block.network_address)
        if offset not in found.free:
            user = next(name for name, each in self._leases.items() if (pool, held, offset) in each.places)
            raise ValueError(f"is in use by {user}")
        return pool, held, offset

    def release(self, owner: str) -> None:
        """Give the addresses of ``owner`` back; the node keeps its blocks."""
        lease = self._leases.pop(owner, None)
        if lease is not None:
            for pool, number, offset in lease.places:
                self._blocks[pool][number].free.append(offset)

    def copy(self) -> Blocks:
        """An independent copy."""
        twin = Blocks((), strict=self._strict, blocks_per_node=self._blocks_per_node)
        twin._pools = list(self._pools)
        twin._networks = list(self._networks)
        twin._blocks = [[_Block(b.network, b.node, list(b.free)) for b in blocks] for blocks in self._blocks]
        twin._nodes = list(self._nodes)
        twin._leases = dict(self._leases)
        return twin

    def _versions(self, pools: Collection[str] | None = None) -> list[int]:
        """The families of the pools in use, in their order."""
        return list(
            dict.fromkeys(
                network.version
                for pool, network in zip(self._pools, self._networks, strict=True)
                if pool.nodes != frozenset() and (pools is None or pool.cidr in pools)
            )
        )

    def _within(self, lease: _Lease, pools: Collection[str]) -> bool:
        return all(self._pools[pool].cidr in pools for pool, _, _ in lease.places)

    def _serving(self, node: str, version: int, pools: Collection[str] | None = None) -> list[int]:
        """The pools that ``node`` may take an address of this family from."""
        return [
            index
            for index, pool in enumerate(self._pools)
            if self._networks[index].version == version and pool.serves(node) and (pools is None or pool.cidr in pools)
        ]

    def _block_for(self, version: int, node: str, owner: str, pools: Collection[str] | None) -> tuple[int, int]:
        """The pool and the number of the block that the next address of ``node`` comes from."""
        serving = self._serving(node, version, pools)
        for pool in serving:
            for number, block in enumerate(self._blocks[pool]):
                if block.node == node and block.free:
                    return pool, number
        held = sum(block.node == node for pool in serving for block in self._blocks[pool])
        if held < self._blocks_per_node:
            for pool in serving:
                if self._claim(pool, node):
                    return pool, len(self._blocks[pool]) - 1
        if not self._strict:
            for pool in serving:
                for number, block in enumerate(self._blocks[pool]):
                    if block.free:
                        return pool, number
        raise AddressesExhausted(
            f"node {node}: no free address for {owner}: {self._reason(serving, held, version)}",
            hint="run fewer pods, or give the topology a larger podCIDRs range",
        )

    def _reason(self, serving: Sequence[int], held: int, version: int) -> str:
        if not serving:
            return f"no IPv{version} pool that is in use selects this node"
        size = 1 << (self._networks[serving[0]].max_prefixlen - self._pools[serving[0]].prefix)
        where = ", ".join(self._pools[pool].cidr for pool in serving)
        if self._strict:
            return f"its {held} blocks of {size} addresses in {where} are full and it may not borrow (strict affinity)"
        if held >= self._blocks_per_node:
            return (
                f"its {held} blocks of {size} addresses in {where}, the most that a node may hold, are full, and no"
                " other node has an address to lend"
            )
        return f"all {sum(len(self._blocks[pool]) for pool in serving)} blocks of {size} addresses in {where} are full"

    def _claim(self, pool: int, node: str) -> bool:
        network, prefix = self._networks[pool], self._pools[pool].prefix
        number = len(self._blocks[pool])
        if number >= 1 << (prefix - network.prefixlen):
            return False
        size = 1 << (network.max_prefixlen - prefix)
        block = _nth_subnet(network, prefix, number)
        taken = {each.network for each in self._blocks[pool]}
        if block in taken:  # a pod had asked for an address of it
            everywhere = range(1 << (prefix - network.prefixlen))
            block = next(one for n in everywhere if (one := _nth_subnet(network, prefix, n)) not in taken)
        self._blocks[pool].append(_Block(block, node, list(range(size))))
        return True


def _nth_subnet(pool: Network, prefix: int, number: int) -> Network:
    """Subnet ``number`` of ``pool``, computed: a v6 pool has too many to list."""
    offset = number << (pool.max_prefixlen - prefix)
    return parse_cidr(f"{pool.network_address + offset}/{prefix}")


def _check_pool(pool: Network, prefix: int, what: str, host_bits: int) -> None:
    if not pool.prefixlen <= prefix <= pool.max_prefixlen - host_bits:
        reason = invalid(str(pool), f"is too small for {what} of /{prefix}")
        raise TopologyError([Problem("topology", "", "podCIDRs", reason)])
