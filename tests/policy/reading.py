"""Reads a node's rules as the kernel would: a second opinion on what enforcers write, without any kernel.

It knows the matches and targets that enforcers use, and stops at any other. The packet is the first of a connection.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from emulator.capture.nft_walk import Nftables
from emulator.capture.rule_walk import Mark, Seen, Walk
from emulator.plan.model import AnyObject, IpSet, IptablesRules, NftRules, Rule

ICMP_TYPES = {
    "echo-request": (8, 128),
    "destination-unreachable": (3, 1),
    "time-exceeded": (11, 3),
    "neighbor-solicitation": (-1, 135),
    "neighbor-advertisement": (-1, 136),
    "echo-reply": (0, 129),
}
PROTOCOLS = {"1": "icmp", "4": "ipip", "6": "tcp", "17": "udp", "58": "ipv6-icmp", "132": "sctp", "icmpv6": "ipv6-icmp"}
LONG = {
    "--source": "-s",
    "--destination": "-d",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--destination-ports": "--dports",
}


@dataclass
class Packet:
    """Where it is and what it carries. ``local`` are the addresses of the node that it is on."""

    source: str
    destination: str
    protocol: str
    port: int = 0
    icmp: int = -1
    incoming: str = ""
    outgoing: str = ""
    bridged_in: str = ""
    bridged_out: str = ""
    local: Collection[str] = ()
    mark: int = 0
    trail: list[str] = field(default_factory=list)


class Reader:
    """The filter table of one node and family, with the sets."""

    def __init__(self, objects: Sequence[AnyObject], ns: str, family: int) -> None:
        self._sets = {item.name: item for item in objects if isinstance(item, IpSet) and item.ns == ns}
        tables = [
            item
            for item in objects
            if isinstance(item, IptablesRules) and (item.ns, item.family, item.table) == (ns, family, "filter")
        ]
        self._chains: dict[str, list[Rule]] = {}
        for table in tables:
            self._chains.update((chain.name, list(chain.rules)) for chain in table.chains)
        for table in tables:
            for jump in table.jumps:
                self._chains.setdefault(jump.chain, []).append(jump.rule)
        self._six = family == 6

    def verdict(self, hook: str, packet: Packet) -> str:
        """ACCEPT, DROP or REJECT; the kernel's chains accept in the end."""
        return self._chain(hook, packet) or "ACCEPT"

    def _chain(self, name: str, packet: Packet) -> str:
        for rule in self._chains.get(name, []):
            target = self._matches(list(rule.args), packet)
            if not target:
                continue
            packet.trail.append(f"{name}: {' '.join(rule.args)}")
            word, *options = target[1:]
            if word in ("ACCEPT", "DROP", "REJECT"):
                return word
            if word == "RETURN":
                return ""
            if word == "MARK":
                assert options[0] in ("--set-xmark", "--set-mark")
                value, mask = (int(part, 16) for part in options[1].split("/"))
                packet.mark = packet.mark & ~mask ^ value
            elif word != "NFLOG":
                found = self._chain(word, packet)
                if found or target[0] == "--goto":
                    return found
        return ""

    def _matches(self, words: list[str], packet: Packet) -> list[str]:
        """``--jump`` or ``--goto``, the target and its options; nothing if the rule does not match, or has none."""
        negated = False
        while words:
            word = LONG.get(words[0], words[0])
            words.pop(0)
            if word == "!":
                negated = True
                continue
            if word in ("-j", "--jump", "--goto"):
                return ["--goto" if word == "--goto" else "--jump", *words]
            if word == "-m":
                words.pop(0)
                continue
            if self._one(word, words, packet) == negated:
                return []
            negated = False
        return []  # it counts, and does nothing

    def _one(self, word: str, words: list[str], packet: Packet) -> bool:
        match word:
            case "--comment":
                words.pop(0)
                return True
            case "-s" | "-d":
                address = packet.source if word == "-s" else packet.destination
                return _address(address) in _network(words.pop(0))
            case "-i" | "-o":
                wanted, device = words.pop(0), packet.incoming if word == "-i" else packet.outgoing
                return device.startswith(wanted[:-1]) if wanted.endswith("+") else device == wanted
            case "-p":
                wanted = words.pop(0).lower()
                return PROTOCOLS.get(wanted, wanted) == packet.protocol.lower()
            case "--dport" | "--dports":
                listed = [part.partition(":") for part in words.pop(0).split(",")]
                return any(int(first) <= packet.port <= int(last or first) for first, _, last in listed)
            case "--match-set":
                name, side = words.pop(0), words.pop(0)
                if side == "dst,dst":
                    assert self._sets[name].type.startswith("hash:ip,port")
                    wanted = f"{packet.destination},{packet.protocol.lower()}:{packet.port}"
                    return wanted in self._sets[name].members
                return self._holds(name, packet.source if side == "src" else packet.destination)
            case "--mark":
                value, mask = (int(part, 16) for part in words.pop(0).split("/"))
                return packet.mark & mask == value
            case "--ctstate" | "--state":
                return "NEW" in words.pop(0).split(",")
            case "--src-type" | "--dst-type":
                assert words.pop(0) == "LOCAL"
                return (packet.source if word == "--src-type" else packet.destination) in packet.local
            case "--physdev-is-bridged":
                return bool(packet.bridged_in and packet.bridged_out)
            case "--physdev-in" | "--physdev-out":
                return words.pop(0) == (packet.bridged_in if word == "--physdev-in" else packet.bridged_out)
            case "--icmp-type" | "--icmpv6-type":
                named = words.pop(0)
                return packet.icmp == (int(named) if named.isdigit() else ICMP_TYPES[named][self._six])
            case "--limit" | "--limit-burst":
                words.pop(0)
                return True
        raise AssertionError(f"{word}: no such match is known here")

    def _holds(self, name: str, address: str) -> bool:
        found = self._sets[name]
        if found.type.startswith("list:set"):
            return any(self._holds(member, address) for member in found.members)
        longest, result = -1, False
        for member in found.members:
            text, _, flag = member.partition(" ")
            network = _network(text)
            if network.prefixlen == 0:
                raise AssertionError(f"{name}: ipset refuses {text}")
            if _address(address) in network and network.prefixlen > longest:
                longest, result = network.prefixlen, not flag
        return result


@cache
def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text, strict=False)


@cache
def _address(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)


class NftReader:
    """The same of nftables, whose rules are read by what explains captures: that must not leave anything open."""

    def __init__(self, objects: Sequence[AnyObject], ns: str, family: int) -> None:
        tables = [item for item in objects if isinstance(item, NftRules) and item.ns == ns]
        self._rules = Nftables("filter", family, tables, new=True)
        self._family = family

    def verdict(self, hook: str, packet: Packet) -> str:
        """ACCEPT or DROP."""
        protocol = {"ipv6-icmp": "icmpv6"}.get(packet.protocol, packet.protocol).lower()
        seen = Seen(
            self._family,
            protocol,
            packet.source,
            packet.destination,
            40000,
            packet.port,
            packet.incoming if hook != "OUTPUT" else "",
            packet.outgoing if hook != "INPUT" else "",
            local=frozenset(packet.local),
            returns=True,
            icmp=(packet.icmp, 0) if packet.icmp >= 0 else None,
        )
        marks = {Mark(packet.mark)}
        for at in ("PREROUTING", hook) if hook != "OUTPUT" else (hook,):
            ends = Walk(self._rules, seen).hook(at, marks)
            (kind,) = {end.kind for end in ends}
            if kind == "drop":
                return "DROP"
            marks = {end.mark for end in ends}
        return "ACCEPT"
