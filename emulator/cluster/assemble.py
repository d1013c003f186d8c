"""From topology and Kubernetes objects to the cluster: which pods there are, where, with which addresses.

Pure, and incremental: given the cluster of before, pods that are still wanted keep name, node and
addresses, and records that did not change are the same objects again, so that whoever plans from them
can tell by identity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import ip_interface
from typing import Any

import msgspec

from emulator.cluster.ipam import AttachesInterfaces, ConfiguredIpam, Ipam, TakesRequests
from emulator.cluster.kinds import INITIAL_NAMESPACES
from emulator.cluster.model import Cluster, Machine, Node, Pod, Topology
from emulator.cluster.podspec import Meta, PodSpec, containers, dns_config
from emulator.cluster.scheduling import Scheduler, matches_node
from emulator.cluster.service_cluster import with_services
from emulator.cluster.validation import LABEL_MAX
from emulator.cluster.workloads import GENERATED_MAX, WORKLOADS, Wanted, safe_hash, wanted_pods
from emulator.errors import ManifestError, Problem


def assemble(
    topology: Topology,
    objects: Sequence[dict[str, Any]],
    ipam: Ipam,
    previous: Cluster | None = None,
    *,
    gone: Iterable[str] = (),
    down: Iterable[str] = (),
) -> Cluster:
    """The cluster that ``topology`` and ``objects`` (as ``load_manifests`` returns them) describe.

    ``ipam`` is changed: pass a copy to be able to go back. With ``previous``, which must have been made
    with the same ``ipam``, pods are kept as far as they are still wanted. ``gone`` are the keys
    (``namespace/name``) of pods that were deleted or died: their owners replace them, a ReplicaSet or
    DaemonSet under a new name, everything else under the same one, and always with newly allocated
    addresses. ``down`` are the nodes that are not ready: their pods are no endpoints.

    Raises ManifestError for a pod that fits no node and for a Service that the API server would refuse,
    AddressesExhausted when a range is full.
    """
    return _Assembly(topology, objects, ipam, previous, frozenset(gone), frozenset(down)).run()


class _Assembly:
    """Working state of one assembly."""

    def __init__(
        self,
        topology: Topology,
        objects: Sequence[dict[str, Any]],
        ipam: Ipam,
        previous: Cluster | None,
        gone: frozenset[str],
        down: frozenset[str],
    ) -> None:
        self.topology = topology
        self.objects = objects
        self.ipam = ipam
        self.previous = previous
        self.down = down
        self.namespaces = _namespaces(objects)
        self.nodes = _nodes(topology, objects, ipam, previous)
        self.made = dict(previous.made) if previous is not None else {}
        self.coined: set[str] = set()  # five characters are few: of 3000 pods, two get the same ones every third time
        self.old: dict[str, Pod] = {}
        self.before = {pod.key: pod for pod in previous.pods} if previous is not None else {}
        self.old_of_owner: dict[str, list[Pod]] = defaultdict(list)
        names = {node.name for node in self.nodes}
        for pod in previous.pods if previous is not None else ():
            if pod.key not in gone and pod.node in names:
                self.old[pod.key] = pod
                self.old_of_owner[f"{pod.namespace}/{pod.owner}"].append(pod)

    def run(self) -> Cluster:
        wanted = list(wanted_pods(self.topology, self.objects))
        for one in wanted:
            if one.namespace not in self.namespaces:
                self._refuse(one, f'namespaces "{one.namespace}" not found')
        kept: dict[str, Pod] = {}
        missing: list[tuple[Wanted, str, str]] = []
        taken: set[str] = set()
        for one in wanted:
            for name, node, pod in self._slots(one, taken):
                key = f"{one.namespace}/{name}"
                if key in taken:
                    self._refuse(one, f'pods "{name}" already exists')
                taken.add(key)
                if pod is None:
                    missing.append((one, name, node))
                else:
                    kept[key] = pod
        self._release(kept)
        scheduler = Scheduler(self.nodes, kept.values())
        pods = [kept[key] for key in self.old if key in kept]
        by_name = {node.name: node for node in self.nodes}
        pods = [self._readdressed(pod, by_name[pod.node]) for pod in pods]
        for one, name, bound_to in missing:
            spec = one.template.spec or PodSpec()
            pods.append(self._pod(one, name, scheduler.place(one.namespace, name, spec, bound_to)))
        owners = {one.key for one in wanted}
        cluster = Cluster(
            topology=self.topology,
            nodes=tuple(self._with_ranges(node) for node in self.nodes),
            pods=tuple(pods),
            namespaces=self.namespaces,
            objects=tuple(thing for thing in self.objects if thing.get("kind") not in (*WORKLOADS, "Namespace")),
            made={owner: count for owner, count in self.made.items() if owner in owners},
        )
        return with_services(cluster, self.previous, down=self.down)

    def _slots(self, one: Wanted, taken: set[str]) -> list[tuple[str, str, Pod | None]]:
        """Each pod that ``one`` wants: its name, the node that it is bound to, its record of before if that fits."""
        if not one.stem:
            return [(name, node, self._still_fits(one, name, node)) for name, node in one.names]
        old = [pod for pod in self.old_of_owner.get(one.key, ()) if _same_revision(one, pod)]
        slots: list[tuple[str, str, Pod | None]] = []
        if one.per_node:
            spec = one.template.spec or PodSpec()
            there = {pod.node: pod for pod in old}
            for node in self.nodes:
                if matches_node(spec, node) and spec.node_name in (None, "", node.name):
                    pod = there.get(node.name)
                    slots.append((pod.name if pod else self._new_name(one, taken), node.name, pod))
            return slots
        slots = [(pod.name, pod.node, pod) for pod in old[: one.replicas]]
        slots += [(self._new_name(one, taken), "", None) for _ in range(one.replicas - len(slots))]
        return slots

    def _new_name(self, one: Wanted, taken: set[str]) -> str:
        while True:
            number = self.made.get(one.key, 0)
            self.made[one.key] = number + 1
            name = one.stem[:GENERATED_MAX] + safe_hash(f"{one.key}#{number}", 5)
            key = f"{one.namespace}/{name}"
            if key not in taken and key not in self.old and key not in self.coined:
                self.coined.add(key)
                return name

    def _still_fits(self, one: Wanted, name: str, node: str) -> Pod | None:
        """The pod of before under a fixed name, brought up to date; None if there is none or it must be replaced."""
        pod = self.old.get(f"{one.namespace}/{name}")
        if pod is None or pod.owner != one.owner or not _same_revision(one, pod):
            return None
        if one.revision[0]:
            return pod
        spec = one.template.spec or PodSpec()
        bound = node or spec.node_name or pod.node
        if bound != pod.node or bool(spec.host_network) != pod.host_network:
            return None
        record = _record(one, name, pod.node, pod.addresses, pod.incarnation)
        return pod if record == pod else record

    def _release(self, kept: dict[str, Pod]) -> None:
        for pod in self.previous.pods if self.previous is not None else ():
            if pod.key not in kept:
                self.ipam.release(pod.key)

    def _readdressed(self, pod: Pod, node: Node) -> Pod:
        addresses = node.addresses if pod.host_network else self.ipam.allocate(pod.node, pod.key)
        return pod if addresses == pod.addresses else msgspec.structs.replace(pod, addresses=addresses)

    def _pod(self, one: Wanted, name: str, node: Node) -> Pod:
        host_network = bool(one.template.spec and one.template.spec.host_network)
        key = f"{one.namespace}/{name}"
        if not host_network and isinstance(self.ipam, TakesRequests):
            self.ipam.request(key, (one.template.metadata or Meta()).annotations or {})
        addresses = node.addresses if host_network else self.ipam.allocate(node.name, key)
        replaced = self.before.get(key)
        return _record(one, name, node.name, addresses, replaced.incarnation + 1 if replaced is not None else 0)

    def _with_ranges(self, node: Node) -> Node:
        ranges = self.ipam.ranges(node.name)
        tunnels = self.ipam.tunnels(node.name) if isinstance(self.ipam, ConfiguredIpam) else {}
        enis = self.ipam.interfaces(node.name) if isinstance(self.ipam, AttachesInterfaces) else ()
        if (ranges, tunnels, enis) == (node.pod_ranges, node.tunnels, node.enis):
            return node
        return msgspec.structs.replace(node, pod_ranges=ranges, tunnels=tunnels, enis=enis)

    @staticmethod
    def _refuse(one: Wanted, reason: str) -> None:
        subject = f"Pod {one.namespace}/{one.names[0][0]}" if not one.owner and one.names else one.owner
        raise ManifestError([Problem("", subject, "", reason)])


def _same_revision(one: Wanted, pod: Pod) -> bool:
    label, value = one.revision
    return not label or pod.labels.get(label) == value


def _record(one: Wanted, name: str, node: str, addresses: tuple[str, ...], incarnation: int) -> Pod:
    spec, meta = one.template.spec or PodSpec(), one.template.metadata or Meta()
    extra = one.labels_by_name.get(name)
    # kubelet's GeneratePodHostNameAndDomain; a StatefulSet's pods are named so that this is their DNS name
    hostname = node if spec.host_network else (spec.hostname or name)[:LABEL_MAX].rstrip("-.")
    return Pod(
        namespace=one.namespace,
        name=name,
        node=node,
        addresses=addresses,
        labels={**one.labels, **extra} if extra else one.labels,
        annotations=meta.annotations or {},
        containers=containers(spec),
        owner=one.owner,
        host_network=bool(spec.host_network),
        service_account=spec.service_account_name or "default",
        hostname=hostname,
        subdomain=spec.subdomain or "",
        restart_policy=spec.restart_policy or "Always",
        dns_policy=spec.dns_policy or "ClusterFirst",
        dns=dns_config(spec),
        incarnation=incarnation,
        named_host=bool(spec.hostname) or one.owner.startswith("StatefulSet/"),
    )


def _namespaces(objects: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Each namespace with its labels; every one has its name as a label, as the API server sees to."""
    namespaces = {name: {"kubernetes.io/metadata.name": name} for name in INITIAL_NAMESPACES}
    for thing in objects:
        if thing.get("kind") == "Namespace":
            name = thing["metadata"]["name"]
            namespaces[name] = {**(thing["metadata"].get("labels") or {}), "kubernetes.io/metadata.name": name}
    return namespaces


def _nodes(topology: Topology, objects: Sequence[dict[str, Any]], ipam: Ipam, previous: Cluster | None) -> list[Node]:
    if previous is not None and previous.topology == topology:
        known = list(previous.nodes)
    else:
        families = [cidr.count(":") > 0 for cidr in topology.pod_cidrs]
        known = [_node(machine, families) for machine in topology.of_kind("node")]
    if isinstance(ipam, ConfiguredIpam):
        ipam.configure(objects, known)
    for node in known:
        ipam.add_node(node.name)
    return known


def _node(machine: Machine, families: list[bool]) -> Node:
    """The InternalIPs are those of the interface with the default route, the pods' first family first."""
    interfaces = {
        str(via): interface
        for interface in reversed(machine.interfaces)
        for via in [route.via for route in machine.routes if route.destination in ("0.0.0.0/0", "::/0")]
        if any(ip_interface(via).ip in ip_interface(address).network for address in interface.addresses)
    }
    interface = next(iter(interfaces.values()), machine.interfaces[0])
    rank = {is_v6: position for position, is_v6 in enumerate(families)}
    order = sorted(interface.addresses, key=lambda text: rank.get(":" in text, len(rank)))
    return Node(
        name=machine.name,
        addresses=tuple(str(ip_interface(text).ip) for text in order),
        device=interface.name,
        mtu=interface.mtu,
        labels=machine.labels,
        subnets=tuple(str(ip_interface(text).network) for text in order),
        asn=machine.asn,
        annotations=machine.annotations,
    )
