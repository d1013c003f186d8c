"""A scenario as written: what to build, what to send, what must come of it. docs/scenarios.md is the reference.

A value under ``expect`` may differ by style: a mapping from the spelling of ``--cni`` (``flannel:host-gw``, or
``flannel`` for all its modes, or ``default``) to the value stands wherever the value itself may stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from emulator.cni.styles import stands_for
from emulator.lab.records import FaultKind, FaultPlace, FaultWish
from emulator.traffic.model import Protocol

PerStyleText = str | dict[str, str]
PerStyleNumber = float | dict[str, float]
PerStyleList = list[str] | dict[str, list[str]]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """Unknown fields are mistakes."""


class Expect(_Strict, frozen=True):
    """What a flow must show.

    ``verdict``: delivered, refused, dropped, unreachable. ``ttl``: of the request as its receiver gets it.
    ``source``: the request's source address as its receiver sees it: ``sender``, a place (any address of it),
    ``place:device``, or an address. ``encapsulation``: ``none`` or the kind of tunnel that the request travels in
    between nodes, and ``overhead`` its bytes. ``path``: ``place:device`` of each hop of the request, ``*`` standing
    for anything, ``...`` for any number of hops; an empty one: the request was seen nowhere. ``reply_path``: the same
    of the first reply, which may have got lost on its way. ``detail``: a text that the result's detail holds.
    ``fragments``: how many packets the most split request travels as (1: whole). ``answered_by`` may hold ``*``.
    ``client_seen``: the client's address as the answering server saw it, spelt as ``source``. ``servers``: how many
    different servers answered, or ``servers_at_least``. ``rules``: texts of which each must be in the rule or route
    that explains some hop of the request, and ``reply_rules`` of the reply. ``questions``: DNS questions that were seen
    leaving the sender for the sake of this flow. ``takes_at_least``: ms, of the median round trip; a lower bound only,
    since a busy machine makes anything slow.
    """

    verdict: PerStyleText | None = None
    ttl: PerStyleNumber | None = None
    source: PerStyleText | None = None
    encapsulation: PerStyleText | None = None
    overhead: PerStyleNumber | None = None
    path: PerStyleList | None = None
    reply_path: PerStyleList | None = None
    answered_by: PerStyleText | None = None
    received: PerStyleNumber | None = None
    detail: PerStyleText | None = None
    fragments: PerStyleNumber | None = None
    takes_at_least: PerStyleNumber | None = None
    client_seen: PerStyleText | None = None
    servers: PerStyleNumber | None = None
    rules: PerStyleList | None = None
    reply_rules: PerStyleList | None = None
    questions: PerStyleNumber | None = None
    servers_at_least: PerStyleNumber | None = None


class StreamExpect(_Strict, frozen=True):
    """What a stream must show: requests lost (at least, at most), the longest outage in seconds, and whether the last
    requests of the stream were answered again."""

    lost_at_least: PerStyleNumber | None = None
    lost_at_most: PerStyleNumber | None = None
    outage_at_least: PerStyleNumber | None = None
    outage_at_most: PerStyleNumber | None = None
    recovers: bool | dict[str, bool] | None = None


class _Request(_Strict, frozen=True, kw_only=True):
    """What flows and streams have in common; see ``traffic.model.Probe`` for the units. ``from`` and ``to`` are
    places."""

    id: str
    title: str = ""
    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    port: int = 0
    protocol: Protocol = "icmp"
    size: int = 0
    timeout: float = 1.0
    dont_fragment: bool = False
    allow_fragments: bool = False
    family: Literal[0, 4, 6] = 0


class Flow(_Request, frozen=True, kw_only=True):
    """``count`` requests, one after another, ``interval`` seconds apart (0: each once the one before is answered)."""

    count: int = 1
    interval: float = 0.0
    ttl: int = 0
    expect: Expect = Expect()


class Stream(_Request, frozen=True, kw_only=True):
    """Requests at a constant ``rate`` (per second) while the steps ``during`` run."""

    rate: float
    during: list[Step]
    expect: StreamExpect = StreamExpect()


class Fault(_Strict, frozen=True):
    """Something breaks, or is mended; which fields a kind has, and what they mean, is told by
    ``emulator.lab.faults``. ``device``, ``value``, ``name``, ``port`` and ``table`` may differ by style; where a
    mapping does not speak of a style, nothing breaks under it."""

    kind: FaultKind
    target: str
    device: PerStyleText = ""
    daemon: str = ""
    mend: bool = False
    at: FaultPlace = ""
    value: str | int | dict[str, str | int] = ""
    name: PerStyleText = ""
    protocol: str | int = ""
    port: int | dict[str, int] = 0
    icmp_type: int = -1
    icmp_code: int = -1
    source: str = ""
    destination: str = ""
    table: PerStyleText = ""


class Churn(_Strict, frozen=True):
    """The pod ``target`` is deleted ``times`` times, ``interval`` seconds apart; its owner brings it back."""

    target: str
    times: int = 1
    interval: float = 0.0


class Ready(_Strict, frozen=True):
    """The pod ``target`` becomes ready, or with ``value`` false no longer is, as its readiness probe would say."""

    target: str
    value: bool = True


class Wait(_Strict, frozen=True):
    """Until ``to`` answers ``from`` (checked over and over), or until the ``rollout`` of a workload
    (``deployment/web``, ``statefulset/shop/db``) is over, at most ``timeout`` seconds; or just for some ``seconds``."""

    seconds: float = 0.0
    rollout: str = ""
    source: str = msgspec.field(name="from", default="")
    target: str = msgspec.field(name="to", default="")
    port: int = 0
    protocol: Protocol = "icmp"
    timeout: float = 30.0


class Replay(_Strict, frozen=True):
    """The packets of a pcap, sent from a pod with addresses rewritten (old to new; new ones may be places).

    With ``sender``, only what that captured address sent. ``speed`` 1 is as recorded, 0 at once. What must come of them
    is expected as of ``send``; ``to`` is where they should arrive.
    """

    id: str
    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    pcap: str
    title: str = ""
    rewrite: dict[str, str] = {}
    speed: float = 0.0
    sender: str = ""
    expect: Expect = Expect()


class Send(_Strict, frozen=True):
    """Hand-made packets: a scapy expression of layers, such as ``IP(dst="10.244.2.2", ttl=1)/ICMP()``.

    ``expect`` looks at the first packet sent: only ``verdict`` (delivered or dropped), ``ttl``, ``source``,
    ``encapsulation``, ``overhead`` and ``path`` can hold for it. ``to`` is where it should arrive.
    """

    id: str
    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    packet: str
    title: str = ""
    count: int = 1
    expect: Expect = Expect()


class BgpExpect(_Strict, frozen=True):
    """What BIRD must say of a session: ``state`` in its words, ``error`` a text that its last error holds, ``imported``
    the number of routes that came by it."""

    state: PerStyleText | None = None
    error: PerStyleText | None = None
    imported: PerStyleNumber | None = None


class Bgp(_Strict, frozen=True, kw_only=True):
    """The BGP session of ``from`` with ``to``, as the BIRD of ``from`` sees it, once it is as expected or after
    ``timeout`` seconds. ``family`` 0 is the first that both have."""

    id: str
    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    title: str = ""
    family: Literal[0, 4, 6] = 0
    timeout: float = 10.0
    expect: BgpExpect = BgpExpect()


class RoutesExpect(_Strict, frozen=True):
    """Routes that must be in the kernel's main table, or must not be: as ``ip route`` writes them, from the destination
    on as many words as matter."""

    present: PerStyleList | None = None
    absent: PerStyleList | None = None


class Routes(_Strict, frozen=True, kw_only=True):
    """The routes of ``target``, once they are as expected or after ``timeout`` seconds."""

    id: str
    target: str
    title: str = ""
    timeout: float = 10.0
    expect: RoutesExpect = RoutesExpect()


class MatrixExpect(_Strict, frozen=True):
    """``table``: a line of targets, and a line for each source with ``.`` (let in), ``X`` (denied), ``R`` (refused),
    ``D`` (dropped) or ``?`` (whatever). ``let_in_at_least`` and ``let_in_at_most``: how many of the cells with a ``?``,
    for what is true of many and of none in particular."""

    table: PerStyleText
    let_in_at_least: PerStyleNumber | None = None
    let_in_at_most: PerStyleNumber | None = None


class Matrix(_Strict, frozen=True, kw_only=True):
    """Who reaches whom at these ``ports`` (``80/tcp``, ``53/udp``, ``9999/sctp``, ``icmp``), all asked at once. The
    places are those of the expected table. ``family`` 0 is the first that both have."""

    id: str
    title: str = ""
    ports: list[str]
    family: Literal[0, 4, 6] = 0
    expect: MatrixExpect


class Step(_Strict, frozen=True):
    """Exactly one of these."""

    flow: Flow | None = None
    stream: Stream | None = None
    apply: list[str | dict[str, Any]] | None = None
    delete: list[str] | None = None
    fault: Fault | None = None
    churn: Churn | None = None
    wait: Wait | None = None
    ready: Ready | None = None
    replay: Replay | None = None
    send: Send | None = None
    bgp: Bgp | None = None
    routes: Routes | None = None
    matrix: Matrix | None = None

    def kinds(self) -> list[str]:
        """The fields that are given."""
        return [name for name in self.__struct_fields__ if getattr(self, name) is not None]


class Scenario(_Strict, frozen=True, kw_only=True):
    """One file. ``manifests`` are files beside it, ``objects`` Kubernetes objects in place; ``requires`` names kernel
    features and programs; ``styles`` limits it to styles that it makes sense for (none: all)."""

    name: str
    title: str
    steps: list[Step]
    description: str = ""
    topology: str = "three-nodes"
    manifests: list[str] = []
    objects: list[dict[str, Any]] = []
    requires: list[str] = []
    styles: list[str] = []
    wire_accurate: bool = True
    seed: int = 1


def fault_wishes(fault: Fault) -> dict[str, FaultWish | None]:
    """The fault as it is under each style that it names, and under the others (``default``); None: it is none there."""
    given = msgspec.structs.asdict(fault)
    styles = {style for value in given.values() if isinstance(value, dict) for style in value}
    return {style: fault_wish(fault, style) for style in (*sorted(styles - {"default"}), "default")}


def fault_wish(fault: Fault, style: str) -> FaultWish | None:
    """The fault as it is under ``style``; None: it is none there."""
    chosen = {name: for_style(value, style) for name, value in msgspec.structs.asdict(fault).items()}
    return None if None in chosen.values() else FaultWish(**chosen)


def runs_under(limits: Sequence[str], style: str) -> bool:
    """Whether a scenario with these ``styles`` makes sense under ``style``. An entry that ends in a colon,
    ``flannel:``, means the style as it is without a mode, and none of its other modes."""
    plain = style.rpartition("+")[0] or style
    if not limits or f"{plain}:" in limits:
        return True
    return for_style({name: True for name in limits if not name.endswith(":")}, style) is True


def for_style(value: Any, style: str) -> Any:
    """The value that holds for ``style``, or what it stands in for; None where the mapping does not speak of it."""
    if not isinstance(value, dict):
        return value
    plain, plus, proxy = style.rpartition("+") if "+" in style else (style, "", "")
    name = plain.partition(":")[0]
    real = stands_for(plain)
    for key in (style, f"{real}{plus}{proxy}", f"{name}{plus}{proxy}", plain, real, name, f"{plus}{proxy}"):
        if key in value:
            return value[key]
    return value.get("default")


def rollout_target(text: str) -> tuple[str, str, str]:
    """Kind, namespace and name of a workload: ``deployment/web``, ``sts/shop/db``."""
    kind, _, rest = text.partition("/")
    namespace, slash, name = rest.partition("/")
    return kind, namespace if slash else "default", name if slash else namespace
