"""How a pod appears from inside: who serves its ports, and the files that name it."""

from __future__ import annotations

import os
import shutil

from emulator.cluster.model import Container, Pod
from emulator.kernel.commands import Command
from emulator.kernel.netns import netns_path
from emulator.traffic.model import Server

CLUSTER_DOMAIN = "cluster.local"


def container_command(container: Container) -> tuple[str, ...]:
    """The command to run for real, or nothing if the container has none or the host lacks the program.

    Images do not exist here: a command is a program of the host, found in PATH.
    """
    if not container.command:
        return ()
    program = container.command[0]
    found = shutil.which(program) if "/" not in program else program if os.access(program, os.X_OK) else None
    return (found, *container.command[1:]) if found else ()


def server_of(pod: Pod) -> Server | None:
    """The ports that cnilab itself answers on: those of the containers that run no command."""
    ports = tuple(
        (port.port, port.protocol)
        for container in pod.containers
        if not container_command(container)
        for port in container.ports
    )
    if not ports:
        return None
    return Server(ns=pod.ns, netns=netns_path(pod.ns), hostname=pod.name, ports=ports)


def commands_of(pod: Pod) -> list[Command]:
    """The processes to run in a pod. A hostNetwork pod's run in its node's network namespace, under the node's name."""
    hostname = pod.node if pod.host_network else pod.hostname or pod.name
    return [
        Command(
            place=pod.key,
            name=container.name,
            argv=argv,
            netns=netns_path(pod.ns),
            hostname=hostname,
            files={} if pod.host_network else entry_files(pod),
            env=dict(container.env),
            restart=pod.restart_policy,
        )
        for container in pod.containers
        if (argv := container_command(container))
    ]


def served_by(pod: Pod) -> str:
    """For people: ``cnilab``, or the commands that run."""
    commands = [os.path.basename(argv[0]) for container in pod.containers if (argv := container_command(container))]
    ours = any(not container_command(container) for container in pod.containers)
    return ", ".join([*commands, *(["cnilab"] if ours else [])])


def entry_files(pod: Pod) -> dict[str, str]:
    """/etc/hosts, /etc/hostname and /etc/resolv.conf as the kubelet writes them (pkg/kubelet/util,
    SetupDNSinContainerizedMounter and managedHostsFileContent). There is no name server yet: the search path is
    there, a server is not."""
    hostname = pod.hostname or pod.name
    lines = ["# Kubernetes-managed hosts file.", "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += ["fe00::0\tip6-localnet", "fe00::0\tip6-mcastprefix", "fe00::1\tip6-allnodes", "fe00::2\tip6-allrouters"]
    for address in pod.addresses:
        qualified = f"{hostname}.{pod.subdomain}.{pod.namespace}.svc.{CLUSTER_DOMAIN}\t" if pod.subdomain else ""
        lines.append(f"{address}\t{qualified}{hostname}")
    search = " ".join([f"{pod.namespace}.svc.{CLUSTER_DOMAIN}", f"svc.{CLUSTER_DOMAIN}", CLUSTER_DOMAIN])
    return {
        "/etc/hosts": "\n".join(lines) + "\n",
        "/etc/hostname": f"{hostname}\n",
        "/etc/resolv.conf": f"search {search}\noptions ndots:5\n",
    }
