"""Felix's iptables rules as Felix writes them: marks, names, and the hash that every rule carries.

Marks, from the mask 0xffff0000 and its lowest bit up: accept 0x10000, pass 0x20000, drop 0x40000, scratch 0x80000 and
0x100000. (Releases up to v3.30 have no bit for drop, and the scratch bits one place lower.)

Every rule carries a comment ``cali:wUHhoiAYhphO9Mso``: SHA-224 over the hash of the rule before (the chain's name, for
the first) and the rule as Felix renders it. So the hashes here are those of a real cluster, and one that is found in a
real dump proves a rule and all that stand before it.

Sources: projectcalico/calico felix/dataplane/driver.go (marks), felix/generictables/rules.go (RuleHashes),
felix/iptables/actions.go and match_builder.go, libcalico-go/lib/hash/unique_id.go, felix/ipsets/ipset_defs.go.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emulator.plan.model import Chain, Family, Rule
from emulator.plan.proxy_rules import split_words

COMPONENT = "felix"
ACCEPT = 0x10000
PASS = 0x20000
DENY = 0x40000
SCRATCH_0 = 0x80000
SCRATCH_1 = 0x100000
ALL_MARKS = ACCEPT | PASS | SCRATCH_0 | SCRATCH_1  # static.go: allCalicoMarkBits
LONGEST_CHAIN_NAME = 28  # felix/iptables: MaxChainNameLength
LONGEST_SET_NAME = 31  # felix/ipsets: MaxIPSetNameLength

TRACKED = "-m conntrack --ctstate RELATED,ESTABLISHED"


@dataclass(frozen=True)
class FelixRule:
    """A rule as Felix has it: what it matches, what it does, its comments; ``why`` is for the plan."""

    match: str
    action: str
    comments: tuple[str, ...] = ()
    why: str = ""


# -- matches and actions ----------------------------------------------------------------------------------------


def marked(bit: int) -> str:
    """MarkSingleBitSet."""
    return f"-m mark --mark {bit:#x}/{bit:#x}"


def unmarked(bits: int) -> str:
    """MarkClear."""
    return f"-m mark --mark 0/{bits:#x}"


def set_mark(bits: int) -> str:
    """SetMarkAction."""
    return f"--jump MARK --set-mark {bits:#x}/{bits:#x}"


def clear_mark(bits: int) -> str:
    """ClearMarkAction."""
    return f"--jump MARK --set-mark 0/{bits:#x}"


ALLOWED = marked(ACCEPT)


# -- names ------------------------------------------------------------------------------------------------------


def limited_name(prefix: str, name: str) -> str:
    """``prefix`` + ``name``, or a hash in its place where that is too long for a chain (GetLengthLimitedID)."""
    length = len(prefix) + len(name)
    # One that could be mistaken for a hash is hashed too
    if length < LONGEST_CHAIN_NAME or (length == LONGEST_CHAIN_NAME and not name.startswith("_")):
        return prefix + name
    hashed = base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode()
    return f"{prefix}_{hashed}"[:LONGEST_CHAIN_NAME]


def unique_id(kind: str, content: str) -> str:
    """What stands for something long in a set's name (MakeUniqueID): ``s:`` and a hash."""
    digest = hashlib.sha224(f"{kind}:{content}".encode()).digest()
    return f"{kind}:{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def ipset_name(family: Family, name: str) -> str:
    """``cali40masq-ipam-pools``, ``cali60s:XZEFRy4u2E2Kz28IwtNm0u8``: no longer than a set's name may be."""
    return f"cali{family}0{name}"[:LONGEST_SET_NAME]


# -- rendering --------------------------------------------------------------------------------------------------


def chain(name: str, rules: Sequence[FelixRule]) -> Chain:
    """A chain whose rules carry their hashes."""
    return Chain(
        name,
        tuple(
            Rule((*_comments((f"cali:{code}", *rule.comments)), *_words(f"{rule.match} {rule.action}")), rule.why)
            for code, rule in zip(rule_hashes(name, rules), rules, strict=True)
        ),
    )


def rule_hashes(name: str, rules: Iterable[FelixRule]) -> list[str]:
    """Felix's hash of each rule: 16 characters that depend on the chain, the rule, and every rule before it."""
    state = hashlib.sha224(name.encode()).digest()
    codes = []
    for rule in rules:
        comments = [f'-m comment --comment "{comment}"' for comment in rule.comments]
        # "HASH" stands where the comment with the hash will be.
        text = " ".join(part for part in (f"-A {name} HASH", *comments, rule.match, rule.action) if part)
        state = hashlib.sha224(state + text.encode()).digest()
        codes.append(base64.urlsafe_b64encode(state).decode()[:16])
    return codes


def _words(text: str) -> Sequence[str]:
    return split_words(text) if '"' in text else text.split()


def _comments(comments: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for comment in comments for word in ("-m", "comment", "--comment", comment))
