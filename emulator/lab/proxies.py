"""Which service proxy a lab has, and from when on.

A proxy that the user names works from the start. The style's natural one begins with the lab's first Service: labs
that have none keep the rules of their CNI alone, and never load this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emulator.cluster.model import Cluster, Topology
from emulator.cni.style import Style
from emulator.cni.styles import split_proxy
from emulator.errors import Unsupported
from emulator.proxy.model import Proxy, ProxySettings
from emulator.proxy.modes import load_proxy

Missing = Callable[[Sequence[str]], Sequence[str]]


class Beside:
    """The service proxy beside a lab's CNI. ``spec`` is the style as ``--cni`` spells it, with or without a proxy.

    ``missing`` tells which of some features the kernel lacks; without it every mode counts as possible, for plans that
    are only looked at. Raises Unsupported for a named mode that is not possible.
    """

    def __init__(self, spec: str, style: Style, topology: Topology, missing: Missing = lambda _names: ()) -> None:
        self._settings = ProxySettings(pod_cidrs=style.pod_traffic(topology), service_cidrs=topology.service_cidrs)
        self._style = style
        self._missing = missing
        self._found: Proxy | None = None
        self._looked = False
        self._instead = ""
        _, named = split_proxy(spec)
        self.named = named is not None
        if named is not None:
            self._looked, self._found = True, load_proxy(named, self._settings)
            if self._found is not None and (lacking := missing(self._found.requires)):
                raise Unsupported(
                    f"{self._found.title} is not possible here: this kernel has no {', '.join(lacking)}",
                    hint="`cnilab doctor` lists what is missing; --proxy iptables works everywhere",
                    features=tuple(lacking),
                )

    @property
    def instead(self) -> str:
        """What does the work of the style's own service proxy where this kernel cannot carry that, for people; empty
        where it can, or nothing was to be done yet."""
        return self._instead

    def when(self, cluster: Cluster) -> Proxy | None:
        """The proxy that plans this cluster: none before the first Service, unless it was named."""
        if not self.named and not cluster.services:
            return None
        if not self._looked:
            self._looked = True
            self._found = self._natural()
        return self._found

    def _natural(self) -> Proxy | None:
        reasons: list[str] = []
        for mode in self._style.proxies:
            proxy = load_proxy(mode, self._settings)
            if proxy is None:
                return None
            if not (lacking := self._missing(proxy.requires)):
                self._instead = f"{'; '.join(reasons)}: {proxy.title} does its work" if reasons else ""
                return proxy
            reasons.append(f"{proxy.title} is not possible here, this kernel has no {', '.join(lacking)}")
        self._instead = "; ".join([*reasons, "Services do not work in this lab"])
        return None
