"""The command as such: exit statuses, errors, help, and how fast it is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from emulator import cli
from emulator.cli import COMMANDS, main
from emulator.errors import CheckFailed, DaemonError, ManifestError, Problem, SandboxError, UserError
from emulator.kernel import registry

ROOT = Path(__file__).parents[3]
CNILAB = [sys.executable, "-c", "from emulator.cli import main; main()"]
WITHOUT_JSON = {"completion", "test"}  # one speaks to shells, the other is pytest


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(registry.BASE_VARIABLE, str(tmp_path / "labs"))
    return tmp_path / "labs"


def run(*argv: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["cnilab", *argv])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def raising(error: BaseException) -> click.Command:
    def callback() -> None:
        raise error

    return click.Command("ls", callback=callback)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (click.exceptions.Exit(1), 1),
        (click.exceptions.Exit(0), 0),
        (click.exceptions.Exit(7), 7),
        (CheckFailed("no"), 1),
        (UserError("no"), 2),
        (click.UsageError("no"), 2),
        (SandboxError("no"), 3),
        (KeyError("no"), 3),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_exit_status(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    monkeypatch.setattr(cli._Commands, "get_command", lambda *_args: raising(error))
    assert run("ls", monkeypatch=monkeypatch) == code


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("there is none", hint="make one"), "error: there is none\nhint: make one\n"),
        (UserError("name \x1b[31mred\r"), "error: name \\x1b[31mred\\r\n"),
        (
            ManifestError([Problem("a.yaml", "Pod x", "spec", "no"), Problem("b.yaml", "", "", "bad")]),
            "error: 2 problems, nothing was changed:\n  a.yaml: Pod x: spec: no\n  b.yaml: bad\n",
        ),
        (DaemonError("bird died", log=("one", "two")), "error: bird died\n  | one\n  | two\n"),
    ],
)
def test_error_is_one_clear_line_and_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    monkeypatch.setattr(cli._Commands, "get_command", lambda *_args: raising(error))
    run("ls", monkeypatch=monkeypatch)
    assert capsys.readouterr() == ("", said)


def test_only_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli._Commands, "get_command", lambda *_args: raising(UserError("no")))
    monkeypatch.setattr(sys, "argv", ["cnilab", "--debug", "ls"])
    with pytest.raises(UserError):
        main()


def test_command_that_does_not_exist_is_refused_with_the_near_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("stauts", monkeypatch=monkeypatch) == 2
    assert "did you mean status?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help_and_a_json_twin(name: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    assert command.name == name
    assert command.help
    for leaf in command.commands.values() if isinstance(command, click.Group) else [command]:
        options = {option for parameter in leaf.params for option in parameter.opts}
        assert ("--json" in options) != (name in WITHOUT_JSON)


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help", monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_help_imports_nothing_but_click_and_itself() -> None:
    script = (
        "import sys; sys.argv = ['cnilab', '--help']\n"
        "from emulator.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('\\nMODULES', *sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    modules = set(said.rpartition("MODULES")[2].split())
    ours = {name for name in modules if name.startswith("emulator")}
    assert ours == {"emulator", "emulator.cli"}
    assert not modules & {"msgspec", "yaml", "rich", "subprocess", "asyncio", "importlib.metadata", "json"}


def test_reader_that_goes_away_is_no_error() -> None:
    command = f"{shlex.join(CNILAB)} plan fifty-nodes | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[1:] == ["0"]
    # A machine that takes longer than a second shows its progress.
    assert re.sub(r"planning \(\d+\.\d s\)\n", "", done.stderr) == ""


def test_list_of_no_labs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", monkeypatch=monkeypatch) == 0
    assert run("ls", "--json", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert out == "no lab is running; start one: cnilab up\n[]\n"


def test_command_without_a_lab_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("status", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "error: no lab is running\nhint: start one: `cnilab up`\n"


def test_plan_is_text_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "single-node", "--json", monkeypatch=monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["style"] == "flannel:vxlan"
    assert run("plan", "single-node", "--cni", "calico", monkeypatch=monkeypatch) == 0
    assert "proxy_arp" in capsys.readouterr().out


def completions(words: str, **env: str) -> list[str]:
    done = subprocess.run(
        CNILAB, capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "_CNILAB_COMPLETE": "bash_complete", "COMP_WORDS": words,
             "COMP_CWORD": str(len(words.split(" ")) - 1), **env},
    )  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("cnilab sta", ["status"]),
        ("cnilab up three", ["three-nodes"]),
        ("cnilab up --cni fl", ["flannel"]),
        ("cnilab run x --cni flannel,cal", ["flannel,calico"]),
        ("cnilab exec n", []),
        ("cnilab completion z", ["zsh"]),
    ],
)
def test_completion(words: str, wanted: list[str]) -> None:
    assert completions(words) == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell, monkeypatch=monkeypatch) == 0
    script = capsys.readouterr().out
    assert "_CNILAB_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
