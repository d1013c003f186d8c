"""``cnilab ls``: the running labs."""

from __future__ import annotations

import time

import click

from emulator.cli import options, output


@click.command("ls")
@options.as_json
def command(as_json: bool) -> None:
    """List the running labs of this user."""
    from emulator.kernel.registry import labs

    found = labs()
    if as_json:
        output.print_json(found)
    elif not found:
        click.echo("no lab is running; start one: cnilab up")
    else:
        now = time.time()
        rows = [
            [record.name, record.state, record.style, record.topology, str(record.pid), _age(now - record.created)]
            for record in found
        ]
        output.table(["NAME", "STATE", "STYLE", "TOPOLOGY", "PID", "AGE"], rows)


def _age(seconds: float) -> str:
    """As kubectl: 42s, 5m, 3h, 2d."""
    for limit, unit, size in ((120, "s", 1), (7200, "m", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{int(max(0, seconds) // size)}{unit}"
    return f"{int(seconds // 86_400)}d"
