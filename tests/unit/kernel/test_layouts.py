"""emulator.kernel.layouts: message classes without the rest of pyroute2."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("pyroute2")


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_layouts_do_not_load_all_of_pyroute2() -> None:
    loaded = run("import sys; from emulator.kernel.layouts import rtmsg; print('pyroute2.ndb' in sys.modules)")
    assert loaded.strip() == "False"


@pytest.mark.parametrize(
    "use", ["from pyroute2 import NDB", "import pyroute2; pyroute2.IPRoute", "from pyroute2 import netns"]
)
def test_pyroute2_is_whole_for_whoever_asks_for_more(use: str) -> None:
    run(f"from emulator.kernel.layouts import rtmsg; {use}")


def test_pyroute2_lacks_what_it_lacks() -> None:
    said = run("from emulator.kernel.layouts import rtmsg; import pyroute2; print(hasattr(pyroute2, 'nonsense'))")
    assert said.strip() == "False"
