"""One AF_PACKET socket that sees every device of a network namespace, with its packets in shared memory.

::

    device ── tap ──▶ filter (not loopback, snap length) ──▶ block ▶ block ▶ block ▶ ...   TPACKET_V3 ring
                                                             └─ full, or 30 ms old: readable, one copy takes it all

The ring is chosen over ``recvmsg`` for two reasons. It costs no system call per packet. And its size is what we
ask for: a receive buffer beyond ``net.core.rmem_max`` (208 kB on stock systems, some 500 small packets) takes
CAP_NET_ADMIN over the machine itself (SO_RCVBUFFORCE), which a rootless lab does not have.

Making a ring and closing it each wait for a grace period of the kernel (synchronize_net, some 20 ms). Threads wait for
the same one together, so many rings take hardly longer than one: :func:`open_rings`, :func:`close_rings`.

Sources: packet(7), Documentation/networking/packet_mmap.rst, include/uapi/linux/if_packet.h, net/packet/af_packet.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from emulator.kernel.syscalls import inside

_libc = ctypes.CDLL(None, use_errno=True)

SOL_PACKET = 263
PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_VERSION = 10
TPACKET_V3 = 2
SO_ATTACH_FILTER = 26
ETH_P_ALL = 3
SIOCGIFNAME = 0x8910
ARPHRD_LOOPBACK = 772

BLOCK_STATUS = 8  # offset in the block header (tpacket_hdr_v1); then packets, first packet, length
BLOCK_FIELDS = struct.Struct("=IIII")
TP_STATUS_KERNEL = 0
TP_STATUS_USER = 1

# tpacket3_hdr and the sockaddr_ll behind it: next, sec, nsec, captured, length, status, mac, (net, rxhash), tci, tpid,
# (padding, sll_family), protocol, ifindex, hatype, pkttype
PACKET = struct.Struct("=IIIIIIH2x4xIH2x8x2xHiHB")
STATUS_CSUM_NOT_READY = 1 << 3
STATUS_VLAN_VALID = 1 << 4
STATUS_VLAN_TPID_VALID = 1 << 6
PACKET_OUTGOING = 4
PACKET_RECEPTION = {
    0: 1,
    1: 3,
    2: 2,
    3: 4,
}  # sll_pkttype -> epb_flags reception: host, broadcast, multicast, other host

RETIRE_MS = 30
LARGE_BLOCK = 128 * 1024  # holds a whole 64 kB segmentation-offload frame
SMALL_BLOCK = 16 * 1024
RING = 4 * 1024 * 1024  # bytes per namespace: 20,000 pings or 2,600 full-size frames
BUDGET = 256 * 1024 * 1024  # bytes for all rings of a capture: they are real memory, not a limit as SO_RCVBUF is
THREADS = 64  # that wait for the kernel together
CROWD = 256  # namespaces from which on the rings are made of small blocks


def ring_shape(namespaces: int, ring: int = 0) -> tuple[int, int, int]:
    """Block size in bytes, number of blocks, and retire time in ms, for a capture of so many namespaces.

    ``ring`` asks for so many bytes per namespace; 0 leaves it to us. Each waiting ring has a timer in the
    kernel, so crowds get slower ones.
    """
    block = LARGE_BLOCK if namespaces <= CROWD else SMALL_BLOCK
    size = ring or min(RING, BUDGET // max(namespaces, 1))
    while block > mmap.PAGESIZE and size < 4 * block:
        block //= 2
    return block, max(2, size // block), max(RETIRE_MS, namespaces // 8)


def _filter(instructions: list[tuple[int, int, int, int]]) -> tuple[bytes, object]:
    """A classic BPF program as setsockopt wants it, and the buffer that must outlive the call."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    return struct.pack("@HP", len(instructions), ctypes.addressof(code)), code


class NamespaceMissing(OSError):
    """There is no such namespace, or not any more."""


class Ring:
    """The packets of one namespace. Raises NamespaceMissing, or OSError if the kernel refuses the ring."""

    def __init__(self, netns: str, shape: tuple[int, int, int], snaplen: int, *, loopback: bool = False) -> None:
        try:
            namespace = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NamespaceMissing(error.errno, error.strerror, netns) from error
        try:
            with inside(namespace):
                # Protocol 0: nothing arrives until everything is set.
                self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            if error.errno == errno.EINVAL:  # the file is there, but no namespace is mounted on it
                raise NamespaceMissing(error.errno, error.strerror, netns) from error
            raise
        finally:
            os.close(namespace)
        self.block_size, self.blocks, retire = shape
        try:
            self.socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
            frames = self.blocks * (self.block_size // 2048)
            request = struct.pack("=IIIIIII", self.block_size, self.blocks, 2048, frames, retire, 0, 0)
            # Not socket.setsockopt: it would keep the interpreter locked while it waits.
            self._check(
                _libc.setsockopt(self.socket.fileno(), SOL_PACKET, PACKET_RX_RING, request, len(request)),
                f"ring of {self.block_size * self.blocks} bytes",
            )
            self._attach(
                [(0x28, 0, 0, 0xFFFFF000 + 28), (0x15, 1, 0, ARPHRD_LOOPBACK), (6, 0, 0, snaplen), (6, 0, 0, 0)]
                if not loopback
                else [(6, 0, 0, snaplen)]
            )
            self.memory = mmap.mmap(self.socket.fileno(), self.block_size * self.blocks)
            self._listen()
        except OSError:
            self.socket.close()
            raise
        self._next = 0

    def _attach(self, instructions: list[tuple[int, int, int, int]]) -> None:
        program, keep = _filter(instructions)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        del keep

    def _listen(self) -> None:
        # Python's bind() wants a device's name; index 0, all devices, has none.
        address = struct.pack("=HHiHBB8x", socket.AF_PACKET, socket.htons(ETH_P_ALL), 0, 0, 0, 0)
        self._check(_libc.bind(self.socket.fileno(), address, len(address)), "bind to all devices")

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")

    def fileno(self) -> int:
        """For epoll: readable when a block is."""
        return self.socket.fileno()

    def take(self) -> Iterator[bytes]:
        """Copy out every readable block, giving each back to the kernel at once."""
        while True:
            base = self._next * self.block_size
            status, packets, _, length = BLOCK_FIELDS.unpack_from(self.memory, base + BLOCK_STATUS)
            if not status & TP_STATUS_USER:
                return
            block = self.memory[base : base + length]
            # The packet count is cleared with the status: `freeze` tells an open block from a stale one by it.
            struct.pack_into("=II", self.memory, base + BLOCK_STATUS, TP_STATUS_KERNEL, 0)
            self._next = (self._next + 1) % self.blocks
            if packets:
                yield block

    def freeze(self) -> None:
        """Take nothing in any more; what is there stays."""
        self._attach([(6, 0, 0, 0)])

    def rest(self) -> Iterator[bytes]:
        """After :meth:`freeze`: every block that is left, and the one that the kernel still has open.

        Nothing is written to that one any more, so there is no need to wait for the timer that closes it.
        """
        yield from self.take()
        base = self._next * self.block_size
        _, packets, _, length = BLOCK_FIELDS.unpack_from(self.memory, base + BLOCK_STATUS)
        if packets:
            yield self.memory[base : base + length]

    def lost(self) -> int:
        """Packets that found the ring full since the last call."""
        statistics = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12)
        return int(struct.unpack("=III", statistics)[1])

    def device_name(self, index: int) -> str:
        """The name of a device of this namespace; ``if7`` for one that is gone already."""
        try:
            answer = fcntl.ioctl(self.socket, SIOCGIFNAME, struct.pack("16si20x", b"", index))
        except OSError:
            return f"if{index}"
        return answer[:16].partition(b"\0")[0].decode(errors="replace")

    def close(self) -> None:
        """Let go of the socket: it is what keeps a deleted namespace alive."""
        self.memory.close()
        self.socket.close()


def open_rings(wanted: Sequence[Callable[[], Ring]]) -> list[Ring | OSError]:
    """Make rings together; in place of one that cannot be made stands why."""
    made: list[Ring | OSError] = [OSError("not made")] * len(wanted)

    def make(number: int) -> None:
        try:
            made[number] = wanted[number]()
        except OSError as error:
            made[number] = error

    _together(make, len(wanted))
    return made


def close_rings(rings: Sequence[Ring]) -> None:
    """Close rings together."""
    _together(lambda number: rings[number].close(), len(rings))


def _together(work: Callable[[int], None], count: int) -> None:
    def share(first: int) -> None:
        for number in range(first, count, THREADS):
            work(number)

    threads = [threading.Thread(target=share, args=(first,)) for first in range(1, min(count, THREADS))]
    for thread in threads:
        thread.start()
    if count:
        share(0)
    for thread in threads:
        thread.join()


def settle() -> None:
    """Give a processor that was filing a packet while we froze the rings the time to finish (microseconds)."""
    time.sleep(0.002)
