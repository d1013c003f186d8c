"""``cnilab logs``: what daemons and pod commands have printed."""

from __future__ import annotations

import click

from emulator.cli import options, output
from emulator.cli.connection import connect


@click.command("logs")
@click.argument("place", default="", shell_complete=options.complete_places)
@click.argument("daemon", default="")
@options.lab
@click.option("--tail", type=click.IntRange(min=0), default=None, help="Only the last lines of each.")
@options.as_json
def command(place: str, daemon: str, lab: str | None, tail: int | None, as_json: bool) -> None:
    """Show the log of a DAEMON (`bird`) on a node, of a pod's command, or of everything at PLACE; without a place,
    all."""

    logs = connect(lab).logs(place, daemon)
    if tail is not None:
        logs = {name: "\n".join(text.splitlines()[-tail:] if tail else []) for name, text in logs.items()}
    if as_json:
        output.print_json(logs)
        return
    for name, text in logs.items():
        if len(logs) > 1:
            click.echo(f"==> {name} <==")
        click.echo(text.rstrip("\n"))
    if not logs:
        click.echo("nothing is logged there: pods without a command are served by cnilab itself", err=True)
