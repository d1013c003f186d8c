"""``cnilab plan``: what a style would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from emulator.cli import options, output

if TYPE_CHECKING:
    from emulator.policy.enforcer import PolicyMode


@click.command("plan")
@options.topology
@options.style
@options.plugins
@options.proxy
@options.manifests
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--wire-accurate", is_flag=True, help="As `up --wire-accurate`.")
@options.policy_mode
@options.as_json
def command(
    topology: str, style: str, plugins: tuple[str, ...], proxy: str, manifests: tuple[str, ...], form: str,
    wire_accurate: bool, policy_mode: PolicyMode, as_json: bool,
) -> None:  # fmt: skip
    """Show what every namespace of TOPOLOGY would hold under a style, and why; nothing is done, no root is needed."""
    from emulator.balancer.load import load_balancer
    from emulator.cluster.assemble import assemble
    from emulator.cluster.manifests import load
    from emulator.cluster.topology import load_topology
    from emulator.cni.policy_notes import PolicyNotes
    from emulator.cni.service_proxy import Beside
    from emulator.cni.styles import load_style, settle, with_proxy
    from emulator.plan import render
    from emulator.plan.build import build
    from emulator.policy.enforcement import enforce

    spec = with_proxy(settle(style, plugins), proxy)
    chosen = load_style(spec)
    resolved = chosen.prepare(load_topology(topology))
    objects = []
    if manifests:
        loaded = load(list(manifests))
        objects = list(loaded.objects)
        output.notes(loaded.notices)
    with output.progress("planning"):
        cluster = assemble(resolved, objects, chosen.ipam(resolved))
        chosen.check(cluster)
        beside = Beside(spec, chosen, resolved)
        balancer = load_balancer(resolved, chosen)
        if balancer is not None:
            balancer.check(cluster)
            output.notes([*cluster.pending, *balancer.notices(cluster)])
        enforcer = chosen.enforcer(policy_mode)
        enforced = enforce(enforcer, cluster) if enforcer is not None else None
        # Without a policy an enforcer makes what the style has in place already
        policing = enforced if enforced is not None and enforced.compiled.policies else None
        plan = build(
            cluster, chosen, proxy=beside.when(cluster), balancer=balancer, enforcer=policing,
            wire_accurate=wire_accurate,
        )  # fmt: skip
    policies = PolicyNotes(chosen)
    output.labels(policies.labels(cluster, enforced))
    output.notes(policies.notices(cluster, enforced))
    click.echo(render.as_json(plan) if as_json or form == "json" else render.as_text(plan), nl=False)
