"""emulator.kernel.neighbour_table: what the machine says of its table of neighbours."""

from __future__ import annotations

from pathlib import Path

from emulator.kernel.neighbour_table import hint, refusals

HEAD = "entries  allocs   destroys forced_gc_runs unresolved_discards table_fulls"


def machine(proc: Path, **tables: str) -> Path:
    """A /proc with these statistics."""
    (proc / "net/stat").mkdir(parents=True)
    for name, text in tables.items():
        (proc / "net/stat" / name).write_text(text)
    return proc


def test_refusals_of_all_processors_and_families_count(tmp_path: Path) -> None:
    arp = f"{HEAD}\n0000003a 00005e6b 000055bf 0000bc1e 00000000 0000000a\n0000003a 00000000 0 0 0 00000001\n"
    proc = machine(tmp_path, arp_cache=arp, ndisc_cache=f"{HEAD}\n0 0 0 0 0 00000010\n")
    assert refusals(proc) == 10 + 1 + 16


def test_kernel_that_counts_no_refusals_has_none(tmp_path: Path) -> None:
    assert refusals(machine(tmp_path, arp_cache="entries allocs\n1 2\n")) == 0


def test_nothing_is_seen_from_another_network_namespace(tmp_path: Path) -> None:
    assert refusals(machine(tmp_path)) == 0


def test_hint_names_the_size_and_the_settings_of_both_families(tmp_path: Path) -> None:
    setting = tmp_path / "sys/net/ipv4/neigh/default/gc_thresh3"
    setting.parent.mkdir(parents=True)
    setting.write_text("1024\n")
    said = hint(tmp_path)
    assert "(1024 entries)" in said
    assert "net.ipv4.neigh.default.gc_thresh3=" in said
    assert "net.ipv6.neigh.default.gc_thresh3=" in said
