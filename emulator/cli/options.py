"""Options that several commands share, with their tab completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem


def complete_labs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The running labs."""
    from emulator.kernel.registry import labs

    return [CompletionItem(lab.name) for lab in labs() if lab.name.startswith(incomplete)]


def _complete_topologies(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from emulator.cluster.topology import topology_names

    names = [CompletionItem(name) for name in topology_names() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_styles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from emulator.cni.styles import style_names

    head, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{head}{comma}{name}") for name in style_names() if name.startswith(last)]


def _complete_proxies(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from emulator.proxy.model import PROXY_MODES

    head, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{head}{comma}{mode}") for mode in PROXY_MODES if mode.startswith(last)]


def complete_places(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Pods and machines of the lab that ``--lab`` names."""
    from emulator.errors import CnilabError
    from emulator.lab import Lab

    try:
        cluster = Lab.connect(ctx.params.get("lab")).cluster()
    except CnilabError:
        return []
    names = [pod.name if pod.namespace == "default" else pod.key for pod in cluster.pods]
    names += [machine.name for machine in cluster.topology.machines]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

lab: Decorator = click.option(
    "--lab", metavar="NAME", shell_complete=complete_labs, help="Which lab; may be left out when only one runs."
)
as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
topology: Decorator = click.argument("topology", default="three-nodes", shell_complete=_complete_topologies)
style: Decorator = click.option(
    "--cni", "style", default="flannel", show_default=True, metavar="STYLE[:MODE]", shell_complete=complete_styles,
    help="CNI style, such as flannel, flannel:host-gw, calico, conflist=FILE.",
)  # fmt: skip
styles: Decorator = click.option(
    "--cni", "styles", default="flannel,calico", show_default=True, metavar="STYLE,...",
    shell_complete=complete_styles, help="CNI styles to run under; `all` for every mode of each.",
)  # fmt: skip
proxy: Decorator = click.option(
    "--proxy", metavar="MODE", default="", shell_complete=_complete_proxies,
    help="Service proxy: iptables, nftables, ipvs, kube-router (its own, with that style) or none. "
    "Default: the style's own, from the first Service on.",
)  # fmt: skip
proxies: Decorator = click.option(
    "--proxy", "proxies", metavar="MODE,...", default="", shell_complete=_complete_proxies,
    help="Service proxies to run each style with: iptables, nftables, ipvs, kube-router, none. "
    "Default: each style's own.",
)  # fmt: skip
plugins: Decorator = click.option(
    "--cni-bin", "plugins", multiple=True, metavar="DIR", type=click.Path(exists=True, file_okay=False),
    help="Folder of CNI plugins for conflist=FILE; may be repeated. Default: /opt/cni/bin, /usr/lib/cni.",
)  # fmt: skip
manifests: Decorator = click.option(
    "-f", "--filename", "manifests", multiple=True, metavar="FILE", help="Manifest file or folder; - is stdin.",
)  # fmt: skip
dns: Decorator = click.option(
    "--dns", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
    help="Cluster DNS: auto (from the first Service on), on (at once) or off.",
)  # fmt: skip
policy_mode: Decorator = click.option(
    "--policy-mode", type=click.Choice(["faithful", "spec"]), default="faithful", show_default=True,
    help="Network policies as the real project enforces them, or as the API says.",
)  # fmt: skip
allow_missing: Decorator = click.option(
    "--allow-missing", is_flag=True,
    help="Go on without link impairments that this kernel cannot do; every output then says so.",
)  # fmt: skip
namespace: Decorator = click.option("-n", "--namespace", default="default", show_default=True, help="Namespace.")


def split_styles(text: str, plugins: Sequence[str] = (), proxies: str = "") -> list[str]:
    """``flannel,calico`` apart, each with each of the ``proxies``. Raises UserError for an unknown style or proxy, so
    that nothing is built in vain."""
    from emulator.cni.styles import every_mode, load_style, settle, style_key, with_proxy
    from emulator.errors import UserError

    wanted = every_mode() if text == "all" else [part.strip() for part in text.split(",") if part.strip()]
    if not wanted:
        raise UserError("--cni names no style")
    modes = [part.strip() for part in proxies.split(",") if part.strip()]
    wanted = [with_proxy(name, mode) for name in wanted for mode in modes or [""]]
    for name in wanted:
        load_style(name)
    chosen = list(dict.fromkeys(settle(name, plugins) for name in wanted))
    keys = [style_key(name) for name in chosen]
    if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
        raise UserError(f"two configurations are called {twice[0]}", hint="give their files different names")
    return chosen
