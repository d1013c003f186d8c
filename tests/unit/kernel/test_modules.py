"""Which modules a kernel has, read from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from emulator.kernel.modules import Modules

LOADED = "nf_tables 311296 2 nft_compat, Live 0x0\nbr_netfilter 32768 0 - Live 0x0\n"
BUILTIN = "kernel/net/sched/sch_htb.ko\n"
AVAILABLE = "kernel/net/sched/sch_netem.ko.xz:\nkernel/net/ipv4/ip-gre.ko: kernel/net/ipv4/gre.ko\n"


@pytest.fixture
def debian(tmp_path: Path) -> Modules:
    (tmp_path / "modules").write_text(LOADED)
    (tmp_path / "modules.builtin").write_text(BUILTIN)
    (tmp_path / "modules.dep").write_text(AVAILABLE)
    return Modules.read(tmp_path / "modules", tmp_path)


@pytest.mark.parametrize(
    ("module", "presence"),
    [
        ("br_netfilter", "there"),
        ("sch_htb", "there"),
        ("sch_netem", "loadable"),
        ("ip_gre", "loadable"),
        ("netkit", "absent"),
    ],
)
def test_a_distribution_kernel_says_for_each_module_whether_using_it_would_load_it(
    debian: Modules, module: str, presence: str
) -> None:
    assert debian.presence(module) == presence


def test_a_kernel_without_module_support_can_load_nothing(tmp_path: Path) -> None:
    assert Modules.read(tmp_path / "none", tmp_path / "none").presence("sch_netem") == "there"


def test_a_kernel_that_could_load_modules_but_has_none_on_disk_can_load_nothing(tmp_path: Path) -> None:
    (tmp_path / "modules").write_text("")

    assert Modules.read(tmp_path / "modules", tmp_path / "none").presence("sch_netem") == "there"


def test_in_a_container_without_the_hosts_modules_a_module_that_is_not_loaded_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "modules").write_text(LOADED)

    modules = Modules.read(tmp_path / "modules", tmp_path / "none")

    assert modules.presence("br_netfilter") == "there"
    assert modules.presence("sch_netem") == "unknown"
