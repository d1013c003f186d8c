"""The list of labs: it tells the truth, and nobody can slip anything into it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from emulator.errors import AlreadyExists, NotFound, SandboxError, UserError
from emulator.kernel import registry
from emulator.kernel.enter import run
from emulator.kernel.sandbox import Sandbox

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(registry.BASE_VARIABLE, str(tmp_path / "labs"))
    return tmp_path / "labs"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox.start(["sleep", "300"], name="lab", detached=True) as started:
        yield started


def register(name: str, sandbox: Sandbox) -> None:
    registry.reserve(name)
    registry.publish(name, pid=sandbox.pid, topology="three-nodes", style="flannel")


def reserving(name: str) -> subprocess.Popen[str]:
    """A process that has reserved the name and waits."""
    code = (
        "import time; from emulator.kernel.registry import reserve; "
        f"reserve({name!r}); print('done', flush=True); time.sleep(300)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "done\n"
    return process


def test_a_published_lab_is_listed_and_found_by_name_and_as_the_only_one(sandbox: Sandbox) -> None:
    register("a", sandbox)
    (record,) = registry.labs()
    assert (record.name, record.pid, record.topology, record.style) == ("a", sandbox.pid, "three-nodes", "flannel")
    assert record.state == "running"
    assert abs(record.created - time.time()) < 60
    assert registry.find("a") == registry.find() == record


def test_a_name_is_taken_until_its_lab_is_gone(sandbox: Sandbox) -> None:
    register("a", sandbox)
    with pytest.raises(AlreadyExists, match="a lab named a is running already") as caught:
        registry.reserve("a")
    assert "cnilab down" in caught.value.hint
    sandbox.kill(wait=True)
    assert registry.reserve("a").is_dir()


def test_a_dead_lab_is_not_listed_and_its_files_are_removed(sandbox: Sandbox, base: Path) -> None:
    register("a", sandbox)
    (base / "a" / "api.sock").touch()
    os.kill(sandbox.pid, signal.SIGKILL)
    sandbox.wait(5)
    assert registry.labs() == []
    assert list(base.iterdir()) == []


def test_a_lab_that_is_starting_is_listed_as_such_and_gone_with_its_starter(base: Path) -> None:
    starter = reserving("a")
    assert [(record.name, record.state) for record in registry.labs()] == [("a", "starting")]
    with pytest.raises(NotFound, match="still starting"):
        registry.find("a")
    with pytest.raises(UserError, match="still starting"):
        registry.kill("a")
    starter.kill()
    starter.wait()
    assert registry.labs() == []
    assert list(base.iterdir()) == []


def test_another_process_with_the_same_pid_does_not_keep_a_lab_alive(sandbox: Sandbox, base: Path) -> None:
    register("a", sandbox)
    file = base / "a" / registry.RECORD
    record = registry.find("a")
    file.write_text(file.read_text().replace(f'"started":{record.started}', f'"started":{record.started - 1}'))
    registry.kill("a")
    assert sandbox.alive
    assert registry.labs() == []


def test_a_pid_that_has_passed_to_another_process_since_it_was_read_is_not_killed(sandbox: Sandbox) -> None:
    register("a", sandbox)
    record = registry.find("a")
    registry._kill(msgspec.structs.replace(record, started=record.started - 1), wait=False)
    time.sleep(0.05)
    assert sandbox.alive


def test_the_list_waits_while_another_process_changes_it(base: Path) -> None:
    base.mkdir(mode=0o700)
    fd = os.open(base, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    code = "from emulator.kernel.registry import labs; print(labs())"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    ) as other:
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
        os.close(fd)
        assert other.communicate(timeout=10)[0] == "[]\n"


def test_a_lab_s_own_processes_neither_list_nor_remove_it(base: Path, tmp_path: Path) -> None:
    with Sandbox.start(["sleep", "300"], name="lab", detached=True) as sandbox:
        register("a", sandbox)
        code = "from emulator.kernel.registry import labs; print(labs())"
        done = run(sandbox.pid, [sys.executable, "-c", code], env={"PYTHONPATH": os.pathsep.join([ROOT, *sys.path])})
        assert done.stdout == "[]\n", done.stderr
        assert [record.name for record in registry.labs()] == ["a"]


def test_kill_ends_the_lab_at_once_and_removes_its_entry(sandbox: Sandbox, base: Path) -> None:
    register("a", sandbox)
    start = time.monotonic()
    registry.kill("a")
    assert time.monotonic() - start < 0.15
    assert sandbox.wait(5) == 128 + signal.SIGKILL
    assert list(base.iterdir()) == []


def test_killing_a_lab_that_is_gone_is_fine() -> None:
    registry.kill("a")
    registry.remove("a")


def test_several_labs_must_be_told_apart_and_are_named(sandbox: Sandbox) -> None:
    register("b", sandbox)
    register("a", sandbox)
    assert [record.name for record in registry.labs()] == ["a", "b"]
    with pytest.raises(UserError, match="2 labs are running") as caught:
        registry.find()
    assert "a, b" in caught.value.hint
    with pytest.raises(NotFound, match="no lab named c") as missing:
        registry.find("c")
    assert "a, b" in missing.value.hint


def test_no_lab_at_all_is_said_with_what_to_do() -> None:
    with pytest.raises(NotFound, match="no lab is running") as caught:
        registry.find()
    assert "cnilab up" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["../../x", "a;reboot", "", ".", "..", "A", "a_b", "-a", "a-", "a/b", "a\nb", "x" * 64]
)
def test_only_dns_labels_are_names(name: str, base: Path) -> None:
    for call in (registry.reserve, registry.find, registry.remove, registry.kill):
        with pytest.raises(UserError):
            call(name)
    assert not base.exists() or list(base.iterdir()) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": 3}'])
def test_a_damaged_entry_is_removed(base: Path, damage: str) -> None:
    (base / "a").mkdir(parents=True)
    base.chmod(0o700)
    (base / "a" / registry.RECORD).write_text(damage)
    assert registry.labs() == []
    assert not (base / "a").exists()


def test_a_base_directory_that_others_may_write_to_is_refused(base: Path) -> None:
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(SandboxError, match="not safe"):
        registry.reserve("a")
    with pytest.raises(SandboxError, match="not safe"):
        registry.labs()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_a_base_directory_of_another_user_is_refused(base: Path) -> None:
    base.mkdir(mode=0o700)
    os.chown(base, 65534, 65534)
    with pytest.raises(SandboxError, match="belongs to uid 65534"):
        registry.reserve("a")


def test_a_base_directory_that_is_a_link_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SandboxError, match="cannot use"):
        registry.reserve("a")


def test_one_of_many_simultaneous_reservations_of_a_name_wins() -> None:
    code = (
        "import sys, time; from emulator.kernel.registry import reserve\n"
        "try: reserve('a'); print('won', flush=True)\n"
        "except Exception as error: print(type(error).__name__, flush=True)\n"
        "sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(5)
    ]
    said = []
    for racer in racers:
        assert racer.stdout is not None
        said.append(racer.stdout.readline().strip())
    for racer in racers:
        racer.communicate()
    assert sorted(said) == ["AlreadyExists"] * 4 + ["won"]
