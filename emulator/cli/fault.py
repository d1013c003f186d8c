"""``cnilab fault``: break something in a running lab, and mend it."""

from __future__ import annotations

from typing import Any

import click

from emulator.cli import options, output
from emulator.cli.connection import connect

# Spelled out: the records that have them would take msgspec's import to show `--help`. tests/unit/cli compares.
KINDS = (
    "link-down", "link-up", "node-crash", "node-return", "daemon-kill", "daemon-start",
    "conntrack-full", "conntrack-free", "mtu", "mac", "hairpin", "sysctl", "filter", "route", "flush",
    "proxy-stop",
)  # fmt: skip
PLACES = ("device", "port", "input", "output", "forward")


@click.command("fault")
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("target", metavar="TARGET", shell_complete=options.complete_places)
@click.option(
    "--mend", is_flag=True, help="Undo such faults: those of this kind at this target that fit what is given."
)
@click.option("--device", metavar="NAME", help="Of the target. Default: eth0.")
@click.option("--daemon", metavar="NAME", help="Of the target, for daemon-kill and daemon-start.")
@click.option("--at", type=click.Choice(PLACES), help="mtu, mac: device or port; filter: a hook or port.")
@click.option("--value", metavar="VALUE", help="An MTU in bytes, a MAC, or a kernel parameter's value.")
@click.option("--name", metavar="PARAMETER", help="Of a sysctl: net/ipv4/conf/eth0/rp_filter.")
@click.option("--protocol", metavar="NAME", help="Of packets to drop: tcp, udp, icmp, icmpv6, ipip, ... or a number.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of packets to drop: the destination port.")
@click.option("--icmp-type", type=click.IntRange(0, 255), help="Of packets to drop.")
@click.option("--icmp-code", type=click.IntRange(0, 255), help="Of packets to drop.")
@click.option("--source", metavar="PLACE|CIDR", help="Of packets to drop.")
@click.option("--destination", metavar="PLACE|CIDR", help="Of packets to drop; or of the route to take away: a CIDR.")
@click.option("--table", metavar="NAME", help="The one table to flush. Default: all.")
@options.lab
@options.as_json
def command(kind: str, target: str, lab: str | None, mend: bool, as_json: bool, **wish: Any) -> None:
    """Break something at TARGET, a machine or pod of a running lab, or mend it.

    KIND is one of link-down, link-up, node-crash, node-return, daemon-kill, daemon-start, conntrack-full,
    conntrack-free, mtu, mac, hairpin, sysctl, filter, route, flush, proxy-stop. What is broken by then is printed;
    `cnilab status` lists it, too.
    """
    fields = {name: value for name, value in wish.items() if value is not None}
    found = connect(lab)
    found.fault(kind, target, **({"mend": True} if mend else {}), **fields)
    faults = found.status().faults
    if as_json:
        output.print_json({"faults": faults})
        return
    for fault in faults or ["none is in force"]:
        click.echo(f"fault: {fault}")
