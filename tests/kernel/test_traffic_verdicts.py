"""Probes that only ask whether they are let in: TCP handshakes, SCTP INITs, and source ports that nobody remembers."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from emulator.kernel.syscalls import inside
from emulator.traffic.client import TrafficEngine
from emulator.traffic.model import Probe, ProbeResult, Protocol, Server

pytestmark = pytest.mark.sandbox

A, B = (f"/run/netns/{name}" for name in "ab")
TARGET = {4: "10.2.0.2", 6: "fd02::2"}
ROUTER = {4: "10.1.0.1", 6: "fd01::1"}
PORTS = ((80, "TCP"), (53, "UDP"), (9999, "SCTP"))
NUMBERS: dict[Protocol, int] = {"tcp": 80, "udp": 53, "sctp": 9999}

families = pytest.mark.parametrize("family", [4, 6])
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])


def sh(*argv: str, stdin: str = "") -> str:
    return subprocess.run(argv, input=stdin, text=True, check=True, capture_output=True).stdout


def nft(rules: str) -> None:
    sh("ip", "netns", "exec", "r", "nft", "-f", "-", stdin=rules)


def forward(rule: str) -> None:
    nft(f"table inet t {{ chain c {{ type filter hook forward priority 0; {rule}; }}; }}")


@pytest.fixture
def engine() -> Iterator[TrafficEngine]:
    """`a` and `b` with the router `r` between them, `b` served."""
    for name in "abr":
        sh("ip", "netns", "add", name)
        sh("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0",
           "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratemask=")  # fmt: skip
    for number, name in enumerate("ab", start=1):
        sh("ip", "-n", "r", "link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "-n", "r", "-batch", "-", stdin=f"link set dev {name} up\naddr add 10.{number}.0.1/24 dev {name}\n"
           f"addr add fd0{number}::1/64 dev {name}\n")  # fmt: skip
        sh("ip", "-n", name, "-batch", "-", stdin=f"link set lo up\nlink set eth0 up\n"
           f"addr add 10.{number}.0.2/24 dev eth0\naddr add fd0{number}::2/64 dev eth0\n"
           f"route add default via 10.{number}.0.1\nroute add default via fd0{number}::1\n")  # fmt: skip
    sh("ip", "netns", "exec", "r", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    with TrafficEngine.start() as engine:
        engine.serve([Server("pod/default/b", B, "b", PORTS)])
        yield engine


def knock(engine: TrafficEngine, protocol: Protocol, family: int, port: int = 0, **more: float) -> ProbeResult:
    probe = Probe("p", A, TARGET[family], protocol, port or NUMBERS[protocol], timeout=more.get("timeout", 2.0),
                  knock=True, fresh=True, source_port=int(more.get("source_port", 0)))  # fmt: skip
    return engine.probe([probe])[0]


@families
@protocols
def test_open_port_lets_in(engine: TrafficEngine, protocol: Protocol, family: int) -> None:
    result = knock(engine, protocol, family)
    assert (result.verdict, result.sent, result.received, result.detail) == ("delivered", 1, 1, "")
    assert 0 < result.times[0] < 2_000_000


@families
@protocols
def test_drop_is_silence(engine: TrafficEngine, protocol: Protocol, family: int) -> None:
    forward("meta l4proto { tcp, udp, sctp } drop")
    assert knock(engine, protocol, family, timeout=0.2).verdict == "dropped"


@families
@protocols
def test_reject_is_a_refusal_by_the_router(engine: TrafficEngine, protocol: Protocol, family: int) -> None:
    forward("meta l4proto { tcp, udp, sctp } reject with icmpx type port-unreachable")
    result = knock(engine, protocol, family)
    assert (result.verdict, result.reporter) == ("refused", ROUTER[family])


@families
def test_netfilter_tells_sctp_ports_apart(engine: TrafficEngine, family: int) -> None:
    engine.serve([Server("pod/default/b", B, "b", (*PORTS, (9998, "SCTP")))])
    forward("sctp dport 9999 drop")
    assert knock(engine, "sctp", family, timeout=0.2).verdict == "dropped"
    assert knock(engine, "sctp", family, 9998).verdict == "delivered"


@families
def test_connection_tracking_takes_our_inits_for_valid(engine: TrafficEngine, family: int) -> None:
    forward("ct state invalid drop; ct state established accept; sctp dport 9999 ct state new accept; "
            "meta l4proto sctp drop")  # fmt: skip
    assert knock(engine, "sctp", family).verdict == "delivered"
    sh("ip", "netns", "exec", "r", "nft", "flush", "ruleset")
    forward("meta l4proto sctp ct state new drop")
    assert knock(engine, "sctp", family, timeout=0.2).verdict == "dropped"


def test_closed_sctp_port_answers_nothing_and_says_so(engine: TrafficEngine) -> None:
    assert knock(engine, "sctp", 4, 4711, timeout=0.2).verdict == "dropped"


def test_knock_leaves_no_connection_behind(engine: TrafficEngine) -> None:
    for _ in range(50):
        assert knock(engine, "tcp", 4).reached
    for netns in "ab":
        assert "ESTAB" not in sh("ip", "netns", "exec", netns, "ss", "-Hant")
        assert "TIME-WAIT" not in sh("ip", "netns", "exec", netns, "ss", "-Hant")


def test_used_source_port_passes_a_new_rule_and_a_fresh_one_does_not(engine: TrafficEngine) -> None:
    """The trap that fresh ports are for: an allowed UDP flow goes on passing where established flows are accepted."""
    forward("ct state established accept")
    used = knock(engine, "udp", 4, source_port=45000)
    assert used.reached
    sh("ip", "netns", "exec", "r", "nft", "flush", "ruleset")
    forward("ct state established accept; meta l4proto udp drop")
    assert knock(engine, "udp", 4, source_port=45000).reached
    assert knock(engine, "udp", 4, timeout=0.2).verdict == "dropped"


def test_server_that_speaks_first_is_let_in_too(engine: TrafficEngine) -> None:
    with inside(B):
        listening = socket.create_server(("0.0.0.0", 2222))
    assert knock(engine, "tcp", 4, 2222).reached
    listening.close()
    assert knock(engine, "tcp", 4, 2222).verdict == "refused"
