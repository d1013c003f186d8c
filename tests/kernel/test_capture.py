"""Two nodes, a bridge and a pod in each, VXLAN between them: captured, followed and judged by tshark."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest

from emulator.capture.follow import Followed, follow
from emulator.capture.model import Event, Journey
from emulator.capture.pcapng import losses, read, write_annotated
from emulator.capture.session import start
from emulator.errors import DaemonError
from emulator.kernel.syscalls import inside

PODS = {"a": "10.244.1.2", "b": "10.244.2.2"}
EVERYWHERE = ["underlay", "node/n1", "node/n2", "pod/default/a", "pod/default/b"]

# Names of namespaces as the plan's files have them: underlay, n1, n2, default_a, default_b.
NETWORK = """
netns add underlay
netns add n1
netns add n2
netns add default_a
netns add default_b
-n underlay link add s1 type bridge
-n underlay link set s1 up
{nodes}
"""
NODE = """
-n underlay link add s1-{n} address 02:00:00:00:01:0{n} type veth peer name eth0 address 02:00:00:00:00:0{n} netns n{n}
-n underlay link set s1-{n} master s1 up
-n n{n} address add 192.168.0.{n}/24 dev eth0
-n n{n} link set eth0 up
-n n{n} link add flannel.1 address 0e:00:00:00:00:0{n} type vxlan id 1 dstport 8472 local 192.168.0.{n} dev eth0
-n n{n} link set flannel.1 mtu 1450 up
-n n{n} address add 10.244.{n}.0/32 dev flannel.1
-n n{n} neighbour add 10.244.{m}.0 lladdr 0e:00:00:00:00:0{m} dev flannel.1 nud permanent
-n n{n} route add 10.244.{m}.0/24 via 10.244.{m}.0 dev flannel.1 onlink
-n n{n} link add cni0 address 0a:00:00:00:00:0{n} type bridge
-n n{n} link set cni0 up
-n n{n} address add 10.244.{n}.1/24 dev cni0
-n n{n} link add veth{p} type veth peer name eth0 address 02:aa:00:00:00:0{n} netns default_{p}
-n n{n} link set veth{p} master cni0 mtu 1450 up
-n default_{p} address add 10.244.{n}.2/24 dev eth0
-n default_{p} link set eth0 mtu 1450 up
-n default_{p} route add default via 10.244.{n}.1
"""

PATH = [
    ("pod/default/a", "eth0", "out"),
    ("node/n1", "vetha", "in"),
    ("node/n1", "cni0", "in"),
    ("node/n1", "flannel.1", "out"),
    ("node/n1", "eth0", "out"),
    ("underlay", "s1-1", "in"),
    ("underlay", "s1-2", "out"),
    ("node/n2", "eth0", "in"),
    ("node/n2", "flannel.1", "in"),
    ("node/n2", "cni0", "out"),
    ("node/n2", "vethb", "out"),
    ("pod/default/b", "eth0", "in"),
]


def _ip(command: str) -> str:
    return subprocess.run(["ip", *command.split()], check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture
def network() -> None:
    nodes = NODE.format(n=1, m=2, p="a") + NODE.format(n=2, m=1, p="b")
    batch = NETWORK.format(nodes=nodes)
    for line in batch.splitlines():
        if line:
            _ip(line)
    for n in (1, 2):
        m = 3 - n
        command = f"bridge -n n{n} fdb append 0e:00:00:00:00:0{m} dev flannel.1 dst 192.168.0.{m} self permanent"
        subprocess.run(command.split(), check=True)
        with inside(f"/run/netns/n{n}"):
            for name in ("net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=0"):
                key, _, value = name.partition("=")
                file = Path("/proc/sys", key.replace(".", "/"))
                if file.exists():
                    file.write_text(value)


def _socket(pod: str, kind: socket.SocketKind) -> socket.socket:
    with inside(f"/run/netns/default_{pod}"):
        made = socket.socket(socket.AF_INET, kind)
    made.settimeout(5)
    return made


def _exchange(count: int, size: int = 56) -> None:
    """Datagrams from a to b and back again, each with a number of its own; the first brings ARP about."""
    with _socket("a", socket.SOCK_DGRAM) as client, _socket("b", socket.SOCK_DGRAM) as server:
        server.bind((PODS["b"], 5000))
        for number in range(count):
            client.sendto(number.to_bytes(4, "big").ljust(size, b"."), (PODS["b"], 5000))
            data, peer = server.recvfrom(65536)
            server.sendto(data, peer)
            client.recv(65536)


@pytest.fixture
def captured(network: None, tmp_path: Path) -> tuple[list[Event], Followed, Path]:
    handle = start(EVERYWHERE, directory=tmp_path)
    _exchange(20)
    stats = handle.stop()
    assert stats.lost == 0
    events = list(read(stats.path))
    assert len(events) == stats.captured
    return events, follow(events), Path(stats.path)


def _datagrams(followed: Followed, source: str) -> list[Journey]:
    return [
        journey
        for journey in followed.journeys
        if journey.hops[0].packet.protocol == "udp" and journey.hops[0].packet.source == source
    ]


@pytest.mark.sandbox
def test_a_packet_through_vxlan_is_seen_on_every_device_in_order(
    captured: tuple[list[Event], Followed, Path],
) -> None:
    requests = _datagrams(captured[1], PODS["a"])
    assert [[(hop.ns, hop.device, hop.direction) for hop in journey.hops] for journey in requests] == [PATH] * 20


@pytest.mark.sandbox
def test_all_packets_are_correlated_and_strictly_ordered_in_time(
    captured: tuple[list[Event], Followed, Path],
) -> None:
    events, followed, _ = captured
    assert followed.uncorrelated == []
    assert sum(len(journey.hops) for journey in followed.journeys) == len(events)
    for journey in followed.journeys:
        for before, after in pairwise(journey.hops):
            # The kernel stamps a packet as it is received, once if anybody on the machine asked for receive stamps
            # (net_enable_timestamp): then a bridge port and its bridge see the same packet at the same time.
            tie = before.time == after.time and (before.ns, before.direction, after.direction) == (after.ns, "in", "in")
            assert before.time < after.time or tie


@pytest.mark.sandbox
def test_ttl_falls_per_node_and_vxlan_adds_fifty_bytes(captured: tuple[list[Event], Followed, Path]) -> None:
    hops = _datagrams(captured[1], PODS["a"])[-1].hops
    assert [hop.packet.ttl for hop in hops] == [64] * 3 + [63] * 6 + [62] * 3
    assert [hop.packet.length - hops[0].packet.length for hop in hops] == [0] * 4 + [50] * 4 + [0] * 4
    outer = hops[4].packet.tunnel
    assert outer is not None
    assert (outer.kind, outer.vni, outer.target_port, outer.ttl, outer.overhead) == ("vxlan", 1, 8472, 64, 50)
    assert (outer.source, outer.target, outer.dont_fragment) == ("192.168.0.1", "192.168.0.2", False)


@pytest.mark.sandbox
def test_each_hop_says_what_changed(captured: tuple[list[Event], Followed, Path]) -> None:
    hops = _datagrams(captured[1], PODS["a"])[-1].hops
    changed = [{change.field for change in hop.changes} for hop in hops]
    assert changed == [
        set(),
        set(),
        set(),
        {"ttl", "source_mac", "target_mac"},
        {"tunnel", "length"},
        set(),
        set(),
        set(),
        {"tunnel", "length"},
        {"ttl", "source_mac", "target_mac"},
        set(),
        set(),
    ]


@pytest.mark.sandbox
def test_arp_is_kept_apart_from_payload(captured: tuple[list[Event], Followed, Path]) -> None:
    kinds = {journey.hops[0].packet.protocol: journey.kind for journey in captured[1].journeys}
    assert kinds["arp"] == "neighbour"
    assert kinds["udp"] == "packet"


@pytest.mark.sandbox
def test_tshark_reads_the_same_hops_and_times(captured: tuple[list[Event], Followed, Path], tmp_path: Path) -> None:
    events, followed, _ = captured
    annotated = tmp_path / "annotated.pcapng"
    write_annotated(annotated, followed.journeys, events)
    wanted = _datagrams(followed, PODS["a"])[0]
    fields = ["frame.interface_name", "frame.interface_description", "frame.time_epoch", "frame.len", "vxlan.vni"]
    arguments = [item for field in fields for item in ("-e", field)]
    result = subprocess.run(
        ["tshark", "-n", "-r", annotated, "-d", "udp.port==8472,vxlan", "-Y", f"frame.packet_id=={wanted.id}",
         "-T", "fields", *arguments],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    seen = [line.split("\t") for line in result.stdout.splitlines()]
    files = {"underlay": "underlay", "node/n1": "n1", "node/n2": "n2"}
    assert seen == [
        [
            f"{files.get(hop.ns, hop.ns[4:].replace('/', '_'))}:{hop.device}",
            hop.ns,
            f"{hop.time // 10**9}.{hop.time % 10**9:09}",
            str(hop.packet.length),
            str(hop.packet.tunnel.vni) if hop.packet.tunnel else "",
        ]
        for hop in wanted.hops
    ]


@pytest.mark.sandbox
def test_capture_sees_namespaces_and_devices_that_come_later(network: None, tmp_path: Path) -> None:
    handle = start(["node/n1", "pod/default/late"], directory=tmp_path)
    assert handle.missing == ["pod/default/late"]
    for line in (
        "netns add default_late",
        "-n n1 link add vethlate type veth peer name eth0 netns default_late",
        "-n n1 link set vethlate up",
    ):
        _ip(line)
    assert handle.add("pod/default/late")
    _ip("-n default_late link set eth0 up")
    _ip("-n default_late address add 10.9.9.9/24 dev eth0")
    with inside("/run/netns/default_late"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"here I am", ("10.9.9.255", 9))
    stats = handle.stop()
    seen = {(event.ns, event.device) for event in read(stats.path) if event.frame.endswith(b"here I am")}
    assert seen == {("pod/default/late", "eth0"), ("node/n1", "vethlate")}


@pytest.mark.sandbox
def test_a_capture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="none of node/nowhere exists"):
        start(["node/nowhere"], directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sandbox
def test_a_deleted_namespace_is_let_go_while_the_capture_runs(network: None, tmp_path: Path) -> None:
    handle = start(EVERYWHERE, directory=tmp_path)
    _exchange(1)
    _ip("netns delete default_a")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        devices = _ip("-n n1 -o link")
        if "vetha" not in devices:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the capture keeps the deleted pod's devices alive")
    stats = handle.stop()
    assert stats.per_namespace["pod/default/a"]["captured"] > 0


@pytest.mark.sandbox
def test_only_named_devices_are_captured(network: None, tmp_path: Path) -> None:
    handle = start({"node/n1": ["cni0"], "node/n2": []}, directory=tmp_path)
    _exchange(1)
    stats = handle.stop()
    assert {event.device for event in read(stats.path) if event.ns == "node/n1"} == {"cni0"}
    assert {event.device for event in read(stats.path) if event.ns == "node/n2"} >= {"eth0", "flannel.1", "cni0"}


@pytest.mark.sandbox
def test_nothing_sent_before_stop_is_lost(network: None, tmp_path: Path) -> None:
    _exchange(1)
    for _ in range(5):
        handle = start(["pod/default/a"], directory=tmp_path)
        with _socket("a", socket.SOCK_DGRAM) as sender:
            for number in range(300):
                sender.sendto(b"%d" % number, (PODS["b"], 5001))
        stats = handle.stop()
        sent = [event for event in read(stats.path) if event.direction == "out" and event.frame[23] == 17]
        assert len(sent) == 300


@pytest.mark.sandbox
def test_a_capture_that_loses_packets_says_so(network: None, tmp_path: Path) -> None:
    _exchange(1)
    handle = start(["pod/default/a"], directory=tmp_path, ring=32768)
    os.kill(handle.pid, signal.SIGSTOP)
    with _socket("a", socket.SOCK_DGRAM) as sender:
        for _ in range(1000):
            sender.sendto(bytes(1000), (PODS["b"], 5001))
    os.kill(handle.pid, signal.SIGCONT)
    stats = handle.stop()
    assert stats.lost > 0
    assert stats.per_namespace["pod/default/a"]["lost"] == stats.lost
    assert losses(stats.path) == {"pod/default/a": stats.lost}
    assert stats.captured + stats.lost >= 1000


@pytest.mark.sandbox
def test_a_capture_ends_by_itself_at_its_limit(network: None, tmp_path: Path) -> None:
    handle = start(["pod/default/a"], directory=tmp_path, max_packets=10)
    _exchange(20)
    stats = handle.stop()
    assert stats.ended in ("max_packets", "stop")
    assert stats.captured >= 10
    assert not handle.add("node/n1")


@pytest.mark.sandbox
def test_a_capture_streams_to_a_descriptor(network: None) -> None:
    reader, writer = os.pipe()
    handle = start(["pod/default/a"], output=writer)
    os.close(writer)
    _exchange(1)
    deadline = time.monotonic() + 10
    os.set_blocking(reader, False)
    data = b""
    while b"....." not in data and time.monotonic() < deadline:
        try:
            data += os.read(reader, 65536)
        except BlockingIOError:
            time.sleep(0.005)
    assert b"....." in data, "packets must come out while the capture runs"
    handle.stop()
    os.close(reader)
