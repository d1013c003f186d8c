"""The desired state of a lab: Kubernetes objects with versions and a watch, in memory.

It behaves as the API server's storage does: every write gets the next resourceVersion, objects keep their uid
for life, and a watcher that asks from a version sees everything that came after it, in order. What an object
means is not decided here: the lab validates and reconciles before it commits.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

Object: TypeAlias = dict[str, Any]

HISTORY = 20_000  # events kept for watchers that resume; the API server keeps five minutes' worth


class Ref(NamedTuple):
    """What identifies an object; versions of one API group are views of the same object, so ``group`` has none."""

    group: str
    kind: str
    namespace: str
    name: str


class Event(NamedTuple):
    """One change, as a watch delivers it. ``before`` is the object as it was, None for a new one."""

    version: int
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    ref: Ref
    object: Object
    before: Object | None = None


class Expired(Exception):
    """The version that a watcher wants to resume from is older than the history (HTTP 410)."""


def ref_of(obj: Object) -> Ref:
    """The identity of ``obj``. Cluster-scoped objects have no namespace."""
    group, _, _ = obj.get("apiVersion", "v1").rpartition("/")
    metadata = obj["metadata"]
    return Ref(group, obj["kind"], metadata.get("namespace", ""), metadata["name"])


class Store:
    """The objects, by identity. Safe to use from many threads; what it hands out must not be changed."""

    def __init__(self) -> None:
        self._objects: dict[Ref, Object] = {}
        self._kinds: defaultdict[tuple[str, str], dict[Ref, None]] = defaultdict(dict)  # the same, by group and kind
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._version = 0
        self._changed = threading.Condition()

    @property
    def version(self) -> int:
        """The resourceVersion of the last write."""
        return self._version

    def get(self, ref: Ref) -> Object | None:
        """The object, or None."""
        return self._objects.get(ref)

    def select(self, group: str, kind: str, namespace: str = "") -> list[Object]:
        """All objects of a kind, of one namespace or of all, sorted by namespace and name."""
        return self.snapshot(group, kind, namespace)[1]

    def snapshot(self, group: str, kind: str, namespace: str = "") -> tuple[int, list[Object]]:
        """The version, and the objects as :meth:`select` returns them, of one and the same moment."""
        with self._changed:
            version = self._version
            found = [
                (ref, self._objects[ref])
                for ref in self._kinds.get((group, kind), ())
                if not namespace or ref.namespace == namespace
            ]
        return version, [obj for _, obj in sorted(found, key=lambda pair: pair[0])]

    def all(self) -> list[Object]:
        """Every object, in the order in which they were first written."""
        with self._changed:
            return list(self._objects.values())

    def commit(self, puts: Iterable[Object] = (), deletes: Iterable[Ref] = ()) -> list[Event]:
        """Write and delete as one step; returns what changed. A put that changes nothing is no event."""
        events: list[Event] = []
        with self._changed:
            for ref in deletes:
                gone = self._objects.pop(ref, None)
                if gone is not None:
                    del self._kinds[ref.group, ref.kind][ref]
                    events.append(self._record("DELETED", ref, _copied(gone), gone))
            for given in puts:
                ref = ref_of(given)
                known = self._objects.get(ref)
                obj = self._owned(_copied(given))
                if known is not None and _same(known, obj):
                    continue
                metadata = obj["metadata"]
                if known is None:
                    metadata["uid"] = str(uuid.uuid4())
                    metadata["creationTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    metadata["generation"] = 1
                else:
                    before = known["metadata"]
                    metadata["uid"] = before["uid"]
                    metadata["creationTimestamp"] = before["creationTimestamp"]
                    changed = known.get("spec") != obj.get("spec")
                    metadata["generation"] = before["generation"] + changed
                events.append(self._record("ADDED" if known is None else "MODIFIED", ref, obj, known))
                self._objects[ref] = obj
                self._kinds[ref.group, ref.kind][ref] = None
            if events:
                self._changed.notify_all()
        return events

    def _owned(self, obj: Object) -> Object:
        """``obj``, its references to owners that are here carrying the uid that they have here."""
        metadata = obj["metadata"]
        for owner in metadata.get("ownerReferences") or ():
            group = owner.get("apiVersion", "").rpartition("/")[0]
            held = self._objects.get(Ref(group, owner.get("kind", ""), metadata.get("namespace", ""), owner["name"]))
            if held is not None:
                owner["uid"] = held["metadata"]["uid"]
        return obj

    def _record(
        self, kind: Literal["ADDED", "MODIFIED", "DELETED"], ref: Ref, obj: Object, before: Object | None
    ) -> Event:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        event = Event(self._version, kind, ref, obj, before)
        self._history.append(event)
        return event

    def watch(self, since: int, deadline: float) -> Iterator[Event]:
        """Every event after version ``since`` until the monotonic time ``deadline``. Raises :class:`Expired`."""
        while True:
            with self._changed:
                if self._history and since + 1 < self._history[0].version:
                    raise Expired(f"too old resource version: {since} ({self._history[0].version - 1})")
                # Versions have no gaps: the last ones are the news.
                behind = self._version - since
                news = list(itertools.islice(self._history, max(0, len(self._history) - behind), None))
                if not news:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        return
                    self._changed.wait(remaining)
                    continue
            for event in news:
                since = event.version
                yield event


def _copied(obj: Object) -> Object:
    """A deep copy; with ten thousand Services to write, ``copy.deepcopy`` is what takes the time."""
    made: Object = msgspec.to_builtins(obj)
    return made


_SERVER_FIELDS = ("uid", "creationTimestamp", "generation", "resourceVersion", "managedFields")


def _same(known: Object, given: Object) -> bool:
    """Whether ``given`` says nothing new: equal but for what the store itself fills in."""
    mine = {key: value for key, value in known.items() if key != "metadata"}
    theirs = {key: value for key, value in given.items() if key != "metadata"}
    return mine == theirs and _own(known["metadata"]) == _own(given["metadata"])


def _own(metadata: Object) -> Object:
    return {key: value for key, value in metadata.items() if key not in _SERVER_FIELDS}
