"""The parts of Kubernetes workloads that decide what the network looks like.

Field names are Kubernetes' own, so that the structs read like the API reference. All else in an object
is skipped here; :mod:`emulator.cluster.manifests` has checked it against the full schema before.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from emulator.cluster.model import Container, ContainerPort, DnsConfig, DnsPolicy, Lifetime


class PortSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 ContainerPort."""

    container_port: int = 0
    protocol: str | None = None
    name: str | None = None
    host_port: int | None = None


class EnvSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 EnvVar with a literal value."""

    name: str = ""
    value: str | None = None


class ProbeSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 Probe."""

    initial_delay_seconds: int | None = None


class SleepSpec(msgspec.Struct, frozen=True):
    """v1 SleepAction."""

    seconds: int = 0


class ExecSpec(msgspec.Struct, frozen=True):
    """v1 ExecAction."""

    command: list[str] | None = None


class HandlerSpec(msgspec.Struct, frozen=True):
    """v1 LifecycleHandler."""

    sleep: SleepSpec | None = None
    exec: ExecSpec | None = None


class LifecycleSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 Lifecycle."""

    pre_stop: HandlerSpec | None = None


class ContainerSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 Container."""

    name: str = ""
    ports: list[PortSpec] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[EnvSpec] | None = None
    restart_policy: str | None = None
    image: str | None = None
    # Unset, not None: what is not given has no part in a template's hash, and so in pods' names
    readiness_probe: ProbeSpec | msgspec.UnsetType | None = msgspec.UNSET
    lifecycle: LifecycleSpec | msgspec.UnsetType | None = msgspec.UNSET


class DnsOptionSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 PodDNSConfigOption."""

    name: str = ""
    value: str | None = None


class DnsConfigSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 PodDNSConfig."""

    nameservers: list[str] | None = None
    searches: list[str] | None = None
    options: list[DnsOptionSpec] | None = None


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    """v1 PodSpec."""

    containers: list[ContainerSpec] | None = None
    init_containers: list[ContainerSpec] | None = None
    node_name: str | None = None
    node_selector: dict[str, str] | None = None
    affinity: dict[str, Any] | None = None
    host_network: bool | None = None
    hostname: str | None = None
    subdomain: str | None = None
    restart_policy: Literal["Always", "OnFailure", "Never"] | None = None
    service_account_name: str | None = None
    # Left out of a template's hash where they are not given, so that pods' names do not depend on them
    dns_policy: DnsPolicy | msgspec.UnsetType | None = msgspec.UNSET
    dns_config: DnsConfigSpec | msgspec.UnsetType | None = msgspec.UNSET
    termination_grace_period_seconds: int | msgspec.UnsetType | None = msgspec.UNSET


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """v1 ObjectMeta."""

    name: str = ""
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class Template(msgspec.Struct, frozen=True, rename="camel"):
    """v1 PodTemplateSpec; a Pod object has the same two fields."""

    metadata: Meta | None = None
    spec: PodSpec | None = None


class RollingUpdate(msgspec.Struct, frozen=True, rename="camel"):
    """apps/v1 RollingUpdateDeployment, RollingUpdateStatefulSetStrategy and RollingUpdateDaemonSet."""

    max_surge: int | str | None = None
    max_unavailable: int | str | None = None
    partition: int | None = None


class Strategy(msgspec.Struct, frozen=True, rename="camel"):
    """apps/v1 DeploymentStrategy, StatefulSetUpdateStrategy and DaemonSetUpdateStrategy."""

    type: str | None = None
    rolling_update: RollingUpdate | None = None


class WorkloadSpec(msgspec.Struct, frozen=True, rename="camel"):
    """The spec of Deployment, ReplicaSet, StatefulSet and DaemonSet."""

    template: Template
    replicas: int | None = None
    service_name: str | None = None
    ordinals: dict[str, int] | None = None
    strategy: Strategy | None = None
    update_strategy: Strategy | None = None
    min_ready_seconds: int | None = None
    pod_management_policy: str | None = None
    paused: bool | None = None


class Workload(msgspec.Struct, frozen=True, rename="camel"):
    """Deployment, ReplicaSet, StatefulSet or DaemonSet."""

    metadata: Meta
    spec: WorkloadSpec


def containers(spec: PodSpec) -> tuple[Container, ...]:
    """The containers that run for the pod's whole life: the main ones and restartable init containers."""
    sidecars = [one for one in spec.init_containers or () if one.restart_policy == "Always"]
    return tuple(_container(one) for one in [*sidecars, *(spec.containers or ())])


def _container(spec: ContainerSpec) -> Container:
    ports = tuple(
        ContainerPort(port.container_port, port.protocol or "TCP", port.name or "", port.host_port or 0)  # type: ignore[arg-type]
        for port in spec.ports or ()
    )
    # args alone are arguments of the image's entry point, which is not here: our server answers instead
    command = (*spec.command, *(spec.args or ())) if spec.command else ()
    env = tuple((one.name, one.value or "") for one in spec.env or ())
    return Container(spec.name, ports, command, env, spec.image or "", () if command else tuple(spec.args or ()))


_PLAIN_DNS = DnsConfig()


def dns_config(spec: PodSpec) -> DnsConfig:
    """What the pod wants in its resolv.conf beyond what its policy gives."""
    given = spec.dns_config
    if not given:
        return _PLAIN_DNS
    options = tuple(f"{one.name}:{one.value}" if one.value else one.name for one in given.options or ())
    return DnsConfig(tuple(given.nameservers or ()), tuple(given.searches or ()), options)


_SLEEP = re.compile(r"\s*(?:exec\s+)?(?:/(?:usr/)?bin/)?sleep\s+(\d+(?:\.\d+)?)s?\s*")
_DELAY = re.compile(r"--delay-shutdown[= ](\d+)")  # agnhost's, whose images our servers stand for
_DEFAULT_LIFETIME = Lifetime()


def lifetime(spec: PodSpec, min_ready: int) -> Lifetime:
    """When a pod of this spec becomes ready, and how long it goes on once it is deleted."""
    main = spec.containers or []
    probes = [one.readiness_probe.initial_delay_seconds or 0 for one in main if one.readiness_probe]
    period = spec.termination_grace_period_seconds
    made = Lifetime(
        ready_after=max(probes, default=0),
        min_ready=min_ready,
        shutdown=max((_shutdown(one) for one in main), default=0.0),
        grace_period=period if isinstance(period, int) else _DEFAULT_LIFETIME.grace_period,
    )
    return _DEFAULT_LIFETIME if made == _DEFAULT_LIFETIME else made


def _shutdown(spec: ContainerSpec) -> float:
    """Seconds from a container's deletion to its end: its preStop hook comes first, its program's own delay after."""
    hook = spec.lifecycle.pre_stop if spec.lifecycle else None
    sleep = 0.0
    if hook is not None and hook.sleep is not None:
        sleep = float(hook.sleep.seconds)
    elif hook is not None and hook.exec is not None:
        command = hook.exec.command or []
        shell = len(command) == 3 and command[0].rpartition("/")[2] in ("sh", "bash", "ash") and command[1] == "-c"
        found = _SLEEP.fullmatch(command[2] if shell else " ".join(command))
        sleep = float(found[1]) if found is not None else 0.0
    delay = _DELAY.search(" ".join([*(spec.command or ()), *(spec.args or ())]))
    return sleep + (float(delay[1]) if delay is not None else 0.0)
