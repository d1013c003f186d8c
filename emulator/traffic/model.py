"""What is asked of the traffic engine, and what it answers."""

from __future__ import annotations

from typing import Literal

import msgspec

Protocol = Literal["icmp", "tcp", "udp", "sctp"]
Verdict = Literal["delivered", "refused", "dropped", "unreachable"]

SMALLEST_UDP_PROBE = 16  # bytes: `echo cl:` and a nonce of eight hex digits
LARGEST_TCP_PROBE = 1 << 30  # bytes each way


class FixedAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A TCP port on all addresses of one family, where every HTTP request gets the same answer, whatever its path."""

    family: Literal[4, 6]
    port: int
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""


class Server(msgspec.Struct, frozen=True, omit_defaults=True):
    """Listening sockets in one namespace, answering as Kubernetes' agnhost netexec does.

    ``hostname`` is what ``/hostname`` answers (the pod's name). ``ports`` are (port, ``TCP`` or ``UDP``); those in
    ``fixed`` answer one thing only. ``ns`` is the name that the server is known by: the plan's name of the namespace,
    with more behind it if the namespace has several.
    """

    ns: str
    netns: str
    hostname: str
    ports: tuple[tuple[int, str], ...]
    fixed: tuple[FixedAnswer, ...] = ()


class Probe(msgspec.Struct, frozen=True, omit_defaults=True):
    """Packets to send from one namespace, and answers to wait for.

    ``netns`` is a path; ``target`` an address. ``size`` is the L4 payload in bytes (for ICMP the data after the 8-byte
    header; for TCP the bytes that go there and come back; 0: the protocol's own small default). ``timeout`` and
    ``interval`` are seconds. ``dont_fragment`` sets DF and disables fragmentation at the sender; path-MTU answers then
    show as ``unreachable`` with the MTU in the detail. ``allow_fragments`` clears DF instead, so that routers may
    fragment (IPv4). With neither, the kernel's path MTU discovery works as for any application.

    ``interval`` 0: each packet follows the answer to the one before; once one stayed unanswered for ``timeout``, the
    rest go out at once, so that a probe lasts at most two timeouts longer than its answers. Each of the ``count`` TCP
    requests is a connection of its own; UDP datagrams and pings share one flow unless ``new_flow`` gives each its own
    source port (or ICMP id). ``source_port`` 0: a port that this namespace has not used lately. ``fresh``: rather none
    than one of which connection tracking may still know. ``sender`` is the address that the packets will have, where it
    is known: a namespace of before may have used it.

    ``knock``: a TCP connection that is established is an answer, and nothing is said on it; it is reset. Of UDP, any
    datagram is an answer, an echo or not. SCTP is never more than INIT, and INIT ACK in answer.
    """

    id: str
    netns: str
    target: str
    protocol: Protocol
    port: int = 0
    count: int = 1
    size: int = 0
    timeout: float = 1.0
    interval: float = 0.0
    dont_fragment: bool = False
    source: str = ""
    source_port: int = 0
    ttl: int = 0
    allow_fragments: bool = False
    new_flow: bool = False
    knock: bool = False
    fresh: bool = False
    sender: str = ""


class ProbeResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came back.

    ``delivered``: at least one answer; ``refused``: RST or ICMP port unreachable; ``unreachable``: another ICMP error
    (``detail`` names it and who sent it); ``dropped``: silence until the timeout. ``times`` are round trips in
    microseconds. ``answered_by`` is the server's hostname, ``source_seen`` the client address as the server saw it
    (both empty for ICMP).

    ``connect_times`` (TCP) are microseconds from SYN to the established connection, and ``times`` then those from
    request to answer. ``answers`` and ``sources`` count the answers by hostname and by client address as seen (without
    the port). ``local_address`` and ``local_port`` (ICMP: the id) are the sender's end of the first flow.
    ``reporter`` is who sent the last ICMP error, ``mtu`` what it said of the path.
    """

    id: str
    verdict: Verdict
    sent: int
    received: int
    times: tuple[float, ...] = ()
    answered_by: str = ""
    source_seen: str = ""
    detail: str = ""
    connect_times: tuple[float, ...] = ()
    answers: dict[str, int] = {}
    sources: dict[str, int] = {}
    local_address: str = ""
    local_port: int = 0
    reporter: str = ""
    mtu: int = 0

    @property
    def reached(self) -> bool:
        """Whether anything answered."""
        return self.verdict == "delivered"


class LossWindow(msgspec.Struct, frozen=True):
    """Requests ``first`` to ``last`` (from 0) of a stream had no answer.

    ``start`` is when the first of them left, in seconds from the stream's start; ``milliseconds`` the time from there
    to the next request that was answered, or to the stream's end.
    """

    first: int
    last: int
    start: float
    milliseconds: float


class StreamReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a stream: requests sent at a constant rate from one namespace to one target.

    ``duration`` is seconds. ``lost`` are the windows without answers; ``out_of_order`` counts answers that came after
    the answer to a later request, ``duplicated`` second answers to one request. ``changes`` are (seconds from the
    start, hostname) whenever another server answered than before, the first one included. ``errors`` counts ICMP and
    local errors by their detail. ``median`` is the median round trip in microseconds.
    """

    id: str
    sent: int
    received: int
    duration: float
    lost: tuple[LossWindow, ...] = ()
    out_of_order: int = 0
    duplicated: int = 0
    changes: tuple[tuple[float, str], ...] = ()
    errors: dict[str, int] = {}
    median: float = 0.0
    local_address: str = ""
    local_port: int = 0


class InjectionReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of replayed or hand-made packets: how many left, how many the kernel refused, and why.

    ``refusals`` counts the refused ones by reason. ``seconds`` is how long the sending took.
    """

    sent: int
    refused: int
    seconds: float
    refusals: dict[str, int] = {}


def probe_problem(probe: Probe) -> str:
    """Why no packet can be made of ``probe`` as given; empty if it can."""
    if probe.protocol != "icmp" and not 0 < probe.port < 65536:
        return f"port {probe.port} is not between 1 and 65535"
    if probe.count < 1:
        return f"count {probe.count} is below 1"
    if probe.size < 0 or (probe.protocol == "tcp" and probe.size > LARGEST_TCP_PROBE):
        return f"size {probe.size} is not between 0 and {LARGEST_TCP_PROBE}"
    if probe.protocol == "udp" and 0 < probe.size < SMALLEST_UDP_PROBE:
        return (
            f"size {probe.size}: a UDP probe carries at least {SMALLEST_UDP_PROBE} bytes, by which its answer is known"
        )
    if probe.protocol == "sctp" and (probe.size or probe.new_flow):
        return "an SCTP probe is an INIT: it has no size of its own, and one flow"
    if probe.timeout <= 0 or probe.interval < 0:
        return f"timeout {probe.timeout} and interval {probe.interval} must be positive"
    if probe.dont_fragment and probe.allow_fragments:
        return "dont_fragment and allow_fragments exclude each other"
    if not 0 <= probe.ttl < 256:
        return f"ttl {probe.ttl} is not between 0 and 255"
    if not 0 <= probe.source_port < 65536:
        return f"source port {probe.source_port} is not between 0 and 65535"
    if probe.source_port and probe.count > 1 and (probe.new_flow or probe.protocol == "tcp"):
        return f"source port {probe.source_port}: {probe.count} flows cannot all leave from it"
    return ""
