"""``cnilab compare``: a run again, or two side by side."""

from __future__ import annotations

from pathlib import Path

import click

from emulator.cli import options, output


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN [RUN]", type=click.Path(exists=True, file_okay=False))
@click.option("--html", "page", type=click.Path(dir_okay=False), default=None, help="Write the report to this file.")
@click.option("--hops", is_flag=True, help="Print every hop of each flow's packets too.")
@options.as_json
def command(runs: tuple[str, ...], page: str | None, hops: bool, as_json: bool) -> None:
    """Print the comparison of a run directory again; with two of them, what changed from the first to the second."""
    from emulator.compare.compare import compare, compare_runs, load_run
    from emulator.errors import UserError
    from emulator.report import html, terminal
    from emulator.report.json import comparison_as_dict

    if len(runs) > 2:
        raise UserError("one run or two, not more")
    with output.progress("comparing") as progress:
        loaded = [load_run(Path(run)) for run in runs]
        comparison = compare(loaded[0]) if len(loaded) == 1 else compare_runs(loaded[0], loaded[1])
        if page:
            progress("writing the report")
            html.write(comparison, Path(page))
    if as_json:
        output.print_json(comparison_as_dict(comparison))
    else:
        terminal.print_comparison(comparison, hops=hops)
