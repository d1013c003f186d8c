"""Streams: how long a path was broken, as a client sees it. Namespaces `a` and `b` with a veth pair between them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from emulator.errors import UserError
from emulator.traffic.client import TrafficEngine
from emulator.traffic.model import Probe, Protocol, Server, StreamReport

pytestmark = pytest.mark.sandbox

A, B = "/run/netns/a", "/run/netns/b"
TARGET = {"4": "10.0.0.2", "6": "fd00::2"}
PORT = {"icmp": 0, "tcp": 80, "udp": 53}


def ip(netns: str, *commands: str) -> None:
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(commands), text=True, check=True)


@pytest.fixture
def engine() -> Iterator[TrafficEngine]:
    for name in "ab":
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"], check=True)
    ip("a", "link add name eth0 type veth peer name eth0 netns b")
    for number, name in enumerate("ab", 1):
        ip(name, "link set lo up", "link set eth0 up", f"addr add 10.0.0.{number}/24 dev eth0")
        ip(name, f"addr add fd00::{number}/64 dev eth0")
    with TrafficEngine.start() as engine:
        engine.serve([Server("pod/default/b", B, "b-0", ((80, "TCP"), (53, "UDP")))])
        yield engine


def start(engine: TrafficEngine, protocol: Protocol, family: str = "4", rate: float = 200.0) -> None:
    probe = Probe("s", A, TARGET[family], protocol, PORT[protocol], timeout=0.1)
    engine.stream_start("s", probe, rate)


def window(report: StreamReport) -> tuple[int, float]:
    """Lost requests and milliseconds of the only loss."""
    assert len(report.lost) == 1, report.lost
    return report.lost[0].last - report.lost[0].first + 1, report.lost[0].milliseconds


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_undisturbed_stream_loses_nothing(engine: TrafficEngine, protocol: Protocol, family: str) -> None:
    start(engine, protocol, family)
    time.sleep(0.5)
    report = engine.stream_stop("s")
    assert 60 <= report.sent <= 120
    assert (report.received, report.lost, report.errors) == (report.sent, (), {})
    assert (report.out_of_order, report.duplicated) == (0, 0)
    assert [name for _, name in report.changes] == ([] if protocol == "icmp" else ["b-0"])
    assert 0 < report.median < 50_000


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
def test_dropping_rule_shows_as_one_window_of_its_length(engine: TrafficEngine, protocol: Protocol) -> None:
    start(engine, protocol)
    time.sleep(0.2)
    # Loaded and removed by one nft each: it drops from some moment of the one until some moment of the other.
    nft = ["ip", "netns", "exec", "b", "nft"]
    moments = [time.monotonic()]
    subprocess.run([*nft, "table ip t { chain c { type filter hook input priority 0; drop; }; }"], check=True)
    moments.append(time.monotonic())
    time.sleep(0.4)
    moments.append(time.monotonic())
    subprocess.run([*nft, "delete table ip t"], check=True)
    moments.append(time.monotonic())
    longest, shortest = (moments[3] - moments[0]) * 1000, (moments[2] - moments[1]) * 1000
    time.sleep(0.2)
    report = engine.stream_stop("s")
    lost, milliseconds = window(report)
    assert shortest - 50 < milliseconds < longest + 50
    assert abs(lost - milliseconds / 5) <= 3
    assert report.sent == report.received + lost


def test_link_that_is_down_for_a_while_shows_when_and_how_long(engine: TrafficEngine) -> None:
    # With a neighbour that stays: one that has to be found anew keeps requests until it is, which have answers then
    read = ["ip", "netns", "exec", "b", "cat", "/sys/class/net/eth0/address"]
    mac = subprocess.run(read, capture_output=True, text=True, check=True).stdout.strip()
    ip("a", f"neigh replace 10.0.0.2 lladdr {mac} dev eth0 nud permanent")
    start(engine, "udp")
    began = time.monotonic()
    time.sleep(0.3)
    ip("b", "link set eth0 down")
    down = time.monotonic() - began
    time.sleep(0.3)
    ip("b", "link set eth0 up")
    lasted = (time.monotonic() - began - down) * 1000
    time.sleep(1.6)
    report = engine.stream_stop("s")
    _, milliseconds = window(report)
    assert abs(report.lost[0].start - down) < 0.1
    # The kernel tells itself of a link's return at most once a second, and then b has to find its neighbour anew.
    assert lasted - 100 < milliseconds < lasted + 1400


def test_server_that_is_replaced_shows_as_a_change(engine: TrafficEngine) -> None:
    start(engine, "udp")
    time.sleep(0.1)
    engine.serve([Server("pod/default/b", B, "b-1", ((53, "UDP"),))])
    time.sleep(0.1)
    assert [name for _, name in engine.stream_stop("s").changes] == ["b-0", "b-1"]


def test_refused_requests_are_counted_by_reason(engine: TrafficEngine) -> None:
    engine.stop("pod/default/b")
    start(engine, "tcp", rate=50)
    time.sleep(0.3)
    report = engine.stream_stop("s")
    assert report.received == 0
    assert report.errors == {"connection refused (RST)": report.sent}


def test_streams_are_known_by_name(engine: TrafficEngine) -> None:
    start(engine, "udp")
    with pytest.raises(UserError, match="running already"):
        start(engine, "udp")
    engine.stream_stop("s")
    with pytest.raises(UserError, match="no stream"):
        engine.stream_stop("s")
    with pytest.raises(UserError, match="rate"):
        start(engine, "udp", rate=0)
