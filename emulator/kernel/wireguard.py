"""WireGuard devices: keys, ports and peers, given to the kernel or to the process that stands in for it.

::

    Wireguard(userspace=False)   generic netlink, family "wireguard"      (include/uapi/linux/wireguard.h)
    Wireguard(userspace=True)    /run/wireguard/NAME.sock of wireguard-go (wireguard.com/xplatform: set=1, get=1)

The devices themselves are made with all others (:mod:`emulator.kernel.wiring`), and up. What they are told comes last:
a process that serves one has to run by then. wireguard-go sets the MTU of its device to 1420 when it starts, so that
is put right as well.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from errno import ENODEV, ENOENT
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from emulator.errors import ApplyError
from emulator.kernel.namespaces import within
from emulator.kernel.netlink import attributes
from emulator.kernel.syscalls import inside
from emulator.kernel.underlay import LabNet
from emulator.plan.describe import describe
from emulator.plan.model import AnyObject, Wireguard, WireguardPeer

Done = Callable[[AnyObject], None]

SOCKETS = "/run/wireguard"
ANSWER_TIMEOUT = 10.0  # seconds: it answers at once, unless the machine is stalled
RECEIVE_SIZE = 256 * 1024  # bytes

NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE, WG_GENL_VERSION = 0, 1, 1
WGPEER_F_REMOVE_ME, WGPEER_F_REPLACE_ALLOWEDIPS = 1, 2
WGDEVICE_A_IFNAME, WGDEVICE_A_PRIVATE_KEY, WGDEVICE_A_LISTEN_PORT, WGDEVICE_A_PEERS = 2, 3, 6, 8
WGPEER_A_PUBLIC_KEY, WGPEER_A_PRESHARED_KEY, WGPEER_A_ENDPOINT, WGPEER_A_KEEPALIVE, WGPEER_A_ALLOWEDIPS = 1, 2, 4, 5, 9
WGPEER_A_LAST_HANDSHAKE = 6
WGALLOWEDIP_A_IPADDR, WGALLOWEDIP_A_CIDR_MASK = 2, 3

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")


class PeerState(NamedTuple):
    """What a device knows of a peer, spelt as in :class:`WireguardPeer`."""

    endpoint: str
    allowed_ips: tuple[str, ...]
    preshared_key: str
    keepalive: int


class DeviceState(NamedTuple):
    """What a device has been told, and when it last began a session with a peer, in seconds since 1970; both by public
    key."""

    private_key: str
    port: int
    peers: Mapping[str, PeerState]
    handshakes: Mapping[str, int]


class Wireguards:
    """Tells the WireGuard devices of a lab what the plan holds for them, and asks them. Raises ApplyError."""

    def __init__(self, net: LabNet, netns: Callable[[str], str | int], set_mtu: Callable[[Wireguard], None]) -> None:
        self._net = net
        self._netns = netns
        self._set_mtu = set_mtu

    def set(self, devices: Iterable[Wireguard], peers: Iterable[WireguardPeer], known: Lookup, done: Done) -> None:
        """Give devices their key and port, and add peers or change them. ``known`` finds the device of a peer."""
        told: defaultdict[tuple[str, str], list[WireguardPeer]] = defaultdict(list)
        for item in devices:
            told[item.ns, item.name] = []
            if item.userspace:
                self._set_mtu(item)
        for peer in peers:
            told[peer.ns, peer.device].append(peer)
        for (ns, name), listed in told.items():
            device = known(ns, name)
            subject: AnyObject | None = device if device is not None else next(iter(listed), None)
            if device is None or subject is None:
                raise ApplyError(f"there is no WireGuard device {name} in {ns}")
            try:
                self._tell(device, listed, remove=False)
            except OSError as error:
                words = describe(subject)
                raise ApplyError(f"failed to set {words} in {ns}: {_reason(error)}", subject=words) from error
            for peer in listed:
                done(peer)

    def remove(self, peers: Iterable[WireguardPeer], known: Lookup, done: Done) -> None:
        """Have devices forget peers. A device that is gone has forgotten them."""
        for peer in peers:
            device = known(peer.ns, peer.device)
            if device is not None:
                try:
                    self._tell(device, [peer], remove=True)
                except (FileNotFoundError, ConnectionRefusedError):
                    pass  # the process is dead, and its peers with it
                except OSError as error:
                    if error.errno not in (ENODEV, ENOENT):
                        words = describe(peer)
                        raise ApplyError(
                            f"failed to remove {words} in {peer.ns}: {_reason(error)}", subject=words
                        ) from error
            done(peer)

    def differences(self, devices: Sequence[Wireguard], peers: Sequence[WireguardPeer]) -> list[str]:
        """One line for each thing that a device was told differently from the plan, or not at all."""
        found: list[str] = []
        for device in devices:
            wanted = {peer.public_key: peer for peer in peers if (peer.ns, peer.device) == (device.ns, device.name)}
            try:
                state = self.state(device)
            except OSError as error:
                found.append(f"{device.ns}: {describe(device)}: cannot be asked: {_reason(error)}")
                continue
            if (state.private_key, state.port) != (device.private_key, device.port):
                found.append(f"{device.ns}: {describe(device)}: it has another private key, or port {state.port}")
            for key, peer in wanted.items():
                there = state.peers.get(key)
                if there is None:
                    found.append(f"{device.ns}: {describe(peer)} is not there")
                elif there != _planned(peer):
                    found.append(f"{device.ns}: {describe(peer)}: the device has {there.endpoint}, {there.allowed_ips}")
            found += [
                f"{device.ns}: peer {key} of {device.name} is not planned" for key in state.peers if key not in wanted
            ]
        return found

    def state(self, device: Wireguard) -> DeviceState:
        """What a device says of itself. Raises OSError."""
        if device.userspace:
            return parse_uapi(self._converse(device, "get=1\n\n"))
        with inside(self._netns(device.ns)):
            return _get(device.name)

    def _tell(self, device: Wireguard, peers: Sequence[WireguardPeer], *, remove: bool) -> None:
        if device.userspace:
            answer = self._converse(device, uapi_set(device, peers, remove=remove))
            code = abs(int(dict(line.partition("=")[::2] for line in answer.splitlines()).get("errno", "0") or 0))
            if code:
                raise OSError(code, os.strerror(code))
            return
        with inside(self._netns(device.ns)):
            _set(device, peers, remove=remove)

    def _converse(self, device: Wireguard, question: str) -> str:
        path = f"{SOCKETS}/{device.name}.sock"

        def body() -> str:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(ANSWER_TIMEOUT)
                client.connect(path)
                client.sendall(question.encode())
                answer = b""
                while not answer.endswith(b"\n\n"):
                    part = client.recv(RECEIVE_SIZE)
                    if not part:
                        raise ConnectionResetError(f"wireguard-go ended the conversation after {len(answer)} bytes")
                    answer += part
                return answer.decode()

        return within(self._net.handle(device.ns), body)


Lookup = Callable[[str, str], Wireguard | None]


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _planned(peer: WireguardPeer) -> PeerState:
    return PeerState(
        _endpoint(*_split(peer.endpoint)),
        tuple(sorted(str(ip_network(cidr)) for cidr in peer.allowed_ips)),
        peer.preshared_key,
        peer.keepalive,
    )


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def _endpoint(host: str, port: int) -> str:
    address = ip_address(host)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _key(raw: bytes) -> str:
    """A key in base64; the empty text for the key of zeros, which stands for none."""
    return base64.b64encode(raw).decode() if any(raw) else ""


# ---------------------------------------------------------------- the process


def uapi_set(device: Wireguard, peers: Sequence[WireguardPeer], *, remove: bool = False) -> str:
    """The request that gives a device its key, port and ``peers``, or takes the peers away."""
    lines = ["set=1"]
    if not remove:
        lines += [f"private_key={base64.b64decode(device.private_key).hex()}", f"listen_port={device.port}"]
    for peer in peers:
        lines.append(f"public_key={base64.b64decode(peer.public_key).hex()}")
        if remove:
            lines.append("remove=true")
            continue
        psk = base64.b64decode(peer.preshared_key) if peer.preshared_key else bytes(32)
        lines += [f"preshared_key={psk.hex()}", f"endpoint={peer.endpoint}"]
        lines += [f"persistent_keepalive_interval={peer.keepalive}", "replace_allowed_ips=true"]
        lines += [f"allowed_ip={cidr}" for cidr in peer.allowed_ips]
    return "\n".join(lines) + "\n\n"


def parse_uapi(text: str) -> DeviceState:
    """The answer to ``get=1``."""
    own: dict[str, str] = {}
    peers: dict[str, dict[str, str]] = {}
    allowed: defaultdict[str, list[str]] = defaultdict(list)
    current, name = own, ""
    for line in text.splitlines():
        word, _, value = line.partition("=")
        if word == "public_key":
            name = _key(bytes.fromhex(value))
            current = peers.setdefault(name, {})
        elif word == "allowed_ip":
            allowed[name].append(str(ip_network(value)))
        else:
            current[word] = value
    return DeviceState(
        _key(bytes.fromhex(own.get("private_key", ""))),
        int(own.get("listen_port", "0")),
        {
            key: PeerState(
                _endpoint(*_split(given["endpoint"])) if given.get("endpoint") else "",
                tuple(sorted(allowed[key])),
                _key(bytes.fromhex(given.get("preshared_key", ""))),
                int(given.get("persistent_keepalive_interval", "0")),
            )
            for key, given in peers.items()
        },
        {key: int(given.get("last_handshake_time_sec", "0")) for key, given in peers.items()},
    )


# ---------------------------------------------------------------- the kernel


def netlink_set(device: Wireguard, peers: Sequence[WireguardPeer], *, remove: bool = False) -> bytes:
    """The body of WG_CMD_SET_DEVICE: what follows the netlink header."""
    from emulator.kernel.layouts import wgmsg  # few labs have such a device

    attrs: list[tuple[str, object]] = [("WGDEVICE_A_IFNAME", device.name)]
    if not remove:
        attrs += [("WGDEVICE_A_PRIVATE_KEY", device.private_key), ("WGDEVICE_A_LISTEN_PORT", device.port)]
    if peers:
        attrs.append(("WGDEVICE_A_PEERS", [{"attrs": _peer_attributes(peer, remove)} for peer in peers]))
    message = wgmsg()
    message["cmd"], message["version"], message["attrs"] = WG_CMD_SET_DEVICE, WG_GENL_VERSION, attrs
    message.encode()
    return bytes(message.data[_HEADER.size :])


def _peer_attributes(peer: WireguardPeer, remove: bool) -> list[tuple[str, object]]:
    attrs: list[tuple[str, object]] = [("WGPEER_A_PUBLIC_KEY", peer.public_key)]
    if remove:
        return [*attrs, ("WGPEER_A_FLAGS", WGPEER_F_REMOVE_ME)]
    host, port = _split(peer.endpoint)
    ranges = []
    for cidr in peer.allowed_ips:
        network = ip_network(cidr)
        family = socket.AF_INET if network.version == 4 else socket.AF_INET6
        ranges.append(
            {
                "attrs": [
                    ("WGALLOWEDIP_A_FAMILY", family),
                    ("WGALLOWEDIP_A_IPADDR", network.network_address.packed),
                    ("WGALLOWEDIP_A_CIDR_MASK", network.prefixlen),
                ]
            }
        )
    psk = peer.preshared_key or base64.b64encode(bytes(32)).decode()
    return [
        *attrs,
        ("WGPEER_A_FLAGS", WGPEER_F_REPLACE_ALLOWEDIPS),
        ("WGPEER_A_PRESHARED_KEY", psk),
        ("WGPEER_A_ENDPOINT", {"addr": host, "port": port}),
        ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive),
        ("WGPEER_A_ALLOWEDIPS", ranges),
    ]


def _set(device: Wireguard, peers: Sequence[WireguardPeer], *, remove: bool) -> None:
    with _generic() as sock:
        _ask(sock, _family(sock), netlink_set(device, peers, remove=remove), NLM_F_ACK)


def _get(name: str) -> DeviceState:
    """A device with many peers answers in several messages; a peer's ranges may go on in the next."""
    text = name.encode() + b"\0"
    body = _GENERIC.pack(WG_CMD_GET_DEVICE, WG_GENL_VERSION, 0) + _attribute(WGDEVICE_A_IFNAME, text)
    with _generic() as sock:
        answers = _ask(sock, _family(sock), body, NLM_F_DUMP)
    private, port = "", 0
    peers: dict[str, PeerState] = {}
    handshakes: dict[str, int] = {}
    for answer in answers:
        given = attributes(answer, _GENERIC.size)
        private = _key(bytes(given[WGDEVICE_A_PRIVATE_KEY])) if WGDEVICE_A_PRIVATE_KEY in given else private
        port = struct.unpack("=H", given[WGDEVICE_A_LISTEN_PORT])[0] if WGDEVICE_A_LISTEN_PORT in given else port
        for raw in _items(given.get(WGDEVICE_A_PEERS)):
            fields = attributes(raw, 0)
            key = _key(bytes(fields[WGPEER_A_PUBLIC_KEY]))
            before = peers.get(key)
            ranges = [_range(each) for each in _items(fields.get(WGPEER_A_ALLOWEDIPS))]
            if before is not None:
                peers[key] = before._replace(allowed_ips=tuple(sorted((*before.allowed_ips, *ranges))))
                continue
            keepalive, last = fields.get(WGPEER_A_KEEPALIVE), fields.get(WGPEER_A_LAST_HANDSHAKE)
            handshakes[key] = struct.unpack_from("=q", last)[0] if last is not None else 0  # a struct timespec
            peers[key] = PeerState(
                _sockaddr(bytes(fields[WGPEER_A_ENDPOINT])) if WGPEER_A_ENDPOINT in fields else "",
                tuple(sorted(ranges)),
                _key(bytes(fields[WGPEER_A_PRESHARED_KEY])) if WGPEER_A_PRESHARED_KEY in fields else "",
                struct.unpack("=H", keepalive)[0] if keepalive is not None else 0,
            )
    return DeviceState(private, port, peers, handshakes)


def _items(raw: memoryview | None) -> list[memoryview]:
    """The members of a nested list, whose numbers mean nothing."""
    found, at = [], 0
    while raw is not None and at + 4 <= len(raw):
        (length,) = struct.unpack_from("=H", raw, at)
        if length < 4:
            break
        found.append(raw[at + 4 : at + length])
        at += (length + 3) & ~3
    return found


def _range(raw: memoryview) -> str:
    fields = attributes(raw, 0)
    return f"{ip_address(bytes(fields[WGALLOWEDIP_A_IPADDR]))}/{fields[WGALLOWEDIP_A_CIDR_MASK][0]}"


def _sockaddr(raw: bytes) -> str:
    """A struct sockaddr_in or sockaddr_in6."""
    (family,) = struct.unpack_from("=H", raw)
    address = raw[8:24] if family == socket.AF_INET6 else raw[4:8]
    return _endpoint(str(ip_address(address)), int.from_bytes(raw[2:4], "big"))


def _generic() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
    sock.settimeout(ANSWER_TIMEOUT)
    sock.bind((0, 0))
    return sock


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _family(sock: socket.socket) -> int:
    body = _GENERIC.pack(CTRL_CMD_GETFAMILY, 1, 0) + _attribute(CTRL_ATTR_FAMILY_NAME, b"wireguard\0")
    (answer,) = _ask(sock, GENL_ID_CTRL, body, NLM_F_ACK)
    (number,) = struct.unpack("=H", attributes(answer, _GENERIC.size)[CTRL_ATTR_FAMILY_ID])
    return int(number)


def _ask(sock: socket.socket, kind: int, body: bytes, flags: int) -> list[bytes]:
    """The bodies of all answers to one request, until it is acknowledged or the list is done."""
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body)
    answers: list[bytes] = []
    while True:
        data, at = sock.recv(RECEIVE_SIZE), 0
        while at + _HEADER.size <= len(data):
            length, answer, _, _, _ = _HEADER.unpack_from(data, at)
            content = data[at + _HEADER.size : at + length]
            if answer in (NLMSG_ERROR, NLMSG_DONE):
                code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                if code:
                    raise OSError(code, os.strerror(code))
                return answers
            answers.append(content)
            at += (length + 3) & ~3
