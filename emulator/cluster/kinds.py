"""The kinds of Kubernetes objects by all the names that people give them: ``po``, ``pods``, ``deployment.apps``.

A kind that is not in the table (a custom resource) is taken as it comes: its plural is guessed by
Kubernetes' own rule for printing (``meta.UnsafeGuessKindToResource``), and it counts as namespaced.
"""

from __future__ import annotations

from functools import cache

import msgspec

from emulator.cluster.decode import near
from emulator.errors import NotFound


class Kind(msgspec.Struct, frozen=True):
    """A kind. ``api_version`` is ``group/version`` or, in the core group, ``v1``; ``known`` ones are in the table."""

    kind: str
    api_version: str
    plural: str
    singular: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    known: bool = True

    @property
    def group(self) -> str:
        """The API group, empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The version within the group: ``v1``."""
        return self.api_version.rpartition("/")[2]


# They exist before anybody makes one
INITIAL_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


def _kind(kind: str, api_version: str, plural: str, short: str = "", *, namespaced: bool = True) -> Kind:
    return Kind(kind, api_version, plural, kind.lower(), tuple(short.split()), namespaced)


KINDS: tuple[Kind, ...] = (
    _kind("Namespace", "v1", "namespaces", "ns", namespaced=False),
    _kind("Node", "v1", "nodes", "no", namespaced=False),
    _kind("Pod", "v1", "pods", "po"),
    _kind("Service", "v1", "services", "svc"),
    _kind("Endpoints", "v1", "endpoints", "ep"),
    _kind("ConfigMap", "v1", "configmaps", "cm"),
    _kind("Secret", "v1", "secrets"),
    _kind("ServiceAccount", "v1", "serviceaccounts", "sa"),
    _kind("Event", "v1", "events", "ev"),
    _kind("LimitRange", "v1", "limitranges", "limits"),
    _kind("ResourceQuota", "v1", "resourcequotas", "quota"),
    _kind("PersistentVolume", "v1", "persistentvolumes", "pv", namespaced=False),
    _kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims", "pvc"),
    _kind("PodTemplate", "v1", "podtemplates"),
    _kind("ReplicationController", "v1", "replicationcontrollers", "rc"),
    _kind("Deployment", "apps/v1", "deployments", "deploy"),
    _kind("ReplicaSet", "apps/v1", "replicasets", "rs"),
    _kind("StatefulSet", "apps/v1", "statefulsets", "sts"),
    _kind("DaemonSet", "apps/v1", "daemonsets", "ds"),
    _kind("ControllerRevision", "apps/v1", "controllerrevisions"),
    _kind("Job", "batch/v1", "jobs"),
    _kind("CronJob", "batch/v1", "cronjobs", "cj"),
    _kind("HorizontalPodAutoscaler", "autoscaling/v2", "horizontalpodautoscalers", "hpa"),
    _kind("EndpointSlice", "discovery.k8s.io/v1", "endpointslices"),
    _kind("Ingress", "networking.k8s.io/v1", "ingresses", "ing"),
    _kind("IngressClass", "networking.k8s.io/v1", "ingressclasses", namespaced=False),
    _kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies", "netpol"),
    _kind("IPAddress", "networking.k8s.io/v1", "ipaddresses", "ip", namespaced=False),
    _kind("ServiceCIDR", "networking.k8s.io/v1", "servicecidrs", namespaced=False),
    _kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets", "pdb"),
    _kind("Role", "rbac.authorization.k8s.io/v1", "roles"),
    _kind("RoleBinding", "rbac.authorization.k8s.io/v1", "rolebindings"),
    _kind("ClusterRole", "rbac.authorization.k8s.io/v1", "clusterroles", namespaced=False),
    _kind("ClusterRoleBinding", "rbac.authorization.k8s.io/v1", "clusterrolebindings", namespaced=False),
    _kind("StorageClass", "storage.k8s.io/v1", "storageclasses", "sc", namespaced=False),
    _kind("PriorityClass", "scheduling.k8s.io/v1", "priorityclasses", "pc", namespaced=False),
    _kind("RuntimeClass", "node.k8s.io/v1", "runtimeclasses", namespaced=False),
    _kind("Lease", "coordination.k8s.io/v1", "leases"),
    _kind(
        "CustomResourceDefinition",
        "apiextensions.k8s.io/v1",
        "customresourcedefinitions",
        "crd crds",
        namespaced=False,
    ),
    _kind("APIService", "apiregistration.k8s.io/v1", "apiservices", namespaced=False),
    _kind(
        "MutatingWebhookConfiguration",
        "admissionregistration.k8s.io/v1",
        "mutatingwebhookconfigurations",
        namespaced=False,
    ),
    _kind(
        "ValidatingWebhookConfiguration",
        "admissionregistration.k8s.io/v1",
        "validatingwebhookconfigurations",
        namespaced=False,
    ),
    _kind("GatewayClass", "gateway.networking.k8s.io/v1", "gatewayclasses", "gc", namespaced=False),
    _kind("Gateway", "gateway.networking.k8s.io/v1", "gateways", "gtw"),
    _kind("HTTPRoute", "gateway.networking.k8s.io/v1", "httproutes"),
    _kind("IPPool", "projectcalico.org/v3", "ippools", namespaced=False),
    _kind("BGPConfiguration", "projectcalico.org/v3", "bgpconfigurations", "bgpconfig", namespaced=False),
    _kind("BGPPeer", "projectcalico.org/v3", "bgppeers", namespaced=False),
    # kubectl knows the custom resource; Calico's API server has the other in its newest releases alone
    _kind("BlockAffinity", "crd.projectcalico.org/v1", "blockaffinities", namespaced=False),
    _kind("GlobalNetworkPolicy", "projectcalico.org/v3", "globalnetworkpolicies", "gnp", namespaced=False),
    _kind("Tier", "projectcalico.org/v3", "tiers", namespaced=False),
    _kind("NetworkSet", "projectcalico.org/v3", "networksets", "netsets"),
    _kind("GlobalNetworkSet", "projectcalico.org/v3", "globalnetworksets", namespaced=False),
    _kind("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1", "adminnetworkpolicies", "anp", namespaced=False),
    _kind(
        "BaselineAdminNetworkPolicy",
        "policy.networking.k8s.io/v1alpha1",
        "baselineadminnetworkpolicies",
        "banp",
        namespaced=False,
    ),
    # Its short name, cnp, is Cilium's too
    _kind("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2", "clusternetworkpolicies", namespaced=False),
    _kind("CiliumNetworkPolicy", "cilium.io/v2", "ciliumnetworkpolicies", "cnp ciliumnp"),
    _kind(
        "CiliumClusterwideNetworkPolicy", "cilium.io/v2", "ciliumclusterwidenetworkpolicies", "ccnp", namespaced=False
    ),
)

# Their bare names mean those above; with the group they are meant themselves (networkpolicies.projectcalico.org).
NAMESAKES: tuple[Kind, ...] = (
    _kind("Node", "projectcalico.org/v3", "nodes", namespaced=False),
    _kind("NetworkPolicy", "projectcalico.org/v3", "networkpolicies"),
    _kind("NetworkPolicy", "crd.projectcalico.org/v1", "networkpolicies"),
    _kind("GlobalNetworkPolicy", "crd.projectcalico.org/v1", "globalnetworkpolicies", namespaced=False),
    _kind("Tier", "crd.projectcalico.org/v1", "tiers", namespaced=False),
    _kind("NetworkSet", "crd.projectcalico.org/v1", "networksets"),
    _kind("GlobalNetworkSet", "crd.projectcalico.org/v1", "globalnetworksets", namespaced=False),
    _kind("IPPool", "crd.projectcalico.org/v1", "ippools", namespaced=False),
    _kind("BGPConfiguration", "crd.projectcalico.org/v1", "bgpconfigurations", namespaced=False),
    _kind("BGPPeer", "crd.projectcalico.org/v1", "bgppeers", namespaced=False),
    _kind("BlockAffinity", "projectcalico.org/v3", "blockaffinities", namespaced=False),
)


@cache
def _by_name() -> dict[str, Kind]:
    table: dict[str, Kind] = {}
    for kind in KINDS:
        for name in (kind.singular, kind.plural, *kind.short_names):
            table.setdefault(name, kind)
            if kind.group:
                table.setdefault(f"{name}.{kind.group}", kind)
                # kubectl also takes resource.version.group
                table.setdefault(f"{name}.{kind.api_version.rpartition('/')[2]}.{kind.group}", kind)
    for kind in NAMESAKES:
        for name in (kind.singular, kind.plural):
            table.setdefault(f"{name}.{kind.group}", kind)
            table.setdefault(f"{name}.{kind.version}.{kind.group}", kind)
    return table


@cache
def _by_kind() -> dict[tuple[str, str], Kind]:
    return {(kind.group, kind.kind): kind for kind in (*KINDS, *NAMESAKES)}


def resource(argument: str) -> Kind:
    """The kind that a user means: ``po``, ``pod``, ``pods``, ``Pod``, ``deploy``, ``deployment.apps``.

    Raises NotFound for a name that is not in the table, with the near one.
    """
    kind = _by_name().get(argument.lower())
    if kind is None:
        names = sorted({*(kind.plural for kind in KINDS), *(name for kind in KINDS for name in kind.short_names)})
        shown = argument[:100]
        raise NotFound(f'the server doesn\'t have a resource type "{shown}"' + near(argument, names))
    return kind


def kind_of(api_version: str, kind: str) -> Kind:
    """The table's entry for an object's ``apiVersion`` and ``kind``, with that version; a guess for other kinds."""
    group = api_version.rpartition("/")[0]
    found = _by_kind().get((group, kind))
    if found is not None:
        return found if found.api_version == api_version else msgspec.structs.replace(found, api_version=api_version)
    singular = kind.lower()
    return Kind(kind, api_version, plural(singular), singular, known=False)


def plural(singular: str) -> str:
    """The plural that Kubernetes guesses: ``policies``, ``classes``, ``gateways``."""
    if singular.endswith(("s", "x", "ch", "sh")):
        return singular + "es"
    if singular.endswith("y") and singular[-2:-1] not in ("a", "e", "o", "u"):
        return singular[:-1] + "ies"
    return singular + "s"
