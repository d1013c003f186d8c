"""Small changes to a table of nftables, told to the kernel without ``nft``, which reads all chains first.

With 10,000 Services, that reading takes ``nft`` 0.15 s of processor time on every node, and the kernel a millisecond
for the change itself. So the lines that a changed endpoint comes to are put into netlink messages here: those of
kube-proxy's chains for endpoints and Services, and elements of its maps. Whatever else is in a transaction makes
:func:`commit` decline, and ``nft`` has it: what the kernel holds in the end is the same.

A transaction is a batch of messages, which the kernel carries out whole or not at all.

Sources: Linux include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h; what nft 1.0.6 sends, by ``nft --debug=mnl``.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import count

from emulator.kernel.netfilter_netlink import attribute, close_beside, opened
from emulator.kernel.netlink import HEADER, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR

FEW = 200  # lines; what is longer is a load, not a change, and is nft's
NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
NEW_CHAIN, DEL_CHAIN, NEW_RULE, DEL_RULE, NEW_SET, NEW_ELEMENT, DEL_ELEMENT = 3, 5, 6, 8, 9, 12, 14  # NFT_MSG_*
CREATE, APPEND = 0x400, 0x800  # NLM_F_CREATE, NLM_F_APPEND
NESTED = 0x8000  # NLA_F_NESTED
JUMP, GOTO, DROP = -3, -4, 0  # NFT_JUMP, NFT_GOTO, NF_DROP
NETWORK_HEADER = 1  # NFT_PAYLOAD_NETWORK_HEADER
EQUAL, UNEQUAL = 0, 1  # NFT_CMP_EQ, NFT_CMP_NEQ
L4PROTO = 16  # NFT_META_L4PROTO
DNAT, PORT_GIVEN = 1, 2  # NFT_NAT_DNAT, NF_NAT_RANGE_PROTO_SPECIFIED
RANDOM = 1  # NFT_NG_RANDOM
ANONYMOUS_MAP = 0x1 | 0x2 | 0x8  # NFT_SET_ANONYMOUS, NFT_SET_CONSTANT, NFT_SET_MAP
INTEGER, VERDICTS = 4, 0xFFFFFF00  # nft's TYPE_INTEGER, NFT_DATA_VERDICT
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
# What nft notes for itself at such a map: keys in the host's byte order (NFTNL_UDATA_SET_KEYBYTEORDER), and of verdicts
MAP_NOTES = bytes.fromhex("000401000000 010400000000 0408000401000000 0100 060400000000")
UNNAMED = "__map%d"  # the kernel puts a number there
# Where addresses are in a network header, by family, and how long they are
SOURCE, TARGET = {"ip": 12, "ip6": 8}, {"ip": 16, "ip6": 24}
LENGTH = {"ip": 4, "ip6": 16}
FAMILIES = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}

# Of that table alone: sets of others may hold intervals, whose elements are two to the kernel, and no line says which
_LINE = re.compile(r"(add|delete|flush) (chain|rule|element) (ip6?) (kube-proxy) (\S+)(?: (.+))?")
_BRANCH = re.compile(r"(jump|goto) (\S+)")
_FROM = re.compile(r"ip6? saddr ([0-9a-f.:]+) (jump|goto) (\S+)")
_TO = re.compile(r"ip6? daddr ([0-9a-f.:]+)(?: ip6? saddr != ([0-9a-f.:]+/\d+))? (jump|goto) (\S+)")
_DNAT = re.compile(r"meta l4proto (\w+) dnat to (?:([0-9.]+)|\[([0-9a-f:]+)\]):(\d+)")
_SPREAD = re.compile(r"numgen random mod (\d+) vmap \{ (\d+ : goto \S+(?:, \d+ : goto \S+)*) \}")
_ELEMENT = re.compile(r'\{ ([^ "]+(?: \. [^ "]+)*)(?: comment "([^"]*)")?(?: : (drop|(?:jump|goto) \S+))? \}')


class _Unknown(Exception):
    """A line that only nft can tell to the kernel."""


def commit(lines: Sequence[str]) -> bool:
    """Carry out a transaction in the namespace that this thread is in. False if nothing was done: a line is none of
    those known here, or the kernel refused, and why, nft has the words for."""
    if len(lines) > FEW:
        return False
    try:
        messages = list(encoded(lines))
    except _Unknown:
        return False
    try:
        return _sent(messages)
    except OSError:
        return False


def encoded(lines: Iterable[str]) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages for lines as :mod:`emulator.plan.nftables` writes them: kind, flags, family, attributes. Raises
    _Unknown."""
    sets = count(1)
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            raise _Unknown(line)
        verb, what, family, table, name, rest = match.groups()
        inside = _text(1, table)
        chain = inside + _text(3, name)
        match verb, what, rest:
            case "add", "chain", None:
                yield NEW_CHAIN, CREATE, FAMILIES[family], chain
            case "delete", "chain", None:
                yield DEL_CHAIN, 0, FAMILIES[family], chain
            case "flush", "chain", None:
                yield DEL_RULE, 0, FAMILIES[family], inside + _text(2, name)
            case "add", "rule", str(rule):
                for kind, flags, part in _rule(family, inside, rule, sets):
                    named = _text(2, name) if kind == NEW_RULE else b""
                    yield kind, flags, FAMILIES[family], inside + named + part
            case (("add" | "delete"), "element", str(element)):
                kind, flags = (NEW_ELEMENT, CREATE) if verb == "add" else (DEL_ELEMENT, 0)
                yield kind, flags, FAMILIES[family], inside + _text(2, name) + _nest(3, _element(element, family))
            case _:
                raise _Unknown(line)


# -- rules ------------------------------------------------------------------------------------------------------


def _rule(family: str, inside: bytes, text: str, sets: Iterator[int]) -> Iterator[tuple[int, int, bytes]]:
    """A rule, and before it the map that it has to itself; without table and chain."""
    expressions: list[bytes] = []
    if match := _SPREAD.fullmatch(text):
        number = next(sets)
        pairs = [pair.partition(" : ") for pair in match[2].split(", ")]
        yield NEW_SET, CREATE, _map(number, len(pairs))
        elements = b"".join(
            _nest(1, _nest(1, _value(struct.pack("=I", int(key)))) + _nest(2, _verdict(verdict)))
            for key, _, verdict in pairs
        )
        yield NEW_ELEMENT, CREATE, _text(2, UNNAMED) + _number(4, number) + _nest(3, elements)
        expressions.append(_expression("numgen", _number(1, 1) + _number(2, int(match[1])) + _number(3, RANDOM)))
        looked_up = _text(1, UNNAMED) + _number(2, 1) + _number(3, 0) + _number(4, number)
        expressions.append(_expression("lookup", looked_up))
    elif match := _BRANCH.fullmatch(text):
        expressions.append(_branch(text))
    elif match := _FROM.fullmatch(text):
        expressions += _compared(SOURCE[family], _packed(match[1], family))
        expressions.append(_branch(f"{match[2]} {match[3]}"))
    elif match := _TO.fullmatch(text):
        expressions += _compared(TARGET[family], _packed(match[1], family))
        if match[2]:
            expressions += _outside(SOURCE[family], match[2], family)
        expressions.append(_branch(f"{match[3]} {match[4]}"))
    elif (match := _DNAT.fullmatch(text)) and match[1] in PROTOCOLS:
        expressions += [
            _expression("meta", _number(1, 1) + _number(2, L4PROTO)),
            _comparison(EQUAL, bytes((PROTOCOLS[match[1]],))),
            _immediate(1, _value(_packed(match[2] or match[3], family))),
            _immediate(2, _value(struct.pack("!H", int(match[4])))),
            _expression(
                "nat",
                _number(1, DNAT) + _number(2, FAMILIES[family]) + _number(3, 1) + _number(5, 2)
                + _number(7, PORT_GIVEN),
            ),
        ]  # fmt: skip
    else:
        raise _Unknown(text)
    yield NEW_RULE, CREATE | APPEND, _nest(4, b"".join(expressions))


def _map(number: int, size: int) -> bytes:
    """A map from numbers to verdicts that one rule alone refers to."""
    return (
        _text(2, UNNAMED)
        + _number(3, ANONYMOUS_MAP)
        + _number(4, INTEGER)
        + _number(5, 4)
        + _number(6, VERDICTS)
        + _number(7, 0)
        + _number(10, number)
        + _nest(9, _number(1, size))
        + attribute(13, MAP_NOTES)
    )


def _compared(offset: int, address: bytes) -> list[bytes]:
    return [_loaded(offset, len(address)), _comparison(EQUAL, address)]


def _outside(offset: int, cidr: str, family: str) -> list[bytes]:
    """Not in a network. Of a prefix of whole bytes only these are looked at, as nft does."""
    network = _network(cidr, family)
    address, bits = network.network_address.packed, network.prefixlen
    if not bits:
        raise _Unknown(cidr)
    if bits % 8 == 0:
        return [_loaded(offset, bits // 8), _comparison(UNEQUAL, address[: bits // 8])]
    length = LENGTH[family]
    masked = (
        _number(1, 1)
        + _number(2, 1)
        + _number(3, length)
        + _nest(4, _value(network.netmask.packed))
        + _nest(5, _value(bytes(length)))
    )
    return [_loaded(offset, length), _expression("bitwise", masked), _comparison(UNEQUAL, address)]


def _loaded(offset: int, length: int) -> bytes:
    return _expression("payload", _number(1, 1) + _number(2, NETWORK_HEADER) + _number(3, offset) + _number(4, length))


def _comparison(how: int, data: bytes) -> bytes:
    return _expression("cmp", _number(1, 1) + _number(2, how) + _nest(3, _value(data)))


def _branch(text: str) -> bytes:
    return _immediate(0, _verdict(text))


def _immediate(register: int, data: bytes) -> bytes:
    return _expression("immediate", _number(1, register) + _nest(2, data))


def _expression(name: str, data: bytes) -> bytes:
    return _nest(1, _text(1, name) + _nest(2, data))


# -- elements ---------------------------------------------------------------------------------------------------


def _element(text: str, family: str) -> bytes:
    match = _ELEMENT.fullmatch(text)
    if match is None:
        raise _Unknown(text)
    key, comment, verdict = match.groups()
    # Each part of a key that is put together fills registers of four bytes
    packed = b"".join(part + bytes(-len(part) % 4) for part in map(_reader(family), key.split(" . ")))
    found = _nest(1, _value(packed))
    if verdict:
        found += _nest(2, _verdict(verdict))
    if comment:
        noted = comment.encode() + b"\0"
        found += attribute(6, bytes((0, len(noted))) + noted)  # NFTNL_UDATA_SET_ELEM_COMMENT
    return _nest(1, found)


def _reader(family: str) -> Callable[[str], bytes]:
    def read(part: str) -> bytes:
        if part in PROTOCOLS:
            return bytes((PROTOCOLS[part],))
        return struct.pack("!H", int(part)) if part.isdecimal() else _packed(part, family)

    return read


# -- attributes -------------------------------------------------------------------------------------------------


def _packed(text: str, family: str) -> bytes:
    try:
        packed = ip_address(text).packed
    except ValueError as error:
        raise _Unknown(text) from error
    if len(packed) != LENGTH[family]:
        raise _Unknown(text)
    return packed


def _network(text: str, family: str) -> IPv4Network | IPv6Network:
    try:
        found = ip_network(text)
    except ValueError as error:
        raise _Unknown(text) from error
    if found.max_prefixlen != 8 * LENGTH[family]:
        raise _Unknown(text)
    return found


def _verdict(text: str) -> bytes:
    if text == "drop":
        return _nest(2, _number(1, DROP))
    verb, _, chain = text.partition(" ")
    return _nest(2, _number(1, JUMP if verb == "jump" else GOTO) + _text(2, chain))


def _value(data: bytes) -> bytes:
    return attribute(1, data)


def _nest(kind: int, content: bytes) -> bytes:
    return attribute(kind | NESTED, content)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


# -- sending ----------------------------------------------------------------------------------------------------


def _sent(messages: Sequence[tuple[int, int, int, bytes]]) -> bool:
    """Whether the kernel has taken the batch: it has when this returns, and acknowledges every message of it."""
    batch = [_message(BATCH_BEGIN, 0, 0, 0, struct.pack("!H", NFTABLES), b"")]
    for number, (kind, flags, family, attributes) in enumerate(messages, start=1):
        batch.append(_message(NFTABLES << 8 | kind, flags | NLM_F_ACK, number, family, bytes(2), attributes))
    batch.append(_message(BATCH_END, 0, len(messages) + 1, 0, struct.pack("!H", NFTABLES), b""))
    asked = opened()
    try:
        asked.send(b"".join(batch))
        waiting = set(range(1, len(messages) + 1))
        while waiting:
            part = asked.recv(1 << 16)
            offset = 0
            while offset + HEADER.size <= len(part):
                length, kind, _flags, number, _port = HEADER.unpack_from(part, offset)
                if kind == NLMSG_ERROR and struct.unpack_from("=i", part, offset + HEADER.size)[0]:
                    return False
                waiting.discard(number)
                offset += (length + 3) & ~3
    finally:
        close_beside(asked)
    return True


def _message(kind: int, flags: int, number: int, family: int, resource: bytes, attributes: bytes) -> bytes:
    body = struct.pack("=BB", family, 0) + resource + attributes
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, number, 0) + body
