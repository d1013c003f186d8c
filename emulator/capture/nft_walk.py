"""nftables tables of a plan, as far as they are known in parts, judged by what a capture shows of a packet.

Of nft's language the words are read that service proxies and policy enforcers write; a rule with any other word may
match or may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from emulator.capture.iptables_walk import queued
from emulator.capture.queue_agent import QueueAgent
from emulator.capture.rule_walk import WHOLE, Culprit, MarkTest, Seen, Step, Verdict
from emulator.plan.model import NftChain, NftElement, NftPart, NftRules, NftSet, NftTable

_HOOK = re.compile(r"type (\w+) hook (\w+) priority (-?\d+)")
_NAMED_PRIORITY = re.compile(r"priority (srcnat|dstnat|filter)(?: ([+-] \d+))?")
_BLOCK = re.compile(r"^(set|chain) (\S+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
# Of what IPv6 finds its neighbours by
_ICMPV6_TYPES = {
    "nd-router-solicit": 133,
    "nd-router-advert": 134,
    "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136,
    "nd-redirect": 137,
}
_COMMENT = re.compile(r'\s*comment "([^"]*)"\s*$')
_TOKEN = re.compile(r"\{[^}]*\}|\S+")
_ENDPOINT = re.compile(r"endpoint-[A-Z2-7]{8}-([^/]+/[^/]+)/[a-z]+/([^/_]*)__")
_HASH = re.compile(r"cali:[A-Za-z0-9_-]{16};( |$)")  # of Felix, which has it in every rule's comment
_NUMBERED = re.compile(r"\d+ : ((?:goto|jump) \S+?)(?:,|\s|\})")

_OPEN = Verdict("none")
_NUMBERS = {"1": "icmp", "4": "ipip", "6": "tcp", "17": "udp", "58": "icmpv6", "132": "sctp"}


class _Word(NamedTuple):
    """What a rule's head said so far."""

    matches: bool | None
    tests: tuple[MarkTest, ...]


class Nftables:
    """The tables of one family on one machine, at the hooks of one type (``nat``, ``filter``). ``agent`` decides on
    what is queued; without one that passes (``bypass``)."""

    def __init__(
        self, kind: str, family: int, tables: Sequence[NftRules], *, new: bool = False, agent: QueueAgent | None = None
    ) -> None:
        name = "ip" if family == 4 else "ip6"
        self._ip = name
        self._tables = [each for each in tables if each.family in (name, "inet")]
        self._new = new
        self._agent = agent
        self._chains: dict[str, tuple[NftRules, tuple[str, ...]]] = {}
        self._elements: dict[tuple[str, str], NftElement] = {}
        self._members: dict[str, list[str]] = {}  # of each set that no rule fills
        self._bases: list[tuple[str, int, str]] = []
        for table in self._tables:
            parts = (table.frame, *table.parts.values())
            for part in parts:
                for chain in part.chains:
                    self._chains[chain.name] = (table, chain.rules)
                self._members.update((one.name, []) for one in part.sets if "dynamic" not in one.flags)
            for item in (item for part in parts for item in part.elements):
                key = item.key.replace('"', "")
                self._elements[item.of, key] = item
                self._members.setdefault(item.of, []).append(key)
            for chain in table.hooks:
                self._chains[chain.name] = (table, chain.rules)
                found = _HOOK.search(chain.hook)
                if found is not None and found[1] == kind:
                    self._bases.append((found[2], int(found[3]), chain.name))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not self._bases

    def hook(self, name: str) -> list[str]:
        """The base chains of a hook by priority."""
        return [chain for hook, _, chain in sorted(self._bases, key=lambda each: each[1]) if hook == name.lower()]

    def steps(self, chain: str, seen: Seen) -> Iterator[Step]:
        """The rules of a chain; a map gives one for each way that it may lead."""
        if chain not in self._chains:
            return
        table, rules = self._chains[chain]
        for number, text in enumerate(rules, start=1):
            comment = _COMMENT.search(text)
            plain = _COMMENT.sub("", text)
            said = _HASH.sub("", comment[1]) if comment else ""
            why = said or _why(chain, plain) or table.why
            place = f"nft {table.family} {table.name} {chain} rule {number}"
            culprit = Culprit(place, plain, table.component, why, chain, number)
            yield from self._judged(_TOKEN.findall(plain), culprit, seen)

    def _judged(self, words: list[str], culprit: Culprit, seen: Seen) -> Iterator[Step]:
        matches: bool | None = True
        tests: tuple[MarkTest, ...] = ()
        while words:
            if words[0] == "queue":
                yield queued(matches, culprit, self._agent, seen)._replace(marks=tests)
                return
            verdict = self._verdict(words)
            if verdict is not None:
                yield Step(matches, verdict, culprit, tests)
                return
            if "vmap" in words and (ways := self._mapped(words, seen)) is not None:
                for found in ways:
                    yield Step(found[0] if matches else matches, found[1], culprit, tests)
                return
            one, taken, test = self._condition(words, seen)
            if test is not None:
                tests = (*tests, test)
            if one is False:
                return
            if one is None:
                matches = None
            words = words[taken:]

    def _verdict(self, words: list[str]) -> Verdict | None:
        match words:
            case ["accept", *_]:
                return Verdict("accept")
            case ["drop" | "reject", *_]:
                return Verdict("drop")
            case ["return", *_]:
                return Verdict("return")
            case ["jump", chain, *_]:
                return Verdict("jump", chain=chain)
            case ["goto", chain, *_]:
                return Verdict("goto", chain=chain)
            case ["masquerade", *_]:
                return Verdict("nat", nat="source")
            case ["snat", "to", address, *_]:
                return Verdict("nat", nat="source", to=_address(address))
            case ["dnat", "to", address, *_]:
                return Verdict("nat", nat="target", to=_address(address))
            case [("meta" | "mark"), *_] if "set" in words[:3] and "mark" in words[:2]:
                return _marking(words[words.index("set") + 1 :])
            case ["update" | "add", _, "{", *_] | ["update" | "add", _, _]:
                return _OPEN
            case ["counter", *_] if len(words) == 1:
                return _OPEN
            case ["continue" | "notrack" | "log", *_]:
                return _OPEN
            case ["ct", "label", "set", *_]:
                return _OPEN
        return None

    def _mapped(self, words: list[str], seen: Seen) -> list[tuple[bool | None, Verdict]] | None:
        """The ways that a verdict map leads, if the rule is one: head, ``vmap``, map. None if it begins otherwise."""
        place = words.index("vmap")
        head, target = words[:place], words[place + 1]
        key: list[str] = []
        if head[:2] == ["numgen", "random"]:
            inline = [each.split(" ", 1) for each in _NUMBERED.findall(target)]
            verdicts = [Verdict("goto" if kind == "goto" else "jump", chain=chain) for kind, chain in inline]
            return [(True if len(verdicts) == 1 else None, each) for each in verdicts]
        for part in " ".join(head).split(" . "):
            value = self._field(part, seen)
            if value is None:
                return None
            key.append(value)
        found = self._elements.get((target.removeprefix("@"), " . ".join(key)))
        if found is None:
            return []
        verdict = self._verdict(found.verdict.split())
        return [(True, verdict)] if verdict is not None else []

    def _field(self, text: str, seen: Seen) -> str | None:
        match text:
            case "ip daddr" | "ip6 daddr":
                return seen.target
            case "ip saddr" | "ip6 saddr":
                return seen.source
            case "meta l4proto" | "ip protocol":
                return seen.protocol
            case "icmp type" | "icmpv6 type":
                return str(seen.icmp[0]) if seen.icmp is not None else ""
            case "icmp code" | "icmpv6 code":
                return str(seen.icmp[1]) if seen.icmp is not None else ""
            case "th dport" | "tcp dport" | "udp dport" | "sctp dport":
                return str(seen.target_port)
            case "th sport" | "tcp sport" | "udp sport":
                return str(seen.source_port)
            case "iifname":
                return seen.entered
            case "oifname":
                return seen.leaves
        return None

    def _condition(self, words: list[str], seen: Seen) -> tuple[bool | None, int, MarkTest | None]:
        """Whether the first condition holds, how many words it has, and what it wants of the mark."""
        match words:
            case ["ip" | "ip6" as family, *_] if family != self._ip:
                return False, 1, None
            case ["udp" | "tcp" | "sctp" | "icmpv6" as protocol, *_] if protocol != seen.protocol:
                return False, 1, None
            case ["icmpv6", "type", name, *_] if name in _ICMPV6_TYPES:
                return (seen.icmp[0] == _ICMPV6_TYPES[name] if seen.icmp is not None else None), 3, None
            case ["ct", "label", _, *_]:
                return (False if self._new else None), 3, None
            case ["meta", "skuid", _, *_]:  # what comes in by a device has lost its socket
                return (False if seen.entered else None), 3, None
            case ["ct", "state", states, *_]:
                listed = states.strip("{} ").replace(",", " ").split()
                return ("new" in listed if self._new else None), 3, None
            case ["ct", "original", "proto-dst", *_]:
                return None, 4, None
            case ["ct", "original", *_]:
                return None, 5, None
            case ["ct", "status", "!=", *_]:
                return None, 4, None
            case ["ct", "status", *_]:
                return None, 3, None
            case ["jhash", *_] if "seed" in words:  # which target the hash picks is not worked out
                return None, words.index("seed") + 3, None
            case ["fib", ("daddr" | "saddr") as which, "type", "local", *_]:
                address = seen.target if which == "daddr" else seen.source
                return (address in seen.local if seen.local else None), 4, None
            case ["fib", "saddr", ".", "mark", ".", "iif", "oif", "0", *_]:
                return (not seen.returns if seen.returns is not None else None), 8, None
            case ["fib", "saddr", ".", "oif", "type", "!=", "local", *_]:
                return None, 7, None
            case ["mark", ("and" | "&"), mask, ("==" | "!=") as how, value, *_]:
                return True, 5, MarkTest(int(value, 0), int(mask, 0), how == "!=")
            case ["meta", "mark", ("and" | "&"), mask, ("==" | "!=") as how, value, *_]:
                return True, 6, MarkTest(int(value, 0), int(mask, 0), how == "!=")
            case ["counter", *_]:
                return True, 1, None
        if (joined := self._joined(words, seen)) is not None:
            return joined
        for taken in (2, 1):
            field = self._field(" ".join(words[:taken]), seen)
            if field is None or len(words) <= taken:
                continue
            place = taken + 1 if words[taken] in ("!=", "==") else taken
            held = self._holds(field, words[place].strip('"')) if place < len(words) else None
            return (not held if words[taken] == "!=" and held is not None else held), place + 1, None
        return None, 1, None

    def _joined(self, words: list[str], seen: Seen) -> tuple[bool | None, int, MarkTest | None] | None:
        """A condition on several fields at once, ``ip daddr . meta l4proto . th dport @set``; None if it is another."""
        end = next((place for place, word in enumerate(words) if word[0] in "@{" or word in ("!=", "==")), 0)
        if "." not in words[:end]:
            return None
        values = [self._field(part, seen) for part in " ".join(words[:end]).split(" . ")]
        negated = words[end] == "!="
        place = end + 1 if words[end] in ("!=", "==") else end
        if None in values or place >= len(words):
            return None
        held = self._holds(" . ".join(map(str, values)), words[place])
        return (not held if negated and held is not None else held), place + 1, None

    def _holds(self, value: str, wanted: str) -> bool | None:
        if wanted.startswith("@"):
            members = self._members.get(wanted[1:])
            # A set that rules fill holds what no plan knows.
            return _among(value, members) if members is not None else None
        listed = [each.strip() for each in wanted.strip("{} ").split(",")]
        return _among(value, [_NUMBERS.get(each, each) for each in listed] if not value.isdigit() else listed)


def queueing(table: NftTable) -> NftRules | None:
    """A table of text with rules that queue packets, as one whose rules can be followed; None for any other."""
    if " queue " not in table.body or table.family not in ("ip", "ip6", "inet"):
        return None
    sets: list[NftSet] = []
    elements: list[NftElement] = []
    hooks: list[NftChain] = []
    for block in _BLOCK.finditer(table.body):
        kind, name, lines = block[1], block[2], [line.strip() for line in block[3].splitlines() if line.strip()]
        if kind == "set":
            given = dict(line.split(" ", 1) for line in lines)
            sets.append(NftSet(name, given["type"]))
            keys = given.get("elements", "").strip("={} ").split(",")
            elements += [NftElement(name, key.strip()) for key in keys if key.strip()]
        else:
            hooks.append(NftChain(name, tuple(lines[1:]), _numbered(lines[0])))
    return NftRules(
        ns=table.ns,
        family=table.family,
        name=table.name,
        frame=NftPart(tuple(sets), (), tuple(elements)),
        hooks=tuple(hooks),
        component=table.component,
        why=table.why,
    )


def _numbered(hook: str) -> str:
    """``priority srcnat - 5`` with the number that nft(8) gives the name."""
    found = _NAMED_PRIORITY.search(hook)
    if found is None:
        return hook
    number = {"srcnat": 100, "dstnat": -100, "filter": 0}[found[1]] + int((found[2] or "0").replace(" ", ""))
    return hook.replace(found[0], f"priority {number}")


def _among(value: str, wanted: Sequence[str]) -> bool | None:
    for each in wanted:
        if value == each or (each.endswith("*") and value.startswith(each[:-1])):
            return True
        first, hyphen, last = each.partition("-")
        if hyphen and value.isdigit() and first.isdigit() and last.isdigit():
            if int(first) <= int(value) <= int(last):
                return True
            continue
        try:
            if ip_address(value) in ip_network(each, strict=False):
                return True
        except ValueError:
            continue
    return False


def _why(chain: str, text: str) -> str:
    """What the chain's name says of a rule that translates the target: ``endpoint-HASH-NS/NAME/PROTOCOL/PORT__...``."""
    found = _ENDPOINT.match(chain)
    if found is None or "dnat to" not in text:
        return ""
    return f"{found[1]}{f':{found[2]}' if found[2] else ''}: this endpoint was chosen"


def _marking(words: list[str]) -> Verdict:
    """``mark or 0x4000``, ``mark xor 0x4000``, ``mark and 0x...``, ``mark & 0x... ^ 0x...``, or a value."""
    if words[:1] == ["meta"]:
        words = words[1:]
    match words:
        case ["mark", "&", value, "^", other, *_]:
            return Verdict("mark", keep=int(value, 0), flip=int(other, 0))
        case ["mark", "&", value, *_]:
            return Verdict("mark", keep=int(value, 0))
        case ["mark", "or", value, *_]:
            return Verdict("mark", keep=WHOLE & ~int(value, 0), flip=int(value, 0))
        case ["mark", "xor", value, *_]:
            return Verdict("mark", flip=int(value, 0))
        case ["mark", "and", value, *_]:
            return Verdict("mark", keep=int(value, 0))
        case [value, *_] if value[:1].isdigit():
            return Verdict("mark", keep=0, flip=int(value, 0))
    return _OPEN


def _address(text: str) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80`` as address, blank, port."""
    if text.startswith("["):
        return text[1:].replace("]:", " ").rstrip("]")
    return text.replace(":", " ") if text.count(":") == 1 else text
