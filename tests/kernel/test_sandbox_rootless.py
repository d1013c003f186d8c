"""The same promises for an ordinary user, and plain words where the machine does not let one make a sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOBODY = 65534  # uid and gid that own nothing

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="this run is an ordinary user's already")

START = """
from emulator.kernel.sandbox import Sandbox
from emulator.errors import CnilabError
try:
    with Sandbox.start(["true"], name="lab", detached=False) as sandbox:
        print("fine", sandbox.wait())
except CnilabError as error:
    print(type(error).__name__, error.exit_code)
    print(error.message)
    print(error.hint)
"""

# A user namespace in which we are uid 1000, with a limit of our own; exec then drops the capabilities that come with
# it.
OUTER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from emulator.kernel import syscalls as sc
uid, gid = os.geteuid(), os.getegid()
sc.unshare(sc.CLONE_NEWUSER)
for file, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
    with open(f"/proc/self/{file}", "w") as map_:
        map_.write(text)
with open("/proc/sys/user/max_" + sys.argv[2] + "_namespaces", "w") as limit:
    limit.write("0")
os.execv(sys.executable, [sys.executable, "-c", sys.argv[3]])
"""


def as_nobody(argv: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as an ordinary user, from the copy of the code in ``home``."""
    packages = [path for path in sys.path if path.endswith("-packages")]
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/nonexistent",
        "TMPDIR": str(home / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(home / "checkout"), *packages]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
    return subprocess.run(
        [*drop, "--", *argv],
        cwd=home / "checkout",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory with a copy of the code that any user can read: pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory(prefix="cnilab-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        for part in ("emulator", "tests/kernel"):
            shutil.copytree(ROOT / part, path / "checkout" / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", path / "checkout")
        (path / "tmp").mkdir()
        for directory in ("tmp", "checkout"):  # pytest and hypothesis keep their notes there
            os.chown(path / directory, NOBODY, NOBODY)
        yield path


@needs_root
@pytest.mark.parametrize(
    "file", ["test_sandbox.py", "test_sandbox_enter.py", "test_sandbox_registry.py", "test_sandbox_calls.py"]
)
def test_all_of_it_holds_for_an_ordinary_user(home: Path, file: str) -> None:
    done = as_nobody(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", f"tests/kernel/{file}"], home
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("only root can" in line for line in skipped), done.stdout


@needs_root
def test_an_ordinary_user_s_sandbox_is_another_user_namespace(home: Path) -> None:
    code = (
        "import os; from emulator.kernel.sandbox import Sandbox; "
        "s = Sandbox.start(['cat', '/proc/self/uid_map'], name='lab', detached=False); s.wait(); print(os.geteuid())"
    )
    done = as_nobody([sys.executable, "-c", code], home)
    assert sorted(done.stdout.split()) == sorted(["0", str(NOBODY), "1", str(NOBODY)]), done.stderr


@pytest.mark.parametrize("kind", ["user", "net"])
def test_a_limit_of_no_namespaces_is_named_with_the_command_that_lifts_it(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUTER, str(ROOT), kind, f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{START}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    kind_, message, hint = done.stdout.splitlines() or [done.stderr, "", ""]
    assert kind_ == "Unsupported 2"
    assert "No space left on device" in message
    assert f"sudo sysctl user.max_{kind}_namespaces=" in hint
    assert "or use sudo" in hint


@needs_root
def test_a_masked_proc_as_in_a_container_is_named(home: Path) -> None:
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            'mount -t tmpfs none /proc/irq && exec "$@"',
            "sh",
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "--",
            sys.executable,
            "-c",
            START,
        ],
        cwd=home / "checkout",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(home / "checkout")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    kind, message, hint = done.stdout.splitlines() or [done.stderr, "", ""]
    assert kind == "Unsupported 2"
    assert "mount proc on /proc" in message
    assert "systempaths=unconfined" in hint
