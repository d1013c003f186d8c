"""Services and their endpoints as Kubernetes objects: what ``get -o yaml`` shows of them, with every default filled in.

Sources: the defaults of ``pkg/apis/core/v1``; k8s.io/endpointslice utils.go for the labels of slices;
``pkg/controller/endpoint`` for the v1 Endpoints objects, which Kubernetes still keeps for Services with a selector.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from emulator.cluster.kubernetes import object_uid
from emulator.cluster.service_spec import HEADLESS_LABEL, MANAGED_BY_LABEL, SERVICE_NAME_LABEL
from emulator.cluster.services import NONE, Endpoint, EndpointPort, EndpointSlice, Service

Object = dict[str, Any]

CONTROLLER = "endpointslice-controller.k8s.io"
MIRRORING_CONTROLLER = "endpointslicemirroring-controller.k8s.io"
ENDPOINTS_MAX = 1000  # pkg/controller/endpoint, maxCapacity: what is more is left out, and said so
_OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
_RESERVED = (SERVICE_NAME_LABEL, MANAGED_BY_LABEL, HEADLESS_LABEL)


def service_object(service: Service, manifest: Object) -> Object:
    """The Service as the API server holds it: ``manifest`` with what it left out, addresses and ports included."""
    spec = {key: value for key, value in (manifest.get("spec") or {}).items() if value is not None}
    external_name = service.type == "ExternalName"
    spec["type"] = service.type
    addresses = [NONE] if service.headless else list(service.cluster_ips)
    if addresses:
        spec |= {"clusterIP": addresses[0], "clusterIPs": addresses}
    if not external_name:
        spec |= {
            "ipFamilies": [f"IPv{family}" for family in service.families],
            "ipFamilyPolicy": service.family_policy,
            "internalTrafficPolicy": service.internal_policy,
        }
    if service.ports:
        spec["ports"] = [_service_port(port) for port in service.ports]
    spec["sessionAffinity"] = "ClientIP" if service.affinity else "None"
    spec.pop("sessionAffinityConfig", None)
    if service.affinity:
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": service.affinity}}
    if service.type in ("NodePort", "LoadBalancer") or (service.external_ips and not external_name):
        spec["externalTrafficPolicy"] = service.external_policy
    if service.type == "LoadBalancer":
        spec["allocateLoadBalancerNodePorts"] = service.allocate_node_ports
    if service.health_port:
        spec["healthCheckNodePort"] = service.health_port
    ingress = [{"ip": one.address, "ipMode": "Proxy" if one.proxy else "VIP"} for one in service.load_balancer]
    return {
        **{key: value for key, value in manifest.items() if key not in ("spec", "status")},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress} if ingress else {}},
    }


def _service_port(port: Any) -> Object:
    named = {"name": port.name} if port.name else {}
    app = {"appProtocol": port.app_protocol} if port.app_protocol else {}
    node = {"nodePort": port.node_port} if port.node_port else {}
    return {**named, "protocol": port.protocol, "port": port.port, "targetPort": port.target, **app, **node}


def slice_object(one: EndpointSlice, service: Service | None) -> Object:
    """A slice of our controllers, owned by its Service. Users' slices are published as they were given."""
    ours = one.made_by_us
    labels = {key: value for key, value in (service.labels if service else {}).items() if key not in _RESERVED}
    if ours and (service is None or not service.cluster_ips):
        labels[HEADLESS_LABEL] = ""
    labels |= {SERVICE_NAME_LABEL: one.service, MANAGED_BY_LABEL: CONTROLLER if ours else MIRRORING_CONTROLLER}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": one.name,
            "namespace": one.namespace,
            "generateName": f"{one.service}-",
            "labels": labels,
            "ownerReferences": [_owner("Service" if ours else "Endpoints", one)],
        },
        "addressType": f"IPv{one.family}",
        "endpoints": [_endpoint(endpoint) for endpoint in one.endpoints],
        "ports": [_port(port) for port in one.ports],
    }


def _owner(kind: str, one: EndpointSlice) -> Object:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "name": one.service,
        "uid": object_uid(kind, one.namespace, one.service),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _port(port: EndpointPort) -> Object:
    app = {"appProtocol": port.app_protocol} if port.app_protocol else {}
    return {"name": port.name, "protocol": port.protocol, "port": port.port, **app}


def _endpoint(endpoint: Endpoint) -> Object:
    made: Object = {
        "addresses": [endpoint.address],
        "conditions": {
            "ready": endpoint.ready,
            "serving": endpoint.serving,
            "terminating": endpoint.terminating,
        },
    }
    if endpoint.hostname:
        made["hostname"] = endpoint.hostname
    if endpoint.node:
        made["nodeName"] = endpoint.node
    if endpoint.pod:
        made["targetRef"] = _target(endpoint.pod)
    if endpoint.zone:
        made["zone"] = endpoint.zone
    hints = {
        **({"forZones": [{"name": name} for name in endpoint.zones]} if endpoint.zones else {}),
        **({"forNodes": [{"name": name} for name in endpoint.nodes]} if endpoint.nodes else {}),
    }
    if hints:
        made["hints"] = hints
    return made


def _target(pod: str) -> Object:
    namespace, _, name = pod.partition("/")
    return {"kind": "Pod", "namespace": namespace, "name": name}


def endpoints_object(service: Service, slices: Iterable[EndpointSlice]) -> Object:
    """The v1 Endpoints object of a Service with selector: its first family, terminating pods left out."""
    family = service.families[0]
    subsets: list[Object] = []
    room = ENDPOINTS_MAX
    total = 0
    for ports, endpoints in _by_ports([one for one in slices if one.made_by_us and one.family == family]).items():
        lasting = [one for one in endpoints if service.publish_not_ready or not one.terminating]
        total += len(lasting)
        some = lasting[:room]
        room -= len(some)
        subset: Object = {}
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            if found := [_address(one) for one in some if one.ready is ready]:
                subset[field] = found
        if subset:
            if ports:
                subset["ports"] = [_endpoints_port(port) for port in ports]
            subsets.append(subset)
    labels = {key: value for key, value in service.labels.items() if key != HEADLESS_LABEL}
    labels["endpoints.kubernetes.io/managed-by"] = "endpoint-controller"
    if not service.cluster_ips:
        labels[HEADLESS_LABEL] = ""
    metadata: Object = {"name": service.name, "namespace": service.namespace, "labels": labels}
    if total > ENDPOINTS_MAX:
        metadata["annotations"] = {_OVER_CAPACITY: "truncated"}
    made: Object = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata}
    return {**made, "subsets": subsets} if subsets else made


def _by_ports(slices: Sequence[EndpointSlice]) -> dict[tuple[EndpointPort, ...], list[Endpoint]]:
    found: dict[tuple[EndpointPort, ...], list[Endpoint]] = {}
    for one in slices:
        if one.endpoints:
            found.setdefault(one.ports, []).extend(one.endpoints)
    return found


def _endpoints_port(port: EndpointPort) -> Object:
    made = _port(port)
    return made if port.name else {key: value for key, value in made.items() if key != "name"}


def _address(endpoint: Endpoint) -> Object:
    made: Object = {"ip": endpoint.address}
    if endpoint.hostname:
        made["hostname"] = endpoint.hostname
    if endpoint.node:
        made["nodeName"] = endpoint.node
    if endpoint.pod:
        made["targetRef"] = _target(endpoint.pod)
    return made
