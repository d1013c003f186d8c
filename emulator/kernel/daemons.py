"""Supervised daemons: BIRD and whatever else a style runs in its machines.

A daemon starts in its machine's network, mount and UTS namespace, in the foreground, with its output in a pipe. One
thread watches all pipes and processes: it writes each daemon's log (bounded), and reports a daemon that dies with the
last lines that it said. Daemons that die are not restarted: a scenario may have killed them, and a real failure should
be seen.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from emulator.errors import ApplyError, DaemonError, NotFound
from emulator.kernel.namespaces import MachineHandle, within
from emulator.kernel.netns import netns_file
from emulator.kernel.underlay import LabNet
from emulator.plan.describe import describe
from emulator.plan.model import AnyObject, Daemon

State = Literal["starting", "running", "died", "stopped"]
Done = Callable[[AnyObject], None]
OnDeath = Callable[[str, str, str], None]
OnReport = Callable[[str], None]

LOG_DIRECTORY = "/run/cnilab/logs"
LOG_LIMIT = 1024 * 1024  # bytes; then the file becomes NAME.log.1 and a new one starts
LAST_LINES = 20
READY_TIMEOUT = 10.0  # seconds until a daemon must accept connections on its socket
STOP_TIMEOUT = 2.0  # seconds between SIGTERM and SIGKILL
RELOAD_TIMEOUT = 10.0  # seconds for the reload command
REPORT = "report: "  # before a line that a daemon of ours says to the lab
POLL = 0.01  # seconds between tries to connect to a daemon that starts
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class DaemonStatus:
    """How a daemon is. ``code`` is its exit status, negative for a signal; ``log`` its last lines; ``loss`` what goes
    undone without it."""

    ns: str
    name: str
    state: State
    pid: int
    code: int | None
    log: tuple[str, ...]
    loss: str = ""


@dataclass
class _Running:
    item: Daemon
    process: subprocess.Popen[bytes]
    pidfd: int
    log: str
    state: State = "starting"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    partial: bytes = b""
    over: threading.Event = field(default_factory=threading.Event)


# A module of ours needs nothing but itself and the standard library: without site packages it starts in 20 ms.
_RUN_MODULE = """\
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""


def _command(item: Daemon, words: tuple[str, ...]) -> tuple[str, ...]:
    if not item.module:
        return words
    root = str(Path(__file__).parents[2])
    return (sys.executable, "-I", "-S", "-c", _RUN_MODULE, root, item.module, *words[1:])


class Supervisor:
    """All daemons of a lab. ``on_death`` is told namespace, name and a line with the reason; ``on_report`` the lines
    that daemons of ours mean for the lab. Both are called on the thread that watches all daemons: they must not wait.
    """

    def __init__(
        self,
        net: LabNet,
        on_death: OnDeath | None = None,
        logs: str = LOG_DIRECTORY,
        on_report: OnReport | None = None,
    ) -> None:
        self._net = net
        self._on_death = on_death
        self._on_report = on_report
        self._logs = logs
        self._daemons: dict[tuple[str, str], _Running] = {}
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._by_descriptor: dict[int, _Running] = {}
        self._thread: threading.Thread | None = None
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # ------------------------------------------------------------ starting and stopping

    def start(self, items: Sequence[Daemon], done: Done) -> None:
        """Start daemons side by side; return once all are ready. Raises DaemonError with the log of one that is not."""
        started = []
        for item in items:
            started.append(self._spawn(item))
            done(item)
        self._await(started)

    def change(self, pairs: Sequence[tuple[Daemon, Daemon]], done: Done) -> None:
        """Reload daemons whose files changed, restart those that cannot or whose command line differs."""
        restart: list[Daemon] = []
        for old, new in pairs:
            running = self._daemons.get((new.ns, new.name))
            alive = running is not None and running.state in ("starting", "running")
            if alive and (new.reload or new.module) and (old.argv, old.ready_socket) == (new.argv, new.ready_socket):
                self._reload(new)
                done(new)
            else:
                self.stop([old], lambda _: None)
                restart.append(new)
        self.start(restart, done)

    def stop(self, items: Sequence[Daemon], done: Done) -> None:
        """SIGTERM to all, SIGKILL to those that stay; return when they are gone."""
        ending: list[tuple[Daemon, _Running | None]] = []
        for item in items:
            with self._lock:
                running = self._daemons.pop((item.ns, item.name), None)
                if running is not None and running.state != "died":
                    running.state = "stopped"
            if running is not None:
                _signal(running, signal.SIGTERM)
            ending.append((item, running))
        deadline = time.monotonic() + STOP_TIMEOUT
        for item, running in ending:
            if running is not None and not running.over.wait(max(0.0, deadline - time.monotonic())):
                _signal(running, signal.SIGKILL)
                running.over.wait(STOP_TIMEOUT)
            done(item)

    def close(self) -> None:
        """Stop everything, and the thread."""
        self.stop([running.item for running in self._daemons.values()], lambda _: None)
        if self._thread is not None:
            os.write(self._waker, b"q")
            self._thread.join()
            self._thread = None

    def kill(self, ns: str, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal, as a fault. The death is reported like any other. Raises NotFound."""
        running = self._find(ns, name)
        _signal(running, number)
        if number == signal.SIGKILL:
            running.over.wait(STOP_TIMEOUT)

    def restart(self, ns: str, name: str) -> None:
        """Start a daemon again, after stopping it if it runs. Raises NotFound, DaemonError."""
        item = self._find(ns, name).item
        self.stop([item], lambda _: None)
        self._await([self._spawn(item, again=True)])

    # ------------------------------------------------------------ looking

    def status(self) -> list[DaemonStatus]:
        """Every daemon that should run, in the order of starting."""
        with self._lock:
            return [
                DaemonStatus(
                    running.item.ns,
                    running.item.name,
                    running.state,
                    running.process.pid,
                    running.process.returncode,
                    tuple(running.lines),
                    running.item.loss,
                )
                for running in self._daemons.values()
            ]

    def last_lines(self, ns: str) -> tuple[str, ...]:
        """The last log lines of the daemons of one machine, each after its daemon's name."""
        return tuple(f"{item.name}: {line}" for item in self.status() if item.ns == ns for line in item.log[-5:])

    def logs(self) -> dict[str, str]:
        """What each daemon has written, by ``node/n1/bird``, as far as its log reaches back."""
        return {f"{item.ns}/{item.name}": self._read_log(item.ns, item.name) for item in self.status()}

    def _read_log(self, ns: str, name: str) -> str:
        text = ""
        for path in (self.log_path(ns, name) + ".1", self.log_path(ns, name)):
            try:
                with open(path, encoding="utf-8", errors="replace") as opened:
                    text += opened.read()
            except FileNotFoundError:
                continue
        return text

    def log_path(self, ns: str, name: str) -> str:
        """Where a daemon's log is, inside the lab."""
        return f"{self._logs}/{netns_file(ns)}/{name}.log"

    # ------------------------------------------------------------ inside

    def _find(self, ns: str, name: str) -> _Running:
        try:
            return self._daemons[ns, name]
        except KeyError:
            raise NotFound(f"there is no daemon {name} in {ns}") from None

    def _spawn(self, item: Daemon, *, again: bool = False) -> _Running:
        log = self.log_path(item.ns, item.name)
        os.makedirs(os.path.dirname(log), exist_ok=True)

        def body() -> subprocess.Popen[bytes]:
            if item.ready_socket.startswith("/run/"):
                os.makedirs(os.path.dirname(item.ready_socket), exist_ok=True)  # as the real container's start script
            return subprocess.Popen(
                _command(item, (*item.argv, *item.again) if again else item.argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env={"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"},
            )

        try:
            process = within(self._net.handle(item.ns), body)
        except OSError as error:
            words = describe(item)
            raise ApplyError(f"failed to start {words} in {item.ns}: {error.strerror}", subject=words) from error
        running = _Running(item, process, os.pidfd_open(process.pid), log)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        with self._lock:
            self._daemons[item.ns, item.name] = running
            for descriptor in (running.pidfd, process.stdout.fileno()):
                self._by_descriptor[descriptor] = running
                self._poll.register(descriptor, select.POLLIN)
            if self._thread is None:
                self._poll.register(self._wake, select.POLLIN)
                self._thread = threading.Thread(target=self._watch, name="daemons", daemon=True)
                self._thread.start()
        os.write(self._waker, b"n")  # poll(2) must see the new descriptors
        return running

    def _await(self, started: Sequence[_Running]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        for running in started:
            while not _ready(self._net.handle(running.item.ns), running):
                if running.over.wait(POLL):
                    break
                if time.monotonic() > deadline:
                    raise DaemonError(
                        f"{running.item.name} in {running.item.ns} does not answer on {running.item.ready_socket} "
                        f"after {READY_TIMEOUT:g} s",
                        log=tuple(running.lines),
                    )
            with self._lock:
                if running.state == "starting":
                    running.state = "running"
            if running.state == "died":
                raise DaemonError(_obituary(running), log=tuple(running.lines))

    def _reload(self, item: Daemon) -> None:
        if item.module:
            self._tell(item)
            return

        def body() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                item.reload,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=RELOAD_TIMEOUT,
                env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
            )

        try:
            result = within(self._net.handle(item.ns), body)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DaemonError(f"failed to reload {item.name} in {item.ns}: {error}") from error
        if result.returncode:
            said = (result.stdout + result.stderr).strip()
            raise DaemonError(f"failed to reload {item.name} in {item.ns}: {said}", log=tuple(said.splitlines()))

    def _tell(self, item: Daemon) -> None:
        """Modules of ours read their files again when somebody connects, and close the connection when they have."""

        def body() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
                caller.settimeout(RELOAD_TIMEOUT)
                caller.connect(item.ready_socket)
                caller.recv(1)

        try:
            within(self._net.handle(item.ns), body)
        except OSError as error:
            raise DaemonError(f"failed to reload {item.name} in {item.ns}: {error}") from error

    def _watch(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wake:
                    if b"q" in os.read(self._wake, 4096):
                        return
                    continue
                running = self._by_descriptor.get(descriptor)
                if running is None:
                    continue
                if descriptor == running.pidfd:
                    self._bury(running)
                elif not self._drain(running):
                    self._forget(descriptor)

    def _drain(self, running: _Running) -> bool:
        """Move what the daemon said into its log. False at the end of the pipe."""
        assert running.process.stdout is not None
        try:
            data = os.read(running.process.stdout.fileno(), 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        with open(running.log, "ab") as opened:
            opened.write(data)
            full = opened.tell() > LOG_LIMIT
        if full:
            os.replace(running.log, running.log + ".1")
        *lines, running.partial = (running.partial + data).split(b"\n")
        told = [line.decode(errors="replace") for line in lines]
        with self._lock:
            running.lines.extend(told)
        if running.item.module and self._on_report is not None:
            for line in told:
                if line.startswith(REPORT):
                    self._on_report(line.removeprefix(REPORT))
        return True

    def _bury(self, running: _Running) -> None:
        assert running.process.stdout is not None
        while select.select([running.process.stdout], [], [], 0)[0] and self._drain(running):
            pass
        self._forget(running.pidfd)
        self._forget(running.process.stdout.fileno())
        running.process.wait()
        running.process.stdout.close()
        os.close(running.pidfd)
        with self._lock:
            wanted = running.state != "stopped"
            ready = running.state == "running"
            if wanted:
                running.state = "died"
            if running.partial:
                running.lines.append(running.partial.decode(errors="replace"))
        running.over.set()
        if wanted and ready and self._on_death is not None:
            self._on_death(running.item.ns, running.item.name, _obituary(running))

    def _forget(self, descriptor: int) -> None:
        with self._lock:
            if self._by_descriptor.pop(descriptor, None) is not None:
                self._poll.unregister(descriptor)


def _signal(running: _Running, number: int) -> None:
    try:
        os.killpg(running.process.pid, number)  # the daemon leads a session: its children get the signal too
    except (ProcessLookupError, PermissionError):
        pass


def _ready(machine: MachineHandle, running: _Running) -> bool:
    if not running.item.ready_socket:
        return True

    def body() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1.0)
            try:
                client.connect(running.item.ready_socket)
            except OSError:
                return False
            return True

    return within(machine, body)


def _obituary(running: _Running) -> str:
    code = running.process.returncode
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        how = f"ended with status {code}"
    last = f": {running.lines[-1]}" if running.lines else ""
    return f"{running.item.name} in {running.item.ns} {how}{last}"
