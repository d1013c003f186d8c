"""Calico's IPAM as a whole: pools by their manifests, blocks for nodes, and addresses for the nodes' tunnel devices.

The tunnel addresses are taken before any pod's (calico-node's ``allocate-tunnel-addrs``), so that a node's tunnel has
the first address of its first block. A node has one for each kind of tunnel that a pool of its own uses.

Sources: projectcalico/calico libcalico-go/lib/ipam/ipam.go, node/pkg/allocateip/allocateip.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emulator.cluster.ipam import BlockPool, Blocks
from emulator.cluster.model import Node
from emulator.cni.calico_settings import Encapsulation, Pool, Settings, read_settings
from emulator.plan.model import Family

# device, its family, its kind, the handle that holds its address
TUNNELS: tuple[tuple[str, Family, str, str], ...] = (
    ("tunl0", 4, "ipip", "ipip-tunnel-addr"),
    ("vxlan.calico", 4, "vxlan", "vxlan-tunnel-addr"),
    ("vxlan-v6.calico", 6, "vxlan", "vxlan-v6-tunnel-addr"),
)


class CalicoIpam:
    """An ``emulator.cluster.ipam.ConfiguredIpam``."""

    def __init__(self, pod_cidrs: tuple[str, ...], default: Encapsulation) -> None:
        self._pod_cidrs = pod_cidrs
        self._default = default
        self._blocks = Blocks(())
        self._settings: Settings | None = None
        self._tunnels: dict[str, dict[str, str]] = {}

    def configure(self, objects: Sequence[dict[str, Any]], nodes: Sequence[Node]) -> None:
        """Use the pools that ``objects`` describe. Raises ManifestError."""
        settings = read_settings(objects, nodes, self._pod_cidrs, self._default)
        if settings == self._settings:
            return
        self._settings = settings
        self._blocks.use_pools(_block_pool(pool) for pool in settings.pools)
        for node in nodes:
            if node.name in self._tunnels:
                self._address_tunnels(node.name)

    def add_node(self, node: str) -> None:
        """Make ``node`` known: its first block, and addresses for its tunnels."""
        self._blocks.add_node(node)
        if node not in self._tunnels:
            self._address_tunnels(node)

    def tunnels(self, node: str) -> dict[str, str]:
        """The addresses of the node's tunnel devices, by device."""
        return self._tunnels[node]

    def ranges(self, node: str) -> tuple[str, ...]:
        """The blocks with affinity to ``node``."""
        return self._blocks.ranges(node)

    def allocate(self, node: str, owner: str) -> tuple[str, ...]:
        """One address per family."""
        return self._blocks.allocate(node, owner)

    def release(self, owner: str) -> None:
        """Give the addresses of ``owner`` back."""
        self._blocks.release(owner)

    def copy(self) -> CalicoIpam:
        """An independent copy."""
        twin = CalicoIpam(self._pod_cidrs, self._default)
        twin._blocks = self._blocks.copy()
        twin._settings = self._settings
        twin._tunnels = dict(self._tunnels)
        return twin

    def _address_tunnels(self, node: str) -> None:
        assert self._settings is not None, "configure comes first"
        given: dict[str, str] = {}
        for device, family, kind, handle in TUNNELS:
            owner = f"{handle}-{node}"
            pools = [
                pool.cidr
                for pool in self._settings.of_family(family)
                if pool.encapsulation.kind == kind and _serves(pool, node)
            ]
            if pools:
                (given[device],) = self._blocks.allocate(node, owner, pools=pools)
            else:
                self._blocks.release(owner)
        self._tunnels[node] = given


def _serves(pool: Pool, node: str) -> bool:
    return not pool.disabled and (pool.nodes is None or node in pool.nodes)


def _block_pool(pool: Pool) -> BlockPool:
    return BlockPool(pool.cidr, pool.block, frozenset() if pool.disabled else pool.nodes)
