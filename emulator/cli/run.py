"""``cnilab run``: scenarios under several styles, side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emulator.cli import options, output

if TYPE_CHECKING:
    from emulator.compare.comparison import Comparison
    from emulator.policy.enforcer import PolicyMode
    from emulator.scenario.load import Loaded


@click.command("run")
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@options.styles
@options.plugins
@options.proxies
@click.option("--out", "out", type=click.Path(file_okay=False), default=None,
              help="Run directory; default: captures/runs/<time>.")  # fmt: skip
@click.option("--hops", is_flag=True, help="Print every hop of each flow's packets too.")
@options.policy_mode
@options.allow_missing
@options.as_json
def command(
    scenarios: tuple[str, ...], styles: str, plugins: tuple[str, ...], proxies: str, out: str | None, hops: bool,
    policy_mode: PolicyMode, allow_missing: bool, as_json: bool,
) -> None:  # fmt: skip
    """Run scenarios (files, folders, or shipped names such as connectivity/cross-node) under each style.

    Writes a run directory with every result, every hop, a capture per style and report.html. Exit status 1 if an
    expectation does not hold.
    """
    from emulator.scenario.load import find_scenarios, load_scenario

    loaded = [load_scenario(path) for wanted in scenarios for path in find_scenarios(wanted)]
    chosen = options.split_styles(styles, plugins, proxies)
    directory = Path(out) if out else Path("captures/runs") / time.strftime("%Y%m%d-%H%M%S")
    raise click.exceptions.Exit(
        carry_out(
            loaded, chosen, directory, allow_missing=allow_missing, policy_mode=policy_mode, as_json=as_json, hops=hops
        )
    )


def carry_out(
    loaded: Sequence[Loaded],
    styles: Sequence[str],
    directory: Path,
    *,
    allow_missing: bool,
    policy_mode: PolicyMode = "faithful",
    as_json: bool,
    hops: bool = False,
    show: Callable[[Comparison], None] = lambda _comparison: None,
) -> int:
    """Run, write the run directory, print the comparison, after what ``show`` prints for people; the exit status."""
    from emulator.compare.compare import compare, load_run
    from emulator.report import html, terminal
    from emulator.report.json import comparison_as_dict
    from emulator.scenario.rundir import hand_over
    from emulator.scenario.series import run_series

    with output.progress("run") as progress:
        ran = run_series(
            loaded,
            styles,
            directory,
            command=sys.argv[1:],
            allow_missing=allow_missing,
            policy_mode=policy_mode,
            progress=progress,
        )
        progress("writing the report")
        comparison = compare(load_run(directory))
        html.write(comparison, directory / "report.html")
        hand_over(directory)
    if as_json:
        output.print_json(comparison_as_dict(comparison))
    else:
        show(comparison)
        terminal.print_comparison(comparison, hops=hops)
        click.echo(f"\nreport: {directory / 'report.html'}")
    return 0 if ran.all_met else 1
