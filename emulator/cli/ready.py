"""``cnilab ready``: what a pod's readiness probe would say."""

from __future__ import annotations

import click

from emulator.cli import options, output
from emulator.cli.connection import connect


@click.command("ready")
@click.argument("pods", nargs=-1, required=True, metavar="POD...", shell_complete=options.complete_places)
@click.option("--no", "negative", is_flag=True, help="They are not ready any more.")
@options.lab
@options.as_json
def command(pods: tuple[str, ...], negative: bool, lab: str | None, as_json: bool) -> None:
    """Say that pods are ready: Services send traffic to them. With --no, that they are not.

    Nothing in the pods changes, they answer as before.
    """
    connect(lab).ready(*pods, value=not negative)
    if as_json:
        output.print_json([{"pod": pod, "ready": not negative} for pod in pods])
        return
    for pod in pods:
        click.echo(f"{pod} is {'not ready' if negative else 'ready'}")
