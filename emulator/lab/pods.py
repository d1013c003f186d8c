"""How a pod appears from inside: who serves its ports, and the files that name it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from emulator.cluster.coredns import CLUSTER_DOMAIN, serves_dns
from emulator.cluster.model import Container, Machine, Pod
from emulator.dns.resolv_conf import Resolvers, pod_resolv_conf
from emulator.kernel.commands import Command
from emulator.kernel.netns import netns_path
from emulator.traffic.model import Server

NO_RESOLVERS = Resolvers()
RESOLV_CONF = "/etc/resolv.conf"


def container_command(container: Container) -> tuple[str, ...]:
    """The command to run for real, or nothing if the container has none or the host lacks the program.

    Images do not exist here: a command is a program of the host, found in PATH.
    """
    if not container.command:
        return ()
    program = container.command[0]
    found = shutil.which(program) if "/" not in program else program if os.access(program, os.X_OK) else None
    return (found, *container.command[1:]) if found else ()


def servers_of(pods: Sequence[Pod], machines: Sequence[Machine]) -> dict[str, Server]:
    """What cnilab itself answers on, by namespace: the ports of containers that run no command, and of outside hosts.

    hostNetwork pods share their node's namespace, its ports and its name.
    """
    found: dict[str, Server] = {}

    def add(ns: str, hostname: str, ports: Iterable[tuple[int, Any]]) -> None:
        known = found[ns].ports if ns in found else ()
        together = tuple(dict.fromkeys((*known, *ports)))
        if together:
            found[ns] = Server(ns=ns, netns=netns_path(ns), hostname=hostname, ports=together)

    for machine in machines:
        add(machine.ns, machine.name, [(port, protocol) for port in machine.ports for protocol in ("TCP", "UDP")])
    for pod in pods:
        if serves_dns(pod):
            continue  # emulator.lab.cluster_dns serves them
        ports = [
            (port.port, port.protocol)
            for container in pod.containers
            if not container_command(container)
            for port in container.ports
        ]
        add(pod.ns, pod.node if pod.host_network else pod.name, ports)
    return found


def commands_of(pod: Pod, resolvers: Resolvers = NO_RESOLVERS) -> list[Command]:
    """The processes to run in a pod. A hostNetwork pod's run in its node's network namespace, under the node's name.
    ``resolvers`` are for their /etc/resolv.conf."""
    hostname = pod.node if pod.host_network else pod.hostname or pod.name
    return [
        Command(
            place=pod.key,
            name=container.name,
            argv=argv,
            netns=netns_path(pod.ns),
            hostname=hostname,
            files=entry_files(pod, resolvers),
            env=dict(container.env),
            restart=pod.restart_policy,
        )
        for container in pod.containers
        if (argv := container_command(container))
    ]


def served_by(pod: Pod) -> str:
    """For people: ``cnilab``, or the commands that run."""
    if serves_dns(pod):
        return "cnilab, in CoreDNS' place"
    commands = [os.path.basename(argv[0]) for container in pod.containers if (argv := container_command(container))]
    ours = any(not container_command(container) for container in pod.containers)
    return ", ".join([*commands, *(["cnilab"] if ours else [])])


def substitutions(pods: Iterable[Pod]) -> tuple[str, ...]:
    """For people, one line per container of an owner: commands that this machine does not have, so that cnilab answers
    in their place."""
    found: dict[str, None] = {}
    for pod in pods:
        owner = f"{pod.namespace}/{pod.owner}" if "/" in pod.owner else f"pod {pod.key}"
        for container in pod.containers:
            if container.command and not container_command(container):
                program = container.command[0]
                found[f"{owner}, container {container.name}: {program!r} is not a program of this machine; "
                      "cnilab answers on the container's ports instead"] = None  # fmt: skip
    return tuple(found)


def entry_files(pod: Pod, resolvers: Resolvers) -> dict[str, str]:
    """/etc/hosts, /etc/hostname and /etc/resolv.conf as the kubelet writes them (pkg/kubelet/util and
    managedHostsFileContent). A hostNetwork pod has its node's, but for the last if the lab has any DNS.

    Without cluster DNS the search path is there, a server is not: a program is told at once that nobody answers.
    """
    conf = pod_resolv_conf(pod, resolvers)
    if pod.host_network:
        known = resolvers != NO_RESOLVERS or pod.dns_policy in ("None", "ClusterFirstWithHostNet")
        return {RESOLV_CONF: conf.text()} if known else {}
    hostname = pod.hostname or pod.name
    lines = ["# Kubernetes-managed hosts file.", "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += ["fe00::0\tip6-localnet", "fe00::0\tip6-mcastprefix", "fe00::1\tip6-allnodes", "fe00::2\tip6-allrouters"]
    for address in pod.addresses:
        qualified = f"{hostname}.{pod.subdomain}.{pod.namespace}.svc.{CLUSTER_DOMAIN}\t" if pod.subdomain else ""
        lines.append(f"{address}\t{qualified}{hostname}")
    return {"/etc/hosts": "\n".join(lines) + "\n", "/etc/hostname": f"{hostname}\n", RESOLV_CONF: conf.text()}
