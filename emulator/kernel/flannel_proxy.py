"""The proxy of Flannel's ``udp`` backend: IP packets of a TUN device, bare, in UDP datagrams between nodes.

::

    tun → udp   next hop by the longest route; none: ICMP net unreachable, back into the device
                TTL less one; silence where it becomes zero
    udp → tun   TTL less one; silence where it becomes zero

It stands in for flanneld's own, which is written in C and does the same. Configuration is a JSON file: ``device``,
``address`` (the source of its ICMP), ``listen`` (address, port), ``routes`` (network, node). A connection to its
control socket has it read the file again. Nothing but the standard library: it is started without site packages.

Source: flannel-io/flannel pkg/backend/udp/proxy_amd64.c.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from emulator.kernel.tun import open_tun

LARGEST = 65535  # bytes: of an IPv4 packet
AT_ONCE = 64  # packets of one side before the other has its turn
ICMP = 1
ICMP_TTL = 8  # proxy_amd64.c: send_net_unreachable
_HEADER = struct.Struct("!BBHHHBBH4s4s")


@dataclass(frozen=True)
class Configuration:
    """What the file says; routes longest first, as numbers: network, mask, node."""

    device: str
    address: str
    listen: tuple[str, int]
    routes: tuple[tuple[int, int, str], ...]


def read_configuration(text: str) -> Configuration:
    """Raises ValueError, KeyError for a file that is none."""
    value: dict[str, Any] = json.loads(text)
    networks = sorted(((IPv4Network(cidr), node) for cidr, node in value["routes"]), key=lambda it: -it[0].prefixlen)
    routes = tuple((int(network.network_address), int(network.netmask), node) for network, node in networks)
    host, port = value["listen"]
    return Configuration(value["device"], value["address"], (host, int(port)), routes)


def next_hop(packet: bytes, configuration: Configuration) -> str:
    """The node that a packet goes to; empty if there is no route."""
    target = int.from_bytes(packet[16:20], "big")
    return next((node for network, mask, node in configuration.routes if target & mask == network), "")


def aged(packet: bytes) -> bytes:
    """The packet with one less TTL and its checksum mended (RFC 1624); empty if its time is over."""
    if packet[8] <= 1:
        return b""
    checksum = int.from_bytes(packet[10:12], "big") + 0x100
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    return packet[:8] + bytes((packet[8] - 1, packet[9])) + checksum.to_bytes(2, "big") + packet[12:]


def net_unreachable(packet: bytes, source: str) -> bytes:
    """The answer to a packet without a route; empty where none may be given: about ICMP, and later fragments."""
    length = (packet[0] & 15) * 4
    if packet[9] == ICMP or int.from_bytes(packet[6:8], "big") & 0x1FFF or len(packet) < length:
        return b""
    body = b"\x03\x00\x00\x00\x00\x00\x00\x00" + packet[: length + 8].ljust(length + 8, b"\0")
    body = body[:2] + _checksum(body).to_bytes(2, "big") + body[4:]
    fields = (0x45, 0, 20 + len(body), 0, 0, ICMP_TTL, ICMP)
    header = _HEADER.pack(*fields, 0, socket.inet_aton(source), packet[12:16])
    return header[:10] + _checksum(header).to_bytes(2, "big") + header[12:] + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1])) + (
        data[-1] << 8 if len(data) & 1 else 0
    )
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def serve(path: str, control_path: str) -> None:
    """Carry packets for ever."""
    configuration = _read(path)
    tun = open_tun(configuration.device)
    os.set_blocking(tun, False)
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.bind(configuration.listen)
    wire.setblocking(False)
    if os.path.exists(control_path):
        os.unlink(control_path)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind(control_path)
    control.listen(8)
    poll = select.poll()
    for descriptor in (tun, wire.fileno(), control.fileno()):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if control.fileno() in ready:
            caller, _ = control.accept()
            configuration = _read(path)
            caller.close()
        if tun in ready:
            _outward(tun, wire, configuration)
        if wire.fileno() in ready:
            _inward(tun, wire)


def _read(path: str) -> Configuration:
    with open(path, encoding="utf-8") as file:
        return read_configuration(file.read())


def _outward(tun: int, wire: socket.socket, configuration: Configuration) -> None:
    for _ in range(AT_ONCE):
        try:
            packet = os.read(tun, LARGEST)
        except BlockingIOError:
            return
        if len(packet) < 20 or packet[0] >> 4 != 4:
            continue
        node = next_hop(packet, configuration)
        if not node:
            _write(tun, net_unreachable(packet, configuration.address))
        elif older := aged(packet):
            try:
                wire.sendto(older, (node, configuration.listen[1]))
            except OSError as error:
                print(f"UDP send to {node} failed: {error.strerror}", file=sys.stderr, flush=True)


def _inward(tun: int, wire: socket.socket) -> None:
    for _ in range(AT_ONCE):
        try:
            packet = wire.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError as error:
            print(f"UDP recv failed: {error.strerror}", file=sys.stderr, flush=True)
            return
        if len(packet) >= 20 and packet[0] >> 4 == 4:
            _write(tun, aged(packet))


def _write(tun: int, packet: bytes) -> None:
    if not packet:
        return
    try:
        os.write(tun, packet)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EIO, errno.EAGAIN):
            raise
        print(f"TUN send failed: {error.strerror}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
