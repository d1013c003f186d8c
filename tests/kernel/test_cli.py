"""Every command against a running lab, as people and as programs use it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator.kernel import registry

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec")

ROOT = Path(__file__).parents[2]
CNILAB = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); from emulator.cli import main; main()"]
WEB = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}]}]},
}


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("labs")
    patch.setenv(registry.BASE_VARIABLE, str(path))
    yield path
    for record in registry.labs():
        registry.kill(record.name, wait=True)
    patch.undo()


def cnilab(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CNILAB, *map(str, arguments)], capture_output=True, text=True, timeout=60, input=stdin)


def ok(*arguments: str | Path, stdin: str = "") -> str:
    done = cnilab(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_json(*arguments: str | Path, stdin: str = "") -> Any:
    return json.loads(ok(*arguments, "--json", stdin=stdin))


@pytest.fixture(scope="module")
def lab(base: Path) -> Iterator[None]:
    said = ok("up")
    assert said.startswith("lab flannel is up: Flannel · vxlan, 3 nodes, 9 pods")
    yield
    assert ok("down", "flannel") == "lab flannel is down\n"


@pytest.fixture
def web(lab: None) -> Iterator[None]:
    assert ok("apply", "-f", "-", stdin=json.dumps(WEB)) == "pod/web created\n"
    yield
    assert ok("delete", "pod/web") == "pod/web deleted\n"


def test_ls_and_status(lab: None) -> None:
    (record,) = as_json("ls")
    assert (record["name"], record["style"], record["state"]) == ("flannel", "flannel", "running")
    assert ok("ls").splitlines()[1].split()[:2] == ["flannel", "running"]
    status = as_json("status", "--verify")
    assert (status["pods"], status["differences"]) == (9, [])
    assert "the kernel holds exactly the plan" in ok("status", "--verify")


def test_lab_that_stays_is_meant_although_a_private_one_runs(lab: None) -> None:
    from emulator import Lab

    with Lab("single-node", name="private"):
        assert [record["name"] for record in as_json("ls")] == ["flannel", "private"]
        assert as_json("status")["name"] == "flannel"
        assert as_json("status", "--lab", "private")["name"] == "private"


def test_status_tells_what_differs_from_the_plan_and_fails(lab: None) -> None:
    ok("exec", "n1", "--", "ip", "route", "add", "blackhole", "10.99.0.0/16")
    done = cnilab("status", "--verify")
    ok("exec", "n1", "--", "ip", "route", "del", "blackhole", "10.99.0.0/16")
    assert done.returncode == 1
    assert "10.99.0.0/16" in done.stdout


def test_apply_says_what_changed(web: None) -> None:
    assert ok("apply", "-f", "-", stdin=json.dumps(WEB)) == "pod/web unchanged\n"
    (change,) = as_json("apply", "-f", "-", stdin=json.dumps({**WEB, "metadata": {"name": "web"}}))
    assert (change["name"], change["action"]) == ("web", "configured")


def test_get_in_every_form(web: None) -> None:
    wide = ok("get", "pods", "-o", "wide", "-l", "app=web").splitlines()
    assert wide[0].split("  ")[0] == "NAME"
    assert "SERVED BY" in wide[0]
    assert wide[1].split()[:3] == ["web", "1/1", "Running"]
    assert "cnilab" in wide[1].split()
    assert ok("get", "pod", "web", "-o", "name") == "pod/web\n"
    assert as_json("get", "pod", "web")["metadata"]["name"] == "web"
    assert len(as_json("get", "pods", "-A")["items"]) == 10
    assert "kind: Pod" in ok("get", "pod", "web", "-o", "yaml")
    assert [line.split()[1] for line in ok("get", "nodes").splitlines()] == ["STATUS", "Ready", "Ready", "Ready"]
    assert "client" in ok("get", "machines")
    assert cnilab("get", "services").stderr == "No resources found in default namespace.\n"


def test_crashed_node_is_not_ready_in_the_list(lab: None) -> None:
    from emulator import Lab

    joined = Lab.connect("flannel")
    joined.fault("node-crash", "n3")
    try:
        assert ok("get", "nodes").splitlines()[3].split()[:2] == ["n3", "NotReady"]
        assert "fault: node n3 is down" in ok("status")
    finally:
        joined.fault("node-return", "n3")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("n1-p1", "n2-p1:80"), 0, "delivered by n2-p1"),
        (("n1-p1", "n2-p1:81"), 1, "refused"),
        (("n1-p1", "n2-p1", "--count", "3"), 0, "3 of 3 answered"),
        (("n1-p1", "10.244.2.200", "--timeout", "0.2"), 1, "10.244.2.200"),
    ],
)
def test_probe_answers_by_its_exit_status(lab: None, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = cnilab("probe", *arguments)
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
    done = cnilab("probe", *arguments, "--json")
    assert done.returncode == code
    assert json.loads(done.stdout)["result"]["sent"] >= 1


def test_trace_prints_every_hop_and_how_it_ended(lab: None) -> None:
    said = ok("trace", "n1-p1", "n2-p1", "--reply")
    for device in ("eth0 out", "flannel.1 out", "s1-n1 in", "flannel.1 in", "vxlan +50", "the answer:"):
        assert device in said
    hops = as_json("trace", "n1-p1", "n2-p1")["request"]["hops"]
    assert (hops[0]["ns"], hops[-1]["ns"]) == ("pod/default/n1-p1", "pod/default/n2-p1")
    lost = cnilab("trace", "n1-p1", "10.9.9.9")
    assert lost.returncode == 1


@pytest.mark.requires("tshark")
def test_capture_to_a_file(lab: None, tmp_path: Path) -> None:
    file = tmp_path / "c.pcapng"
    running = subprocess.Popen(
        [*CNILAB, "capture", "n1", "-w", str(file), "--seconds", "1.5", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    assert running.stderr.readline() == "capturing for 1.5 s\n"
    ok("probe", "n1-p1", "n2-p1")
    out, _ = running.communicate(timeout=20)
    assert json.loads(out)["captured"] > 0
    listed = subprocess.run(["tshark", "-r", file, "-Y", "icmp"], capture_output=True, text=True, check=True).stdout
    assert "Echo (ping) request" in listed


@pytest.mark.requires("tshark")
def test_capture_streams_to_a_reader_until_that_has_enough(lab: None) -> None:
    with subprocess.Popen([*CNILAB, "capture", "n1-p1", "-w", "-"], stdout=subprocess.PIPE) as source:
        reader = subprocess.Popen(
            ["tshark", "-l", "-r", "-", "-Y", "icmp", "-c", "2"], stdin=source.stdout, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert source.stdout is not None
        source.stdout.close()
        deadline = time.monotonic() + 20
        while reader.poll() is None and time.monotonic() < deadline:
            cnilab("probe", "n1-p1", "n2-p1")
        out, _ = reader.communicate(timeout=5)
        assert "Echo (ping) request" in out
        for _ in range(20):  # a pipe is found broken by the next packet, or by the next look at a silent stream
            if source.poll() is not None:
                break
            cnilab("probe", "n1-p1", "n2-p1")
        assert source.wait(10) == 0


def test_capture_ended_by_ctrl_c_is_written(lab: None, tmp_path: Path) -> None:
    file = tmp_path / "c.pcapng"
    # A shell has its background jobs ignore Ctrl-C, and so would this one if the tests are such a job.
    argv = ["env", "--default-signal=INT", *CNILAB, "capture", "-w", str(file)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            assert "Ctrl-C" in running.stderr.readline()
            time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            out, _ = running.communicate(timeout=20)
        finally:
            running.kill()
    assert running.returncode == 0
    assert f"packets in {file}" in out
    assert file.stat().st_size > 0


def test_exec_passes_output_input_and_status_on(lab: None) -> None:
    assert ok("exec", "n1-p1", "--", "cat", stdin="typed\n") == "typed\n"
    assert cnilab("exec", "node/n1", "sh", "-c", "echo oops >&2; exit 5").returncode == 5
    assert cnilab("exec", "n1-p1", "--", "no-such-program").returncode == 127
    answer = as_json_of_failed("exec", "--json", "n1-p1", "--", "sh", "-c", "hostname; exit 3")
    assert answer == {"place": "n1-p1", "code": 3, "stdout": "n1-p1\n", "stderr": ""}


def as_json_of_failed(*arguments: str) -> Any:
    return json.loads(cnilab(*arguments).stdout)


def test_exec_gives_an_interactive_shell_its_terminal(lab: None) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(CNILAB[0], [*CNILAB, "exec", "n1-p1", "--", "sh"])
    seen = b""

    def expect(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 15
        while text not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    seen += os.read(terminal, 4096)
                except OSError:
                    break
        assert text in seen, seen
        seen = seen.partition(text)[2]

    os.write(terminal, b"tty; echo at-$(hostname)\n")
    expect(b"at-n1-p1")
    os.write(terminal, b"sleep 100\n")
    time.sleep(0.3)
    os.write(terminal, b"\x03")  # Ctrl-C reaches the sleep, not us
    os.write(terminal, b"echo still-$((40+2))\n")
    expect(b"still-42")
    os.write(terminal, b"exit 9\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    os.close(terminal)


def test_shell_completes_places_and_labs(lab: None) -> None:
    def complete(words: str) -> list[str]:
        env = {**os.environ, "_CNILAB_COMPLETE": "bash_complete", "COMP_WORDS": words,
               "COMP_CWORD": str(len(words.split(" ")) - 1)}  # fmt: skip
        done = subprocess.run(CNILAB, capture_output=True, text=True, check=True, env=env)
        return [line.partition(",")[2] for line in done.stdout.split()]

    assert complete("cnilab trace n1-p") == ["n1-p1", "n1-p2", "n1-p3"]
    assert complete("cnilab probe n1-p1 cli") == ["client"]
    assert complete("cnilab status --lab fl") == ["flannel"]
    assert complete("cnilab down fl") == ["flannel"]


def test_command_that_this_machine_lacks_is_noted(lab: None) -> None:
    ghost = json.loads(json.dumps(WEB))
    ghost["metadata"]["name"] = "ghost"
    ghost["spec"]["containers"][0]["command"] = ["nginx-of-another-world"]
    done = cnilab("apply", "-f", "-", stdin=json.dumps(ghost))
    assert done.returncode == 0
    assert "note: pod default/ghost" in done.stderr
    assert "'nginx-of-another-world' is not a program of this machine" in done.stderr
    assert "note: pod default/ghost" in ok("status")
    ok("delete", "pod", "ghost")


def test_logs_of_a_pods_command(lab: None) -> None:
    talking = json.loads(json.dumps(WEB))
    talking["metadata"]["name"] = "talking"
    talking["spec"]["containers"][0]["command"] = ["sh", "-c", "echo one; echo two; sleep 100"]
    ok("apply", "-f", "-", stdin=json.dumps(talking))
    deadline = time.monotonic() + 5
    while "two" not in ok("logs", "talking") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ok("logs", "talking") == "one\ntwo\n"
    assert ok("logs", "talking", "--tail", "1") == "two\n"
    assert as_json("logs", "talking") == {"default/talking/c": "one\ntwo\n"}
    ok("delete", "pod", "talking")


def test_interrupted_up_leaves_nothing(base: Path) -> None:
    for after in (0.1, 0.3, 0.6):
        running = subprocess.Popen([*CNILAB, "up", "--lab", "cut"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(after)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
        if running.returncode == 0:  # it was faster
            ok("down", "cut")
        else:
            # -2: before the command itself had begun, Python ends by the signal
            assert (running.returncode in (130, -signal.SIGINT), out) == (True, b""), err
        assert "cut" not in {record.name for record in registry.labs()}
        assert not (base / "cut").exists()


def test_a_lab_that_was_ended_is_unknown_at_once(base: Path) -> None:
    ok("up", "--lab", "brief")
    registry.kill("brief")
    assert cnilab("status", "--lab", "brief").returncode == 2


def test_down_of_several_labs_ends_none_if_one_is_unknown(base: Path) -> None:
    ok("up", "single-node", "--lab", "x1")
    assert cnilab("down", "x1", "nobody").returncode == 2
    assert "x1" in {record.name for record in registry.labs()}
    assert as_json("down", "x1") == {"down": ["x1"]}


@pytest.mark.requires("bird")
def test_death_of_a_daemon_is_told_by_whatever_command_comes_next(base: Path) -> None:
    ok("up", "--cni", "calico", "--lab", "mourning")
    try:
        assert cnilab("probe", "n1-p1", "n1-p2", "--lab", "mourning").stderr == ""
        (bird,) = [item for item in as_json("status", "--lab", "mourning")["daemons"] if item["place"] == "node/n1"]
        ok("exec", "--lab", "mourning", "n1", "--", "kill", "-9", str(bird["pid"]))
        time.sleep(0.1)
        for command in (("probe", "n1-p1", "n1-p2"), ("trace", "n1-p1", "n1-p2"), ("get", "pods"), ("status",)):
            done = cnilab(*command, "--lab", "mourning")
            assert done.returncode == 0
            assert "warning: bird in node/n1 was killed by SIGKILL: " in done.stderr
        status = cnilab("status", "--lab", "mourning").stdout
        assert "node/n1/bird was killed by SIGKILL" in status
        assert "  | " in status.partition("node/n1/bird was killed")[2]
        (bird,) = [item for item in as_json("status", "--lab", "mourning")["daemons"] if item["place"] == "node/n1"]
        assert (bird["state"], bird["code"], len(bird["log"]) > 3) == ("died", -9, True)
    finally:
        ok("down", "mourning")


def test_run_prints_hops_when_asked_and_writes_a_run_directory(base: Path, tmp_path: Path) -> None:
    plain = ok("run", "connectivity/same-node", "--cni", "flannel", "--out", tmp_path / "a")
    detailed = ok("run", "connectivity/same-node", "--cni", "flannel", "--out", tmp_path / "b", "--hops")
    assert "eth0 out" not in plain
    assert "eth0 out" in detailed
    assert {"meta.json", "results.jsonl", "hops.jsonl", "report.html"} <= {
        path.name for path in (tmp_path / "a").iterdir()
    }
    assert as_json("compare", tmp_path / "a")["expectations"]["total"] > 0
    assert "eth0 out" in ok("compare", tmp_path / "a", "--hops")
