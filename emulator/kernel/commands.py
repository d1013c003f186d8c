"""Pods' own commands: real processes in a pod's network namespace, with its host name and its files under /etc.

They are started again when they end, as the kubelet does: at once the first time, then after 10, 20, 40 ... 300 seconds
(CrashLoopBackOff), unless the pod's restartPolicy says otherwise. Output goes to a log, at most ``LOG_LIMIT`` bytes
of it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from emulator.kernel import syscalls as sc
from emulator.kernel.enter import own_mounts
from emulator.kernel.namespaces import in_thread

LOG_DIRECTORY = "/run/cnilab/logs/pods"
LOG_LIMIT = 1024 * 1024  # bytes
LAST_LINES = 20
STOP_TIMEOUT = 2.0  # seconds between SIGTERM and SIGKILL; a kubelet gives 30, a lab must not wait for it
FORGIVEN = 600.0  # seconds that a process must have run for its earlier failures to be forgotten (pkg/kubelet)
BACKOFF = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)  # seconds, pkg/kubelet: MaxContainerBackOff and its base
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

State = Literal["running", "died", "stopped", "completed"]


@dataclass(frozen=True)
class Command:
    """One container's process. ``place`` is ``namespace/pod``; ``netns`` a path; ``files`` (path to text) only it
    sees."""

    place: str
    name: str
    argv: tuple[str, ...]
    netns: str
    hostname: str
    files: Mapping[str, str]
    env: Mapping[str, str]
    restart: Literal["Always", "OnFailure", "Never"] = "Always"


@dataclass(frozen=True)
class CommandStatus:
    """How it is. ``code`` is the last exit status, negative for a signal."""

    place: str
    name: str
    state: State
    pid: int
    restarts: int
    code: int | None
    log: tuple[str, ...]


@dataclass
class _Running:
    command: Command
    log: str
    stop: threading.Event = field(default_factory=threading.Event)
    process: subprocess.Popen[bytes] | None = None
    thread: threading.Thread | None = None
    restarts: int = 0
    code: int | None = None
    state: State = "running"


class PodCommands:
    """All commands of a lab's pods."""

    def __init__(self, logs: str = LOG_DIRECTORY) -> None:
        self._logs = logs
        self._running: dict[tuple[str, str], _Running] = {}
        self._lock = threading.Lock()

    def start(self, commands: Sequence[Command]) -> None:
        """Start them. One that cannot be executed says so in its log and status, as a container would."""
        for command in commands:
            folder = f"{self._logs}/{command.place.replace('/', '_')}"
            os.makedirs(folder, exist_ok=True)
            running = _Running(command, f"{folder}/{command.name}.log")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(running.log)  # of an earlier pod of that name
            running.thread = threading.Thread(target=self._keep, args=(running,), name=command.place, daemon=True)
            with self._lock:
                self._running[command.place, command.name] = running
            running.thread.start()

    def stop(self, places: Sequence[str]) -> None:
        """End every command of these pods, and return when they are gone."""
        wanted = set(places)
        with self._lock:
            ending = [self._running.pop(key) for key in list(self._running) if key[0] in wanted]
        for running in ending:
            running.state = "stopped"
            running.stop.set()
            _signal(running, signal.SIGTERM)
        for running in ending:
            assert running.thread is not None
            running.thread.join(STOP_TIMEOUT)
            if running.thread.is_alive():
                _signal(running, signal.SIGKILL)
                running.thread.join(STOP_TIMEOUT)

    def status(self) -> list[CommandStatus]:
        """Every command that should run."""
        with self._lock:
            known = list(self._running.values())
        return [
            CommandStatus(
                item.command.place,
                item.command.name,
                item.state,
                item.process.pid if item.process is not None and item.state == "running" else 0,
                item.restarts,
                item.code,
                tuple(_read(item.log).splitlines()[-LAST_LINES:]),
            )
            for item in known
        ]

    def rewrite(self, place: str, name: str, files: Mapping[str, str]) -> None:
        """Give files of a running command another text. It does not matter if the command has just ended, or if it was
        started without such a file."""
        with self._lock:
            running = self._running.get((place, name))
        if running is None:
            return
        # One that is started again has them too
        known = {path: text for path, text in files.items() if path in running.command.files}
        running.command = replace(running.command, files={**running.command.files, **known})
        if running.process is not None and running.process.poll() is None:
            for path, text in known.items():
                with (
                    contextlib.suppress(OSError),
                    open(f"/proc/{running.process.pid}/root{os.path.realpath(path)}", "w") as file,
                ):
                    file.write(text)

    def logs(self) -> dict[str, str]:
        """Log texts by ``namespace/pod/container``."""
        with self._lock:
            known = list(self._running.values())
        return {f"{item.command.place}/{item.command.name}": _read(item.log) for item in known}

    def _keep(self, running: _Running) -> None:
        """Run the command, again and again."""
        command, log = running.command, _Log(running.log)
        failures = 0
        while not running.stop.is_set():
            begun = time.monotonic()
            try:
                running.process = in_thread(lambda: _spawn(command))
            except OSError as error:
                log.write(f"cnilab: cannot run {command.argv[0]}: {error.strerror}\n".encode())
                running.code = 127 if isinstance(error, FileNotFoundError) else 126
            else:
                if running.stop.is_set():
                    _signal(running, signal.SIGTERM)
                running.code = _attend(running.process, log)
            if running.stop.is_set():
                return
            failed = running.code != 0
            running.state = "died" if failed else "completed"
            if command.restart == "Never" or (command.restart == "OnFailure" and not failed):
                return
            if time.monotonic() - begun > FORGIVEN:
                failures = 0
            if running.stop.wait(BACKOFF[min(failures, len(BACKOFF) - 1)]):
                return
            failures += 1
            running.restarts += 1
            running.state = "running"


class _Log:
    """A file that never holds more than ``LOG_LIMIT`` bytes: the end of what was written."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._size = 0

    def write(self, data: bytes) -> None:
        with open(self._path, "ab") as file:
            file.write(data)
            self._size = file.tell()
        if self._size > LOG_LIMIT:
            with open(self._path, "rb+") as file:
                file.seek(self._size - LOG_LIMIT // 2)
                rest = file.read()
                file.seek(0)
                file.truncate()
                file.write(rest)


def _spawn(command: Command) -> subprocess.Popen[bytes]:
    """In a thread of its own: put it into the pod, then start the process, which stays there."""
    descriptor = os.open(command.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sc.setns(descriptor, sc.CLONE_NEWNET)
    finally:
        os.close(descriptor)
    own_mounts(command.files, fresh_sys=True)
    sc.unshare(sc.CLONE_NEWUTS)
    sc.set_hostname(command.hostname)
    return subprocess.Popen(
        command.argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd="/",
        env={"PATH": PATH, "HOSTNAME": command.hostname, "HOME": "/root", "LC_ALL": "C.UTF-8", **command.env},
    )


def _attend(process: subprocess.Popen[bytes], log: _Log) -> int:
    """Move what a process prints into its log until it ends; its exit status. Children that it leaves behind end with
    it, as in a container whose first process ends."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    poll = select.poll()
    ended = os.pidfd_open(process.pid)
    poll.register(ended, select.POLLIN)
    poll.register(output, select.POLLIN)
    over = False
    try:
        while not over:
            ready = {descriptor for descriptor, _ in poll.poll()}
            over = ended in ready  # looked at before the output: what it said last is in the pipe by then
            while output >= 0 and (over or output in ready):
                try:
                    data = os.read(output, 65536)
                except BlockingIOError:
                    break
                if not data:
                    poll.unregister(output)
                    output = -1
                    break
                log.write(data)
                if not over:
                    break
    finally:
        os.close(ended)
        process.stdout.close()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    return process.wait()


def _signal(running: _Running, number: int) -> None:
    if running.process is not None and running.process.poll() is None:
        try:
            os.killpg(running.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(LOG_LIMIT).decode(errors="replace")
    except FileNotFoundError:
        return ""
