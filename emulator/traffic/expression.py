"""Hand-made packets: a scapy expression, read as data and never run as code.

``IP(dst="10.244.2.3", ttl=3) / UDP(sport=1234, dport=53) / b"hello"`` in a scenario file looks like Python, and
evaluating it would make every scenario file a program. So it is parsed into a tree of :class:`Layer` with nothing in it
but

* layers of :data:`LAYERS`, by name, called with keyword arguments, joined by ``/``;
* the literals of Python: integers, floats, strings, bytes, ``True``, ``False``, ``None``, and lists and tuples of them;
* a layer as an argument (``DNS(qd=DNSQR(qname="a"))``), ``-`` before a number, ``literal * number`` for strings and
  bytes, ``|`` between integers.

Everything else is refused with its place: names, attributes, subscripts, comprehensions, f-strings, lambdas, other
calls. Packets are the same in every run: scapy's random values are not offered.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from emulator.errors import Problem, ScenarioError

LONGEST = 20_000  # characters of an expression
LARGEST = 65_535  # bytes of a literal, and the length of a list
DEEPEST = 50  # layers and lists within each other

LAYERS = frozenset(
    # A word list reads better here than sixty quoted names.
    """
    Ether Dot1Q Dot3 LLC SNAP ARP STP Raw Padding
    IP ICMP TCP UDP GRE VXLAN SCTP SCTPChunkData SCTPChunkInit IPOption_RR IPOption_Router_Alert IPOption_Timestamp
    IPv6 IPv6ExtHdrFragment IPv6ExtHdrHopByHop IPv6ExtHdrDestOpt IPv6ExtHdrRouting PadN Pad1 RouterAlert
    ICMPv6EchoRequest ICMPv6EchoReply ICMPv6DestUnreach ICMPv6PacketTooBig ICMPv6TimeExceeded ICMPv6ParamProblem
    ICMPv6ND_NS ICMPv6ND_NA ICMPv6ND_RS ICMPv6ND_RA ICMPv6NDOptSrcLLAddr ICMPv6NDOptDstLLAddr ICMPv6NDOptPrefixInfo
    ICMPv6NDOptMTU ICMPv6MLReport2 ICMPv6MLDMultAddrRec IPerror TCPerror UDPerror ICMPerror IPerror6
    DNS DNSQR DNSRR DNSRRSRV DNSRROPT BOOTP DHCP NTP
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Layer:
    """A layer of :data:`LAYERS` with its arguments; ``payload`` is what follows the ``/``."""

    name: str
    arguments: tuple[tuple[str, object], ...] = ()
    payload: Layer | None = None


def parse(expression: str, source: str = "<expression>", subject: str = "") -> Layer:
    """The packet that ``expression`` describes. Raises ScenarioError, naming the part that is refused; ``source`` and
    ``subject`` say where the expression stands."""
    return _Parser(expression, source, subject).packet()


class _Parser:
    def __init__(self, text: str, source: str, subject: str) -> None:
        self._text = text
        self._source = source
        self._subject = subject

    def packet(self) -> Layer:
        if len(self._text) > LONGEST:
            raise self._refused(None, f"longer than {LONGEST} characters")
        try:
            tree = ast.parse(self._text.strip(), mode="eval")
        except SyntaxError as error:
            raise self._refused(None, f"not an expression: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError):
            raise self._refused(None, "not an expression that can be read") from None
        return self._layers(tree.body, 0)

    def _layers(self, node: ast.expr, depth: int) -> Layer:
        """A chain of layers, joined by ``/`` from the left."""
        chain: list[ast.expr] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            chain.append(node.right)
            node = node.left
            if len(chain) > DEEPEST:
                raise self._refused(node, f"more than {DEEPEST} layers")
        packet: Layer | None = None
        for part in chain:  # the last layer first
            packet = self._layer(part, depth, packet)
        return self._layer(node, depth, packet)

    def _layer(self, node: ast.expr, depth: int, payload: Layer | None) -> Layer:
        if depth > DEEPEST:
            raise self._refused(node, f"more than {DEEPEST} levels")
        if isinstance(node, ast.Call):
            return self._call(node, depth, payload)
        value = self._value(node, depth)
        if isinstance(value, str):
            try:
                value = value.encode()
            except UnicodeEncodeError:
                raise self._refused(node, "holds characters that UTF-8 cannot") from None
        if not isinstance(value, bytes):
            raise self._refused(node, "neither a layer nor a payload")
        return Layer("Raw", (("load", value),), payload)

    def _call(self, node: ast.Call, depth: int, payload: Layer | None) -> Layer:
        if not isinstance(node.func, ast.Name):
            raise self._refused(node.func, "only layers can be called, by their name")
        if node.func.id not in LAYERS:
            raise self._refused(node.func, f"{node.func.id} is no layer that is known here")
        if node.args:
            raise self._refused(node.args[0], f"{node.func.id} takes named arguments only")
        arguments: dict[str, object] = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg.startswith("_"):
                raise self._refused(keyword.value, f"{node.func.id} takes plainly named arguments only")
            if keyword.arg in arguments:
                raise self._refused(keyword.value, f"{keyword.arg} is given twice")
            arguments[keyword.arg] = self._value(keyword.value, depth + 1)
        return Layer(node.func.id, tuple(arguments.items()), payload)

    def _value(self, node: ast.expr, depth: int) -> object:
        if depth > DEEPEST:
            raise self._refused(node, f"more than {DEEPEST} levels")
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.List | ast.Tuple):
            if len(node.elts) > LARGEST:
                raise self._refused(node, f"more than {LARGEST} elements")
            items = [self._value(item, depth + 1) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Call) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
            return self._layers(node, depth + 1)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            number = self._value(node.operand, depth + 1)
            if type(number) not in (int, float):
                raise self._refused(node, "only a number can be negative")
            return -number  # type: ignore[operator]
        if isinstance(node, ast.BinOp):
            return self._operation(node, depth)
        raise self._refused(node, "only layers and literals are allowed")

    def _constant(self, node: ast.Constant) -> object:
        value = node.value
        if isinstance(value, str | bytes):
            if len(value) > LARGEST:
                raise self._refused(node, f"longer than {LARGEST}")
            return value
        if value is None or isinstance(value, bool | int | float):
            return value
        raise self._refused(node, f"a {type(value).__name__} is no value of a field")

    def _operation(self, node: ast.BinOp, depth: int) -> object:
        left, right = self._value(node.left, depth + 1), self._value(node.right, depth + 1)
        if isinstance(node.op, ast.Mult) and isinstance(left, str | bytes) and type(right) is int:
            if not 0 <= right * len(left) <= LARGEST:
                raise self._refused(node, f"longer than {LARGEST}")
            return left * right
        if isinstance(node.op, ast.Add) and isinstance(left, str | bytes) and type(left) is type(right):
            if len(left) + len(right) > LARGEST:
                raise self._refused(node, f"longer than {LARGEST}")
            return left + right  # type: ignore[operator]
        if isinstance(node.op, ast.BitOr) and type(left) is int and type(right) is int:
            return left | right
        raise self._refused(
            node, "only / between layers, * and + with strings or bytes, and | between integers are allowed"
        )

    def _refused(self, node: ast.expr | None, reason: str) -> ScenarioError:
        part = ast.get_source_segment(self._text.strip(), node) if node is not None else self._text
        shown = " ".join((part or "").split())
        if len(shown) > 60:
            shown = shown[:57] + "..."
        return ScenarioError(
            [Problem(self._source, self._subject, shown, reason)],
            hint='A packet is written as scapy layers: IP(dst="10.244.2.3") / UDP(dport=53) / b"payload"',
        )
