"""A lab of one style whose content changes from state to state, and verdicts of packets in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from emulator import Lab
from emulator.kernel import neighbour_table
from emulator.lab.matrix import QUICK
from emulator.lab.verdicts import Ask, Cell, Matrix, MatrixWish
from tests.policy.worlds import Object

Ref = tuple[str, str, str]
FULL = 3  # how often questions may meet a machine whose table of neighbours is full, which says nothing about policies


@dataclass
class Figures:
    """What a run came to. ``late``: flows let in, whose first packet had no answer on a slow machine. ``patient``:
    matrices that had to wait for a second. ``void``: those asked again, as the machine had no room for neighbours."""

    worlds: int = 0
    states: int = 0
    probes: int = 0
    allowed: int = 0
    patient: int = 0
    late: int = 0
    void: int = 0
    wrong: int = 0


@dataclass(frozen=True)
class Site:
    """One style's lab, and what is in it."""

    lab: Lab
    style: str
    objects: dict[Ref, Object] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)

    def become(self, objects: Iterable[Object]) -> None:
        """Change what differs: a pod that is no longer what it was by a new one, everything else in its place.
        Namespaces stay."""
        wanted = {ref(one): one for one in objects}
        gone = self._gone(wanted)
        if gone:
            self.lab.delete_manifests(*gone.values(), grace_period=0)
            for key in gone:
                del self.objects[key]
        late = {key: one for key, one in wanted.items() if self.objects.get(key) != one}
        if late:
            self.lab.apply(*late.values())
            self.objects.update(late)

    def steps(self, objects: Iterable[Object]) -> Iterator[list[Object]]:
        """What there will be, one state after the other, if this becomes ``objects``."""
        wanted = {ref(one): one for one in objects}
        gone = self._gone(wanted)
        left = {key: one for key, one in self.objects.items() if key not in gone}
        if gone:
            yield list(left.values())
        yield list((left | wanted).values())

    def _gone(self, wanted: Mapping[Ref, Object]) -> dict[Ref, Object]:
        gone = {}
        for key, old in self.objects.items():
            new = wanted.get(key)
            moved = key[0] == "Pod" and new is not None and new["spec"] != old["spec"]
            if (new is None and key[0] != "Namespace") or moved:
                gone[key] = old
        return gone

    def faults(self, asks: Sequence[Ask], let_in: Sequence[bool]) -> list[tuple[int, Cell]]:
        """Those of the questions, by their numbers, whose verdict is not the one expected."""
        for _ in range(FULL):
            refused = neighbour_table.refusals()
            taken = self.lab.matrix(MatrixWish(asks=tuple(asks)))
            found = list(self._wrong(taken, let_in))
            if not found or neighbour_table.refusals() == refused:
                break
            self.figures.void += 1
        else:
            pytest.fail(neighbour_table.hint())
        self.figures.states += 1
        self.figures.probes += len(asks)
        self.figures.allowed += sum(cell.allowed for cell in taken.cells)
        self.figures.patient += len(taken.rounds) > 1
        self.figures.wrong += len(found)
        return found

    def _wrong(self, taken: Matrix, let_in: Sequence[bool]) -> Iterator[tuple[int, Cell]]:
        first = taken.rounds[0]
        quick = first.slowest <= first.window / QUICK
        for number, (cell, expected) in enumerate(zip(taken.cells, let_in, strict=True)):
            lost = cell.allowed and cell.first == "dropped"
            self.figures.late += lost and not quick
            # What has no way there was not denied either
            right = cell.allowed if expected else cell.verdict in ("dropped", "refused")
            if not right or (lost and quick):
                yield number, cell


def ref(one: Object) -> Ref:
    """Kind, namespace, name."""
    return one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]
