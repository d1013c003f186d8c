"""``cnilab trace``: one packet, hop by hop."""

from __future__ import annotations

from typing import Any

import click

from emulator.cli import options, output
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
    from emulator.lab import Lab

    found = Lab.connect(lab)
    asked = request(**wish)
    options_of = {name: getattr(asked, name) for name in ("size", "timeout", "dont_fragment", "family")}
    trace = found.trace(asked.source, asked.target, asked.port, asked.protocol, **options_of)
    if as_json:
        output.print_json(trace)
    else:
        from emulator.report.terminal import print_hops

        output.labels(found.status().labels)
        click.echo(describe(trace.answer))
        if trace.request is None:
            click.echo("no packet of it was seen: nothing was sent")
        else:
            print_hops(trace.request)
        if reply and trace.reply is not None:
            click.echo("\nthe answer:")
            print_hops(trace.reply)
        if trace.stats.lost:
            output.warn(f"the capture lost {trace.stats.lost} packets: hops may be missing")
    raise click.exceptions.Exit(0 if trace.answer.reached else 1)
