"""Every benchmark, one after the other, each figure beside its target.

``python -m benchmarks`` from the root of the checkout takes about ten minutes, ``--quick`` two. Names choose some;
``--out FILE`` writes all samples as JSON, ``--markdown`` prints the table of README.md. Exit status 1 when a target is
missed or a benchmark fails. Its labs are registered in a place of their own: other labs are neither seen nor touched.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from benchmarks import commands, dns_rate, every_style, first_packet, policies, service_changes, services, use_labs
from benchmarks.figures import HEADERS, Figure, as_json, as_markdown, cells, describe, machine
from emulator.kernel.registry import BASE_VARIABLE

WIDTH = 150  # columns of the table; narrower, it wraps every cell

BENCHMARKS: dict[str, Callable[[bool], list[Figure]]] = {
    "help": commands.help_text,
    "wrapper": commands.wrapper,
    "up": commands.up_and_down,
    "matrix": use_labs.matrix,
    "capture": use_labs.capture,
    "capture-chain": use_labs.capture_rate,
    "fifty-nodes": use_labs.fifty_nodes,
    "mininet": use_labs.beside_mininet,
    "calico-mesh": use_labs.calico_mesh,
    "styles": every_style.styles,
    "fifty-by-bgp": every_style.fifty_by_bgp,
    "services": services.services,
    "service-changes": service_changes.service_changes,
    "policies": policies.policies,
    "first-packet": first_packet.first_packet,
    "dns": dns_rate.dns,
    "demo": commands.demo,
}


def main() -> int:
    """Run what was chosen."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Every figure beside its target.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="few runs, and Mininet's hosts extrapolated from fifty")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    on, figures, failures = machine(), [], {}
    progress = Console(stderr=True)
    with TemporaryDirectory(prefix="cnilab-bench-") as registry:
        os.environ[BASE_VARIABLE] = registry
        for name in options.names or BENCHMARKS:
            started = time.monotonic()
            try:
                found = BENCHMARKS[name](options.quick)
            except Exception as error:  # the others still tell something
                failures[name] = f"{type(error).__name__}: {error}"
                progress.print(f"{name}: FAILED: {failures[name]}", style="red", markup=False)
                continue
            figures += found
            progress.print(f"{name}: {time.monotonic() - started:.0f} s", style="dim")
    on["load"] = [*on["load"][:1], *(round(value, 2) for value in os.getloadavg()[:1])]
    if options.out:
        options.out.write_text(as_json(figures, on, failures))
    if options.markdown:
        print(as_markdown(figures, on))
    else:
        table = Table(*HEADERS, box=None, pad_edge=False)
        for figure in figures:
            style = {True: "", False: "red", None: "dim"}[figure.met]
            table.add_row(*cells(figure), style=style)
        console = Console()
        console.width = max(console.width, WIDTH)
        console.print(describe(on), table, sep="\n\n")
    return 1 if failures or any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
