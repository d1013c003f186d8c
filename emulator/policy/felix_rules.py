"""Felix's rules as Felix writes them, for iptables and for nftables: marks, names, the hash that every rule carries.

Marks, from the mask 0xffff0000 and its lowest bit up: accept 0x10000, pass 0x20000, drop 0x40000, scratch 0x80000 and
0x100000. (Releases up to v3.30 have no bit for drop, and the scratch bits one place lower.)

Every rule carries a comment ``cali:wUHhoiAYhphO9Mso``: SHA-224 over the hash of the rule before (the chain's name, for
the first) and the rule as Felix renders it. In nftables mode the chain's name has its layer in front
(``filter-cali-FORWARD``), and the rule is nft's text without comments. So the hashes here are those of a real cluster,
and one that is found in a real dump proves a rule and all that stand before it.

Sources: projectcalico/calico felix/dataplane/driver.go (marks), felix/generictables/rules.go (RuleHashes),
felix/nftables/renderer.go, libcalico-go/lib/hash/unique_id.go, felix/ipsets/ipset_defs.go.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from emulator.plan.model import Chain, Family, NftChain, Rule
from emulator.plan.nftables import LONGEST_COMMENT
from emulator.plan.proxy_rules import split_words
from emulator.policy.felix_words import LAYER, Words, marked

COMPONENT = "felix"
ACCEPT = 0x10000
PASS = 0x20000
DENY = 0x40000
SCRATCH_0 = 0x80000
SCRATCH_1 = 0x100000
ALL_MARKS = ACCEPT | PASS | SCRATCH_0 | SCRATCH_1  # static.go: allCalicoMarkBits
LONGEST_CHAIN_NAME = 28  # felix/iptables: MaxChainNameLength
# Upstream's is 256, nft's own limit, and takes no account of the layer before it nor of the closing NUL: there Felix
# fails with names of 249 characters and more, where this hashes them
LONGEST_NFT_NAME = 248
LONGEST_SET_NAME = 31  # felix/ipsets: MaxIPSetNameLength

_UNSAFE = re.compile(r"[^\w @%+=:,./-]", re.ASCII)  # in a comment; felix/nftables/renderer.go


@dataclass(frozen=True)
class FelixRule:
    """A rule as Felix has it: what it matches, what it does (None: nothing), its comments; ``why`` is for the plan."""

    match: tuple[Words, ...] = ()
    action: Words | None = None
    comments: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, eq=False)
class FelixChain:
    """A chain as Felix has it, before it is written for one or the other kind of tables. One that stays the same object
    is written once."""

    name: Words
    rules: tuple[FelixRule, ...] = ()


ALLOWED = marked(ACCEPT)


# -- names ------------------------------------------------------------------------------------------------------


def limited_name(prefix: str, name: str, longest: int = LONGEST_CHAIN_NAME) -> str:
    """``prefix`` + ``name``, or a hash in its place where that is too long for a chain (GetLengthLimitedID)."""
    length = len(prefix) + len(name)
    # One that could be mistaken for a hash is hashed too
    if length < longest or (length == longest and not name.startswith("_")):
        return prefix + name
    hashed = base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode().rstrip("=")
    return f"{prefix}_{hashed}"[:longest]


def chain_name(prefix: str, name: str) -> Words:
    """A chain's name in either kind of tables."""
    return Words(limited_name(prefix, name), limited_name(prefix, name, LONGEST_NFT_NAME))


def unique_id(kind: str, content: str) -> str:
    """What stands for something long in a set's name (MakeUniqueID): ``s:`` and a hash."""
    digest = hashlib.sha224(f"{kind}:{content}".encode()).digest()
    return f"{kind}:{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def ipset_name(family: Family, name: str) -> str:
    """``cali40masq-ipam-pools``, ``cali60s:XZEFRy4u2E2Kz28IwtNm0u8``: no longer than a set's name may be."""
    return f"cali{family}0{name}"[:LONGEST_SET_NAME]


# -- rendering --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32768)
def iptables_chain(chain: FelixChain) -> Chain:
    """The chain as iptables has it; its rules carry their hashes."""
    name = chain.name.iptables
    return Chain(name, tuple(iptables_rules(name, chain.rules)))


def iptables_rules(name: str, rules: Sequence[FelixRule]) -> Iterator[Rule]:
    """Rules of a chain of that name, with their hashes."""
    for code, rule in zip(rule_hashes(name, rules), rules, strict=True):
        words = " ".join([*(one.iptables for one in rule.match), *([rule.action.iptables] if rule.action else [])])
        yield Rule((*_comments((f"cali:{code}", *rule.comments)), *_words(words)), rule.why)


def rule_hashes(name: str, rules: Iterable[FelixRule]) -> list[str]:
    """Felix's hash of each rule: 16 characters that depend on the chain, the rule, and every rule before it."""
    texts = []
    for rule in rules:
        comments = [f'-m comment --comment "{comment}"' for comment in rule.comments]
        match = " ".join(one.iptables for one in rule.match)
        action = rule.action.iptables if rule.action is not None else ""
        # "HASH" stands where the comment with the hash will be.
        texts.append(" ".join(part for part in (f"-A {name} HASH", *comments, match, action) if part))
    return _chained(name, texts)


@lru_cache(maxsize=32768)
def nft_chain(chain: FelixChain, layer: str) -> NftChain:
    """The chain as nftables has it, in the ``layer`` that would be iptables' table."""
    name = f"{layer}-{chain.name.nft}"
    return NftChain(name, tuple(nft_rules(name, chain.rules, layer)))


def nft_rules(name: str, rules: Sequence[FelixRule], layer: str, hashed_as: str = "") -> Iterator[str]:
    """Rules of a chain of that name, with their hashes; ``hashed_as`` is the name that goes into these."""
    texts = [nft_text(rule, layer) for rule in rules]
    for code, text, rule in zip(_chained(hashed_as or name, texts), texts, rules, strict=True):
        yield f'{text} comment "{_nft_comment((f"cali:{code};", *rule.comments))}"'


def nft_text(rule: FelixRule, layer: str) -> str:
    """A rule in nft's words, without comments. One that does something counts; one that says nothing goes on."""
    words = [one.nft for one in rule.match]
    if rule.action is not None:
        words += ["counter", rule.action.nft]
    return " ".join(words).replace(LAYER, layer) or "continue"


def _chained(name: str, texts: Iterable[str]) -> list[str]:
    state = hashlib.sha224(name.encode()).digest()
    codes = []
    for text in texts:
        state = hashlib.sha224(state + text.encode()).digest()
        codes.append(base64.urlsafe_b64encode(state).decode()[:16])
    return codes


def _nft_comment(parts: Sequence[str]) -> str:
    """nftables has one comment for a rule, of 128 characters: each part gets an equal share of what the hash leaves."""
    first, *others = parts
    share = (LONGEST_COMMENT - len(first)) // len(others) if others else 0
    return " ".join([first, *(_UNSAFE.sub("_", one)[:share] for one in others)])[:LONGEST_COMMENT]


def _words(text: str) -> Sequence[str]:
    return split_words(text) if '"' in text else text.split()


def _comments(comments: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for comment in comments for word in ("-m", "comment", "--comment", comment))
