"""Which tables Felix uses on a node: ``spec.nftablesMode`` of a FelixConfiguration.

``Enabled`` is nftables, ``Disabled`` is iptables, ``Auto``, the default, is what kube-proxy uses: Felix looks for the
chains of the table ``kube-proxy`` when it starts, and starts again when that changes. A resource named ``default`` is
for all nodes, one named ``node.NAME`` for one of them, whose fields win.

Of the other fields, ``bpfEnabled: true`` is refused, and the rest is not looked at.

Sources: projectcalico/calico felix/dataplane/linux/int_dataplane.go (useNftables), felix/nftables
(KubeProxyNftablesEnabledFn), api/pkg/apis/projectcalico/v3/felixconfig.go and the defaults of its CRD (``Auto``;
earlier releases have ``Disabled``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from emulator.cluster.model import Cluster
from emulator.cluster.validation import forbidden, invalid, unsupported
from emulator.cni.calico_reading import GROUPS
from emulator.errors import ManifestError, Problem
from emulator.proxy import config
from emulator.proxy.model import ProxyMode, ProxySettings

KIND = "FelixConfiguration"
CLUSTER, OF_NODE = "default", "node."
MODES = ("Enabled", "Disabled", "Auto")

NftablesMode = Literal["Enabled", "Disabled", "Auto"]

_latest: list[tuple[object, ProxyMode | None, frozenset[str]]] = []  # of the last cluster: every node asks


def with_nftables(cluster: Cluster, proxy: ProxyMode | None) -> frozenset[str]:
    """The names of the nodes whose Felix uses nftables; ``proxy`` is the mode of kube-proxy where the user named one.

    Raises ManifestError.
    """
    if not (_latest and _latest[0][0] is cluster.objects and _latest[0][1] == proxy):
        _latest[:] = [(cluster.objects, proxy, _read(cluster, proxy))]
    return _latest[0][2]


def _read(cluster: Cluster, proxy: ProxyMode | None) -> frozenset[str]:
    problems: list[Problem] = []
    everywhere: str | None = None
    single: dict[str, str] = {}
    names = [node.name for node in cluster.nodes]
    for obj in _resources(cluster.objects):
        name, spec = obj["metadata"]["name"], obj.get("spec") or {}
        problems += _faults(name, spec, names)
        mode = spec.get("nftablesMode")
        if mode is not None and name == CLUSTER:
            everywhere = mode
        elif mode is not None:
            single[name.removeprefix(OF_NODE)] = mode
    if problems:
        raise ManifestError(problems)
    follows = (proxy or config.read(cluster.objects, ProxySettings()).mode) == "nftables"
    modes = {name: single.get(name, everywhere or "Auto") for name in names}
    return frozenset(name for name, mode in modes.items() if mode == "Enabled" or (mode == "Auto" and follows))


def _resources(objects: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return (obj for obj in objects if obj.get("kind") == KIND and obj.get("apiVersion", "").partition("/")[0] in GROUPS)


def _faults(name: str, spec: object, nodes: Sequence[str]) -> Iterable[Problem]:
    subject = f"{KIND} {name}"
    if name != CLUSTER and name.removeprefix(OF_NODE) not in (nodes if name.startswith(OF_NODE) else ()):
        known = ", ".join([CLUSTER, *(f"{OF_NODE}{node}" for node in nodes)])
        yield Problem("", subject, "metadata.name", invalid(name, f"nobody reads it: the names are {known}"))
    if not isinstance(spec, dict):
        yield Problem("", subject, "spec", invalid(spec, "expected an object"))
        return
    mode = spec.get("nftablesMode")
    if mode is not None and mode not in MODES:
        yield Problem("", subject, "spec.nftablesMode", unsupported(mode, MODES))
    if spec.get("bpfEnabled"):
        yield Problem("", subject, "spec.bpfEnabled", forbidden("the eBPF data plane is not emulated"))
