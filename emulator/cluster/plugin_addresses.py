"""Pod addresses that real CNI plugins hand out: known only once the plugins have run."""

from __future__ import annotations

from collections.abc import Sequence

from emulator.cluster.ipam import HostLocal


class PluginAddresses:
    """Ranges as the controller manager gives them to nodes (``spec.podCIDR``); addresses as plugins reported them.

    A pod that has not been attached yet has none.
    """

    def __init__(self, cidrs: Sequence[str]) -> None:
        self._ranges = HostLocal(cidrs)
        self._known: dict[str, tuple[str, tuple[str, ...]]] = {}  # by owner: node and addresses

    def add_node(self, node: str) -> None:
        """Give ``node`` its range. Raises AddressesExhausted when the CIDR has no range left."""
        self._ranges.add_node(node)

    def ranges(self, node: str) -> tuple[str, ...]:
        """The CIDRs of ``node``, one per family. Whether plugins keep to them is up to their configuration."""
        return self._ranges.ranges(node)

    def allocate(self, node: str, owner: str) -> tuple[str, ...]:
        """What plugins on ``node`` have reported for ``owner``; nothing yet for a new one."""
        held, addresses = self._known.get(owner, ("", ()))
        return addresses if held == node else ()

    def learn(self, node: str, owner: str, addresses: tuple[str, ...]) -> None:
        """Take over what plugins on ``node`` have given to ``owner``."""
        self._known[owner] = (node, addresses)

    def release(self, owner: str) -> None:
        """Forget ``owner``."""
        self._known.pop(owner, None)

    def copy(self) -> PluginAddresses:
        """An independent copy."""
        twin = PluginAddresses(())
        twin._ranges = self._ranges.copy()
        twin._known = dict(self._known)
        return twin
