"""iptables, nftables and ipset rules of the kernel, compared with the plan's.

The tools do not print a rule as it was given: options change their names, numbers their base. So the plan's rules are
loaded into a throw-away network namespace by the very same tools, and both are printed and compared. The kernel's own
chains hold jumps of several owners, in the order of their coming: there only the set counts.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from emulator.kernel import nft_listing
from emulator.kernel.namespaces import in_parallel
from emulator.kernel.nft_rules import listing
from emulator.kernel.rule_feeding import Ruleset
from emulator.kernel.rule_tools import PATH
from emulator.kernel.rulesets import Rulesets
from emulator.kernel.syscalls import CLONE_NEWNET, unshare
from emulator.plan.model import IptablesRules, IpvsServers, NftRules, ProxyRules

OURS = "cnilab_"  # tables of the hook meter and of lossy links: measuring, not planned
# What iptables-nft keeps in nftables; compared as iptables rules.
IPTABLES_TABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})
TOOL_TIMEOUT = 60.0  # seconds

_COUNTERS = re.compile(r"\[\d+:\d+\]")


@dataclass
class Loaded:
    """Everything that is loaded: chains by (family, table, chain), nft tables by name, ipsets by name."""

    chains: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    builtin: set[tuple[str, str, str]] = field(default_factory=set)
    tables: dict[str, str] = field(default_factory=dict)
    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)


def differences(planned: Mapping[str, Sequence[Ruleset]], rulesets: Rulesets) -> list[str]:
    """One line for each chain, table or set that differs, by namespace."""

    def visit(ns: str) -> Callable[[], list[str]]:
        def body() -> list[str]:
            rulesets.enter(ns)
            in_parts = [item for item in planned[ns] if isinstance(item, NftRules)]
            others = [item for item in planned[ns] if not isinstance(item, (NftRules, IpvsServers))]
            lines = [line for item in planned[ns] if isinstance(item, IpvsServers) for line in _servers(item)]
            skipped = {f"{item.family} {item.name}" for item in in_parts}
            there = read_loaded(rulesets.backend, skipped)
            tables = [(item, nft_listing.parse(listing(item))) for item in in_parts]
            unshare(CLONE_NEWNET)  # this thread ends with the function, and the namespace with it
            rulesets.load_here(others)
            lines += _compare(read_loaded(rulesets.backend), there, others)
            for item, printed in tables:
                lines += _compare_parts(item, printed, rulesets)
            return [f"{ns}: {line}" for line in lines]

        return body

    found: list[str] = []
    for ns, result in in_parallel({ns: visit(ns) for ns in planned}, os.cpu_count() or 1).items():
        found += [f"{ns}: rules cannot be read: {result}"] if isinstance(result, Exception) else result
    return found


def _servers(item: IpvsServers) -> list[str]:
    from emulator.kernel import ipvs

    return ipvs.differences(item)


def _compare_parts(item: NftRules, there: nft_listing.Listing, rulesets: Rulesets) -> list[str]:
    """A table in parts; what is not printed as it was given is loaded into the namespace of this thread."""
    odd = nft_listing.suspects(item, there)
    if odd is None:
        return []
    rulesets.load_here([odd])
    found = nft_listing.differences(item, there, nft_listing.parse(listing(odd)))
    return [f"table {item.family} {item.name}: {line}" for line in found]


def _compare(wanted: Loaded, there: Loaded, planned: Sequence[Ruleset]) -> list[str]:
    found: list[str] = []
    has_iptables = any(isinstance(item, (IptablesRules, ProxyRules)) for item in planned)
    for chain, rules in wanted.chains.items() if has_iptables else ():
        name = " ".join(chain)
        if chain not in there.chains:
            found.append(f"chain {name} is not there")
        elif chain in wanted.builtin:
            found += _as_sets(name, rules, there.chains[chain])
        elif rules != there.chains[chain]:
            found += _as_sets(name, rules, there.chains[chain]) or [f"chain {name}: the rules are in another order"]
    for chain in there.chains.keys() - wanted.chains.keys():
        if chain not in there.builtin or there.chains[chain]:
            found.append(f"chain {' '.join(chain)} is not planned")
    return found + _by_name("table", wanted.tables, there.tables) + _by_name("set", wanted.sets, there.sets)


def _by_name(what: str, wanted: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    found = [f"{what} {name} is not there" for name in wanted.keys() - there.keys()]
    found += [f"{what} {name} is not planned" for name in there.keys() - wanted.keys()]
    return found + [f"{what} {name} differs" for name in wanted.keys() & there.keys() if wanted[name] != there[name]]


def _as_sets(name: str, wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    expected, found = set(wanted), set(there)
    missing = [f"chain {name}: rule is not there: {rule}" for rule in wanted if rule not in found]
    return missing + [f"chain {name}: rule is not planned: {rule}" for rule in there if rule not in expected]


def read_loaded(backend: str, skipped: Collection[str] = ()) -> Loaded:
    """What is loaded in the namespace that this thread is in, but for the nft tables ``skipped``; iptables rules of the
    back end in use (empty: none)."""
    state = Loaded()
    flavour = "legacy" if backend == "legacy" else "nft"
    for family, tool in (("ip", "iptables"), ("ip6", "ip6tables")):
        if backend:
            _read_iptables(state, family, _print(f"{tool}-{flavour}-save"))
    _read_nft(state, skipped)
    members: defaultdict[str, list[str]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for line in _print("ipset", "save").splitlines():
        verb, name, rest = line.split(" ", 2)
        if verb == "create":
            kinds[name] = " ".join(word for word in rest.split(" ")[:3])  # type, "family", inet; sizes vary
        else:
            members[name].append(rest)
    state.sets = {name: (kind, *sorted(members[name])) for name, kind in kinds.items()}
    return state


def _read_iptables(state: Loaded, family: str, text: str) -> None:
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            chain, policy, _ = line[1:].split(" ", 2)
            state.chains[family, table, chain] = []
            if policy != "-":
                state.builtin.add((family, table, chain))
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            state.chains[family, table, chain].append(_COUNTERS.sub("", rule).strip())


def _read_nft(state: Loaded, skipped: Collection[str]) -> None:
    for line in _print("nft", "list", "tables").splitlines():
        _, family, name = line.split()
        of_iptables = family in ("ip", "ip6") and name in IPTABLES_TABLES
        if not of_iptables and not name.startswith(OURS) and f"{family} {name}" not in skipped:
            state.tables[f"{family} {name}"] = _print("nft", "-s", "list", "table", family, name)


def _print(*argv: str) -> str:
    """What a tool prints; nothing if it is not installed: then nothing was loaded by it either."""
    try:
        result = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=TOOL_TIMEOUT,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return ""
    return result.stdout
