"""Run a command at a place of a running lab, from the host: what ``docker exec`` is to a container.

::

    caller ─fork─▶ guide: setns(user, pid, net, uts, ipc, mnt of PID 1) ─fork─▶ command: setns(net, mnt of the
    place), exec

Two forks, because joining a user namespace is for good, and a pid namespace takes in only children born later
(setns(2)). Both ends die with the caller. The command's exit status, its terminal and its signals are the caller's:
it is made the terminal's foreground process group, so Ctrl-C and Ctrl-Z reach it alone, as in a shell.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from emulator.errors import NotFound, SandboxError
from emulator.kernel import syscalls as sc

# mnt last: from then on /proc is the lab's.
_OF_LAB = ("user", "pid", "net", "uts", "ipc", "mnt")
_OF_PLACE = ("net", "uts", "ipc", "mnt")
_FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
# Held back while the command runs. SIGTTOU would stop whoever hands the terminal over from the background
# (tcsetpgrp(3)).
_HELD = _FORWARDED | {signal.SIGCHLD, signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP}
_FILES = "/run/cnilab/files"  # inside: a mount point for the copies behind the files that a command sees


def enter(
    init: int,
    argv: Sequence[str],
    *,
    machine: int | None = None,
    netns: str | None = None,
    hostname: str = "",
    files: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> int:
    """Run ``argv`` in the lab whose PID 1 the host calls ``init``, with our own standard files; its exit status.

    ``machine``, the pid of a machine's shell as the lab counts, chooses that process' namespaces (a node: Mininet's
    shell for it); ``netns`` the network namespace at a path of the lab (a pod). The command may be given a host
    name, and ``files`` (path to text) that it alone sees. ``env`` is
    added to our environment. The status is 127 if there
    is no such program, 126 if it cannot be executed, 128 + signal if one ended it. For a main thread: signals are
    held back while the command runs.

    Raises NotFound if the lab or the process is gone, SandboxError if the lab cannot be entered.
    """
    told, trouble = os.pipe()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        guide = os.fork()
        if guide == 0:
            code = 125
            try:
                os.close(told)
                sc.die_with_parent(signal.SIGKILL)
                place = _Place(machine, netns, hostname, dict(files or {}))
                code = _guide(init, list(argv), place, {**os.environ, **(env or {})}, cwd, held, trouble)
            finally:
                os._exit(code)
        os.close(trouble)
        with os.fdopen(told, "rb") as file:
            said = file.read()  # empty once the command has been executed
        code = _attend(guide, terminal=-1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    if said:
        kind, message = said.decode(errors="replace").split("\t", 1)
        raise (NotFound if kind == "gone" else SandboxError)(message)
    return code


def run(
    init: int,
    argv: Sequence[str],
    *,
    machine: int | None = None,
    netns: str | None = None,
    hostname: str = "",
    files: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    input: str | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """As :func:`enter`, but collect what the command prints. From any thread. Raises subprocess.TimeoutExpired as
    well.
    """
    place = {"machine": machine, "netns": netns, "hostname": hostname, "files": dict(files or {}), "cwd": cwd}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _HELPER, root, str(init), json.dumps(place), *argv],
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=timeout,
    )
    if done.returncode == _FAILED and done.stderr.startswith(_MARK):
        kind, message = done.stderr.removeprefix(_MARK).rstrip("\n").split("\t", 1)
        raise (NotFound if kind == "NotFound" else SandboxError)(message)
    return subprocess.CompletedProcess(list(argv), done.returncode, done.stdout, done.stderr)


_FAILED = 125  # as docker exec: the command was not even tried
_MARK = "\x00cnilab\t"
_HELPER = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from emulator.kernel.enter import _helper; _helper(int(sys.argv[2]), sys.argv[3], sys.argv[4:])"
)


def _helper(init: int, place: str, argv: list[str]) -> NoReturn:
    try:
        code = enter(init, argv, **json.loads(place))
    except (NotFound, SandboxError) as error:
        print(f"{_MARK}{type(error).__name__}\t{error}", file=sys.stderr)
        code = _FAILED
    sys.exit(code)


class _Place:
    """Where in the lab, and with which files and name."""

    def __init__(self, machine: int | None, netns: str | None, hostname: str, files: dict[str, str]) -> None:
        self.machine = machine
        self.netns = netns
        self.hostname = hostname
        self.files = files


def _guide(
    init: int, argv: list[str], place: _Place, env: dict[str, str], cwd: str, held: Iterable[int], trouble: int
) -> int:
    """Enter the lab, fork the command in it, and look after it; the command's exit status."""
    terminal = 0 if _in_foreground(0) else -1
    try:
        _join(f"/proc/{init}/ns", _OF_LAB)
        command = os.fork()
    except OSError as error:
        return _tell(trouble, error, "the lab has ended", "enter the lab")
    if command == 0:
        code = _FAILED
        try:
            code = _command(argv, place, env, cwd, held, terminal, trouble)
        finally:
            os._exit(code)
    os.close(trouble)
    return _attend(command, terminal)


def _command(
    argv: list[str],
    place: _Place,
    env: dict[str, str],
    cwd: str,
    held: Iterable[int],
    terminal: int,
    trouble: int,
) -> int:
    where = place.netns or (f"process {place.machine}" if place.machine else "PID 1")
    try:
        sc.die_with_parent(signal.SIGKILL)
        if place.machine:
            _join(f"/proc/{place.machine}/ns", _OF_PLACE)
        if place.netns:
            _join_netns(place.netns)
    except OSError as error:
        return _tell(trouble, error, f"{where} is not in the lab", f"join {where} of the lab")
    try:
        if place.files or place.netns:
            own_mounts(place.files, fresh_sys=bool(place.netns))
        if place.hostname:
            sc.unshare(sc.CLONE_NEWUTS)
            sc.set_hostname(place.hostname)
        os.chdir(cwd)
        if terminal >= 0:
            os.setpgid(0, 0)
            os.tcsetpgrp(terminal, os.getpgrp())
    except OSError as error:
        return _tell(trouble, error, "", f"prepare a command beside {where} of the lab")
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # exec keeps what is ignored, and Python ignores the last two
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        # A search that meets a directory of PATH which we may not read ends in EACCES, and has still found nothing.
        return 126 if "/" in argv[0] and not isinstance(error, FileNotFoundError) else 127


def _join(directory: str, kinds: Sequence[str]) -> None:
    """Enter those namespaces of a process that are not ours already (setns(2) refuses one's own user namespace)."""
    fds = []
    for kind in kinds:
        fd = os.open(f"{directory}/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(fd).st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino:
            os.close(fd)
        else:
            fds.append(fd)
    for fd in fds:
        sc.setns(fd)
        os.close(fd)


def _join_netns(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    sc.setns(fd, sc.CLONE_NEWNET)
    os.close(fd)


def own_mounts(files: Mapping[str, str], *, fresh_sys: bool) -> None:
    """A mount namespace for this thread in which the given files have the given text and, with ``fresh_sys``, /sys
    shows the network namespace that it is in."""
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount("none", "/", flags=sc.MS_REC | sc.MS_PRIVATE)
    if fresh_sys:
        sc.mount("sysfs", "/sys", "sysfs", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC | sc.MS_RDONLY)
    if not files:
        return
    os.makedirs(_FILES, exist_ok=True)
    sc.mount("tmpfs", _FILES, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755")
    for number, (path, text) in enumerate(files.items()):
        copy = f"{_FILES}/{number}"
        with open(copy, "w") as file:
            file.write(text)
        sc.mount(copy, _mount_point(path), flags=sc.MS_BIND)
    sc.umount(_FILES)


def _mount_point(path: str) -> str:
    """Where to mount a file so that it is seen at ``path``. A link into /run (resolv.conf with systemd) dangles in a
    lab.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real) and real.startswith("/run/"):
        os.makedirs(os.path.dirname(real), exist_ok=True)
        os.close(os.open(real, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    return real


def _tell(trouble: int, error: OSError, gone: str, doing: str) -> int:
    """Pass an error on to :func:`enter` in the caller."""
    if gone and isinstance(error, FileNotFoundError | ProcessLookupError):
        said = f"gone\t{gone}"
    else:
        said = f"failed\tcannot {doing}: {error.strerror or error}"
    os.write(trouble, said.encode())
    return _FAILED


def _in_foreground(fd: int) -> bool:
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # ENOTTY: a terminal, but of another session
        return False


def _attend(child: int, terminal: int) -> int:
    """Wait for a child, passing on signals and stops; its exit status. Takes the ``terminal`` back, unless that is
    -1.
    """
    while True:
        got = signal.sigwaitinfo(_HELD)
        # What the kernel sent on a key press (SI_KERNEL), the child has got as well; what a process sent was for us
        # alone.
        if got.si_signo in _FORWARDED and got.si_code <= 0:
            os.kill(child, got.si_signo)
        pid, result = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            continue
        if terminal >= 0:
            os.tcsetpgrp(terminal, os.getpgrp())
        if not os.WIFSTOPPED(result):
            code = os.waitstatus_to_exitcode(result)
            return code if code >= 0 else 128 - code
        os.kill(os.getpid(), signal.SIGSTOP)  # so that our own parent sees it; the shell's `fg` wakes us up here
        if terminal >= 0:
            os.tcsetpgrp(terminal, os.getpgid(child))
        os.kill(child, signal.SIGCONT)
