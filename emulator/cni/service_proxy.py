"""Which service proxy a lab has, and from when on.

A proxy that the user names works from the start. The style's natural one begins with the lab's first Service: labs
that have none keep the rules of their CNI alone, and never load this. The ConfigMap ``kube-system/kube-proxy`` has a
word in both cases: settings, and the mode where the user names none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emulator.cluster.model import Cluster, Topology
from emulator.cni.style import Style
from emulator.cni.styles import split_proxy
from emulator.errors import Unsupported, UserError
from emulator.proxy import config
from emulator.proxy.model import KUBE_PROXY_MODES, Proxy, ProxyMode, ProxySettings
from emulator.proxy.modes import load_proxy

Missing = Callable[[Sequence[str]], Sequence[str]]


class Beside:
    """The service proxy beside a lab's CNI. ``spec`` is the style as ``--cni`` spells it, with or without a proxy.

    ``missing`` tells which of some features the kernel lacks; without it every mode counts as possible, for plans that
    are only looked at. Raises Unsupported for a named mode that is not possible, UserError for one of another system's.
    """

    def __init__(self, spec: str, style: Style, topology: Topology, missing: Missing = lambda _names: ()) -> None:
        self._default = ProxySettings(pod_cidrs=style.pod_traffic(topology), service_cidrs=topology.service_cidrs)
        self._style = style
        self._missing = missing
        self._named = split_proxy(spec)[1]
        # What kube-proxy does goes with every style. kube-router's own takes what it needs to know from kube-router.
        if self._named not in (None, "none", *KUBE_PROXY_MODES, *style.proxies):
            raise UserError(
                f"{self._named}'s service proxy runs with --cni {self._named} only, not with {style.name}",
                hint=f"beside {style.name} kube-proxy does the work: --proxy {', '.join(KUBE_PROXY_MODES)}",
            )
        self._loaded: dict[tuple[ProxyMode | None, ProxySettings], tuple[Proxy | None, str]] = {}
        self._told = config.Told(None, self._default)
        self._objects: tuple[object, ...] = ()
        self._instead = ""
        if self._named is not None:
            self._proxy(self._named, self._default)

    @property
    def named(self) -> bool:
        """Whether the user chose the mode."""
        return self._named is not None

    @property
    def settings(self) -> ProxySettings:
        """The settings of the cluster that was last planned."""
        return self._told.settings

    @property
    def instead(self) -> str:
        """What does the work of the style's own service proxy where this kernel cannot carry that, for people; empty
        where it can, or nothing was to be done yet."""
        return self._instead

    def when(self, cluster: Cluster) -> Proxy | None:
        """The proxy that plans this cluster: none before the first Service, unless it was named. Raises ManifestError
        for a configuration that is wrong, Unsupported for one that this kernel cannot carry."""
        if self._objects is not cluster.objects:
            self._told = config.read(cluster.objects, self._default)
            self._objects = cluster.objects
        if not self.named and not cluster.services:
            return None
        proxy, self._instead = self._proxy(self._named or self._told.mode, self._told.settings)
        return proxy

    def _proxy(self, mode: ProxyMode | None, settings: ProxySettings) -> tuple[Proxy | None, str]:
        """Made once for a mode and settings: a proxy remembers what it wrote."""
        if (mode, settings) not in self._loaded:
            self._loaded[mode, settings] = self._load(mode, settings)
        return self._loaded[mode, settings]

    def _load(self, mode: ProxyMode | None, settings: ProxySettings) -> tuple[Proxy | None, str]:
        if mode is None:
            return self._natural(settings)
        proxy = load_proxy(mode, settings)
        if proxy is not None and (lacking := self._missing(proxy.requires)):
            raise Unsupported(
                f"{proxy.title} is not possible here: this kernel has no {', '.join(lacking)}",
                hint="`cnilab doctor` lists what is missing; without --proxy a lab takes what this kernel can carry",
                features=tuple(lacking),
            )
        return proxy, ""

    def _natural(self, settings: ProxySettings) -> tuple[Proxy | None, str]:
        reasons: list[str] = []
        for mode in self._style.proxies:
            proxy = load_proxy(mode, settings)
            if proxy is None:
                return None, ""
            if not (lacking := self._missing(proxy.requires)):
                return proxy, f"{'; '.join(reasons)}: {proxy.title} does its work" if reasons else ""
            reasons.append(f"{proxy.title} is not possible here, this kernel has no {', '.join(lacking)}")
        return None, "; ".join([*reasons, "Services do not work in this lab"])
