"""One execution of a CNI plugin, whatever the plugin does: it may hang, crash, flood, or leave children behind.

A plugin is a program of one of the folders that the user named, found by its type, started without a shell in a
session of its own. It ends when its process ends; what it leaves behind is told by a variable in the environment, which
children XX

Sources: containernetworking/cni pkg/invoke/raw_exec.go (a runtime reads standard output until its end), find.go.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

from emulator.cni.chain import Answer, Call
from emulator.errors import PluginError

PATIENCE = 30.0  # seconds for one plugin; the kubelet gives a whole sandbox two minutes (runtimeRequestTimeout)
GRACE = 0.3  # seconds after a plugin's end in which its output must end too
OUTPUT_LIMIT = 1024 * 1024  # bytes of standard output that are read; a result has some hundred
WORDS_LIMIT = 16 * 1024  # bytes of standard error that are kept, the last ones
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MARK = "CNILAB_CNI_CALL"  # the environment variable by which a plugin's descendants are known


def find_plugin(kind: str, folders: Sequence[str]) -> str:
    """The program of a plugin type, which is a plain name (``emulator.cni.netconf``). Raises PluginError."""
    for folder in folders:
        path = os.path.join(folder, kind)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    hint = "--cni-bin names the folder of plugins; Debian's are in the package containernetworking-plugins"
    raise PluginError(f"there is no CNI plugin {kind!r} in {' or '.join(folders)}", plugin=kind, hint=hint)


def execute(call: Call, folders: Sequence[str], patience: float = PATIENCE) -> Answer:
    """Run the plugin in the namespaces of this thread. Raises PluginError if there is no such plugin, or it cannot be
    started."""
    path = find_plugin(call.plugin, folders)
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    container = call.environment.get("CNI_CONTAINERID", "")
    environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", MARK: f"{container} {mark}", **call.environment}
    try:
        process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise PluginError(
            f"plugin {call.plugin}, {call.command}: {path} cannot be started: {error.strerror}", plugin=call.plugin
        ) from error
    talk = _Conversation(process, call.stdin)
    killed, remarks = "", []
    try:
        if not talk.until_the_end(time.monotonic() + patience):
            killed = f"printed more than {OUTPUT_LIMIT} bytes" if talk.flooded else f"did not end within {patience:g} s"
            end_all(process.pid, mark)
        elif not talk.output_ended(time.monotonic() + GRACE):
            left = ", ".join(f"{name} (pid {pid})" for pid, name in descendants(mark)) or "a process"
            end_all(process.pid, mark)
            remarks.append(
                f"left {left} behind, with standard output open: a container runtime would wait for its end, for ever"
            )
    finally:
        talk.close()
    code = process.wait()
    return Answer(code, bytes(talk.stdout), talk.stderr[-WORDS_LIMIT:].decode(errors="replace"), killed, tuple(remarks))


def descendants(mark: str) -> Iterator[tuple[int, str]]:
    """The running processes with ``mark`` in the variable that tells a plugin's descendants: pid and name."""
    wanted = mark.encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                variables = file.read().split(b"\0")
            if not any(item.startswith(f"{MARK}=".encode()) and wanted in item for item in variables):
                continue
            with open(f"/proc/{entry}/comm", encoding="utf-8", errors="replace") as file:
                yield int(entry), file.read().strip()
        except OSError:
            continue  # it has ended, or is no longer ours to look at


def end_all(group: int, mark: str) -> None:
    """SIGKILL to a plugin's process group, and to whatever of it left the group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    for pid, _ in descendants(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


class _Conversation:
    """The pipes of a plugin: input is written and output read as far as the plugin keeps up."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes) -> None:
        pipes = (process.stdin, process.stdout, process.stderr)
        self._input, self._output, self._words = (os.dup(pipe.fileno()) for pipe in pipes if pipe is not None)
        for pipe in pipes:
            if pipe is not None:
                pipe.close()
        self._ended = os.pidfd_open(process.pid)
        self._pending = memoryview(stdin)
        self._poll = select.poll()
        self._poll.register(self._ended, select.POLLIN)
        self._open = {self._input, self._output, self._words}
        for descriptor in self._open:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLOUT if descriptor == self._input else select.POLLIN)
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.flooded = False

    def until_the_end(self, deadline: float) -> bool:
        """Talk until the plugin's process ends; whether that was before the deadline (of the monotonic clock), and
        before it had printed too much."""
        while (left := deadline - time.monotonic()) > 0 and not self.flooded:
            if self._turn(left):
                return True
        return False

    def output_ended(self, deadline: float) -> bool:
        """After the plugin's end: read what is left; whether nobody holds standard output open any more."""
        self._poll.unregister(self._ended)
        self._drop(self._input)
        while self._output in self._open:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._turn(left)
        return True

    def close(self) -> None:
        """Let go of all descriptors."""
        for descriptor in list(self._open):
            self._drop(descriptor)
        os.close(self._ended)

    def _turn(self, seconds: float) -> bool:
        """Serve what is ready; whether the plugin has ended."""
        over = False
        for descriptor, _ in self._poll.poll(seconds * 1000):
            if descriptor == self._ended:
                over = True
            elif descriptor == self._input:
                self._write()
            elif descriptor in self._open:
                self._read(descriptor)
        return over

    def _write(self) -> None:
        try:
            self._pending = self._pending[_write(self._input, self._pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._pending = self._pending[:0]  # it does not want to know
        if not self._pending:
            self._drop(self._input)

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        if not data:
            self._drop(descriptor)
        elif descriptor == self._output:
            self.flooded = self.flooded or len(self.stdout) + len(data) > OUTPUT_LIMIT
            if not self.flooded:
                self.stdout += data
        else:
            self.stderr += data
            del self.stderr[:-WORDS_LIMIT]

    def _drop(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.discard(descriptor)
            self._poll.unregister(descriptor)
            os.close(descriptor)


def _write(descriptor: int, data: memoryview) -> int:
    """write(2), but BrokenPipeError even where SIGPIPE is not ignored, as in a process that was forked by PID 1."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        return os.write(descriptor, data)
    except BrokenPipeError:
        signal.sigtimedwait({signal.SIGPIPE}, 0)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
