"""The kernel's table of neighbours (ARP and NDP), which all network namespaces of the machine share.

It holds ``gc_thresh3`` entries (1024 by default) besides the permanent ones, over all namespaces together. When it is
full, new neighbours are not resolved until others go stale: packets vanish. Machines of large segments have room of
their own (``emulator.plan.neighbours``), pods have not. The limit belongs to the machine, and labs change nothing
there; what they can do is to say so. Only the machine's own network namespace shows these files.

Source: net/core/neighbour.c, ``neigh_alloc`` ("neighbor table overflow!").
"""

from __future__ import annotations

from pathlib import Path

WANTED = 32768  # entries: room for a mesh of 180 nodes
_TABLES = (("arp_cache", "ipv4"), ("ndisc_cache", "ipv6"))
_PROC = Path("/proc")


def refusals(proc: Path = _PROC) -> int:
    """How often the machine's table had no room, since it started; 0 where that cannot be seen."""
    total = 0
    for name, _ in _TABLES:
        try:
            head, *per_cpu = (proc / "net/stat" / name).read_text().splitlines()
        except (OSError, ValueError):
            continue
        column = head.split().index("table_fulls") if "table_fulls" in head.split() else -1
        if column >= 0:
            total += sum(int(line.split()[column], 16) for line in per_cpu)
    return total


def hint(proc: Path = _PROC) -> str:
    """What to do about a table that is too small."""
    settings = [f"net.{family}.neigh.default.gc_thresh3={WANTED}" for _, family in _TABLES]
    try:
        size = f"{int((proc / 'sys/net/ipv4/neigh/default/gc_thresh3').read_text())} entries"
    except (OSError, ValueError):
        size = "few entries"
    return (
        f"the machine's table of neighbours, which all labs share, is full ({size}); "
        f"make it larger: sudo sysctl -w {' '.join(settings)}"
    )
