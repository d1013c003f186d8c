"""``cnilab plan`` needs neither root nor Linux: it loads nothing that touches the kernel and prints golden plans."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "plans"

# What does not exist, or does nothing useful, away from Linux or without root.
FORBIDDEN = ("pyroute2", "mininet", "scapy", "ctypes", "fcntl", "pty", "termios", "emulator.kernel", "emulator.lab")

PROGRAM = f"""
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == bad or name.startswith(bad + ".") for bad in {FORBIDDEN!r}):
            raise ImportError(f"{{name}} was imported")

for name in [name for name in sys.modules if name.split(".")[0] in {FORBIDDEN!r}]:
    del sys.modules[name]
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {str(ROOT)!r})
sys.argv[0] = "cnilab"
from emulator.cli import main
main()
"""


@pytest.mark.parametrize("style", ["flannel:vxlan", "flannel:host-gw", "calico:bgp"])
@pytest.mark.parametrize("topology", ["three-nodes", "dual-stack", "ipv6"])
def test_plan_prints_the_golden_plan_and_imports_nothing_of_the_kernel(style: str, topology: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "plan", topology, "--cni", style], capture_output=True, text=True, timeout=60
    )
    assert re.sub(r"planning \(\d+\.\d s\)\n", "", done.stderr) == ""  # which a slow machine says
    assert done.returncode == 0
    assert done.stdout == (GOLDEN / style.replace(":", "-") / f"{topology}.txt").read_text(encoding="utf-8")
