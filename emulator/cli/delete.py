"""``cnilab delete``: objects out of a lab."""

from __future__ import annotations

import click

from emulator.cli import options, output
from emulator.cli.apply import report
from emulator.cli.connection import connect


@click.command("delete")
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@options.namespace
@click.option("-f", "--filename", "manifests", multiple=True, metavar="FILE", help="Delete what these manifests hold.")
@click.option(
    "--grace-period",
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="What pods may take to end, in place of what their spec says; 0: end at once.",
)
@options.lab
@options.as_json
def command(
    kind: str | None,
    names: tuple[str, ...],
    namespace: str,
    manifests: tuple[str, ...],
    grace_period: int | None,
    lab: str | None,
    as_json: bool,
) -> None:
    """Delete objects: `delete pod web-0`, `delete pod/web-0`, `delete -f web.yaml`.

    A pod that a workload owns comes back as another one, with another address.
    """
    from emulator.errors import UserError

    found = connect(lab)
    if manifests:
        with output.progress("deleting"):
            changes = found.delete_manifests(*manifests, grace_period=grace_period)
        report(changes, as_json)
        return
    if kind is None:
        raise UserError("nothing to delete was named", hint="cnilab delete pod NAME, or cnilab delete -f FILE")
    if "/" in kind:
        kind, _, name = kind.partition("/")
        names = (name, *names)
    if not names:
        raise UserError(f"which {kind}?", hint=f"cnilab delete {kind} NAME...")
    with output.progress(f"deleting {len(names)} objects"):
        changes = [found.delete(kind, name, namespace, grace_period=grace_period) for name in names]
    report(changes, as_json)
