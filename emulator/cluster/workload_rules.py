"""What the API server checks of a workload beyond the types of its fields.

The rules are those of ``pkg/apis/core/validation`` and ``pkg/apis/apps/validation`` that concern a create
and what a network can tell: names, labels, selectors, containers, ports, volumes, DNS. Each function
yields faults as (field path, reason), in the API server's words. The objects have passed the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from emulator.cluster import validation
from emulator.cluster.decode import Fault

PROTOCOLS = ("SCTP", "TCP", "UDP")
DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
RESTART_POLICIES = ("Always", "Never", "OnFailure")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
OPERATORS = ("DoesNotExist", "Exists", "In", "NotIn")
STRATEGIES = {"Deployment": ("strategy", ("Recreate", "RollingUpdate"))}
UPDATE_STRATEGY = ("updateStrategy", ("OnDelete", "RollingUpdate"))

Rule = Callable[[str], list[str]]
Mapping = dict[str, Any]


def workload_faults(thing: Mapping) -> Iterator[Fault]:
    """The faults of a Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job or CronJob; none for other kinds."""
    kind, spec = thing["kind"], thing.get("spec")
    if kind == "Pod":
        yield from _pod_spec_faults(spec, "spec", ())
    elif kind in ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"):
        yield from _controller_faults(kind, spec)
    elif kind == "Job":
        yield from _job_faults(spec, "spec")
    elif kind == "CronJob":
        if spec is None:
            yield "spec", validation.required()
        else:
            yield from _job_faults(spec["jobTemplate"].get("spec"), "spec.jobTemplate.spec")


def label_faults(labels: Mapping | None, path: str) -> Iterator[Fault]:
    """Keys and values of labels, also of a selector's ``matchLabels`` and a ``nodeSelector``."""
    for key, value in (labels or {}).items():
        for reason in validation.faults_of_qualified_name(key):
            yield path, validation.invalid(key, reason)
        for reason in validation.faults_of_label_value(value or ""):
            yield path, validation.invalid(value, reason)


def annotation_faults(annotations: Mapping | None, path: str) -> Iterator[Fault]:
    """Keys of annotations (upper case is allowed in their prefix) and their total size."""
    total = 0
    for key, value in (annotations or {}).items():
        for reason in validation.faults_of_qualified_name(key.lower()):
            yield path, validation.invalid(key, reason)
        total += len(key) + len(value or "")
    if total > validation.ANNOTATIONS_MAX:
        yield path, f"Too long: may not be more than {validation.ANNOTATIONS_MAX} bytes"


def selects(selector: Mapping, labels: Mapping) -> bool:
    """Whether a label selector matches a set of labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_meets(requirement, labels) for requirement in selector.get("matchExpressions") or ())


def _meets(requirement: Mapping, labels: Mapping) -> bool:
    key, values = requirement["key"], requirement.get("values") or ()
    match requirement["operator"]:
        case "In":
            return labels.get(key) in values if key in labels else False
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
    return key not in labels


def _controller_faults(kind: str, spec: Mapping | None) -> Iterator[Fault]:
    if spec is None:
        yield "spec", validation.required()
        return
    yield from _not_negative(spec, "spec", ("replicas", "minReadySeconds", "revisionHistoryLimit"))
    selector = spec["selector"]
    yield from selector_faults(selector, "spec.selector")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield "spec.selector", validation.invalid(selector, f"empty selector is invalid for {kind.lower()}")
    field, allowed = STRATEGIES.get(kind, UPDATE_STRATEGY)
    strategy = (spec.get(field) or {}).get("type")
    if strategy and strategy not in allowed:
        yield f"spec.{field}.type", validation.unsupported(strategy, allowed)
    template = spec.get("template")
    if template is None:
        yield "spec.template", validation.required()
        return
    claims = [(claim.get("metadata") or {}).get("name") or "" for claim in spec.get("volumeClaimTemplates") or ()]
    yield from _template_faults(template, "spec.template", claims)
    labels = (template.get("metadata") or {}).get("labels") or {}
    if not selects(selector, labels):
        yield "spec.template.metadata.labels", validation.invalid(labels, "`selector` does not match template `labels`")
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy in RESTART_POLICIES and policy != "Always":
        yield "spec.template.spec.restartPolicy", validation.unsupported(policy, ("Always",))


def _job_faults(spec: Mapping | None, path: str) -> Iterator[Fault]:
    if spec is None:
        yield path, validation.required()
        return
    yield from _not_negative(spec, path, ("parallelism", "completions", "backoffLimit", "activeDeadlineSeconds"))
    template = spec["template"]
    yield from _template_faults(template, f"{path}.template", ())
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy not in ("OnFailure", "Never"):
        reason = validation.unsupported(policy or "Always", ("OnFailure", "Never"))
        yield f"{path}.template.spec.restartPolicy", reason


def _template_faults(template: Mapping, path: str, claims: Iterable[str]) -> Iterator[Fault]:
    metadata = template.get("metadata") or {}
    yield from label_faults(metadata.get("labels"), f"{path}.metadata.labels")
    yield from annotation_faults(metadata.get("annotations"), f"{path}.metadata.annotations")
    yield from _pod_spec_faults(template.get("spec"), f"{path}.spec", claims)


def selector_faults(selector: Mapping, path: str) -> Iterator[Fault]:
    """A label selector: keys, values, operators (apimachinery meta/v1/validation ValidateLabelSelector)."""
    yield from label_faults(selector.get("matchLabels"), f"{path}.matchLabels")
    for index, requirement in enumerate(selector.get("matchExpressions") or ()):
        place, operator = f"{path}.matchExpressions[{index}]", requirement["operator"]
        values = requirement.get("values") or ()
        for reason in validation.faults_of_qualified_name(requirement["key"]):
            yield f"{place}.key", validation.invalid(requirement["key"], reason)
        if operator not in OPERATORS:
            yield f"{place}.operator", validation.invalid(operator, "not a valid selector operator")
        elif operator in ("In", "NotIn") and not values:
            yield f"{place}.values", validation.required("must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist") and values:
            reason = validation.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            yield f"{place}.values", reason
        for number, value in enumerate(values):
            for reason in validation.faults_of_label_value(value):
                yield f"{place}.values[{number}]", validation.invalid(value, reason)


def _pod_spec_faults(spec: Mapping | None, path: str, claims: Iterable[str]) -> Iterator[Fault]:
    if spec is None:
        yield f"{path}.containers", validation.required()
        return
    host_network = bool(spec.get("hostNetwork"))
    volumes = set(claims)
    yield from _volume_faults(spec.get("volumes") or (), f"{path}.volumes", volumes)
    if not spec["containers"]:
        yield f"{path}.containers", validation.required()
    names: set[str] = set()
    host_ports: set[tuple[Any, ...]] = set()
    for field in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(field) or ()):
            place = f"{path}.{field}[{index}]"
            yield from _container_faults(container, place, names, volumes, host_network=host_network)
            if field == "containers":
                yield from _host_port_faults(container, place, host_ports, host_network=host_network)
    for field, allowed in (("restartPolicy", RESTART_POLICIES), ("dnsPolicy", DNS_POLICIES)):
        if spec.get(field) and spec[field] not in allowed:
            yield f"{path}.{field}", validation.unsupported(spec[field], allowed)
    named: tuple[tuple[str, Rule], ...] = (
        ("hostname", validation.faults_of_label_name),
        ("subdomain", validation.faults_of_label_name),
        ("nodeName", validation.faults_of_subdomain),
        ("serviceAccountName", validation.faults_of_subdomain),
    )
    for field, rule in named:
        if spec.get(field):
            for reason in rule(spec[field]):
                yield f"{path}.{field}", validation.invalid(spec[field], reason)
    yield from label_faults(spec.get("nodeSelector"), f"{path}.nodeSelector")
    yield from _dns_faults(spec, path)
    yield from _not_negative(spec, path, ("terminationGracePeriodSeconds",))


def _volume_faults(volumes: Iterable[Mapping], path: str, names: set[str]) -> Iterator[Fault]:
    for index, volume in enumerate(volumes):
        name = volume["name"]
        for reason in validation.faults_of_label_name(name):
            yield f"{path}[{index}].name", validation.invalid(name, reason)
        if name in names:
            yield f"{path}[{index}].name", validation.duplicate(name)
        names.add(name)


def _container_faults(
    container: Mapping, path: str, names: set[str], volumes: set[str], *, host_network: bool
) -> Iterator[Fault]:
    name = container["name"]
    if not name:
        yield f"{path}.name", validation.required()
    else:
        for reason in validation.faults_of_label_name(name):
            yield f"{path}.name", validation.invalid(name, reason)
        if name in names:
            yield f"{path}.name", validation.duplicate(name)
        names.add(name)
    if not container.get("image"):
        yield f"{path}.image", validation.required()
    elif container["image"] != container["image"].strip():
        yield f"{path}.image", validation.invalid(container["image"], "must not have leading or trailing whitespace")
    policy = container.get("imagePullPolicy")
    if policy and policy not in PULL_POLICIES:
        yield f"{path}.imagePullPolicy", validation.unsupported(policy, PULL_POLICIES)
    yield from _port_faults(container.get("ports") or (), f"{path}.ports", host_network=host_network)
    for index, variable in enumerate(container.get("env") or ()):
        place = f"{path}.env[{index}]"
        if not variable["name"]:
            yield f"{place}.name", validation.required()
        else:
            for reason in validation.faults_of_environment_name(variable["name"]):
                yield f"{place}.name", validation.invalid(variable["name"], reason)
        if variable.get("value") and variable.get("valueFrom"):
            yield f"{place}.valueFrom", validation.invalid("", "may not be specified when `value` is not empty")
    yield from _mount_faults(container.get("volumeMounts") or (), f"{path}.volumeMounts", volumes)


def _mount_faults(mounts: Iterable[Mapping], path: str, volumes: set[str]) -> Iterator[Fault]:
    places: set[str] = set()
    for index, mount in enumerate(mounts):
        if mount["name"] not in volumes:
            yield f"{path}[{index}].name", f"Not found: {validation.shown(mount['name'])}"
        if not mount["mountPath"]:
            yield f"{path}[{index}].mountPath", validation.required()
        if mount["mountPath"] in places:
            yield f"{path}[{index}].mountPath", validation.invalid(mount["mountPath"], "must be unique")
        places.add(mount["mountPath"])


def _port_faults(ports: Iterable[Mapping], path: str, *, host_network: bool) -> Iterator[Fault]:
    names: set[str] = set()
    for index, port in enumerate(ports):
        place, number, host_port = f"{path}[{index}]", port["containerPort"], port.get("hostPort")
        if port.get("name"):
            reasons = validation.faults_of_port_name(port["name"])
            for reason in reasons:
                yield f"{place}.name", validation.invalid(port["name"], reason)
            if port["name"] in names:
                yield f"{place}.name", validation.duplicate(port["name"])
            names.add(port["name"])
        if number == 0:
            yield f"{place}.containerPort", validation.required()
        else:
            for reason in validation.faults_of_port(number):
                yield f"{place}.containerPort", validation.invalid(number, reason)
        if host_port:
            for reason in validation.faults_of_port(host_port):
                yield f"{place}.hostPort", validation.invalid(host_port, reason)
            if host_network and host_port != number:
                reason = "must match `containerPort` when `hostNetwork` is true"
                yield f"{place}.hostPort", validation.invalid(host_port, reason)
        if port.get("hostIP") and validation.faults_of_address(port["hostIP"]):
            yield f"{place}.hostIP", validation.invalid(port["hostIP"], "must be a valid IP address")
        protocol = port.get("protocol")
        if protocol is not None and protocol not in PROTOCOLS:
            yield f"{place}.protocol", validation.unsupported(protocol, PROTOCOLS)


def _host_port_faults(
    container: Mapping, path: str, taken: set[tuple[Any, ...]], *, host_network: bool
) -> Iterator[Fault]:
    for index, port in enumerate(container.get("ports") or ()):
        number = port.get("hostPort") or (port["containerPort"] if host_network else 0)
        if number:
            protocol, address = port.get("protocol") or "TCP", port.get("hostIP") or ""
            if (protocol, address, number) in taken:
                yield f"{path}.ports[{index}].hostPort", validation.duplicate(f"{protocol}/{address}/{number}")
            taken.add((protocol, address, number))


def _dns_faults(spec: Mapping, path: str) -> Iterator[Fault]:
    config = spec.get("dnsConfig") or {}
    servers = config.get("nameservers") or ()
    if spec.get("dnsPolicy") == "None" and not servers:
        reason = validation.required("must provide at least one DNS nameserver when `dnsPolicy` is None")
        yield f"{path}.dnsConfig.nameservers", reason
    for index, server in enumerate(servers):
        for reason in validation.faults_of_address(server):
            yield f"{path}.dnsConfig.nameservers[{index}]", validation.invalid(server, reason)
    for index, alias in enumerate(spec.get("hostAliases") or ()):
        for reason in validation.faults_of_address(alias["ip"]):
            yield f"{path}.hostAliases[{index}].ip", validation.invalid(alias["ip"], reason)


def _not_negative(spec: Mapping, path: str, fields: Iterable[str]) -> Iterator[Fault]:
    for field in fields:
        if (spec.get(field) or 0) < 0:
            yield f"{path}.{field}", validation.invalid(spec[field], "must be greater than or equal to 0")
