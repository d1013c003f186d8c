"""The columns of ``cnilab get``, for each kind, as kubectl prints them (pkg/printers/internalversion/printers.go)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Object = dict[str, Any]

SHOWN_MAX = 3  # endpoints of a slice before "+ N more..."


class Column(NamedTuple):
    """A column; ``wide`` ones are for ``-o wide`` only."""

    header: str
    value: Callable[[Object], str]
    wide: bool = False


def columns_of(kind: str) -> Sequence[Column]:
    """The columns of a kind; a name and little more for kinds that have none of their own."""
    return _COLUMNS.get(kind, _ANY)


def _ready(pod: Object) -> str:
    containers = pod["spec"].get("containers", [])
    statuses = pod["status"].get("containerStatuses")
    ready = sum(1 for status in statuses if status.get("ready")) if statuses is not None else len(containers)
    return f"{ready}/{len(containers)}"


def _status(pod: Object) -> str:
    return "Terminating" if pod["metadata"].get("deletionTimestamp") else str(pod["status"].get("phase", ""))


def _addresses(obj: Object) -> str:
    return " ".join(entry["ip"] for entry in obj["status"].get("podIPs", ()))


def _internal(node: Object) -> str:
    return " ".join(entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")


def _labels(obj: Object) -> str:
    return _pairs(obj["metadata"].get("labels"))


def _pairs(values: Object | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((values or {}).items()))


def _served_by(pod: Object) -> str:
    return str((pod["metadata"].get("annotations") or {}).get("cnilab.dev/served-by", "cnilab"))


def _replicas(obj: Object) -> str:
    return str(obj.get("spec", {}).get("replicas", 1))


def _is_ready(node: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))


def _cluster_ip(service: Object) -> str:
    return str(service["spec"].get("clusterIP") or "<none>")


def _external_ip(service: Object) -> str:
    """What can be reached from outside; ``<pending>`` while nobody has given a LoadBalancer its address."""
    spec = service["spec"]
    if spec["type"] == "ExternalName":
        return str(spec.get("externalName", ""))
    given = list(spec.get("externalIPs") or ())
    if spec["type"] != "LoadBalancer":
        return ",".join(given) or "<none>"
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or ()
    return ",".join([one.get("ip") or one.get("hostname", "") for one in ingress] + given) or "<pending>"


def _service_ports(service: Object) -> str:
    ports = service["spec"].get("ports") or ()
    texts = [
        f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port['protocol']}"
        for port in ports
    ]
    return ",".join(texts) or "<none>"


def _selector(service: Object) -> str:
    return _pairs(service["spec"].get("selector")) or "<none>"


def _slice_ports(one: Object) -> str:
    return ",".join(str(port.get("port", "*")) for port in one.get("ports") or ()) or "<unset>"


def _slice_endpoints(one: Object) -> str:
    return _listed([text for endpoint in one.get("endpoints") or () for text in endpoint["addresses"]]) or "<unset>"


def _endpoints(obj: Object) -> str:
    return _listed([
        f"[{one['ip']}]:{port['port']}" if ":" in one["ip"] else f"{one['ip']}:{port['port']}"
        for subset in obj.get("subsets") or ()
        for port in subset.get("ports") or ()
        for one in subset.get("addresses") or ()
    ]) or "<none>"  # fmt: skip


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN_MAX
    return ",".join(texts[:SHOWN_MAX]) + (f" + {more} more..." if more > 0 else "")


_NAME = Column("NAME", lambda obj: str(obj["metadata"]["name"]))
_LABELS = Column("LABELS", _labels, wide=True)
_ANY = (_NAME, Column("CREATED", lambda obj: str(obj["metadata"].get("creationTimestamp", ""))), _LABELS)
_WORKLOAD = (_NAME, Column("REPLICAS", _replicas), _LABELS)
_COLUMNS: dict[str, Sequence[Column]] = {
    "Pod": (
        _NAME,
        Column("READY", _ready),
        Column("STATUS", _status),
        Column("IP", _addresses, wide=True),
        Column("NODE", lambda pod: str(pod["spec"].get("nodeName", "")), wide=True),
        Column("SERVED BY", _served_by, wide=True),
        _LABELS,
    ),
    "Node": (
        _NAME,
        Column("STATUS", lambda node: "Ready" if _is_ready(node) else "NotReady"),
        Column("INTERNAL-IP", _internal),
        Column("POD-CIDR", lambda node: " ".join(node["spec"].get("podCIDRs", ()))),
        _LABELS,
    ),
    "Namespace": (_NAME, Column("STATUS", lambda obj: str(obj.get("status", {}).get("phase", "Active")))),
    "Deployment": _WORKLOAD,
    "ReplicaSet": _WORKLOAD,
    "StatefulSet": _WORKLOAD,
    "Service": (
        _NAME,
        Column("TYPE", lambda service: str(service["spec"]["type"])),
        Column("CLUSTER-IP", _cluster_ip),
        Column("EXTERNAL-IP", _external_ip),
        Column("PORT(S)", _service_ports),
        Column("SELECTOR", _selector, wide=True),
    ),
    "EndpointSlice": (
        _NAME,
        Column("ADDRESSTYPE", lambda one: str(one["addressType"])),
        Column("PORTS", _slice_ports),
        Column("ENDPOINTS", _slice_endpoints),
    ),
    "Endpoints": (_NAME, Column("ENDPOINTS", _endpoints)),
}
