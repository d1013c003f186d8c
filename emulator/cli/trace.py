"""``cnilab trace``: one packet, hop by hop."""

from __future__ import annotations

from typing import Any

import click

from emulator.cli import options, output
from emulator.cli.connection import connect
from emulator.cli.probe import describe, request, request_options


@click.command("trace")
@request_options
@click.option("--reply", is_flag=True, help="Follow the answer too.")
@options.lab
@options.as_json
def command(reply: bool, lab: str | None, as_json: bool, **wish: Any) -> None:
    """Send one request FROM a pod or machine TO another and follow it through every device, live.

    Each hop shows what changed since the one before, and which object of the plan explains it.
    """
    found = connect(lab)
    asked = request(**wish)
    options_of = {name: getattr(asked, name) for name in ("size", "timeout", "dont_fragment", "family")}
    with output.progress(f"tracing {asked.source} to {asked.target}"):
        trace = found.trace(asked.source, asked.target, asked.port, asked.protocol, **options_of)
    if as_json:
        output.print_json(trace)
    else:
        from emulator.report.terminal import print_hops

        click.echo(describe(trace.answer))
        if trace.request is None:
            click.echo("no packet of it was seen: nothing was sent")
        else:
            print_hops(trace.request, ending=trace.request.verdict)
        if reply:
            click.echo("\nthe answer:" if trace.reply is not None else "\nno answer was seen")
            if trace.reply is not None:
                print_hops(trace.reply, ending=trace.reply.verdict)
    output.labels(trace.stats.warnings)
    raise click.exceptions.Exit(0 if trace.answer.reached else 1)
