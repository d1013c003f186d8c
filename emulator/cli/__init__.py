"""The ``cnilab`` command: a file per verb, each loaded only when it is used.

Exit status: 0 done; 1 a check failed (an expectation, a probe without an answer); 2 the request cannot be honoured as
given; 3 a fault of ours; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from emulator import __version__

COMPLETION = "_CNILAB_COMPLETE"  # what a shell sets to ask for completions

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("emulator.cli.demo", "Show how one packet travels under Flannel and under Calico."),
    "up": ("emulator.cli.up", "Start a lab that stays until `down`."),
    "down": ("emulator.cli.down", "End labs, and everything in them."),
    "ls": ("emulator.cli.ls", "List the running labs."),
    "status": ("emulator.cli.status", "Show how a lab is: daemons, choices made, differences from its plan."),
    "apply": ("emulator.cli.apply", "Apply Kubernetes manifests to a lab."),
    "delete": ("emulator.cli.delete", "Delete objects from a lab."),
    "ready": ("emulator.cli.ready", "Say that pods are ready, or not."),
    "rollout": ("emulator.cli.rollout", "Wait for the rollout of a workload."),
    "get": ("emulator.cli.get", "List objects: pods, nodes, machines, ..."),
    "exec": ("emulator.cli.exec", "Run a command in a pod or on a machine."),
    "logs": ("emulator.cli.logs", "Show what daemons and pod commands have printed."),
    "probe": ("emulator.cli.probe", "Ask whether one place reaches another."),
    "policy": ("emulator.cli.policy", "Show who reaches whom under network policies, and why."),
    "trace": ("emulator.cli.trace", "Send one packet and follow it hop by hop."),
    "capture": ("emulator.cli.capture", "Capture packets at every hop to a pcapng file."),
    "fault": ("emulator.cli.fault", "Break something in a lab, or mend it."),
    "cni": ("emulator.cli.cni", "Run CHECK, STATUS or GC of the plugins of a conflist."),
    "plan": ("emulator.cli.plan", "Show what a style would do, without doing it (no root, any OS)."),
    "run": ("emulator.cli.run", "Run scenarios under several styles and lay them side by side."),
    "compare": ("emulator.cli.compare", "Show a run again, or two runs side by side."),
    "doctor": ("emulator.cli.doctor", "Say what this machine can do, and what is missing."),
    "test": ("emulator.cli.test", "Run cnilab's own tests."),
    "completion": ("emulator.cli.completion", "Print the shell code for tab completion."),
}


class _Commands(click.Group):
    """Knows every command's name and one-line help without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's file."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list under ``--help``."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the near name for one that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(
                f"no such command: {args[0]}" + (f" (did you mean {close[0]}?)" if close else ""), ctx
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(message="cnilab %(version)s", version=__version__)
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """What does each CNI style do to my traffic?

    cnilab builds the network of a Kubernetes cluster out of Linux namespaces, once per CNI style, sends real packets
    through it, captures them at every hop, and lays the styles side by side. Start with `cnilab demo`.
    """
    ctx.obj = debug


def main() -> NoReturn:
    """The console script. Click's own ``main`` would take exit statuses and broken pipes into its own hands."""
    debug = False
    try:
        if instruction := os.environ.get(COMPLETION):
            from click.shell_completion import shell_complete

            _exit(shell_complete(cli, {}, "cnilab", COMPLETION, instruction))
        with cli.make_context("cnilab", sys.argv[1:]) as ctx:
            debug = bool(ctx.params.get("debug"))
            cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        _exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        _exit(2)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        _exit(130)
    except BrokenPipeError:
        _nobody_reads()
        _exit(0)
    except Exception as error:
        if debug:
            raise
        _exit(_report(error))
    _exit(0)


def _report(error: Exception) -> int:
    """Print an error for people; the exit status that it stands for."""
    from emulator.errors import CnilabError, DaemonError, InputError

    if not isinstance(error, CnilabError):
        _say(f"error: internal error: {type(error).__name__}: {error}")
        _say("hint: please report this; `cnilab --debug COMMAND...` shows where it happened")
        return 3
    if isinstance(error, InputError) and len(error.problems) > 1:
        _say(f"error: {len(error.problems)} problems, nothing was changed:")
        for problem in error.problems:
            _say(f"  {problem}")
    else:
        _say(f"error: {error.message}")
    if isinstance(error, DaemonError):
        for line in error.log:
            _say(f"  | {line}")
    if error.hint:
        _say(f"hint: {error.hint}")
    return error.exit_code


def _say(text: str) -> None:
    """To standard error, with control characters shown as escapes: names in messages come from files."""
    from emulator.cli.output import printable

    click.echo(printable(text), err=True)


def _nobody_reads() -> None:
    """Whoever read our output has gone (``| head``): no error now, nor when Python flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _nobody_reads()
    sys.exit(code)
