"""IPVS virtual and real servers, set by generic netlink in the namespace that this thread is in.

A change is a comparison with what the kernel holds of the servers in question, so it also repairs. Under a graceful
proxy a real server that goes while it still has connections gets weight 0, so that those end in peace, and is taken
away once none is left; UDP knows no connections, so there it goes at once. kube-proxy looks for that every minute; here
it is looked at whenever the namespace's servers change.

Messages: linux/ip_vs.h (IPVS_CMD_*, IPVS_SVC_ATTR_*, IPVS_DEST_ATTR_*). Weight 0: kubernetes/kubernetes
pkg/proxy/ipvs/graceful_termination.go.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping

from emulator.errors import ApplyError, Unsupported
from emulator.kernel.netlink import attributes
from emulator.plan.describe import describe
from emulator.plan.model import Family, IpvsServers, RealServer, VirtualServer

NETLINK_GENERIC, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 16, 3, 1, 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED = 0x8000
VERSION = 1

NEW_SERVICE, SET_SERVICE, DEL_SERVICE, GET_SERVICE, NEW_DEST, SET_DEST, DEL_DEST, GET_DEST = range(1, 9)
CMD_SERVICE, CMD_DEST = 1, 2
SVC_AF, SVC_PROTOCOL, SVC_ADDR, SVC_PORT, SVC_SCHED, SVC_FLAGS, SVC_TIMEOUT, SVC_NETMASK = 1, 2, 3, 4, 6, 7, 8, 9
DEST_ADDR, DEST_PORT, DEST_FWD, DEST_WEIGHT, DEST_UPPER, DEST_LOWER, DEST_ACTIVE, DEST_INACTIVE = range(1, 9)
DEST_AF = 11
F_PERSISTENT = 0x1
SCHEDULER_FLAGS = {1: 0x8, 2: 0x10, 3: 0x20}  # IP_VS_SVC_F_SCHED1 to 3
ALL_FLAGS = 0xFFFFFFFF
MASQUERADE = 0  # IP_VS_CONN_F_MASQ
PROTOCOLS = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP, "SCTP": socket.IPPROTO_SCTP}
NAMES = {number: name for name, number in PROTOCOLS.items()}
HEADER = struct.Struct("=IHHII")
TIMEOUT = 10.0  # seconds for one answer

Connections = int


def change(ns: str, old: IpvsServers | None, new: IpvsServers | None) -> None:
    """Put ``new`` in the place of ``old`` (None: of whatever is there of the family).

    Raises ApplyError with the servers of before back in force, Unsupported without ip_vs in the kernel.
    """
    item = new if new is not None else old
    if item is None:
        return
    wanted = new.servers if new is not None else {}
    with _Ipvs() as kernel:
        there = kernel.servers(item.family)
        # What did not change in the plan is left alone, but what should not be there at all goes.
        same = old.servers if old is not None else {}
        touched = [name for name, server in wanted.items() if same.get(name) != server or name not in there]
        gone = [name for name in there if name not in wanted]
        try:
            _make_so(kernel, there, wanted, touched, gone, item.graceful)
            _sweep(kernel, wanted)
        except _Refused as refused:
            try:
                extra = [name for name in wanted if name not in same]
                _make_so(kernel, kernel.servers(item.family), same, list(same), extra, item.graceful)
            except _Refused as second:
                refused.add_note(f"and the earlier servers could not be put back: {second}")
            error = ApplyError(f"failed to load {describe(item)} in {ns}: {refused}", subject=refused.name)
            for note in getattr(refused, "__notes__", ()):
                error.add_note(note)
            raise error from refused


def lost(item: IpvsServers) -> list[str]:
    """The virtual servers that are gone."""
    with _Ipvs() as kernel:
        there = kernel.servers(item.family)
    return [name for name in item.servers if name not in there]


def differences(item: IpvsServers) -> list[str]:
    """One line for each server that differs from the plan; real servers of weight 0 are on their way out."""
    with _Ipvs() as kernel:
        there = kernel.servers(item.family)
        found = [f"virtual server {name} is not planned" for name in there if name not in item.servers]
        for name, server in item.servers.items():
            if name not in there:
                found.append(f"virtual server {name} is not there")
                continue
            actual = there[name]
            if _settings(actual) != _settings(server):
                scheduler = " ".join((actual.scheduler, *(f"flag-{each}" for each in actual.flags)))
                found.append(f"virtual server {name}: {scheduler}, persistent {actual.persistence} s")
            behind = dict(kernel.real_servers(server))
            found += [f"virtual server {name}: no real server {each}" for each in server.servers if each not in behind]
            found += [
                f"virtual server {name}: real server {each} is not planned"
                for each in behind
                if each not in server.servers and (each.weight or not item.graceful)
            ]
    return found


def _settings(server: VirtualServer) -> tuple[str, int, tuple[int, ...]]:
    """What can be changed of a virtual server that is there."""
    return server.scheduler, server.persistence, server.flags


class _Refused(Exception):
    """The kernel's answer to what was asked about ``name``."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: {os.strerror(code)}")
        self.name = name
        self.code = code


def _make_so(
    kernel: _Ipvs,
    there: Mapping[str, VirtualServer],
    wanted: Mapping[str, VirtualServer],
    touched: list[str],
    gone: list[str],
    graceful: bool,
) -> None:
    for name in gone:
        if name in there:
            kernel.ask(DEL_SERVICE, there[name])
    for name in touched:
        server, actual = wanted[name], there.get(name)
        if actual is None:
            kernel.ask(NEW_SERVICE, server)
        elif _settings(actual) != _settings(server):
            kernel.ask(SET_SERVICE, server)
        _real_servers(kernel, server, dict(kernel.real_servers(server)) if actual is not None else {}, graceful)


def _real_servers(
    kernel: _Ipvs, server: VirtualServer, behind: Mapping[RealServer, Connections], graceful: bool
) -> None:
    weights = {(each.address, each.port): each.weight for each in behind}
    wanted = {(each.address, each.port) for each in server.servers}
    for each in server.servers:
        weight = weights.get((each.address, each.port))
        if weight is None:
            kernel.ask(NEW_DEST, server, each)
        elif weight != each.weight:
            kernel.ask(SET_DEST, server, each)
    for each, connections in behind.items():
        if (each.address, each.port) in wanted:
            continue
        if connections == 0 or server.protocol == "UDP" or not graceful:
            kernel.ask(DEL_DEST, server, each)
        elif each.weight:
            kernel.ask(SET_DEST, server, RealServer(each.address, each.port, 0))


def _sweep(kernel: _Ipvs, wanted: Mapping[str, VirtualServer]) -> None:
    """Take real servers away that had been left their connections and have none any more."""
    for server in wanted.values():
        for each, connections in kernel.real_servers(server) if len(wanted) <= SWEEP_ALL else ():
            if each.weight == 0 and connections == 0:
                kernel.ask(DEL_DEST, server, each)


SWEEP_ALL = 500  # virtual servers; with more, those on their way out go with the next change of their own server


class _Ipvs:
    """A generic netlink socket for the IPVS of this namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
        self._socket.settimeout(TIMEOUT)
        try:
            self._family = self._look_up()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> _Ipvs:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _look_up(self) -> int:
        body = struct.pack("=BBH", CTRL_CMD_GETFAMILY, 1, 0) + _attribute(CTRL_ATTR_FAMILY_NAME, b"IPVS\0")
        try:
            answers = list(self._talk(GENL_ID_CTRL, NLM_F_ACK, body, "IPVS"))
        except _Refused as refused:
            raise Unsupported(
                "this kernel has no IPVS (ip_vs)",
                hint="use --proxy nftables or iptables; `cnilab doctor` tells more",
                features=("ipvs",),
            ) from refused
        return int.from_bytes(attributes(answers[0], 4)[CTRL_ATTR_FAMILY_ID], "little")

    def ask(self, command: int, server: VirtualServer, real: RealServer | None = None) -> None:
        """Change one server. Raises _Refused."""
        body = struct.pack("=BBH", command, VERSION, 0)
        body += _attribute(CMD_SERVICE | NLA_F_NESTED, _service(server, whole=command in (NEW_SERVICE, SET_SERVICE)))
        if real is not None:
            body += _attribute(CMD_DEST | NLA_F_NESTED, _destination(real))
        name = server.name if real is None else f"{server.name} -> {real.address} port {real.port}"
        for _ in self._talk(self._family, NLM_F_ACK, body, name):
            pass

    def servers(self, family: Family) -> dict[str, VirtualServer]:
        """All virtual servers of a family, without their real servers."""
        found = {}
        body = struct.pack("=BBH", GET_SERVICE, VERSION, 0)
        for answer in self._talk(self._family, NLM_F_DUMP, body, "virtual servers"):
            given = attributes(attributes(answer, 4)[CMD_SERVICE], 0)
            af = int.from_bytes(given[SVC_AF], "little")
            if (af == socket.AF_INET6) != (family == 6) or SVC_ADDR not in given:
                continue
            flags = struct.unpack_from("=I", given[SVC_FLAGS])[0]
            server = VirtualServer(
                NAMES.get(int.from_bytes(given[SVC_PROTOCOL], "little"), "TCP"),  # type: ignore[arg-type]
                _text(af, given[SVC_ADDR]),
                int.from_bytes(given[SVC_PORT], "big"),
                (),
                bytes(given[SVC_SCHED]).rstrip(b"\0").decode(),
                struct.unpack_from("=I", given[SVC_TIMEOUT])[0] if flags & F_PERSISTENT else 0,
                tuple(number for number, bit in SCHEDULER_FLAGS.items() if flags & bit),
            )
            found[server.name] = server
        return found

    def real_servers(self, server: VirtualServer) -> Iterator[tuple[RealServer, Connections]]:
        """The real servers of a virtual one, with the number of connections of each."""
        body = struct.pack("=BBH", GET_DEST, VERSION, 0)
        body += _attribute(CMD_SERVICE | NLA_F_NESTED, _service(server, whole=False))
        default = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        for answer in self._talk(self._family, NLM_F_DUMP, body, server.name):
            given = attributes(attributes(answer, 4)[CMD_DEST], 0)
            af = int.from_bytes(given[DEST_AF], "little") if DEST_AF in given else default
            numbers = [struct.unpack_from("=I", given[each])[0] for each in (DEST_WEIGHT, DEST_ACTIVE, DEST_INACTIVE)]
            real = RealServer(_text(af, given[DEST_ADDR]), int.from_bytes(given[DEST_PORT], "big"), numbers[0])
            yield real, numbers[1] + numbers[2]

    def _talk(self, kind: int, flags: int, body: bytes, name: str) -> Iterator[memoryview]:
        """Send one request and yield the bodies of the answers. Raises _Refused."""
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body)
        bodies: list[memoryview] = []
        while True:
            data = memoryview(self._socket.recv(1 << 17))
            while data:
                length, answer, _, _, _ = HEADER.unpack_from(data)
                content, data = data[HEADER.size : length], data[(length + 3) & ~3 :]
                if answer == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    if code:
                        raise _Refused(name, code)
                    yield from bodies
                    return
                if answer == NLMSG_DONE:
                    code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    if code and code != errno.ESRCH:
                        raise _Refused(name, code)
                    yield from bodies
                    return
                bodies.append(content)


def _attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def _address(text: str) -> tuple[int, bytes]:
    af = socket.AF_INET6 if ":" in text else socket.AF_INET
    return af, socket.inet_pton(af, text).ljust(16, b"\0")  # union nf_inet_addr


def _text(af: int, raw: memoryview) -> str:
    return socket.inet_ntop(af, bytes(raw)[: 16 if af == socket.AF_INET6 else 4])


def _service(server: VirtualServer, *, whole: bool) -> bytes:
    af, address = _address(server.address)
    body = _attribute(SVC_AF, struct.pack("=H", af))
    body += _attribute(SVC_PROTOCOL, struct.pack("=H", PROTOCOLS[server.protocol]))
    body += _attribute(SVC_ADDR, address) + _attribute(SVC_PORT, struct.pack("!H", server.port))
    if whole:
        body += _attribute(SVC_SCHED, server.scheduler.encode() + b"\0")
        flags = sum(SCHEDULER_FLAGS[number] for number in server.flags) | (F_PERSISTENT if server.persistence else 0)
        body += _attribute(SVC_FLAGS, struct.pack("=II", flags, ALL_FLAGS))
        body += _attribute(SVC_TIMEOUT, struct.pack("=I", server.persistence))
        netmask = struct.pack("=I", 128) if af == socket.AF_INET6 else b"\xff\xff\xff\xff"
        body += _attribute(SVC_NETMASK, netmask)
    return body


def _destination(real: RealServer) -> bytes:
    af, address = _address(real.address)
    body = _attribute(DEST_ADDR, address) + _attribute(DEST_PORT, struct.pack("!H", real.port))
    body += _attribute(DEST_FWD, struct.pack("=I", MASQUERADE)) + _attribute(
        DEST_WEIGHT, struct.pack("=I", real.weight)
    )
    body += _attribute(DEST_UPPER, struct.pack("=I", 0)) + _attribute(DEST_LOWER, struct.pack("=I", 0))
    return body + _attribute(DEST_AF, struct.pack("=H", af))
