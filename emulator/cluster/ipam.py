"""Pod addresses, as each CNI hands them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from emulator.cluster.validation import Network, invalid, parse_cidr
from emulator.errors import AddressesExhausted, Problem, TopologyError


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


class Blocks:
    """Calico's IPAM: blocks of a pool with affinity to a node, claimed on demand.

    A node takes the first free address of its blocks, all of them (64 in a /26, the first and the last
    too: pods have /32 addresses and no broadcast domain). Given-back addresses go to the end of their
    block's list (``Unallocated`` in ``libcalico-go/lib/backend/model/block.go``). A node whose blocks are
    full claims another, up to ``blocks_per_node``; then it borrows from other nodes' blocks unless
    ``strict`` (StrictAffinity).

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
        self._pools = [(parse_cidr(cidr), v4_prefix if parse_cidr(cidr).version == 4 else v6_prefix) for cidr in cidrs]
        for pool, prefix in self._pools:
            _check_pool(pool, prefix, "a block", 0)
        self._strict = strict
        self._blocks_per_node = blocks_per_node
        self._blocks: list[list[_Block]] = [[] for _ in self._pools]
        self._nodes: list[str] = []
        self._leases: dict[str, _Lease] = {}

    def add_node(self, node: str) -> None:
        """Make ``node`` known and claim its first block of each pool, if there is one left."""
        if node not in self._nodes:
            self._nodes.append(node)
            for family in range(len(self._pools)):
                self._claim(family, node)

    def ranges(self, node: str) -> tuple[str, ...]:
        """The blocks with affinity to ``node``."""
        return tuple(str(block.network) for blocks in self._blocks for block in blocks if block.node == node)

    def allocate(self, node: str, owner: str) -> tuple[str, ...]:
        """One address per family. Raises AddressesExhausted, and then nothing was taken (a block may be claimed)."""
        lease = self._leases.get(owner)
        if lease is not None and lease.node == node:
            return lease.addresses
        self.release(owner)
        if node not in self._nodes:
            raise KeyError(node)
        numbers = [self._block_for(family, node, owner) for family in range(len(self._pools))]
        places, addresses = [], []
        for family, number in enumerate(numbers):
            block = self._blocks[family][number]
            offset = block.free.pop(0)
            places.append((family, number, offset))
            addresses.append(str(block.network.network_address + offset))
        self._leases[owner] = _Lease(node, tuple(addresses), tuple(places))
        return tuple(addresses)

    def release(self, owner: str) -> None:
        """Give the addresses of ``owner`` back; the node keeps its blocks."""
        lease = self._leases.pop(owner, None)
        if lease is not None:
            for family, number, offset in lease.places:
                self._blocks[family][number].free.append(offset)

    def copy(self) -> Blocks:
        """An independent copy."""
        twin = Blocks((), strict=self._strict, blocks_per_node=self._blocks_per_node)
        twin._pools = self._pools
        twin._blocks = [[_Block(b.network, b.node, list(b.free)) for b in blocks] for blocks in self._blocks]
        twin._nodes = list(self._nodes)
        twin._leases = dict(self._leases)
        return twin

    def _block_for(self, family: int, node: str, owner: str) -> int:
        """The number of the block that the next address of ``node`` comes from."""
        blocks = self._blocks[family]
        for number, block in enumerate(blocks):
            if block.node == node and block.free:
                return number
        held = sum(block.node == node for block in blocks)
        if held < self._blocks_per_node and self._claim(family, node):
            return len(blocks) - 1
        if not self._strict:
            for number, block in enumerate(blocks):
                if block.free:
                    return number
        pool, prefix = self._pools[family]
        size = 1 << (pool.max_prefixlen - prefix)
        if self._strict:
            reason = f"its {held} blocks of {size} addresses in {pool} are full and it may not borrow (strict affinity)"
        elif held >= self._blocks_per_node:
            reason = (
                f"its {held} blocks of {size} addresses in {pool}, the most that a node may hold, are full, and no"
                " other node has an address to lend"
            )
        else:
            reason = f"all {len(blocks)} blocks of {size} addresses in {pool} are full"
        raise AddressesExhausted(
            f"node {node}: no free address for {owner}: {reason}",
            hint="run fewer pods, or give the topology a larger podCIDRs range",
        )

    def _claim(self, family: int, node: str) -> bool:
        pool, prefix = self._pools[family]
        number = len(self._blocks[family])
        if number >= 1 << (prefix - pool.prefixlen):
            return False
        size = 1 << (pool.max_prefixlen - prefix)
        self._blocks[family].append(_Block(_nth_subnet(pool, prefix, number), node, list(range(size))))
        return True


def _nth_subnet(pool: Network, prefix: int, number: int) -> Network:
    """Subnet ``number`` of ``pool``, computed: a v6 pool has too many to list."""
    offset = number << (pool.max_prefixlen - prefix)
    return parse_cidr(f"{pool.network_address + offset}/{prefix}")


def _check_pool(pool: Network, prefix: int, what: str, host_bits: int) -> None:
    if not pool.prefixlen <= prefix <= pool.max_prefixlen - host_bits:
        reason = invalid(str(pool), f"is too small for {what} of /{prefix}")
        raise TopologyError([Problem("topology", "", "podCIDRs", reason)])
