"""iptables, nftables and ipset rules, loaded as whole transactions inside the namespace that they are for.

Every machine is served by its own thread, which enters its network and mount namespace (/run/xtables.lock is private)
and starts the real tool with the text on standard input; no shell sees any of it. An error names a line of the text,
and the line finds the chain and the rule.

The iptables back end is probed by using it: nf_tables, as on today's distributions, else legacy. The variable
CNILAB_IPTABLES chooses another.
"""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from emulator.errors import ApplyError, Unsupported, UserError
from emulator.kernel import nft_rules, proxy_tables
from emulator.kernel.ipset_lines import coming_text, fresh_text, going_text, set_text
from emulator.kernel.ipset_speakers import SetSpeakers, is_machine
from emulator.kernel.namespaces import enter, in_parallel, in_thread
from emulator.kernel.netns import netns_path
from emulator.kernel.nft_rules import NftLoader
from emulator.kernel.rule_feeding import IPSET, Ruleset, ToolInput, feed, tell
from emulator.kernel.rule_tools import run_tool
from emulator.kernel.syscalls import CLONE_NEWNET, setns
from emulator.kernel.underlay import LabNet
from emulator.plan.borrowed import asking, borrowed_sets
from emulator.plan.describe import describe
from emulator.plan.iptables import remove_text, restore_text
from emulator.plan.model import AnyObject, IpSet, IptablesRules, IpvsServers, NftRules, NftTable, ProxyRules

Done = Callable[[AnyObject], None]
Backend = Literal["", "nf_tables", "legacy"]

BACKEND_VARIABLE = "CNILAB_IPTABLES"  # overrides what is found out: nft or legacy

LOCK_WAIT = "5"  # seconds, for the legacy back end's /run/xtables.lock


def backend_of_choice() -> Backend:
    """The iptables back end that the environment asks for; empty if it does not. Raises UserError for another word."""
    word = os.environ.get(BACKEND_VARIABLE, "")
    choices: dict[str, Backend] = {"": "", "nft": "nf_tables", "nf_tables": "nf_tables", "legacy": "legacy"}
    if word not in choices:
        raise UserError(f"{BACKEND_VARIABLE}={word!r}: there are the back ends nft and legacy")
    return choices[word]


class Rulesets:
    """Loads rules into the machines of ``net``.

    ``backend`` is the iptables back end to use; empty, it is found out. ``held`` tells what a namespace holds already.
    """

    def __init__(
        self,
        net: LabNet,
        backend: Backend = "",
        held: Callable[[str], Iterable[AnyObject]] = lambda _: (),
    ) -> None:
        self._net = net
        self._wanted = backend
        self._backend: Backend = ""
        self._held = held
        self._nft = NftLoader()
        self._speakers = SetSpeakers(net.handle, held)

    @property
    def backend(self) -> str:
        """The iptables back end in use: ``nf_tables`` or ``legacy``; empty before the first rule."""
        return self._backend

    @property
    def choices(self) -> dict[str, str]:
        """The back end, for the run's records."""
        return {"iptables": self._backend} if self._backend else {}

    def load(self, items: Sequence[Ruleset], changed: Sequence[tuple[Ruleset, Ruleset]], done: Done) -> None:
        """Put rules in force; ``changed`` are pairs of old and new. Raises ApplyError, Unsupported."""
        work = [(None, item) for item in items] + list(changed)
        self._run(work, done)

    def remove(self, items: Sequence[Ruleset], done: Done) -> None:
        """Take rules away. Sets go last: rules refer to them."""
        self._run([(item, None) for item in items], done)

    def _run(self, work: Sequence[tuple[Ruleset | None, Ruleset | None]], done: Done) -> None:
        grouped: defaultdict[str, list[tuple[Ruleset | None, Ruleset | None]]] = defaultdict(list)
        for old, new in work:
            item = new if new is not None else old
            if item is not None:
                grouped[item.ns].append((old, new))
        if not grouped:
            return
        if not self._backend and any(isinstance(new or old, (IptablesRules, ProxyRules)) for old, new in work):
            self._backend = self._probe(next(iter(grouped)))
        finished: defaultdict[str, list[Ruleset]] = defaultdict(list)
        left: dict[str, list[ToolInput] | None] = {}
        results: dict[str, Exception | None] = {}
        for ns, members in grouped.items():
            try:
                left[ns] = self._told(ns, members, finished[ns].append)
            except ApplyError as error:
                results[ns] = error

        def visit(ns: str) -> Callable[[], None]:
            def body() -> None:
                self.enter(ns)
                self._load(ns, grouped[ns], finished[ns].append, left[ns])

            return body

        visits = {ns: visit(ns) for ns, texts in left.items() if texts != []}
        results |= in_parallel(visits, os.cpu_count() or 1)
        for done_there in finished.values():
            for item in done_there:
                done(item)
        for result in results.values():
            if isinstance(result, Exception):
                raise result

    def _told(
        self, ns: str, work: Sequence[tuple[Ruleset | None, Ruleset | None]], finished: Callable[[Ruleset], None]
    ) -> list[ToolInput] | None:
        """What is left to do, where it is a matter of sets alone: mostly nothing, and no thread has to go there. None
        if there is more, or nobody has spoken to the sets there yet."""
        sets = self._speakers.known(ns)
        if sets is None or not all(isinstance(new or old, IpSet) for old, new in work):
            return None
        _note_replaced(work, finished)
        texts = self._texts(work, {})
        for number, text in enumerate(texts):
            left = tell(text, finished, sets)
            if left.parts:
                return [left, *texts[number + 1 :]]
        return []

    def forget(self, ns: str) -> None:
        """Let go of a machine that is about to go."""
        self._speakers.forget(ns)

    def close(self) -> None:
        """Give all descriptors back."""
        self._speakers.close()

    def load_here(self, items: Sequence[Ruleset]) -> None:
        """Load rules into the namespace that this thread is in. Raises ApplyError."""
        self._load("here", [(None, item) for item in items], lambda _: None)

    def _load(
        self,
        ns: str,
        work: Sequence[tuple[Ruleset | None, Ruleset | None]],
        finished: Callable[[Ruleset], None],
        left: list[ToolInput] | None = None,
    ) -> None:
        """Do the work in the namespace that this thread is in; ``left`` is what is left to do of it, if it was begun. A
        proxy's rules come before all others when they go, and after them when they come: kube-proxy's jumps stand below
        those that a CNI puts first."""
        for old, new in work:
            if isinstance(old, ProxyRules) and new is None:
                proxy_tables.remove(self._backend, ns, old)
                finished(old)
        _note_replaced(work, finished)
        borrowed = borrowed_sets(work, (item.name for item in self._held(ns) if isinstance(item, IpSet)))
        lent: dict[int, Ruleset] = {}

        def fed(item: Ruleset) -> None:
            if not any(item is one for one in borrowed.values()):
                finished(item)
            elif lent.pop(id(item), None) is None:  # first it comes, then it goes
                lent[id(item)] = item

        sets = self._speakers.here(ns)
        try:
            for text in self._texts(work, borrowed) if left is None else left:
                feed(ns, text, fed, sets)
        except BaseException:
            for item in lent.values():
                finished(item)  # so that it goes when all is undone
            raise
        finally:
            if not is_machine(ns):
                sets.close()
        for old, new in work:
            if isinstance(new, ProxyRules):
                before = old if isinstance(old, ProxyRules) else None
                proxy_tables.load(self._backend, ns, new, before, self._beside(ns, work))
                finished(new)
            else:
                self._change_parts(ns, old, new, finished)

    def _beside(self, ns: str, work: Sequence[tuple[Ruleset | None, Ruleset | None]]) -> Iterator[IptablesRules]:
        """The iptables rules of others in the namespace once the work is done."""
        touched = {item.key for pair in work for item in pair if item is not None}
        yield from (item for item in self._held(ns) if isinstance(item, IptablesRules) and item.key not in touched)
        yield from (new for _, new in work if isinstance(new, IptablesRules))

    def repair(self, items: Iterable[ProxyRules | NftRules | IpvsServers], *, always: bool = False) -> list[str]:
        """Look after a proxy's rules, as it does itself every thirty seconds: where a canary is gone, everything is
        written anew. ``always``: everywhere, as it does every hour. A line for each that was repaired.

        Tables of nftables have no canary: there the chains that all Services share are looked at, and ipvs proxies look
        at every virtual server.

        Raises ApplyError.
        """
        grouped: defaultdict[str, list[ProxyRules | NftRules | IpvsServers]] = defaultdict(list)
        for item in items:
            grouped[item.ns].append(item)

        def visit(ns: str) -> Callable[[], list[str]]:
            def body() -> list[str]:
                self.enter(ns)
                done = []
                for item in grouped[ns]:
                    if not isinstance(item, ProxyRules):
                        done += self._put_back(ns, item)
                        continue
                    lost = proxy_tables.flushed(self._backend, item)
                    if lost or always:
                        beside = [each for each in self._held(ns) if isinstance(each, IptablesRules)]
                        proxy_tables.repair(self._backend, ns, item, beside)
                        reason = f"the canary of {', '.join(lost)} was gone" if lost else "a full sync"
                        done.append(f"{ns}: {describe(item)}: written anew: {reason}")
                return done

            return body

        told: list[str] = []
        for result in in_parallel({ns: visit(ns) for ns in grouped}, os.cpu_count() or 1).values():
            if isinstance(result, Exception):
                raise result
            told += result
        return told

    def _put_back(self, ns: str, item: NftRules | IpvsServers) -> list[str]:
        """Write what is gone anew."""
        if isinstance(item, NftRules):
            gone, old = nft_rules.lost(item), None  # whatever else is left of the table
        else:
            from emulator.kernel import ipvs

            gone, old = ipvs.lost(item), item
        if not gone:
            return []
        self._change_parts(ns, old, item, lambda _: None)
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        return [f"{ns}: {describe(item)}: written anew: {gone[0]}{more} was gone"]

    def _change_parts(
        self, ns: str, old: Ruleset | None, new: Ruleset | None, finished: Callable[[Ruleset], None]
    ) -> None:
        """Tables in parts, which are several transactions each, and what has no tool."""
        item = new if new is not None else old
        if isinstance(item, IpvsServers):
            from emulator.kernel import ipvs  # few kernels have it, and fewer labs

            servers = old if isinstance(old, IpvsServers) else None
            ipvs.change(ns, servers, new if isinstance(new, IpvsServers) else None)
            finished(item)
        if not isinstance(item, NftRules):
            return
        before = old if isinstance(old, NftRules) else None
        self._nft.change(ns, before, new if isinstance(new, NftRules) else None)
        finished(item)

    def enter(self, ns: str) -> None:
        """Move this thread there for good: into all of a machine, or the network of a pod."""
        if is_machine(ns):
            enter(self._net.handle(ns))
            return
        descriptor = os.open(netns_path(ns), os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(descriptor, CLONE_NEWNET)
        finally:
            os.close(descriptor)

    def _probe(self, ns: str) -> Backend:
        tools: dict[Backend, str] = {"nf_tables": "iptables-nft-restore", "legacy": "iptables-legacy-restore"}
        names = [name for name in tools if self._wanted in ("", name)]

        def body() -> Backend | None:
            self.enter(ns)
            for name in names:
                try:
                    run_tool((tools[name], "--noflush"), "*nat\n:CNILAB-PROBE - [0:0]\n-X CNILAB-PROBE\nCOMMIT\n")
                except (OSError, subprocess.SubprocessError):
                    continue
                return name
            return None

        found = in_thread(body)
        if found is None:
            which = f"the {names[0]} back end does not work" if self._wanted else "neither back end works"
            raise Unsupported(
                f"iptables rules cannot be loaded: {which} here",
                hint="install iptables; `cnilab doctor` tells what else is missing",
                features=("iptables",),
            )
        return found

    def _texts(
        self, work: Sequence[tuple[Ruleset | None, Ruleset | None]], borrowed: Mapping[str, IpSet]
    ) -> list[ToolInput]:
        """What to feed to which tool, in order: sets before the rules that name them, and after them when they go.

        So it is with members: who comes is in before the rules change, who goes is in until then. In between a set
        holds both, so whatever passes before and after passes all the time. Where that would let through more, rules
        ask a borrowed set in between (``emulator.plan.borrowed``).
        """
        born: list[tuple[Ruleset, str]] = [(item, set_text(item)) for item in borrowed.values()]
        fresh = {id(item): fresh_text(item) for item in borrowed.values()}
        unasked: list[tuple[Ruleset, str]] = []
        leaving: list[tuple[Ruleset, str]] = []
        iptables: dict[int, list[tuple[Ruleset, str]]] = {4: [], 6: []}
        settled: dict[int, list[tuple[Ruleset, str]]] = {4: [], 6: []}
        nft: list[tuple[Ruleset, str]] = []
        dying: list[tuple[Ruleset, str]] = []
        for old, new in work:
            if isinstance(new, IpSet) and isinstance(old, IpSet):
                coming, going = coming_text(new, old), going_text(new, old)
                if new.name in borrowed:
                    unasked.append((new, coming + going))
                    continue
                if coming:
                    born.append((new, coming))
                if going:
                    leaving.append((new, going))
            elif isinstance(new, IpSet):
                born.append((new, set_text(new)))
                fresh[id(new)] = fresh_text(new)
            elif isinstance(old, IpSet):
                dying.append((old, f"destroy {old.name}\n"))
            elif isinstance(new, IptablesRules):
                before = old if isinstance(old, IptablesRules) else None
                between = asking(new, before, borrowed) if borrowed and before is not None else new
                iptables[new.family].append((new, restore_text(between, before)))
                if between != new:
                    settled[new.family].append((new, restore_text(new, between)))
            elif isinstance(old, IptablesRules):
                iptables[old.family].append((old, remove_text(old)))
            elif isinstance(new, NftTable):
                nft.append((new, f"{_drop_text(new)}table {new.family} {new.name} {{\n{new.body}\n}}\n"))
            elif isinstance(old, NftTable):
                nft.append((old, _drop_text(old)))
        # A list refers to its members: it comes after them, and goes before them
        born.sort(key=lambda part: _is_list(part[0]))
        leaving.sort(key=lambda part: not _is_list(part[0]))
        dying += [(item, f"destroy {item.name}\n") for item in borrowed.values()]
        dying.sort(key=lambda part: not _is_list(part[0]))
        if not (iptables[4] or iptables[6] or nft):
            born, leaving = [*born, *leaving], []  # no rules in between: one run of the tool does it
        texts = [
            ToolInput(IPSET, born, fresh="".join(fresh.get(id(item), text) for item, text in born)),
            *self._restores(iptables),
            ToolInput(("nft", "-f", "-"), nft, one_transaction=True),
            ToolInput(IPSET, unasked),
            *self._restores(settled),
            ToolInput(IPSET, leaving),
            ToolInput(IPSET, dying),
        ]
        return [text for text in texts if text.parts]

    def _restores(self, parts: dict[int, list[tuple[Ruleset, str]]]) -> Iterator[ToolInput]:
        flavour = "nft" if self._backend == "nf_tables" else "legacy"
        wait = () if flavour == "nft" else ("-w", LOCK_WAIT)
        yield ToolInput((f"iptables-{flavour}-restore", "--noflush", *wait), parts[4])
        yield ToolInput((f"ip6tables-{flavour}-restore", "--noflush", *wait), parts[6])


def _is_list(item: Ruleset) -> bool:
    return isinstance(item, IpSet) and item.type.startswith("list:")


def _note_replaced(work: Sequence[tuple[Ruleset | None, Ruleset | None]], finished: Callable[[Ruleset], None]) -> None:
    """Tell of sets before the first of their members changes: what fails halfway can be undone then."""
    for old, new in work:
        if isinstance(old, IpSet) and isinstance(new, IpSet):
            finished(new)


def _drop_text(item: NftTable) -> str:
    # Declared first: deleting a table that is not there would be an error.
    return f"table {item.family} {item.name} {{}}\ndelete table {item.family} {item.name}\n"
