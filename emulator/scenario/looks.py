"""What a scenario reads instead of sending: the state of a BGP session, and the routes of a machine or pod.

A look is repeated until everything is as expected, at most for its ``timeout``; what was seen last is what is judged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from emulator.compare.records import Check, FlowResult
from emulator.kernel.bird_control import SessionState
from emulator.kernel.route_table import TableRoute
from emulator.lab.lab import Lab
from emulator.scenario.model import Bgp, Routes, for_style
from emulator.scenario.route_words import destination_of, fits

POLL = 0.1  # s between two looks
NO_SESSION = "no such session"
NO_BIRD = "BIRD is dead"


class Seen(NamedTuple):
    """What was seen: the checks on it, and all of it in a line or a few."""

    checks: tuple[Check, ...]
    state: str


def look_at_session(lab: Lab, step: Bgp, style: str, scenario: str) -> FlowResult:
    """Ask the BIRD of one end for the session with the other."""
    near, far = lab.resolve(step.source), lab.resolve(step.target)
    addresses = [each for each in far.addresses if step.family in (0, ip_address(each).version)]

    def look() -> Seen:
        told = lab.bgp(step.source)
        session = next((each for each in told if each.neighbour in addresses), None)
        absent = NO_SESSION if told else NO_BIRD
        return Seen(session_checks(step, style, session, absent), session_words(session) if session else absent)

    return _result(
        _until(look, step.timeout), step, style, scenario, "bgp", (near.label, near.ns), far.label, addresses[0]
    )


def look_at_routes(lab: Lab, step: Routes, style: str, scenario: str) -> FlowResult:
    """Read a routing table."""
    place = lab.resolve(step.target)

    def look() -> Seen:
        there = lab.routes(step.target)
        return Seen(route_checks(step, style, there), "\n".join(map(str, there)))

    seen = _until(look, step.timeout)
    return _result(seen, step, style, scenario, "routes", (place.label, place.ns), place.label, place.addresses[0])


def session_checks(step: Bgp, style: str, session: SessionState | None, absent: str) -> tuple[Check, ...]:
    """Each expectation about a session that speaks of ``style``."""
    state, error, imported = (
        for_style(value, style) for value in (step.expect.state, step.expect.error, step.expect.imported)
    )
    checks = []
    if state is not None:
        found = session.state if session else absent
        checks.append(Check(f"state: {state}", found, state == found))
    if error is not None:
        found = session.error if session else absent
        checks.append(Check(f"error: {error}", found or "none", error in found))
    if imported is not None:
        number = session.imported if session else 0
        checks.append(Check(f"imported: {imported:g}", str(number), imported == number))
    return tuple(checks)


def route_checks(step: Routes, style: str, there: Sequence[TableRoute]) -> tuple[Check, ...]:
    """Each route that must, or must not, be there."""
    checks = []
    for name, wanted in (("present", True), ("absent", False)):
        for text in for_style(getattr(step.expect, name), style) or ():
            destination = destination_of(text)
            same = [str(route) for route in there if destination_of(str(route)) == destination]
            found = any(fits(text, route) for route in same)
            checks.append(Check(f"{name}: {text}", "; ".join(same) or "no such route", found is wanted))
    return tuple(checks)


def session_words(session: SessionState) -> str:
    """A session in a line."""
    words = [session.state, f"{session.imported} routes imported, {session.exported} exported"]
    return ", ".join([*words, f"last error: {session.error}"] if session.error else words)


def _until(look: Callable[[], Seen], timeout: float) -> Seen:
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if all(check.met for check in seen.checks) or time.monotonic() > deadline:
            return seen
        time.sleep(POLL)


def _result(
    seen: Seen, step: Bgp | Routes, style: str, scenario: str, kind: str, near: tuple[str, str], far: str, address: str
) -> FlowResult:
    ends = f"{step.source} with {step.target}" if isinstance(step, Bgp) else step.target
    return FlowResult(
        scenario=scenario,
        style=style,
        flow=step.id,
        title=step.title or f"{'the BGP session of' if kind == 'bgp' else 'the routes of'} {ends}",
        source=near[0],
        target=far,
        source_ns=near[1],
        target_address=address,
        protocol=kind,
        verdict="observed",
        count=0,
        checks=seen.checks,
        state=seen.state,
    )
