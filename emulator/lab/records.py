"""What passes between a lab's process and its clients, beside Kubernetes objects."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from emulator.cluster.model import Topology
from emulator.policy.enforcer import PolicyMode
from emulator.traffic.model import ProbeResult, Protocol

FaultKind = Literal[
    "link-down", "link-up", "node-crash", "node-return", "daemon-kill", "daemon-start",
    "conntrack-full", "conntrack-free", "mtu", "mac", "hairpin", "sysctl", "filter", "route", "flush",
    "proxy-stop",
]  # fmt: skip
FaultPlace = Literal["", "device", "port", "input", "output", "forward"]


DnsWish = Literal["auto", "on", "off"]  # cluster DNS: with the first Service, at once, never


class Boot(msgspec.Struct, frozen=True):
    """What a lab process is started with, on its standard input. ``directory`` is the lab's place in the registry as
    the process sees it; ``wish`` are the user's options."""

    name: str
    directory: str
    topology: Topology
    style: str
    objects: tuple[dict[str, Any], ...]
    wire_accurate: bool = False
    allow_missing: bool = False
    dns: DnsWish = "auto"
    policy_mode: PolicyMode = "faithful"


class FaultWish(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Something to break, or to ``mend``: which of the fields speak depends on the kind (``emulator.lab.faults``).

    ``target`` is a machine, or for some kinds a pod; ``device`` its interface, ``daemon`` one of its daemons. ``at``
    says where: at the device itself or at the switch's port that it is plugged into, or at which hook. ``value`` is an
    MTU (bytes), a MAC, or a kernel parameter's; ``name`` that of the parameter. ``protocol``, ``port``, ``icmp_type``,
    ``icmp_code``, ``source`` and ``destination`` choose packets; ``destination`` is a route's, too. ``table`` is the
    one to flush.
    """

    kind: FaultKind
    target: str
    device: str = ""
    daemon: str = ""
    mend: bool = False
    at: FaultPlace = ""
    value: str | int = ""
    name: str = ""
    protocol: str | int = ""
    port: int = 0
    icmp_type: int = -1
    icmp_code: int = -1
    source: str = ""
    destination: str = ""
    table: str = ""


class ProbeRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One probe in names. ``source`` and ``target`` are what people type; ``family`` 0 takes the first common one.
    Without a ``protocol`` the target decides: a Service by its port, else TCP if there is a port, else an ICMP echo.
    Port 0 of a Service is its only one.
    Sizes in bytes, times in seconds, as in ``traffic.model.Probe``."""

    source: str
    target: str
    port: int = 0
    protocol: Protocol | Literal[""] = "icmp"
    count: int = 1
    size: int = 0
    timeout: float = 1.0
    interval: float = 0.0
    dont_fragment: bool = False
    family: int = 0
    ttl: int = 0
    allow_fragments: bool = False


class Lookup(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the sender's own resolver made of a DNS name, by packets: ``emulator.dns.resolver.Resolution`` for records.
    ``tried`` are the full names asked for, each with its outcome; ``questions`` the packets that asked, in ``seconds``.
    """

    name: str
    addresses: tuple[str, ...] = ()
    failure: str = ""
    tried: tuple[tuple[str, str], ...] = ()
    questions: int = 0
    seconds: float = 0.0


class ProbeAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A probe's result with its names resolved. ``source_ns`` and ``target_ns`` are namespaces of the plan
    (``target_ns`` empty for an address that nothing in the lab owns). ``lookup`` is there if the target was a DNS name;
    without an ``address`` it could not be resolved, and nothing else was sent."""

    source: str
    target: str
    source_ns: str
    target_ns: str
    address: str
    protocol: Protocol
    port: int
    result: ProbeResult
    lookup: Lookup | None = None

    @property
    def reached(self) -> bool:
        """Whether anything answered."""
        return self.result.reached


class CaptureStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a capture took and what the kernel dropped for want of room, in packets, in all and per namespace.

    ``bytes`` is the size of its file; ``cut`` says why it ended before it was told to, ``missing`` which of the
    namespaces that it was asked for were not there at its start.
    """

    captured: int
    lost: int
    bytes: int = 0
    cut: str = ""
    missing: tuple[str, ...] = ()
    per_namespace: dict[str, dict[str, int]] = {}

    @property
    def gaps(self) -> tuple[str, ...]:
        """What the capture does not hold because of how it was taken, a line each."""
        found = []
        if self.cut:
            found.append(f"the capture ended early, {self.cut}: later packets are not in it")
        if self.missing:
            found.append(f"nothing was captured in {', '.join(self.missing)}: not there when the capture began")
        return tuple(found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must be said wherever this capture's packets are shown: that some are not in it."""
        lost = f"the capture lost {self.lost} packets for want of buffer space: hops may be missing"
        return (lost, *self.gaps) if self.lost else self.gaps


class LabStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a lab. ``labels`` are warnings that every output must carry, ``choices`` the capability decisions
    made for it, ``daemons`` one entry each: node, name, state, and the last log lines of a dead one. ``faults`` are
    what was broken on purpose and is not mended, ``notices`` what is served otherwise than the manifests say,
    ``broken`` why the lab must be taken down. ``plugin_problems`` are what CNI plugins did wrong
    (``emulator.kernel.attachments.Problem``)."""

    name: str
    style: str
    title: str
    topology: str
    nodes: int
    pods: int
    offloads: Literal["on", "off"]
    setup_seconds: float
    phases: dict[str, float] = {}
    down_nodes: tuple[str, ...] = ()
    choices: dict[str, str] = {}
    labels: tuple[str, ...] = ()
    daemons: tuple[dict[str, Any], ...] = ()
    processes: tuple[dict[str, Any], ...] = ()
    faults: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    broken: str = ""
    plugin_problems: tuple[dict[str, str], ...] = ()


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to run a command at a place of the lab: ``pid`` is a process in it, as the lab's pid namespace counts
    (0: none), ``netns`` a path there; ``files`` maps paths to the contents that the command must see."""

    place: str
    hostname: str
    pid: int = 0
    netns: str = ""
    files: dict[str, str] = {}
    env: dict[str, str] = {}
