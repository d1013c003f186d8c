"""Nothing gets past a policy while things change: streams of new connections, under every enforcing style.

A stream asks anew all the while, fifty times a second. Each end of a connection is judged by its own node, by the rules
of before a change or of behind it. What an end denies by both must not be answered once; what both ends allow by both
must not go without an answer in between, until the next that has one (on a machine that answers quickly: a starved one
does so late). New pods are asked before they are there, at the addresses that they will have.

``CNILAB_LEAK_CHANGES`` and ``CNILAB_LEAK_PODS`` are how many changes and new pods (8 and 10 by default; the full run
takes 500 and 100). With ``-s`` each style tells its figures.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from emulator import Lab
from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate
from emulator.cluster.model import Cluster
from emulator.cni.styles import load_style
from emulator.kernel import neighbour_table, registry
from emulator.lab.lab import Stream
from emulator.lab.records import ProbeRequest
from emulator.lab.verdicts import Ask
from emulator.policy.model import Family
from tests.policy.corner_cases import policy
from tests.policy.second_opinion import Place, Point, sides_of
from tests.policy.site import Site, ref
from tests.policy.styles import enforcing, topology_for
from tests.policy.worlds import NAMESPACES, NODES, PORTS, Object, World, changed, namespace, pod, worlds

pytestmark = pytest.mark.requires("netns", "veth", "iptables", "ipset", "ip", "mnexec")

CHANGES = int(os.environ.get("CNILAB_LEAK_CHANGES", "8"))
PODS = int(os.environ.get("CNILAB_LEAK_PODS", "10"))
IN_A_ROW = min(4, CHANGES)  # changes of one world
TOGETHER, OPEN = 12, 2  # new pods of one change, and those of them that are under no policy
RATE = 50.0  # requests a second: two streams of a sender come round to a port after more than conntrack's 120 s
DENIED, ALLOWED, CROSSING, OF_ONE = 6, 4, 2, 2  # streams under way together; of one sender at most
PATIENCE = 10.0  # s: none is given up before the end, so that a starved machine loses none
QUICK = 25_000.0  # us until an answer, on a machine whose silences mean something
SETTLE = 0.05  # s of streaming before and after a change
NO_NAMES = ("",) * len(PORTS)
FEWEST = 3  # policies of a world
LATER = 0.3  # s of streaming after new pods are there
NEIGHBOUR_RETRY = 20  # ms, in place of a second: whoever was looked for before it was there is found at once then
RESET = "(RST)"  # how an answer is told that comes from a pod where nobody listens yet


class Foreseen:
    """A lab, and beside it its cluster worked out in advance, so that addresses are known before they are in use."""

    def __init__(self, site: Site) -> None:
        self.site = site
        style = load_style(site.style)
        self._topology = style.prepare(topology_for(site.style))
        self._ipam = style.ipam(self._topology)
        self._cluster: Cluster | None = None

    def foresee(self, objects: Sequence[Object]) -> Cluster:
        """The cluster that there will be once the lab has become these objects; it has to, then."""
        for state in self.site.steps(objects):
            pods = {"/".join(ref(one)[1:]) for one in state if one["kind"] == "Pod"}
            ended = {one.key for one in self._cluster.pods} - pods if self._cluster is not None else set()
            given = validate(state).objects
            self._cluster = assemble(self._topology, given, self._ipam, self._cluster, ended=ended)
        assert self._cluster is not None
        return self._cluster

    def become(self, objects: Sequence[Object]) -> None:
        """Make it so, unforeseen."""
        self.foresee(objects)
        self.site.become(objects)


@pytest.fixture(scope="module", params=enforcing())
def foreseen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreseen]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    with Lab(topology_for(request.param), request.param, dns="off", policy_mode="spec") as lab:
        found = Foreseen(Site(lab, request.param))
        found.become([namespace(name, {}) for name in NAMESPACES])
        yield found
    patch.undo()


@pytest.fixture
def figures(foreseen: Foreseen) -> Iterator[Counter[str]]:
    """What a test counts, told at its end."""
    found: Counter[str] = Counter()
    yield found
    print(f"\n{foreseen.site.style}: {dict(found)}")


@contextmanager
def streaming(lab: Lab, requests: Sequence[ProbeRequest]) -> Iterator[list[Stream]]:
    """Streams while the block runs; their results afterwards. All end together, as each waits for late answers."""
    streams = [lab.stream(request, RATE).__enter__() for request in requests]
    try:
        yield streams
    finally:
        with ThreadPoolExecutor(max(1, len(streams))) as pool:
            list(pool.map(Stream.__exit__, streams))


def answered(stream: Stream) -> bool:
    """Whether the target has said anything."""
    return bool(stream.result.received) or any(RESET in error for error in stream.result.errors)


def caught_up(site: Site) -> bool:
    """Wait until the answers that are there have been taken: one more comes after them. Whether it came quickly: on a
    starved machine answers are late, and none says when they would have come."""
    name = site.lab.cluster().pods[0].key
    answer = site.lab.probe(f"pod/{name}", f"pod/{name}", 80, timeout=PATIENCE)
    assert answer.reached
    return max(answer.result.connect_times + answer.result.times) <= QUICK


class Watched:
    """Flows to keep an eye on. ``denied``: one end or the other denies them before the change and behind it.
    ``allowed``: both ends allow them, before and behind. ``crossing``: neither state allows them, but one end does as
    it was and the other as it will be. Nodes get their rules one after the other, so between the two these pass."""

    def __init__(self, cluster: Cluster, old: World, new: World, chance: random.Random) -> None:
        self.denied: list[Point] = []
        self.allowed: list[Point] = []
        self.crossing: list[Point] = []
        before, after = ({ref(one): one["spec"] for one in world.of("Pod")} for world in (old, new))
        stay = {"/".join(key[1:]) for key, spec in before.items() if after.get(key) == spec}
        ports = [(protocol, port) for protocol, port in PORTS if protocol == "TCP"]
        points: list[tuple[Point, list[Point], int]] = []
        for family in families(cluster):
            places = [
                Place("pod", one.namespace, one.name, one.node, address)
                for one in cluster.pods
                for address in one.addresses
                if one.key in stay and (":" in address) == (family == 6)
            ]
            was, will = (sides_of(world.objects, places, ports) for world in (old, new))
            for point in ((s, d, *port) for s in places for d in places for port in ports if s != d):
                leaves = point in was.leaves, point in will.leaves
                enters = point in was.enters, point in will.enters
                if all(leaves) and all(enters):
                    points.append((point, self.allowed, ALLOWED))
                elif not any(leaves) or not any(enters):
                    points.append((point, self.denied, DENIED))
                elif not (leaves[0] and enters[0]) and not (leaves[1] and enters[1]):
                    points.append((point, self.crossing, CROSSING))
        chance.shuffle(points)
        senders: Counter[str] = Counter()
        for point, chosen, most in points:
            sender = f"{point[0].space}/{point[0].name}"
            if len(chosen) < most and senders[sender] < OF_ONE:
                senders[sender] += 1
                chosen.append(point)

    def requests(self) -> list[ProbeRequest]:
        return [
            ProbeRequest(f"pod/{source.space}/{source.name}", target.address, port, "tcp", timeout=PATIENCE)
            for source, target, _, port in (*self.denied, *self.allowed, *self.crossing)
        ]


def families(cluster: Cluster) -> tuple[Family, ...]:
    return tuple(6 if ":" in cidr else 4 for cidr in cluster.topology.pod_cidrs)


@settings(
    max_examples=max(1, CHANGES // max(1, IN_A_ROW)), deadline=None, database=None, phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck), print_blob=True,
)  # fmt: skip
@given(data=st.data())
def test_no_change_lets_through_what_neither_state_allows_nor_stops_what_both_do(
    foreseen: Foreseen, figures: Counter[str], data: st.DataObject
) -> None:
    site = foreseen.site
    old = data.draw(worlds())
    assume(len(old.of("NetworkPolicy")) >= FEWEST and len(old.of("Pod")) > FEWEST)  # the first example is the simplest
    foreseen.become(old.objects)
    for number in range(IN_A_ROW):
        new = data.draw(changed(old))
        watched = Watched(site.lab.cluster(), old, new, random.Random(number))
        assume(number or watched.denied)
        refused = neighbour_table.refusals()
        with streaming(site.lab, watched.requests()) as streams:
            time.sleep(SETTLE)
            foreseen.become(new.objects)
            quick = caught_up(site)
            time.sleep(SETTLE)
        leaks = [str(point) for point, one in zip(watched.denied, streams, strict=False) if answered(one)]
        kept = streams[len(watched.denied) : len(watched.denied) + len(watched.allowed)]
        crossing = streams[len(watched.denied) + len(watched.allowed) :]
        # A window that lasts until the end is of answers that were still under way
        gaps = [
            f"{point}: {one.result.lost}, {one.result.errors}"
            for point, one in zip(watched.allowed, kept, strict=True)
            if any(window.last < one.result.sent - 1 for window in one.result.lost)
        ]
        figures["changes"] += 1
        figures["denied requests"] += sum(one.result.sent for one in streams[: len(watched.denied)])
        figures["allowed requests"] += sum(one.result.sent for one in kept)
        figures["answers"] += sum(one.result.received for one in kept)
        figures["leaks"] += len(leaks)
        figures["crossing streams"] += len(crossing)
        figures["crossed"] += sum(answered(one) for one in crossing)
        figures["gaps"] += len(gaps) if quick else 0
        figures["unsure gaps"] += 0 if quick else len(gaps)
        figures["changes on a quick machine"] += quick
        assert not leaks, f"{leaks}\nfrom {old.objects}\nto {new.objects}"
        assert not (gaps and quick) or neighbour_table.refusals() > refused, (
            f"{gaps}\nfrom {old.objects}\nto {new.objects}"
        )
        old = new


def test_a_new_pod_is_judged_from_the_first_packet_to_it_and_from_it(foreseen: Foreseen, figures: Counter[str]) -> None:
    """Some are under no policy: their answers show that the others' streams would have got through."""
    site = foreseen.site
    peers = [
        pod("y", f"peer{number}", "n1" if number % 2 else "n2", {}, NO_NAMES) for number in range(TOGETHER // OF_ONE)
    ]
    closed = policy("{podSelector: {matchLabels: {app: shut}}, policyTypes: [Ingress, Egress]}")
    base = [*(namespace(name, {}) for name in NAMESPACES), *peers, closed]
    foreseen.become(base)
    for node in NODES:
        files = "/proc/sys/net/ipv[46]/neigh/*/retrans_time_ms"
        site.lab.run(node, "sh", "-c", f"for one in {files}; do echo {NEIGHBOUR_RETRY} >$one; done")
    for batch in range(max(1, PODS // (TOGETHER - OPEN))):
        new = [
            pod(
                "x",
                f"new{batch}-{number}",
                "n2" if number % 2 else "n1",
                {"app": "shut" if number >= OPEN else "open"},
                NO_NAMES,
            )
            for number in range(TOGETHER)
        ]
        cluster = foreseen.foresee([*base, *new])
        family = families(cluster)[batch % len(families(cluster))]
        address = {
            one.key: next(each for each in one.addresses if (":" in each) == (family == 6)) for one in cluster.pods
        }
        asks = [
            ProbeRequest(
                f"pod/y/peer{number % len(peers)}", address["/".join(ref(one)[1:])], 80, "tcp", timeout=PATIENCE
            )
            for number, one in enumerate(new)
        ]
        with streaming(site.lab, asks) as streams:
            time.sleep(SETTLE)
            site.become([*base, *new])
            out = [Ask(f"pod/{'/'.join(ref(one)[1:])}", "pod/y/peer0", "tcp", 80, family) for one in new[OPEN:]]
            wrong = site.faults(out, [False] * len(out))
            free = [ProbeRequest(ask.source, ask.target, 80, "tcp", timeout=PATIENCE) for ask in asks[:OPEN]]
            said = site.lab.probes(free)
            assert all(answer.reached for answer in said), said
            time.sleep(LATER)
        assert {one.key: one.addresses for one in site.lab.cluster().pods} == {
            one.key: one.addresses for one in cluster.pods
        }
        leaks = [str(request) for request, one in zip(asks[OPEN:], streams[OPEN:], strict=True) if answered(one)]
        figures["pods"] += TOGETHER - OPEN
        figures["requests"] += sum(one.result.sent for one in streams[OPEN:])
        figures["leaks"] += len(leaks) + len(wrong)
        assert not leaks
        assert not wrong
        assert any(one.result.received for one in streams[:OPEN])
        foreseen.become(base)
