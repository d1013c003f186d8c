"""Members of ipsets that come and go, told to the kernel without starting ``ipset``.

A pod's changed label moves its address from some sets to others, on every node whose rules name them: a process for
each node takes most of the time of such a change. Other lines than these, and members of other kinds than addresses,
networks and an address with a port, make :func:`commit` decline, and ``ipset`` has them.

Sources: Linux include/uapi/linux/netfilter/ipset/ip_set.h; net/netfilter/ipset/ip_set_core.c (``call_ad``,
``IPSET_CMD_ADD``: without NLM_F_EXCL a member that is there already is no error, nor one that is gone).
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address

from emulator.kernel.netfilter_netlink import answers, attribute, opened, request
from emulator.kernel.netlink import NLM_F_ACK

FEW = 200  # lines; what is longer is a load, not a change
IPSET = 6  # NFNL_SUBSYS_IPSET
COMMANDS = {"add": 9, "del": 10}  # IPSET_CMD_ADD, IPSET_CMD_DEL
PROTOCOL, SET_NAME, DATA = 1, 2, 7  # IPSET_ATTR_*
VERSION = 6  # of the protocol: what all kernels speak (IPSET_PROTOCOL_MIN)
IP, CIDR, PORT, PROTO, FLAGS = 1, 3, 4, 7, 8  # within IPSET_ATTR_DATA
NOMATCH = 1 << 2  # IPSET_FLAG_NOMATCH
BIG_ENDIAN, NESTED = 0x4000, 0x8000  # NLA_F_NET_BYTEORDER, NLA_F_NESTED
TRANSPORTS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}

_LINE = re.compile(r"(add|del) (\S+) ([0-9a-f.:]+?)(?:/(\d+))?(?:,(tcp|udp|sctp):(\d+))?( nomatch)? -exist")


def commit(lines: Sequence[str]) -> bool:
    """Carry out lines of ``ipset restore`` in the namespace that this thread is in. False if they are not these alone,
    or the kernel refused one, and then those before it may be in force: ``ipset`` may be given all of them again."""
    if len(lines) > FEW:
        return False
    messages: list[bytes] = []
    for line in lines:
        message = encoded(line)
        if message is None:
            return False
        messages.append(message)
    try:
        with opened() as asked:
            for message in messages:
                list(answers(asked, message))
    except OSError:
        return False
    return True


def encoded(line: str) -> bytes | None:
    """The message for a line; None if only ``ipset`` knows it."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    verb, name, text, bits, transport, port, nomatch = match.groups()
    try:
        address = ip_address(text)
    except ValueError:
        return None
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = attribute((1 if address.version == 4 else 2) | BIG_ENDIAN, address.packed)  # IPSET_ATTR_IPADDR_*
    data = attribute(IP | NESTED, packed)
    if bits is not None:
        data += attribute(CIDR, bytes((int(bits),)))
    if transport is not None:
        data += attribute(PORT | BIG_ENDIAN, struct.pack("!H", int(port)))
        data += attribute(PROTO, bytes((TRANSPORTS[transport],)))
    if nomatch is not None:
        data += attribute(FLAGS | BIG_ENDIAN, struct.pack("!I", NOMATCH))
    content = attribute(PROTOCOL, bytes((VERSION,))) + attribute(SET_NAME, name.encode() + b"\0")
    return request(IPSET, COMMANDS[verb], NLM_F_ACK, family, content + attribute(DATA | NESTED, data))
