"""From topology and Kubernetes objects to the cluster: which pods there are, where, with which addresses.

Pure, and incremental: given the cluster of before, pods that are still wanted keep name, node and
addresses, and records that did not change are the same objects again, so that whoever plans from them
can tell by identity.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_interface
from typing import Any, NamedTuple

import msgspec

from emulator.cluster.ipam import AttachesInterfaces, ConfiguredIpam, Ipam, TakesRequests
from emulator.cluster.kinds import INITIAL_NAMESPACES
from emulator.cluster.manifest_index import Manifests, of_kinds
from emulator.cluster.model import Cluster, Interface, Lifetime, Machine, Node, Pod, ReplicaSet, Topology
from emulator.cluster.podspec import Meta, PodSpec, Template, Workload, containers, dns_config, lifetime
from emulator.cluster.rollout import Population, finished, replica_sets, share
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
    ended: Iterable[str] = (),
    readiness: Mapping[str, bool] | None = None,
    available: Iterable[str] = (),
    down: Iterable[str] = (),
) -> Cluster:
    """The cluster that ``topology`` and ``objects`` (as ``load_manifests`` returns them) describe; one step towards it
    where a rollout takes several: ``Cluster.rolling`` says so.

    ``objects`` may be :class:`Manifests`, which spares looking at each.
    ``ipam`` is changed: pass a copy to be able to go back. With ``previous``, which must have been made
    with the same ``ipam``, pods are kept as far as they are still wanted. Those that are not stay, terminating, if
    they take their time to end. What else has happened, by pods' keys (``namespace/name``):

    ``gone`` were deleted: their owners replace them, a ReplicaSet or DaemonSet under a new name, everything else under
    the same one, and always with newly allocated addresses. ``ended`` are over, whether they were terminating or not.
    ``readiness`` has changed, and ``available`` are those that have been ready for long enough.
    ``down`` are the nodes that are not ready: their pods are no endpoints, and end at once.

    Raises ManifestError for a pod that fits no node and for a Service that the API server would refuse,
    AddressesExhausted when a range is full.
    """
    news = _News(frozenset(gone), frozenset(ended), readiness or {}, frozenset(available), frozenset(down))
    return _Assembly(topology, objects, ipam, previous, news).run()


class _News(NamedTuple):
    """What has happened since the previous cluster; see :func:`assemble`."""

    gone: frozenset[str]
    ended: frozenset[str]
    readiness: Mapping[str, bool]
    available: frozenset[str]
    down: frozenset[str]

    def of(self, pod: Pod) -> Pod:
        """The pod as it is now: the same object if nothing happened to it."""
        ready = self.readiness.get(pod.key, pod.ready)
        at_once = ready and (pod.available or not pod.lifetime.min_ready)
        fit = (ready and pod.key in self.available) or at_once
        if (ready, fit) == (pod.ready, pod.available):
            return pod
        return msgspec.structs.replace(pod, ready=ready, available=fit)


class _Fitted(NamedTuple):
    """A pod that is what its template, and the rest of what it is made of, ask for."""

    template: Template
    labels: dict[str, str]
    extra: dict[str, str] | None
    node: str
    min_ready: int
    pod: Pod


_fitted: dict[str, _Fitted] = {}  # of the last assembly, by key; true of these very objects whatever comes after


class _Assembly:
    """Working state of one assembly."""

    def __init__(
        self,
        topology: Topology,
        objects: Sequence[dict[str, Any]],
        ipam: Ipam,
        previous: Cluster | None,
        news: _News,
    ) -> None:
        self.topology = topology
        self.objects = objects if isinstance(objects, Manifests) else Manifests.following(objects)
        self.ipam = ipam
        self.previous = previous
        self.down = news.down
        self.namespaces = _namespaces(self.objects)
        self.nodes = _nodes(topology, self.objects, ipam, previous)
        self.made = dict(previous.made) if previous is not None else {}
        self.fitted: dict[str, _Fitted] = {}
        self.coined: set[str] = set()  # five characters are few: of 3000 pods, two get the same ones every third time
        self.old: dict[str, Pod] = {}  # those that go on, unless nobody wants them any more
        self.leaving: dict[str, Pod] = {}
        self.before = {pod.key: pod for pod in previous.pods} if previous is not None else {}
        self.old_of_owner: dict[str, list[Pod]] = defaultdict(list)
        self.leaving_of_owner: dict[str, list[Pod]] = defaultdict(list)
        self.replica_sets: list[ReplicaSet] = []
        self.rolling: list[str] = []
        names = {node.name for node in self.nodes}
        for known in previous.pods if previous is not None else ():
            key = known.key
            if key in news.ended or known.node not in names:
                continue
            pod = news.of(known)
            if pod.terminating or key in news.gone:
                self._leave(pod)
            else:
                self.old[key] = pod
                self.old_of_owner[f"{pod.namespace}/{pod.owner}"].append(pod)

    def _leave(self, pod: Pod) -> None:
        """The pod is no longer wanted: it ends now, or terminates if it takes its time for that."""
        if not pod.terminating:
            if not self._lingers(pod):
                return
            pod = msgspec.structs.replace(pod, terminating=True)
        self.leaving[pod.key] = pod
        self.leaving_of_owner[f"{pod.namespace}/{pod.owner}"].append(pod)

    def _lingers(self, pod: Pod) -> bool:
        """Nobody waits for a node that is down, nor does a namespace that is emptied."""
        return pod.grace > 0 and pod.node not in self.down and pod.namespace in self.namespaces

    def run(self) -> Cluster:
        wanted = list(wanted_pods(self.topology, self.objects.named(WORKLOADS), self._deployment))
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
                if pod is not None:
                    kept[key] = pod
                elif (old := self.old.get(key)) is not None and self._lingers(old):
                    self._leave(old)
                elif key not in self.leaving:  # else its predecessor still has the name
                    missing.append((one, name, node))
        for key, pod in self.old.items():
            if key not in kept and key not in taken:
                self._leave(pod)
        self._release(kept)
        # What is about to go makes room for what comes: a node that is full for seconds refuses nothing
        scheduler = Scheduler(self.nodes, kept.values())
        by_name = {node.name: node for node in self.nodes}
        stay = {**self.leaving, **kept}
        pods = [self._readdressed(stay[key], by_name[stay[key].node]) for key in self.before if key in stay]
        for one, name, bound_to in missing:
            spec = one.template.spec or PodSpec()
            pods.append(self._pod(one, name, scheduler.place(one.namespace, name, spec, bound_to)))
        global _fitted
        _fitted = self.fitted
        owners = {one.key for one in wanted}
        cluster = Cluster(
            topology=self.topology,
            nodes=tuple(self._with_ranges(node) for node in self.nodes),
            pods=tuple(pods),
            namespaces=self.namespaces,
            objects=Manifests.following(
                self.objects.others((*WORKLOADS, "Namespace")),
                self.previous.objects if self.previous is not None else None,
            ),
            made={owner: count for owner, count in self.made.items() if owner in owners},
            replica_sets=tuple(self.replica_sets),
            rolling=tuple(dict.fromkeys(self.rolling)),
            target_health=self.previous.target_health if self.previous is not None else {},
        )
        return with_services(cluster, self.previous, down=self.down)

    def _deployment(self, workload: Workload, name: str) -> Sequence[ReplicaSet]:
        """The ReplicaSets of a Deployment after its controller's next step."""
        namespace, deployment = workload.metadata.namespace or "default", workload.metadata.name
        before = [
            one
            for one in (self.previous.replica_sets if self.previous is not None else ())
            if (one.namespace, one.deployment) == (namespace, deployment)
        ]

        def population(replica_set: str) -> Population:
            owner = f"{namespace}/ReplicaSet/{replica_set}"
            fit = sum(map(self._fit, self.old_of_owner.get(owner, ())))
            return Population(fit, len(self.leaving_of_owner.get(owner, ())))

        sets = replica_sets(workload, name, before, population)
        if not workload.spec.paused and not finished(sets, _desired(workload)):
            self.rolling.append(f"{namespace}/Deployment/{deployment}")
        self.replica_sets += sets
        return sets

    def _fit(self, pod: Pod) -> bool:
        return pod.available and pod.node not in self.down

    def _slots(self, one: Wanted, taken: set[str]) -> list[tuple[str, str, Pod | None]]:
        """Each pod that ``one`` wants: its name, the node that it is bound to, its record of before if that fits."""
        if not one.stem:
            if one.revision[0]:
                return self._ordinals(one)
            return [(name, node, self._still_fits(one, name, node)) for name, node in one.names]
        old = self.old_of_owner.get(one.key, [])
        if one.per_node:
            return self._one_per_node(one, old, taken)
        if len(old) > one.replicas:  # what does not work goes first, then what is youngest
            best = sorted(old, key=lambda pod: not self._fit(pod))[: one.replicas]
            old = [pod for pod in old if pod in best]
        slots: list[tuple[str, str, Pod | None]] = [(pod.name, pod.node, pod) for pod in old]
        slots += [(self._new_name(one, taken), "", None) for _ in range(one.replicas - len(slots))]
        return slots

    def _one_per_node(self, one: Wanted, old: Sequence[Pod], taken: set[str]) -> list[tuple[str, str, Pod | None]]:
        """A DaemonSet's pods. A node whose pod terminates gets the next one when that is over; of those with an older
        template, as many are replaced as may be missing at a time (pkg/controller/daemon/update.go)."""
        spec = one.template.spec or PodSpec()
        nodes = [node for node in self.nodes if matches_node(spec, node) and spec.node_name in (None, "", node.name)]
        there = {pod.node: pod for pod in old}
        waiting = {pod.node for pod in self.leaving_of_owner.get(one.key, ())}
        budget = share(one.update.max_unavailable, len(nodes), up=True)
        budget -= sum(1 for node in nodes if node.name not in there or not self._fit(there[node.name]))
        slots: list[tuple[str, str, Pod | None]] = []
        for node in nodes:
            pod = there.get(node.name)
            if pod is None:
                if node.name not in waiting:
                    slots.append((self._new_name(one, taken), node.name, None))
                continue
            if _same_revision(one, pod) or one.update.on_delete:
                slots.append((pod.name, node.name, pod))
                continue
            self.rolling.append(one.key)
            if self._fit(pod):
                if budget <= 0:
                    slots.append((pod.name, node.name, pod))
                    continue
                budget -= 1
            if not self._lingers(pod):
                slots.append((self._new_name(one, taken), node.name, None))
        return slots

    def _ordinals(self, one: Wanted) -> list[tuple[str, str, Pod | None]]:
        """A StatefulSet's pods: made in order, each once those before it are ready, and of those with an older template
        the last one replaced if all is well (pkg/controller/statefulset/stateful_set_control.go)."""
        there = {pod.name: pod for pod in self.old_of_owner.get(one.key, ())}
        leaving = {pod.name for pod in self.leaving_of_owner.get(one.key, ())}
        slots: dict[str, Pod | None] = {}
        waiting = False  # for a pod that is not ready, or not there yet
        for name, _ in one.names:
            pod = there.pop(name, None)
            if pod is not None:
                slots[name] = pod
                waiting |= not self._fit(pod)
            elif name in leaving:
                waiting = True
            elif not (waiting and one.update.ordered):
                slots[name] = None
                waiting |= not _lifetime(one).at_once
        surplus = sorted(there.values(), key=lambda pod: -_ordinal(pod.name))
        if surplus and one.update.ordered:  # scaled down: the last one goes, if all is well
            staying = surplus if waiting or leaving else surplus[1:]
            slots |= {pod.name: pod for pod in staying}
            if staying:
                self.rolling.append(one.key)
        self._update_ordinals(one, slots, waiting=waiting)
        return [(name, "", pod) for name, pod in slots.items()]

    def _update_ordinals(self, one: Wanted, slots: dict[str, Pod | None], *, waiting: bool) -> None:
        """Replace the last pod that has an older template."""
        names = [name for name, _ in one.names if _ordinal(name) >= one.update.partition]
        stale = [pod.name for name in names if (pod := slots.get(name)) is not None and not _same_revision(one, pod)]
        if not stale or one.update.on_delete:
            return
        self.rolling.append(one.key)
        if None in slots.values() or (waiting and one.update.ordered):
            return
        for name in reversed(names):
            pod = slots.get(name)
            if name == stale[-1]:
                slots[name] = None
            if pod is None or name == stale[-1] or not self._fit(pod):
                return

    def _new_name(self, one: Wanted, taken: set[str]) -> str:
        while True:
            number = self.made.get(one.key, 0)
            self.made[one.key] = number + 1
            name = one.stem[:GENERATED_MAX] + safe_hash(f"{one.key}#{number}", 5)
            key = f"{one.namespace}/{name}"
            if not any(key in names for names in (taken, self.old, self.leaving, self.coined)):
                self.coined.add(key)
                return name

    def _still_fits(self, one: Wanted, name: str, node: str) -> Pod | None:
        """The pod of before under a fixed name, brought up to date; None if there is none or it must be replaced."""
        pod = self.old.get(f"{one.namespace}/{name}")
        if pod is None or pod.owner != one.owner:
            return None
        fitted = _Fitted(one.template, one.labels, one.labels_by_name.get(name), node, one.min_ready, pod)
        known = _fitted.get(pod.key)
        if known is not None and known.template is one.template and known.pod is pod and known[1:5] == fitted[1:5]:
            self.fitted[pod.key] = known
            return pod
        spec = one.template.spec or PodSpec()
        bound = node or spec.node_name or pod.node
        if bound != pod.node or bool(spec.host_network) != pod.host_network:
            return None
        record = _record(one, name, pod.node, pod.addresses, pod.incarnation)
        record = msgspec.structs.replace(record, ready=pod.ready, available=pod.available)
        if record != pod:
            return record
        self.fitted[pod.key] = fitted
        return pod

    def _release(self, kept: dict[str, Pod]) -> None:
        for pod in self.previous.pods if self.previous is not None else ():
            if pod.key not in kept and pod.key not in self.leaving:
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


def _desired(workload: Workload) -> int:
    return 1 if workload.spec.replicas is None else workload.spec.replicas


def _lifetime(one: Wanted) -> Lifetime:
    return lifetime(one.template.spec or PodSpec(), one.min_ready)


def _ordinal(name: str) -> int:
    return int(name.rpartition("-")[2])


def _record(one: Wanted, name: str, node: str, addresses: tuple[str, ...], incarnation: int) -> Pod:
    spec, meta = one.template.spec or PodSpec(), one.template.metadata or Meta()
    extra = one.labels_by_name.get(name)
    # kubelet's GeneratePodHostNameAndDomain; a StatefulSet's pods are named so that this is their DNS name
    life = lifetime(spec, one.min_ready)
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
        ready=not life.ready_after,
        available=life.at_once,
        lifetime=life,
        named_host=bool(spec.hostname) or one.owner.startswith("StatefulSet/"),
    )


def _namespaces(objects: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Each namespace with its labels; every one has its name as a label, as the API server sees to."""
    namespaces = {name: {"kubernetes.io/metadata.name": name} for name in INITIAL_NAMESPACES}
    for thing in of_kinds(objects, ("v1", "Namespace")):
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
    """The InternalIPs are what the kubelet was told by ``--node-ip``, or else the addresses of the interface with the
    default route; the pods' first family first (pkg/kubelet/nodestatus/setters.go, NodeAddress)."""
    interface = _with_address(machine, machine.node_ips[0]) if machine.node_ips else _of_default_route(machine)
    if machine.node_ips:
        chosen = [_of_interface(machine, address) for address in machine.node_ips]
    else:
        chosen = list(interface.addresses)
    rank = {is_v6: position for position, is_v6 in enumerate(families)}
    order = sorted(chosen, key=lambda text: rank.get(":" in text, len(rank)))
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


def _of_default_route(machine: Machine) -> Interface:
    interfaces = {
        str(via): interface
        for interface in reversed(machine.interfaces)
        for via in [route.via for route in machine.routes if route.destination in ("0.0.0.0/0", "::/0")]
        if any(ip_interface(via).ip in ip_interface(address).network for address in interface.addresses)
    }
    return next(iter(interfaces.values()), machine.interfaces[0])


def _with_address(machine: Machine, address: str) -> Interface:
    return next(
        interface
        for interface in machine.interfaces
        if address in (own.partition("/")[0] for own in interface.addresses)
    )


def _of_interface(machine: Machine, address: str) -> str:
    """The address with its prefix length."""
    return next(own for own in _with_address(machine, address).addresses if own.partition("/")[0] == address)
