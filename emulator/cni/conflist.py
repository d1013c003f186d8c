"""Any CNI plugin chain: the lab is the container runtime, and real plugin binaries do the wiring.

::

    --cni conflist=10-my.conflist      pod namespace is made, empty
                                       │  in the node's own network and mount namespace, for each plugin in order:
                                       ▼  stdin: its entry + name, cniVersion, prevResult, runtimeConfig
                                       ADD bridge ─▶ ADD portmap ─▶ ...   result: the pod's addresses

What there is then in nodes and pods is the plugins' doing; the plan holds only the attachments. Nothing else is
there either: no routes between nodes unless a plugin makes some.

Sources: containernetworking/cni SPEC.md and CONVENTIONS.md; containerd internal/cri/server/sandbox_run.go (CNI_ARGS,
capability arguments), Kubernetes pkg/util/bandwidth (annotations).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from emulator.cluster.ipam import Ipam
from emulator.cluster.model import Cluster, Node, Pod, Topology
from emulator.cluster.plugin_addresses import PluginAddresses
from emulator.cni.netconf import Network, as_text, at_node, load_network
from emulator.cni.style import Plain
from emulator.cni.wiring import pod_namespace
from emulator.errors import UserError
from emulator.plan.addressing import families_of
from emulator.plan.model import AnyObject, CniAttachment, File, Sysctl

RUNTIME = "container runtime"
FOLDERS = ("/opt/cni/bin", "/usr/lib/cni")  # upstream's, and Debian's
BETWEEN = ";"  # of the file and the folders of plugins: conflist=FILE;FOLDER:FOLDER

# Kubernetes pkg/util/bandwidth/utils.go: what the annotations may hold, in bit/s
BANDWIDTH_LEAST, BANDWIDTH_MOST = 10**3, 10**15
BURST = 2**32 - 1  # bit; containerd knows no burst and offers math.MaxUint32
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"  # the capability under which containerd offers them

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kMGTPE]|[KMGTPE]i|m)?")
_UNITS = {"": 1.0, "m": 1e-3, **{unit: 1000.0 ** (n + 1) for n, unit in enumerate("kMGTPE")}}
_UNITS |= {f"{unit}i": 1024.0 ** (n + 1) for n, unit in enumerate("KMGTPE")}


def load(argument: str) -> Conflist:
    """The style for ``FILE`` or ``FILE;FOLDER:FOLDER``. Raises NotFound, InputError."""
    path, _, folders = argument.partition(BETWEEN)
    if not path:
        raise UserError(
            "conflist needs a CNI configuration: --cni conflist=FILE", hint="examples are in scenarios/conflist/"
        )
    file = os.path.basename(path)
    return Conflist(
        mode=mode_of(argument),
        network=load_network(path),
        file=file,
        plugins=tuple(os.path.abspath(folder) for folder in folders.split(":") if folder) or FOLDERS,
    )


def mode_of(argument: str) -> str:
    """What the style is called after: the file's name without its ending."""
    stem = os.path.splitext(os.path.basename(argument.partition(BETWEEN)[0]))[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip(".-") or "network"


def settled(argument: str, folders: tuple[str, ...] = ()) -> str:
    """The argument with absolute paths; ``folders`` are those of the plugins unless it names some."""
    path, _, given = argument.partition(BETWEEN)
    chosen = [folder for folder in given.split(":") if folder] or list(folders)
    if unusable := [folder for folder in chosen if ":" in folder or BETWEEN in folder]:
        raise UserError(f"a folder of CNI plugins must not have {':'!r} or {BETWEEN!r} in its name: {unusable[0]}")
    text = os.path.abspath(path) if path else ""
    return text + (BETWEEN + ":".join(os.path.abspath(folder) for folder in chosen) if chosen else "")


@dataclass(frozen=True)
class Conflist(Plain):
    """The plugins of one configuration list. ``file`` is its name under /etc/cni/net.d; ``plugins`` the folders with
    the binaries."""

    mode: str
    network: Network
    file: str
    plugins: tuple[str, ...]
    name: str = "conflist"

    @property
    def title(self) -> str:
        return f"{self.network.name} · {' + '.join(plugin['type'] for plugin in self.network.plugins)}"

    @property
    def unpoliced(self) -> str:
        return "CNI plugins are told of pods only"

    @property
    def requires(self) -> tuple[str, ...]:
        return ("veth", "bridge", "bridge-nf")

    def ipam(self, topology: Topology) -> Ipam:
        """None of ours: addresses are those that the plugins report."""
        return PluginAddresses(topology.pod_cidrs)

    def check(self, cluster: Cluster) -> None:
        for pod in cluster.pods:
            _bandwidth(pod)

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        for family in families_of(cluster.topology.pod_cidrs):
            program = "iptables" if family == 4 else "ip6tables"
            yield Sysctl(
                ns=node.ns,
                name=f"net/bridge/bridge-nf-call-{program}",
                value="1",
                component="kubelet requirement",
                why=f"frames between pods on one bridge pass {program}: Services and host ports work on one node too",
            )
        yield File(
            ns=node.ns,
            path=f"/etc/cni/net.d/{self.mode}{os.path.splitext(self.file)[1] or '.conflist'}",
            content=json.dumps(json.loads(self._network(node)), indent=2) + "\n",
            component="the cluster's administrator",
            why="tells the container runtime which plugins wire a pod",
        )

    def pod(self, cluster: Cluster, node: Node, pod: Pod) -> Iterator[AnyObject]:
        yield from pod_namespace(cluster, pod)
        container = container_id(pod)
        yield CniAttachment(
            ns=pod.ns,
            node=node.ns,
            network=self._network(node),
            plugins=self.plugins,
            container=container,
            args=(
                ("IgnoreUnknown", "1"),
                ("K8S_POD_NAMESPACE", pod.namespace),
                ("K8S_POD_NAME", pod.name),
                ("K8S_POD_INFRA_CONTAINER_ID", container),
            ),
            capabilities=json.dumps(_capabilities(pod), separators=(",", ":")),
            component=RUNTIME,
            why=f"the plugins of {self.file} wire the pod; what they make is theirs",
        )

    def _network(self, node: Node) -> str:
        return as_text(at_node(self.network, node.pod_ranges))


def container_id(pod: Pod) -> str:
    """64 hexadecimal digits as containerd's, but the same in every run; another for a pod that replaces one."""
    return hashlib.sha256(f"{pod.key}/{pod.incarnation}".encode()).hexdigest()


def _capabilities(pod: Pod) -> dict[str, Any]:
    """What the runtime has to offer to plugins that ask for it."""
    offered: dict[str, Any] = {}
    mappings = [
        {"hostPort": port.host_port, "containerPort": port.port, "protocol": port.protocol.lower()}
        for container in pod.containers
        for port in container.ports
        if port.host_port
    ]
    if mappings:
        offered["portMappings"] = mappings
    if bandwidth := _bandwidth(pod):
        offered["bandwidth"] = bandwidth
    if pod.annotations:
        offered[ANNOTATIONS] = pod.annotations
    return offered


def _bandwidth(pod: Pod) -> dict[str, int]:
    """The limits that the pod's annotations ask for. Raises UserError."""
    limits: dict[str, int] = {}
    for way in ("ingress", "egress"):
        text = pod.annotations.get(f"kubernetes.io/{way}-bandwidth")
        if text is not None:
            limits |= {f"{way}Rate": _bits(pod, way, text), f"{way}Burst": BURST}
    return limits


def _bits(pod: Pod, way: str, text: str) -> int:
    match = _QUANTITY.fullmatch(text)
    rate = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
    if not BANDWIDTH_LEAST <= rate <= BANDWIDTH_MOST:
        raise UserError(
            f"pod {pod.key}: kubernetes.io/{way}-bandwidth is {text!r}: a quantity of bit/s from 1k to 1P was expected"
        )
    return int(rate)
