"""``cnilab up``: start a lab that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from emulator.cli import options, output

if TYPE_CHECKING:
    from emulator.lab.records import DnsWish
    from emulator.policy.enforcer import PolicyMode


@click.command("up")
@options.topology
@options.style
@options.plugins
@options.proxy
@options.manifests
@click.option("--lab", "name", metavar="NAME", help="Name of the lab; default: the style's.")
@click.option("--wire-accurate", is_flag=True, help="Switch offloads off: captures show packets as on a wire.")
@options.dns
@options.policy_mode
@options.allow_missing
@options.as_json
def command(
    topology: str, style: str, plugins: tuple[str, ...], proxy: str, manifests: tuple[str, ...], name: str | None,
    wire_accurate: bool, dns: DnsWish, policy_mode: PolicyMode, allow_missing: bool, as_json: bool,
) -> None:  # fmt: skip
    """Start a lab with TOPOLOGY (a shipped name or a file) under a CNI style, and leave it running.

    Returns when every route is in the kernel.
    """
    from emulator.cni.styles import settle, style_key, with_proxy
    from emulator.lab import Lab

    chosen = with_proxy(settle(style, plugins), proxy)
    with output.progress(f"up {topology} ({style_key(chosen)})") as progress:
        lab = Lab.up(
            topology, chosen, manifests, name=name, wire_accurate=wire_accurate,
            allow_missing=allow_missing, dns=dns, policy_mode=policy_mode, progress=progress,
        )  # fmt: skip
    status = lab.status()
    if as_json:
        output.print_json(status)
        return
    output.labels(status.labels)
    output.notes(status.notices)
    size = f"{status.nodes} nodes, {status.pods} pods"
    click.echo(f"lab {status.name} is up: {status.title}, {size} ({status.setup_seconds:.1f} s)")
    click.echo("try: cnilab get pods -o wide · cnilab trace POD POD · cnilab exec POD -- ip route · cnilab down")
