"""``cnilab get``: what is in a lab."""

from __future__ import annotations

from typing import Any

import click

from emulator.cli import options, output
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
    columns = _COLUMNS.get(items[0]["kind"], _ANY)
    chosen = [column for column in columns if wide or not column[2]]
    headers = (["NAMESPACE"] if namespaces else []) + [header for header, _, _ in chosen]
    rows = []
    for item in items:
        start = [item["metadata"].get("namespace", "")] if namespaces else []
        rows.append(start + [str(value(item)) for _, value, _ in chosen])
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


def _ready(pod: dict[str, Any]) -> str:
    containers = pod["spec"].get("containers", [])
    ready = sum(1 for status in pod["status"].get("containerStatuses", ()) if status.get("ready"))
    return f"{ready or len(containers)}/{len(containers)}"


def _addresses(obj: dict[str, Any]) -> str:
    return " ".join(entry["ip"] for entry in obj["status"].get("podIPs", ()))


def _internal(node: dict[str, Any]) -> str:
    return " ".join(entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")


def _labels(obj: dict[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((obj["metadata"].get("labels") or {}).items()))


def _served_by(pod: dict[str, Any]) -> str:
    return str((pod["metadata"].get("annotations") or {}).get("cnilab.dev/served-by", "cnilab"))


def _replicas(obj: dict[str, Any]) -> str:
    return str(obj.get("spec", {}).get("replicas", 1))


_NAME = ("NAME", lambda obj: obj["metadata"]["name"], False)
_ANY = [_NAME, ("CREATED", lambda obj: obj["metadata"].get("creationTimestamp", ""), False), ("LABELS", _labels, True)]
_COLUMNS: dict[str, list[tuple[str, Any, bool]]] = {
    "Pod": [
        _NAME,
        ("READY", _ready, False),
        ("STATUS", lambda pod: pod["status"].get("phase", ""), False),
        ("IP", _addresses, True),
        ("NODE", lambda pod: pod["spec"].get("nodeName", ""), True),
        ("SERVED BY", _served_by, True),
        ("LABELS", _labels, True),
    ],
    "Node": [
        _NAME,
        ("STATUS", lambda node: "Ready" if _is_ready(node) else "NotReady", False),
        ("INTERNAL-IP", _internal, False),
        ("POD-CIDR", lambda node: " ".join(node["spec"].get("podCIDRs", ())), False),
        ("LABELS", _labels, True),
    ],
    "Namespace": [_NAME, ("STATUS", lambda obj: obj.get("status", {}).get("phase", "Active"), False)],
    "Deployment": [_NAME, ("REPLICAS", _replicas, False), ("LABELS", _labels, True)],
    "ReplicaSet": [_NAME, ("REPLICAS", _replicas, False), ("LABELS", _labels, True)],
    "StatefulSet": [_NAME, ("REPLICAS", _replicas, False), ("LABELS", _labels, True)],
}


def _is_ready(node: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))
