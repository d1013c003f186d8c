"""Resolving a name as a pod's own programs do: glibc's stub resolver, its questions sent as packets from the pod.

Stands for glibc ``resolv/res_query.c`` (search list and ndots), ``res_send.c`` (A and AAAA side by side from one
socket, 5 seconds, 2 attempts, next server on SERVFAIL, NOTIMP or REFUSED, TCP after TC) and ``getaddrinfo``. Written
against the behaviour that resolv.conf(5) and those files describe; no cache, as in glibc.
"""

from __future__ import annotations

import errno
import random
import select
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from emulator.dns.message import Sections, lower, question_for, received
from emulator.dns.records import labels_of
from emulator.dns.resolv_conf import ATTEMPTS_MAX, NDOTS_MAX, TIMEOUT_MAX, ResolvConf
from emulator.dns.reverse import canonical
from emulator.kernel.syscalls import inside

LOCALHOST = "127.0.0.1"  # asked where resolv.conf names no server
CHAIN = 16  # CNAMEs in a row
EDNS_SIZE = 1200  # bytes: RESOLV_EDNS_BUFFER_SIZE, with `options edns0`

Failure = Literal["", "not found", "no data", "server failure", "timeout", "refused"]


class Resolution(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a name. ``addresses`` are in the order of the answers, IPv4 first; ``canonical`` is the last name of
    the chain. ``tried`` lists each full name asked for with its outcome (``NOERROR``, ``NXDOMAIN``, ``timeout``, ...),
    for A and AAAA together; ``questions`` counts the packets sent."""

    name: str
    addresses: tuple[str, ...] = ()
    canonical: str = ""
    failure: Failure = ""
    tried: tuple[tuple[str, str], ...] = ()
    questions: int = 0
    seconds: float = 0.0

    def of_family(self, family: int) -> tuple[str, ...]:
        """The addresses of IPv4 (4) or IPv6 (6)."""
        return tuple(address for address in self.addresses if (":" in address) == (family == 6))


def resolve(
    name: str, netns: str | int, conf: ResolvConf, *, families: Sequence[int] = (4, 6), hosts: str = ""
) -> Resolution:
    """The addresses of ``name`` as seen from the network namespace at a path or descriptor.

    ``conf`` is the place's resolv.conf, ``hosts`` the text of its /etc/hosts, which is asked first. Blocks for as long
    as the servers are silent. Addresses stand for themselves. Raises OSError if the namespace cannot be entered.
    """
    if address := canonical(name):
        return Resolution(name, (address,), name)
    if found := _in_hosts(name, hosts, families):
        return Resolution(name, found, name)
    began = time.monotonic()
    done = _Search(name, netns, conf, families).run()
    return msgspec.structs.replace(done, seconds=time.monotonic() - began)


def candidates(name: str, conf: ResolvConf) -> Iterator[str]:
    """The full names that are asked for one after the other until one is found."""
    if name.endswith("."):
        yield name
        return
    dots = name.count(".")
    as_is_first = dots >= conf.number("ndots", 1, NDOTS_MAX)
    if as_is_first:
        yield f"{name}."
    root = False
    for domain in conf.search:
        root = root or domain == "."
        yield f"{name}." if domain == "." else f"{name}.{domain}."
    if not as_is_first and not root:
        yield f"{name}."


def _in_hosts(name: str, hosts: str, families: Sequence[int]) -> tuple[str, ...]:
    wanted = name.rstrip(".").lower()
    found: dict[str, None] = {}
    for line in hosts.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        shown = canonical(address) if wanted in (one.lower() for one in names) else ""
        if shown and (6 if ":" in shown else 4) in families:
            found[shown] = None
    return tuple(found)


class _Outcome(NamedTuple):
    """Of one full name: by kind of record what was answered (None: nothing), and what that makes in all."""

    failure: Failure
    addresses: tuple[str, ...]
    canonical: str
    said: str


class _Search:
    """One resolution."""

    def __init__(self, name: str, netns: str | int, conf: ResolvConf, families: Sequence[int]) -> None:
        self._name = name
        self._netns = netns
        self._conf = conf
        self._kinds = [kind for family, kind in ((4, "A"), (6, "AAAA")) if family in families]
        self._servers = conf.nameservers or (LOCALHOST,)
        self._timeout = max(1, conf.number("timeout", 5, TIMEOUT_MAX))
        self._attempts = max(1, conf.number("attempts", 2, ATTEMPTS_MAX))
        self._single = any(one in conf.options for one in ("single-request", "single-request-reopen"))
        self._tcp = "use-vc" in conf.options
        self._questions = 0
        if "rotate" in conf.options:
            turn = random.randrange(len(self._servers))
            self._servers = (*self._servers[turn:], *self._servers[:turn])

    def run(self) -> Resolution:
        """res_query.c, __res_context_search: the name as it is and the names of the search list, in their order."""
        names = list(candidates(self._name, self._conf))
        as_is = self._name if self._name.endswith(".") else f"{self._name}."
        tried: list[tuple[str, str]] = []
        saved: Failure = ""
        seen: list[Failure] = []
        over = False
        for full in names:
            if over and full != as_is:
                continue  # with silence, the rest of the search list is left out; the name as it is, is not
            try:
                outcome = self._ask(full)
            except ValueError:
                outcome = _Outcome("not found", (), "", "no domain name")
            tried.append((full, outcome.said))
            if not outcome.failure:
                done = tuple(tried)
                return Resolution(self._name, outcome.addresses, outcome.canonical, "", done, self._questions)
            if full == as_is and full == names[0]:
                saved = outcome.failure  # what a search that fails reports in the end
            else:
                seen.append(outcome.failure)
            if outcome.failure == "refused":
                break  # nobody is there
            over = over or outcome.failure == "timeout" or outcome.said in ("REFUSED", "NOTIMP", "FORMERR")
        failure: Failure = saved
        if not saved:
            failure = seen[-1] if seen else "not found"
            if failure != "refused" and "no data" in seen:
                failure = "no data"
            elif failure != "refused" and "server failure" in seen:
                failure = "server failure"
        return Resolution(self._name, failure=failure, tried=tuple(tried), questions=self._questions)

    def _ask(self, full: str) -> _Outcome:
        """Ask for one full name. Raises ValueError if it cannot be one."""
        question_for(full, "A", 0)
        answers, trouble = self._exchange(full)
        addresses: list[str] = []
        alias = ""
        for kind in self._kinds:
            if (sections := answers.get(kind)) is not None:
                found, last = _addresses(full, kind, sections)
                addresses += found
                alias = alias or (last if found else "")
        said = " ".join(dict.fromkeys(sections.rcode for sections in answers.values())) or trouble
        if addresses:
            return _Outcome("", tuple(addresses), alias, said)
        rcodes = {sections.rcode for sections in answers.values()}
        if len(answers) < len(self._kinds) and trouble != "server failure":
            return _Outcome(trouble or "timeout", (), "", trouble or "timeout")
        if rcodes <= {"NXDOMAIN"} and rcodes:
            return _Outcome("not found", (), "", said)
        if rcodes <= {"NOERROR", "NXDOMAIN"} and rcodes:
            return _Outcome("no data", (), "", said)
        return _Outcome("server failure", (), "", said)

    def _exchange(self, full: str) -> tuple[dict[str, Sections], Failure]:
        """The answers by kind; and, if some are missing, why. An answer that says failure counts as none until every
        server had its turn."""
        answers: dict[str, Sections] = {}
        bad: dict[str, Sections] = {}
        trouble: Failure = ""
        for _ in range(self._attempts):
            for index, server in enumerate(self._servers):
                missing = [kind for kind in self._kinds if kind not in answers]
                seconds = float(self._timeout << index)  # res_send.c: `retrans << ns`, shared from the second on
                if index:
                    seconds = float(max(1, int(seconds) // len(self._servers)))
                got, why = self._one_server(full, missing, server, seconds)
                for kind, sections in got.items():
                    (answers if sections.rcode in ("NOERROR", "NXDOMAIN") else bad)[kind] = sections
                trouble = why or trouble
                if len(answers) == len(self._kinds):
                    return answers, ""
        if bad:
            return {**bad, **answers}, "server failure"
        return answers, trouble or "timeout"

    def _one_server(
        self, full: str, kinds: Sequence[str], server: str, seconds: float
    ) -> tuple[dict[str, Sections], Failure]:
        """Ask one server for some kinds: side by side, or one after the other if so wished."""
        if not self._single:
            return self._round(full, kinds, server, seconds)
        answers: dict[str, Sections] = {}
        trouble: Failure = ""
        for kind in kinds:
            got, why = self._round(full, [kind], server, seconds)
            answers.update(got)
            trouble = trouble or why
        return answers, trouble

    def _round(
        self, full: str, kinds: Sequence[str], server: str, seconds: float
    ) -> tuple[dict[str, Sections], Failure]:
        answers: dict[str, Sections] = {}
        waiting = {kind: self._question(full, kind) for kind in kinds}
        over_tcp = list(kinds) if self._tcp else []
        trouble: Failure = ""
        if not self._tcp:
            end = time.monotonic() + seconds
            try:
                with self._socket(server, socket.SOCK_DGRAM) as sock:
                    for wire in waiting.values():
                        self._questions += 1
                        sock.send(wire)
                    while len(answers) + len(over_tcp) < len(kinds):
                        data = _receive(sock, end)
                        if data is None:
                            trouble = "timeout"
                            break
                        kind, sections = _matching(data, waiting)
                        if kind and sections is not None:
                            if sections.truncated:
                                over_tcp.append(kind)
                            else:
                                answers[kind] = sections
                            del waiting[kind]
            except OSError as error:
                trouble = _why(error)
        for kind in over_tcp:
            try:
                answers[kind] = self._by_tcp(full, kind, server, seconds)
            except (OSError, ValueError) as error:
                trouble = _why(error) if isinstance(error, OSError) else "server failure"
        return answers, trouble

    def _question(self, full: str, kind: str) -> bytes:
        size = EDNS_SIZE if "edns0" in self._conf.options else 0
        return question_for(full, kind, random.getrandbits(16), size)

    def _by_tcp(self, full: str, kind: str, server: str, seconds: float) -> Sections:
        end = time.monotonic() + seconds
        wire = self._question(full, kind)
        self._questions += 1
        with self._socket(server, socket.SOCK_STREAM, end) as sock:
            sock.sendall(len(wire).to_bytes(2) + wire)
            data = b""
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
                more = _receive(sock, end)
                if more is None:
                    raise TimeoutError
                if not more:
                    raise ConnectionResetError(errno.ECONNRESET, "closed")
                data += more
        number, sections = received(data[2:])
        if number != int.from_bytes(wire[:2]):
            raise ValueError("an answer to another question")
        return sections

    def _socket(self, server: str, kind: int, end: float = 0.0) -> socket.socket:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with inside(self._netns):
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
        try:
            if end:
                sock.settimeout(max(0.001, end - time.monotonic()))
            sock.connect((server, 53))
        except OSError:
            sock.close()
            raise
        return sock


def _receive(sock: socket.socket, end: float) -> bytes | None:
    """What comes next, or None if nothing does in time."""
    remaining = end - time.monotonic()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if remaining <= 0 or not poll.poll(remaining * 1000):
        return None
    return sock.recv(65535)


def _matching(data: bytes, waiting: dict[str, bytes]) -> tuple[str, Sections | None]:
    """The kind of question that a datagram answers; others are ignored."""
    try:
        number, sections = received(data)
    except ValueError:
        return "", None
    for kind, wire in waiting.items():
        # Behind the id the answer repeats the question: name, type, class
        if number == int.from_bytes(wire[:2]) and data[12 : len(wire)].lower() == wire[12:].lower():
            return kind, sections
        if number == int.from_bytes(wire[:2]) and sections.rcode in ("FORMERR", "SERVFAIL", "REFUSED", "NOTIMP"):
            return kind, sections
    return "", None


def _addresses(full: str, kind: str, sections: Sections) -> tuple[list[str], str]:
    """The addresses that the answer gives the name, through its aliases, and the last of these names."""
    name, shown = labels_of(full), full.rstrip(".")
    for _ in range(CHAIN):
        owned = [rr for rr in sections.answer if rr.owner is not None and lower(rr.owner) == name]
        aliases = [rr for rr in owned if rr.rdata.rdtype == 5]
        if not aliases:
            break
        target = aliases[0].rdata.target  # type: ignore[attr-defined]
        name, shown = lower(target), target.to_text(omit_final_dot=True)
    wanted = 1 if kind == "A" else 28
    return [rr.rdata.to_text() for rr in owned if rr.rdata.rdtype == wanted], shown


def _why(error: OSError) -> Failure:
    if isinstance(error, TimeoutError):
        return "timeout"
    if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET):
        return "refused"
    return "timeout" if error.errno in (errno.EAGAIN, errno.ETIMEDOUT) else "refused"
