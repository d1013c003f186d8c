"""Sets and members that come and go, told to the kernel without starting ``ipset``.

A pod's changed label moves its address from some sets to others, on every node whose rules name them: a process for
each node takes most of the time of such a change. Other lines than these, members of other kinds than addresses,
networks and an address with a port, and sets of a type that the namespace has none of, make :func:`commit` decline, and
``ipset`` has them.

A type's revision is what ``ipset`` chose for a set that is there: it would not read one of a newer.

Sources: Linux include/uapi/linux/netfilter/ipset/ip_set.h; net/netfilter/ipset/ip_set_core.c (``call_ad``,
``IPSET_CMD_ADD``: without NLM_F_EXCL a member that is there already is no error, nor one that is gone;
``IPSET_CMD_CREATE``, ``IPSET_CMD_HEADER``).
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from emulator.kernel.netfilter_netlink import answers, attribute, opened, request
from emulator.kernel.netlink import NLM_F_ACK, attributes

FEW = 200  # lines; what is longer is a load, not a change
IPSET = 6  # NFNL_SUBSYS_IPSET
CREATE, DESTROY, HEADER = 2, 3, 12  # IPSET_CMD_*
COMMANDS = {"add": 9, "del": 10}  # IPSET_CMD_ADD, IPSET_CMD_DEL
PROTOCOL, SET_NAME, TYPE_NAME, REVISION, FAMILY, DATA = 1, 2, 3, 4, 5, 7  # IPSET_ATTR_*
VERSION = 6  # of the protocol: what all kernels speak (IPSET_PROTOCOL_MIN)
IP, CIDR, PORT, TIMEOUT, PROTO, FLAGS, MOST = 1, 3, 4, 6, 7, 8, 19  # within IPSET_ATTR_DATA; MOST is MAXELEM
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
NOMATCH = 1 << 2  # IPSET_FLAG_NOMATCH
BIG_ENDIAN, NESTED = 0x4000, 0x8000  # NLA_F_NET_BYTEORDER, NLA_F_NESTED
TRANSPORTS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}

_LINE = re.compile(r"(add|del) (\S+) ([0-9a-f.:]+?)(?:/(\d+))?(?:,(tcp|udp|sctp):(\d+))?( nomatch)? -exist")
_SET = re.compile(r"create (\S+) (hash:(?:ip|net|ip,port))(?: timeout (\d+))?(?: maxelem (\d+))? family (inet6?)")
_END = re.compile(r"destroy (\S+)")


def commit(lines: Sequence[str], asked: socket.socket | None = None, examples: Mapping[str, str] | None = None) -> bool:
    """Carry out lines of ``ipset restore`` in the namespace of a socket, without one in that of this thread. False if
    they are not these alone, or the kernel refused one, and then those before it may be in force: ``ipset`` may be
    given all of them again.

    ``examples`` are names of sets that are there, by their type; sets of other types are not made.
    """
    if len(lines) > FEW:
        return False
    if asked is None:
        with opened() as own:
            return commit(lines, own, examples)
    revisions: dict[str, int] = {}
    try:
        messages: list[bytes] = []
        for line in lines:
            kind = match[2] if (match := _SET.fullmatch(line)) else ""
            if kind and kind not in revisions:
                if examples is None or kind not in examples:
                    return False
                revisions[kind] = _revision(asked, examples[kind])
            message = encoded(line, revisions.get(kind, 0))
            if message is None:
                return False
            messages.append(message)
        for message in messages:
            list(answers(asked, message))
    except OSError:
        return False
    return True


def _revision(asked: socket.socket, name: str) -> int:
    """That of a set's type, as it is in use. Raises OSError."""
    (answer,) = answers(asked, request(IPSET, HEADER, NLM_F_ACK, socket.AF_INET, _named(name)))
    return attributes(answer, 0)[REVISION][0]


def _named(name: str) -> bytes:
    return attribute(PROTOCOL, bytes((VERSION,))) + attribute(SET_NAME, name.encode() + b"\0")


def encoded(line: str, revision: int = 0) -> bytes | None:
    """The message for a line, where it makes a set one of that ``revision``; None if only ``ipset`` knows it."""
    if match := _SET.fullmatch(line):
        return _creation(match, revision)
    if match := _END.fullmatch(line):
        return request(IPSET, DESTROY, NLM_F_ACK, socket.AF_INET, _named(match[1]))
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
    return request(IPSET, COMMANDS[verb], NLM_F_ACK, family, _named(name) + attribute(DATA | NESTED, data))


def _creation(match: re.Match[str], revision: int) -> bytes:
    name, kind, timeout, most, word = match.groups()
    family = socket.AF_INET6 if word == "inet6" else socket.AF_INET
    content = _named(name) + attribute(TYPE_NAME, kind.encode() + b"\0")
    content += attribute(REVISION, bytes((revision,))) + attribute(FAMILY, bytes((family,)))
    data = b""
    for number, value in ((TIMEOUT, timeout), (MOST, most)):
        if value is not None:
            data += attribute(number | BIG_ENDIAN, struct.pack("!I", int(value)))
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    return request(IPSET, CREATE, flags, family, content + attribute(DATA | NESTED, data))
