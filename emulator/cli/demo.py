"""``cnilab demo``: the main job in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emulator.cli import options
from emulator.cli.run import carry_out

if TYPE_CHECKING:
    from emulator.compare.comparison import Comparison

SCENARIO = "connectivity/cross-node"


@click.command("demo")
@options.styles
@click.option("--out", type=click.Path(file_okay=False), default=None, help="Run directory.")
@options.as_json
def command(styles: str, out: str | None, as_json: bool) -> None:
    """Build three nodes with nine pods under Flannel and under Calico, send a packet from one node's pod to another's,
    capture it at every hop, and lay the two side by side."""
    from emulator.scenario.load import find_scenarios, load_scenario

    loaded = [load_scenario(path) for path in find_scenarios(SCENARIO)]
    directory = Path(out) if out else Path("captures/runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    status = carry_out(
        loaded, options.split_styles(styles), directory, allow_missing=False, as_json=as_json, show=_show_hops
    )
    if not as_json:
        click.echo("next: cnilab up --cni calico, then cnilab trace n1-p1 n2-p1 · docs/getting-started.md")
    raise click.exceptions.Exit(status)


def _show_hops(comparison: Comparison) -> None:
    """The first flow's first packet under each style, hop by hop: what this is all about."""
    from emulator.report.terminal import print_hops

    for flow in comparison.flows[:1]:
        for column in flow.columns:
            if column.request is not None:
                lanes = column.style.lanes if column.style else {}
                print_hops(column.request.journey, title=f"\n{column.column.title} · {flow.title}", lanes=lanes)
