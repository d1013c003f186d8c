"""Health checks of a load balancer's targets: whom to ask, how, and what to make of the answers.

::

    plan: every candidate ─▶ health checker (packets) ─▶ states ─▶ cluster.target_health ─▶ plan: rules for the healthy

A daemon of cnilab's (``emulator.kernel.health_checker``) sends them and decides by the thresholds. What it finds
becomes part of the cluster, and the rules follow from that as from anything else: so they are always those that the
plan shows and a trace explains, and nobody but the lab writes them.

The defaults are the AWS Load Balancer Controller's: for node ports under externalTrafficPolicy Local HTTP GET /healthz
on the health check node port, every 10 s, 6 s for an answer, two in a row either way; else TCP on the port that gets
the traffic, every 10 s, 10 s for an answer, three in a row.

Sources: kubernetes-sigs/aws-load-balancer-controller pkg/service/model_builder.go, model_build_target_group.go;
docs.aws.amazon.com "Health checks for Network Load Balancer target groups" (the first check, failing open).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from emulator.cluster.model import HealthTimes
from emulator.plan.model import AnyObject, Daemon, File, Plan

CHECKER_CONFIG, CHECKER_SOCKET = "/run/balancer/targets.json", "/run/balancer/checker.sock"
CHECKER = "health-checker"
CHECKER_MODULE = "emulator.kernel.health_checker"
COMPONENT = "health checker (stand-in)"
HEALTHY = "healthy"  # the state of a target; emulator.kernel.health_checker knows the others
T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """How to ask a target: HTTP GET ``path`` or a TCP connection to ``port``; ``times`` has nothing left open. An HTTP
    status is good from the first to the last of ``codes``."""

    protocol: Literal["tcp", "http"]
    port: int
    path: str
    times: HealthTimes
    codes: tuple[int, int] = (200, 399)


def http_check(port: int, wanted: HealthTimes) -> Check:
    """HTTP GET /healthz, as node ports under externalTrafficPolicy Local are checked."""
    return Check("http", port, "/healthz", _filled(wanted, HealthTimes(10.0, 6.0, 2, 2)))


def tcp_check(port: int, wanted: HealthTimes) -> Check:
    """A TCP connection, as everything else is checked."""
    return Check("tcp", port, "", _filled(wanted, HealthTimes(10.0, 10.0, 3, 3)))


def _filled(wanted: HealthTimes, usual: HealthTimes) -> HealthTimes:
    return HealthTimes(
        wanted.interval or usual.interval,
        wanted.timeout or usual.timeout,
        wanted.healthy or usual.healthy,
        wanted.unhealthy or usual.unhealthy,
    )


@dataclass(frozen=True)
class Watched:
    """A target under its name in reports, with the address to ask, and to ask from (empty: any)."""

    name: str
    address: str
    check: Check
    source: str = ""


def place(address: str, port: int) -> str:
    """``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def fit(states: Mapping[str, str], targets: Sequence[T], names: Sequence[str]) -> tuple[T, ...]:
    """The targets, of these names, that have passed their checks; all of them where none has: a balancer fails open."""
    passed = tuple(target for target, name in zip(targets, names, strict=True) if states.get(name) == HEALTHY)
    return passed or tuple(targets)


def health_notices(states: Mapping[str, str], names: Iterable[str]) -> tuple[str, ...]:
    """A line for each target, of these names, that has not passed its checks."""
    return tuple(
        f"the load balancer's target {name} is {states[name]}"
        for name in dict.fromkeys(names)
        if states.get(name, HEALTHY) != HEALTHY
    )


def health_checker(ns: str, watched: Iterable[Watched]) -> Iterator[AnyObject]:
    """The daemon that checks these targets from ``ns``, and its configuration; nothing if there are none."""
    targets = {
        each.name: {
            "name": each.name,
            "protocol": each.check.protocol,
            "address": each.address,
            "port": each.check.port,
            "interval": each.check.times.interval,
            "timeout": each.check.times.timeout,
            "healthy": each.check.times.healthy,
            "unhealthy": each.check.times.unhealthy,
            "path": each.check.path,
            "codes": list(each.check.codes),
            "source": each.source,
        }
        for each in watched
    }
    if not targets:
        return
    yield File(
        ns=ns,
        path=CHECKER_CONFIG,
        content=json.dumps({"targets": list(targets.values())}, indent=2) + "\n",
        component=COMPONENT,
        why="every target that connections may go to, and how it is asked whether it is well",
    )
    yield Daemon(
        ns=ns,
        name=CHECKER,
        argv=(CHECKER, CHECKER_CONFIG, CHECKER_SOCKET),
        module=CHECKER_MODULE,
        files=(CHECKER_CONFIG,),
        reload=(CHECKER, "--reload", CHECKER_SOCKET),
        ready_socket=CHECKER_SOCKET,
        component=COMPONENT,
        why="asks every target at intervals; those that fail get no new connections",
    )


def checkers(plan: Plan, before: Plan | None) -> list[Daemon]:
    """The health checkers of ``plan`` that have other targets than in ``before``."""
    known = _configurations(before) if before is not None else {}
    asking = _configurations(plan)
    return [
        item
        for fragment in _fragments(plan)
        for item in fragment
        if isinstance(item, Daemon) and item.module == CHECKER_MODULE and asking.get(item.ns) != known.get(item.ns)
    ]


def _configurations(plan: Plan) -> dict[str, str]:
    """What the checkers' files say, by namespace."""
    return {
        item.ns: item.content
        for fragment in _fragments(plan)
        for item in fragment
        if isinstance(item, File) and item.path == CHECKER_CONFIG
    }


def _fragments(plan: Plan) -> Iterator[tuple[AnyObject, ...]]:
    return (fragment for name, fragment in plan.fragments.items() if name.startswith("balancer/"))
