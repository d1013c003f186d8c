"""What is known of a lab's attachments: those in force, who made which device, and what plugins did wrong.

Shared by the runtimes of all nodes (:mod:`emulator.kernel.node_attachments`), which work side by side.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from emulator.cni.results import Result
from emulator.kernel.footprint import Trace
from emulator.plan.model import CniAttachment, PluginDevice

REMEMBERED = 200  # problems of pods that are gone
LOG_LINES = 1000  # a node's log of plugin calls keeps that many


class Problem(msgspec.Struct, frozen=True):
    """What plugins did wrong. ``pod`` is ``namespace/name``; ``kind`` is ``failure`` (a command that failed),
    ``untruth`` (a result that is not so), ``leak`` (left behind after DEL), ``conduct`` or ``clash`` (two pods with one
    address)."""

    pod: str
    node: str
    kind: str
    text: str
    plugin: str = ""
    command: str = ""


class Finding(msgspec.Struct, frozen=True):
    """What a command of the whole chain came to, for one pod (CHECK) or node (STATUS, GC). Empty ``complaints``: well.
    ``skipped`` says why nothing was asked."""

    node: str
    pod: str = ""
    complaints: tuple[str, ...] = ()
    skipped: str = ""


@dataclass
class Held:
    """An attachment in force."""

    item: CniAttachment
    raw: dict[str, Any]
    result: Result
    devices: tuple[PluginDevice, ...]
    made: frozenset[Trace]
    untruths: tuple[str, ...] = ()
    conduct: list[Problem] = field(default_factory=list)


class AttachmentRecords:
    """The records, and the ``lock`` for changes that others must see whole."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}  # by the pod's namespace
        self.makers: defaultdict[str, dict[str, str]] = defaultdict(dict)  # plugin by namespace and device
        self.networks: dict[str, CniAttachment] = {}  # by node: one that tells its configuration
        self.spoken: set[tuple[str, tuple[str, ...]]] = set()  # versions that plugins were asked for
        self.past: deque[Problem] = deque(maxlen=REMEMBERED)
        self.logs: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=LOG_LINES))
        self.lock = threading.Lock()

    def forget(self, item: CniAttachment) -> None:
        """An attachment is over."""
        with self.lock:
            self.held.pop(item.ns, None)
            self.makers.pop(item.ns, None)


def problem_of(item: CniAttachment, kind: str, text: str, plugin: str = "", command: str = "") -> Problem:
    """A problem of one attachment."""
    return Problem(pod_of(item), name_of(item.node), kind, text, plugin, command)


def pod_of(item: CniAttachment) -> str:
    """``namespace/name`` of the pod."""
    return item.ns.partition("/")[2]


def name_of(ns: str) -> str:
    """The machine's name, of its namespace in the plan."""
    return ns.partition("/")[2]
