"""``cnilab get``: what is in a lab."""

from __future__ import annotations

from typing import Any

import click

from emulator.cli import options, output
from emulator.cli.columns import columns_of
from emulator.cli.connection import connect

MACHINES = ("machines", "machine")


@click.command("get")
@click.argument("kind", default="pods")
@click.argument("name", default="")
@options.namespace
@click.option("-A", "--all-namespaces", is_flag=True, help="Objects of all namespaces.")
@click.option("-l", "--selector", default="", help="Label selector, such as app=web,tier!=db.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "wide", "json", "yaml", "name"]), default="table")
@options.lab
@options.as_json
def command(
    kind: str, name: str, namespace: str, all_namespaces: bool, selector: str, form: str, lab: str | None, as_json: bool
) -> None:
    """List objects of a kind: pods, nodes, deployments, namespaces, ...; `machines` are the underlay's."""

    found = connect(lab)
    form = "json" if as_json else form
    if kind in MACHINES:
        _machines(found.cluster(), form)
        return
    items = found.get(kind, name, "" if all_namespaces else namespace, selector=selector)
    if form == "json":
        output.print_json(items[0] if name else {"apiVersion": "v1", "kind": "List", "items": items})
    elif form == "yaml":
        import yaml

        click.echo(yaml.safe_dump(items[0] if name else {"apiVersion": "v1", "kind": "List", "items": items}), nl=False)
    elif form == "name":
        for item in items:
            click.echo(f"{item['kind'].lower()}/{item['metadata']['name']}")
    elif not items:
        click.echo(f"No resources found{'' if all_namespaces else f' in {namespace} namespace'}.", err=True)
    else:
        _table(items, wide=form == "wide", namespaces=all_namespaces)


def _table(items: list[dict[str, Any]], *, wide: bool, namespaces: bool) -> None:
    chosen = [column for column in columns_of(items[0]["kind"]) if wide or not column.wide]
    headers = (["NAMESPACE"] if namespaces else []) + [column.header for column in chosen]
    rows = []
    for item in items:
        start = [item["metadata"].get("namespace", "")] if namespaces else []
        rows.append(start + [column.value(item) for column in chosen])
    output.table(headers, rows)


def _machines(cluster: Any, form: str) -> None:
    machines = cluster.topology.machines
    if form in ("json", "yaml"):
        output.print_json(machines)
        return
    rows = []
    for machine in machines:
        rows += [
            [machine.name, machine.kind, interface.name, " ".join(interface.addresses), interface.mac,
             str(interface.mtu), f"{interface.peer}:{interface.peer_device}"]
            for interface in machine.interfaces
        ]  # fmt: skip
    output.table(["NAME", "KIND", "DEVICE", "ADDRESSES", "MAC", "MTU", "CABLED TO"], rows)
