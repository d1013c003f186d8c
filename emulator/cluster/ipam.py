"""Pod addresses, as each CNI hands them out."""

from __future__ import annotations

from typing import Protocol


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
