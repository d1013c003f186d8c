"""Short cuts through long sequences find what looking at every object finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.cluster.changes import changed_items, difference, places, trimmed


class Thing:
    """Equal to all others, so that nothing but identity can tell them apart."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing)

    def __hash__(self) -> int:
        return 0


THINGS = [Thing() for _ in range(12)]
some = st.lists(st.integers(0, 11), unique=True, max_size=12).map(lambda numbers: [THINGS[each] for each in numbers])


def ids(things: list[Thing]) -> list[int]:
    return [id(thing) for thing in things]


@given(some, some)
def test_difference_is_what_only_one_of_them_has(old: list[Thing], new: list[Thing]) -> None:
    gone, fresh = difference(old, new)
    assert ids(gone) == [each for each in ids(old) if each not in ids(new)]
    assert ids(fresh) == [each for each in ids(new) if each not in ids(old)]


@given(some, some, some, some)
def test_trimmed_leaves_out_nothing_but_what_both_begin_and_end_with(
    start: list[Thing], end: list[Thing], old: list[Thing], new: list[Thing]
) -> None:
    before, after = trimmed([*start, *old, *end], [*start, *new, *end])
    assert len(before) <= len(old)
    assert len(after) <= len(new)
    assert len(before) - len(after) == len(old) - len(new)
    if before and after:
        assert before[0] is not after[0]
        assert before[-1] is not after[-1]


def test_places_are_those_of_other_objects_though_equal() -> None:
    a, b, c = THINGS[:3]
    assert places([a, b, c], [a, c, c, a]) == [1]


items = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=8).map(
    lambda pairs: {key: THINGS[value] for key, value in pairs}
)


@given(items, items, st.booleans())
def test_changed_items_have_another_object_than_before(
    old: dict[int, Thing], new: dict[int, Thing], updated: bool
) -> None:
    new = {**old, **new} if updated else new
    found = changed_items(old, new)
    assert list(found) == [key for key in new if old.get(key) is not new[key]]
    assert all(found[key] is new[key] for key in found)
