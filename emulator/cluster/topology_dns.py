"""The ``dns`` section of a topology: the DNS resolver outside the cluster, and what it knows.

It is what the nodes' own resolv.conf names, and what CoreDNS forwards foreign names to.
"""

from __future__ import annotations

from collections.abc import Sequence

from emulator.cluster import validation
from emulator.cluster.decode import near
from emulator.cluster.model import Machine, Upstream
from emulator.cluster.topology_file import DnsEntry, Faults

RECORDS_MAX = 10_000  # names
VALUES_MAX = 256  # addresses of one name
DNS_PORT = 53


def resolve_dns(entry: DnsEntry | None, machines: Sequence[Machine], faults: Faults) -> Upstream | None:
    """The resolver of ``entry``; faults go to ``faults``."""
    if entry is None:
        return None
    hosts = {machine.name: machine for machine in machines if machine.kind == "host"}
    host = hosts.get(entry.upstream)
    if host is None:
        reason = "there is no host of this name" + near(entry.upstream, [*hosts])
        faults.add("", "dns.upstream", validation.invalid(entry.upstream, reason))
    elif DNS_PORT in host.ports:
        faults.add(f"host {host.name}", "ports", f"port {DNS_PORT} is taken: the host is the topology's dns.upstream")
    if len(entry.records) > RECORDS_MAX:
        faults.add("", "dns.records", f"must have at most {RECORDS_MAX} items")
        return None
    addresses = {machine.name: _addresses(machine) for machine in machines}
    records = {
        name.lower().rstrip("."): _values(name, [given] if isinstance(given, str) else given, addresses, faults)
        for name, given in entry.records.items()
    }
    if host is None or faults.problems:
        return None
    return Upstream(host.name, addresses[host.name], records)


def _values(name: str, given: list[str], machines: dict[str, tuple[str, ...]], faults: Faults) -> tuple[str, ...]:
    """What a name stands for: addresses (a machine's name stands for its own), or one other name."""
    path = f"dns.records[{validation.shown(name)}]"
    for reason in validation.faults_of_domain(name):
        faults.add("", path, validation.invalid(name, reason))
    if not 0 < len(given) <= VALUES_MAX:
        faults.add("", path, f"must have 1 to {VALUES_MAX} values")
        return ()
    found: dict[str, None] = {}
    aliases = 0
    for value in given:
        if value in machines:
            found.update(dict.fromkeys(machines[value]))
            continue
        address = validation.parse_address(value)
        if address is not None:
            found[str(address)] = None
            continue
        aliases += 1
        for reason in validation.faults_of_domain(value):
            detail = f"must be an IP address, a machine of this topology, or another name: {reason}"
            faults.add("", path, validation.invalid(value, detail))
        found[value.lower().rstrip(".")] = None
    if aliases and len(given) > 1:
        faults.add("", path, "a name that stands for another one (CNAME) has no further values (RFC 1034, 3.6.2)")
    return tuple(found)


def _addresses(machine: Machine) -> tuple[str, ...]:
    return tuple(address.partition("/")[0] for interface in machine.interfaces for address in interface.addresses)
