"""``cnilab test``: cnilab's own tests."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import emulator


@click.command("test", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PYTEST ARGUMENTS]...")
def command(arguments: tuple[str, ...]) -> None:
    """Run the test suite of this checkout; arguments go to pytest."""
    from emulator.errors import UserError

    root = Path(emulator.__file__).parent.parent
    if not (root / "tests").is_dir():
        raise UserError(
            "the tests are not part of an installed package", hint="clone the repository, then ./cnilab test"
        )
    try:
        import pytest
    except ImportError:
        raise UserError("pytest is not installed", hint="./cnilab test installs what the tests need") from None
    sys.exit(
        pytest.main(["--rootdir", str(root), "-c", str(root / "pyproject.toml"), *(arguments or [str(root / "tests")])])
    )
