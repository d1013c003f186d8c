"""``cnilab down``: end labs."""

from __future__ import annotations

import click

from emulator.cli import options, output


@click.command("down")
@click.argument("names", nargs=-1, shell_complete=options.complete_labs)
@click.option("--lab", metavar="NAME", help="The same as NAME.", hidden=True)
@click.option("--all", "everything", is_flag=True, help="All labs of this user.")
@click.option("--wait", is_flag=True, help="Return only when the kernel has taken the namespaces down too.")
@options.as_json
def command(names: tuple[str, ...], lab: str | None, everything: bool, wait: bool, as_json: bool) -> None:
    """End the labs NAMES (without a name: the only one running), with everything in them.

    Nothing needs cleaning up afterwards: the kernel removes a lab's namespaces with all that they hold.
    """
    from emulator.kernel import registry  # not Lab, whose imports take as long as all the rest

    wanted: list[str | None] = list((*names, lab) if lab else names)
    if everything:
        wanted = [record.name for record in registry.labs()]
    elif not wanted:
        wanted = [None]
    ended = list(dict.fromkeys(registry.find(name).name for name in wanted))  # all known before the first one ends
    with output.progress("ending labs"):
        for each in ended:
            registry.kill(each, wait=wait)
    if as_json:
        output.print_json({"down": ended})
    else:
        for name in ended:
            click.echo(f"lab {name} is down")
