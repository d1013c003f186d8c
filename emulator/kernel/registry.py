"""Which labs run on this machine for this user: a directory each, that tells the truth even after a SIGKILL.

::

    /run/cnilab/                 for root; $XDG_RUNTIME_DIR/cnilab or /tmp/cnilab-<uid> for others
        three-nodes/
            lab.json             who keeps the entry alive, and what it is
            api.sock             bound by the lab's process, which sees this directory as /run/cnilab/host

An entry belongs to a process, named by its pid, its start time and its pid namespace, which together are never used
twice while the machine runs: first the process that reserved the name, then PID 1 of the lab. When that process is
gone the entry is dead, and whoever looks next removes it. Every change is made under a lock on the directory that
holds the entries.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from emulator.errors import AlreadyExists, NotFound, SandboxError, UserError

RECORD = "lab.json"
SOCKET = "api.sock"
BASE_VARIABLE = "CNILAB_RUNTIME_DIR"  # overrides the base directory, for tests and for machines with a peculiar /run

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # DNS label (RFC 1123): also a host name and a file name
_NEW = ".new-"  # entries in the making; no label begins with a dot


class LabRecord(msgspec.Struct, frozen=True):
    """One lab. ``pid``, ``started`` (clock ticks after boot) and ``pid_namespace`` (inode) name the process that
    keeps it alive, as seen from the pid namespace ``seen_from``; ``created`` is in seconds since 1970."""

    name: str
    pid: int
    started: int
    pid_namespace: int
    seen_from: int
    created: float
    topology: str = ""
    style: str = ""
    detached: bool = True
    state: Literal["starting", "running"] = "running"

    @property
    def directory(self) -> Path:
        """Where the lab's files lie on the host."""
        return base_directory() / self.name

    @property
    def socket(self) -> Path:
        """The lab's API."""
        return self.directory / SOCKET


def base_directory() -> Path:
    """Where this user's labs are registered. It need not exist."""
    given = os.environ.get(BASE_VARIABLE)
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/cnilab")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.geteuid():
        return Path(runtime, "cnilab")
    return Path(f"/tmp/cnilab-{os.geteuid()}")


def check_name(name: str) -> str:
    """The name itself. Raises UserError unless it is a DNS label."""
    if not _LABEL.fullmatch(name):
        raise UserError(
            f"{name!r} is not a name for a lab",
            hint="use up to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends",
        )
    return name


def reserve(name: str) -> Path:
    """Take a name for a lab that this process is about to start; its new, empty directory.

    The name is free again when this process ends without :func:`publish`. Raises AlreadyExists, UserError.
    """
    check_name(name)
    with _locked() as base:
        for entry in _entries(base):
            if entry.name == name:
                hint = f"`cnilab down {name}` ends it; `--name` gives the new one another name"
                raise AlreadyExists(f"a lab named {name} is {entry.state} already", hint=hint)
        if (base / name).exists():
            raise AlreadyExists(f"a lab named {name} belongs to another container that shares {base}")
        # Made complete and then renamed: a SIGKILL leaves either no entry or one that names its owner.
        new = base / f"{_NEW}{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(0o700)
        _write(new, _identify(os.getpid(), name=name, state="starting"))
        new.rename(base / name)
    return base / name


def publish(name: str, *, pid: int, topology: str = "", style: str = "", detached: bool = True) -> LabRecord:
    """Hand a reserved entry over to the lab's PID 1, ``pid``. Raises SandboxError if that is gone."""
    record = _identify(pid, name=name, topology=topology, style=style, detached=detached)
    with _locked() as base:
        _write(base / check_name(name), record)
    return record


def labs() -> list[LabRecord]:
    """The labs that are alive, by name, including those that are starting. Removes dead entries on the way."""
    if not base_directory().exists():
        return []
    with _locked() as base:
        return _entries(base)


def find(name: str | None = None) -> LabRecord:
    """The running lab of that name; without one, the only one that was started to stay, or else the only one at all.
    Raises NotFound, UserError if there are several."""
    known = labs()
    if name is not None:
        check_name(name)
        known = [record for record in known if record.name == name]
        if not known:
            raise NotFound(f"no lab named {name} is running", hint=_others())
    running = [record for record in known if record.state == "running"]
    # Somebody's test or `run` beside it must not make it unclear which lab is meant.
    running = [record for record in running if record.detached] or running
    if not running:
        if known:
            raise NotFound(f"the lab {known[0].name} is still starting", hint="wait for its `up` to return")
        raise NotFound("no lab is running", hint="start one: `cnilab up`")
    if len(running) > 1:
        names = ", ".join(record.name for record in running)
        raise UserError(f"{len(running)} labs are running", hint=f"choose one with `--lab`: {names}")
    return running[0]


def kill(name: str, *, wait: bool = False) -> None:
    """End a lab with everything in it and drop its entry. Returns at once unless told to ``wait`` for its last process.

    The kernel frees its interfaces and namespaces in the background after that. A lab that is gone already is fine.
    Raises UserError for one that is still starting.
    """
    check_name(name)
    for record in labs():
        if record.name == name:
            if record.state == "starting":  # its process is whoever is starting it, not PID 1
                raise UserError(f"the lab {name} is still starting", hint="wait for its `up`, or interrupt that")
            _kill(record, wait=wait)
    remove(name)


def _kill(record: LabRecord, *, wait: bool) -> None:
    try:
        process = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        # Asked again now that the descriptor holds the pid: it may have passed to another process since the record
        # was read.
        if _identity(record.pid) == (record.started, record.pid_namespace):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            if wait:
                select.select([process], [], [])
    except ProcessLookupError:
        pass
    finally:
        os.close(process)


def remove(name: str) -> None:
    """Drop an entry with everything in it. One that is not there is fine. Raises UserError for what is not a name."""
    check_name(name)
    if base_directory().exists():
        with _locked() as base:
            shutil.rmtree(base / name, ignore_errors=True)


def _others() -> str:
    names = ", ".join(record.name for record in labs())
    return f"running: {names}" if names else "none is running; start one with `cnilab up`"


@contextmanager
def _locked() -> Iterator[Path]:
    """The base directory, made if need be, with nobody else changing it."""
    base = base_directory()
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(
            f"cannot use {base}: {error.strerror}", hint=f"choose another with {BASE_VARIABLE}"
        ) from None
    try:
        found = os.fstat(fd)
        # In /tmp anybody could have made it first, to be handed our sockets.
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            raise SandboxError(
                f"{base} is not safe: it belongs to uid {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):o}",
                hint=f"it must be yours and writable by you alone; remove it, or choose another with {BASE_VARIABLE}",
            )
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield base
    finally:
        os.close(fd)


def _entries(base: Path) -> list[LabRecord]:
    """The living entries; the dead are removed. Entries made in another pid namespace are left alone: they cannot be
    judged from here (a lab's own processes see this directory too)."""
    here = _namespace("self")
    living = []
    for path in sorted(base.iterdir()):
        if path.name.startswith(_NEW):
            shutil.rmtree(path, ignore_errors=True)  # we hold the lock, so nobody is making it
            continue
        try:
            record = msgspec.json.decode((path / RECORD).read_bytes(), type=LabRecord)
        except (OSError, msgspec.DecodeError):
            record = None
        if record is not None and record.seen_from != here:
            continue
        if record is None or _identity(record.pid) != (record.started, record.pid_namespace):
            shutil.rmtree(path, ignore_errors=True)
        else:
            living.append(record)
    return living


def _identify(
    pid: int,
    *,
    name: str,
    topology: str = "",
    style: str = "",
    detached: bool = True,
    state: Literal["starting", "running"] = "running",
) -> LabRecord:
    found = _identity(pid)
    if found is None:
        raise SandboxError(f"process {pid}, which should keep the lab {name} alive, is gone")
    started, namespace = found
    return LabRecord(
        name=name,
        pid=pid,
        started=started,
        pid_namespace=namespace,
        seen_from=_namespace("self"),
        created=time.time(),
        topology=topology,
        style=style,
        detached=detached,
        state=state,
    )


def _write(directory: Path, record: LabRecord) -> None:
    new = directory / f"{RECORD}.new"
    new.write_bytes(msgspec.json.encode(record))
    new.rename(directory / RECORD)


def _identity(pid: int) -> tuple[int, int] | None:
    """Start time and pid namespace of a process, or None if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name, in parentheses, may hold anything; state is the first field after it, starttime the twentieth
            # (proc(5)).
            fields = file.read().rpartition(")")[2].split()
        namespace = _namespace(str(pid))
    except OSError:
        return None
    return None if fields[0] in "ZX" else (int(fields[19]), namespace)


def _namespace(pid: str) -> int:
    return os.stat(f"/proc/{pid}/ns/pid").st_ino
