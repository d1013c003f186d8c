"""``cnilab doctor``: what this machine can do."""

from __future__ import annotations

import click

from emulator.cli import options, output


@click.command("doctor")
@click.option("--try", "try_load", is_flag=True, help="Load kernel modules to be sure (root only).")
@options.as_json
def command(try_load: bool, as_json: bool) -> None:
    """Say which styles run here, and what is missing for the others. Loads no kernel module unless told to --try.

    Exit status 1 if no lab can be built.
    """
    from emulator.kernel import doctor

    report = doctor.doctor_report(try_load)
    if as_json:
        output.print_json(report)
    else:
        from rich.console import Console

        Console(highlight=False).print(doctor.render(report))
    raise click.exceptions.Exit(0 if doctor.healthy(report) else 1)
