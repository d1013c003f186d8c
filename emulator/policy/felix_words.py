"""What Felix's rules can say, each thing in iptables' words and in nft's.

Felix builds its rules once, of matches and actions, and has them written for the tables that the node uses
(``emulator.policy.felix_rules``). The two languages stand side by side here, as the rules mean the same in both.

Two places of nft's words are filled in when a rule is written: ``<layer>`` is the table that iptables would have
(``filter``), part of every chain's name, as nftables mode has one table for all.

Where nft would not read what upstream writes, it is written as nft reads it: ``icmp type 3 code 4`` (upstream) is
``icmp type 3 icmp code 4`` here.

Sources: projectcalico/calico felix/iptables (match_builder.go, actions.go), felix/nftables/nftrender (match_builder.go,
actions.go), felix/nftables/table_layer.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from emulator.plan.model import Family

LAYER = "<layer>"
ANY_REST = {"+": "*"}  # a device's name that goes on: iptables' sign, nft's
End = Literal["src", "dst"]

_WHOLE = 0xFFFFFFFF
_IP: dict[Family, str] = {4: "ip", 6: "ip6"}
_NET = {"src": ("--source", "saddr"), "dst": ("--destination", "daddr")}
_PORTS = {"src": ("--source-ports", "sport"), "dst": ("--destination-ports", "dport")}
_TRANSPORT = {"6": "tcp", "17": "udp", "132": "sctp"}


class Words(NamedTuple):
    """One thing in both languages: a match, an action, or a name."""

    iptables: str
    nft: str


def alike(text: str) -> Words:
    """What is the same in both, as most names are."""
    return Words(text, text)


# -- matches ----------------------------------------------------------------------------------------------------

TRACKED = Words("-m conntrack --ctstate RELATED,ESTABLISHED", "ct state related,established")
INVALID = Words("-m conntrack --ctstate INVALID", "ct state invalid")
TRANSLATED = Words("-m conntrack --ctstate DNAT", "ct status dnat")
NOT_TRANSLATED = Words("-m conntrack ! --ctstate DNAT", "ct status != dnat")
SPOOFED = Words("-m rpfilter --invert --validmark", "fib saddr . mark . iif oif 0")
TO_SELF = Words("-m addrtype --dst-type LOCAL", "fib daddr type local")
FROM_SELF = Words("-m addrtype --src-type LOCAL", "fib saddr type local")
NOT_OF_WAY_OUT = Words("-m addrtype ! --src-type LOCAL --limit-iface-out", "fib saddr . oif type != local")


def marked(bit: int) -> Words:
    """MarkSingleBitSet."""
    return Words(f"-m mark --mark {bit:#x}/{bit:#x}", f"meta mark & {bit:#x} == {bit:#x}")


def unmarked(bits: int) -> Words:
    """MarkClear."""
    return Words(f"-m mark --mark 0/{bits:#x}", f"meta mark & {bits:#x} == 0")


def marked_somehow(bits: int) -> Words:
    """MarkNotClear."""
    return Words(f"-m mark ! --mark 0/{bits:#x}", f"meta mark & {bits:#x} != 0")


def entered(device: str) -> Words:
    """InInterface. ``cali+`` are all devices whose names begin so."""
    return Words(f"--in-interface {device}", f"iifname {_wild(device)}")


def leaves(device: str) -> Words:
    """OutInterface."""
    return Words(f"--out-interface {device}", f"oifname {_wild(device)}")


def _wild(device: str) -> str:
    return device[:-1] + ANY_REST[device[-1]] if device[-1:] in ANY_REST else device


def protocol(name: str, *, wanted: bool = True) -> Words:
    """Protocol, ProtocolNum, or not that."""
    return Words(f"{_not(wanted)}-p {name}", f"meta l4proto {_unlike(wanted)}{name}")


def port(number: int) -> Words:
    """DestPort of a UDP packet."""
    return Words(f"--dport {number}", f"udp dport {number}")


def ports(end: str, ranges: Iterable[tuple[int, int]], of: str, *, wanted: bool = True) -> Words:
    """DestPortRanges and the like, of a protocol by its name or number."""
    option, field = _PORTS[end]
    given = list(ranges)
    listed, inline = ",".join(_ranges(given, ":")), ", ".join(_ranges(given, "-"))
    return Words(
        f"-m multiport {_not(wanted)}{option} {listed}",
        f"{_TRANSPORT.get(of, of)} {field} {_unlike(wanted)}{{ {inline} }}",
    )


def _ranges(given: Iterable[tuple[int, int]], dash: str) -> Iterator[str]:
    return (f"{first}" if first == last else f"{first}{dash}{last}" for first, last in given)


def net(end: str, cidr: str, *, wanted: bool = True) -> Words:
    """SourceNet and the like."""
    option, field = _NET[end]
    return Words(f"{_not(wanted)}{option} {cidr}", f"{_IP[6 if ':' in cidr else 4]} {field} {_unlike(wanted)}{cidr}")


def in_set(name: str, family: Family, end: str, *, with_ports: bool = False, wanted: bool = True) -> Words:
    """SourceIPSet, DestIPPortSet and the like; ``name`` as ipset has it."""
    flags = f"{end},{end}" if with_ports else end
    field = f"{_IP[family]} {_NET[end][1]}"
    if with_ports:
        field += f" . meta l4proto . th {_PORTS[end][1]}"
    return Words(f"-m set {_not(wanted)}--match-set {name} {flags}", f"{field} {_unlike(wanted)}@{nft_set_name(name)}")


def icmp(family: Family, kind: int, code: int = -1, *, wanted: bool = True) -> Words:
    """ICMPType, ICMPV6TypeAndCode and the like; a negative code is any."""
    value = f"{kind}" if code < 0 else f"{kind}/{code}"
    name, module, option = ("icmp", "icmp", "icmp-type") if family == 4 else ("icmpv6", "icmp6", "icmpv6-type")
    if code < 0:
        nft = f"{name} type {_unlike(wanted)}{kind}"
    elif wanted:
        nft = f"{name} type {kind} {name} code {code}"
    else:
        nft = f"{name} type . {name} code != {{ {kind} . {code} }}"
    return Words(f"-m {module} {_not(wanted)}--{option} {value}", nft)


def looked_up(end: Literal["in", "out"], name: str) -> Words:
    """InInterfaceVMAP, OutInterfaceVMAP: nftables mode alone has maps, which say where to go by the device."""
    return Words("", f"{'iifname' if end == 'in' else 'oifname'} vmap @{LAYER}-{name}")


def _not(wanted: bool) -> str:
    return "" if wanted else "! "


def _unlike(wanted: bool) -> str:
    return "" if wanted else "!= "


# -- actions ----------------------------------------------------------------------------------------------------

ACCEPTS = Words("--jump ACCEPT", "accept")
DROPS = Words("--jump DROP", "drop")
RETURNS = Words("--jump RETURN", "return")
UNTRACKED = Words("--jump NOTRACK", "notrack")
MASQUERADES = Words("--jump MASQUERADE --random-fully", "masquerade fully-random")
LOGS = Words('--jump LOG --log-prefix "calico-packet: " --log-level 5', 'log prefix "calico-packet: " level info')


def set_mark(bits: int) -> Words:
    """SetMarkAction."""
    return Words(f"--jump MARK --set-mark {bits:#x}/{bits:#x}", f"meta mark set mark or {bits:#x}")


def clear_mark(bits: int) -> Words:
    """ClearMarkAction."""
    return Words(f"--jump MARK --set-mark 0/{bits:#x}", f"meta mark set mark & {_WHOLE ^ bits:#x}")


def set_masked(bits: int, mask: int) -> Words:
    """SetMaskedMarkAction: of the bits in ``mask``, those in ``bits``."""
    return Words(f"--jump MARK --set-mark {bits:#x}/{mask:#x}", f"meta mark set mark & {_WHOLE ^ mask:#x} ^ {bits:#x}")


def jump(target: Words | str) -> Words:
    """JumpAction: to a chain, and back."""
    return _to("jump", target)


def goto(target: Words | str) -> Words:
    """GotoAction: to a chain, and from there to where this one was called."""
    return _to("goto", target)


def _to(verb: str, target: Words | str) -> Words:
    name = alike(target) if isinstance(target, str) else target
    return Words(f"--{verb} {name.iptables}", f"{verb} {LAYER}-{name.nft}")


# -- names ------------------------------------------------------------------------------------------------------


def nft_set_name(name: str) -> str:
    """LegalizeSetName: nftables takes no colon."""
    return name.replace(":", "-")
