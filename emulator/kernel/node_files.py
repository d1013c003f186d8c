"""Files in a machine's private /etc and /run, put in place so that a reader sees the old or the new one, never half.

The machine's mount namespace shows the host's whole file system beside its private /etc and /run. So a path is walked
one directory at a time and no symbolic link is followed: whatever stands there cannot lead a write outside.
"""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Sequence

from emulator.errors import ApplyError
from emulator.kernel.namespaces import within
from emulator.kernel.underlay import LabNet
from emulator.plan.describe import describe
from emulator.plan.model import AnyObject, File

PRIVATE = ("/etc/", "/run/")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_files(net: LabNet, items: Sequence[File], done: Callable[[AnyObject], None]) -> None:
    """Write or replace files, one visit per machine. Raises ApplyError."""
    _each(net, items, _write, done)


def remove_files(net: LabNet, items: Sequence[File], done: Callable[[AnyObject], None]) -> None:
    """Delete files; one that is gone already is no error. Raises ApplyError."""
    _each(net, items, _remove, done)


def read_file(net: LabNet, ns: str, path: str) -> str:
    """What a machine's file holds. Raises OSError."""

    def body() -> str:
        with open(path, encoding="utf-8") as opened:
            return opened.read()

    return within(net.handle(ns), body)


def _each(
    net: LabNet, items: Sequence[File], action: Callable[[File], None], done: Callable[[AnyObject], None]
) -> None:
    grouped: defaultdict[str, list[File]] = defaultdict(list)
    for item in items:
        grouped[item.ns].append(item)
    for ns, members in grouped.items():
        _visit(net, ns, members, action, done)


def _visit(
    net: LabNet, ns: str, members: Sequence[File], action: Callable[[File], None], done: Callable[[AnyObject], None]
) -> None:
    def body() -> None:
        for item in members:
            try:
                action(item)
            except OSError as error:
                words = describe(item)
                raise ApplyError(f"failed to write {words} in {ns}: {error.strerror}", subject=words) from error
            done(item)

    within(net.handle(ns), body)


def _write(item: File) -> None:
    folder = _open_folder(item, make=True)
    try:
        name = posixpath.basename(item.path)
        temporary = f".{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(item.content)
            os.fchmod(opened.fileno(), item.mode)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _remove(item: File) -> None:
    try:
        folder = _open_folder(item, make=False)
    except FileNotFoundError:
        return
    try:
        os.unlink(posixpath.basename(item.path), dir_fd=folder)
    except FileNotFoundError:
        pass
    finally:
        os.close(folder)


def _open_folder(item: File, *, make: bool) -> int:
    """The directory of the file, reached without following a link. Raises ApplyError for a path that is not ours."""
    if posixpath.normpath(item.path) != item.path or not item.path.startswith(PRIVATE):
        words = describe(item)
        raise ApplyError(f"failed to write {words}: only files below /etc and /run are a machine's own", subject=words)
    current = os.open("/", _DIRECTORY)
    for part in item.path.split("/")[1:-1]:
        try:
            if make:
                try:
                    os.mkdir(part, 0o755, dir_fd=current)
                except FileExistsError:
                    pass
            following = os.open(part, _DIRECTORY, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current
