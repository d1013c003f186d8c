"""iptables rules of a plan, judged by what a capture shows of a packet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Literal, NamedTuple

from emulator.capture.queue_agent import QueueAgent
from emulator.capture.rule_walk import WHOLE, Culprit, Mark, MarkTest, Seen, Step, Verdict
from emulator.plan.iptables import rule_text
from emulator.plan.model import IpSet, IptablesRules, Jump, ProxyRules, Rule
from emulator.plan.proxy_rules import split_words

Table = Literal["raw", "mangle", "nat", "filter"]

_SOURCE_TARGETS = ("MASQUERADE", "SNAT")
_TARGET_TARGETS = ("DNAT", "REDIRECT")
_NOTHING = Verdict("none")
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
    "--sports": "--source-ports",
    "--dports": "--destination-ports",
    "--match": "-m",
    "--state": "--ctstate",
}
_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "ipv6-icmp": "icmpv6", "132": "sctp"}
# iptables-extensions(8), of icmp and icmp6: those that policy enforcers write
_ICMP_TYPES = {
    (4, "echo-request"): "8",
    (4, "echo-reply"): "0",
    (4, "destination-unreachable"): "3",
    (4, "time-exceeded"): "11",
    (6, "echo-request"): "128",
    (6, "echo-reply"): "129",
    (6, "destination-unreachable"): "1",
    (6, "packet-too-big"): "2",
    (6, "time-exceeded"): "3",
    (6, "router-solicitation"): "133",
    (6, "router-advertisement"): "134",
    (6, "neighbor-solicitation"): "135",
    (6, "neighbor-advertisement"): "136",
    (6, "neighbour-solicitation"): "135",
    (6, "neighbour-advertisement"): "136",
}
# Options without a value. Whether a client is remembered, a capture does not show.
_SWITCHES = (
    "--random-fully",
    "--random",
    "--limit-iface-in",
    "--limit-iface-out",
    "--restore-mark",
    "--save-mark",
    "--validmark",
    "--queue-bypass",
)
_OPEN_SWITCHES = (
    "--physdev-is-bridged",
    "--invert",
    "--rcheck",
    "--update",
    "--reap",
    "--rttl",
    "--return-nomatch",
    "--syn",
    "--vaddr",
)
_OPTIONS_OF_TARGETS = (
    "--to-source",
    "--to-destination",
    "--to-ports",
    "--to",
    "--set-xmark",
    "--set-mark",
    "--or-mark",
    "--and-mark",
    "--xor-mark",
    "--reject-with",
    "--log-prefix",
    "--mask",
    "--nfmask",
    "--ctmask",
    "--queue-num",
)
_IGNORED = ("--comment", "--name", *_OPTIONS_OF_TARGETS)
_TO_ONE = re.compile(r"(?<!!) -d ([0-9a-fA-F.:]+)(?:/32|/128)? ")


class Words(NamedTuple):
    """A rule taken apart: its conditions (option, values, negated), its target and the target's options."""

    conditions: tuple[tuple[str, tuple[str, ...], bool], ...]
    target: str
    goto: bool
    options: Mapping[str, str]


class Iptables:
    """One table of one family on one machine: the chains of all owners. ``new``: the packet opens its connection, as
    far as anybody saw. ``agent`` decides on what is queued; without one that passes (``--queue-bypass``)."""

    def __init__(
        self,
        table: Table,
        family: int,
        owned: Sequence[IptablesRules],
        proxies: Sequence[ProxyRules],
        sets: Sequence[IpSet],
        *,
        new: bool = False,
        agent: QueueAgent | None = None,
    ) -> None:
        self._agent = agent
        self.table = table
        self._program = "iptables" if family == 4 else "ip6tables"
        self._owned = [each for each in owned if each.table == table and each.family == family]
        self._proxies = [each for each in proxies if each.family == family and table in each.tables]
        self._sets = {each.name: each for each in sets}
        self._new = new
        self._chains = {chain.name: (each, chain.rules) for each in self._owned for chain in each.chains}

    @property
    def empty(self) -> bool:
        """Whether nobody owns anything here."""
        return not self._owned and not self._proxies

    def hook(self, name: str) -> list[str]:
        """The kernel's own chain of that name."""
        return [name]

    def steps(self, chain: str, seen: Seen) -> Iterator[Step]:
        """The rules of a chain, of the kernel's or of anybody's."""
        if chain in self._chains:
            owner, rules = self._chains[chain]
            for number, rule in enumerate(rules, start=1):
                yield self._step(rule, chain, number, owner, seen)
            return
        for proxy in self._proxies:
            if chain in proxy.tables[self.table]:
                yield from self._lines(proxy, chain, seen)
                return
        # -I puts the latest owner first, its own in their order (emulator.plan.iptables), -A the latest last; a proxy's
        # jumps stand below those that others put first.
        jumps = [(each, jump) for each in self._owned for jump in each.jumps if jump.chain == chain]
        last_owner_first = [(each, jump) for each in reversed(self._owned) for jump in each.jumps]
        first = [pair for pair in last_owner_first if pair[1].chain == chain and pair[1].position == "insert"]
        middle = [
            (each, jump) for each in self._proxies for jump in each.jumps.get(self.table, ()) if jump.chain == chain
        ]
        last = [pair for pair in jumps if pair[1].position == "append"]
        stands: list[tuple[IptablesRules | ProxyRules, Jump]] = [*first, *middle, *last]
        for mine, jump in stands:
            yield self._step(jump.rule, chain, 0, mine, seen)

    def _lines(self, proxy: ProxyRules, chain: str, seen: Seen) -> Iterator[Step]:
        start = len(f"-A {chain} ")
        for number, line in enumerate(proxy.tables[self.table][chain].splitlines(), start=1):
            only = _TO_ONE.search(line)  # of ten thousand Services, all but one are left out here
            if only is None or only[1] == seen.target:
                yield self._step(Rule(split_words(line[start:])), chain, number, proxy, seen)

    def _step(self, rule: Rule, chain: str, number: int, owner: IptablesRules | ProxyRules, seen: Seen) -> Step:
        words = taken_apart(rule.args)
        matches: bool | None = True
        tests = []
        for option, values, negated in words.conditions:
            if option == "--mark":
                wanted, mask = _with_mask(values[0])
                tests.append(MarkTest(wanted, mask, negated))
                continue
            one = self._condition(option, values, seen)
            if one is not None and negated:
                one = not one
            if one is False:
                matches = False
                break
            if one is None:
                matches = None
        place = f"{self._program} -t {self.table} {chain}{f' rule {number}' if number else ''}"
        culprit = Culprit(place, rule_text(rule), owner.component, rule.why or _why(words) or owner.why, chain, number)
        if words.target == "NFQUEUE":
            return queued(matches, culprit, self._agent, seen)._replace(marks=tuple(tests))
        return Step(matches, self._verdict(words), culprit, tuple(tests))

    def _verdict(self, words: Words) -> Verdict:
        target = words.target
        if target in ("ACCEPT", "RETURN"):
            return Verdict("accept" if target == "ACCEPT" else "return")
        if target in ("DROP", "REJECT"):
            return Verdict("drop")
        if target == "MARK":
            keep, flip = _marking(words.options)
            return Verdict("mark", keep=keep, flip=flip)
        if target in _SOURCE_TARGETS:
            return Verdict("nat", nat="source", to=_address(words.options.get("--to-source", "")))
        if target in _TARGET_TARGETS:
            return Verdict("nat", nat="target", to=_address(words.options.get("--to-destination", "")))
        if target == "NETMAP":
            return Verdict("nat", nat="source" if "-s" in {option for option, _, _ in words.conditions} else "target")
        known = target in self._chains or any(target in each.tables[self.table] for each in self._proxies)
        return Verdict("goto" if words.goto else "jump", chain=target) if known else _NOTHING

    def _condition(self, option: str, values: Sequence[str], seen: Seen) -> bool | None:
        value = values[0] if values else ""
        match option:
            case "-s":
                return _within(seen.source, value)
            case "-d":
                return _within(seen.target, value)
            case "-i":
                return _device(seen.entered, value)
            case "-o":
                return _device(seen.leaves, value)
            case "-p":
                return value == "all" or _PROTOCOLS.get(value, value) == seen.protocol
            case "--source-port":
                return _port(seen.source_port, value)
            case "--destination-port":
                return _port(seen.target_port, value)
            case "--source-ports":
                return _one_of_ports(seen.source_port, value)
            case "--destination-ports":
                return _one_of_ports(seen.target_port, value)
            case "--dst-type":
                return seen.target in seen.local if value == "LOCAL" and seen.local else None
            case "--src-type":
                return seen.source in seen.local if value == "LOCAL" and seen.local else None
            case "--ctstate":
                # Only what opens a connection meets the nat table.
                return "NEW" in value.split(",") if self._new or self.table == "nat" else None
            case "--physdev-is-bridged":
                return seen.bridged
            case "--icmp-type" | "--icmpv6-type":
                return _icmp(seen, value)
            case "--uid-owner":  # what comes in by a device has lost its socket
                return False if seen.entered else None
            case "--label":  # of the connlabel match
                return False if self._new else None
            case "--invert":  # of the rpfilter match
                return None if seen.returns is None else not seen.returns
            case "--match-set" if len(values) == 2:
                return self._member(value, values[1], seen)
            case "--set":
                return True  # of the recent match: it remembers, and matches
        return None

    def _member(self, name: str, which: str, seen: Seen) -> bool | None:
        found = self._sets.get(name)
        kind = found.type.split()[0] if found is not None else ""
        ends = {
            "src": (seen.source, seen.source_port),
            "dst": (seen.target, seen.target_port),
        }
        first, _, second = which.partition(",")
        if found is None or first not in ends:
            return None
        address, port = ends[first]
        if kind == "list:set":
            within = [self._member(member, which, seen) for member in found.members]
            return True if True in within else None if None in within else False
        if kind == "hash:ip,port" and second == first:
            return f"{address},{seen.protocol}:{port}" in found.members
        if kind not in ("hash:net", "hash:ip") or second:
            return None
        return _in_set(address, found.members)


def queued(matches: bool | None, culprit: Culprit, agent: QueueAgent | None, seen: Seen) -> Step:
    """A rule that queues the packets that it matches."""
    denied = agent.denies(seen) if agent is not None else ""
    if agent is None or not denied:
        return Step(matches, Verdict("accept"), culprit)
    return Step(matches, Verdict("drop"), culprit._replace(component=agent.daemon.component, why=denied))


def touched_bits(owned: Sequence[IptablesRules], family: int) -> int:
    """The bits of the mark that rules outside of nat may change, on which nothing can be said there."""
    bits = 0
    for each in owned:
        if each.table == "nat" or each.family != family:
            continue
        for chain in each.chains:
            for rule in chain.rules:
                words = taken_apart(rule.args)
                if words.target == "MARK":
                    keep, flip = _marking(words.options)
                    bits |= (WHOLE & ~keep) | flip
                elif words.target == "CONNMARK" and "--restore-mark" in rule.args:
                    mask = words.options.get("--nfmask") or words.options.get("--mask") or str(WHOLE)
                    bits |= int(mask, 0)
    return bits


def start(owned: Sequence[IptablesRules], family: int) -> Mark:
    """The mark of a packet as the nat table gets it: none, but for what others may have set before."""
    return Mark(0, WHOLE & ~touched_bits(owned, family))


@lru_cache(maxsize=16384)
def taken_apart(args: tuple[str, ...]) -> Words:
    """The words of a rule by their meaning."""
    conditions: list[tuple[str, tuple[str, ...], bool]] = []
    options: dict[str, str] = {}
    target, goto, negated = "", False, False
    words = list(args)
    while words:
        word = _LONG.get(words[0], words[0])
        words.pop(0)
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            target, goto = (words.pop(0) if words else ""), word == "-g"
            continue
        if word in _SWITCHES or word in _OPEN_SWITCHES or (word == "--set" and target == ""):
            takes = 0
        else:
            takes = 2 if word == "--match-set" else 1
        values, words = tuple(words[:takes]), words[takes:]
        if word == "-m" or word in _IGNORED:
            if values:
                options[word] = values[0]
        elif word not in _SWITCHES:
            conditions.append((word, values, negated))
        negated = False
    # What stands behind a target is its own, not a condition.
    return Words(tuple(conditions), target, goto, options)


def _why(words: Words) -> str:
    """What the rule's own comment says of it."""
    comment = words.options.get("--comment", "")
    return f"{comment}: this endpoint was chosen" if comment and words.target == "DNAT" else comment


def _marking(options: Mapping[str, str]) -> tuple[int, int]:
    """What a MARK target keeps of the mark, and flips then."""
    for name, text in options.items():
        value, mask = _with_mask(text) if name.endswith("mark") else (0, 0)
        match name:
            case "--set-xmark":
                return WHOLE & ~mask, value
            case "--set-mark":
                return WHOLE & ~(mask | value), value
            case "--or-mark":
                return WHOLE & ~value, value
            case "--and-mark":
                return value, 0
            case "--xor-mark":
                return WHOLE, value
    return WHOLE, 0


def _with_mask(text: str) -> tuple[int, int]:
    value, slash, mask = text.partition("/")
    return int(value, 0), int(mask, 0) if slash else WHOLE


def _address(to: str) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80`` as address, blank, port; nothing for a range."""
    if not to or "-" in to:
        return ""
    if to.startswith("["):
        address, _, port = to[1:].partition("]:")
        return f"{address.rstrip(']')} {port}".strip()
    if to.count(":") > 1:
        return to
    return to.replace(":", " ")


def _within(address: str, networks: str) -> bool | None:
    try:
        return any(ip_address(address) in ip_network(each, strict=False) for each in networks.split(","))
    except ValueError:
        return None


def _in_set(address: str, members: Sequence[str]) -> bool:
    """Whether the narrowest member around the address is no exception (``nomatch``), as ipset judges it."""
    if address in members:
        return True
    lengths = [
        (ip_network(member.partition(" ")[0]).prefixlen, not member.endswith(" nomatch"))
        for member in members
        if _within(address, member.partition(" ")[0])
    ]
    return max(lengths)[1] if lengths else False


def _icmp(seen: Seen, wanted: str) -> bool | None:
    """An ICMP type by its name or number, with a code behind a slash."""
    if seen.icmp is None:
        return False
    number, _, code = _ICMP_TYPES.get((seen.version, wanted), wanted).partition("/")
    if not number.isdigit() or (code and not code.isdigit()):
        return None
    return seen.icmp[0] == int(number) and (not code or seen.icmp[1] == int(code))


def _one_of_ports(port: int, wanted: str) -> bool | None:
    """The multiport match."""
    found = [_port(port, each) for each in wanted.split(",")]
    return None if None in found else True in found


def _device(name: str, wanted: str) -> bool:
    return name.startswith(wanted[:-1]) if wanted.endswith("+") else name == wanted


def _port(port: int, wanted: str) -> bool | None:
    low, colon, high = wanted.partition(":")
    if not (low or high) or not (low + high).isdigit():
        return None
    return int(low or 0) <= port <= int(high or 65535) if colon else port == int(low)
