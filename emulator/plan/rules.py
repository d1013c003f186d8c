"""What decides on packets in the plan: iptables, ipsets, nftables and IPVS."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from emulator.plan.object import Family, Key, PlanObject


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """One iptables rule, as arguments after ``-A CHAIN``; ``why`` explains it.

    Arguments are a sequence, never one string: nothing that a user gives can end a rule early. The
    renderer quotes them for iptables-restore.
    """

    args: tuple[str, ...]
    why: str = ""


class Chain(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chain with all its rules, in order."""

    name: str
    rules: tuple[Rule, ...] = ()


class Jump(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule in a chain of the kernel's (``FORWARD``, ``POSTROUTING``), appended or put first."""

    chain: str
    rule: Rule
    position: Literal["append", "insert"] = "append"


class IptablesRules(PlanObject, frozen=True, kw_only=True):
    """What one component owns in one iptables table: its chains, and the jumps to them."""

    family: Family
    table: Literal["filter", "nat", "mangle", "raw"]
    owner: str
    chains: tuple[Chain, ...]
    jumps: tuple[Jump, ...] = ()

    @property
    def key(self) -> Key:
        return ("iptables", self.ns, self.family, self.table, self.owner)


class ProxyRules(PlanObject, frozen=True, kw_only=True):
    """What a service proxy owns in the iptables of one family: filter, nat and mangle, loaded together.

    Tens of thousands of rules are too many for an object each. ``tables`` holds, by table and chain, the chain's rules
    as the lines that iptables-restore reads (``-A CHAIN ...``, each with its line break); whoever writes them checks
    every word. ``jumps``, by table, stand in the kernel's chains in this order, below those that other owners put
    first. ``emulator.plan.proxy_rules`` reads single rules out of the text.
    """

    family: Family
    owner: str
    tables: dict[str, dict[str, str]]
    jumps: dict[str, tuple[Jump, ...]] = {}

    @property
    def key(self) -> Key:
        return ("proxy-rules", self.ns, self.family, self.owner)


class IpSet(PlanObject, frozen=True, kw_only=True):
    """An ipset with its members, sorted."""

    name: str
    type: str
    family: Family
    members: tuple[str, ...]

    @property
    def key(self) -> Key:
        return ("ipset", self.ns, self.name)


class NftTable(PlanObject, frozen=True, kw_only=True):
    """An nftables table as text: the body between the braces of ``table FAMILY NAME { ... }``."""

    family: Literal["ip", "ip6", "inet", "netdev", "bridge", "arp"]
    name: str
    body: str

    @property
    def key(self) -> Key:
        return ("nft", self.ns, self.family, self.name)


class NftChain(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chain with all its rules in order, as nft(8) reads them after ``add rule FAMILY TABLE CHAIN``.

    ``hook`` makes it a base chain, which the kernel runs by itself: ``type nat hook prerouting priority -100``.
    """

    name: str
    rules: tuple[str, ...] = ()
    hook: str = ""
    comment: str = ""


class NftSet(msgspec.Struct, frozen=True, omit_defaults=True):
    """A set, or a map from its keys to verdicts: ``ipv4_addr . inet_proto . inet_service``.

    ``flags`` as nft(8) names them; ``timeout`` is the seconds after which an element that rules added vanishes, 0 for
    never.
    """

    name: str
    type: str
    verdicts: bool = False
    flags: tuple[str, ...] = ()
    timeout: int = 0
    comment: str = ""


class NftElement(msgspec.Struct, frozen=True, omit_defaults=True):
    """An element of the set ``of``; in a map with its ``verdict``: ``goto endpoint-...``, ``drop``."""

    of: str
    key: str
    verdict: str = ""
    comment: str = ""


class NftPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one subject (a Service, say) puts into a table. Its chains and sets are its own; the sets that its elements
    are of may belong to the table."""

    sets: tuple[NftSet, ...] = ()
    chains: tuple[NftChain, ...] = ()
    elements: tuple[NftElement, ...] = ()


class NftRules(PlanObject, frozen=True, kw_only=True):
    """An nftables table in parts, so that a change of one part costs no more than that part.

    The ``frame`` is what the parts refer to: sets, maps and chains. ``parts`` are keyed by subject, and parts that are
    the same object in two plans (or in two nodes) are not looked at. A part may refer to those before it. ``hooks`` are
    the base chains: they come last and go first, so that no packet meets a table that is not whole yet. An element of
    one set and key stands in one part only. ``subject`` is what parts are called in messages.
    """

    family: Literal["ip", "ip6", "inet"]
    name: str
    comment: str = ""
    subject: str = "Service"
    frame: NftPart = NftPart()
    hooks: tuple[NftChain, ...] = ()
    parts: dict[str, NftPart] = {}

    @property
    def key(self) -> Key:
        return ("nft", self.ns, self.family, self.name)


class RealServer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where IPVS sends to. ``weight`` 0: no new connections."""

    address: str
    port: int
    weight: int = 1


class VirtualServer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address and port that IPVS answers for, by masquerading (NAT) to its real servers.

    ``persistence`` is the seconds for which a client keeps its server, 0 without it. ``flags`` are those of the
    scheduler that are set, by their numbers: 1, 2 and 3 (``ipvsadm --sched-flags``, IP_VS_SVC_F_SCHED1 to 3).
    """

    protocol: Literal["TCP", "UDP", "SCTP"]
    address: str
    port: int
    servers: tuple[RealServer, ...] = ()
    scheduler: str = "rr"
    persistence: int = 0
    flags: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """``TCP 10.96.0.1:443``, ``UDP [fd00::1]:53``."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol} {address}:{self.port}"

    @property
    def targets(self) -> set[tuple[str, int]]:
        """Addresses and ports of its real servers."""
        return {(each.address, each.port) for each in self.servers}


class IpvsServers(PlanObject, frozen=True, kw_only=True):
    """The virtual servers of one family, by their names (``TCP 10.96.0.1:443``).

    With ``graceful`` a real server that goes while it has connections stays with weight 0 until they end; without, it
    goes at once, and what its clients send next is dropped.
    """

    family: Family
    servers: dict[str, VirtualServer]
    graceful: bool = True

    @property
    def key(self) -> Key:
        return ("ipvs", self.ns, self.family)


RuleObject: TypeAlias = IptablesRules | ProxyRules | IpSet | NftTable | NftRules | IpvsServers
