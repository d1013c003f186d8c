"""resolv.conf: what a resolver reads, and what the kubelet writes into a pod.

Stands for kubernetes ``pkg/kubelet/network/dns/dns.go`` (GetPodDNS, formDNSConfigFitsLimits) and resolv.conf(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from emulator.cluster.coredns import CLUSTER_DOMAIN
from emulator.cluster.model import Pod
from emulator.dns.reverse import canonical

SERVERS_MAX = 3  # MAXNS of resolv.h, and pkg/apis/core/validation MaxDNSNameservers
SEARCHES_MAX = 32  # MaxDNSSearchPaths
SEARCH_BYTES_MAX = 2048  # MaxDNSSearchListChars
NDOTS_MAX = 15  # resolv.h: RES_MAXNDOTS
TIMEOUT_MAX = 30  # seconds: RES_MAXRETRANS
ATTEMPTS_MAX = 5  # RES_MAXRETRY
DEFAULT_OPTIONS = ("ndots:5",)


class ResolvConf(msgspec.Struct, frozen=True, omit_defaults=True):
    """``options`` as they are written: ``ndots:5``, ``rotate``."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def text(self) -> str:
        """The file, in the order that containerd writes it."""
        lines = [f"search {' '.join(self.search)}"] if self.search else []
        lines += [f"nameserver {server}" for server in self.nameservers]
        lines += [f"options {' '.join(self.options)}"] if self.options else []
        return "".join(f"{line}\n" for line in lines)

    def number(self, option: str, default: int, most: int) -> int:
        """The value of an option like ``ndots``; the last one counts, nonsense does not."""
        value = default
        for one in self.options:
            name, _, text = one.partition(":")
            if name == option and text.isdecimal() and len(text) < 6:
                value = min(int(text), most)
        return value


class Resolvers(msgspec.Struct, frozen=True, omit_defaults=True):
    """What pods may ask. ``cluster``: the kubelet's clusterDNS; ``node``: the nodes' own resolv.conf."""

    cluster: tuple[str, ...] = ()
    node: ResolvConf = ResolvConf()


def parse(text: str) -> ResolvConf:
    """A resolv.conf as glibc reads it: the last ``search`` counts, of the name servers the first three."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        if line[:1] in ("#", ";"):
            continue
        word, *values = line.split()[:1000] or [""]
        if word == "nameserver" and values and canonical(values[0]):
            servers.append(values[0])
        elif word == "search":
            search = tuple(value.rstrip(".") or "." for value in values)
        elif word == "domain" and values:
            search = (values[0].rstrip(".") or ".",)
        elif word == "options":
            options += values
    return ResolvConf(tuple(servers[:SERVERS_MAX]), search, tuple(options))


def pod_resolv_conf(pod: Pod, resolvers: Resolvers, domain: str = CLUSTER_DOMAIN) -> ResolvConf:
    """A pod's own, by its dnsPolicy and dnsConfig."""
    of_cluster = ResolvConf(
        resolvers.cluster,
        _once((f"{pod.namespace}.svc.{domain}", f"svc.{domain}", domain, *resolvers.node.search)),
        DEFAULT_OPTIONS,
    )
    match pod.dns_policy:
        case "None":
            base = ResolvConf()
        case "Default":
            base = resolvers.node
        case "ClusterFirst" if pod.host_network:
            base = resolvers.node
        case _:
            base = of_cluster
    wanted = pod.dns
    return _within_limits(
        ResolvConf(
            _once((*base.nameservers, *wanted.nameservers)),
            _once((*base.search, *wanted.searches)),
            _merged(base.options, wanted.options),
        )
    )


def _once(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _merged(base: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The pod's options go before others of the same name (mergeDNSOptions)."""
    options = {one.partition(":")[0]: one for one in base}
    options.update({one.partition(":")[0]: one for one in wanted})
    return tuple(options.values())


def _within_limits(conf: ResolvConf) -> ResolvConf:
    """What is too much is left out, from the end (the kubelet also writes an event about it)."""
    search: list[str] = []
    size = -1
    for domain in conf.search[:SEARCHES_MAX]:
        size += 1 + len(domain)
        if size > SEARCH_BYTES_MAX:
            break
        search.append(domain)
    return ResolvConf(conf.nameservers[:SERVERS_MAX], tuple(search), conf.options)
