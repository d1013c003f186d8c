"""What a run leaves behind, and what the comparison makes of it.

A run directory holds ``meta.json`` (:class:`RunMeta`), ``results.jsonl`` (a :class:`FlowResult` a line), ``hops.jsonl``
(a :class:`FlowJourney` a line), ``<style>/<scenario>/`` with ``plan.json``, ``trace.pcapng``, ``logs/``; and
``report.html``.
``style`` in all of them is the spelling of ``--cni``: ``flannel``, ``flannel:host-gw``.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from emulator.capture.model import Journey
from emulator.traffic.model import Verdict

Observed = Literal["observed"]
"""Of what was read rather than sent: a BGP session, a routing table."""

RUN_SCHEMA = "cnilab.run/v1"
"""What ``meta.json`` carries in ``schema``."""


class Check(msgspec.Struct, frozen=True):
    """One expectation: as written, what was observed, and whether it holds."""

    text: str
    observed: str
    met: bool


class FlowResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One flow of one scenario under one style.

    ``source`` and ``target`` are as the scenario names them, resolved to ``pod/default/a`` or an address in
    ``source_ns`` and ``target_address``. ``times`` are round trips in microseconds. ``hook_passes`` counts, per
    namespace, how often a packet of the flow (tunnel packets included) passed each netfilter hook: exact, from
    counters.

    ``state`` is what was read where nothing was sent (``verdict`` observed). ``convergence`` is the loss-derived
    convergence time of a stream in seconds: requests lost, divided by the rate (RFC 6413, 3.5; RFC 7747 measures so).
    """

    scenario: str
    style: str
    flow: str
    title: str
    source: str
    target: str
    source_ns: str
    target_address: str
    protocol: str
    verdict: Verdict | Observed
    port: int = 0
    size: int = 0
    count: int = 1
    sent: int = 0
    received: int = 0
    times: tuple[float, ...] = ()
    answered_by: str = ""
    source_seen: str = ""
    detail: str = ""
    checks: tuple[Check, ...] = ()
    hook_passes: dict[str, dict[str, int]] = {}
    pod_mtu: int = 0
    state: str = ""
    convergence: float | None = None


class FlowJourney(msgspec.Struct, frozen=True):
    """One packet of one flow. ``direction`` is ``request`` or ``reply``; ``index`` counts from 0 within it."""

    scenario: str
    style: str
    flow: str
    direction: Literal["request", "reply", "error"]
    index: int
    journey: Journey


class StyleMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one style ran. ``choices`` are the capability decisions (``netem`` or ``nft`` for loss, ...); ``labels``
    are warnings that every output must carry; ``error`` is set if the style could not run at all."""

    style: str
    title: str
    setup_seconds: float = 0.0
    choices: dict[str, str] = {}
    labels: tuple[str, ...] = ()
    captured: int = 0
    lost: int = 0
    uncorrelated: int = 0
    error: str = ""
    lanes: dict[str, str] = {}


class RunMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The run as a whole. ``started`` is RFC 3339 in UTC; ``versions`` maps programs and packages to versions."""

    schema: str
    started: str
    command: tuple[str, ...]
    topology: str
    scenarios: tuple[str, ...]
    styles: tuple[StyleMeta, ...]
    kernel: str
    seed: int
    offloads: Literal["on", "off"]
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
