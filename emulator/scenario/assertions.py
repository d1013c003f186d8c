"""A user's own assertions about who may reach whom, a line each::

    # namespaces stand before names; ports behind, with their protocol if it is not TCP
    client          -> web:80                allow
    client          -> db:5432               deny
    shop/app=web    -> shop/app=db:5432      allow     # all pods of these labels
    shop/web        -> kube-system/dns:53/udp  drop    # deny, and by silence
    host/client     -> node/n1:22            refuse    # deny, and by RST or ICMP
    web             -> 203.0.113.10:443      allow
    web             -> [2001:db8::10]:443    deny
    web             -> db                    allow     # ICMP echo

``ipv4`` or ``ipv6`` at the end of a line says which, for pods that have both; else both are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec

from emulator.cluster.model import Cluster
from emulator.cluster.validation import faults_of_label_value, faults_of_qualified_name
from emulator.errors import NotFound, Problem, ScenarioError, UserError
from emulator.lab.lab import Lab
from emulator.lab.names import Place, resolve
from emulator.lab.verdicts import Ask, Cell, MatrixWish
from emulator.traffic.model import Protocol

Wanted = Literal["allow", "deny", "drop", "refuse"]
FITTING: dict[Wanted, tuple[str, ...]] = {
    "allow": ("allowed",),
    "deny": ("dropped", "refused"),
    "drop": ("dropped",),
    "refuse": ("refused",),
}
_PROTOCOLS = ("tcp", "udp", "sctp", "icmp")
_FAMILIES: dict[str, Literal[4, 6]] = {"ipv4": 4, "ipv6": 6}
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[^:]*))?")


class Assertion(msgspec.Struct, frozen=True):
    """One line. ``family`` 0: each that both ends have."""

    line: int
    text: str
    source: str
    target: str
    protocol: Protocol
    port: int
    wanted: Wanted
    family: Literal[0, 4, 6] = 0


class Outcome(msgspec.Struct, frozen=True):
    """An assertion held against one request: of pods that a label selects there are several."""

    assertion: Assertion
    cell: Cell

    @property
    def met(self) -> bool:
        """Whether packets did what the line says."""
        return self.cell.verdict in FITTING[self.assertion.wanted]


def load_assertions(path: str) -> list[Assertion]:
    """Read a file. Raises NotFound, and ScenarioError with every line that is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError([Problem(path, "", "", "not UTF-8 text")]) from None
    return parse_assertions(text, path)


def parse_assertions(text: str, path: str) -> list[Assertion]:
    """The lines of a file's text. Raises ScenarioError with every line that is none."""
    found: list[Assertion] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            found.append(_assertion(number, words))
        except ValueError as error:
            problems.append(Problem(path, "", f"line {number}", str(error)))
    if not found and not problems:
        problems.append(Problem(path, "", "", "no assertion: a line is FROM -> TO:PORT allow"))
    if problems:
        raise ScenarioError(problems)
    return found


def _assertion(number: int, words: Sequence[str]) -> Assertion:
    family: Literal[0, 4, 6] = 0
    text = " ".join(words)
    if words[-1].lower() in _FAMILIES:
        family, words = _FAMILIES[words[-1].lower()], words[:-1]
    if len(words) != 4 or words[1] not in ("->", "→"):
        raise ValueError(f"{text!r} is not FROM -> TO[:PORT[/PROTOCOL]] allow|deny|drop|refuse [ipv4|ipv6]")
    source, _, aim, wanted = words
    if wanted.lower() not in FITTING:
        raise ValueError(f"{wanted!r} is not one of {', '.join(FITTING)}")
    target, port, protocol = _aim(aim)
    for place in (source, target):
        for reason in _faults_of_place(place):
            raise ValueError(reason)
    return Assertion(number, text, source, target, protocol, port, cast(Wanted, wanted.lower()), family)


def parse_aim(text: str) -> tuple[str, int, Protocol]:
    """``TO[:PORT[/PROTOCOL]]`` apart. Raises UserError."""
    try:
        return _aim(text)
    except ValueError as error:
        raise UserError(str(error)) from None


def _aim(text: str) -> tuple[str, int, Protocol]:
    """``web:80/udp`` apart; a slash before the colon belongs to the name."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not TO[:PORT[/PROTOCOL]]; IPv6 addresses stand in brackets")
    target = match["v6"] if match["v6"] is not None else match["name"]
    if match["port"] is None:
        return target, 0, "icmp"
    digits, slash, protocol = match["port"].partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in _PROTOCOLS[:3]:
        raise ValueError(f"{protocol!r} in {text!r} is not one of {', '.join(_PROTOCOLS[:3])}")
    if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits) <= 65535:
        raise ValueError(f"{digits!r} in {text!r} is not a port: a number from 1 to 65535")
    return target, int(digits), cast(Protocol, protocol)


def _faults_of_place(place: str) -> Iterator[str]:
    if not place or not place.isprintable():
        yield f"{place!r} is no name"
    _, key, value = _selector(place)
    if key:
        yield from (
            f"{place!r}: {reason}" for reason in (*faults_of_qualified_name(key), *faults_of_label_value(value))
        )


def _selector(place: str) -> tuple[str, str, str]:
    """``shop/app=web`` as namespace, key and value of a label; all empty if it is none."""
    left, equals, value = place.rpartition("=")
    if not equals:
        return "", "", ""
    namespace, slash, key = left.partition("/")
    # A label's key may have a prefix with a slash, which holds a dot
    return (namespace, key, value) if slash and "." not in namespace else ("default", left, value)


def check_assertions(lab: Lab, assertions: Sequence[Assertion], path: str = "") -> list[Outcome]:
    """Ask about all of them at once. Raises ScenarioError for lines that name nobody."""
    cluster = lab.cluster()
    asks: list[tuple[Assertion, Ask]] = []
    problems: list[Problem] = []
    for one in assertions:
        try:
            asks += [(one, ask) for ask in _asks(cluster, one)]
        except UserError as error:
            problems.append(Problem(path, "", f"line {one.line}", error.message))
    if problems:
        raise ScenarioError(problems)
    matrix = lab.matrix(MatrixWish(asks=tuple(ask for _, ask in asks)))
    return [Outcome(one, cell) for (one, _), cell in zip(asks, matrix.cells, strict=True)]


def _asks(cluster: Cluster, one: Assertion) -> Iterator[Ask]:
    for source in _places(cluster, one.source):
        if not source.ns:
            raise UserError(f"{one.source!r}: packets can only be sent from a pod or a machine of the lab")
        for target in _places(cluster, one.target):
            families = _common(source, target, one)
            for family in families:
                yield Ask(source.label, target.label, one.protocol, one.port, family)


def _common(source: Place, target: Place, one: Assertion) -> list[Literal[4, 6]]:
    both: list[Literal[4, 6]] = [
        family
        for family in (4, 6)
        if all(any((":" in each) == (family == 6) for each in place.addresses) for place in (source, target))
        if one.family in (0, family)
    ]
    if not both:
        wanted = f"IPv{one.family} " if one.family else ""
        raise UserError(f"{source.label} and {target.label} have no common {wanted}address family")
    return both


def _places(cluster: Cluster, text: str) -> list[Place]:
    namespace, key, value = _selector(text)
    if not key:
        return [resolve(cluster, text)]
    found = [
        resolve(cluster, f"pod/{pod.key}")
        for pod in cluster.pods
        if pod.namespace == namespace and pod.labels.get(key) == value and not pod.terminating
    ]
    if not found:
        raise NotFound(f"no pod of namespace {namespace} has the label {key}={value}")
    return found
