"""How commands speak: data on standard output, progress and warnings on standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

PATIENCE = 1.0  # s: what takes longer shows its progress
TICK = 0.1  # s between two updates of it


def print_json(data: Any) -> None:
    """The ``--json`` twin of what a command prints for people. Structs, tuples and the like become plain JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())


def warn(text: str) -> None:
    """One line that must not be missed."""
    click.secho(f"warning: {printable(text)}", fg="yellow", err=True)


def labels(texts: Iterable[str]) -> None:
    """What every output of a lab must carry: that it is not what was asked for."""
    for text in texts:
        warn(text)


def notes(texts: Iterable[str]) -> None:
    """Lines that are good to know."""
    for text in texts:
        click.echo(f"note: {printable(text)}", err=True)


def printable(text: str) -> str:
    """``text`` with control characters shown as escapes: names and logs come from files and processes, and a terminal
    obeys what it is sent."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


class _Line:
    """What is going on, on standard error. On a terminal one line that is overwritten, elsewhere one line per phase; in
    either case only what is still going on after ``PATIENCE`` is shown."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._phase = ""
        self._told = ""
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def tell(self, phase: str) -> None:
        """A new phase begins."""
        self._phase = phase

    def __enter__(self) -> _Line:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()
        if self._terminal and self._told:
            _write("\r\x1b[K")

    def _watch(self) -> None:
        wait = PATIENCE
        while not self._over.wait(wait):
            wait = TICK
            text = f"{self._what}: {self._phase}" if self._phase else self._what
            if self._terminal:
                _write(f"\r\x1b[K{printable(text)} ({time.monotonic() - self._start:.1f} s)")
            elif text != self._told:
                _write(f"{printable(text)} ({time.monotonic() - self._start:.1f} s)\n")
            self._told = text


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that tells the phase of something that may take longer than a second."""
    with _Line(what) as line:
        yield line.tell


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
