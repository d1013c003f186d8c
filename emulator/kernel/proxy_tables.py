"""A service proxy's iptables rules in the kernel: loaded, taken away, watched and put back.

One ``iptables-restore`` carries filter and nat, as kube-proxy's does, and each table is one commit. If a later table is
refused, those before it are put back as they were: the earlier rules stay in force. The error names the Service.

Everything here happens in the namespace that this thread is in.

Sources: kubernetes/kubernetes pkg/proxy/iptables/proxier.go, pkg/util/iptables/iptables.go (Monitor).
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emulator.errors import ApplyError, CnilabError, Unsupported
from emulator.kernel.rule_tools import load_rules, run_tool
from emulator.kernel.syscalls import CLONE_NEWNET, unshare
from emulator.plan import proxy_rules
from emulator.plan.describe import describe
from emulator.plan.model import IptablesRules, ProxyRules

TIMEOUT = 300.0  # seconds: 10,000 Services take iptables-nft some ten
LOCK_WAIT = "5"  # seconds, for the legacy back end's /run/xtables.lock
AT_ONCE = 20_000  # rules of one transaction of iptables-nft: more do not fit into a netlink message of a rootless lab

_LINE = re.compile(r"line:? (\d+)")


@dataclass(frozen=True)
class Tools:
    """The programs of a back end (``nf_tables``, ``legacy``) for a family."""

    backend: str
    family: int

    @property
    def _flavour(self) -> str:
        return f"ip{'6' if self.family == 6 else ''}tables-{'legacy' if self.backend == 'legacy' else 'nft'}"

    @property
    def _wait(self) -> tuple[str, ...]:
        return ("-w", LOCK_WAIT) if self.backend == "legacy" else ()

    @property
    def restore(self) -> tuple[str, ...]:
        """How kube-proxy loads rules."""
        return (f"{self._flavour}-restore", "--noflush", "--counters", *self._wait)

    @property
    def probe(self) -> tuple[str, ...]:
        """As ``restore``, for a scratch namespace: whatever is there goes."""
        return (f"{self._flavour}-restore", *self._wait)

    def show(self, table: str, chain: str) -> tuple[str, ...]:
        """Print one chain."""
        return (self._flavour, *self._wait, "-t", table, "-S", chain)


def load(backend: str, ns: str, new: ProxyRules, old: ProxyRules | None, beside: Iterable[IptablesRules]) -> None:
    """Put ``new`` in place of ``old`` (None: nothing of it is there). ``beside`` are the rules of others in the
    namespace: jumps that they put first stay first. Raises ApplyError with ``old`` in force."""
    tools = Tools(backend, new.family)
    if old is not None and old.jumps == new.jumps and old.tables.keys() == new.tables.keys():
        try:
            load_rules(tools.restore, proxy_rules.partial_text(new, old), TIMEOUT)
        except (OSError, subprocess.SubprocessError):
            pass  # perhaps somebody meddled with the rest: kube-proxy makes a full sync of the next attempt, too
        else:
            return
    hooks = _hooks(tools, new, beside, look=old is not None)
    texts = _whole(tools, new, hooks, old)
    _feed(tools, ns, new, old, texts)


def remove(backend: str, ns: str, rules: ProxyRules) -> None:
    """Take everything away. Raises ApplyError."""
    tools = Tools(backend, rules.family)
    try:
        _take_away(tools, rules)
    except (OSError, subprocess.SubprocessError) as error:
        raise ApplyError(f"failed to remove {describe(rules)} in {ns}: {_complaint(error)}") from error


def _take_away(tools: Tools, rules: ProxyRules) -> None:
    there = _with_jumps_that_are_there(rules, _hooks(tools, rules, (), look=True))
    if tools.backend == "legacy" or proxy_rules.size(rules) <= AT_ONCE:
        load_rules(tools.restore, proxy_rules.remove_text(there), TIMEOUT)
        return
    for text in proxy_rules.remove_texts(there, AT_ONCE):
        load_rules(tools.restore, text, TIMEOUT)


def flushed(backend: str, rules: ProxyRules) -> list[str]:
    """The tables whose canary is gone: somebody took the rules away, by intent or with a restarted firewall.

    As upstream's, a canary is a chain: ``iptables -F`` alone leaves it, ``iptables -F; iptables -X`` does not.
    """
    tools = Tools(backend, rules.family)
    return [
        table
        for table, chains in rules.tables.items()
        for chain in chains
        if chain.endswith("-CANARY") and _shown(tools, table, chain) is None
    ]


def repair(backend: str, ns: str, rules: ProxyRules, beside: Iterable[IptablesRules]) -> None:
    """A full sync: every chain anew, and jumps where they are missing. Raises ApplyError."""
    tools = Tools(backend, rules.family)
    hooks = _hooks(tools, rules, beside, look=True)
    _feed(tools, ns, rules, rules, _whole(tools, rules, hooks, None))


def _whole(tools: Tools, new: ProxyRules, hooks: Mapping[str, list[str]], old: ProxyRules | None) -> list[str]:
    if tools.backend == "legacy" or proxy_rules.size(new) <= AT_ONCE:
        return [proxy_rules.full_text(new, hooks, old)]
    rest = proxy_rules.full_text(proxy_rules.without_own(new), hooks, old and proxy_rules.without_own(old))
    return [*proxy_rules.ahead_texts(new, AT_ONCE), rest]


def _hooks(tools: Tools, rules: ProxyRules, beside: Iterable[IptablesRules], *, look: bool) -> dict[str, list[str]]:
    """The lines that put the jumps into the kernel's chains, below what others put first. ``look`` at what is there:
    jumps that stand already stay where they are."""
    first: Counter[tuple[str, str]] = Counter()
    for each in beside:
        if each.family == rules.family:
            first.update((each.table, jump.chain) for jump in each.jumps if jump.position == "insert")
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for table, jumps in rules.jumps.items():
        if table not in rules.tables:
            continue
        for chain in dict.fromkeys(jump.chain for jump in jumps):
            above, present = first[table, chain], set[str]()
            if look or above:
                there = [line for line in _shown(tools, table, chain) or [] if line.startswith("-A ")]
                wanted = {proxy_rules.jump_line(jump) for jump in jumps if jump.chain == chain}
                present = wanted.intersection(there)
                if present == wanted:
                    continue
                above = min(above, len(there) - len(present))
            lines[table] += proxy_rules.hook_lines(rules, table, chain, above + 1, present)
    return lines


def _shown(tools: Tools, table: str, chain: str) -> list[str] | None:
    """The lines of a chain; None if there is none of that name."""
    try:
        return run_tool(tools.show(table, chain), "", TIMEOUT).splitlines()
    except subprocess.CalledProcessError:
        return None


def _feed(tools: Tools, ns: str, new: ProxyRules, old: ProxyRules | None, texts: list[str]) -> None:
    for place, text in enumerate(texts):
        try:
            load_rules(tools.restore, text, TIMEOUT)
        except FileNotFoundError as error:
            program = tools.restore[0]
            raise Unsupported(
                f"{program} is not installed", hint="`cnilab doctor` names the package", features=(program,)
            ) from error
        except (OSError, subprocess.SubprocessError) as error:
            complaint = _complaint(error)
            lines = text.splitlines()
            number = _line_number(complaint, len(lines))
            done = _committed(lines[:number]) if place == 0 and number else list(new.tables)
            failure = _undo(tools, new, old, done)
            raise _blame(tools, ns, new, lines, number, complaint, failure) from error


def _complaint(error: BaseException) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it did not end within {TIMEOUT:g} s"
    return " ".join(str(getattr(error, "stderr", "") or error).split())


def _line_number(complaint: str, count: int) -> int:
    """The line that the tool complains about, from 1; 0 if it names none."""
    match = _LINE.search(complaint)
    return int(match[1]) if match and int(match[1]) <= count else 0


def _committed(lines: list[str]) -> list[str]:
    """The tables that were committed before the last of these lines, which failed."""
    names = [line[1:] for line in lines if line.startswith("*")]
    return names[: sum(line == "COMMIT" for line in lines[:-1])]


def _undo(tools: Tools, new: ProxyRules, old: ProxyRules | None, tables: list[str]) -> str:
    """Put tables back that were committed before a later one failed; why that failed too, or empty."""
    if not tables:
        return ""
    half = proxy_rules.only(new, tables)
    try:
        if old is None:
            _take_away(tools, half)
        else:
            load_rules(tools.restore, proxy_rules.full_text(proxy_rules.only(old, tables), {}, half), TIMEOUT)
    except (OSError, subprocess.SubprocessError, CnilabError) as error:
        return _complaint(error)
    return ""


def _with_jumps_that_are_there(rules: ProxyRules, missing: Mapping[str, list[str]]) -> ProxyRules:
    """Without the jumps of chains that lack them: a ``-D`` of those would be refused."""
    lacking = {(table, line.split(" ")[1]) for table, lines in missing.items() for line in lines}
    jumps = {
        table: tuple(jump for jump in each if (table, jump.chain) not in lacking) for table, each in rules.jumps.items()
    }
    return ProxyRules(ns=rules.ns, family=rules.family, owner=rules.owner, tables=rules.tables, jumps=jumps)


def _blame(
    tools: Tools, ns: str, rules: ProxyRules, lines: list[str], number: int, complaint: str, failure: str
) -> ApplyError:
    """The error for the Service whose rule was refused."""
    line = lines[number - 1] if number else ""
    if not line or line == "COMMIT":
        line = _offender(tools, rules, lines, number)
    service = proxy_rules.service_of(rules, line) if line else ""
    subject = f"Service {service}" if service else describe(rules)
    what = f"the rules of Service {service}" if service else describe(rules)
    words = f"failed to load {what} in {ns}: {tools.restore[0]}: {complaint}" + (f": {line.strip()}" if line else "")
    if failure:
        words += f"; and the rules before could not be put back: {failure}"
    return ApplyError(words, subject=subject)


def _offender(tools: Tools, planned: ProxyRules, lines: list[str], number: int) -> str:
    """The rule that the kernel refuses, where the tool only says that the table was: found by halving, in a scratch
    network namespace. Empty if all of them load there. This thread does not come back."""
    end = number or len(lines)
    start = max((place for place, line in enumerate(lines[:end]) if line.startswith("*")), default=0)
    table = lines[start][1:]
    # A partial sync does not name the chains that stay, and jumps to them.
    head = [f"*{table}", *(f":{name} - [0:0]" for name in planned.tables.get(table, {}))]
    rules = [line for line in lines[start:end] if line.startswith("-A ")]
    unshare(CLONE_NEWNET)

    def loads(count: int) -> bool:
        try:
            run_tool(tools.probe, "\n".join([*head, *rules[:count], "COMMIT", ""]), TIMEOUT)
        except (OSError, subprocess.SubprocessError):
            return False
        return True

    if not loads(0) or loads(len(rules)):
        return ""
    good, bad = 0, len(rules)
    while bad - good > 1:
        middle = (good + bad) // 2
        if loads(middle):
            good = middle
        else:
            bad = middle
    return rules[bad - 1]
