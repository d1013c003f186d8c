"""``cnilab exec``: a command inside the lab."""

from __future__ import annotations

import click

from emulator.cli import options, output
from emulator.cli.connection import connect


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@options.lab
@options.as_json
@click.argument("place", shell_complete=options.complete_places)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND...")
def command(lab: str | None, as_json: bool, place: str, argv: tuple[str, ...]) -> None:
    """Run COMMAND in a pod (`web-0`, `shop/cart-1`) or on a machine (`node/n1`, `client`).

    It runs with this terminal, so shells and editors work; its exit status is passed on. With --json what it prints is
    collected.
    """
    from emulator.errors import UserError

    wanted = argv[1:] if argv[0] == "--" else argv
    if not wanted:
        raise UserError("no command was given", hint=f"cnilab exec {place} -- ip route")
    found = connect(lab)
    if not as_json:
        raise click.exceptions.Exit(found.exec(place, wanted))
    done = found.run(place, *wanted, timeout=None)
    output.print_json({"place": place, "code": done.returncode, "stdout": done.stdout, "stderr": done.stderr})
    raise click.exceptions.Exit(done.returncode)
