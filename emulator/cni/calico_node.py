"""What calico-node's containers leave on a node alike in Calico's and in Canal's DaemonSet: the CNI configuration, the
sets of IP pools, and Felix's tables with policies in them.

Sources: projectcalico/calico manifests/calico.yaml, manifests/canal.yaml (``cni_network_config``),
felix/dataplane/linux/masq_mgr.go; ``emulator.cni.felix``, ``emulator.cni.felix_nftables``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from emulator.cluster.model import Cluster, Node
from emulator.cni.calico_pods import FELIX
from emulator.cni.felix import Tunnelling, filter_table
from emulator.cni.felix_configuration import with_nftables
from emulator.cni.felix_nftables import nft_table
from emulator.cni.wiring import network_configuration
from emulator.plan.model import AnyObject, Family, File, IpSet
from emulator.policy.felix import title_of
from emulator.policy.felix_rules import ipset_name
from emulator.policy.felix_tables import Judging
from emulator.proxy.model import ProxyMode


def cni_configuration(node: Node, style: str, *, mtu: int, ipam: dict[str, Any], bandwidth: bool) -> File:
    """``cni_network_config`` of the style's manifest, as the install-cni container fills it in; with ``bandwidth`` its
    plugin is in the chain."""
    calico = {
        "type": "calico",
        "log_level": "info",
        "log_file_path": "/var/log/calico/cni/cni.log",
        "datastore_type": "kubernetes",
        "nodename": node.name,
        "mtu": mtu,
        "ipam": ipam,
        "policy": {"type": "k8s"},
        "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
    }
    plugins = [calico, {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}]
    if bandwidth:
        plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    configuration = {"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": plugins}
    return network_configuration(node, f"10-{style}", configuration, "install-cni")


def pool_sets(
    node: Node, family: Family, *, masqueraded: Iterable[str], every: Iterable[str], why: str
) -> Iterator[IpSet]:
    """The sets of IP pools (CIDRs) that Felix masquerades by; ``why`` of those that it masquerades."""
    for name, members, reason in (
        ("masq-ipam-pools", masqueraded, why),
        ("all-ipam-pools", every, "all IP pools: traffic between pods is never masqueraded"),
    ):
        yield IpSet(
            ns=node.ns,
            name=ipset_name(family, name),
            type="hash:net",
            family=family,
            members=tuple(sorted(members)),
            component=FELIX,
            why=reason,
        )


def felix_title(cluster: Cluster | None, proxy: ProxyMode | None) -> str:
    """What Felix is called by the tables that it has in a cluster; before there is one, by those of kube-proxy."""
    if cluster is None:
        return title_of([proxy == "nftables"])
    there = with_nftables(cluster, proxy)
    return title_of(node.name in there for node in cluster.nodes)


def judged_tables(
    node: Node,
    family: Family,
    judging: Judging,
    sets: Iterable[IpSet],
    tunnelling: Tunnelling,
    *,
    nftables: bool,
    own_node: bool,
) -> Iterator[AnyObject]:
    """The tables that policies are in, with them; ``sets`` are those that do not depend on policies."""
    if nftables:
        yield nft_table(node.ns, family, judging, sets, tunnelling, own_node=own_node)
    else:
        yield from judging.sets
        yield filter_table(node.ns, family, judging, tunnelling, own_node=own_node)
