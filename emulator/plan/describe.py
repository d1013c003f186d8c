"""Any object of a plan in one line, in the words of the tool that would make it (``ip``, ``bridge``, ``iptables``)."""

from __future__ import annotations

from functools import singledispatch

import msgspec

from emulator.plan.model import (
    Address,
    Bridge,
    BridgePort,
    CniAttachment,
    Daemon,
    Dummy,
    FdbEntry,
    File,
    Impairment,
    Ipip,
    IpSet,
    IptablesRules,
    IpvsServers,
    Namespace,
    Neighbour,
    NftRules,
    NftTable,
    Offloads,
    PlanObject,
    PolicyRule,
    ProxyRules,
    Route,
    Sysctl,
    Tun,
    Veth,
    Vxlan,
    Wireguard,
    WireguardPeer,
)

MAIN_TABLE = 254


@singledispatch
def describe(item: PlanObject) -> str:
    """One line for people: ``route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink``."""
    raise NotImplementedError(f"no words for {type(item).__name__}")


@describe.register
def _namespace(item: Namespace) -> str:
    return f"namespace {item.ns}"


@describe.register
def _veth(item: Veth) -> str:
    words = [f"veth {item.name} mtu {item.mtu}"]
    if item.mac:
        words.append(f"mac {item.mac}")
    words.append(f"peer {item.peer} in {item.peer_ns}")
    if item.peer_mac:
        words.append(f"mac {item.peer_mac}")
    if item.peer_mtu:
        words.append(f"mtu {item.peer_mtu}")
    return " ".join(words)


@describe.register
def _bridge(item: Bridge) -> str:
    return f"bridge {item.name} mtu {item.mtu}" + (f" mac {item.mac}" if item.mac else "")


@describe.register
def _vxlan(item: Vxlan) -> str:
    learning = "learning" if item.learning else "nolearning"
    return (
        f"vxlan {item.name} id {item.vni} dstport {item.port} local {item.local} dev {item.underlay} "
        f"{learning} mtu {item.mtu}" + (f" mac {item.mac}" if item.mac else "")
    )


@describe.register
def _ipip(item: Ipip) -> str:
    ends = [f"{word} {value or 'any'}" for word, value in (("local", item.local), ("remote", item.remote))]
    return f"ipip {item.name} {' '.join(ends)} ttl inherit mtu {item.mtu}"


@describe.register
def _tun(item: Tun) -> str:
    return f"tun {item.name} mtu {item.mtu}"


@describe.register
def _dummy(item: Dummy) -> str:
    return f"dummy {item.name}" + ("" if item.up else " down")


@describe.register
def _wireguard(item: Wireguard) -> str:
    return f"{'wireguard-go' if item.userspace else 'wireguard'} {item.name} listen-port {item.port} mtu {item.mtu}"


@describe.register
def _wireguard_peer(item: WireguardPeer) -> str:
    words = [f"peer {item.public_key} of {item.device} endpoint {item.endpoint}"]
    words.append(f"allowed-ips {','.join(item.allowed_ips)}")
    if item.preshared_key:
        words.append("preshared-key")
    if item.keepalive:
        words.append(f"persistent-keepalive {item.keepalive}")
    return " ".join(words)


@describe.register
def _bridge_port(item: BridgePort) -> str:
    return f"port {item.device} of {item.bridge}" + (" hairpin on" if item.hairpin else "")


@describe.register
def _address(item: Address) -> str:
    scope = "" if item.scope == "global" else f" scope {item.scope}"
    return f"address {item.address} dev {item.device}{scope}" + ("" if item.prefix_route else " noprefixroute")


@describe.register
def _neighbour(item: Neighbour) -> str:
    if not item.mac:
        return f"neighbour {item.address} dev {item.device} (room, found by {'NDP' if ':' in item.address else 'ARP'})"
    return f"neighbour {item.address} lladdr {item.mac} dev {item.device} permanent"


@describe.register
def _fdb_entry(item: FdbEntry) -> str:
    return f"fdb {item.mac} dev {item.device} dst {item.remote} self permanent"


@describe.register
def _route(item: Route) -> str:
    destination = "default" if item.destination in ("0.0.0.0/0", "::/0") else item.destination
    words = ["route"]
    if item.type != "unicast":
        words.append(item.type)
    words.append(destination if item.destination != "::/0" else "default (IPv6)")
    for word, value in (("via", item.via), ("dev", item.device), ("src", item.source)):
        if value:
            words.append(f"{word} {value}")
    words += [f"nexthop via {via} dev {device}" for via, device in item.hops]
    if item.scope != "global":
        words.append(f"scope {item.scope}")
    if item.protocol != "boot":
        words.append(f"proto {item.protocol}")
    for word, number in (("metric", item.metric), ("mtu", item.mtu)):
        if number:
            words.append(f"{word} {number}")
    if item.table != MAIN_TABLE:
        words.append(f"table {item.table}")
    if item.onlink:
        words.append("onlink")
    if item.learned:
        words.append("(learned)")
    return " ".join(words)


@describe.register
def _policy_rule(item: PolicyRule) -> str:
    words = [f"rule {item.priority}:"]
    for word, value in (("from", item.source), ("to", item.destination), ("iif", item.iif)):
        if value:
            words.append(f"{word} {value}")
    if item.fwmark or item.fwmask:
        words.append(f"fwmark {item.fwmark:#x}{f'/{item.fwmask:#x}' if item.fwmask else ''}")  # without: all bits
    return " ".join([*words, f"lookup {'main' if item.table == MAIN_TABLE else item.table}"])


@describe.register
def _sysctl(item: Sysctl) -> str:
    return f"sysctl {item.name} = {item.value}"


@describe.register
def _offloads(item: Offloads) -> str:
    return f"offloads of {item.device} off"


@describe.register
def _impairment(item: Impairment) -> str:
    words = [f"impairment on {item.device}"]
    for word, value, unit in (
        ("rate", item.bandwidth, "Mbit/s"),
        ("delay", item.delay, "ms"),
        ("jitter", item.jitter, "ms"),
        ("loss", item.loss, "%"),
    ):
        if value:
            words.append(f"{word} {value:g}{unit}")
    return " ".join(words)


@describe.register
def _iptables(item: IptablesRules) -> str:
    program = "iptables" if item.family == 4 else "ip6tables"
    rules = sum(len(chain.rules) for chain in item.chains)
    return f"{program} -t {item.table}: {item.owner}, {_count(len(item.chains), 'chain')}, {_count(rules, 'rule')}"


@describe.register
def _proxy_rules(item: ProxyRules) -> str:
    program = "iptables" if item.family == 4 else "ip6tables"
    chains = sum(len(each) for each in item.tables.values())
    rules = sum(text.count("\n") for each in item.tables.values() for text in each.values())
    return f"{program}: {item.owner}, {_count(chains, 'chain')}, {_count(rules, 'rule')}"


@describe.register
def _ipset(item: IpSet) -> str:
    family = "inet" if item.family == 4 else "inet6"
    return f"ipset {item.name} {item.type} {family}: {', '.join(item.members) or 'empty'}"


@describe.register
def _nft(item: NftTable) -> str:
    return f"nftables table {item.family} {item.name}"


@describe.register
def _nft_rules(item: NftRules) -> str:
    return f"nftables table {item.family} {item.name}, {_count(len(item.parts), item.subject)}"


@describe.register
def _ipvs(item: IpvsServers) -> str:
    return f"ipvs IPv{item.family}: {_count(len(item.servers), 'virtual server')}"


@describe.register
def _file(item: File) -> str:
    return f"file {item.path} ({len(item.content.encode())} bytes, mode {item.mode:04o})"


@describe.register
def _cni_attachment(item: CniAttachment) -> str:
    network = msgspec.json.decode(item.network)
    chain = ", ".join(plugin["type"] for plugin in network["plugins"])
    words = f"attachment of {item.device} to {network['name']} by {chain} in {item.node}"
    return words + (f": {', '.join(item.addresses)}" if item.addresses else "")


@describe.register
def _daemon(item: Daemon) -> str:
    return f"daemon {item.name}: {' '.join(item.argv)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
