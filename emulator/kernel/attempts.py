"""The attempts by which a kernel feature is recognised: each one does the thing and looks at the errno.

An attempt returns where the feature works and raises :class:`emulator.kernel.trial.Missing` or OSError where it does
not. It runs in the throw-away namespaces of :mod:`emulator.kernel.trial`.

The messages are packed by hand: this runs before every lab, and importing a netlink library costs more than all
attempts together. Sources: linux/rtnetlink.h, linux/if_link.h, linux/pkt_sched.h, linux/fib_rules.h,
linux/netfilter/nfnetlink.h, linux/genetlink.h, linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import subprocess

from emulator.kernel import syscalls
from emulator.kernel.trial import Bench, Missing, Trial

NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
NLMSG_ERROR = 2
LOOPBACK = 1  # ifindex of lo in every new network namespace

PACKET_TIMEOUT = 5.0  # seconds, for a datagram to ourselves; an emulated machine is slow
PROGRAM_TIMEOUT = 20.0  # seconds, for one nft or iptables call; an emulated machine needs several


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _ask(sock: socket.socket, kind: int, body: bytes, flags: int = NLM_F_CREATE | NLM_F_EXCL) -> int:
    """Send one request and return the errno of its answer; 0 for success, with or without data."""
    sock.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0) + body)
    answer = sock.recv(65536)
    (answer_kind,) = struct.unpack_from("=H", answer, 4)
    if answer_kind != NLMSG_ERROR:
        sock.recv(65536)  # the ack after the data
        return 0
    (code,) = struct.unpack_from("=i", answer, 16)
    return -int(code)


def _refused(code: int, *missing: int) -> None:
    """Raise Missing where ``code`` says that the feature is not there, PermissionError where we may not."""
    if code in missing:
        raise Missing(os.strerror(code))
    if code in (errno.EPERM, errno.EACCES):
        raise PermissionError(code, os.strerror(code))


# devices and queues


def link(kind: str) -> Trial:
    """A device kind can be made. Anything but EOPNOTSUPP shows that the kernel knows it: EINVAL asks for the attributes
    that we left out, EEXIST is a fallback device of that name."""

    def run(bench: Bench) -> None:
        info = _attribute(1, kind.encode())  # IFLA_INFO_KIND
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _attribute(18, info)  # IFLA_LINKINFO
        _refused(_ask(bench.route, 16, body), errno.EOPNOTSUPP)  # RTM_NEWLINK

    return run


def _link_info(kind: str, options: tuple[tuple[int, bytes], ...]) -> bytes:
    data = b"".join(_attribute(number, value) for number, value in options)
    return _attribute(18, _attribute(1, kind.encode()) + _attribute(2, data))  # IFLA_LINKINFO: INFO_KIND, INFO_DATA


def link_option(kind: str, *options: tuple[int, bytes]) -> Trial:
    """A device kind can be made with these attributes in IFLA_INFO_DATA; any refusal counts."""

    def run(bench: Bench) -> None:
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _link_info(kind, options)
        code = _ask(bench.route, 16, body)
        _refused(code, code or -1)

    return run


def link_change(kind: str, *options: tuple[int, bytes]) -> Trial:
    """A device can be given these attributes later. A kernel that refuses them while it makes the device takes 50 ms to
    undo that; here there is nothing to undo."""

    def run(bench: Bench) -> None:
        name = _attribute(3, f"change-{kind}"[:15].encode() + b"\0")  # IFLA_IFNAME
        head = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + name
        code = _ask(bench.route, 16, head + _link_info(kind, ())) or _ask(
            bench.route, 16, head + _link_info(kind, options), 0
        )
        _refused(code, code or -1)

    return run


def qdisc(kind: str) -> Trial:
    """A queueing discipline can be set on lo. ENOENT is an unknown kind, EINVAL asks for attributes.

    Each under a handle of its own: asked to change an existing one to another kind, the kernel says EINVAL without
    looking whether it knows that kind.
    """

    def run(bench: Bench) -> None:
        bench.handles += 1
        handle, parent = bench.handles << 16, 0xFFFFFFFF  # TC_H_ROOT
        if kind == "clsact":
            handle, parent = 0xFFFF0000, 0xFFFFFFF1  # TC_H_CLSACT
        head = struct.pack("=BxxxiIII", 0, LOOPBACK, handle, parent, 0)
        body = head + _attribute(1, kind.encode() + b"\0")  # TCA_KIND
        _refused(_ask(bench.route, 36, body, NLM_F_CREATE | NLM_F_REPLACE), errno.ENOENT)  # RTM_NEWQDISC

    return run


def tun(bench: Bench) -> None:
    """A tap device can be made. Its link kind always answers EOPNOTSUPP, so by ioctl."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Missing(f"/dev/net/tun: {error.strerror}") from error
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"", 0x1002))  # TUNSETIFF, IFF_TAP | IFF_NO_PI
        fcntl.ioctl(fd, 0x400454CB, 1)  # TUNSETPERSIST: close(2) would wait for the device's end, 20 ms
    finally:
        os.close(fd)


# routing


def _loopback_up(bench: Bench) -> None:
    body = struct.pack("=BxHiII", 0, 0, LOOPBACK, 1, 1)  # IFF_UP
    _refused(_ask(bench.route, 16, body, 0))


def multipath(bench: Bench) -> None:
    """A route with two next hops."""
    _loopback_up(bench)
    hops = struct.pack("=HBBi", 8, 0, 0, LOOPBACK) * 2
    body = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 3, 253, 1, 0)  # AF_INET /24 main boot link unicast
    body += _attribute(1, bytes((192, 0, 2, 0))) + _attribute(9, hops)  # RTA_DST, RTA_MULTIPATH
    code = _ask(bench.route, 24, body)  # RTM_NEWROUTE
    _refused(code, code or -1)


def policy_rule(bench: Bench) -> None:
    """A routing rule that looks at the mark."""
    body = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 100, 0, 0, 1, 0) + _attribute(
        10, struct.pack("=I", 0x99)
    )  # FRA_FWMARK
    code = _ask(bench.route, 32, body)  # RTM_NEWRULE
    _refused(code, code or -1)


def nexthop_object(bench: Bench) -> None:
    """A next hop as an object of its own."""
    _loopback_up(bench)
    body = (
        struct.pack("=BBBBI", 2, 0, 3, 0, 0) + _attribute(1, struct.pack("=I", 1)) + _attribute(4, b"")
    )  # id, blackhole
    code = _ask(bench.route, 104, body)  # RTM_NEWNEXTHOP
    _refused(code, code or -1)


def ipv6(bench: Bench) -> None:
    """An IPv6 address in a new namespace."""
    _loopback_up(bench)
    address = socket.inet_pton(socket.AF_INET6, "fd00::1")
    body = struct.pack("=BBBBI", socket.AF_INET6, 128, 0, 0, LOOPBACK) + _attribute(2, address)  # IFA_LOCAL
    code = _ask(bench.route, 20, body)  # RTM_NEWADDR
    _refused(code, code or -1)


# netfilter


def bridge_netfilter(bench: Bench) -> None:
    """The switch that sends bridged packets through iptables."""
    if not os.path.exists("/proc/sys/net/bridge/bridge-nf-call-iptables"):
        raise Missing("there is no /proc/sys/net/bridge/bridge-nf-call-iptables")


def nfnetlink(subsystem: int, message: int, body: bytes = b"") -> Trial:
    """An nfnetlink subsystem answers. EINVAL and EOPNOTSUPP stand for an unknown one."""

    def run(bench: Bench) -> None:
        head = struct.pack("=BBH", 2, 0, 0)  # AF_INET
        code = _ask(bench.netfilter, subsystem << 8 | message, head + body, 0)
        _refused(code, errno.EINVAL, errno.EOPNOTSUPP)

    return run


def conntrack(bench: Bench) -> None:
    """The connection table can be read (IPCTNL_MSG_CT_GET_STATS of subsystem 1)."""
    nfnetlink(1, 5)(bench)


def packet_queue(bench: Bench) -> None:
    """A queue of netfilter's can be bound, and asked for packets' first bytes."""
    from emulator.kernel.nfqueue import GSO, Queue

    Queue(101, copied=128, waiting=16, flags=GSO).socket.close()


def labelling_queue(bench: Bench) -> None:
    """A verdict on a packet that nftables queues can label its connection: only with that label it is queued once more.

    Before POSTROUTING: what other trials leave there (MASQUERADE) drops a datagram to ourselves.
    """
    from emulator.kernel.nfqueue import ACCEPT, DROP, GSO, Queue

    chains = """\
chain asked { type filter hook output priority 0; udp dport 9 queue to 102; ct label set 28; }
chain after { type filter hook output priority 100; udp dport 9 ct label 28 queue to 102; }
"""
    program("nft", "-f", "-", stdin=f"table ip trial_label {{\n{chains}}}\n")(bench)
    _loopback_up(bench)
    queue = Queue(102, copied=128, waiting=16, flags=GSO)
    queue.load_labels()
    with queue.socket, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.sendto(b"trial", ("127.0.0.1", 9))
        for verdict, label, reason in (
            (ACCEPT, 28, "a queue that nftables fills gets nothing"),
            (DROP, -1, "a verdict does not label its connection (CONFIG_NETFILTER_NETLINK_GLUE_CT)"),
        ):
            select.select([queue.socket], [], [], PACKET_TIMEOUT)
            queued = next(queue.packets(), None)
            if queued is None:
                raise Missing(reason)
            queue.verdict(queued.number, verdict, label=label)


def both(*trials: Trial) -> Trial:
    """All of them, in order."""

    def run(bench: Bench) -> None:
        for trial in trials:
            trial(bench)

    return run


def generic_family(name: str) -> Trial:
    """A generic netlink family of that name is registered; asking for it loads its module."""

    def run(bench: Bench) -> None:
        body = struct.pack("=BBH", 3, 1, 0) + _attribute(2, name.encode() + b"\0")  # CTRL_CMD_GETFAMILY, FAMILY_NAME
        _refused(_ask(bench.generic, 16, body, 0), errno.ENOENT)  # GENL_ID_CTRL

    return run


def ipvs(bench: Bench) -> None:
    """IPVS answers, and its parameters can be set: the kernel shows those to no user namespace but the first."""
    generic_family("IPVS")(bench)
    if not os.path.exists("/proc/sys/net/ipv4/vs/conntrack"):
        raise Missing("there is no /proc/sys/net/ipv4/vs here: a user namespace is not shown it")


def iptables_legacy_table(table: str) -> Trial:
    """The kernel half of iptables-legacy holds that table."""

    def run(bench: Bench) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            # struct ipt_getinfo: the table's name in, 84 bytes out
            request = table.encode().ljust(84, b"\0")
            size = struct.pack("=I", len(request))
            code = _getsockopt(sock.fileno(), socket.SOL_IP, 64, request, size)  # IPT_SO_GET_INFO
            _refused(code, errno.ENOPROTOOPT, errno.ENOENT)

    return run


def _getsockopt(fd: int, level: int, option: int, value: bytes, size: bytes) -> int:
    """getsockopt(2) with a value that goes in; Python's own sends none. Returns the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer, length = ctypes.create_string_buffer(value, len(value)), ctypes.create_string_buffer(size, len(size))
    return 0 if libc.getsockopt(fd, level, option, buffer, length) == 0 else ctypes.get_errno()


def program(*command: str, stdin: str = "") -> Trial:
    """A program does its work in the new namespaces."""

    def run(bench: Bench) -> None:
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT, check=False
            )
        except FileNotFoundError as error:
            raise Missing(f"{command[0]} is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise Missing(f"{command[0]} did not end within {PROGRAM_TIMEOUT:.0f} s") from error
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise Missing(lines[0] if lines else f"{command[0]} ended with status {done.returncode}")

    return run


# other


def packet_capture(bench: Bench) -> None:
    """A packet socket with the block ring that captures use."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(263, 10, 2)  # SOL_PACKET, PACKET_VERSION, TPACKET_V3


def overlay(bench: Bench) -> None:
    """An overlay mount on a tmpfs."""
    syscalls.mount("tmpfs", "/tmp", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV)
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(f"/tmp/{name}")
    try:
        syscalls.mount(
            "overlay", "/tmp/merged", "overlay", 0, "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work"
        )
    except OSError as error:
        raise Missing(str(error)) from error


def bpf_program(program_type: int, attach_type: int = 0, answer: int = 0) -> Trial:
    """A program of two instructions (return ``answer``) can be loaded. Needs the machine's root."""

    def run(bench: Bench) -> None:
        call = {"x86_64": 321, "aarch64": 280}.get(platform.machine())
        if call is None:
            raise Missing(f"the number of bpf(2) on {platform.machine()} is not known here")
        code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, answer, 0x95, 0, 0, 0)  # r0 = answer; exit
        instructions = ctypes.create_string_buffer(code, len(code))
        terms = ctypes.create_string_buffer(b"GPL")
        request = struct.pack(
            "=IIQQIIQII16sII",
            program_type,
            2,  # instructions
            ctypes.addressof(instructions),
            ctypes.addressof(terms),
            *(0, 0, 0, 0, 0),  # no log, any kernel version, no flags
            b"",
            0,  # ifindex
            attach_type,
        )
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(call, 5, ctypes.create_string_buffer(request, len(request)), len(request))  # BPF_PROG_LOAD
        if fd < 0:
            code_of_error = ctypes.get_errno()
            raise OSError(code_of_error, os.strerror(code_of_error))
        os.close(fd)

    return run


def path(name: str) -> Trial:
    """A file of the kernel's is there."""

    def run(bench: Bench) -> None:
        if not os.path.exists(name):
            raise Missing(f"there is no {name}")

    return run


def nothing(bench: Bench) -> None:
    """Works wherever the child got into its namespaces at all."""


def user_namespace(bench: Bench) -> None:
    """Root of a user namespace may make devices. Where AppArmor restricts it, unshare works and only this fails."""
    link("veth")(bench)
