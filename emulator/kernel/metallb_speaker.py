"""The speaker of a node in MetalLB's layer 2 mode: answers ARP and NDP for addresses that are on no device.

::

    others ── UDP 7946: alive? ── speaker ──┬── ARP request, NDP solicitation for an address of ours: answer
                                            └── an address becomes ours: gratuitous ARP, unsolicited NDP, for 5 s

It stands in for MetalLB's speaker. Who announces an address is worked out as there: of the nodes in the
configuration the first that is alive. What is simpler is how speakers know of one another: MetalLB has HashiCorp's
memberlist (SWIM), which gossips; here each asks each other every second, with messages of its own, and counts one as
dead after the time that memberlist takes with its defaults for local networks: a probe interval of 1 s, and 4 s of
suspicion in a cluster of up to ten. One that ends in an orderly way says so, as there.

Configuration is a JSON file: ``node``, ``devices``, ``listen`` (own addresses), ``peers`` (addresses by node),
``addresses`` (nodes by address, in the order of their claim). A connection to its control socket has it read the file
again. Nothing but the standard library: it is started without site packages.

Sources: metallb/metallb internal/layer2 (announcer.go, arp.go, ndp.go), speaker/speakerlist.go; hashicorp/memberlist
config.go (DefaultLANConfig); RFC 826, RFC 4861 (4.3, 4.4, 7.2).
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PORT = 7946  # memberlist's
ASK_EVERY = 1.0  # s: memberlist ProbeInterval
DEAD_AFTER = 5.0  # s without a word: a probe interval, and SuspicionMult 4 times one (log10 of the cluster's size is 1)
JOINING = 1.0  # s that a new speaker waits for the others' words before it takes an address
TELL_EVERY, TELL_FOR = 1.1, 5.0  # s: announcer.go, doSpam
LARGEST = 512  # bytes of a message between speakers

ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD
BROADCAST = b"\xff" * 6
ARP = struct.Struct("!HHBBH6s4s6s4s")
REQUEST, REPLY = 1, 2
SOLICITATION, ADVERTISEMENT = 135, 136
SOLICITED, OVERRIDE = 0x40000000, 0x20000000
SOURCE_LINK_ADDRESS, TARGET_LINK_ADDRESS = 1, 2
IPV6 = struct.Struct("!IHBB16s16s")
ICMPV6 = 58
ALL_NODES = ipaddress.IPv6Address("ff02::1")
PACKET_OUTGOING = 4
SO_ATTACH_FILTER = 26
# Neighbour solicitations alone: IPv6 next header ICMPv6 at byte 20 of the frame, its type at byte 54
_SOLICITATIONS = ((0x30, 0, 0, 20), (0x15, 0, 3, ICMPV6), (0x30, 0, 0, 54), (0x15, 0, 1, SOLICITATION),
                  (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0))  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """What the file says."""

    node: str
    devices: tuple[str, ...]
    listen: tuple[str, ...]
    peers: dict[str, tuple[str, ...]]
    addresses: dict[str, tuple[str, ...]]


def read_configuration(text: str) -> Configuration:
    """Raises ValueError, KeyError for a file that is none."""
    value: dict[str, Any] = json.loads(text)
    return Configuration(
        value["node"],
        tuple(value["devices"]),
        tuple(value["listen"]),
        {name: tuple(addresses) for name, addresses in value["peers"].items()},
        {str(ipaddress.ip_address(address)): tuple(nodes) for address, nodes in value["addresses"].items()},
    )


def mine(configuration: Configuration, alive: Iterable[str]) -> set[str]:
    """The addresses that this node announces: those for which it is the first that is alive."""
    living = {configuration.node, *alive}
    return {
        address
        for address, nodes in configuration.addresses.items()
        if next((node for node in nodes if node in living), "") == configuration.node
    }


def arp_frame(kind: int, own_mac: bytes, address: bytes, to_mac: bytes, to_address: bytes) -> bytes:
    """An Ethernet frame to ``to_mac`` that says where ``address`` is."""
    return (
        to_mac
        + own_mac
        + struct.pack("!H", ETH_P_ARP)
        + ARP.pack(1, 0x0800, 6, 4, kind, own_mac, address, to_mac, to_address)
    )


def asked_by_arp(frame: bytes, own_mac: bytes) -> tuple[str, bytes, bytes] | None:
    """The address that an ARP request asks for, and MAC and address of who asks; None if it is none, or none for us."""
    if len(frame) < 14 + ARP.size or frame[:6] not in (BROADCAST, own_mac):
        return None
    hardware, protocol, hardware_size, size, kind, mac, address, _, target = ARP.unpack_from(frame, 14)
    if (hardware, protocol, hardware_size, size, kind) != (1, 0x0800, 6, 4, REQUEST):
        return None
    return socket.inet_ntoa(target), mac, address


def advertisement(own_mac: bytes, source: bytes, target: bytes, to_mac: bytes, to: bytes, flags: int) -> bytes:
    """An Ethernet frame with a neighbour advertisement: ``target`` is at ``own_mac``."""
    body = struct.pack("!BBHI16sBB6s", ADVERTISEMENT, 0, 0, flags, target, TARGET_LINK_ADDRESS, 1, own_mac)
    pseudo = source + to + struct.pack("!IxxxB", len(body), ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = IPV6.pack(6 << 28, len(body), ICMPV6, 255, source, to)
    return to_mac + own_mac + struct.pack("!H", ETH_P_IPV6) + header + body


def asked_by_ndp(frame: bytes) -> tuple[str, bytes, bytes] | None:
    """The address that a neighbour solicitation asks for, and MAC and address of who asks; None if it is none, or does
    not say its MAC."""
    if len(frame) < 14 + IPV6.size + 24:
        return None
    _, length, header, hops, source, _ = IPV6.unpack_from(frame, 14)
    body = frame[14 + IPV6.size :][:length]
    if header != ICMPV6 or hops != 255 or len(body) < 24 or body[0] != SOLICITATION or body[1]:
        return None
    options = body[24:]
    while len(options) >= 8 and options[1]:
        if options[0] == SOURCE_LINK_ADDRESS:
            return socket.inet_ntop(socket.AF_INET6, body[8:24]), options[2:8], source
        options = options[8 * options[1] :]
    return None


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])) + (
        data[-1] << 8 if len(data) & 1 else 0
    )
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def multicast_mac(address: ipaddress.IPv6Address) -> bytes:
    """RFC 2464, 7."""
    return b"\x33\x33" + address.packed[12:]


def solicited_node(address: str) -> ipaddress.IPv6Address:
    """The group that a node listens to for ``address`` (RFC 4291, 2.7.1)."""
    return ipaddress.IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + ipaddress.ip_address(address).packed[13:])


class Device:
    """A network device of the node, with the sockets that answer on it. Raises OSError if there is none of the name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.index = socket.if_nametoindex(name)
        self.arp = self._socket(ETH_P_ARP)
        self.ndp = self._socket(ETH_P_IPV6, _SOLICITATIONS)
        self.mac: bytes = self.arp.getsockname()[4]
        self._groups: dict[str, socket.socket] = {}

    def _socket(self, protocol: int, program: tuple[tuple[int, int, int, int], ...] = ()) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        if program:
            code = b"".join(struct.pack("HBBI", *step) for step in program)
            buffer = _buffer(code)
            made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), buffer[0]))
        made.bind((self.name, protocol))
        made.setblocking(False)
        return made

    @property
    def link_local(self) -> bytes:
        """The device's own link-local address, as NDP messages are sent from; empty while it has none."""
        with open("/proc/net/if_inet6", encoding="ascii") as table:
            for line in table:
                digits, _, _, scope, _, name = line.split()
                if name == self.name and scope == "20":
                    return bytes.fromhex(digits)
        return b""

    def watch(self, addresses: Iterable[str]) -> None:
        """Listen to the groups of IPv6 addresses, and no others."""
        wanted = {address for address in addresses if ":" in address}
        for address in self._groups.keys() - wanted:
            self._groups.pop(address).close()
        for address in wanted - self._groups.keys():
            member = self._groups[address] = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            group = solicited_node(address).packed + struct.pack("@I", self.index)
            try:
                member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            except OSError as error:
                _say(f"joining the solicited-node group of {address} on {self.name} failed: {error.strerror}")

    def tell(self, address: str) -> None:
        """Tell everybody on the link where ``address`` is now."""
        raw = ipaddress.ip_address(address).packed
        if ":" not in address:
            for kind in (REQUEST, REPLY):
                self._send(self.arp, arp_frame(kind, self.mac, raw, BROADCAST, raw))
        elif source := self.link_local:
            group = ALL_NODES.packed
            frame = advertisement(self.mac, source, raw, multicast_mac(ALL_NODES), group, OVERRIDE)
            self._send(self.ndp, frame)

    def answer(self, ours: set[str]) -> None:
        """Answer what was asked since the last time."""
        for frame in _frames(self.arp):
            asked = asked_by_arp(frame, self.mac)
            if asked is not None and asked[0] in ours:
                address, mac, who = asked
                self._send(self.arp, arp_frame(REPLY, self.mac, socket.inet_aton(address), mac, who))
                _say(f"ARP: {socket.inet_ntoa(who)} asks for {address}: it is here, {self.mac.hex(':')} ({self.name})")
        for frame in _frames(self.ndp):
            asked = asked_by_ndp(frame)
            if asked is not None and asked[0] in ours and (source := self.link_local):
                address, mac, who = asked
                raw = socket.inet_pton(socket.AF_INET6, address)
                self._send(self.ndp, advertisement(self.mac, source, raw, mac, who, SOLICITED))
                who_text = socket.inet_ntop(socket.AF_INET6, who)
                _say(f"NDP: {who_text} asks for {address}: it is here, {self.mac.hex(':')} ({self.name})")

    def _send(self, sock: socket.socket, frame: bytes) -> None:
        try:
            sock.send(frame)
        except OSError as error:
            _say(f"sending on {self.name} failed: {error.strerror}")


def _buffer(data: bytes) -> tuple[int, object]:
    """The address of a copy of ``data``, and what keeps it there."""
    import array

    held = array.array("B", data)
    return held.buffer_info()[0], held


def _frames(sock: socket.socket) -> Iterable[bytes]:
    while True:
        try:
            frame, (_, _, kind, _, _) = sock.recvfrom(2048)
        except BlockingIOError:
            return
        except OSError as error:
            _say(f"receiving failed: {error.strerror}")
            return
        if kind != PACKET_OUTGOING:
            yield frame


@dataclass
class Membership:
    """Who is alive, from the others' words. Times are seconds of a monotonic clock."""

    heard: dict[str, float] = field(default_factory=dict)

    def alive(self, now: float) -> set[str]:
        """Those heard of within the time that a speaker is taken to be alive."""
        return {name for name, when in self.heard.items() if now - when < DEAD_AFTER}

    def next_death(self, now: float) -> float:
        """When the next one will be dead if it stays silent; infinite if there is nobody."""
        return min((when + DEAD_AFTER for name, when in self.heard.items() if name in self.alive(now)), default=1e18)


class Speaker:
    """One node's speaker: its devices, what it knows of the others, and what it announces."""

    def __init__(self, path: str, control_path: str) -> None:
        self._path = path
        self._control_path = control_path
        self._configuration = read_configuration(_text(path))
        self._members = Membership()
        self._ours: set[str] = set()
        self._telling: dict[str, tuple[float, float]] = {}  # address: next time, last time
        self._devices: list[Device] = []
        self._talk: list[socket.socket] = []
        self._control: socket.socket | None = None
        self._poll = select.poll()
        self._by_descriptor: dict[int, Device | socket.socket] = {}
        self._open()

    def _open(self) -> None:
        for name in self._configuration.devices:
            try:
                device = Device(name)
            except OSError as error:
                _say(f"no announcements on {name}: {error.strerror}")
                continue
            self._devices.append(device)
            for sock in (device.arp, device.ndp):
                self._watch(sock, device)
        for address in self._configuration.listen:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            talk = socket.socket(family, socket.SOCK_DGRAM)
            talk.bind((address, PORT))
            talk.setblocking(False)
            self._talk.append(talk)
            self._watch(talk, talk)

    def _watch(self, sock: socket.socket, owner: Device | socket.socket) -> None:
        self._poll.register(sock, select.POLLIN)
        self._by_descriptor[sock.fileno()] = owner

    def run(self) -> None:
        """Until SIGTERM."""
        asked = 0.0
        joined = time.monotonic() + JOINING
        self._say_all(b"alive?")
        while True:
            now = time.monotonic()
            if now - asked >= ASK_EVERY:
                asked = now
                self._say_all(b"alive?")
            if self._control is None and (
                now >= joined or self._configuration.peers.keys() <= self._members.heard.keys()
            ):
                self._begin()
            if self._control is not None:
                self._settle(now)
                self._tell(now)
            wake = min(asked + ASK_EVERY, self._members.next_death(now), *(when for when, _ in self._telling.values()))
            for descriptor, _ in self._poll.poll(
                1000 * max(0.001, min(wake, joined if not self._control else wake) - now)
            ):
                self._ready(descriptor)

    def _begin(self) -> None:
        """From now on this node takes part."""
        if os.path.exists(self._control_path):
            os.unlink(self._control_path)
        self._settle(time.monotonic())
        control = self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(self._control_path)
        control.listen(8)
        self._watch(control, control)

    def leave(self) -> None:
        """Tell the others that it is over."""
        self._say_all(b"leave")

    def _settle(self, now: float) -> None:
        alive = self._members.alive(now) & self._configuration.peers.keys()
        ours = mine(self._configuration, alive)
        for address in sorted(self._ours - ours):
            _say(f"{address} is no longer ours")
            self._telling.pop(address, None)
        gained = sorted(ours - self._ours)
        if ours != self._ours:
            self._ours = ours
            for device in self._devices:
                device.watch(ours)
        for address in gained:
            _say(f"{address} is ours (alive: {', '.join(sorted(alive | {self._configuration.node}))})")
            self._telling[address] = (now, now + TELL_FOR)

    def _tell(self, now: float) -> None:
        for address, (when, last) in list(self._telling.items()):
            if now < when:
                continue
            for device in self._devices:
                device.tell(address)
            if when + TELL_EVERY < last:
                self._telling[address] = (when + TELL_EVERY, last)
            else:
                del self._telling[address]

    def _ready(self, descriptor: int) -> None:
        owner = self._by_descriptor[descriptor]
        if isinstance(owner, Device):
            owner.answer(self._ours)
        elif owner is self._control:
            self._read_again(owner)
        else:
            self._hear(owner)

    def _read_again(self, control: socket.socket) -> None:
        caller, _ = control.accept()
        with caller:
            self._configuration = read_configuration(_text(self._path))
            now = time.monotonic()
            self._settle(now)
            self._tell(now)

    def _hear(self, talk: socket.socket) -> None:
        while True:
            try:
                message, sender = talk.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error: that speaker is not there
            name = next((name for name, known in self._configuration.peers.items() if sender[0] in known), "")
            if not name:
                continue
            if message == b"leave":
                self._members.heard.pop(name, None)
                continue
            self._members.heard[name] = time.monotonic()
            if message == b"alive?":
                self._say(talk, b"alive", sender)

    def _say_all(self, message: bytes) -> None:
        for addresses in self._configuration.peers.values():
            talk = next((one for one in self._talk if (one.family == socket.AF_INET6) == (":" in addresses[0])), None)
            if talk is not None:
                self._say(talk, message, (addresses[0], PORT))

    def _say(self, talk: socket.socket, message: bytes, to: Any) -> None:
        try:
            talk.sendto(message, to)
        except OSError:
            pass  # no way there, or an error of an earlier message: silence is what others judge by


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def serve(path: str, control_path: str) -> None:
    """Answer for ever."""
    speaker = Speaker(path, control_path)

    def end(*_: object) -> None:
        speaker.leave()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    speaker.run()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
