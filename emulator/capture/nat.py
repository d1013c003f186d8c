"""Which rule of the plan's iptables translated a packet, or dropped it.

The capture shows that a source or target changed; the plan shows the rules. What the capture does not show (marks,
connection state) is left open: a rule that depends on it may or may not have matched, and both ways are followed.
Only if one single rule can have done it is it named. A rule that dropped a packet is named if that is certain.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal

from emulator.plan.model import Chain, IpSet, IptablesRules, NftTable, Rule

Hook = Literal["PREROUTING", "POSTROUTING", "OUTPUT"]
Route = Literal["PREROUTING", "FORWARD"]
Table = Literal["raw", "mangle", "filter"]
End = Literal["drop", "pass", "return", "open"]
SOURCE_TARGETS = ("MASQUERADE", "SNAT", "NETMAP")
TARGET_TARGETS = ("DNAT", "REDIRECT", "NETMAP")
_ENDS = ("ACCEPT", "DROP", "MASQUERADE", "SNAT", "DNAT", "REDIRECT", "NETMAP")
_NO_VERDICT = ("MARK", "LOG", "CONNMARK", "NFLOG", "TRACE", "SET")

_LONG = {
    "--source": "-s",
    "--destination": "-d",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--protocol": "-p",
    "--jump": "-j",
    "--goto": "-g",
    "--sport": "--source-port",
    "--dport": "--destination-port",
    "--match": "-m",
}
_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "ipv6-icmp": "icmpv6"}
_NFT_SOURCE_NAT = re.compile(r"^\s.*\b(masquerade|snat)\b", re.MULTILINE)
_SWITCHES = ("--random-fully", "--random", "--limit-iface-in", "--limit-iface-out", "--restore-mark", "--save-mark")
_IGNORED = ("--comment", "--random-fully", "--random", "--to-source", "--to-destination", "--to-ports", "--set-xmark")


@dataclass(frozen=True)
class Translated:
    """The packet as the hook saw it; devices are empty where there is none (``entered`` at OUTPUT)."""

    version: int
    protocol: str
    source: str
    target: str
    source_port: int
    target_port: int
    entered: str
    leaves: str


@dataclass(frozen=True)
class Culprit:
    """The rule that did it: its table's owner, chain, number in the chain from 1, and itself."""

    rules: IptablesRules
    chain: str
    number: int
    rule: Rule


def translator(
    hook: Hook, packet: Translated, tables: Iterable[IptablesRules], sets: Iterable[IpSet]
) -> Culprit | None:
    """The only rule behind ``hook`` that can have translated ``packet``; None if there is none, or more than one."""
    wanted = SOURCE_TARGETS if hook == "POSTROUTING" else TARGET_TARGETS
    mine = [each for each in tables if each.table == "nat" and each.family == packet.version]
    members = {each.name: each for each in sets}
    found = list(_Walk(mine, members, packet, wanted).hook(hook))
    unique = {(each.chain, each.number, each.rules.owner): each for each in found}
    return next(iter(unique.values())) if len(unique) == 1 else None


def dropper(packet: Translated, tables: Iterable[IptablesRules], sets: Iterable[IpSet]) -> Culprit | None:
    """The rule that surely drops ``packet`` on its way through a machine that routes it; None where that is open."""
    mine = [each for each in tables if each.family == packet.version]
    members = {each.name: each for each in sets}
    stages: tuple[tuple[Table, Route], ...] = (
        ("raw", "PREROUTING"),
        ("mangle", "PREROUTING"),
        ("mangle", "FORWARD"),
        ("filter", "FORWARD"),
    )
    for table, hook in stages:
        walk = _Walk([each for each in mine if each.table == table], members, packet, ("DROP",))
        end, culprit = walk.surely(hook)
        if end == "drop":
            return culprit
        if end == "open":
            return None
    return None


def masquerading_table(
    hook: Hook, packet: Translated, tables: Iterable[IptablesRules], nft: Iterable[NftTable]
) -> NftTable | None:
    """The only nftables table that can have masqueraded ``packet``; None if there are more, or iptables may have.

    The table's text is not followed: that it is the only one which gives packets of this family another source is
    what makes it the one.
    """
    if hook != "POSTROUTING" or any(each.table == "nat" and each.family == packet.version for each in tables):
        return None
    families = ("inet", "ip" if packet.version == 4 else "ip6")
    found = [each for each in nft if each.family in families and _NFT_SOURCE_NAT.search(each.body)]
    return found[0] if len(found) == 1 else None


class _Walk:
    def __init__(
        self, tables: Sequence[IptablesRules], sets: dict[str, IpSet], packet: Translated, wanted: Sequence[str]
    ) -> None:
        self.tables, self.sets, self.packet, self.wanted = tables, sets, packet, wanted
        self.chains: dict[str, tuple[IptablesRules, Chain]] = {}
        for each in tables:
            for chain in each.chains:
                self.chains[chain.name] = (each, chain)

    def hook(self, hook: Hook) -> Iterator[Culprit]:
        # iptables -I puts the latest first, -A the latest last.
        jumps = [(each, jump) for each in self.tables for jump in each.jumps if jump.chain == hook]
        inserted = [pair for pair in reversed(jumps) if pair[1].position == "insert"]
        appended = [pair for pair in jumps if pair[1].position == "append"]
        for owner, jump in inserted + appended:
            matches, target = self.judge(jump.rule)
            if matches is False:
                continue
            if target in self.wanted:
                yield Culprit(owner, hook, 0, jump.rule)
                if matches:
                    return
            elif (yield from self.chain(target, 0)) and matches:
                return

    def chain(self, name: str, depth: int) -> Generator[Culprit, None, bool]:
        """The generator's value: whether a packet is sure to end here, rather than return to the caller."""
        if name not in self.chains or depth > 32:
            return False
        owner, chain = self.chains[name]
        for number, rule in enumerate(chain.rules, start=1):
            matches, target = self.judge(rule)
            if matches is False or target in _NO_VERDICT or not target:
                continue
            if target in self.wanted:
                yield Culprit(owner, name, number, rule)
            if target in _ENDS:
                if matches:
                    return True
            elif target == "RETURN":
                if matches:
                    return False
            elif (yield from self.chain(target, depth + 1)) and matches:
                return True
        return False

    def surely(self, hook: Route) -> tuple[End, Culprit | None]:
        """How the packet leaves the hook, if that does not depend on what a capture does not show."""
        jumps = [(each, jump) for each in self.tables for jump in each.jumps if jump.chain == hook]
        inserted = [pair for pair in reversed(jumps) if pair[1].position == "insert"]
        appended = [pair for pair in jumps if pair[1].position == "append"]
        rules = [(owner, 0, jump.rule) for owner, jump in inserted + appended]
        end, culprit = self._end_of(hook, rules, 0)
        return ("pass" if end == "return" else end), culprit

    def _end_of(
        self, name: str, rules: Sequence[tuple[IptablesRules, int, Rule]], depth: int
    ) -> tuple[End, Culprit | None]:
        for owner, number, rule in rules:
            matches, target = self.judge(rule)
            if matches is False or (target not in (*_ENDS, "RETURN") and target not in self.chains):
                continue
            if matches is None or depth > 32:
                return "open", None
            if target == "DROP":
                return "drop", Culprit(owner, name, number, rule)
            if target in _ENDS:
                return "pass", None
            if target == "RETURN":
                return "return", None
            chain_owner, chain = self.chains[target]
            inner = [(chain_owner, place, each) for place, each in enumerate(chain.rules, start=1)]
            end, culprit = self._end_of(target, inner, depth + 1)
            if end != "return":
                return end, culprit
        return "return", None

    def judge(self, rule: Rule) -> tuple[bool | None, str]:
        """Whether the rule matches (None: it depends on what a capture does not show), and its target."""
        result: bool | None = True
        target, negated = "", False
        words = list(rule.args)
        while words:
            word = _LONG.get(words[0], words[0])
            words.pop(0)
            if word == "!":
                negated = True
                continue
            if word in ("-j", "-g"):
                target = words.pop(0) if words else ""
                continue
            takes = 2 if word == "--match-set" else 0 if word in _SWITCHES else 1
            values, words = words[:takes], words[takes:]
            if word == "-m" or word in _IGNORED:
                negated = False
                continue
            one = self.condition(word, values)
            if one is not None and negated:
                one = not one
            negated = False
            if one is False:
                result = False
            elif one is None and result:
                result = None
        return result, target

    def condition(self, option: str, values: Sequence[str]) -> bool | None:
        packet, value = self.packet, values[0] if values else ""
        if option == "-s":
            return _within(packet.source, value)
        if option == "-d":
            return _within(packet.target, value)
        if option == "-i":
            return _device(packet.entered, value)
        if option == "-o":
            return _device(packet.leaves, value)
        if option == "-p":
            return value == "all" or _PROTOCOLS.get(value, value) == packet.protocol
        if option == "--source-port":
            return _port(packet.source_port, value)
        if option == "--destination-port":
            return _port(packet.target_port, value)
        if option == "--match-set" and len(values) == 2:
            return self.member(value, values[1])
        return None

    def member(self, name: str, which: str) -> bool | None:
        found = self.sets.get(name)
        if found is None or found.type.split()[0] not in ("hash:net", "hash:ip") or which not in ("src", "dst"):
            return None
        address = self.packet.source if which == "src" else self.packet.target
        return any(_within(address, member) for member in found.members)


def _within(address: str, networks: str) -> bool | None:
    try:
        return any(ip_address(address) in ip_network(each, strict=False) for each in networks.split(","))
    except ValueError:
        return None


def _device(name: str, wanted: str) -> bool:
    return name.startswith(wanted[:-1]) if wanted.endswith("+") else name == wanted


def _port(port: int, wanted: str) -> bool | None:
    low, colon, high = wanted.partition(":")
    if not (low or high) or not (low + high).isdigit():
        return None
    return int(low or 0) <= port <= int(high or 65535) if colon else port == int(low)
