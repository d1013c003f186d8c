"""Commands in a running lab: where they run, what they return, and whose terminal and signals they have."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator.errors import NotFound
from emulator.kernel.enter import enter, run
from emulator.kernel.sandbox import Sandbox

ROOT = str(Path(__file__).parents[2])

# PID 1's child is the lab; n1 is a machine as Mininet makes it: a shell in its own net and mount namespaces.
LAB = """
ip netns add default_web-0
ip -n default_web-0 link add eth0 type veth peer name peer
unshare -n -m sh -c 'ip link add n1-eth0 type veth peer name peer; exec sleep 301' &
exec sleep 300
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Sandbox]:
    with Sandbox.start(["sh", "-c", LAB], name="lab", detached=False) as sandbox:
        wait_for(lambda: "n1-eth0" in machine_links(sandbox))
        yield sandbox


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited for 10 s in vain"
        time.sleep(0.02)


def shell_of_machine(lab: Sandbox) -> int:
    return int(run(lab.pid, ["pgrep", "-xf", "sleep 301"]).stdout or 0)


def machine_links(lab: Sandbox) -> str:
    pid = shell_of_machine(lab)
    return run(lab.pid, ["ip", "-br", "link"], machine=pid).stdout if pid else ""


def test_a_machine_is_entered_by_its_shell_s_pid_in_the_lab(lab: Sandbox) -> None:
    links = run(lab.pid, ["ls", "/proc/sys/net/ipv4/conf"], machine=shell_of_machine(lab)).stdout.split()
    assert "n1-eth0" in links
    assert run(lab.pid, ["cat", "/proc/1/comm"], machine=shell_of_machine(lab)).returncode == 0


def test_a_pod_is_entered_by_its_namespace_s_path_and_sees_its_own_devices_and_files(lab: Sandbox) -> None:
    files = {"/etc/hosts": "10.244.1.2 web-0\n", "/etc/resolv.conf": "nameserver 10.96.0.10\n"}
    script = "ls /sys/class/net; hostname; cat /etc/hosts /etc/resolv.conf; pwd"
    done = run(
        lab.pid, ["sh", "-c", script], netns="/run/netns/default_web-0", hostname="web-0", files=files, env={"A": "b"}
    )
    expected = ["eth0", "lo", "peer", "web-0", "10.244.1.2", "web-0", "nameserver", "10.96.0.10", "/"]
    assert done.stdout.split() == expected, done.stderr


def test_what_a_pod_s_command_sees_changes_nothing_for_others(lab: Sandbox) -> None:
    before = run(lab.pid, ["sh", "-c", "hostname; cat /etc/hosts; cat /proc/mounts"]).stdout
    run(lab.pid, ["true"], netns="/run/netns/default_web-0", hostname="web-0", files={"/etc/hosts": "x\n"})
    assert run(lab.pid, ["sh", "-c", "hostname; cat /etc/hosts; cat /proc/mounts"]).stdout == before


def test_the_environment_is_ours_with_additions(lab: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    assert run(lab.pid, ["sh", "-c", "echo $OURS $THEIRS"], env={"THEIRS": "2"}).stdout == "1 2\n"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 9"], 9),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_status_passes_through(lab: Sandbox, argv: list[str], status: int) -> None:
    assert run(lab.pid, argv).returncode == status
    assert enter(lab.pid, argv) == status


@pytest.mark.parametrize("place", [{"machine": 99999}, {"netns": "/run/netns/nobody"}])
def test_a_place_that_is_not_there_is_told(lab: Sandbox, place: dict[str, object]) -> None:
    with pytest.raises(NotFound, match="is not in the lab"):
        run(lab.pid, ["true"], **place)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="is not in the lab"):
        enter(lab.pid, ["true"], **place)  # type: ignore[arg-type]


def test_a_lab_that_has_ended_is_told() -> None:
    with Sandbox.start(["sleep", "300"], name="lab", detached=False) as sandbox:
        pid = sandbox.pid
    with pytest.raises(NotFound, match="the lab has ended"):
        run(pid, ["true"])


def test_a_command_that_takes_too_long_is_killed_inside_too(lab: Sandbox) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(lab.pid, ["sleep", "302"], timeout=0.3)
    wait_for(lambda: run(lab.pid, ["pgrep", "-xf", "sleep 302"]).returncode == 1)


def test_a_signal_to_the_caller_reaches_the_command(lab: Sandbox) -> None:
    script = "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.02; done"
    caller = subprocess.Popen(calling(lab, "sh", "-c", script), stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "ready\n"
    caller.terminate()
    assert caller.communicate(timeout=10)[0] == "asked\nstatus 5\n"


def test_a_caller_s_sigkill_ends_the_command(lab: Sandbox) -> None:
    caller = subprocess.Popen(calling(lab, "sleep", "303"))
    wait_for(lambda: run(lab.pid, ["pgrep", "-xf", "sleep 303"]).returncode == 0)
    caller.kill()
    caller.wait()
    wait_for(lambda: run(lab.pid, ["pgrep", "-xf", "sleep 303"]).returncode == 1)


# Terminals


def calling(lab: Sandbox, *argv: str) -> list[str]:
    """A command line that enters the lab and then prints the status."""
    code = (
        f"import sys; sys.path.insert(0, {ROOT!r}); from emulator.kernel.enter import enter; "
        "print('status', enter(int(sys.argv[1]), sys.argv[2:]), flush=True)"
    )
    return [sys.executable, "-c", code, str(lab.pid), *argv]


class Terminal:
    """A program on a pseudo-terminal of its own, as a person's shell would start it."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, {**os.environ, "PS1": "$ ", "TERM": "dumb"})
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, timeout: float = 10.0) -> str:
        """Read until the pattern is there; what came up to its end."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(pattern, self.seen)):
            ready = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"{pattern!r} did not come, but: {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode()
            except OSError:  # EIO: the other end is closed
                pytest.fail(f"the terminal closed before {pattern!r}: {self.seen!r}")
        read, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return read

    def close(self) -> None:
        os.close(self.fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_an_interactive_shell_has_the_terminal_and_job_control(lab: Sandbox, terminals: list[Terminal]) -> None:
    terminals.append(terminal := Terminal(calling(lab, "bash", "--norc", "-i")))
    assert "no job control" not in terminal.expect(r"\$ ")
    terminal.type("tty; echo $((6 * 7)); hostname; jobs\n")
    assert "/dev/" in terminal.expect(r"42\r\nlab\r\n")
    terminal.type("sleep 304\n")
    time.sleep(0.3)
    terminal.type("\x03")  # ends the sleep, not the shell
    terminal.expect(r"\^C\r\n.*\$ ")
    terminal.type("exit 3\n")
    terminal.expect(r"status 3\r\n")


def test_ctrl_c_reaches_the_command_and_not_its_caller(lab: Sandbox, terminals: list[Terminal]) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.02; done"
    terminals.append(terminal := Terminal(calling(lab, "sh", "-c", script)))
    terminal.expect("ready\r\n")
    terminal.type("\x03")
    terminal.expect(r"caught\r\nstatus 5\r\n")


def test_ctrl_z_stops_the_command_and_fg_resumes_it(lab: Sandbox, terminals: list[Terminal]) -> None:
    terminals.append(terminal := Terminal(["bash", "--norc", "-i"]))
    terminal.expect(r"\$ ")
    code = calling(lab, "sh", "-c", "echo ready; read line; echo got-$line; exit 4")
    terminal.type(shlex.join(code) + "\n")
    terminal.expect(r"\nready\r\n")
    terminal.type("\x1a")
    terminal.expect(r"Stopped.*\r\n.*\$ ")
    terminal.type("echo mine-$((1 + 1))\n")
    terminal.expect(r"mine-2\r\n")
    terminal.type("fg\n")
    time.sleep(0.3)
    terminal.type("word\n")
    terminal.expect(r"got-word\r\nstatus 4\r\n")


def test_the_terminal_s_size_is_seen(lab: Sandbox, terminals: list[Terminal]) -> None:
    terminals.append(terminal := Terminal(["bash", "--norc"]))
    terminal.type("stty rows 33 cols 99\n")
    terminal.type(shlex.join(calling(lab, "stty", "size")) + "\n")
    terminal.expect(r"\n33 99\r\nstatus 0")
