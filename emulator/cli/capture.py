"""``cnilab capture``: packets at every hop, into a file or a pipe."""

from __future__ import annotations

import sys
import time

import click

from emulator.cli import options, output
from emulator.cli.connection import connect


@click.command("capture")
@click.argument("hops", nargs=-1, metavar="[PLACE[:DEVICE]]...", shell_complete=options.complete_places)
@click.option(
    "-w", "--write", "path", default="cnilab.pcapng", show_default=True, help="File, or - for standard output."
)
@click.option("--seconds", type=click.FloatRange(0.01, 86_400), default=None, help="Stop after this time; else Ctrl-C.")
@options.lab
@options.as_json
def command(hops: tuple[str, ...], path: str, seconds: float | None, lab: str | None, as_json: bool) -> None:
    """Capture at the chosen hops (`n1`, `n1:flannel.1`, `web-0`, `underlay`; none: everywhere) into one pcapng file.

    Each hop is an interface of the file. Live: `cnilab capture -w - | wireshark -k -i -`.
    """
    import msgspec

    from emulator.errors import UserError
    from emulator.lab.lab import live

    found = connect(lab)
    if path == "-":
        if sys.stdout.isatty():
            raise UserError("packets are not written to a terminal", hint="cnilab capture -w - | wireshark -k -i -")
        try:
            live(found, hops, sys.stdout.buffer, seconds or 0.0)
        except KeyboardInterrupt:
            pass  # that is how one ends it
        return
    capture = found.capture(*hops)
    with capture:
        click.echo("capturing; Ctrl-C ends it" if seconds is None else f"capturing for {seconds:g} s", err=True)
        try:
            time.sleep(seconds if seconds is not None else 86_400)
        except KeyboardInterrupt:
            click.echo("", err=True)
    try:
        capture.save(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    stats = capture.stats
    if as_json:
        output.print_json({**msgspec.to_builtins(stats), "path": path})
    else:
        click.echo(f"{stats.captured} packets in {path}; open it: wireshark {path}")
    output.labels(stats.warnings)
