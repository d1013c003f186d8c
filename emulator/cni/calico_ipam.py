"""Calico's IPAM as a whole: pools by their manifests, blocks for nodes, and addresses for the nodes' tunnel devices.

The tunnel addresses are taken before any pod's (calico-node's ``allocate-tunnel-addrs``), so that a node's tunnel has
the first address of its first block. A node has one for each kind of tunnel that a pool of its own uses.

A pod may ask for an address by annotation. It gets it wherever it runs: one of another node's block is borrowed.

Sources: projectcalico/calico libcalico-go/lib/ipam/ipam.go, node/pkg/allocateip/allocateip.go,
cni-plugin/pkg/k8s/k8s.go;
docs.tigera.io "Use a specific IP address with a pod".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from emulator.cluster.ipam import BlockPool, Blocks
from emulator.cluster.model import Node
from emulator.cluster.validation import forbidden, invalid, parse_address
from emulator.cni.calico_reading import read_settings
from emulator.cni.calico_settings import Encapsulation, Pool, Settings
from emulator.errors import ManifestError, Problem
from emulator.plan.model import Family

# device, its family, its kind, the handle that holds its address
TUNNELS: tuple[tuple[str, Family, str, str], ...] = (
    ("tunl0", 4, "ipip", "ipip-tunnel-addr"),
    ("vxlan.calico", 4, "vxlan", "vxlan-tunnel-addr"),
    ("vxlan-v6.calico", 6, "vxlan", "vxlan-v6-tunnel-addr"),
)


IP_ADDRESSES = "cni.projectcalico.org/ipAddrs"  # cni-plugin/pkg/k8s/k8s.go: annotations of a pod
OUTSIDE_IPAM = "cni.projectcalico.org/ipAddrsNoIpam"


class CalicoIpam:
    """An ``emulator.cluster.ipam.ConfiguredIpam``."""

    def __init__(self, pod_cidrs: tuple[str, ...], default: Encapsulation) -> None:
        self._pod_cidrs = pod_cidrs
        self._default = default
        self._blocks = Blocks(())
        self._settings: Settings | None = None
        self._tunnels: dict[str, dict[str, str]] = {}
        self._requests: dict[str, tuple[str, ...]] = {}

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

    def request(self, owner: str, annotations: Mapping[str, str]) -> None:
        """The addresses that a pod asks for by ``cni.projectcalico.org/ipAddrs``. Raises ManifestError."""
        self._requests.pop(owner, None)
        if OUTSIDE_IPAM in annotations:
            _refuse(owner, OUTSIDE_IPAM, forbidden("not emulated: addresses outside of Calico's IPAM"))
        if IP_ADDRESSES in annotations:
            self._requests[owner] = _wanted_addresses(owner, annotations[IP_ADDRESSES])

    def allocate(self, node: str, owner: str) -> tuple[str, ...]:
        """One address per family, or those that the owner asked for. Raises ManifestError if it cannot have them."""
        wanted = self._requests.get(owner)
        if wanted is None:
            return self._blocks.allocate(node, owner)
        try:
            return self._blocks.assign(node, owner, wanted)
        except ValueError as error:
            _refuse(owner, IP_ADDRESSES, invalid(", ".join(wanted), str(error)))

    def release(self, owner: str) -> None:
        """Give the addresses of ``owner`` back."""
        self._requests.pop(owner, None)
        self._blocks.release(owner)

    def copy(self) -> CalicoIpam:
        """An independent copy."""
        twin = CalicoIpam(self._pod_cidrs, self._default)
        twin._blocks = self._blocks.copy()
        twin._settings = self._settings
        twin._tunnels = dict(self._tunnels)
        twin._requests = dict(self._requests)
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


def _wanted_addresses(owner: str, text: str) -> tuple[str, ...]:
    """The addresses in the annotation: a JSON list of at most one of each family."""
    try:
        listed = json.loads(text)
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not listed or not all(isinstance(item, str) for item in listed):
        _refuse(owner, IP_ADDRESSES, invalid(text, 'must be a JSON list of addresses: ["10.244.0.9"]'))
    addresses = [address for item in listed if (address := parse_address(item)) is not None]
    if len(addresses) < len(listed):
        _refuse(owner, IP_ADDRESSES, invalid(text, "must hold valid IP addresses"))
    if len({address.version for address in addresses}) < len(addresses):
        _refuse(owner, IP_ADDRESSES, invalid(text, "holds more than one address of a family"))
    return tuple(map(str, addresses))


def _refuse(owner: str, annotation: str, reason: str) -> NoReturn:
    raise ManifestError([Problem("", f"Pod {owner}", f"metadata.annotations[{annotation}]", reason)])


def _serves(pool: Pool, node: str) -> bool:
    return not pool.disabled and (pool.nodes is None or node in pool.nodes)


def _block_pool(pool: Pool) -> BlockPool:
    return BlockPool(pool.cidr, pool.block, frozenset() if pool.disabled else pool.nodes)
