"""A private world for one lab: started, watched and ended from the host.

What is private in it, what is shared, and whose end ends it: docs/sandbox.md. The other side of this file is
:mod:`emulator.kernel.init`; a command in a running sandbox is started by :mod:`emulator.kernel.enter`.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, TypeVar

from emulator.errors import SandboxError, Unsupported
from emulator.kernel import init

T = TypeVar("T")

START_TIMEOUT = 20.0  # seconds until PID 1 must say "ready": 30 ms on a quiet machine, seconds under emulation

_ROOT = str(Path(__file__).parents[2])
# -I -S: no site-packages, no PYTHON* variables, no current directory. It starts sooner, and nothing of the user's
# runs as PID 1.
_INIT = (
    *("-I", "-S", "-c"),
    "import sys; sys.path.insert(0, sys.argv[1]); from emulator.kernel.init import main; sys.exit(main(sys.argv[2:]))",
    _ROOT,
)


class Sandbox:
    """A running sandbox, seen by the process that started it. Made by :meth:`start`; as a context manager it ends
    with the block.
    """

    def __init__(self, pid: int, pidfd: int, lifeline: int, status: int, launcher: Launcher, told: int | None) -> None:
        self.pid = pid  # of PID 1, as the host counts
        self._pidfd = pidfd
        self._lifeline = lifeline
        self._status = status
        self._launcher = launcher
        self._told = told
        self._code: int | None = None

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        name: str,
        detached: bool,
        directory: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Sandbox:
        """Make a sandbox whose main process is ``argv``, and return when that has been executed.

        ``name`` becomes the host name. ``directory`` (of the host) is seen inside as ``/run/cnilab/host``. Standard
        input is /dev/null; the session is a new one, so a Ctrl-C at the caller's terminal does not reach it. The
        sandbox ends with its main process and, unless it is ``detached`` and :meth:`release`\\ d, with the calling
        process.

        Raises Unsupported where this user or kernel may not make one, SandboxError if the program cannot be started.
        """
        if progress:
            progress(f"starting the sandbox of {name}")

        def spawn(lifeline: int, status: int, caller: int) -> Launcher:
            mode = "detached" if detached else "attached"
            command = [
                sys.executable,
                *_INIT,
                str(lifeline),
                str(status),
                str(caller),
                mode,
                name,
                str(directory or ""),
                *argv,
            ]
            return Launcher.from_popen(
                subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env=env,
                    pass_fds=(lifeline, status, caller, *pass_fds),
                    start_new_session=True,
                )
            )

        return cls._launch(spawn)

    @classmethod
    def _launch(cls, spawn: Callable[[int, int, int], Launcher]) -> Sandbox:
        lifeline_read, lifeline = os.pipe()
        status_read, status_write = os.pipe()
        caller = os.pidfd_open(os.getpid())
        try:
            launcher = spawn(lifeline_read, status_write, caller)
        except BaseException:
            os.close(lifeline)
            os.close(status_read)
            raise
        finally:
            for fd in (lifeline_read, status_write, caller):
                os.close(fd)
        deadline = time.monotonic() + START_TIMEOUT
        pid, ready, told = 0, False, None
        try:
            while not (pid and ready):  # told by the launcher and by PID 1, whichever is first
                match _line(status_read, deadline):
                    case ["pid", number]:
                        pid = int(number)
                    case ["ready"]:
                        ready = True
                    case ["exit", code] if ready:
                        told = int(code)  # a main process that ended before the launcher wrote the pid
                    case ["unsupported", message, hint]:
                        raise Unsupported(message, hint=hint, features=("sandbox",))
                    case ["failed", message, hint]:
                        raise SandboxError(f"cannot {message}", hint=hint)
                    case _:
                        raise SandboxError("the sandbox ended while it was being made")
            return cls(pid, _pidfd(pid), lifeline, status_read, launcher, told)
        except BaseException:
            os.close(lifeline)  # PID 1 dies of that, if there is one
            os.close(status_read)
            launcher.wait()
            raise

    def release(self) -> None:
        """Let a detached sandbox live on without this process. Raises SandboxError if it has ended meanwhile."""
        try:
            os.write(self._lifeline, init.RELEASE)
        except BrokenPipeError:
            raise SandboxError("the sandbox ended before it was released") from None

    @property
    def alive(self) -> bool:
        """Whether PID 1 runs."""
        return self._code is None and not self._ended(0)

    def _ended(self, timeout: float | None) -> bool:
        # Readable when PID 1 is dead, which it is only after all others of its pid namespace (zap_pid_ns_processes).
        return self._pidfd < 0 or bool(select.select([self._pidfd], [], [], timeout)[0])

    def wait(self, timeout: float | None = None) -> int:
        """Wait until every process of the sandbox is gone; the main process' exit status, 128 + signal if one killed
        it.

        137 (SIGKILL) stands also for a killed PID 1. Raises TimeoutError after ``timeout`` seconds.
        """
        if self._code is None:
            if not self._ended(timeout):
                raise TimeoutError(f"the sandbox still runs after {timeout:g} s")
            code = 128 + signal.SIGKILL if self._told is None else self._told
            while line := _line(self._status, time.monotonic() + START_TIMEOUT):
                if line[0] == "exit":
                    code = int(line[1])
            self._launcher.wait()
            self._code = code
            self._close()
        return self._code

    def kill(self, *, wait: bool = False) -> None:
        """End everything in the sandbox. Returns at once unless told to ``wait`` for the last process.

        The kernel frees interfaces and namespaces in the background after that (0.3 s for a hundred pods).
        """
        if self._code is not None:
            return
        try:
            if self.alive:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if wait:
            self.wait()

    def _close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        os.close(self._lifeline)
        os.close(self._status)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill(wait=True)


class Launcher:
    """The child that made the sandbox: only its end is of interest."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.wait = wait

    @classmethod
    def from_popen(cls, process: subprocess.Popen[bytes]) -> Launcher:
        """Of a program that was executed."""
        return cls(process.wait)

    @classmethod
    def from_fork(cls, pid: int) -> Launcher:
        """Of a fork of this process."""
        return cls(lambda: os.waitpid(pid, 0))


def _pidfd(pid: int) -> int:
    """A descriptor for PID 1, or -1 if a short-lived main process has ended already and its launcher has seen to it."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _line(status: int, deadline: float) -> list[str]:
    """The next line from PID 1 as fields; empty at its end. Byte by byte, as the rest belongs to
    :meth:`Sandbox.wait`.
    """
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([status], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise SandboxError(f"the sandbox was not ready within {START_TIMEOUT:g} s")
        byte = os.read(status, 1)
        if not byte:
            return []
        line += byte
    return line.decode().rstrip("\n").split("\t")


class SandboxTraceback(Exception):
    """The traceback of an exception that was raised inside, as text: the cause of the same exception outside."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"


def call_in_sandbox(function: Callable[..., T], /, *args: Any, timeout: float = 60.0) -> T:
    """Call an importable function in a fresh sandbox of its own and return its result.

    Arguments and result travel pickled. The function runs in a new interpreter, so the caller may have threads. An
    exception comes back as itself, caused by a :class:`SandboxTraceback`. A call that takes longer than ``timeout``
    seconds raises SandboxError, as one whose process dies. The sandbox ends with the call.
    """
    ready, request = os.pipe()
    reply, answer = os.pipe()
    try:
        sandbox = Sandbox.start(
            [sys.executable, "-I", "-S", "-c", _CALL, str(ready), str(answer), repr(sys.path)],
            name="call",
            detached=False,
            pass_fds=(ready, answer),
        )
    except BaseException:
        os.close(request)
        os.close(reply)
        raise
    finally:
        os.close(ready)
        os.close(answer)
    with sandbox:
        with os.fdopen(request, "wb") as file:
            pickle.dump((function, args), file)
        return _result(reply, sandbox, timeout)  # type: ignore[no-any-return]


_CALL = (
    "import sys; sys.path[:] = eval(sys.argv[3]); "
    "from emulator.kernel.sandbox import _answer_request; _answer_request(int(sys.argv[1]), int(sys.argv[2]))"
)


def _answer_request(request: int, answer: int) -> NoReturn:
    with os.fdopen(request, "rb") as file:
        data = file.read()

    def call() -> object:
        function, args = pickle.loads(data)
        return function(*args)

    _answer(call, answer)
    os._exit(0)


def call_forked(function: Callable[[], T], timeout: float = 60.0) -> T:
    """Call any function in a fresh sandbox, in a fork of this process, and return its (pickled) result.

    For processes with one thread; the function may be a closure and finds everything imported. A call that takes
    longer than ``timeout`` seconds raises SandboxError, as one whose process dies.
    """
    reply, answer = os.pipe()

    def program() -> None:
        _answer(function, answer)

    def spawn(lifeline: int, status: int, caller: int) -> Launcher:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                ties = init.Ties(lifeline, caller, detached=False)
                code = init.launch("call", "", ties, init.Status(status), program)
            finally:
                os._exit(code)
        return Launcher.from_fork(pid)

    try:
        sandbox = Sandbox._launch(spawn)
    except BaseException:
        os.close(reply)
        raise
    finally:
        os.close(answer)
    with sandbox:
        return _result(reply, sandbox, timeout)  # type: ignore[no-any-return]


def _answer(function: Callable[[], object], answer: int) -> None:
    try:
        data = pickle.dumps((True, function(), ""))
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        try:
            data = pickle.dumps((False, error, text))
            pickle.loads(data)
        except Exception:
            data = pickle.dumps((False, SandboxError(f"{type(error).__name__}: {error}"), text))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with os.fdopen(answer, "wb") as file:
        file.write(data)


def _result(reply: int, sandbox: Sandbox, timeout: float) -> Any:
    deadline = time.monotonic() + timeout
    data = bytearray()
    with os.fdopen(reply, "rb", buffering=0) as file:
        while True:
            if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SandboxError(f"the call in the sandbox took longer than {timeout:g} s")
            part = file.read(1 << 16)
            if not part:
                break
            data += part
    if not data:
        raise SandboxError(f"the call in the sandbox ended without a result (exit status {sandbox.wait(10)})")
    fine, value, text = pickle.loads(data)
    if not fine:
        raise value from SandboxTraceback(text)
    return value
