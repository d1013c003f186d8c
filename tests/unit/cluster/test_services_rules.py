"""What the API server refuses of Services and endpoints, each with its field path and in its words."""

from __future__ import annotations

from typing import Any

import pytest

from emulator.cluster.manifests import validate_objects
from emulator.errors import ManifestError


def service(**spec: Any) -> dict[str, Any]:
    body = {"selector": {"app": "web"}, "ports": [{"port": 80}], **spec}
    body = {key: value for key, value in body.items() if value is not ...}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": body}


def endpoint_slice(addresses: list[str], kind: str = "IPv4", **more: Any) -> dict[str, Any]:
    metadata = {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}
    base = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata}
    return {**base, "addressType": kind, "endpoints": [{"addresses": addresses}], **more}


def old_endpoints(*subsets: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}, "subsets": list(subsets)}


def refusals(thing: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ManifestError) as error:
        validate_objects([thing])
    return [(problem.path, problem.reason) for problem in error.value.problems]


RANGE = "provided port is not in the valid range. The range of valid ports is 30000-32767"
ONLY_BALANCERS = "Forbidden: may only be used when `type` is 'LoadBalancer'"


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        ({"ports": ...}, "spec.ports", "Required value"),
        ({"ports": []}, "spec.ports", "Required value"),
        ({"type": "Balanced"}, "spec.type", 'Unsupported value: "Balanced": supported values: "ClusterIP"'),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port", "must be between 1 and 65535, inclusive"),
        ({"ports": [{"port": 65536}]}, "spec.ports[0].port", "Invalid value: 65536: must be between 1 and 65535"),
        ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "spec.ports[0].protocol", 'Unsupported value: "ICMP"'),
        ({"ports": [{"port": 1, "name": "a"}, {"port": 2}]}, "spec.ports[1].name", "Required value"),
        (
            {"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]},
            "spec.ports[1].name",
            'Duplicate value: "a"',
        ),
        ({"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}, "spec.ports[1]", "Duplicate value: "),
        ({"ports": [{"port": 1, "name": 'a" -j DROP'}]}, "spec.ports[0].name", "a lowercase RFC 1123 label"),
        ({"ports": [{"port": 1, "name": "A"}]}, "spec.ports[0].name", "a lowercase RFC 1123 label"),
        ({"ports": [{"port": 1, "targetPort": "no_name"}]}, "spec.ports[0].targetPort", "must contain only alpha-num"),
        ({"ports": [{"port": 1, "targetPort": "a" * 16}]}, "spec.ports[0].targetPort", "no more than 15 characters"),
        ({"ports": [{"port": 1, "targetPort": 70000}]}, "spec.ports[0].targetPort", "between 1 and 65535"),
        ({"ports": [{"port": 1, "appProtocol": "a b"}]}, "spec.ports[0].appProtocol", "name part must consist of"),
        ({"ports": [{"port": 1, "nodePort": 30000}]}, "spec.ports[0].nodePort", "Forbidden: may not be used when"),
        ({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}, "spec.ports[0].nodePort", RANGE),
        ({"type": "NodePort", "ports": [{"port": 1, "nodePort": 32768}]}, "spec.ports[0].nodePort", RANGE),
        (
            {"type": "NodePort", "ports": [{"port": n, "name": f"p{n}", "nodePort": 30001} for n in (1, 2)]},
            "spec.ports[1].nodePort",
            "Duplicate value: 30001",
        ),
        ({"type": "LoadBalancer", "ports": [{"port": 10250}]}, "spec.ports[0]", "may not expose port 10250 externally"),
        ({"type": "NodePort", "clusterIP": "None"}, "spec.clusterIPs[0]", "may not be set to 'None' for NodePort"),
        ({"type": "LoadBalancer", "clusterIP": "None"}, "spec.clusterIPs[0]", "'None' for LoadBalancer services"),
        ({"clusterIP": "10.96.0.300"}, "spec.clusterIPs[0]", "must be a valid IP address"),
        ({"clusterIPs": ["10.96.0.5"]}, "spec.clusterIPs", "must be empty when `clusterIP` is not specified"),
        ({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.6"]}, "spec.clusterIPs", "first value must match"),
        ({"clusterIP": "None", "clusterIPs": ["None", "fd00::1"]}, "spec.clusterIPs", "'None' must be the first and"),
        (
            {"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "10.96.0.6"]},
            "spec.clusterIPs",
            "may specify no more than one IP for each IP family",
        ),
        (
            {"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00::1", "fd00::2"]},
            "spec.clusterIPs",
            "may only hold up to 2 values",
        ),
        (
            {"clusterIP": "10.96.0.5", "ipFamilies": ["IPv6"]},
            "spec.clusterIPs[0]",
            "expected an IPv6 value as indicated",
        ),
        ({"ipFamilies": ["IPv5"]}, "spec.ipFamilies[0]", 'Unsupported value: "IPv5"'),
        ({"ipFamilies": ["IPv4", "IPv4"]}, "spec.ipFamilies[1]", 'Duplicate value: "IPv4"'),
        ({"ipFamilyPolicy": "Both"}, "spec.ipFamilyPolicy", 'Unsupported value: "Both"'),
        ({"sessionAffinity": "Cookie"}, "spec.sessionAffinity", 'Unsupported value: "Cookie"'),
        *(
            (
                {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}},
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                "must be greater than 0 and less than 86400",
            )
            for seconds in (0, -1, 86401)
        ),
        ({"internalTrafficPolicy": "Near"}, "spec.internalTrafficPolicy", 'Unsupported value: "Near"'),
        ({"externalTrafficPolicy": "Local"}, "spec.externalTrafficPolicy", "only be set for externally-accessible"),
        (
            {"type": "NodePort", "externalTrafficPolicy": "Far"},
            "spec.externalTrafficPolicy",
            'Unsupported value: "Far"',
        ),
        *(
            ({"externalIPs": [address]}, "spec.externalIPs[0]", reason)
            for address, reason in [
                ("127.0.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
                ("::1", "may not be in the loopback range"),
                ("169.254.1.1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
                ("fe80::1", "may not be in the link-local range"),
                ("224.0.0.5", "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
                ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
                ("web", "must be a valid IP address"),
            ]
        ),
        ({"loadBalancerSourceRanges": ["10.0.0.0/8"]}, "spec.loadBalancerSourceRanges", ONLY_BALANCERS),
        (
            {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0"]},
            "spec.loadBalancerSourceRanges[0]",
            "must be a valid CIDR value",
        ),
        ({"allocateLoadBalancerNodePorts": False}, "spec.allocateLoadBalancerNodePorts", ONLY_BALANCERS),
        ({"loadBalancerClass": "a/b"}, "spec.loadBalancerClass", ONLY_BALANCERS),
        ({"type": "LoadBalancer", "loadBalancerClass": "a b"}, "spec.loadBalancerClass", "name part must consist of"),
        (
            {"healthCheckNodePort": 30000},
            "spec.healthCheckNodePort",
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 80},
            "spec.healthCheckNodePort",
            RANGE,
        ),
        ({"trafficDistribution": "PreferFar"}, "spec.trafficDistribution", 'Unsupported value: "PreferFar"'),
        ({"selector": {"-a": "b"}}, "spec.selector", "name part must consist of"),
        ({"type": "ExternalName"}, "spec.externalName", "Required value"),
        ({"type": "ExternalName", "externalName": "a_b"}, "spec.externalName", "a lowercase RFC 1123 subdomain"),
        (
            {"type": "ExternalName", "externalName": "a.example", "clusterIP": "10.96.0.5"},
            "spec.clusterIPs",
            "Forbidden: may not be set for ExternalName services",
        ),
        (
            {"type": "ExternalName", "externalName": "a.example", "ipFamilies": ["IPv4"]},
            "spec.ipFamilies",
            "Forbidden: may not be set for ExternalName services",
        ),
        ({"port": [{"port": 80}]}, "spec.port", "unknown field"),
        ({"ports": [{"port": "80"}]}, "spec.ports[0].port", "expected a whole number"),
    ],
    ids=str,
)
def test_a_service_is_refused(spec: dict[str, Any], path: str, reason: str) -> None:
    found = refusals(service(**spec))
    assert any(where == path and reason in why for where, why in found), found


def test_the_name_of_a_service_is_a_dns_1035_label() -> None:
    thing = service()
    thing["metadata"]["name"] = '9web" -j'
    assert refusals(thing)[0][0] == "metadata.name"


def test_both_names_of_the_topology_annotation_agree() -> None:
    thing = service()
    thing["metadata"]["annotations"] = {
        "service.kubernetes.io/topology-mode": "Auto",
        "service.kubernetes.io/topology-aware-hints": "disabled",
    }
    ((path, reason),) = refusals(thing)
    assert path == "metadata.annotations[service.kubernetes.io/topology-mode]"
    assert "must match annotations[service.kubernetes.io/topology-aware-hints]" in reason


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None", "ports": ...},
        {"type": "ExternalName", "externalName": "example.com.", "ports": ..., "selector": ...},
        {"ports": [{"port": 53, "name": "a", "protocol": "UDP"}, {"port": 53, "name": "b"}]},
        {"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"},
        {"type": "LoadBalancer", "loadBalancerSourceRanges": [" 10.0.0.0/8 "]},
        {"ports": [{"port": 80, "protocol": "SCTP", "targetPort": "http"}]},
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}},
    ],
    ids=str,
)
def test_a_service_is_accepted(spec: dict[str, Any]) -> None:
    assert validate_objects([service(**spec)])


@pytest.mark.parametrize(
    ("thing", "path", "reason"),
    [
        (endpoint_slice(["10.0.0.1"], "Ipv4"), "addressType", 'Unsupported value: "Ipv4"'),
        (endpoint_slice([]), "endpoints[0].addresses", "must contain at least 1 address"),
        (endpoint_slice(["10.0.0.1"] * 101), "endpoints[0].addresses", "Too many: 101: must have at most 100 items"),
        (endpoint_slice(["fd00::1"]), "endpoints[0].addresses[0]", "must be a valid IPv4 address"),
        (endpoint_slice(["10.0.0.1"], "IPv6"), "endpoints[0].addresses[0]", "must be a valid IPv6 address"),
        (endpoint_slice(["127.0.0.1"]), "endpoints[0].addresses[0]", "may not be in the loopback range"),
        (endpoint_slice(["169.254.0.9"]), "endpoints[0].addresses[0]", "may not be in the link-local range"),
        (endpoint_slice(["239.1.1.1"]), "endpoints[0].addresses[0]", "may not be multicast"),
        (endpoint_slice(["::"], "IPv6"), "endpoints[0].addresses[0]", "may not be unspecified"),
        (endpoint_slice(["ff02::1"], "IPv6"), "endpoints[0].addresses[0]", "link-local multicast range"),
        (endpoint_slice(["10.0.0.1"], ports=[{"port": 0}]), "ports[0].port", "must be between 1 and 65535"),
        (endpoint_slice(["10.0.0.1"], ports=[{"port": 1}, {"port": 2}]), "ports[1].name", 'Duplicate value: ""'),
        (endpoint_slice(["10.0.0.1"], ports=[{"port": 1, "protocol": "X"}]), "ports[0].protocol", "Unsupported value"),
        (
            endpoint_slice(["1.1.1.1"], endpoints=[{"addresses": ["10.0.0.1"]}] * 1001),
            "endpoints",
            "Too many: 1001: must have at most 1000 items",
        ),
        (
            endpoint_slice([], endpoints=[{"addresses": ["10.0.0.1"], "hostname": "a.b"}]),
            "endpoints[0].hostname",
            "a lowercase RFC 1123 label",
        ),
        (
            endpoint_slice([], endpoints=[{"addresses": ["10.0.0.1"], "nodeName": "n 1"}]),
            "endpoints[0].nodeName",
            "a lowercase RFC 1123 subdomain",
        ),
        (old_endpoints({}), "subsets[0]", "must specify `addresses` or `notReadyAddresses`"),
        (
            old_endpoints({"addresses": [{"ip": "10.0.0.1"}], "notReadyAddresses": [{"ip": "127.0.0.1"}]}),
            "subsets[0].notReadyAddresses[0].ip",
            "may not be in the loopback range",
        ),
        (
            old_endpoints({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1, "name": "a"}, {"port": 2}]}),
            "subsets[0].ports[1].name",
            "Required value",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_endpoints_are_refused(thing: dict[str, Any], path: str, reason: str) -> None:
    found = refusals(thing)
    assert any(where == path and reason in why for where, why in found), found
