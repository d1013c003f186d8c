"""``cnilab rollout``: how far a workload is on its way from one template to the next."""

from __future__ import annotations

import time

import click

from emulator.cli import options, output
from emulator.cli.connection import connect


@click.group("rollout")
def command() -> None:
    """Rollouts of Deployments, StatefulSets and DaemonSets."""


@command.command("status")
@click.argument("workload", metavar="KIND/NAME")
@options.namespace
@click.option("--no-wait", is_flag=True, help="Say how far it is, and return.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Give up after this; 0: never."
)
@options.lab
@options.as_json
def status(workload: str, namespace: str, no_wait: bool, timeout: float, lab: str | None, as_json: bool) -> None:
    """Wait until the rollout of KIND/NAME is over, and say how far it is meanwhile.

    Exit status 1: it is not over.
    """
    from emulator.errors import CheckFailed, UserError
    from emulator.lab.lab import ROLLOUT_POLL

    kind, slash, name = workload.partition("/")
    if not slash or not name:
        raise UserError(f"{workload!r} is not a workload", hint="cnilab rollout status deployment/web")
    found = connect(lab)
    deadline = time.monotonic() + timeout if timeout else float("inf")
    told = ""
    while True:
        done, message = found.rollout(kind, name, namespace)
        over = done or no_wait or time.monotonic() > deadline
        if as_json and over:
            output.print_json({"done": done, "message": message})
        elif not as_json and message != told:
            click.echo(message)
        told = message
        if over:
            break
        time.sleep(ROLLOUT_POLL)
    if not done:
        raise CheckFailed(f"the rollout of {workload} is not over")
