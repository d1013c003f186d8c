"""From Service manifests to :class:`~emulator.cluster.services.Service` records: defaults, families, allocation.

What the API server does between a valid object and the stored one: ``pkg/apis/core/v1/defaults.go``,
``pkg/registry/core/service`` (strategy.go: what an update carries over; storage/alloc.go: families, addresses, ports)
and the update rules of ``pkg/apis/core/validation``. Unlike there, Services of one change that name their address or
port get it before those that leave the choice to us, whatever their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import msgspec

from emulator.cluster import validation
from emulator.cluster.service_allocation import Allocator, Refused, family_of
from emulator.cluster.service_spec import PortSpec, ServiceStatus, service_spec
from emulator.cluster.services import AFFINITY_SECONDS, Ingress, Service, ServicePort
from emulator.errors import ManifestError, Problem

Object = dict[str, Any]
Family = Literal[4, 6]

_FAMILY: dict[str, Family] = {"IPv4": 4, "IPv6": 6}
SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"


class Held(NamedTuple):
    """A Service manifest and the record that was made of it."""

    manifest: Object
    record: Service


def service_records(
    manifests: Sequence[Object], cidrs: tuple[str, ...], previous: Sequence[Held] = ()
) -> tuple[Service, ...]:
    """The records of Service manifests, in their order.

    ``previous`` are those of before, made with the same ``cidrs``: a Service keeps its addresses and ports, and one
    that did not change its record. Raises ManifestError with everything that the API server would refuse.
    """
    by_id = {id(held.manifest): held.record for held in previous}
    found: list[Service | None] = [by_id.get(id(manifest)) for manifest in manifests]
    if None in found:
        return _resolved(manifests, found, cidrs, {held.record.key: held for held in previous})
    return cast("tuple[Service, ...]", tuple(found))


def _resolved(
    manifests: Sequence[Object], found: list[Service | None], cidrs: tuple[str, ...], before: dict[str, Held]
) -> tuple[Service, ...]:
    allocator = Allocator(cidrs)
    problems: list[Problem] = []
    drafts: dict[int, _Draft] = {}
    for index, manifest in enumerate(manifests):
        record = found[index]
        if record is None:
            key = _key(manifest)
            held = before.get(key)
            if held is not None and held.manifest == manifest:
                record = found[index] = held.record
            else:
                drafts[index] = _Draft(manifest, key, held)
        if record is not None:
            allocator.keep(record.key, record.cluster_ips, record.allocated_ports)
    for draft in drafts.values():
        draft.keep(allocator)
    # What is asked for by name comes first: of two Services in one change, the one that can move makes room
    for step in (_Draft.families, _Draft.claim, _Draft.fill):
        for draft in drafts.values():
            try:
                if not draft.faults:
                    step(draft, allocator)
            except Refused as error:
                draft.faults.append((draft.where, str(error)))
    for draft in drafts.values():
        problems += [Problem("", f"Service {draft.key}", path, reason) for path, reason in draft.faults]
    if problems:
        raise ManifestError(problems)
    return tuple(drafts[index].record() if record is None else record for index, record in enumerate(found))


class _Draft:
    """A Service on its way through the allocators."""

    def __init__(self, manifest: Object, key: str, held: Held | None) -> None:
        self.manifest = manifest
        self.key = key
        self.spec = service_spec(manifest)
        self.old = held.record if held is not None and held.record.type != "ExternalName" else None
        self.faults: list[tuple[str, str]] = []
        self.where = "spec"
        self.policy = self.spec.ip_family_policy or ""
        self.wanted = self.spec.requested
        self.headless = self.spec.headless
        self.family_list: list[Family] = [_FAMILY[name] for name in self.spec.ip_families or ()]
        self.addresses: list[str] = []
        self.ports: list[PortSpec] = list(self.spec.ports or ())
        self.node_ports: list[int] = [port.node_port or 0 for port in self.ports]
        self.health_port = self.spec.health_check_node_port or 0
        if self.old is not None and self.spec.kind != "ExternalName":
            self._carry_over(self.old)

    def _carry_over(self, old: Service) -> None:
        """What an update leaves out stays as it is (strategy.go, patchAllocatedValues)."""
        had = ("None",) if old.headless else old.cluster_ips
        if not self.wanted or (self.wanted == had[:1] and not self.spec.cluster_ips):
            self.wanted = had
            self.headless = old.headless
        if not self.policy:
            self.policy = old.family_policy
        if self.spec.needs_node_ports and old.type in ("NodePort", "LoadBalancer"):
            in_use = {port.node_port for port in old.ports} & set(self.node_ports)
            known = {port.name: port.node_port for port in old.ports}
            for index, port in enumerate(self.ports):
                number = known.get(port.name or "", 0)
                if not self.node_ports[index] and number not in in_use:
                    self.node_ports[index] = number
        if self.spec.needs_health_port and old.health_port:
            if self.health_port and self.health_port != old.health_port:
                self.faults.append(("spec.healthCheckNodePort", validation.forbidden("field is immutable")))
            self.health_port = self.health_port or old.health_port
        self._check_change(old)

    def _check_change(self, old: Service) -> None:
        """validateUpgradeDowngradeClusterIPs, ...IPFamilies and validateLoadBalancerClassField."""
        if not (old.headless and self.headless):
            had = ("None",) if old.headless else old.cluster_ips
            if self.wanted[:1] != had[:1]:
                reason = validation.invalid(list(self.wanted), "may not change once set")
                self.faults.append(("spec.clusterIPs[0]", reason))
            elif len(had) == len(self.wanted) > 1 and self.wanted[1] != had[1]:
                reason = validation.invalid(list(self.wanted), "may not change once set")
                self.faults.append(("spec.clusterIPs[1]", reason))
            elif len(had) > len(self.wanted) and self.policy != SINGLE:
                reason = "must be set to 'SingleStack' when releasing the secondary clusterIP"
                self.faults.append(("spec.ipFamilyPolicy", validation.invalid(self.policy, reason)))
        if not self.headless and not old.headless:
            if self.family_list and self.family_list[0] != old.families[0]:
                shown = list(self.spec.ip_families or ())
                self.faults.append(("spec.ipFamilies[0]", validation.invalid(shown, "may not change once set")))
            elif self.family_list and len(self.family_list) < len(old.families) and self.policy != SINGLE:
                reason = "must be set to 'SingleStack' when releasing the secondary ipFamily"
                self.faults.append(("spec.ipFamilyPolicy", validation.invalid(self.policy, reason)))
        if self.policy == SINGLE and len(old.families) == 2 and not old.headless:
            # Going back to one family: what still names two of them is what the Service had
            self.wanted = self.wanted[:1] if self.wanted == old.cluster_ips else self.wanted
            self.family_list = self.family_list[:1] if tuple(self.family_list) == old.families else self.family_list
        if not self.family_list and not self.headless and old.families:
            self.family_list = list(old.families[:1] if self.policy == SINGLE else old.families)
        both = old.type == self.spec.kind == "LoadBalancer"
        if both and (self.spec.load_balancer_class or "") != old.load_balancer_class:
            reason = validation.invalid(self.spec.load_balancer_class, "may not change once set")
            self.faults.append(("spec.loadBalancerClass", reason))

    def keep(self, allocator: Allocator) -> None:
        """Hold on to what the Service has and still wants, so that no other gets it."""
        if self.old is None or self.faults:
            return
        addresses = tuple(text for text in self.old.cluster_ips if text in self.wanted)
        ports = {*self.node_ports, self.health_port} & {*self.old.allocated_ports}
        allocator.keep(self.key, addresses, tuple(ports))

    def families(self, allocator: Allocator) -> None:
        """alloc.go, initIPFamilyFields."""
        spec, there = self.spec, allocator.families
        if spec.kind == "ExternalName":
            return
        selectorless = self.headless and not spec.selector
        self.policy = self.policy or (REQUIRE if selectorless else SINGLE)
        addresses = () if self.headless else self.wanted
        if self.policy == SINGLE:
            for what, number in (("cluster IPs", len(addresses)), ("IP families", len(self.family_list))):
                if number == 2:
                    reason = f"must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                    self.faults.append(("spec.ipFamilyPolicy", validation.invalid(self.policy, reason)))
        for index, text in enumerate(addresses[len(self.family_list) :], start=len(self.family_list)):
            family = cast("Family", family_of(text))
            if family not in there:
                reason = validation.invalid(list(addresses), f"IPv{family} is not configured on this cluster")
                self.faults.append((f"spec.clusterIPs[{index}]", reason))
            self.family_list.append(family)
        if self.faults:
            return
        default = cast("Family", there[0])
        if selectorless:
            self.family_list = self.family_list or [default]
            if len(self.family_list) < 2 and self.policy != SINGLE:
                self.family_list.append(_other(self.family_list[0]))
            return
        if self.policy == REQUIRE and len(there) < 2:
            reason = validation.invalid(self.policy, "this cluster is not configured for dual-stack services")
            self.faults.append(("spec.ipFamilyPolicy", reason))
        for index, family in enumerate(self.family_list):
            if family not in there:
                reason = validation.invalid(f"IPv{family}", "not configured on this cluster")
                self.faults.append((f"spec.ipFamilies[{index}]", reason))
        self.family_list = self.family_list or [default]
        if self.policy != SINGLE and len(self.family_list) == 1 and len(there) == 2:
            self.family_list.append(_other(self.family_list[0]))

    def claim(self, allocator: Allocator) -> None:
        """The addresses and ports that the Service names."""
        if self.spec.kind == "ExternalName":
            return
        if not self.headless:
            self.where = "spec.clusterIPs"
            for family, text in zip(self.family_list, self.wanted, strict=False):
                try:
                    self.addresses.append(allocator.claim(self.key, family, text))
                except Refused as error:
                    reason = validation.invalid(list(self.wanted), f"failed to allocate IP {text}: {error}")
                    self.faults.append((self.where, reason))
        if self.spec.needs_node_ports:
            for index, number in enumerate(self.node_ports):
                if number:
                    self._claim_port(allocator, number, f"spec.ports[{index}].nodePort")
        if self.spec.needs_health_port and self.health_port:
            if self.health_port in self.node_ports:
                reason = validation.invalid(self.health_port, "provided port is already allocated")
                self.faults.append(("spec.healthCheckNodePort", reason))
            else:
                self._claim_port(allocator, self.health_port, "spec.healthCheckNodePort")

    def _claim_port(self, allocator: Allocator, number: int, path: str) -> None:
        try:
            allocator.claim_port(self.key, number)
        except Refused as error:
            self.faults.append((path, validation.invalid(number, str(error))))

    def fill(self, allocator: Allocator) -> None:
        """The addresses and ports that it leaves to us."""
        if self.spec.kind == "ExternalName":
            return
        if not self.headless:
            self.where = "spec.clusterIPs"
            for family in self.family_list[len(self.addresses) :]:
                self.addresses.append(allocator.address(self.key, family))
        self.where = "spec.ports"
        if self.spec.needs_node_ports and self.allocates:
            # One port number of several protocols gets one node port (initNodePorts)
            chosen = {port.port: number for port, number in zip(self.ports, self.node_ports, strict=True) if number}
            for index, port in enumerate(self.ports):
                if not self.node_ports[index]:
                    if port.port not in chosen:
                        chosen[port.port] = allocator.port(self.key, f"{port.port}")
                    self.node_ports[index] = chosen[port.port]
        self.where = "spec.healthCheckNodePort"
        if self.spec.needs_health_port and not self.health_port:
            self.health_port = allocator.port(self.key, "health")

    @property
    def allocates(self) -> bool:
        return self.spec.kind != "LoadBalancer" or self.spec.allocate_load_balancer_node_ports is not False

    def record(self) -> Service:
        """The finished record."""
        spec, metadata = self.spec, self.manifest["metadata"]
        config = spec.session_affinity_config
        seconds = config.client_ip.timeout_seconds if config is not None and config.client_ip is not None else None
        external_name = spec.kind == "ExternalName"
        return Service(
            namespace=metadata.get("namespace") or "default",
            name=metadata["name"],
            type=cast("Any", spec.kind),
            families=tuple(self.family_list),
            cluster_ips=tuple(self.addresses),
            headless=self.headless and not external_name,
            selector={key: value or "" for key, value in (spec.selector or {}).items()},
            selects=bool(spec.selector) and not external_name,
            ports=tuple(map(self._port, self.ports, self.node_ports)),
            affinity=(AFFINITY_SECONDS if seconds is None else seconds) if spec.session_affinity == "ClientIP" else 0,
            internal_policy=cast("Any", spec.internal_traffic_policy or "Cluster"),
            external_policy=cast("Any", (spec.external and spec.external_traffic_policy) or "Cluster"),
            external_ips=tuple(_plain(text) for text in spec.external_ips or ()),
            load_balancer=_ingress(self.manifest) if spec.kind == "LoadBalancer" else (),
            load_balancer_class=spec.load_balancer_class or "",
            load_balancer_ip=spec.load_balancer_ip or "",
            source_ranges=tuple(text.strip() for text in spec.load_balancer_source_ranges or ()),
            health_port=self.health_port if spec.needs_health_port else 0,
            publish_not_ready=bool(spec.publish_not_ready_addresses),
            distribution=cast("Any", spec.traffic_distribution or ""),
            external_name=(spec.external_name or "") if external_name else "",
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
            family_policy=cast("Any", "" if external_name else self.policy),
            allocate_node_ports=self.allocates,
        )

    def _port(self, port: PortSpec, number: int) -> ServicePort:
        return ServicePort(
            name=port.name or "",
            protocol=cast("Any", port.protocol or "TCP"),
            port=port.port,
            target=port.target_port or port.port,
            node_port=number if self.spec.needs_node_ports else 0,
            app_protocol=port.app_protocol or "",
        )


def carried_over(thing: Object, held: Object) -> Object:
    """A Service on its way to replace the completed object ``held``, less what ``held`` had for its type only and
    ``thing`` repeats unchanged though its own type has no use for it (strategy.go, dropTypeDependentFields).

    So a change of ``type`` alone, sent as a patch, is not refused for the node ports that the object still names.
    Nothing is checked here; what is no Service comes back as it is.
    """
    try:
        new, old = service_spec(thing), service_spec(held)
    except (msgspec.ValidationError, AttributeError):
        return thing
    spec = dict(thing.get("spec") or {})
    if old.kind != "ExternalName" and new.kind == "ExternalName":
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            _drop_same(spec, held["spec"], field)
    if old.needs_node_ports and not new.needs_node_ports:
        numbers = [port.node_port for port in old.ports or ()]
        if [port.node_port for port in new.ports or ()] == numbers:
            ports = spec.get("ports") or ()
            spec["ports"] = [{name: value for name, value in port.items() if name != "nodePort"} for port in ports]
    if old.needs_health_port and not new.needs_health_port:
        _drop_same(spec, held["spec"], "healthCheckNodePort")
    if old.kind == "LoadBalancer" and new.kind != "LoadBalancer":
        for field in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
            _drop_same(spec, held["spec"], field)
    if old.external and not new.external:
        _drop_same(spec, held["spec"], "externalTrafficPolicy")
    return {**thing, "spec": spec}


def _drop_same(spec: Object, old: Object, field: str) -> None:
    if field in spec and spec[field] == old.get(field):
        del spec[field]


def _ingress(manifest: Object) -> tuple[Ingress, ...]:
    status = msgspec.convert(manifest.get("status") or {}, ServiceStatus)
    given = status.load_balancer.ingress if status.load_balancer is not None else None
    return tuple(Ingress(_plain(one.ip), proxy=one.ip_mode == "Proxy") for one in given or () if one.ip)


def _plain(text: str) -> str:
    return str(validation.parse_address(text))


def _other(family: Family) -> Family:
    return 6 if family == 4 else 4


def _key(manifest: Object) -> str:
    return f"{manifest['metadata'].get('namespace') or 'default'}/{manifest['metadata']['name']}"
