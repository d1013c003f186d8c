"""Replayed and hand-made packets, as they arrive in another namespace. `a` sends to `b` over a veth pair."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from emulator.errors import NotFound, ScenarioError, UserError
from emulator.kernel.syscalls import inside
from emulator.traffic import injection

pytestmark = pytest.mark.sandbox

A, B = "/run/netns/a", "/run/netns/b"
MAC = {"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b"}


def ip(netns: str, *commands: str) -> None:
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(commands), text=True, check=True)


@pytest.fixture
def sniffer() -> socket.socket:
    for name in "ab":
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"], check=True)
    ip("a", f"link add name eth0 address {MAC['a']} type veth peer name eth0 address {MAC['b']} netns b")
    for number, name in enumerate("ab", 1):
        ip(name, "link set lo up", "link set eth0 up", f"addr add 10.0.0.{number}/24 dev eth0")
        ip(name, f"addr add fd00::{number}/64 dev eth0")
    with inside(B):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind(("eth0", 3))
    sock.settimeout(0.3)
    return sock


def frames(sniffer: socket.socket, kind: int | None = None) -> list[bytes]:
    """What has arrived with this Ethernet type, neighbour discovery and multicast listeners apart."""
    found: list[bytes] = []
    while True:
        try:
            frame, sender = sniffer.recvfrom(65535)
        except TimeoutError:
            return found
        ether = int.from_bytes(frame[12:14], "big")
        noise = ether == 0x86DD and frame[20] in (0, 58) and (frame[20] == 0 or 130 <= frame[54] <= 143)
        if sender[2] != socket.PACKET_OUTGOING and not noise and (kind is None or ether == kind):
            found.append(frame)


def capture(path: Path, *packets: object) -> str:
    from scapy.utils import PcapNgWriter, wrpcap

    if path.suffix == ".pcapng":
        with PcapNgWriter(str(path)) as writer:
            writer.write(list(packets))
    else:
        wrpcap(str(path), list(packets))
    return str(path)


def checksums_hold(packet: bytes) -> bool:
    from scapy.layers.inet import IP

    fresh = IP(packet)
    for layer in (fresh, fresh.payload):
        layer.delfieldval("chksum")
    return bytes(fresh) == packet


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_replayed_packets_arrive_with_addresses_rewritten(sniffer: socket.socket, tmp_path: Path, suffix: str) -> None:
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.l2 import Ether

    pair = {"src": "192.168.1.5", "dst": "192.168.1.9"}
    path = capture(
        tmp_path / f"old{suffix}",
        Ether() / IP(**pair, id=7, ttl=17) / UDP(sport=1000, dport=2000) / b"one",
        Ether() / IP(**pair, id=8) / TCP(sport=1001, dport=2001, seq=99, flags="PA") / b"two",
    )
    report = injection.replay(path, A, rewrite={"192.168.1.5": "10.0.0.1", "192.168.1.9": "10.0.0.2"}, speed=0)
    assert (report.sent, report.refused) == (2, 0)
    first, second = [IP(frame[14:]) for frame in frames(sniffer, 0x800)]
    assert (first.src, first.dst, first.id, first.ttl, first.dport) == ("10.0.0.1", "10.0.0.2", 7, 17, 2000)
    assert bytes(first[UDP].payload) == b"one"
    assert (second.seq, bytes(second[TCP].payload)) == (99, b"two")
    assert checksums_hold(bytes(first))
    assert checksums_hold(bytes(second))


def test_replayed_fragments_are_put_together_by_the_receiver(sniffer: socket.socket, tmp_path: Path) -> None:
    from scapy.layers.inet import IP, UDP, fragment
    from scapy.layers.l2 import Ether

    whole = IP(src="192.168.1.5", dst="192.168.1.9", id=1) / UDP(sport=1000, dport=2000) / (b"x" * 3000)
    path = capture(tmp_path / "old.pcap", *(Ether() / piece for piece in fragment(whole, 1400)))
    with inside(B):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("0.0.0.0", 2000))
    receiver.settimeout(2.0)
    report = injection.replay(path, A, rewrite={"192.168.1.5": "10.0.0.1", "192.168.1.9": "10.0.0.2"})
    assert report.sent == 3
    assert receiver.recvfrom(65535) == (b"x" * 3000, ("10.0.0.1", 1000))
    receiver.close()


def test_replayed_ipv6_arrives_and_arp_goes_out_as_a_frame(sniffer: socket.socket, tmp_path: Path) -> None:
    from scapy.layers.inet import UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import ARP, Ether

    old = "02:ff:ff:ff:ff:01"
    path = capture(
        tmp_path / "old.pcap",
        Ether() / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2000) / b"six",
        Ether(src=old, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=old, psrc="192.168.1.5", pdst="192.168.1.9"),
    )
    with inside(B):
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.bind(("::", 2000))
    receiver.settimeout(2.0)
    rewrite = {"2001:DB8::1": "fd00::1", "2001:db8:0::2": "fd00::2", old: MAC["a"], "192.168.1.5": "10.0.0.1"}
    assert injection.replay(path, A, rewrite=rewrite).sent == 2
    assert receiver.recv(100) == b"six"  # its checksum held, or the kernel would have dropped it
    receiver.close()
    asked = [ARP(frame[14:]) for frame in frames(sniffer, 0x806)]
    assert ("10.0.0.1", "192.168.1.9", MAC["a"]) in [(one.psrc, one.pdst, one.hwsrc) for one in asked]


def test_replay_keeps_the_captured_pace_or_a_multiple_of_it(sniffer: socket.socket, tmp_path: Path) -> None:
    from scapy.layers.inet import IP, UDP

    packets = [IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=9) for _ in range(3)]
    for number, packet in enumerate(packets):
        packet.time = 1_700_000_000 + number * 0.4
    path = capture(tmp_path / "old.pcap", *packets)
    assert 0.8 <= injection.replay(path, A).seconds < 1.4
    assert 0.2 <= injection.replay(path, A, speed=4.0).seconds < 0.6


def test_replay_counts_what_the_kernel_refused_and_why(sniffer: socket.socket, tmp_path: Path) -> None:
    from scapy.layers.inet import IP, UDP

    path = capture(
        tmp_path / "old.pcap",
        IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=9),
        IP(src="10.0.0.1", dst="172.16.0.1") / UDP(dport=9),
        IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=9) / (b"x" * 3000),
    )
    report = injection.replay(path, A, speed=0)
    assert (report.sent, report.refused) == (1, 2)
    assert report.refusals == {"no route at the sender": 1, "message too long": 1}


def test_replay_can_be_limited_to_one_captured_sender(sniffer: socket.socket, tmp_path: Path) -> None:
    from scapy.layers.inet import IP, UDP

    path = capture(
        tmp_path / "old.pcap",
        IP(src="192.168.1.5", dst="192.168.1.9") / UDP(dport=9) / b"question",
        IP(src="192.168.1.9", dst="192.168.1.5") / UDP(sport=9) / b"answer",
    )
    rewrite = {"192.168.1.5": "10.0.0.1", "192.168.1.9": "10.0.0.2"}
    assert injection.replay(path, A, rewrite=rewrite, source="192.168.1.5").sent == 1
    assert [frame[42:50] for frame in frames(sniffer, 0x800)] == [b"question"]


def test_what_is_no_capture_is_refused(sniffer: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "text.pcap").write_text("no capture at all, but long enough for a header")
    with pytest.raises(UserError, match="not a capture"):
        injection.replay(str(tmp_path / "text.pcap"), A)
    with pytest.raises(NotFound, match=r"none\.pcap"):
        injection.replay(str(tmp_path / "none.pcap"), A)
    with pytest.raises(UserError, match="different kinds"):
        injection.replay(str(tmp_path / "text.pcap"), A, rewrite={"10.0.0.1": "fd00::1"})
    with pytest.raises(UserError, match="neither an IP nor a MAC"):
        injection.replay(str(tmp_path / "text.pcap"), A, rewrite={"pod-a": "10.0.0.1"})


def test_hand_made_packet_arrives_with_the_pods_own_source(sniffer: socket.socket) -> None:
    from scapy.layers.inet import IP

    expression = 'IP(dst="10.0.0.2", ttl=3) / UDP(sport=1234, dport=53) / b"hello"'
    assert injection.send(A, expression).sent == 1
    (frame,) = frames(sniffer, 0x800)
    packet = IP(frame[14:])
    assert (packet.src, packet.ttl, packet.sport, bytes(packet.payload.payload)) == ("10.0.0.1", 3, 1234, b"hello")
    assert checksums_hold(bytes(packet))


def test_hand_made_frame_leaves_byte_by_byte(sniffer: socket.socket) -> None:
    expression = f'Ether(src="02:01:02:03:04:05", dst="{MAC["b"]}", type=0x88b5) / b"anything"'
    assert injection.send(A, expression, count=3, interval=0.05).sent == 3
    assert frames(sniffer, 0x88B5) == [bytes.fromhex("02000000000b02010203040588b5") + b"anything"] * 3


def test_hand_made_ping_is_answered_by_the_far_kernel(sniffer: socket.socket) -> None:
    with inside(A):
        listener = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    listener.settimeout(2.0)
    injection.send(A, 'IP(dst="10.0.0.2") / ICMP(type=8, id=77, seq=5) / b"ping"')
    reply = listener.recv(1000)
    assert (reply[20], reply[24:28], reply[28:]) == (0, bytes([0, 77, 0, 5]), b"ping")
    listener.close()


def test_list_and_prefix_stand_for_several_packets(sniffer: socket.socket) -> None:
    assert injection.send(A, 'IP(dst="10.0.0.2") / UDP(dport=[1, 2, 3])').sent == 3
    with pytest.raises(ScenarioError, match="more than 10000 packets"):
        injection.send(A, 'IP(dst="10.0.0.0/8") / UDP()')


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ('IP(dst="example.com") / UDP()', "'example.com' is no address"),
        ('IP(dts="10.0.0.2")', "IP.dts: no such field"),
        ('UDP(dport=53) / b"x"', "begins with IP"),
        ('IP(dst="10.0.0.2", ttl="many")', "cannot be"),
        ('IP(dst="10.0.0.2") / UDP(dport=70000)', "cannot be built"),
        ('Ether() / IP(dst="10.0.0.2")', "needs a dst"),
        ('Ether(dst="02:00:00:00:00:0b") / ARP(pdst="example.com")', "no address"),
    ],
)
def test_fields_that_scapy_cannot_fill_are_named(sniffer: socket.socket, expression: str, part: str) -> None:
    ip("a", "route add default via 10.0.0.2")
    with pytest.raises(ScenarioError, match=part):
        injection.send(A, expression, origin="s.yaml", subject="step 3")
    assert frames(sniffer, 0x800) == []  # nobody asked a name server: that would go by here


def test_unknown_namespace_is_an_error(sniffer: socket.socket) -> None:
    with pytest.raises(NotFound, match="/run/netns/none"):
        injection.send("/run/netns/none", 'IP(dst="10.0.0.2")')
