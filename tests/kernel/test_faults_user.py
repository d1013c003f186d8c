"""Labs of people who are not root: the same packets, in user namespaces; and what is said where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
ROOT = str(Path(__file__).parents[2])
CNILAB = [sys.executable, "-c", f"import sys; sys.path.insert(0, {ROOT!r}); from emulator.cli import main; main()"]
STYLES = ["flannel", pytest.param("calico", marks=pytest.mark.requires("bird"))]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.requires("userns", "netns", "veth", "vxlan", "ip", "mnexec"),
]


@pytest.fixture
def home() -> Iterator[Path]:
    """Beside pytest's own folders: those are closed to others, anew with each pytest that begins."""
    with tempfile.TemporaryDirectory(prefix="cnilab-nobody-") as name:
        path = Path(name)
        for folder in (path, path / "runtime"):
            folder.mkdir(exist_ok=True)
            os.chown(folder, NOBODY, NOBODY)
            folder.chmod(0o700)
        yield path


def as_nobody(home: Path, *argv: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("CNILAB_", "XDG_", "SUDO_"))} | {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "runtime"),
        "USER": "nobody",
    }
    return subprocess.run(
        [*prefix, *CNILAB, *argv], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, env=env,
        cwd=home, user=NOBODY, group=NOBODY, extra_groups=[],
    )  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_user_builds_a_lab_traces_a_packet_and_takes_it_down(home: Path, style: str) -> None:
    up = as_nobody(home, "up", "--cni", style)
    assert up.returncode == 0, up.stderr
    try:
        traced = as_nobody(home, "trace", "n1-p1", "n2-p1:80", "--json")
        assert traced.returncode == 0, traced.stderr
        assert '"pod/default/n2-p1"' in traced.stdout
        hostname = as_nobody(home, "exec", "n1-p1", "--", "hostname")
        assert (hostname.stdout, hostname.returncode) == ("n1-p1\n", 0)
        verified = as_nobody(home, "status", "--verify")
        assert verified.returncode == 0, verified.stdout
    finally:
        down = as_nobody(home, "down", "--wait")
    assert down.returncode == 0, down.stderr
    assert list((home / "runtime" / "cnilab").iterdir()) == []


def test_user_runs_the_demo(home: Path) -> None:
    done = as_nobody(home, "demo", "--cni", "flannel", "--out", str(home / "out"))
    assert done.returncode == 0, done.stderr
    assert (home / "out" / "report.html").is_file()


def test_where_user_namespaces_are_restricted_one_line_says_why_and_what_to_do(home: Path) -> None:
    """A user namespace in which no further one may be made stands for such a machine."""
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all -- "$@"'
    base = home / "runtime" / "cnilab"  # named, as the user looks like root in there
    prefix = ("env", f"CNILAB_RUNTIME_DIR={base}", "unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh")
    done = as_nobody(home, "up", prefix=prefix)
    assert done.returncode == 2, done.stderr
    error, hint = done.stderr.strip().splitlines()
    assert error.startswith("error: ")
    assert "namespace" in error
    assert hint.startswith("hint: ")
    assert list(base.iterdir()) == []
