"""``cnilab exec``: a command inside the lab."""

from __future__ import annotations

import click

from emulator.cli import options


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@options.lab
@click.argument("place", shell_complete=options.complete_places)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND...")
def command(lab: str | None, place: str, argv: tuple[str, ...]) -> None:
    """Run COMMAND in a pod (`web-0`, `shop/cart-1`) or on a machine (`node/n1`, `client`).

    It runs with this terminal, so shells and editors work; its exit status is passed on.
    """
    from emulator.errors import UserError
    from emulator.lab import Lab

    wanted = argv[1:] if argv[0] == "--" else argv
    if not wanted:
        raise UserError("no command was given", hint=f"cnilab exec {place} -- ip route")
    raise click.exceptions.Exit(Lab.connect(lab).exec(place, wanted))
