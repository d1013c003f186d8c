"""iptables, nftables and ipset rules, loaded as whole transactions inside the namespace that they are for.

Every machine is served by its own thread, which enters its network and mount namespace (/run/xtables.lock is private)
and starts the real tool with the text on standard input; no shell sees any of it. An error names a line of the text,
and the line finds the chain and the rule.

The iptables back end is probed by using it: nf_tables, as on today's distributions, else legacy. The variable
CNILAB_IPTABLES chooses another.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emulator.errors import ApplyError, Unsupported, UserError
from emulator.kernel import ipset_messages, nft_rules, proxy_tables
from emulator.kernel.namespaces import enter, in_parallel, in_thread
from emulator.kernel.netns import netns_path
from emulator.kernel.nft_rules import NftLoader
from emulator.kernel.rule_tools import TIMEOUT, run_tool
from emulator.kernel.syscalls import CLONE_NEWNET, setns
from emulator.kernel.underlay import LabNet
from emulator.plan.borrowed import asking, borrowed_sets
from emulator.plan.describe import describe
from emulator.plan.iptables import remove_text, restore_text
from emulator.plan.model import UNDERLAY, AnyObject, IpSet, IptablesRules, IpvsServers, NftRules, NftTable, ProxyRules

Ruleset = IptablesRules | NftTable | NftRules | IpvsServers | IpSet | ProxyRules
Done = Callable[[AnyObject], None]
Backend = Literal["", "nf_tables", "legacy"]

BACKEND_VARIABLE = "CNILAB_IPTABLES"  # overrides what is found out: nft or legacy

IPSET = ("ipset", "restore")
LOCK_WAIT = "5"  # seconds, for the legacy back end's /run/xtables.lock

_LINE = re.compile(r"line:? (\d+)")
# Whatever ipset reads as one word: weave-npc's names have most of the printable characters in them
_SAFE_MEMBER = re.compile(r"[0-9A-Za-z.:/,_(){}\[\]+=$%^!*|?;@#~-]+")


def backend_of_choice() -> Backend:
    """The iptables back end that the environment asks for; empty if it does not. Raises UserError for another word."""
    word = os.environ.get(BACKEND_VARIABLE, "")
    choices: dict[str, Backend] = {"": "", "nft": "nf_tables", "nf_tables": "nf_tables", "legacy": "legacy"}
    if word not in choices:
        raise UserError(f"{BACKEND_VARIABLE}={word!r}: there are the back ends nft and legacy")
    return choices[word]


@dataclass
class _Text:
    """Input of one tool: per object, its lines. ``COMMIT`` of one object takes effect even if a later one fails."""

    argv: tuple[str, ...]
    parts: list[tuple[Ruleset, str]]
    one_transaction: bool = False

    @property
    def whole(self) -> str:
        return "".join(text for _, text in self.parts)


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

        def visit(ns: str) -> Callable[[], None]:
            def body() -> None:
                self.enter(ns)
                self._load(ns, grouped[ns], finished[ns].append)

            return body

        results = in_parallel({ns: visit(ns) for ns in grouped}, os.cpu_count() or 1)
        for members in finished.values():
            for item in members:
                done(item)
        for result in results.values():
            if isinstance(result, Exception):
                raise result

    def load_here(self, items: Sequence[Ruleset]) -> None:
        """Load rules into the namespace that this thread is in. Raises ApplyError."""
        self._load("here", [(None, item) for item in items], lambda _: None)

    def _load(
        self, ns: str, work: Sequence[tuple[Ruleset | None, Ruleset | None]], finished: Callable[[Ruleset], None]
    ) -> None:
        """Do the work in the namespace that this thread is in. A proxy's rules come before all others when they go,
        and after them when they come: kube-proxy's jumps stand below those that a CNI puts first."""
        for old, new in work:
            if isinstance(old, ProxyRules) and new is None:
                proxy_tables.remove(self._backend, ns, old)
                finished(old)
        for old, new in work:
            # Before the first of its members changes: what fails halfway can be undone then
            if isinstance(old, IpSet) and isinstance(new, IpSet):
                finished(new)
        borrowed = borrowed_sets(work, {item.name for item in self._held(ns) if isinstance(item, IpSet)})
        borrowed_names, lent = {item.name for item in borrowed.values()}, dict[str, IpSet]()

        def fed(item: Ruleset) -> None:
            if not isinstance(item, IpSet) or item.name not in borrowed_names:
                finished(item)
            elif lent.pop(item.name, None) is None:  # first it comes, then it goes
                lent[item.name] = item

        try:
            for text in self._texts(work, borrowed):
                _feed(ns, text, fed)
        except BaseException:
            for item in lent.values():
                finished(item)  # so that it goes when all is undone
            raise
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
        if ns != UNDERLAY and not ns.startswith("pod/"):
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
    ) -> list[_Text]:
        """What to feed to which tool, in order: sets before the rules that name them, and after them when they go.

        So it is with members: who comes is in before the rules change, who goes is in until then. In between a set
        holds both, so whatever passes before and after passes all the time. Where that would let through more, rules
        ask a borrowed set in between (``emulator.plan.borrowed``).
        """
        born: list[tuple[Ruleset, str]] = [(item, _set_text(item)) for item in borrowed.values()]
        unasked: list[tuple[Ruleset, str]] = []
        dying: list[tuple[Ruleset, str]] = []
        iptables: dict[int, list[tuple[Ruleset, str]]] = {4: [], 6: []}
        settled: dict[int, list[tuple[Ruleset, str]]] = {4: [], 6: []}
        nft: list[tuple[Ruleset, str]] = []
        for old, new in work:
            if isinstance(new, IpSet):
                before_set = old if isinstance(old, IpSet) else None
                coming = _set_text(new) if before_set is None else _coming_text(new, before_set)
                going = "" if before_set is None else _going_text(new, before_set)
                if new.name in borrowed:
                    unasked.append((new, coming + going))
                    continue
                if coming:
                    born.append((new, coming))
                if going:
                    dying.append((new, going))
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
        dying += [(item, f"destroy {item.name}\n") for item in borrowed.values()]
        dying.sort(key=lambda part: (part[1].startswith("destroy "), not _is_list(part[0])))
        if not (iptables[4] or iptables[6] or nft):
            born, dying = [*born, *dying], []  # no rules in between: one run of the tool does it
        texts = [
            _Text(IPSET, born),
            *self._restores(iptables),
            _Text(("nft", "-f", "-"), nft, one_transaction=True),
            _Text(IPSET, unasked),
            *self._restores(settled),
            _Text(IPSET, dying),
        ]
        return [text for text in texts if text.parts]

    def _restores(self, parts: dict[int, list[tuple[Ruleset, str]]]) -> Iterator[_Text]:
        flavour = "nft" if self._backend == "nf_tables" else "legacy"
        wait = () if flavour == "nft" else ("-w", LOCK_WAIT)
        yield _Text((f"iptables-{flavour}-restore", "--noflush", *wait), parts[4])
        yield _Text((f"ip6tables-{flavour}-restore", "--noflush", *wait), parts[6])


def _set_text(item: IpSet) -> str:
    """Make the set under another name, fill it, and swap: a packet never meets a half-filled set."""
    _check_words(item)
    kind = item.type.partition(" ")[0]
    family = "inet" if item.family == 4 else "inet6"
    made = item.type if kind.startswith(("bitmap:port", "list:")) else f"{item.type} family {family}"
    scratch = f"{item.name[:27]}-new"  # names have at most 31 characters (IPSET_MAXNAMELEN)
    lines = [
        f"create {item.name} {made} -exist",
        f"create {scratch} {made} -exist",
        f"flush {scratch}",
        *(f"add {scratch} {member}" for member in item.members),
        f"swap {scratch} {item.name}",
        f"destroy {scratch}",
    ]
    return "\n".join(lines) + "\n"


def _coming_text(item: IpSet, old: IpSet) -> str:
    """Add the members that ``old`` has not; one that has other options than before takes them on."""
    _check_words(item)
    before = set(old.members)
    return "".join(f"add {item.name} {member} -exist\n" for member in item.members if member not in before)


def _going_text(item: IpSet, old: IpSet) -> str:
    """Delete the members that only ``old`` has."""
    entries = {member.partition(" ")[0] for member in item.members}
    gone = (member.partition(" ")[0] for member in old.members)
    return "".join(f"del {item.name} {entry} -exist\n" for entry in gone if entry not in entries)


def _check_words(item: IpSet) -> None:
    """Raise ApplyError for what ipset would not read as one word, or for an unknown option of a member."""
    words = [item.name, *item.type.split(" ")]
    for member in item.members:
        entry, _, options = member.partition(" ")
        words.append(entry)
        if options not in ("", "nomatch"):
            raise ApplyError(f"failed to load {describe(item)}: {member!r} is no set member")
    for word in words:
        if not _SAFE_MEMBER.fullmatch(word) or word.startswith("-"):
            raise ApplyError(f"failed to load {describe(item)}: {word!r} is no set name or member")


def _is_list(item: Ruleset) -> bool:
    return isinstance(item, IpSet) and item.type.startswith("list:")


def _drop_text(item: NftTable) -> str:
    # Declared first: deleting a table that is not there would be an error.
    return f"table {item.family} {item.name} {{}}\ndelete table {item.family} {item.name}\n"


def _feed(ns: str, text: _Text, finished: Callable[[Ruleset], None]) -> None:
    try:
        if not (text.argv == IPSET and ipset_messages.commit(text.whole.splitlines())):
            run_tool(text.argv, text.whole)
    except FileNotFoundError as error:
        raise Unsupported(
            f"{text.argv[0]} is not installed", hint="`cnilab doctor` names the package", features=(text.argv[0],)
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ApplyError(f"failed to load rules in {ns}: {text.argv[0]} did not end within {TIMEOUT:g} s") from error
    except subprocess.CalledProcessError as error:
        raise _blame(ns, text, str(error.stderr), finished) from error
    for item, _ in text.parts:
        finished(item)


def _blame(ns: str, text: _Text, complaint: str, finished: Callable[[Ruleset], None]) -> ApplyError:
    """The error for the object, chain and rule that the tool complains about. Earlier objects are in force."""
    words = " ".join(complaint.split())
    match = _LINE.search(words) or re.search(r"stdin>:(\d+)", words)
    if match is None:
        return ApplyError(f"failed to load rules in {ns}: {text.argv[0]}: {words}")
    number = int(match[1])
    start = 0
    for item, part in text.parts:
        lines = part.splitlines()
        if number <= start + len(lines):
            line = lines[max(0, number - start - 1)]
            subject = describe(item)
            return ApplyError(f"failed to load {subject} in {ns}: {words}: {line.strip()}", subject=subject)
        start += len(lines)
        if not text.one_transaction:
            finished(item)
    return ApplyError(f"failed to load rules in {ns}: {text.argv[0]}: {words}")
