"""The wrapper before it becomes the command. scripts/check-fresh-install.sh tries the installation itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

INSTALLER = """
install_missing() {
    say "installing${want_test:+ for tests}"
    printf '%s\\n' "$key" >"$stamp"
    [ -z "$want_test" ] || printf '%s\\n' "$key" >"$stamp_test"
    rm -f -- "$incomplete"
}
"""


@dataclass(frozen=True)
class Checkout:
    """A checkout with a made-up environment, whose programs print what they were called with."""

    path: Path

    @property
    def wrapper(self) -> Path:
        return self.path / "cnilab"

    @property
    def venv(self) -> Path:
        return self.path / ".venv"

    def run(self, *arguments: str, wrapper: Path | None = None, cwd: Path | None = None, **env: str) -> list[str]:
        done = subprocess.run(
            [str(wrapper or self.wrapper), *arguments],
            cwd=cwd or self.path,
            env={"PATH": os.environ["PATH"], **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        return [*done.stdout.splitlines(), f"status {done.returncode}"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Installed and up to date."""
    return make_checkout(tmp_path)


@pytest.fixture
def public_checkout() -> Iterator[Checkout]:
    """The same where other users can read it; pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield make_checkout(Path(folder))


def make_checkout(folder: Path) -> Checkout:
    path = folder / "my checkout"
    (path / "scripts").mkdir(parents=True)
    for name in ("cnilab", "setup.cfg", "pyproject.toml"):
        shutil.copy2(ROOT / name, path / name)
    (path / "scripts" / "packages.txt").write_text("# a comment\niproute2 sh always -\ntshark sh test -\n")
    (path / "scripts" / "install.sh").write_text(INSTALLER)
    programs = path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("cnilab", "python"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit 7\n')
        (programs / name).chmod(0o755)
    made = Checkout(path)
    made.run("--version")
    return made


def test_wrapper_becomes_the_command_with_its_arguments_and_exit_status(checkout: Checkout) -> None:
    assert checkout.run("probe", "a b", "c") == ["cnilab probe a b c", "status 7"]


def test_wrapper_finds_its_checkout_from_elsewhere_through_links(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "first").symlink_to(checkout.wrapper)
    (tmp_path / "bin" / "cnilab").symlink_to("first")

    assert checkout.run("ls", wrapper=tmp_path / "bin" / "cnilab", cwd=tmp_path) == ["cnilab ls", "status 7"]


def test_wrapper_is_found_on_path(checkout: Checkout, tmp_path: Path) -> None:
    path = f"{checkout.path}:{os.environ['PATH']}"

    assert checkout.run("ls", wrapper=Path("cnilab"), cwd=tmp_path, PATH=path) == ["cnilab ls", "status 7"]


@pytest.mark.parametrize("file", ["setup.cfg", "pyproject.toml"])
def test_wrapper_installs_once_after_a_change_of_what_is_installed(checkout: Checkout, file: str) -> None:
    with (checkout.path / file).open("a") as text:
        text.write("# changed\n")

    assert checkout.run("ls") == ["cnilab: installing", "cnilab ls", "status 7"]
    assert checkout.run("ls") == ["cnilab ls", "status 7"]


def test_a_change_is_seen_even_if_the_new_file_has_an_older_date(checkout: Checkout) -> None:
    file = checkout.path / "setup.cfg"
    file.write_text(file.read_text() + "# changed\n")
    os.utime(file, (0, 0))

    assert "cnilab: installing" in checkout.run("ls")


def test_wrapper_installs_again_after_an_installation_that_was_cut_short(checkout: Checkout) -> None:
    (checkout.venv / ".cnilab-incomplete").touch()

    assert "cnilab: installing" in checkout.run("ls")


def test_wrapper_installs_again_in_a_checkout_that_was_moved(checkout: Checkout) -> None:
    moved = Checkout(checkout.path.rename(checkout.path.with_name("elsewhere")))

    assert "cnilab: installing" in moved.run("ls")


def test_wrapper_installs_nothing_where_that_is_forbidden(checkout: Checkout) -> None:
    (checkout.venv / ".cnilab-stamp").unlink()

    assert checkout.run("ls", CNILAB_NO_INSTALL="1") == ["cnilab ls", "status 7"]


def test_wrapper_uses_the_environment_that_it_is_given(checkout: Checkout, tmp_path: Path) -> None:
    shutil.copytree(checkout.venv, tmp_path / "other")
    (tmp_path / "other" / "bin" / "cnilab").write_text("#!/bin/sh\necho the other\n")

    assert checkout.run("ls", CNILAB_VENV=str(tmp_path / "other")) == ["the other", "status 0"]


def test_tests_run_in_the_checkout_after_their_own_packages_are_there(checkout: Checkout, tmp_path: Path) -> None:
    first = checkout.run("test", "-k", "a or b", cwd=tmp_path)
    second = checkout.run("test", cwd=tmp_path)

    assert first[0] == "cnilab: installing for tests"
    assert first[1].startswith("python -m pytest")
    assert first[1].endswith("-k a or b")
    workers = len(os.sched_getaffinity(0)) + 1
    assert second[0] == f"python -m pytest -n {workers} --dist loadfile --no-loadscope-reorder"  # the whole suite


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages")
def test_what_the_real_kernel_lane_needs_is_installed_for_it_alone(checkout: Checkout) -> None:
    (checkout.path / "scripts" / "packages.txt").write_text("none no-such-program real-kernel -\n")
    checkout.run("test")

    assert checkout.run("test", "-k", "a")[0].startswith("python -m pytest")
    assert checkout.run("ls") == ["cnilab ls", "status 7"]
    assert checkout.run("test", "--real-kernel")[0] == "cnilab: installing for tests"


def test_the_real_kernel_lane_is_run_in_its_machine_with_the_other_arguments(checkout: Checkout) -> None:
    (checkout.path / "tools").mkdir()
    program = checkout.path / "tools" / "vm-run"
    program.write_text('#!/bin/sh\necho "$CNILAB_LANE" "$@"\nexit 9\n')
    program.chmod(0o755)
    checkout.run("test")

    assert checkout.run("test", "-k", "a b", "--real-kernel", "-x") == [
        f"real-kernel -- {checkout.venv}/bin/python -m pytest -p no:cacheprovider -m real_kernel -k a b -x",
        "status 9",
    ]


def test_settings_that_would_lead_pip_or_python_elsewhere_are_dropped(checkout: Checkout) -> None:
    (checkout.venv / "bin" / "cnilab").write_text('#!/bin/sh\necho "${PYTHONPATH-none}${PIP_TARGET-none}"\n')

    assert checkout.run("ls", PYTHONPATH="/elsewhere", PIP_TARGET="/elsewhere")[0] == "nonenone"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs packages")
def test_root_installs_when_a_program_is_missing(checkout: Checkout) -> None:
    (checkout.path / "scripts" / "packages.txt").write_text("none no-such-program always -\n")

    assert "cnilab: installing" in checkout.run("ls")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_user_is_not_asked_for_packages_at_each_start(public_checkout: Checkout) -> None:
    (public_checkout.path / "scripts" / "packages.txt").write_text("none no-such-program always -\n")
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", str(public_checkout.wrapper), "ls"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert (done.stdout, done.stderr) == ("cnilab ls\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users' checkouts")
def test_root_writes_no_bytecode_into_the_checkout_of_a_user(checkout: Checkout) -> None:
    (checkout.venv / "bin" / "cnilab").write_text('#!/bin/sh\necho "${PYTHONDONTWRITEBYTECODE-none}"\n')
    own = checkout.run("ls")[0]

    os.chown(checkout.path, 65534, 65534)

    assert (own, checkout.run("ls")[0]) == ("none", "1")
