"""``cnilab apply``: manifests into a lab."""

from __future__ import annotations

import click

from emulator.cli import options, output
from emulator.cli.connection import connect


@click.command("apply")
@click.option("-f", "--filename", "manifests", multiple=True, required=True, metavar="FILE", help="File, folder, or -.")
@options.lab
@options.as_json
def command(manifests: tuple[str, ...], lab: str | None, as_json: bool) -> None:
    """Apply Kubernetes manifests: all of them, or none if anything is wrong with one."""
    from emulator.cluster.manifests import load

    found = connect(lab)
    loaded = load(list(manifests), namespaces=[item["metadata"]["name"] for item in found.get("namespaces")])
    output.notes(loaded.notices)
    known = found.status().notices
    with output.progress(f"applying {len(loaded.objects)} objects"):
        changes = found.apply(*loaded.objects)
    output.notes([notice for notice in found.status().notices if notice not in known])
    report(changes, as_json)


def report(changes: list[dict[str, str]], as_json: bool) -> None:
    """What was done to each object, as kubectl says it."""
    if as_json:
        output.print_json(changes)
        return
    for change in changes:
        group = f".{change['group']}" if change["group"] else ""
        click.echo(f"{change['kind'].lower()}{group}/{change['name']} {change['action']}")
