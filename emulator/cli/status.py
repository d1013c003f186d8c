"""``cnilab status``: how a lab is."""

from __future__ import annotations

import click

from emulator.cli import options, output
from emulator.cli.connection import connect


@click.command("status")
@options.lab
@click.option("--verify", is_flag=True, help="Read the kernel back and compare it with the plan.")
@options.as_json
def command(lab: str | None, verify: bool, as_json: bool) -> None:
    """Show a lab's style, the choices made for this kernel, its daemons, and nodes that are down.

    With --verify, exit status 1 if the kernel holds anything else than the plan.
    """
    import msgspec

    found = connect(lab)
    status = found.status()
    differences: list[str] = []
    if verify:
        with output.progress("reading the kernel back"):
            differences = found.verify()
    if as_json:
        data = msgspec.to_builtins(status)
        output.print_json({**data, "differences": differences} if verify else data)
    else:
        _show(status)
        if verify:
            planned = "the plan and its faults" if status.faults else "the plan"
            verdict = f"differs from {planned}:" if differences else f"holds exactly {planned}"
            click.echo(f"the kernel {verdict}")
            for line in differences:
                click.echo(f"  {line}")
    if differences:
        raise click.exceptions.Exit(1)


def _show(status: object) -> None:
    from emulator.lab.records import LabStatus

    assert isinstance(status, LabStatus)
    click.echo(f"{status.name}: {status.title} on {status.topology}, {status.nodes} nodes, {status.pods} pods")
    click.echo(f"offloads {status.offloads}, set up in {status.setup_seconds:.2f} s")
    for phase, seconds in status.phases.items():
        click.echo(f"  {seconds:7.3f} s  {phase}")
    for name, choice in status.choices.items():
        click.echo(f"{name}: {choice}")
    for fault in status.faults:
        click.echo(f"fault: {fault}")
    for notice in status.notices:
        click.echo(f"note: {notice}")
    for problem in status.plugin_problems:
        click.echo(output.printable(f"{problem['kind']}: {problem['node']}, pod {problem['pod']}: {problem['text']}"))
    running = [*status.daemons, *status.processes]
    if running:
        output.table(
            ["PLACE", "PROCESS", "STATE", "PID"],
            [[item["place"], item["name"], item["state"], str(item.get("pid") or "-")] for item in running],
        )
    for item in running:
        if item["state"] == "died":
            times = f", {item['restarts']} restarts" if item.get("restarts") else ""
            click.echo(f"{item['place']}/{item['name']} {item['detail']}{times}")
            for line in item.get("log", ()):
                click.echo(f"  | {output.printable(line)}")
