"""Servers and probes on a real kernel: client `a`, router `r` and server `b` are namespaces joined by veth pairs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from emulator.errors import DaemonError, NotFound, UserError
from emulator.kernel.syscalls import inside
from emulator.traffic.client import TrafficEngine
from emulator.traffic.model import Probe, ProbeResult, Protocol, Server

pytestmark = pytest.mark.sandbox

A, B, R = (f"/run/netns/{name}" for name in "abr")
SERVER = {4: "10.2.0.2", 6: "fd02::2"}
CLIENT = {4: "10.1.0.2", 6: "fd01::2"}
NEAR_ROUTER = {4: "10.1.0.1", 6: "fd01::1"}
FAR_ROUTER = {4: "10.2.0.1", 6: "fd02::1"}
NOWHERE = {4: "10.9.0.9", 6: "fd09::9"}
NARROW = 1400

families = pytest.mark.parametrize("family", [4, 6])
protocols = pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
ported = pytest.mark.parametrize("protocol", ["tcp", "udp"])


def ip(netns: str, *commands: str) -> None:
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(commands), text=True, check=True)


def nft(netns: str, rules: str) -> None:
    subprocess.run(["ip", "netns", "exec", netns, "nft", "-f", "-"], input=rules, text=True, check=True)


def narrow_the_far_link() -> None:
    ip("r", f"link set dev b mtu {NARROW}")
    ip("b", f"link set dev eth0 mtu {NARROW}")


@pytest.fixture
def net() -> None:
    for name in "abr":
        subprocess.run(["ip", "netns", "add", name], check=True)
        # Duplicate address detection would keep a router's link-local address, and so its neighbour discovery, from
        # working for the first second.
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"], check=True)
    for name, near, number in (("a", NEAR_ROUTER, 1), ("b", FAR_ROUTER, 2)):
        ip("r", f"link add name {name} type veth peer name eth0 netns {name}", f"link set dev {name} up")
        ip("r", f"addr add {near[4]}/24 dev {name}", f"addr add {near[6]}/64 dev {name}")
        ip(name, "link set lo up", "link set eth0 up")
        ip(name, f"addr add 10.{number}.0.2/24 dev eth0", f"addr add fd0{number}::2/64 dev eth0")
        ip(name, f"route add default via {near[4]}", f"route add default via {near[6]}")
    forward = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    subprocess.run(["ip", "netns", "exec", "r", "sysctl", "-qw", *forward], check=True)
    # A host keeps ICMP errors to itself otherwise when it has just sent some.
    unlimited = ("net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratemask=")
    for name in "rb":
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", *unlimited], check=True)


@pytest.fixture
def engine(net: None) -> Iterator[TrafficEngine]:
    with TrafficEngine.start() as engine:
        engine.serve([Server("pod/default/b-0", B, "b-0", ((80, "TCP"), (53, "UDP")))])
        yield engine


def probe(protocol: Protocol, target: str, **options: Any) -> Probe:
    port = {"tcp": 80, "udp": 53, "icmp": 0}[protocol]
    return replace(Probe("p", A, target, protocol, port, timeout=2.0), **options)


def send(engine: TrafficEngine, protocol: Protocol, target: str, **options: Any) -> ProbeResult:
    return engine.probe([probe(protocol, target, **options)])[0]


@families
@protocols
def test_reached_server_tells_its_name_and_whom_it_saw(engine: TrafficEngine, family: int, protocol: Protocol) -> None:
    result = send(engine, protocol, SERVER[family], count=3)
    assert (result.verdict, result.sent, result.received, result.detail) == ("delivered", 3, 3, "")
    assert all(0 < time < 2_000_000 for time in result.times)
    assert result.local_address == CLIENT[family]
    if protocol != "icmp":
        seen = f"[{CLIENT[6]}]" if family == 6 else CLIENT[4]
        assert result.answered_by == "b-0"
        assert result.answers == {"b-0": 3}
        assert result.sources == {CLIENT[family]: 3}
        assert result.source_seen == f"{seen}:{result.local_port}"


@families
def test_closed_tcp_port_is_refused_by_a_reset(engine: TrafficEngine, family: int) -> None:
    result = send(engine, "tcp", SERVER[family], port=81)
    assert (result.verdict, result.detail) == ("refused", "connection refused (RST)")


@families
def test_closed_udp_port_is_refused_by_icmp_from_the_server(engine: TrafficEngine, family: int) -> None:
    result = send(engine, "udp", SERVER[family], port=54)
    assert (result.verdict, result.reporter) == ("refused", SERVER[family])
    assert result.detail == f"port unreachable, from {SERVER[family]}"


@families
@protocols
def test_packets_that_a_rule_drops_are_silence_until_the_timeout(
    engine: TrafficEngine, family: int, protocol: Protocol
) -> None:
    nft("r", "table inet t { chain c { type filter hook forward priority 0; drop; }; }")
    began = time.monotonic()
    result = send(engine, protocol, SERVER[family], timeout=0.3)
    assert (result.verdict, result.sent, result.received, result.times) == ("dropped", 1, 0, ())
    assert 0.3 <= time.monotonic() - began < 2.0


@protocols
def test_after_one_silence_the_rest_goes_out_at_once(engine: TrafficEngine, protocol: Protocol) -> None:
    nft("r", "table inet t { chain c { type filter hook forward priority 0; drop; }; }")
    began = time.monotonic()
    result = send(engine, protocol, SERVER[4], timeout=0.4, count=10)
    assert (result.verdict, result.sent, result.received) == ("dropped", 10, 0)
    assert time.monotonic() - began < 2.0  # and not ten timeouts


@ported
@families
def test_reject_with_port_unreachable_is_refused_and_names_the_router(
    engine: TrafficEngine, family: int, protocol: Protocol
) -> None:
    nft(
        "r",
        "table inet t { chain c { type filter hook forward priority 0; reject with icmpx type port-unreachable; }; }",
    )
    result = send(engine, protocol, SERVER[family])
    assert (result.verdict, result.reporter) == ("refused", NEAR_ROUTER[family])


@protocols
@families
def test_reject_as_prohibited_is_unreachable(engine: TrafficEngine, family: int, protocol: Protocol) -> None:
    nft(
        "r",
        "table inet t { chain c { type filter hook forward priority 0; reject with icmpx type admin-prohibited; }; }",
    )
    result = send(engine, protocol, SERVER[family])
    assert (result.verdict, result.reporter) == ("unreachable", NEAR_ROUTER[family])
    assert "administratively prohibited" in result.detail


@protocols
@families
def test_router_without_a_route_says_so(engine: TrafficEngine, family: int, protocol: Protocol) -> None:
    result = send(engine, protocol, NOWHERE[family])
    said = "net unreachable" if family == 4 else "no route to destination"
    assert (result.verdict, result.detail) == ("unreachable", f"{said}, from {NEAR_ROUTER[family]}")


@protocols
@families
def test_sender_without_a_route_fails_at_once(engine: TrafficEngine, family: int, protocol: Protocol) -> None:
    ip("a", f"route del default via {NEAR_ROUTER[family]}")
    result = send(engine, protocol, SERVER[family], count=50)
    assert (result.verdict, result.detail) == ("unreachable", "no route at the sender")


@protocols
@families
def test_ttl_of_one_ends_at_the_first_router(engine: TrafficEngine, family: int, protocol: Protocol) -> None:
    result = send(engine, protocol, SERVER[family], ttl=1)
    assert (result.verdict, result.detail) == ("unreachable", f"time exceeded, from {NEAR_ROUTER[family]}")


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
@families
def test_unfragmentable_packet_beyond_the_path_mtu_is_told_the_mtu_every_time(
    engine: TrafficEngine, family: int, protocol: Protocol
) -> None:
    narrow_the_far_link()
    for _ in range(2):  # the kernel of `a` knows the path MTU by the second time, and still the router is asked
        result = send(engine, protocol, SERVER[family], size=1420, dont_fragment=True)
        assert (result.verdict, result.mtu, result.reporter) == ("unreachable", NARROW, NEAR_ROUTER[family])
        said = "frag needed" if family == 4 else "packet too big"
        assert result.detail == f"{said}, mtu {NARROW}, from {NEAR_ROUTER[family]}"


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
@families
def test_unfragmentable_packet_that_fits_arrives(engine: TrafficEngine, family: int, protocol: Protocol) -> None:
    narrow_the_far_link()
    size = NARROW - 8 - (20 if family == 4 else 40)
    assert send(engine, protocol, SERVER[family], size=size, dont_fragment=True).reached
    assert not send(engine, protocol, SERVER[family], size=size + 1, dont_fragment=True).reached


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
@families
def test_unfragmentable_packet_beyond_the_device_mtu_does_not_leave(
    engine: TrafficEngine, family: int, protocol: Protocol
) -> None:
    result = send(engine, protocol, SERVER[family], size=1600, dont_fragment=True)
    assert (result.verdict, result.detail, result.mtu) == ("unreachable", "message too long: path MTU 1500", 1500)


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
def test_packet_without_df_is_fragmented_by_the_router(engine: TrafficEngine, protocol: Protocol) -> None:
    narrow_the_far_link()
    assert send(engine, protocol, SERVER[4], size=1420, allow_fragments=True).reached


@pytest.mark.parametrize("protocol", ["udp", "icmp"])
@families
def test_sender_left_to_itself_learns_the_path_mtu_and_fragments(
    engine: TrafficEngine, family: int, protocol: Protocol
) -> None:
    narrow_the_far_link()
    result = send(engine, protocol, SERVER[family], size=1420, count=2)
    assert (result.verdict, result.sent, result.received, result.mtu) == ("delivered", 2, 1, NARROW)


@families
def test_tcp_payload_comes_back_whole_through_a_narrow_link(engine: TrafficEngine, family: int) -> None:
    narrow_the_far_link()
    result = send(engine, "tcp", SERVER[family], size=3_000_000, timeout=5.0)
    assert (result.verdict, result.detail, result.answered_by) == ("delivered", "", "b-0")


def test_established_connection_outlives_icmp_errors_as_tcp_says(engine: TrafficEngine) -> None:
    nft(
        "r",
        "table ip t { chain c { type filter hook forward priority 0; ip length > 1000 "
        "reject with icmp type host-unreachable; }; }",
    )
    healing = threading.Timer(0.5, nft, ("r", "delete table ip t"))
    healing.start()
    result = send(engine, "tcp", SERVER[4], size=100_000, timeout=5.0)
    healing.join()
    assert (result.verdict, result.detail) == ("delivered", "")


def test_tcp_payload_into_a_black_hole_says_how_much_came_back(engine: TrafficEngine) -> None:
    nft("r", "table ip t { chain c { type filter hook forward priority 0; ip length > 1000 drop; }; }")
    result = send(engine, "tcp", SERVER[4], size=100_000, timeout=0.5)
    assert (result.verdict, result.detail) == ("dropped", "connected, 0 of 100000 bytes came back")


@ported
@families
def test_masquerading_router_is_the_source_that_is_seen(engine: TrafficEngine, family: int, protocol: Protocol) -> None:
    nft("r", 'table inet t { chain c { type nat hook postrouting priority srcnat; oifname "b" masquerade; }; }')
    result = send(engine, protocol, SERVER[family], count=2)
    assert result.sources == {FAR_ROUTER[family]: 2}


@families
def test_udp_answer_leaves_from_the_address_that_was_asked(engine: TrafficEngine, family: int) -> None:
    second = {4: "10.2.0.3/24", 6: "fd02::3/64"}[family]
    ip("b", f"addr add {second} dev eth0")
    # The client's socket is connected: it takes an answer from no other address.
    assert send(engine, "udp", second.partition("/")[0]).answered_by == "b-0"


@protocols
def test_324_probes_at_once_are_all_answered(engine: TrafficEngine, protocol: Protocol) -> None:
    began = time.monotonic()
    results = engine.probe([probe(protocol, SERVER[4], id=str(number), timeout=3.0) for number in range(324)])
    assert [result.id for result in results] == [str(number) for number in range(324)]
    assert all(result.reached for result in results)
    assert len({result.local_port for result in results}) == 324
    assert time.monotonic() - began < 3.0


def test_mixed_verdicts_do_not_disturb_each_other(engine: TrafficEngine) -> None:
    nft("r", "table ip t { chain c { type filter hook forward priority 0; tcp dport 82 drop; }; }")
    kinds = [("tcp", 80, "delivered"), ("tcp", 81, "refused"), ("tcp", 82, "dropped"), ("udp", 54, "refused")]
    wanted = [kinds[number % 4] for number in range(200)]
    results = engine.probe([probe(kind, SERVER[4], port=port, timeout=1.0) for kind, port, _ in wanted])  # type: ignore[arg-type]
    assert [result.verdict for result in results] == [verdict for _, _, verdict in wanted]


def test_new_flows_leave_from_ports_of_their_own(engine: TrafficEngine) -> None:
    nft("r", "table ip t { set s { type inet_service; flags dynamic; size 100; }; chain c { type filter hook forward "
        "priority 0; udp dport 53 add @s { udp sport }; }; }")  # fmt: skip
    assert send(engine, "udp", SERVER[4], count=7, new_flow=True).received == 7
    listed = subprocess.run(
        ["ip", "netns", "exec", "r", "nft", "list", "set", "ip", "t", "s"], capture_output=True, text=True, check=True
    ).stdout
    assert listed.partition("elements")[2].count(",") == 6


def test_interval_paces_the_packets(engine: TrafficEngine) -> None:
    began = time.monotonic()
    assert send(engine, "icmp", SERVER[4], count=4, interval=0.1).received == 4
    assert 0.3 <= time.monotonic() - began < 1.5


def test_pod_reaches_itself(engine: TrafficEngine) -> None:
    result = send(engine, "tcp", SERVER[4], netns=B)
    assert (result.answered_by, result.local_address) == ("b-0", SERVER[4])


def test_server_that_is_no_http_server_counts_as_answer(engine: TrafficEngine) -> None:
    with inside(B):
        listener = socket.create_server(("0.0.0.0", 22))

    def greet() -> None:
        connection, _ = listener.accept()
        connection.sendall(b"SSH-2.0-somebody\r\n")
        connection.recv(1000)
        connection.close()

    thread = threading.Thread(target=greet)
    thread.start()
    result = send(engine, "tcp", SERVER[4], port=22)
    thread.join()
    listener.close()
    assert (result.verdict, result.answered_by, result.detail) == ("delivered", "", "answered, but not HTTP")


def test_server_that_accepts_and_keeps_silent_is_told_from_a_drop(engine: TrafficEngine) -> None:
    with inside(B):
        listener = socket.create_server(("0.0.0.0", 22))
    result = send(engine, "tcp", SERVER[4], port=22, timeout=0.5)
    listener.close()
    assert (result.verdict, result.detail, len(result.connect_times)) == ("dropped", "connected, then no answer", 1)


def test_real_clients_get_what_agnhost_answers(engine: TrafficEngine) -> None:
    with inside(A):
        tcp = socket.create_connection((SERVER[4], 80))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.connect((SERVER[4], 53))
    me = "10.1.0.2:%d"
    tcp.settimeout(2.0)
    udp.settimeout(2.0)
    for path, body in (
        ("/hostname", "b-0"),
        ("/clientip", me % tcp.getsockname()[1]),
        ("/echo?msg=a%20b", "a b"),
        ("/healthz", ""),
    ):
        tcp.sendall(f"GET {path} HTTP/1.1\r\nHost: b\r\n\r\n".encode())
        head, _, answer = tcp.recv(4096).decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 OK")
        assert answer == body
    for question, answer in (("hostname\n", "b-0"), ("echo Hello", "hello"), ("clientip", me % udp.getsockname()[1])):
        udp.send(question.encode())
        assert udp.recv(4096).decode() == answer
    tcp.close()
    udp.close()


def test_garbage_is_answered_with_an_error_and_hurts_nobody_else(engine: TrafficEngine) -> None:
    with inside(A):
        clients = [socket.create_connection((SERVER[4], 80)) for _ in range(4)]
    for client, data in zip(
        clients,
        (os.urandom(5000) + b"\r\n\r\n", b"\0" * 100_000, b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 99_999),
        strict=True,
    ):
        client.settimeout(2.0)
        try:
            client.sendall(data)
            answer = client.recv(4096)
        except ConnectionError:
            answer = b""
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")) or data[:1] == b"\0"
        client.close()
    assert send(engine, "tcp", SERVER[4]).reached


def test_serving_again_closes_what_is_not_named_any_more(engine: TrafficEngine) -> None:
    engine.serve([Server("pod/default/b-0", B, "b-1", ((8080, "TCP"), (53, "UDP")))])
    assert send(engine, "tcp", SERVER[4]).verdict == "refused"
    assert send(engine, "tcp", SERVER[4], port=8080).answered_by == "b-1"
    assert send(engine, "udp", SERVER[4]).answered_by == "b-1"
    engine.stop("pod/default/b-0")
    assert send(engine, "udp", SERVER[4]).verdict == "refused"


def test_ports_that_cannot_be_served_are_noticed(net: None) -> None:
    notices: list[str] = []
    with inside(B):
        taken = socket.create_server(("0.0.0.0", 80))
    with TrafficEngine.start(notices.append) as engine:
        engine.serve([Server("pod/default/b", B, "b", ((80, "TCP"), (132, "DCCP"), (81, "TCP")))])
        assert send(engine, "tcp", SERVER[4], port=81).reached
    taken.close()
    assert any("TCP port 80 is not served: another process listens there" in notice for notice in notices)
    assert any("nothing answers on DCCP port 132" in notice for notice in notices)


def test_namespace_that_vanishes_takes_its_sockets_along(engine: TrafficEngine) -> None:
    def listening() -> int:
        links = (os.readlink(entry.path) for entry in os.scandir(f"/proc/{engine.pid}/fd"))
        return sum(link.startswith("socket:") for link in links)

    before = listening()
    subprocess.run(["ip", "netns", "del", "b"], check=True)
    deadline = time.monotonic() + 5.0
    while listening() > before - 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert listening() == before - 2


def test_thousand_pods_with_two_ports_are_served(engine: TrafficEngine) -> None:
    # One namespace stands for all of them: what is bounded is sockets and time.
    servers = [
        Server(f"pod/default/b{number}", B, f"b{number}", ((10_000 + number, "TCP"), (10_000 + number, "UDP")))
        for number in range(1000)
    ]
    began = time.monotonic()
    engine.serve(servers)
    assert time.monotonic() - began < 3.0
    results = engine.probe([probe("tcp", SERVER[4], port=10_000 + number, timeout=10.0) for number in range(1000)])
    assert [result.answered_by for result in results] == [f"b{number}" for number in range(1000)]


def test_unknown_namespace_is_an_error_for_servers_and_a_verdict_for_probes(engine: TrafficEngine) -> None:
    with pytest.raises(NotFound, match="/run/netns/none"):
        engine.serve([Server("pod/default/none", "/run/netns/none", "none", ((80, "TCP"),))])
    result = send(engine, "tcp", SERVER[4], netns="/run/netns/none")
    assert (result.verdict, result.detail) == ("unreachable", "No such file or directory at the sender")


def test_probe_that_no_packet_can_be_made_of_is_refused(engine: TrafficEngine) -> None:
    with pytest.raises(UserError, match="port 70000"):
        send(engine, "tcp", SERVER[4], port=70_000)
    assert send(engine, "tcp", SERVER[4]).reached


def test_threads_may_probe_at_the_same_time(engine: TrafficEngine) -> None:
    results: list[ProbeResult] = []

    def run(number: int) -> None:
        results.extend(engine.probe([probe("udp", SERVER[4], id=f"{number}.{index}") for index in range(20)]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.id for result in results if result.reached}) == 160


def test_dead_engine_is_an_error_with_its_last_words(engine: TrafficEngine) -> None:
    nft("r", "table inet t { chain c { type filter hook forward priority 0; drop; }; }")
    killer = threading.Timer(0.2, os.kill, (engine.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(DaemonError, match="signal 9"):
        send(engine, "tcp", SERVER[4], timeout=5.0)
    assert not engine.alive
    with pytest.raises(DaemonError, match="signal 9"):
        send(engine, "tcp", SERVER[4])


def test_engine_dies_with_the_process_that_started_it() -> None:
    receive, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(report, b"%d" % TrafficEngine.start().pid)
        signal.pause()
    pid = int(os.read(receive, 100))
    os.kill(pid, signal.SIGSTOP)  # so that it cannot end by itself when its socket closes
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 3.0
    while _running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _running(pid)


def _running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
