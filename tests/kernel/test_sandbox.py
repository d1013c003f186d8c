"""What a sandbox keeps apart, and when it ends. Run as root and, by test_sandbox_rootless.py, as an ordinary user."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.errors import SandboxError
from emulator.kernel.enter import run
from emulator.kernel.host_state import changes, snapshot
from emulator.kernel.sandbox import Sandbox

SLEEP = ["sleep", "300"]
SOON = 5.0  # seconds; what is asserted to happen takes some milliseconds
ROOT = str(Path(__file__).parents[2])

CALLER = """
import sys, time
from emulator.kernel.sandbox import Sandbox
sandbox = Sandbox.start(["sleep", "300"], name="lab", detached=sys.argv[1] == "detached")
if "release" in sys.argv:
    sandbox.release()
print(sandbox.pid, flush=True)
if "leave" not in sys.argv:
    time.sleep(300)
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox.start(SLEEP, name="lab", detached=False) as started:
        yield started


def shell(sandbox: Sandbox, script: str) -> str:
    done = run(sandbox.pid, ["sh", "-ec", script], timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def calling(*words: str, code: str = CALLER) -> tuple[subprocess.Popen[str], int]:
    """A process that started a sandbox, and a pidfd of its PID 1."""
    caller = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert caller.stdout is not None
    with caller.stdout:
        return caller, os.pidfd_open(int(caller.stdout.readline()))


def ends(pidfd: int, within: float = SOON) -> bool:
    try:
        return bool(select.select([pidfd], [], [], within)[0])
    finally:
        os.close(pidfd)


# What is private


def test_only_the_sandbox_s_own_loopback_is_in_it_and_it_is_up(sandbox: Sandbox) -> None:
    assert shell(sandbox, "ls /sys/class/net").split() == ["lo"]
    assert "127.0.0.1/8" in shell(sandbox, "ip -br addr show lo")


def test_its_processes_see_themselves_only(sandbox: Sandbox) -> None:
    first, second, *_ = shell(sandbox, "ps -eo pid=,comm=").splitlines()
    assert first.split()[0] == "1"
    assert second.split() == ["2", "sleep"]


def test_it_has_its_name_and_an_empty_run_and_is_root_in_itself(sandbox: Sandbox) -> None:
    assert shell(sandbox, "hostname; id -u").split() == ["lab", "0"]
    assert shell(sandbox, "ls /run").split() == ["cnilab", "lock", "netns"]


def test_names_made_by_iproute2_work(sandbox: Sandbox) -> None:
    shell(sandbox, "ip netns add n1; ip -n n1 link set lo up")
    assert shell(sandbox, "ip netns exec n1 ip -br addr show lo").split()[2] == "127.0.0.1/8"
    assert shell(sandbox, "ls /run/netns").split() == ["n1"]


def test_its_net_sysctls_can_be_written_per_namespace_and_no_others(sandbox: Sandbox) -> None:
    shell(sandbox, "echo 1 > /proc/sys/net/ipv4/ip_forward")
    shell(sandbox, "ip netns add n1; ip netns exec n1 sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward'")
    assert shell(sandbox, "cat /proc/sys/net/ipv4/ip_forward").strip() == "1"
    # root is told by the mount, others by the file already
    for path in ("/proc/sys/kernel/panic", "/proc/sys/vm/swappiness", "/proc/sys/user/max_net_namespaces"):
        refused = run(sandbox.pid, ["sh", "-c", f"echo 1 > {path}"])
        assert refused.returncode != 0, path
        assert "Read-only file system" in refused.stderr


def test_the_given_directory_is_seen_inside(tmp_path: Path) -> None:
    with Sandbox.start(SLEEP, name="lab", detached=False, directory=tmp_path) as sandbox:
        shell(sandbox, "echo hello > /run/cnilab/host/greeting")
    assert (tmp_path / "greeting").read_text() == "hello\n"


def test_two_sandboxes_with_equal_addresses_do_not_see_each_other() -> None:
    serve = (
        "import socket; s = socket.create_server(('10.9.9.9', 80)); "
        "u = socket.socket(socket.AF_UNIX); u.bind('\\0cnilab-test'); print('up', flush=True); s.accept()"
    )
    ask = "import socket; socket.create_connection(('10.9.9.9', 80), 2)"
    start = f'{sys.executable} -c "{serve}" > /run/served 2>&1 & until grep -q up /run/served; do sleep 0.02; done'
    with (
        Sandbox.start(SLEEP, name="one", detached=False) as one,
        Sandbox.start(SLEEP, name="two", detached=False) as two,
    ):
        for sandbox in (one, two):
            shell(sandbox, "ip addr add 10.9.9.9/32 dev lo")
        shell(one, start)
        refused = run(two.pid, [sys.executable, "-c", ask])
        reached = run(one.pid, [sys.executable, "-c", ask])
    assert "ConnectionRefusedError" in refused.stderr
    assert reached.returncode == 0, reached.stderr


def test_the_host_s_state_is_equal_before_and_after_a_sandbox_that_changes_all_it_can() -> None:
    marker = f"CNILAB_TEST={uuid.uuid4()}"
    name, _, value = marker.partition("=")
    before = snapshot(marker)
    with Sandbox.start(SLEEP, name="lab", detached=False, env={**os.environ, name: value}) as sandbox:
        shell(
            sandbox,
            "ip link add v type veth peer w; ip addr add 10.1.1.1/24 dev v; ip link set v up;"
            "ip rule add pref 9 table 9;"
            "ip route add 10.7.0.0/16 dev lo; sysctl -qw net.ipv4.ip_forward=1; iptables -A INPUT -s 10.5.5.5 -j DROP;"
            "ip netns add n1; mount -t tmpfs none /mnt; hostname other; iptables-save | grep -q 10.5.5.5",
        )
        during = changes(before, snapshot(marker))
    assert [line for line in during if not line.startswith(("netns", "processes"))] == []
    assert any(line.startswith("netns: new") for line in during)
    assert changes(before, snapshot(marker)) == []


# When it ends


@pytest.mark.parametrize("detached", [False, True])
def test_the_main_process_exit_status_is_the_sandbox_s(detached: bool) -> None:
    assert Sandbox.start(["sh", "-c", "exit 7"], name="lab", detached=detached).wait(SOON) == 7


def test_the_exit_status_is_known_even_if_pid_one_was_gone_before_its_pid_could_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = os.pidfd_open

    def late(pid: int) -> int:
        if pid == os.getpid():
            return opened(pid)
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", late)
    sandbox = Sandbox.start(["sh", "-c", "exit 7"], name="lab", detached=False)
    assert not sandbox.alive
    sandbox.kill()
    assert sandbox.wait(SOON) == 7


@pytest.mark.parametrize("detached", [False, True])
def test_a_killed_main_process_ends_the_sandbox_and_is_told(detached: bool) -> None:
    sandbox = Sandbox.start(["sh", "-c", "sleep 300 & kill -KILL $$"], name="lab", detached=detached)
    assert sandbox.wait(SOON) == 128 + signal.SIGKILL
    assert not sandbox.alive


def test_orphans_are_reaped(sandbox: Sandbox) -> None:
    shell(sandbox, "(sleep 0.05 &) ; sleep 0.2")
    assert " Z" not in shell(sandbox, "ps -eo comm=,stat=")


def test_pid_one_outlives_the_signals_that_end_others(sandbox: Sandbox) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(sandbox.pid, number)
    time.sleep(0.1)
    assert sandbox.alive


def test_kill_returns_at_once_and_takes_a_process_that_ignores_signals() -> None:
    stubborn = "trap '' TERM INT HUP; sleep 300 & sleep 300 & while :; do sleep 1; done"
    sandbox = Sandbox.start(["sh", "-c", stubborn], name="lab", detached=True)
    start = time.monotonic()
    sandbox.kill()
    assert time.monotonic() - start < 0.15  # what `down` may take
    assert sandbox.wait(SOON) == 128 + signal.SIGKILL


def test_a_killed_pid_one_takes_everything_along(sandbox: Sandbox) -> None:
    inner = os.pidfd_open(int(child_of(sandbox.pid)))
    os.kill(sandbox.pid, signal.SIGKILL)
    assert ends(inner)
    assert sandbox.wait(SOON) == 128 + signal.SIGKILL


@pytest.mark.parametrize("mode", ["attached", "detached"])
def test_a_caller_s_sigkill_ends_the_sandbox_promptly(mode: str) -> None:
    caller, pid_one = calling(mode)
    caller.kill()
    start = time.monotonic()
    assert ends(pid_one)
    assert time.monotonic() - start < 1.0  # 10 ms on a quiet machine
    caller.wait()


def test_a_caller_s_normal_end_ends_an_attached_sandbox() -> None:
    caller, pid_one = calling("attached", "leave")
    assert caller.wait(SOON) == 0
    assert ends(pid_one)


@pytest.mark.parametrize("mode", ["attached", "detached"])
def test_a_caller_s_sigkill_ends_the_sandbox_even_if_a_fork_holds_the_lifeline_open(mode: str) -> None:
    code = CALLER.replace("print(", "import os\nif os.fork() == 0:\n    time.sleep(3); os._exit(0)\nprint(")
    caller, pid_one = calling(mode, code=code)
    caller.kill()
    caller.wait()
    assert ends(pid_one, within=1.5)


def test_a_stopped_pid_one_dies_with_its_caller_too() -> None:
    caller, pid_one = calling("attached")
    signal.pidfd_send_signal(pid_one, signal.SIGSTOP)
    caller.kill()
    caller.wait()
    assert ends(pid_one)


def test_a_released_sandbox_lives_on_without_its_caller() -> None:
    for _ in range(5):  # the caller leaves at once: its end must not overtake its word
        caller, pid_one = calling("detached", "release", "leave")
        assert caller.wait(SOON) == 0
        assert not select.select([pid_one], [], [], 0.1)[0]
        signal.pidfd_send_signal(pid_one, signal.SIGKILL)
        assert ends(pid_one)


def test_the_end_of_the_thread_that_started_it_does_not_end_a_sandbox() -> None:
    import threading

    started: list[Sandbox] = []
    thread = threading.Thread(target=lambda: started.append(Sandbox.start(SLEEP, name="lab", detached=False)))
    thread.start()
    thread.join()
    with started[0] as sandbox:
        time.sleep(0.1)
        assert sandbox.alive


def test_a_program_that_does_not_exist_is_told_by_name_and_leaves_nothing() -> None:
    with pytest.raises(SandboxError, match=r"nonesuch.*No such file"):
        Sandbox.start(["/nonesuch"], name="lab", detached=False)


def test_a_directory_that_does_not_exist_is_told_by_name() -> None:
    with pytest.raises(SandboxError, match="/nonesuch"):
        Sandbox.start(SLEEP, name="lab", detached=False, directory="/nonesuch")


def test_no_descriptor_of_the_caller_reaches_the_main_process_but_those_passed() -> None:
    with open("/dev/null") as secret:
        os.set_inheritable(secret.fileno(), True)
        reader, writer = os.pipe()
        sandbox = Sandbox.start(
            ["sh", "-c", f"ls /proc/self/fd >&{writer}"], name="lab", detached=False, pass_fds=(writer,)
        )
        os.close(writer)
        with os.fdopen(reader) as file:
            seen = file.read().split()
        sandbox.wait(SOON)
    assert set(map(int, seen)) - {3} <= {0, 1, 2, writer}  # 3: ls reads the directory itself


def child_of(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
