"""Probes against the real kernel."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from emulator.kernel import attempts, capabilities, doctor, trial
from emulator.kernel.features import BPF_PROG_TYPE_XDP, KERNEL

pytestmark = pytest.mark.requires("netns")


def host_state() -> tuple[str, str]:
    """The devices of this namespace, and the modules of the kernel."""
    modules = Path("/proc/modules")
    loaded = sorted(line.split()[0] for line in modules.read_text().splitlines()) if modules.exists() else []
    return str(sorted(line.split(":")[0] for line in Path("/proc/net/dev").read_text().splitlines()[2:])), str(loaded)


def test_what_every_lab_needs_is_found() -> None:
    found = capabilities.probe(["netns", "veth", "af_packet"], try_load=True)

    assert [feature.state for feature in found.values()] == ["yes", "yes", "yes"]


@pytest.mark.parametrize(
    "attempt", [attempts.link("cnilab-none"), attempts.qdisc("nil"), attempts.generic_family("NIL")]
)
def test_a_kind_that_no_kernel_has_is_missing(attempt: trial.Trial) -> None:
    assert trial.run({"nonsense": attempt})["nonsense"] != ""


def test_an_unknown_qdisc_is_missing_even_after_one_that_works() -> None:
    reasons = trial.run(
        {"pfifo": attempts.qdisc("pfifo"), "nil": attempts.qdisc("nil"), "bfifo": attempts.qdisc("bfifo")}
    )

    assert {name: reason == "" for name, reason in reasons.items()} == {"pfifo": True, "nil": False, "bfifo": True}


def test_a_trial_leaves_nothing_behind_and_loads_nothing() -> None:
    before = host_state()

    capabilities.probe()

    assert host_state() == before


def test_a_user_without_rights_gets_his_answers_through_a_user_namespace() -> None:
    attempts_of_user = {"veth": attempts.link("veth"), "xdp": attempts.bpf_program(BPF_PROG_TYPE_XDP)}
    if capabilities.probe(["userns"])["userns"].state != "yes":
        pytest.skip("missing userns")

    reasons = trial.run(attempts_of_user, unprivileged=True)

    assert reasons["veth"] == ""
    assert reasons["xdp"].startswith(trial.NOT_PERMITTED)


def test_a_trial_that_dies_is_a_reason_and_no_crash() -> None:
    def die(bench: trial.Bench) -> None:
        os._exit(9)

    reasons = trial.run({"first": attempts.nothing, "fatal": die, "later": attempts.nothing})

    assert reasons == {"first": "", "fatal": "the attempt ended early", "later": "the attempt ended early"}


def test_a_trial_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TRIALS_TIMEOUT", 0.2)
    begun = time.monotonic()

    reasons = trial.run({"stuck": lambda bench: time.sleep(30)})

    assert reasons["stuck"] == "the attempt ended early"
    assert time.monotonic() - begun < 5


def test_no_child_of_a_probe_outlives_it() -> None:
    trial.run({feature.name: feature.attempt for feature in KERNEL})

    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.requires("iptables", "nft")
def test_programs_are_found_although_a_users_path_lacks_the_system_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    found = capabilities.probe(["tc", "nft"], try_load=True)

    assert [feature.state for feature in found.values()] == ["yes", "yes"]


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.kernel.programs.find", lambda executable: None)

    bird = capabilities.probe(["bird"])["bird"]

    assert (bird.state, bird.detail) == ("no", "not installed")
    assert not Path("/etc/debian_version").exists() or "bird2" in bird.hint


@pytest.mark.requires("ip", "bird")
def test_a_runs_record_can_name_the_version_of_each_program() -> None:
    versions = capabilities.program_versions()

    assert versions["ip"].count(".") >= 1
    assert versions["bird"].startswith(("2.", "3."))


def test_the_doctors_report_is_json_and_can_be_drawn_narrow() -> None:
    report = doctor.doctor_report()
    console = Console(width=60, record=True, file=io.StringIO())

    console.print(doctor.render(report))

    assert json.loads(json.dumps(report)) == report
    assert "CNI styles" in console.export_text()


def test_a_trial_ends_with_the_process_that_asked() -> None:
    """SIGKILL to the caller in mid-trial: the child must go too."""
    reader, writer = os.pipe()
    code = (
        "import os, time\n"
        "from emulator.kernel import trial\n"
        "def stuck(bench):\n"
        f"    os.write({writer}, str(os.getpid()).encode())\n"
        "    time.sleep(60)\n"
        "trial.run({'stuck': stuck})\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], pass_fds=(writer,))
    os.close(writer)
    child = int(os.read(reader, 100))

    caller.kill()
    caller.wait()

    ready, _, _ = select.select([reader], [], [], 5)  # the end of the pipe: nobody holds it any more
    assert ready
    assert os.read(reader, 1) == b"", f"process {child} still holds its end of the pipe"
    os.close(reader)
