"""Functions and tests that run in a sandbox of their own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from emulator.errors import SandboxError, UserError
from emulator.kernel.registry import check_name
from emulator.kernel.sandbox import SandboxTraceback, call_forked, call_in_sandbox

CONFTEST = Path(__file__).with_name("conftest.py")


def test_a_call_runs_in_private_namespaces_and_returns_its_result() -> None:
    assert call_in_sandbox(os.getpid) < 10
    assert call_in_sandbox(socket.if_nameindex) == [(1, "lo")]
    assert call_in_sandbox(os.path.join, "a", "b") == "a/b"


def test_a_call_s_exception_comes_back_with_its_traceback_inside() -> None:
    with pytest.raises(UserError, match="is not a name") as caught:
        call_in_sandbox(check_name, "A B")
    assert isinstance(caught.value.__cause__, SandboxTraceback)
    assert "in check_name" in str(caught.value.__cause__)
    assert "lower-case letters" in caught.value.hint


def test_a_call_works_from_a_process_with_threads() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert call_in_sandbox(os.getuid) == 0
    finally:
        stop.set()
        thread.join()


def test_a_call_that_takes_too_long_or_dies_is_told() -> None:
    import time

    with pytest.raises(SandboxError, match=r"took longer than 0\.3 s"):
        call_in_sandbox(time.sleep, 60, timeout=0.3)
    with pytest.raises(SandboxError, match="exit status 3"):
        call_in_sandbox(os._exit, 3)


def test_a_forked_call_may_be_a_closure() -> None:
    inside = []

    def call() -> tuple[int, str]:
        inside.append(1)
        return os.getpid(), socket.gethostname()

    pid, name = call_forked(call)
    assert pid < 10
    assert name == "call"
    assert inside == []


MARKED = """
import os, subprocess, pytest

@pytest.fixture
def namespace():
    subprocess.run(["ip", "netns", "add", "q"], check=True)
    print("set up in", os.getpid())
    yield "/run/netns/q"
    print("torn down")

@pytest.mark.sandbox
def test_passes(namespace, tmp_path):
    assert os.path.exists(namespace) and os.getpid() < 10

@pytest.mark.sandbox
def test_fails(namespace):
    left = {"a": 1}
    assert left == {"a": 2}

@pytest.mark.sandbox
def test_skips():
    pytest.skip("for a reason")

@pytest.mark.sandbox
@pytest.mark.xfail(strict=True)
def test_expected_to_fail():
    assert False

@pytest.mark.sandbox(timeout=0.5)
def test_hangs():
    import time; time.sleep(60)

@pytest.mark.sandbox
def test_dies():
    os._exit(3)

def test_outside():
    assert not os.path.exists("/run/netns/q") and os.getpid() > 10
"""


def test_marked_tests_run_inside_with_their_fixtures_and_report_as_usual(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_marked.py").write_text(MARKED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rsfx", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    said = done.stdout
    assert "3 failed, 2 passed, 1 skipped, 1 xfailed" in said, said + done.stderr
    assert "assert {'a': 1} == {'a': 2}" in said
    assert 'left = {"a": 1}' in said
    assert "Captured stdout setup" in said
    assert "torn down" in said
    assert re.search(r"SKIPPED \[1\] test_marked\.py:\d+: for a reason", said), said
    assert "took longer than 0.5 s" in said
    assert "exit status 3" in said


def _write_to_nobody() -> str:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        os.write(writer, b"x")
    except BrokenPipeError:
        return "told"
    return "unnoticed"


def test_function_that_writes_to_a_closed_pipe_gets_an_error_and_lives() -> None:
    assert call_forked(_write_to_nobody) == "told"
