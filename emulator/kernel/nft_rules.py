"""Tables of nftables in parts (:class:`NftRules`), loaded by transactions in the namespace that this thread is in.

What fails is undone, so that the rules of before are in force again, and the error names the part (the Service, say).
Two limits of the world outside show only when they are met: without root in the first user namespace nft cannot enlarge
its socket's buffer, and a transaction must then be smaller (``Message too long``); and kernels before 6.2 take a moment
until they know that a chain is no longer referred to (``Device or resource busy``).
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
from collections.abc import Sequence

import msgspec

from emulator.errors import ApplyError, CnilabError, Unsupported
from emulator.kernel.nft_chains import ChainReader
from emulator.kernel.nft_messages import commit
from emulator.plan.describe import describe
from emulator.plan.model import NftRules
from emulator.plan.nftables import PARTS_AT_ONCE, Transaction, interrupted, transactions

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT = 120.0  # seconds for one transaction; 500 Services take below one
SWEEPS = 5  # attempts to take unused chains away
SWEEP_PAUSE = 1.0  # seconds: what kube-proxy waits for

_LINE = re.compile(r"stdin:(\d+):")


class _TooLong(Exception):
    """The kernel took nothing of the transaction: it does not fit into nft's socket buffer."""


class _Refused(Exception):
    """nft's complaint; ``owner`` is the subject whose line it is about, if that is known."""

    def __init__(self, complaint: str, owner: str = "") -> None:
        super().__init__(complaint)
        self.owner = owner


class NftLoader:
    """Remembers how large a transaction may be here. Serves several threads."""

    def __init__(self) -> None:
        self._at_once = PARTS_AT_ONCE

    def change(self, ns: str, old: NftRules | None, new: NftRules | None) -> None:
        """Put ``new`` in the place of ``old`` (None: of whatever is there). Raises ApplyError, Unsupported.

        Where something of ``old`` is missing, somebody meddled with the table, and it is made anew.
        """
        try:
            self._change(ns, old, new)
        except _Refused as refused:
            if old is None or new is None or os.strerror(errno.ENOENT) not in str(refused):
                raise _error(ns, new or old, refused) from refused
            try:
                self._change(ns, None, new)
            except _Refused as again:
                raise self._put_back(ns, old, _error(ns, new, again)) from again

    def _change(self, ns: str, old: NftRules | None, new: NftRules | None) -> None:
        """Raises _Refused with the rules of before in force, unless those were not as planned."""
        state = old
        done: list[str] = []
        begun = False
        finished = False
        try:
            while not finished:
                finished = True
                for step in transactions(state, new, self._at_once):
                    try:
                        _run(step)
                    except _TooLong as error:
                        if len(step.parts) < 2:
                            raise _Refused(f"{error}: {', '.join(step.parts)}") from error
                        self._at_once = max(1, min(self._at_once, len(step.parts)) // 2)
                        finished = False
                        break
                    begun = True
                    done += step.parts
                if not finished and begun and new is not None:
                    state, done = _so_far(state, new, done), []
        except BaseException as error:
            if begun and new is not None:
                now = _so_far(state, new, done)
                try:
                    for step in transactions(now, old, self._at_once):
                        _run(step)
                except (_Refused, _TooLong) as second:
                    error.add_note(f"and the earlier rules could not be put back in {ns}: {second}")
            raise

    def _put_back(self, ns: str, old: NftRules, error: ApplyError) -> ApplyError:
        try:
            self._change(ns, None, old)
        except _Refused as second:
            error.add_note(f"and the earlier rules could not be put back: {second}")
        return error


def _so_far(old: NftRules | None, new: NftRules, done: Sequence[str]) -> NftRules:
    return interrupted(old if old is not None else msgspec.structs.replace(new, parts={}, hooks=()), new, done)


def _run(step: Transaction) -> None:
    if not step.lines and not step.sweep:
        return
    if not step.intervals and commit((*step.lines, *step.sweep)):
        return
    try:
        _nft(step.text, step)
    except _Refused as refused:
        if not step.sweep or os.strerror(errno.EBUSY) not in str(refused):
            raise
        _nft("\n".join(step.lines) + "\n", step)
        for attempt in range(SWEEPS):
            time.sleep(SWEEP_PAUSE)
            try:
                _nft("\n".join(step.sweep) + "\n", step)
                break
            except _Refused:
                if attempt == SWEEPS - 1:
                    raise


def _nft(text: str, step: Transaction) -> None:
    try:
        result = subprocess.run(
            ("nft", "-f", "-"),
            input=text,
            text=True,
            check=False,
            capture_output=True,
            timeout=TIMEOUT,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise Unsupported(
            "nft is not installed", hint="`cnilab doctor` names the package", features=("nft-program",)
        ) from error
    except subprocess.TimeoutExpired as error:
        raise _Refused(f"nft did not end within {TIMEOUT:g} s") from error
    if result.returncode == 0:
        return
    complaint = " ".join(result.stderr.split())
    if os.strerror(errno.EMSGSIZE) in complaint:
        raise _TooLong(complaint)
    match = _LINE.search(complaint)
    lines = (*step.lines, *step.sweep)
    if match is None or int(match[1]) > len(lines):
        raise _Refused(complaint[:2000])
    number = int(match[1]) - 1
    owner = step.owners[number] if number < len(step.owners) else ""
    first = complaint.partition("Error:")[2].partition(lines[number].strip())[0].strip() or complaint[:200]
    raise _Refused(f"{first}: {lines[number]}", owner)


def _error(ns: str, item: NftRules | None, refused: _Refused) -> ApplyError:
    words = describe(item) if item is not None else "nftables"
    part = item.subject if item is not None else "part"
    subject = f"{part} {refused.owner}" if refused.owner else words
    blamed = f"{subject}: " if refused.owner else ""
    found = ApplyError(f"failed to load {words} in {ns}: {blamed}{refused}", subject=subject)
    for note in getattr(refused, "__notes__", ()):
        found.add_note(note)
    return found


def lost(item: NftRules) -> list[str]:
    """The base chains, and those that all parts are reached by, that are gone or hold another number of rules.

    Costs microseconds for each, whatever the number of Services: for a look now and then.
    """
    found = []
    with ChainReader() as reader:
        for chain in (*item.hooks, *item.frame.chains):
            hooked = reader.hooked(item.family, item.name, chain.name)
            if hooked is not bool(chain.hook) or reader.rules(item.family, item.name, chain.name) != len(chain.rules):
                found.append(chain.name)
    return found


def listing(item: NftRules) -> str:
    """What the kernel holds of the table, as nft prints it; empty if there is no such table."""
    return _ask(("nft", "-s", "list", "table", item.family, item.name))


def _ask(argv: tuple[str, ...]) -> str:
    """What nft prints; nothing if what is asked for is not there."""
    try:
        result = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return ""
    if result.returncode and os.strerror(errno.ENOENT) not in result.stderr:
        raise CnilabError(f"{' '.join(argv)}: {' '.join(result.stderr.split())}")
    return result.stdout
