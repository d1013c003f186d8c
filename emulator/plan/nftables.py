"""A structured nftables table as text for ``nft -f -``: transactions that cost what changed, not what is there.

The kernel takes a transaction whole or not at all, so within one no packet meets a half state. One large transaction
costs it the square of its size, though; so parts are dealt out to several, each whole in itself:

    first load    [frame, 500 parts] [500 parts] ... [the rest, hooks]     no packet comes by before the hooks
    a change      [what changed of 500 parts] ...                          a part changes at once
    removal       [delete table]

Within a transaction references decide the order: elements that point to a chain go before it, chains come before the
elements and rules that point to them. A part may refer to the frame and to parts that stand before it. A chain whose
rules changed is flushed and filled again, so sets that rules fill (session affinity) keep what they have learnt.

What is put into the text was checked before; it is checked once more here, as a line break or a semicolon would begin
another command. The syntax is nft(8)'s; the quadratic cost was measured on Linux 6.18.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from emulator.errors import CnilabError
from emulator.plan.model import NftChain, NftElement, NftPart, NftRules, NftSet

PARTS_AT_ONCE = 500  # parts of a transaction
LONGEST_NAME = 255  # bytes: NFT_NAME_MAXLEN in linux/netfilter/nf_tables.h, less the closing NUL
LONGEST_COMMENT = 128  # bytes: NFTNL_UDATA_COMMENT_MAXLEN in libnftnl
NO_PART = NftPart()

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_COMMENT = re.compile(r"[ !#-\[\]-~]*")  # printable ASCII without quotes and backslashes
_CODE = re.compile(r"[A-Za-z0-9 \n_./:,@!={}<>&|^\[\]-]*")  # no semicolon, hash, dollar, backslash
# What may stand beside: strings, such as comments, and the asterisk that ends a device's name (cali*)
_STRING = re.compile(r"\"[A-Za-z0-9 _./:;,@%+=!*-]*\"")
_REST_OF_NAME = re.compile(r"(?<=[a-z0-9])\*(?=[ \n]|\Z)")


class Transaction(msgspec.Struct, frozen=True):
    """Lines for one run of nft; ``owners`` says for each line whose part it is of (empty: the table's own).

    ``sweep`` takes away the chains that nothing refers to any more; kernels before 6.2 refuse that in the transaction
    that takes the last reference away. ``parts`` are the subjects that are as planned from here on. ``intervals``:
    sets of intervals are among what changes, whose elements are more to the kernel than their lines say.
    """

    lines: tuple[str, ...]
    owners: tuple[str, ...]
    sweep: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    intervals: bool = False

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join((*self.lines, *self.sweep)) + "\n"


def transactions(old: NftRules | None, new: NftRules | None, at_once: int = PARTS_AT_ONCE) -> Iterator[Transaction]:
    """What turns ``old`` (None: whatever is there is thrown away) into ``new`` (None: nothing).

    Raises CnilabError for text that nft could misread.
    """
    if new is None:
        if old is not None:
            yield _removal(old)
        return
    if old is not None and _incompatible(old, new):
        old = None
    table = f"{new.family} {_name(new.name)}"
    before = old.parts if old is not None else {}
    changed = _changed(before, new.parts)
    batches = _batches(changed, before, new.parts, at_once)
    for number, subjects in enumerate(batches):
        writer = _Writer(table)
        first, last = number == 0, number == len(batches) - 1
        pairs = [(subject, before.get(subject, NO_PART), new.parts.get(subject, NO_PART)) for subject in subjects]
        if first:
            if old is None:
                writer.start(new)
            pairs.insert(0, ("", old.frame if old is not None else NO_PART, new.frame))
        writer.change(pairs)
        if last:
            writer.hooks(old.hooks if old is not None else (), new.hooks)
        found = writer.transaction(subjects)
        sets = (one for _, *both in pairs for part in both for one in part.sets)
        yield msgspec.structs.replace(found, intervals=any("interval" in one.flags for one in sets))


def interrupted(old: NftRules, new: NftRules, done: Iterable[str]) -> NftRules:
    """What is in force when the transactions from ``old`` to ``new`` ended early, the parts ``done`` included."""
    parts = dict(old.parts)
    for subject in done:
        if subject in new.parts:
            parts[subject] = new.parts[subject]
        else:
            parts.pop(subject, None)
    return msgspec.structs.replace(new, parts=parts, hooks=old.hooks)


def readable(rules: NftRules) -> Iterator[str]:
    """The table for people, a line each, part by part."""
    for subject, part in (("", rules.frame), *rules.parts.items()):
        if subject:
            yield f"# {subject}"
        yield from (f"{_kind(item)} {item.name} {{ type {item.type} }}" for item in part.sets)
        for chain in part.chains:
            yield f"chain {chain.name}"
            yield from (f"  {rule}" for rule in chain.rules)
        for item in part.elements:
            yield f"{item.of}: {item.key}" + (f" : {item.verdict}" if item.verdict else "")
    for chain in rules.hooks:
        yield f"chain {chain.name} {{ {chain.hook} }}"
        yield from (f"  {rule}" for rule in chain.rules)


def _removal(old: NftRules) -> Transaction:
    table = f"{old.family} {_name(old.name)}"
    # Declared first: deleting a table that is not there would be an error.
    return Transaction((f"add table {table}", f"delete table {table}"), ("", ""))


def _incompatible(old: NftRules, new: NftRules) -> bool:
    """Whether the table must be made anew: a set that parts have elements in is of another kind, or there is another
    comment, which cannot be changed."""
    kinds = {item.name: item for item in old.frame.sets}
    return old.comment != new.comment or any(kinds.get(item.name, item) != item for item in new.frame.sets)


def _changed(before: Mapping[str, NftPart], after: Mapping[str, NftPart]) -> list[str]:
    """The subjects whose parts differ; those that go come last, the last one first: parts refer to those before."""
    found = []
    for subject, part in after.items():
        was = before.get(subject)
        if was is not part and was != part:
            found.append(subject)
    found += [subject for subject in reversed(list(before)) if subject not in after]
    return found


def _batches(
    changed: Sequence[str], before: Mapping[str, NftPart], after: Mapping[str, NftPart], at_once: int
) -> list[list[str]]:
    """The changed parts in groups; an element that moves from one part to another keeps the two together."""
    if len(changed) <= at_once:
        return [list(changed)]
    owners = {(item.of, item.key): subject for subject in changed for item in before.get(subject, NO_PART).elements}
    follow: defaultdict[str, list[str]] = defaultdict(list)
    for subject in changed:
        for item in after.get(subject, NO_PART).elements:
            owner = owners.get((item.of, item.key), subject)
            if owner != subject:
                follow[owner].append(subject)
                follow[subject].append(owner)
    batches: list[list[str]] = [[]]
    placed: set[str] = set()
    for subject in changed:
        if subject in placed:
            continue
        if len(batches[-1]) >= at_once:
            batches.append([])
        waiting = [subject]
        while waiting:
            name = waiting.pop()
            if name not in placed:
                placed.add(name)
                batches[-1].append(name)
                waiting += follow.get(name, ())
    return batches


class _Writer:
    """The lines of one transaction, gathered by stage: each stage may refer to what those before it made."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._heads: list[tuple[str, str]] = []  # declarations, whose names are checked one by one
        self._before: list[tuple[str, str]] = []  # elements and rules that go
        self._rules: list[tuple[str, str]] = []
        self._elements: list[tuple[str, str]] = []
        self._tail: list[tuple[str, str]] = []
        self._start: list[tuple[str, str]] = []
        self._sweep: list[str] = []

    def start(self, new: NftRules) -> None:
        """An empty table of the name, whatever was there."""
        declared = f"add table {self._table}"
        comment = f' {{ comment "{_comment(new.comment)}" ; }}' if new.comment else ""
        self._start += [(declared, ""), (f"delete table {self._table}", ""), (declared + comment, "")]

    def change(self, pairs: Sequence[tuple[str, NftPart, NftPart]]) -> None:
        """Turn parts into others."""
        self._change_elements(pairs)
        for subject, old, new in pairs:
            self._change_chains(subject, old, new)

    def _change_elements(self, pairs: Sequence[tuple[str, NftPart, NftPart]]) -> None:
        there = {(item.of, item.key): (subject, item) for subject, old, _ in pairs for item in old.elements}
        table = self._table
        for subject, _, new in pairs:
            for item in new.elements:
                was = there.pop((item.of, item.key), None)
                if was is not None and (was[1] is item or was[1] == item):
                    continue
                if was is not None:
                    self._before.append((_element("delete", table, was[1]), subject))
                self._elements.append((_element("add", table, item), subject))
        self._before += [(_element("delete", table, item), subject) for subject, item in there.values()]

    def _change_chains(self, subject: str, old: NftPart, new: NftPart) -> None:
        table = self._table
        sets_before = {item.name: item for item in old.sets}
        other_sets = False
        for declared in new.sets:
            was = sets_before.pop(declared.name, None)
            if was == declared:
                continue
            if was is not None:
                other_sets = True
                self._heads.append((f"delete {_kind(was)} {table} {_name(was.name)}", subject))
            self._heads.append((_declaration(table, declared), subject))
        for stale in sets_before.values():
            self._heads.append((f"delete {_kind(stale)} {table} {_name(stale.name)}", subject))

        chains_before = {item.name: item for item in old.chains}
        for chain in new.chains:
            had = chains_before.pop(chain.name, None)
            if had == chain and not other_sets:
                continue
            if had is None:
                self._heads.append((_chain(table, chain), subject))
            else:
                self._before.append((f"flush chain {table} {_name(chain.name)}", subject))
            self._rules += [(f"add rule {table} {chain.name} {rule}", subject) for rule in chain.rules]
        for name in chains_before:
            self._before.append((f"flush chain {table} {_name(name)}", subject))
            self._sweep.append(f"delete chain {table} {name}")

    def hooks(self, old: Sequence[NftChain], new: Sequence[NftChain]) -> None:
        """Base chains; a changed one is made anew, as nothing refers to it and its place cannot be changed."""
        before = {item.name: item for item in old}
        for chain in new:
            was = before.pop(chain.name, None)
            if was == chain:
                continue
            if was is not None:
                self._unhook(was)
            self._tail.append((_chain(self._table, chain), ""))
            self._tail += [(f"add rule {self._table} {chain.name} {rule}", "") for rule in chain.rules]
        for was in before.values():
            self._unhook(was)

    def _unhook(self, chain: NftChain) -> None:
        name = _name(chain.name)
        self._tail += [(f"{verb} chain {self._table} {name}", "") for verb in ("flush", "delete")]

    def transaction(self, parts: Sequence[str]) -> Transaction:
        """All of it. Raises CnilabError if a line could be misread."""
        for stage in (self._before, self._rules, self._elements):
            _check_code(stage)
        _check_code([line for line in self._tail if not line[0].startswith("add chain ")])
        lines = (*self._start, *self._before, *self._heads, *self._rules, *self._elements, *self._tail)
        return Transaction(
            tuple(line for line, _ in lines), tuple(owner for _, owner in lines), tuple(self._sweep), tuple(parts)
        )


def _kind(item: NftSet) -> str:
    return "map" if item.verdicts else "set"


def _declaration(table: str, item: NftSet) -> str:
    words = [f"type {item.type}{' : verdict' if item.verdicts else ''}"]
    if item.flags:
        words.append(f"flags {','.join(item.flags)}")
    if item.timeout:
        words.append(f"timeout {item.timeout}s")
    _check_code([(" ".join(words), item.name)])
    if item.comment:
        words.append(f'comment "{_comment(item.comment)}"')
    return f"add {_kind(item)} {table} {_name(item.name)} {{ {' ; '.join(words)} ; }}"


def _chain(table: str, item: NftChain) -> str:
    words = []
    if item.hook:
        _check_code([(item.hook, item.name)])
        words.append(item.hook)
    if item.comment:
        words.append(f'comment "{_comment(item.comment)}"')
    body = f" {{ {' ; '.join(words)} ; }}" if words else ""
    return f"add chain {table} {_name(item.name)}{body}"


def _element(verb: str, table: str, item: NftElement) -> str:
    if verb == "delete":
        return f"delete element {table} {item.of} {{ {item.key} }}"
    comment = f' comment "{_comment(item.comment)}"' if item.comment else ""
    verdict = f" : {item.verdict}" if item.verdict else ""
    return f"add element {table} {item.of} {{ {item.key}{comment}{verdict} }}"


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or len(text) > LONGEST_NAME:
        raise CnilabError(f"{text!r} is no name for a chain, set or table of nftables")
    return text


def _comment(text: str) -> str:
    if not _COMMENT.fullmatch(text) or len(text) > LONGEST_COMMENT:
        raise CnilabError(f"{text!r} is no comment for nftables")
    return text


def _check_code(lines: Sequence[tuple[str, str]]) -> None:
    """Check all lines at once, and look for the culprit only if there is one."""
    text = "\n".join([line for line, _ in lines])
    if _readable_as_given(text) and text.count("\n") == max(0, len(lines) - 1):
        return
    for line, owner in lines:
        if not _readable_as_given(line) or "\n" in line:
            raise CnilabError(f"a rule for {owner or 'the table'} that nft could misread: {line!r}")


def _readable_as_given(text: str) -> bool:
    if '"' in text:
        text = _STRING.sub(" ", text)
    if "*" in text:
        text = _REST_OF_NAME.sub("", text)
    return _CODE.fullmatch(text) is not None
