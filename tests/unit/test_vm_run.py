"""tools/vm-run without a machine: a shell script stands for QEMU. `./cnilab test --real-kernel` uses the real one."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "vm-run"


@pytest.fixture
def vm() -> ModuleType:
    spec = importlib.util.spec_from_loader("vm_run", SourceFileLoader("vm_run", str(PROGRAM)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(PROGRAM)
    spec.loader.exec_module(module)
    return module


Boot = Callable[..., "int | None"]


@pytest.fixture
def boot(vm: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Boot:
    """Boot a "machine" that is a shell script in the shared folder."""

    @contextmanager
    def share(_program: str, folder: Path, path: Path, _cache: str, *, read_only: bool) -> Iterator[Path]:
        if not read_only:
            shared.append(folder)
        yield path

    shared: list[Path] = []
    monkeypatch.setattr(vm, "share", share)

    def run(script: str, timeout: float = 20.0) -> int | None:
        machine = ["sh", "-c", 'cd "$0" && ' + script]
        monkeypatch.setattr(vm, "qemu", lambda *_: [*machine, str(shared[-1])])
        args = argparse.Namespace(command=["true"], memory=512)
        status: int | None = vm.boot(tmp_path, "virtiofsd", "tcg", args, time.monotonic() + timeout)
        return status

    return run


def test_output_and_exit_status_come_back_through_the_share(boot: Boot, capfd: pytest.CaptureFixture[str]) -> None:
    assert boot("touch booted; echo half; sleep 0.3; echo half >output; echo 3 >status") == 3
    assert capfd.readouterr().out == "half\n"


def test_machine_that_dies_without_a_status_has_failed(boot: Boot, capfd: pytest.CaptureFixture[str]) -> None:
    assert boot("touch booted; echo last words >&2") == 125
    said = capfd.readouterr().err
    assert "no exit status" in said
    assert "    | last words" in said


def test_machine_that_never_came_up_is_told_from_one_that_failed(boot: Boot) -> None:
    assert boot("exit 0") is None


def test_time_that_is_up_ends_the_machine_and_is_a_failure(boot: Boot, capfd: pytest.CaptureFixture[str]) -> None:
    assert boot("touch booted; exec sleep 60", timeout=0.5) == 125
    assert "the time is up" in capfd.readouterr().err


def test_boot_that_failed_is_tried_once_more_and_nothing_else_is(vm: ModuleType) -> None:
    assert vm.attempts("tcg") == ("tcg", "tcg")
    assert vm.attempts("kvm") == ("kvm", "kvm")


@pytest.mark.parametrize(("module", "real"), [("kvm_intel", True), ("kvm_amd", True), ("kvm_pvm", False)])
def test_kvm_is_believed_only_with_a_back_end_of_the_processor(
    vm: ModuleType, tmp_path: Path, module: str, real: bool
) -> None:
    (tmp_path / "kvm").touch()
    (tmp_path / "modules" / module).mkdir(parents=True)

    assert vm.kvm_is_real(str(tmp_path / "kvm"), str(tmp_path / "modules")) is real
    assert not vm.kvm_is_real(str(tmp_path / "none"), str(tmp_path / "modules"))


def test_command_keeps_its_words_its_folder_and_only_our_environment(
    vm: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "my folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CNILAB_LANE", "a'b")
    monkeypatch.setenv("SECRET", "token")

    text = vm.command_text(["printf", "%s|", "a b", "$HOME", "it's"])

    done = subprocess.run(["sh", "-c", text + "\n"], capture_output=True, text=True, check=True, timeout=10)
    assert done.stdout == "a b|$HOME|it's|"
    assert f"cd '{folder}'" in text
    assert "token" not in text
    assert """export CNILAB_LANE='a'"'"'b'\n""" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "which COMMAND?"), (["--memory", "100", "--", "true"], "at least 512 MB"), (["--accel", "x"], "invalid")],
)
def test_wrong_usage_is_refused_before_anything_is_fetched(arguments: list[str], said: str) -> None:
    done = subprocess.run([str(PROGRAM), *arguments], capture_output=True, text=True, check=False, timeout=30)

    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_without_root_one_line_says_what_to_do() -> None:
    # From standard input: another user may not reach the checkout.
    command = ["setpriv", "--reuid", "65534", "--clear-groups", "/usr/bin/python3", "-", "--", "true"]

    done = subprocess.run(
        command, input=PROGRAM.read_text(), capture_output=True, text=True, check=False, timeout=30, cwd="/"
    )

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "vm-run: only root can share / with a virtual machine: use sudo\n"
