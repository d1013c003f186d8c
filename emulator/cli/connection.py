"""Joining a lab from a command: what the lab has to say beside its answers reaches whoever typed the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from emulator.cli import output

if TYPE_CHECKING:
    from emulator.lab import Lab


def connect(name: str | None) -> Lab:
    """The running lab of that name, or the only one. When the command ends, the lab's warnings (a dead daemon, a wish
    that this kernel could not grant) are printed. Raises NotFound, UserError."""
    from emulator.lab import Lab

    lab = Lab.connect(name)
    client = lab.client
    click.get_current_context().call_on_close(lambda: output.labels(tuple(client.warnings)))
    return lab
