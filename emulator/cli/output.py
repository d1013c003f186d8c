"""How commands speak: data on standard output, progress and warnings on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

PATIENCE = 1.0  # s: what takes longer shows its progress


def print_json(data: Any) -> None:
    """The ``--json`` twin of what a command prints for people. Structs, tuples and the like become plain JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())


def warn(text: str) -> None:
    """One line that must not be missed."""
    click.secho(f"warning: {text}", fg="yellow", err=True)


def labels(texts: Sequence[str]) -> None:
    """What every output of a lab must carry: that it is not what was asked for."""
    for text in texts:
        warn(text)


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that tells the phase. On a terminal it is a line that is overwritten; elsewhere phases are
    printed one a line, and only those that begin after a second."""
    start = time.monotonic()
    terminal = sys.stderr.isatty()
    shown = False

    def tell(phase: str) -> None:
        nonlocal shown
        elapsed = time.monotonic() - start
        if terminal:
            _write(f"\r\x1b[K{what}: {phase} ({elapsed:.1f} s)")
            shown = True
        elif elapsed > PATIENCE:
            _write(f"{what}: {phase} ({elapsed:.1f} s)\n")

    try:
        yield tell
    finally:
        if shown:
            _write("\r\x1b[K")


def _write(text: str) -> None:
    """To standard error. That nobody reads it is no reason to stop what it is about."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as kubectl prints them: left-aligned, three spaces apart, no borders; good for grep and for people."""
    widths = [max(len(str(row[column])) for row in [headers, *rows]) for column in range(len(headers))]
    for row in [headers, *rows]:
        line = "   ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())
