"""A service proxy's iptables rules as transactions for ``iptables-restore``, and single rules read out of them.

kube-proxy writes filter and nat with one run of ``iptables-restore --noflush --counters``. A full sync names every
chain (naming flushes it) and the jumps; a partial one, as of 1.26, the chains that all Services share and those of
changed Services. Chains that nobody needs any more go in the same transaction.

Sources: kubernetes/kubernetes pkg/proxy/iptables/proxier.go, pkg/util/iptables/iptables.go.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from emulator.plan.iptables import rule_text
from emulator.plan.model import Chain, IptablesRules, Jump, ProxyRules, Rule

Hooks = Mapping[str, Sequence[str]]  # by table: lines that put jumps into the kernel's chains

OWN_PREFIXES = ("KUBE-SEP-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-")  # each jumps to earlier ones only
MARK_CHAIN = "KUBE-MARK-MASQ"
LONGEST_WAY = 8  # jumps from KUBE-SERVICES to an endpoint's chain; there are three

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_COMMENT = re.compile(r'--comment (?:"([^"]*)"|(\S+))')
_PORT_NAME = re.compile(r"[A-Za-z0-9.-]+/[A-Za-z0-9.-]+(?::[A-Za-z0-9.-]+)?")


def full_text(rules: ProxyRules, hooks: Hooks, old: ProxyRules | None = None) -> str:
    """Everything, whatever is there. ``hooks`` are the lines of :func:`hook_lines` for chains that lack their jumps;
    chains of ``old`` that are no more are deleted."""
    return "".join(
        _section(rules, table, list(chains), _gone(old, rules, table), hooks.get(table, ()))
        for table, chains in rules.tables.items()
    )


def ahead_texts(rules: ProxyRules, limit: int) -> Iterator[str]:
    """Services' own chains, in transactions of about ``limit`` rules, for a back end that cannot take all at once.

    Loaded before :func:`full_text` of the rest (:func:`without_own`). Nobody jumps to them yet; each comes after those
    that it jumps to.
    """
    for table, chains in rules.tables.items():
        own = [name for name in chains if own_chain(name)]
        if not own:
            continue
        yield _section(rules, table, [MARK_CHAIN], [], ())
        for prefix in OWN_PREFIXES:
            part: list[str] = []
            size = 0
            for name in own:
                if name.startswith(prefix):
                    part.append(name)
                    size += 1 + chains[name].count("\n")
                    if size >= limit:
                        yield _section(rules, table, part, [], ())
                        part, size = [], 0
            if part:
                yield _section(rules, table, part, [], ())


def without_own(rules: ProxyRules) -> ProxyRules:
    """The chains that all Services share."""
    tables = {
        table: {name: text for name, text in chains.items() if not own_chain(name)}
        for table, chains in rules.tables.items()
    }
    return msgspec.structs.replace(rules, tables=tables)


def only(rules: ProxyRules, tables: Collection[str]) -> ProxyRules:
    """What of the rules is in some of the tables."""
    return msgspec.structs.replace(
        rules, tables={table: chains for table, chains in rules.tables.items() if table in tables}
    )


def size(rules: ProxyRules) -> int:
    """How many rules and chains there are."""
    return sum(1 + text.count("\n") for chains in rules.tables.values() for text in chains.values())


def hook_lines(rules: ProxyRules, table: str, chain: str, place: int, present: Collection[str] = ()) -> list[str]:
    """Lines that put the jumps into one of the kernel's chains, the first at ``place`` (1 is the top). Those that are
    ``present``, as lines of iptables-save, move there."""
    jumps = [jump for jump in rules.jumps.get(table, ()) if jump.chain == chain]
    lines = [line for line in map(jump_line, jumps) if line in present]
    # Last to first, so that they stand in the order of the plan.
    return [f"-D{line[2:]}" for line in lines] + [
        f"-I {chain} {place} {rule_text(jump.rule)}" for jump in reversed(jumps)
    ]


def jump_line(jump: Jump) -> str:
    """A jump as iptables-save prints it: these have words in the kernel's own order."""
    return f"-A {jump.chain} {rule_text(jump.rule)}"


def partial_text(rules: ProxyRules, old: ProxyRules) -> str:
    """What turns ``old`` into ``rules``: all shared chains, as kube-proxy does it, and each Service's own that differ.
    Jumps must be the same."""
    text = ""
    for table, chains in rules.tables.items():
        before = old.tables.get(table, {})
        changed = [name for name, body in chains.items() if _shared(name) or before.get(name) != body]
        gone = _gone(old, rules, table)
        if changed or gone:
            text += _section(rules, table, changed, gone, ())
    return text


def remove_text(rules: ProxyRules) -> str:
    """The transaction that takes everything away again."""
    text = ""
    for table, chains in rules.tables.items():
        lines = [f"*{table}", *(f":{name} - [0:0]" for name in chains)]
        lines += [f"-D {jump.chain} {rule_text(jump.rule)}" for jump in rules.jumps.get(table, ())]
        lines += [f"-X {name}" for name in chains]
        text += "\n".join([*lines, "COMMIT", ""])
    return text


def remove_texts(rules: ProxyRules, limit: int) -> Iterator[str]:
    """As :func:`remove_text`, in transactions that delete about ``limit`` chains: first all rules of shared chains, so
    that nobody jumps to the others any more."""
    shared = without_own(rules)
    for table, chains in shared.tables.items():
        yield _section(shared, table, [], [], [f"-D{jump_line(jump)[2:]}" for jump in rules.jumps.get(table, ())])
        yield "\n".join([f"*{table}", *(f":{name} - [0:0]" for name in chains), "COMMIT", ""])
    for table, chains in rules.tables.items():
        for prefix in reversed(OWN_PREFIXES):
            own = [name for name in chains if name.startswith(prefix)]
            for start in range(0, len(own), limit):
                yield _section(rules, table, [], own[start : start + limit], ())
        yield _section(rules, table, [], list(shared.tables[table]), ())


def chain_rules(rules: ProxyRules, table: str, chain: str) -> tuple[Rule, ...]:
    """The rules of one chain, in words; none if there is no such chain."""
    start = len(f"-A {chain} ")
    lines = rules.tables.get(table, {}).get(chain, "").splitlines()
    return tuple(Rule(split_words(line[start:])) for line in lines)


def as_iptables(rules: ProxyRules, table: str) -> IptablesRules:
    """One table with an object for each rule. Not for large ones that are read often: it takes microseconds a rule."""
    chains = tuple(Chain(name, chain_rules(rules, table, name)) for name in rules.tables.get(table, {}))
    return IptablesRules(
        ns=rules.ns,
        family=rules.family,
        table=table,  # type: ignore[arg-type]
        owner=rules.owner,
        chains=chains,
        jumps=rules.jumps.get(table, ()),
        component=rules.component,
        why=rules.why,
    )


def service_of(rules: ProxyRules, line: str) -> str:
    """The Service port that a line is about (``ns1/svc1:p80``), empty if it is about none.

    A line without a comment, as a large cluster has them, is followed back: somebody jumps to its chain.
    """
    known: set[str] = set()
    for _ in range(LONGEST_WAY):
        if found := _named(line):
            return found
        chain = line.split(" ", 2)[1] if line.startswith(("-A ", "-X ")) else line[1:].split(" ")[0]
        if not own_chain(chain) or chain in known:
            return ""
        known.add(chain)
        line = next((each for each in _lines(rules) if each.endswith(f"-j {chain}")), "")
    return ""


def _named(line: str) -> str:
    comment = _COMMENT.search(line)
    words = (comment[1] or comment[2] or "") if comment else ""
    return next((word for word in words.split() if _PORT_NAME.fullmatch(word)), "")


def _lines(rules: ProxyRules) -> Iterator[str]:
    for chains in rules.tables.values():
        for text in chains.values():
            yield from text.splitlines()


def own_chain(name: str) -> bool:
    """Whether the chain is one Service's."""
    return name.startswith(OWN_PREFIXES)


def _shared(name: str) -> bool:
    """Whether kube-proxy writes the chain at each sync."""
    return not own_chain(name) and not name.endswith("-CANARY")


def _gone(old: ProxyRules | None, rules: ProxyRules, table: str) -> list[str]:
    now = rules.tables[table]
    return [name for name in old.tables.get(table, {}) if name not in now] if old is not None else []


def _section(rules: ProxyRules, table: str, chains: list[str], gone: list[str], hooks: Sequence[str]) -> str:
    """One table's part: chains named first, as rules may jump to any; deleted ones last, when nobody jumps there."""
    bodies = rules.tables[table]
    parts = [f"*{table}\n"]
    # iptables-nft keeps new chains sorted in a list, and looks for the place from its head: upside down saves it that.
    parts += [f":{name} - [0:0]\n" for name in sorted([*chains, *gone], reverse=True)]
    parts += [bodies[name] for name in chains]
    parts += [f"{line}\n" for line in hooks]
    parts += [f"-X {name}\n" for name in gone]
    parts.append("COMMIT\n")
    return "".join(parts)


def split_words(text: str) -> tuple[str, ...]:
    """A rule's text as iptables-restore splits it."""
    return tuple(match[2] if match[1] is None else re.sub(r"\\(.)", r"\1", match[1]) for match in _WORD.finditer(text))
