"""What the API server checks of a Service, an EndpointSlice and an Endpoints object beyond the types of their fields.

The rules are those of ``pkg/apis/core/validation`` (ValidateService, ValidateEndpoints), ``pkg/apis/discovery/
validation``, and of the node port allocator's range, as far as they look at one object alone. What depends on other
Services, on the cluster's CIDRs or on the object of before is in :mod:`emulator.cluster.service_records`. Each function
yields faults as (field path, reason), in the API server's words. The objects have passed the schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from emulator.cluster import validation
from emulator.cluster.decode import Fault
from emulator.cluster.service_spec import (
    TOPOLOGY_HINTS,
    TOPOLOGY_MODE,
    AddressSpec,
    EndpointPortSpec,
    EndpointSpec,
    EndpointsSpec,
    PortSpec,
    ServiceSpec,
    ServiceStatus,
    SliceSpec,
    service_spec,
)
from emulator.cluster.services import NODE_PORTS
from emulator.cluster.workload_rules import label_faults

PROTOCOLS = ("SCTP", "TCP", "UDP")
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
AFFINITIES = ("ClientIP", "None")
POLICIES = ("Cluster", "Local")
FAMILIES = ("IPv4", "IPv6")
FAMILY_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
DISTRIBUTIONS = ("PreferClose", "PreferSameNode", "PreferSameZone")
AFFINITY_MAX = 86400  # seconds: core.MaxClientIPServiceAffinitySeconds, a day
KUBELET_PORT = 10250
ENDPOINTS_MAX = 1000  # of a slice that a user gives; our controller's own hold 100
ADDRESSES_MAX = 100  # of an endpoint
HINTS_MAX = 8  # of each kind, of an endpoint
PORTS_MAX = 20000  # of a slice (Kubernetes 1.31; 100 before)
ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
IP_MODES = ("Proxy", "VIP")
OUTSIDE_NODE_PORTS = (
    f"provided port is not in the valid range. The range of valid ports is {NODE_PORTS[0]}-{NODE_PORTS[-1]}"
)


def service_faults(thing: dict[str, Any]) -> Iterator[Fault]:
    """The faults of a Service, EndpointSlice or Endpoints object; none for other kinds."""
    match thing["kind"]:
        case "Service":
            yield from _service(thing)
        case "EndpointSlice":
            yield from _slice(msgspec.convert(thing, SliceSpec))
        case "Endpoints":
            yield from _endpoints(msgspec.convert(thing, EndpointsSpec))


def special_address_faults(text: str, path: str) -> Iterator[Fault]:
    """Addresses that no endpoint and no external IP may have (ValidateEndpointIP)."""
    address = validation.parse_address(text)
    if address is None:
        yield path, validation.invalid(text, "must be a valid IP address")
        return
    if address.is_unspecified:
        yield path, validation.invalid(text, f"may not be unspecified ({text})")
    if address.is_loopback:
        yield path, validation.invalid(text, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
    if address.is_link_local:
        yield path, validation.invalid(text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    # Go's IsLinkLocalMulticast: 224.0.0.0/24 and ff?2::/16. Other multicast the API server lets through, "probably a
    # bug" by its own comment; it could never answer, so that it is refused here
    if address.is_multicast:
        reason = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        yield path, validation.invalid(text, reason if _link_local_multicast(address) else "may not be multicast")


def _link_local_multicast(address: validation.IPAddress) -> bool:
    packed = address.packed
    return packed[:3] == b"\xe0\x00\x00" if address.version == 4 else packed[0] == 0xFF and packed[1] & 0x0F == 2


def status_faults(thing: dict[str, Any]) -> Iterator[Fault]:
    """The faults of a Service's status (ValidateLoadBalancerStatus)."""
    try:
        status = msgspec.convert(thing.get("status") or {}, ServiceStatus)
    except msgspec.ValidationError as error:
        yield "status", str(error)
        return
    spec = service_spec(thing)
    for index, one in enumerate((status.load_balancer.ingress if status.load_balancer else None) or ()):
        path = f"status.loadBalancer.ingress[{index}]"
        if spec.kind != "LoadBalancer":
            yield path, validation.forbidden("may only be used when `spec.type` is 'LoadBalancer'")
        if one.ip:
            yield from ((f"{path}.ip", validation.invalid(one.ip, why)) for why in validation.faults_of_address(one.ip))
        if one.ip_mode and one.ip_mode not in IP_MODES:
            yield f"{path}.ipMode", validation.unsupported(one.ip_mode, IP_MODES)
        if one.ip_mode and not one.ip:
            yield f"{path}.ipMode", validation.forbidden("may not be specified when `ip` is not set")
        for why in validation.faults_of_subdomain(one.hostname) if one.hostname else ():
            yield f"{path}.hostname", validation.invalid(one.hostname, why)


def _service(thing: dict[str, Any]) -> Iterator[Fault]:
    spec = service_spec(thing)
    annotations = thing["metadata"].get("annotations") or {}
    if (
        TOPOLOGY_HINTS in annotations
        and annotations.get(TOPOLOGY_MODE, annotations[TOPOLOGY_HINTS]) != (annotations[TOPOLOGY_HINTS])
    ):
        reason = f"must match annotations[{TOPOLOGY_HINTS}] when both are specified"
        yield f"metadata.annotations[{TOPOLOGY_MODE}]", validation.invalid(annotations[TOPOLOGY_MODE], reason)
    kind, ports = spec.kind, spec.ports or []
    if kind not in TYPES:
        yield "spec.type", validation.unsupported(kind, TYPES)
    if not ports and not spec.headless and kind != "ExternalName":
        yield "spec.ports", validation.required()
    yield from _type_faults(spec, kind, ports)
    yield from _port_list_faults(ports, kind)
    yield from label_faults(spec.selector, "spec.selector")
    yield from _affinity_faults(spec)
    if kind != "ExternalName":
        yield from _family_faults(spec)
    for index, text in enumerate(spec.external_ips or ()):
        reasons = validation.faults_of_address(text)
        yield from ((f"spec.externalIPs[{index}]", validation.invalid(text, reason)) for reason in reasons)
        if not reasons:
            yield from special_address_faults(text, f"spec.externalIPs[{index}]")
    yield from _balancer_faults(spec, kind)
    yield from _policy_faults(spec)


def _type_faults(spec: ServiceSpec, kind: str, ports: Sequence[PortSpec]) -> Iterator[Fault]:
    if kind in ("LoadBalancer", "NodePort") and spec.headless:
        yield "spec.clusterIPs[0]", validation.invalid("None", f"may not be set to 'None' for {kind} services")
    if kind == "LoadBalancer":
        for index, port in enumerate(ports):
            if port.port == KUBELET_PORT:
                reason = f"may not expose port {KUBELET_PORT} externally since it is used by kubelet"
                yield f"spec.ports[{index}]", validation.invalid(port.port, reason)
    if kind != "ExternalName":
        return
    families = (("ipFamilies", spec.ip_families), ("ipFamilyPolicy", spec.ip_family_policy))
    for field, value in (("clusterIPs", spec.requested), *families):
        if value:
            yield f"spec.{field}", validation.forbidden("may not be set for ExternalName services")
    # A trailing dot marks the name as fully qualified
    name = (spec.external_name or "").removesuffix(".")
    if not name:
        yield "spec.externalName", validation.required()
    for reason in validation.faults_of_subdomain(name) if name else ():
        yield "spec.externalName", validation.invalid(name, reason)


def _port_list_faults(ports: Sequence[PortSpec], kind: str) -> Iterator[Fault]:
    names: set[str] = set()
    seen: set[tuple[str, int]] = set()
    node_ports: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        path, protocol = f"spec.ports[{index}]", port.protocol or "TCP"
        if port.name:
            yield from _port_name_faults(port.name, names, f"{path}.name")
        elif len(ports) > 1:
            yield f"{path}.name", validation.required()
        for reason in validation.faults_of_port(port.port):
            yield f"{path}.port", validation.invalid(port.port, reason)
        if protocol not in PROTOCOLS:
            yield f"{path}.protocol", validation.unsupported(protocol, PROTOCOLS)
        if target := port.target_port:
            wrong = validation.faults_of_port_name if isinstance(target, str) else validation.faults_of_port
            yield from ((f"{path}.targetPort", validation.invalid(target, why)) for why in wrong(target))  # type: ignore[arg-type]
        if port.app_protocol:
            for reason in validation.faults_of_qualified_name(port.app_protocol):
                yield f"{path}.appProtocol", validation.invalid(port.app_protocol, reason)
        if (protocol, port.port) in seen:
            yield path, validation.duplicate({"protocol": protocol, "port": port.port})
        seen.add((protocol, port.port))
        if port.node_port:
            if kind == "ClusterIP":
                yield f"{path}.nodePort", validation.forbidden("may not be used when `type` is 'ClusterIP'")
            elif port.node_port not in NODE_PORTS:
                yield f"{path}.nodePort", validation.invalid(port.node_port, OUTSIDE_NODE_PORTS)
            if (protocol, port.node_port) in node_ports:
                yield f"{path}.nodePort", validation.duplicate(port.node_port)
            node_ports.add((protocol, port.node_port))


def _port_name_faults(name: str, names: set[str], path: str) -> Iterator[Fault]:
    for reason in validation.faults_of_label_name(name):
        yield path, validation.invalid(name, reason)
    if name in names:
        yield path, validation.duplicate(name)
    names.add(name)


def _affinity_faults(spec: ServiceSpec) -> Iterator[Fault]:
    affinity = spec.session_affinity or "None"
    if affinity not in AFFINITIES:
        yield "spec.sessionAffinity", validation.unsupported(affinity, AFFINITIES)
    config = spec.session_affinity_config
    if affinity != "ClientIP" or config is None or config.client_ip is None:
        return
    seconds = config.client_ip.timeout_seconds
    if seconds is not None and not 0 < seconds <= AFFINITY_MAX:
        reason = f"must be greater than 0 and less than {AFFINITY_MAX}"
        yield "spec.sessionAffinityConfig.clientIP.timeoutSeconds", validation.invalid(seconds, reason)


def _family_faults(spec: ServiceSpec) -> Iterator[Fault]:
    """ValidateServiceClusterIPsRelatedFields."""
    addresses = list(spec.requested)
    if spec.cluster_ips:
        if not spec.cluster_ip:
            yield "spec.clusterIPs", validation.invalid(addresses, "must be empty when `clusterIP` is not specified")
        elif spec.cluster_ip != addresses[0]:
            yield "spec.clusterIPs", validation.invalid(addresses, "first value must match `clusterIP`")
    families = spec.ip_families or []
    for index, family in enumerate(families):
        if family not in FAMILIES:
            yield f"spec.ipFamilies[{index}]", validation.unsupported(family, FAMILIES)
        if family in families[:index]:
            yield f"spec.ipFamilies[{index}]", validation.duplicate(family)
    policy = spec.ip_family_policy
    if policy and policy not in FAMILY_POLICIES:
        yield "spec.ipFamilyPolicy", validation.unsupported(policy, FAMILY_POLICIES)
    wrong = False
    for index, text in enumerate(addresses):
        if index == 0 and text == "None":
            if len(addresses) > 1:
                wrong = True
                yield "spec.clusterIPs", validation.invalid(addresses, "'None' must be the first and only value")
            continue
        for reason in validation.faults_of_address(text):
            wrong = True
            yield f"spec.clusterIPs[{index}]", validation.invalid(text, reason)
    if len(addresses) > 2:
        yield "spec.clusterIPs", validation.invalid(addresses, "may only hold up to 2 values")
    if wrong or spec.headless:
        return
    kinds = ["IPv6" if ":" in text else "IPv4" for text in addresses]
    if len(addresses) > 1 and len(set(kinds)) < len(kinds):
        reason = "may specify no more than one IP for each IP family"
        yield "spec.clusterIPs", validation.invalid(addresses, reason)
    for index, (found, family) in enumerate(zip(kinds, families, strict=False)):
        if family in FAMILIES and family != found:
            reason = f"expected an {family} value as indicated by `ipFamilies[{index}]`"
            yield f"spec.clusterIPs[{index}]", validation.invalid(addresses[index], reason)


def _balancer_faults(spec: ServiceSpec, kind: str) -> Iterator[Fault]:
    only = validation.forbidden("may only be used when `type` is 'LoadBalancer'")
    for index, text in enumerate(spec.load_balancer_source_ranges or ()):
        if kind != "LoadBalancer" and index == 0:
            yield "spec.loadBalancerSourceRanges", only
        for reason in validation.faults_of_cidr(text.strip()):  # blanks around are history's accident, and allowed
            yield f"spec.loadBalancerSourceRanges[{index}]", validation.invalid(text, reason)
    if spec.allocate_load_balancer_node_ports is not None and kind != "LoadBalancer":
        yield "spec.allocateLoadBalancerNodePorts", only
    if spec.load_balancer_class is not None:
        if kind != "LoadBalancer":
            yield "spec.loadBalancerClass", only
        for reason in validation.faults_of_qualified_name(spec.load_balancer_class):
            yield "spec.loadBalancerClass", validation.invalid(spec.load_balancer_class, reason)


def _policy_faults(spec: ServiceSpec) -> Iterator[Fault]:
    outside, inside = spec.external_traffic_policy, spec.internal_traffic_policy
    if outside and not spec.external:
        reason = "may only be set for externally-accessible services"
        yield "spec.externalTrafficPolicy", validation.invalid(outside, reason)
    elif outside and outside not in POLICIES:
        yield "spec.externalTrafficPolicy", validation.unsupported(outside, POLICIES)
    if inside and inside not in POLICIES:
        yield "spec.internalTrafficPolicy", validation.unsupported(inside, POLICIES)
    distribution = spec.traffic_distribution
    if distribution is not None and distribution not in DISTRIBUTIONS:
        yield "spec.trafficDistribution", validation.unsupported(distribution, DISTRIBUTIONS)
    health = spec.health_check_node_port
    if health and not spec.needs_health_port:
        reason = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        yield "spec.healthCheckNodePort", validation.invalid(health, reason)
    elif health:
        for reason in validation.faults_of_port(health):
            yield "spec.healthCheckNodePort", validation.invalid(health, reason)
        if health not in NODE_PORTS:
            yield "spec.healthCheckNodePort", validation.invalid(health, OUTSIDE_NODE_PORTS)


def _slice(spec: SliceSpec) -> Iterator[Fault]:
    if spec.address_type not in ADDRESS_TYPES:
        yield (
            "addressType",
            (validation.unsupported(spec.address_type, ADDRESS_TYPES) if spec.address_type else validation.required()),
        )
    if len(spec.endpoints or ()) > ENDPOINTS_MAX:
        yield "endpoints", _too_many(len(spec.endpoints or ()), ENDPOINTS_MAX)
        return
    for index, endpoint in enumerate(spec.endpoints or ()):
        yield from _endpoint(endpoint, spec.address_type, f"endpoints[{index}]")
    if len(spec.ports or ()) > PORTS_MAX:
        yield "ports", _too_many(len(spec.ports or ()), PORTS_MAX)
        return
    yield from _endpoint_ports(spec.ports or (), "ports", name_required=False)


def _endpoint(endpoint: EndpointSpec, kind: str, path: str) -> Iterator[Fault]:
    if not endpoint.addresses:
        yield f"{path}.addresses", validation.required("must contain at least 1 address")
    if len(endpoint.addresses) > ADDRESSES_MAX:
        yield f"{path}.addresses", _too_many(len(endpoint.addresses), ADDRESSES_MAX)
    for index, text in enumerate(endpoint.addresses):
        place = f"{path}.addresses[{index}]"
        if kind == "FQDN":
            yield from ((place, validation.invalid(text, reason)) for reason in validation.faults_of_subdomain(text))
        elif kind in FAMILIES:
            address = validation.parse_address(text)
            if address is None or f"IPv{address.version}" != kind:
                yield place, validation.invalid(text, f"must be a valid {kind} address")
            else:
                yield from special_address_faults(text, place)
    if endpoint.hostname is not None:
        for reason in validation.faults_of_label_name(endpoint.hostname):
            yield f"{path}.hostname", validation.invalid(endpoint.hostname, reason)
    if endpoint.node_name is not None:
        for reason in validation.faults_of_subdomain(endpoint.node_name):
            yield f"{path}.nodeName", validation.invalid(endpoint.node_name, reason)
    if endpoint.hints is not None:
        for field, hints in (("forZones", endpoint.hints.for_zones), ("forNodes", endpoint.hints.for_nodes)):
            yield from _hints([hint.name for hint in hints or ()], f"{path}.hints.{field}")


def _hints(names: Sequence[str], path: str) -> Iterator[Fault]:
    if len(names) > HINTS_MAX:
        yield path, _too_many(len(names), HINTS_MAX)
        return
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"{path}[{index}].name", validation.duplicate(name)
        for reason in validation.faults_of_label_value(name) if path.endswith("forZones") else ():
            yield f"{path}[{index}].name", validation.invalid(name, reason)


def _endpoint_ports(ports: Sequence[EndpointPortSpec], path: str, *, name_required: bool) -> Iterator[Fault]:
    names: set[str] = set()
    for index, port in enumerate(ports):
        place, name = f"{path}[{index}]", port.name or ""
        if name:
            for reason in validation.faults_of_label_name(name):
                yield f"{place}.name", validation.invalid(name, reason)
        elif name_required:
            yield f"{place}.name", validation.required()
        if name in names and (name or not name_required):
            yield f"{place}.name", validation.duplicate(name)
        names.add(name)
        for reason in validation.faults_of_port(port.port) if port.port is not None else ():
            yield f"{place}.port", validation.invalid(port.port, reason)
        if port.protocol is not None and port.protocol not in PROTOCOLS:
            yield f"{place}.protocol", validation.unsupported(port.protocol, PROTOCOLS)
        if port.app_protocol:
            for reason in validation.faults_of_qualified_name(port.app_protocol):
                yield f"{place}.appProtocol", validation.invalid(port.app_protocol, reason)


def _endpoints(spec: EndpointsSpec) -> Iterator[Fault]:
    for number, subset in enumerate(spec.subsets or ()):
        path = f"subsets[{number}]"
        if not subset.addresses and not subset.not_ready_addresses:
            yield path, validation.required("must specify `addresses` or `notReadyAddresses`")
        for field, addresses in (("addresses", subset.addresses), ("notReadyAddresses", subset.not_ready_addresses)):
            for index, address in enumerate(addresses or ()):
                yield from _endpoint_address(address, f"{path}.{field}[{index}]")
        yield from _endpoint_ports(subset.ports or (), f"{path}.ports", name_required=len(subset.ports or ()) > 1)


def _endpoint_address(address: AddressSpec, path: str) -> Iterator[Fault]:
    yield from special_address_faults(address.ip, f"{path}.ip")
    if address.hostname:
        for reason in validation.faults_of_label_name(address.hostname):
            yield f"{path}.hostname", validation.invalid(address.hostname, reason)
    if address.node_name is not None:
        for reason in validation.faults_of_subdomain(address.node_name):
            yield f"{path}.nodeName", validation.invalid(address.node_name, reason)


def _too_many(number: int, limit: int) -> str:
    return f"Too many: {number}: must have at most {limit} items"
