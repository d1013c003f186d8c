"""WireGuard's messages, as far as they can be read without keys.

::

    1  handshake initiation   148 bytes     2  handshake response   92 bytes     3  cookie reply   64 bytes
    4  transport data         16 bytes of header, the encrypted packet, 16 bytes of authentication tag

The packet inside is padded with zeros to a multiple of 16 bytes, but never beyond the device's MTU; an empty one is a
keepalive. Each session has its own ephemeral keys, so nothing on the wire or in the plan opens them afterwards.

Source: the protocol's description at wireguard.com/protocol; drivers/net/wireguard/messages.h, send.c
(calculate_skb_padding).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PORTS = (51820, 51821)  # flannel's for IPv4 and IPv6, Calico's and everybody's; another one counts if both ends have it
INITIATION, RESPONSE, COOKIE, DATA = 1, 2, 3, 4
LENGTHS = {INITIATION: 148, RESPONSE: 92, COOKIE: 64}  # bytes
NAMES = {INITIATION: "handshake initiation", RESPONSE: "handshake response", COOKIE: "cookie reply"}
HEADER, TAG = 16, 16  # bytes
PADDING = 16  # bytes

_DATA = struct.Struct("<4xIQ")


class Message(NamedTuple):
    """``type`` is the message's; of transport data ``receiver`` is the index that the receiver gave the session,
    ``counter`` the packet's number in it, and ``size`` how many bytes are encrypted, padding included."""

    type: int
    receiver: int = 0
    counter: int = 0
    size: int = 0

    @property
    def text(self) -> str:
        if self.type != DATA:
            return f"WireGuard {NAMES[self.type]}"
        what = f"transport data, {self.size} bytes encrypted" if self.size else "keepalive"
        return f"WireGuard {what}, counter {self.counter}"


def message(frame: bytes, at: int, size: int, source_port: int, target_port: int) -> Message | None:
    """The message in a UDP datagram whose payload of ``size`` bytes begins at ``at``; None for anything else."""
    if source_port != target_port and source_port not in PORTS and target_port not in PORTS:
        return None
    if size < HEADER + TAG or len(frame) - at < HEADER or frame[at + 1 : at + 4] != b"\0\0\0":
        return None
    kind = frame[at]
    if kind == DATA:
        receiver, counter = _DATA.unpack_from(frame, at)
        return Message(DATA, receiver, counter, size - HEADER - TAG)
    return Message(kind) if LENGTHS.get(kind) == size else None


def may_hold(size: int, packet: int) -> bool:
    """Whether ``size`` encrypted bytes may be an IP packet of ``packet`` bytes and its padding."""
    padded = (packet + PADDING - 1) // PADDING * PADDING
    # Cut short by an MTU that is no multiple: 1420.
    return size == padded or (size % PADDING != 0 and packet <= size < padded)
