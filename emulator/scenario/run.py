"""Runs scenarios: each one under each style in a lab of its own, captured from first to last step, into a run
directory.

Steps are carried out first and judged afterwards: packets are followed once the capture is complete. Those that set out
between the start of a flow and that of the next step that sends are looked through for the flow's own, and explained by
the plan that was in force then. An ICMP error may come later; it belongs to the packet that it quotes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from emulator.capture.model import Event, Journey
from emulator.cluster.model import Cluster
from emulator.cni.styles import style_key
from emulator.compare.records import FlowJourney, FlowResult, StyleMeta
from emulator.errors import CnilabError, UserError
from emulator.lab.lab import Capture, Lab
from emulator.lab.lab import Stream as LabStream
from emulator.lab.records import ProbeAnswer, ProbeRequest
from emulator.lab.tracing import sort_journeys
from emulator.plan.model import Plan
from emulator.policy.enforcer import PolicyMode
from emulator.scenario.expect import flow_checks, fragments, longest_outage, peer_address, stream_checks
from emulator.scenario.hooks import passes
from emulator.scenario.load import Loaded
from emulator.scenario.looks import look_at_routes, look_at_session
from emulator.scenario.matrices import take_matrix
from emulator.scenario.model import Churn, Flow, Replay, Send, Step, Stream, Wait, fault_wish, rollout_target
from emulator.scenario.preflight import preflight
from emulator.traffic.model import InjectionReport, ProbeResult

Progress = Callable[[str], None]

SETTLE = 0.02  # s: the last packets of a flow reach their sockets within this, on an idle machine within 100 us
POLL = 0.1  # s between attempts while a step waits for something to answer


class Sent(NamedTuple):
    """A flow that was carried out: what was asked, what came back, when (ns since the epoch), and under which plan."""

    step: Flow | Send | Replay
    answer: ProbeAnswer
    start: int
    plan: Plan
    cluster: Cluster
    meter: list[list[object]]


class Outcome(NamedTuple):
    """One scenario under one style. ``pieces`` are the further fragments of packets among ``journeys``."""

    results: list[FlowResult]
    journeys: list[FlowJourney]
    meta: StyleMeta
    plan: Plan | None
    events: list[Event]
    logs: dict[str, str]
    pieces: Sequence[Journey] = ()


def run_scenario(
    loaded: Loaded,
    style: str,
    *,
    allow_missing: bool = False,
    policy_mode: PolicyMode = "faithful",
    progress: Progress = lambda _text: None,
) -> Outcome:
    """Build the scenario's cluster under ``style``, carry out its steps, and judge them.

    Raises what :func:`~emulator.scenario.preflight.preflight` and building the lab raise; a step that cannot be carried
    out raises too.
    """
    scenario = loaded.scenario
    preflight(loaded, style)
    manifests = [loaded.beside(name) for name in scenario.manifests]
    with Lab(
        loaded.topology(),
        cni=style,
        manifests=[*manifests, *scenario.objects],
        wire_accurate=scenario.wire_accurate,
        allow_missing=allow_missing,
        policy_mode=policy_mode,
        progress=progress,
    ) as lab:
        runner = _Runner(lab, loaded, style_key(style))
        with lab.capture() as capture:
            progress("sending packets")
            runner.steps(scenario.steps)
            time.sleep(SETTLE)
        progress("following packets")
        return runner.judge(capture)


class _Runner:
    """Carries out steps in one lab and remembers what happened."""

    def __init__(self, lab: Lab, loaded: Loaded, style: str) -> None:
        self._lab = lab
        self._loaded = loaded
        self._style = style
        self._sent: list[Sent] = []
        self._starts: list[int] = []  # ns since the epoch at which a step began to send
        self._running = 0  # streams
        self._streams: list[tuple[Stream, LabStream, ProbeRequest]] = []
        self._looks: list[FlowResult] = []
        self._plan = lab.plan()
        self._cluster = lab.cluster()

    def steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._step(step)

    def _step(self, step: Step) -> None:
        if step.flow is not None:
            self._flow(step.flow)
        elif step.send is not None:
            self._send(step.send)
        elif step.stream is not None:
            self._stream(step.stream)
        elif step.wait is not None:
            self._wait(step.wait)
        elif step.replay is not None:
            self._replay(step.replay)
        elif step.bgp is not None:
            self._looks.append(look_at_session(self._lab, step.bgp, self._style, self._loaded.scenario.name))
        elif step.matrix is not None:
            self._begin()
            self._looks.append(take_matrix(self._lab, step.matrix, self._style, self._loaded.scenario.name))
        elif step.routes is not None:
            self._looks.append(look_at_routes(self._lab, step.routes, self._style, self._loaded.scenario.name))
        else:
            self._change(step)
            self._plan = self._lab.plan()
            self._cluster = self._lab.cluster()

    def _change(self, step: Step) -> None:
        if step.apply is not None:
            self._lab.apply(*[item if isinstance(item, dict) else self._loaded.beside(item) for item in step.apply])
        elif step.delete is not None:
            for item in step.delete:
                kind, _, name = item.partition("/")
                namespace, slash, rest = name.partition("/")
                self._lab.delete(kind, rest if slash else name, namespace if slash else "default")
        elif step.fault is not None:
            wish = fault_wish(step.fault, self._style)
            if wish is not None:
                self._lab.fault(**msgspec.structs.asdict(wish))
        elif step.churn is not None:
            self._churn(step.churn)
        elif step.ready is not None:
            self._lab.ready(step.ready.target, value=step.ready.value)

    def _flow(self, flow: Flow) -> None:
        request = _request(flow, count=flow.count, interval=flow.interval, ttl=flow.ttl)
        self._lab.meter_reset()
        start = self._begin()
        answer = self._lab.probes([request])[0]
        time.sleep(SETTLE)
        self._sent.append(Sent(flow, answer, start, self._plan, self._cluster, self._metered()))

    def _begin(self) -> int:
        self._starts.append(time.time_ns())
        return self._starts[-1]

    def _send(self, send: Send) -> None:
        self._inject(send, lambda: self._lab.send(send.source, send.packet, send.count))

    def _replay(self, replay: Replay) -> None:
        with open(self._loaded.beside(replay.pcap), "rb") as file:
            pcap = file.read()
        self._inject(replay, lambda: self._lab.replay(replay.source, pcap, replay.rewrite, replay.speed, replay.sender))

    def _inject(self, step: Send | Replay, inject: Callable[[], InjectionReport]) -> None:
        """Send packets that nobody answers to us."""
        source, target = self._lab.resolve(step.source), self._lab.resolve(step.target)
        self._lab.meter_reset()
        start = self._begin()
        report = inject()
        time.sleep(SETTLE)
        detail = "; ".join(f"{count} refused: {reason}" for reason, count in report.refusals.items())
        answer = ProbeAnswer(
            source=source.label, target=target.label, source_ns=source.ns, target_ns=target.ns,
            address=target.addresses[0], protocol="icmp", port=0,
            result=ProbeResult(id=step.id, verdict="dropped", sent=report.sent, received=0, detail=detail),
        )  # fmt: skip
        self._sent.append(Sent(step, answer, start, self._plan, self._cluster, self._metered()))

    def _metered(self) -> list[list[object]]:
        """Hook passes since the reset. Beside a stream there is nothing to read off: the counters know address pairs,
        and the stream's packets may have those of the flow, in its tunnel at least."""
        return [] if self._running else self._lab.meter_read()

    def _stream(self, stream: Stream) -> None:
        request = _request(stream)
        with self._lab.stream(request, stream.rate) as running:
            self._running += 1
            self.steps(stream.during)
            self._running -= 1
        self._streams.append((stream, running, request))

    def _wait(self, wait: Wait) -> None:
        time.sleep(wait.seconds)
        if wait.rollout:
            kind, namespace, name = rollout_target(wait.rollout)
            self._lab.wait_rollout(kind, name, namespace, timeout=wait.timeout)
            self._plan, self._cluster = self._lab.plan(), self._lab.cluster()
        if not wait.source:
            return
        request = ProbeRequest(wait.source, wait.target, wait.port, wait.protocol, timeout=0.5)
        deadline = time.monotonic() + wait.timeout
        self._begin()
        while not self._lab.probes([request])[0].reached:
            if time.monotonic() > deadline:
                raise UserError(f"{wait.target} did not answer {wait.source} within {wait.timeout:g} s")
            time.sleep(POLL)

    def _churn(self, churn: Churn) -> None:
        for turn in range(churn.times):
            if turn:
                time.sleep(churn.interval)
            pod = self._lab.resolve(churn.target).pod
            if pod is None:
                raise UserError(f"{churn.target} is not a pod")
            self._lab.delete("pod", pod.name, pod.namespace)

    def judge(self, capture: Capture) -> Outcome:
        from emulator.capture.explain import explain
        from emulator.capture.follow import follow

        scenario = self._loaded.scenario.name
        status = self._lab.status()
        events = capture.events()
        results: list[FlowResult] = []
        journeys: list[FlowJourney] = []
        fragmented: list[Journey] = []
        followed = follow(events)
        for sent in self._sent:
            until = min((start for start in self._starts if start > sent.start), default=sys.maxsize)
            in_time = {item.id for item in followed.journeys if sent.start <= item.hops[0].time < until}
            own = [
                item
                for item in followed.journeys
                if item.id in in_time or (item.kind == "error" and item.about in in_time)
            ]
            explained = explain(own, sent.plan)
            requests, replies, others = _sorted(explained, sent)
            answer = _with_delivery(sent, requests)
            pieces = fragments(requests, explained)
            whole = {item.id for item in (*requests, *replies)}
            fragmented += [item for item in others if item.kind == "fragment" and item.about in whole]
            results.append(self._flow_result(scenario, sent, answer, requests, replies, others, pieces))
            errors = [item for item in others if item.kind == "error" and item.about in whole]
            for direction, found in (("request", requests), ("reply", replies), ("error", errors)):
                journeys += [
                    FlowJourney(scenario, self._style, sent.step.id, direction, index, journey)  # type: ignore[arg-type]
                    for index, journey in enumerate(found)
                ]
        results += self._looks
        results += [self._stream_result(scenario, *stream) for stream in self._streams]
        meta = StyleMeta(
            style=self._style,
            title=status.title,
            setup_seconds=status.setup_seconds,
            choices=status.choices,
            labels=(*status.labels, *capture.stats.gaps),
            captured=capture.stats.captured,
            lost=capture.stats.lost,
            uncorrelated=len(followed.uncorrelated),
        )
        return Outcome(results, journeys, meta, self._plan, events, self._lab.logs(), fragmented)

    def _flow_result(
        self,
        scenario: str,
        sent: Sent,
        answer: ProbeAnswer,
        requests: Sequence[Journey],
        replies: Sequence[Journey],
        others: Sequence[Journey],
        pieces: int,
    ) -> FlowResult:
        step, result = sent.step, answer.result
        return FlowResult(
            scenario=scenario,
            style=self._style,
            flow=step.id,
            title=step.title or f"{step.source} → {step.target}",
            source=answer.source,
            target=answer.target,
            source_ns=answer.source_ns,
            target_address=answer.address,
            protocol=_protocol(step, answer, requests),
            verdict=result.verdict,
            port=answer.port,
            size=step.size if isinstance(step, Flow) else 0,
            count=step.count if isinstance(step, Flow) else result.sent,
            sent=result.sent,
            received=result.received,
            times=result.times,
            answered_by=result.answered_by,
            source_seen=peer_address(result.source_seen),
            detail=result.detail,
            checks=flow_checks(step.expect, self._style, sent.cluster, answer, requests, pieces, replies, others),
            hook_passes=passes(sent.meter, requests, others),
            pod_mtu=_mtu(sent.plan, answer.source_ns),
        )

    def _stream_result(self, scenario: str, stream: Stream, ran: LabStream, request: ProbeRequest) -> FlowResult:
        source, result = self._lab.resolve(request.source), ran.result
        lost = result.sent - result.received
        return FlowResult(
            scenario=scenario,
            style=self._style,
            flow=stream.id,
            title=stream.title or f"{stream.source} → {stream.target}, {stream.rate:g}/s",
            source=source.label,
            target=ran.target,
            source_ns=source.ns,
            target_address=ran.address,
            protocol=stream.protocol,
            verdict="delivered" if result.received else "dropped",
            port=stream.port,
            count=result.sent,
            sent=result.sent,
            received=result.received,
            detail=f"{lost} of {result.sent} lost, longest outage {longest_outage(result):.2f} s, "
            f"convergence time {lost / stream.rate:.2f} s ({lost} lost / {stream.rate:g} per second)",
            convergence=lost / stream.rate,
            checks=stream_checks(stream.expect, self._style, result),
        )


def _request(step: Flow | Stream, *, count: int = 1, interval: float = 0.0, ttl: int = 0) -> ProbeRequest:
    return ProbeRequest(
        source=step.source, target=step.target, port=step.port, protocol=step.protocol, count=count, size=step.size,
        timeout=step.timeout, interval=interval, dont_fragment=step.dont_fragment, family=step.family, ttl=ttl,
        allow_fragments=step.allow_fragments,
    )  # fmt: skip


def _sorted(journeys: Sequence[Journey], sent: Sent) -> tuple[list[Journey], list[Journey], tuple[Journey, ...]]:
    if isinstance(sent.step, Flow):
        return sort_journeys(journeys, sent.answer)
    mine, back, others = [], [], []
    for journey in journeys:
        first, last = journey.hops[0], journey.hops[-1]
        if journey.kind == "packet" and first.ns == sent.answer.source_ns and first.direction == "out":
            mine.append(journey)
        elif journey.kind == "packet" and last.ns == sent.answer.source_ns and last.direction == "in":
            back.append(journey)
        else:
            others.append(journey)
    return mine, back, tuple(others)


def _with_delivery(sent: Sent, requests: Sequence[Journey]) -> ProbeAnswer:
    """Hand-made packets get no answer: they are delivered if one of them was seen arriving."""
    if isinstance(sent.step, Flow):
        return sent.answer
    arrived = [item for item in requests if item.hops[-1].ns == sent.answer.target_ns]
    result = sent.answer.result
    result = ProbeResult(
        id=result.id,
        verdict="delivered" if arrived else "dropped",
        sent=result.sent,
        received=len(arrived),
        detail=result.detail,
    )
    return ProbeAnswer(
        source=sent.answer.source, target=sent.answer.target, source_ns=sent.answer.source_ns,
        target_ns=sent.answer.target_ns, address=sent.answer.address, protocol=sent.answer.protocol, port=0,
        result=result,
    )  # fmt: skip


def _protocol(step: Flow | Send | Replay, answer: ProbeAnswer, requests: Sequence[Journey]) -> str:
    """What was asked for; of hand-made and recorded packets, what the first one was."""
    return answer.protocol if isinstance(step, Flow) or not requests else requests[0].hops[0].packet.protocol


def _mtu(plan: Plan, ns: str) -> int:
    from emulator.plan.model import CniAttachment, Veth

    for item in plan.in_namespace(ns):
        if isinstance(item, Veth) and item.name == "eth0":
            return item.mtu
        if isinstance(item, CniAttachment):
            return next((device.mtu for device in item.devices if (device.ns, device.name) == (ns, "eth0")), 0)
    return 0


def failed(style: str, error: CnilabError) -> StyleMeta:
    """A style that could not run at all, with its reason."""
    return StyleMeta(style=style, title=style, error=f"{error.message} {error.hint}".strip())
