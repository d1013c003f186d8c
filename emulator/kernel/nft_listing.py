"""A table in parts, as ``nft list table`` prints it, compared with the plan.

nft prints most lines as they were given, so what is printed alike needs no second look. The rest (``mark`` is ``meta
mark``, numbers change their base) goes into a throw-away namespace and is printed from there: then like is compared
with like. What rules put into sets by themselves (the clients of session affinity) is not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from emulator.plan.model import NftChain, NftPart, NftRules, NftSet

_QUOTED = re.compile(r'"[^"]*"')
_REFERENCE = re.compile(r"(?:@|jump |goto )([A-Za-z0-9_./-]+)")


@dataclass
class Listing:
    """Chains with their rules, sets with their elements; what a chain or set is comes first in its list."""

    chains: dict[str, list[str]] = field(default_factory=dict)
    sets: dict[str, tuple[list[str], set[str]]] = field(default_factory=dict)


def parse(text: str) -> Listing:
    """What nft printed of one table."""
    found = Listing()
    lines = iter(text.splitlines())
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[0] == "chain" and words[2] == "{":
            found.chains[words[1]] = [each.strip() for each in _block(lines)]
        elif len(words) == 3 and words[0] in ("set", "map") and words[2] == "{":
            found.sets[words[1]] = _set(words[0], lines)
    return found


def _block(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line == "\t}":
            return
        yield line


def _set(kind: str, lines: Iterator[str]) -> tuple[list[str], set[str]]:
    head, elements = [kind], ""
    for line in _block(lines):
        if elements or line.strip().startswith("elements = {"):
            elements += " " + line.strip()
        elif not line.strip().startswith("size "):  # the kernel's own bound on sets that rules fill
            head.append(line.strip())
    body = elements.partition("{")[2].rpartition("}")[0]
    return head, set() if "dynamic" in " ".join(head) else set(_elements(body))


def _elements(body: str) -> Iterator[str]:
    """The elements between commas; a comment may hold one."""
    if '"' in body:
        comments = _QUOTED.findall(body)
        for each in _QUOTED.sub("\0", body).split(","):
            if each.strip():
                yield " ".join(each.split()).replace("\0", comments.pop(0) if "\0" in each else "")
    else:
        yield from (" ".join(each.split()) for each in body.split(",") if each.strip())


def expected(item: NftRules) -> Listing:
    """What nft would print if it printed everything as given."""
    found = Listing()
    for part in (item.frame, *item.parts.values()):
        for declared in part.sets:
            found.sets[declared.name] = (_head(declared), set())
        for chain in part.chains:
            found.chains[chain.name] = _rules(chain)
    for chain in item.hooks:
        found.chains[chain.name] = _rules(chain)
    for part in (item.frame, *item.parts.values()):
        for element in part.elements:
            comment = f' comment "{element.comment}"' if element.comment else ""
            verdict = f" : {element.verdict}" if element.verdict else ""
            found.sets[element.of][1].add(f"{element.key}{comment}{verdict}")
    return found


def _head(item: NftSet) -> list[str]:
    lines = ["map" if item.verdicts else "set", f"type {item.type}{' : verdict' if item.verdicts else ''}"]
    if item.flags:
        lines.append(f"flags {','.join(item.flags)}")
    if item.timeout:
        lines.append(f"timeout {_duration(item.timeout)}")
    return lines + ([f'comment "{item.comment}"'] if item.comment else [])


def _duration(seconds: int) -> str:
    """``3h``, ``1d30s``, as nft prints it."""
    words = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        words += f"{count}{unit}" if count else ""
    return words


def _rules(item: NftChain) -> list[str]:
    lines = [f'comment "{item.comment}"'] if item.comment else []
    if item.hook:
        lines.append(f"{item.hook}; policy accept;")
    return [*lines, *item.rules]


def suspects(item: NftRules, there: Listing) -> NftRules | None:
    """As much of the table as is not printed as given; None if all of it is."""
    wanted = expected(item)

    def odd(part: NftPart) -> bool:
        return any(there.chains.get(chain.name) != wanted.chains[chain.name] for chain in part.chains) or any(
            there.sets.get(each.name, ([], set()))[0] != wanted.sets[each.name][0] for each in part.sets
        )

    parts = {subject: part for subject, part in item.parts.items() if odd(part)}
    if not parts and wanted == there:
        return None
    elements_differ = {
        name for name, (_, elements) in wanted.sets.items() if there.sets.get(name, ([], set()))[1] != elements
    }
    if elements_differ:  # an address in another spelling, say: the parts that the elements are of are looked at too
        parts |= {
            subject: part
            for subject, part in item.parts.items()
            if any(element.of in elements_differ for element in part.elements)
        }
    parts |= _referred(item, parts)
    # In the order that they were given in: parts refer to those before them
    return msgspec.structs.replace(item, parts={key: parts[key] for key in item.parts if key in parts})


def _referred(item: NftRules, parts: Mapping[str, NftPart]) -> dict[str, NftPart]:
    """What those parts refer to in others, empty: chains and sets."""
    text = "\n".join(
        line
        for part in parts.values()
        for line in (
            *(rule for chain in part.chains for rule in chain.rules),
            *(element.verdict for element in part.elements),
        )
    )
    words = set(_REFERENCE.findall(text))
    return {
        subject: NftPart(sets=part.sets, chains=tuple(NftChain(chain.name) for chain in part.chains))
        for subject, part in item.parts.items()
        if subject not in parts
        and not words.isdisjoint([*(chain.name for chain in part.chains), *(one.name for one in part.sets)])
    }


def differences(item: NftRules, there: Listing, printed: Listing | None) -> list[str]:
    """One line for each chain and set that differs. ``printed`` is what :func:`suspects` look like when freshly loaded,
    None if there are none."""
    wanted = expected(item)
    names = {chain.name: subject for subject, part in item.parts.items() for chain in part.chains}
    if printed is not None:
        # Chains without rules may stand for others that are as they were given
        wanted.chains.update((name, rules) for name, rules in printed.chains.items() if rules)
        for name, (head, elements) in printed.sets.items():
            given = wanted.sets[name][1]
            as_given = name in there.sets and there.sets[name][1] == given  # then not all its parts were loaded
            wanted.sets[name] = (head, given if as_given else elements)
    found = []
    for name, rules in wanted.chains.items():
        of = f" ({item.subject} {names[name]})" if names.get(name, name) != name else ""
        if name not in there.chains:
            found.append(f"chain {name}{of} is not there")
        elif there.chains[name] != rules:
            found += _lines(f"chain {name}{of}", rules, there.chains[name])
    found += [f"chain {name} is not planned" for name in there.chains.keys() - wanted.chains.keys()]
    for name, (head, elements) in wanted.sets.items():
        if name not in there.sets:
            found.append(f"set {name} is not there")
            continue
        head_there, elements_there = there.sets[name]
        if head != head_there:
            found.append(f"set {name} differs")
        found += [f"set {name}: element is not there: {each}" for each in sorted(elements - elements_there)]
        found += [f"set {name}: element is not planned: {each}" for each in sorted(elements_there - elements)]
    return found + [f"set {name} is not planned" for name in there.sets.keys() - wanted.sets.keys()]


def _lines(name: str, wanted: list[str], there: list[str]) -> list[str]:
    missing = [f"{name}: rule is not there: {rule}" for rule in wanted if rule not in there]
    missing += [f"{name}: rule is not planned: {rule}" for rule in there if rule not in wanted]
    return missing or [f"{name}: the rules are in another order"]
