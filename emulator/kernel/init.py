"""PID 1 of a lab: makes the private namespaces and mounts, starts one program in them, reaps, and dies on time.

::

    caller ──exec──▶ launcher ──unshare, fork──▶ PID 1 ──fork, exec──▶ the lab's program
       │                │                          │                       └─▶ everything else
       │ lifeline ══════╪══════════════════════════▶ a byte: live on without the caller (detached only); EOF: die
       │ pidfd of the caller ══════════════════════▶ readable: the caller is gone, die
       ◀═══════════════ status ═════════════════════ "pid N", "ready", "exit N" or one line saying what failed

An attached lab's launcher stays, because only a parent can pass an exit status on; a detached one's leaves at once.
PID 1 holds both the lifeline and a pidfd of its caller: a pipe is kept open by every copy a fork makes, a pidfd is
not; and unlike PR_SET_PDEATHSIG, which is bound to the *thread* that forked (prctl(2)), neither mistakes the end of
a thread for that of its process. When PID 1 ends, for whatever reason, the kernel kills the rest of the pid
namespace and frees the others (pid_namespaces(7)).

Starts with ``python -I -S``: nothing but a few modules of the standard library may be imported here, since every lab
waits for it.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
from collections.abc import Callable

from emulator.kernel import syscalls as sc

HOST_DIRECTORY = (
    "/run/cnilab/host"  # inside: the lab's registry directory of the host, where the lab binds its api.sock
)
NETNS_DIRECTORY = (
    "/run/netns"  # as iproute2 (NETNS_RUN_DIR); again in kernel/netns.py, which imports too much for PID 1
)
RELEASE = b"r"  # what the caller writes to the lifeline to let a detached lab live on without it

_NAMESPACES = sc.CLONE_NEWNET | sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC
_PLAIN = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC


Program = list[str] | Callable[[], None]  # an argument vector, searched in PATH, or a function to call


class Status:
    """The pipe on which PID 1 and its launcher tell the caller how far they are: one line each, fields parted by
    tabs.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def say(self, *fields: object) -> None:
        """Write one line. A caller that is gone does not matter: the lifeline says so too."""
        line = "\t".join(" ".join(str(field).split()) for field in fields) + "\n"
        try:
            os.write(self.fd, line.encode())
        except OSError:
            pass

    def fail(self, error: OSError, doing: str) -> None:
        """Say why there is no lab. A refusal becomes advice; anything else is passed on as it is."""
        from emulator.kernel.restrictions import explain

        advice = explain(error, doing)
        if advice is None:
            where = f": {error.filename}" if error.filename else ""
            self.say("failed", f"{doing}: {error.strerror or error}{where}", "")
        else:
            self.say("unsupported", *advice)


class Ties:
    """What holds a lab to its caller: the lifeline's read end, a pidfd of the caller, and which of the two lives it
    has.
    """

    def __init__(self, lifeline: int, caller: int, *, detached: bool) -> None:
        self.lifeline = lifeline
        self.caller = caller
        self.detached = detached

    def released(self) -> bool:
        """Whether the caller let go. Asked anew at its end, too: poll(2) may have looked here just before it wrote
        and left.
        """
        written = self.detached and select.select([self.lifeline], [], [], 0)[0]
        return bool(written) and os.read(self.lifeline, 1) == RELEASE


def launch(name: str, directory: str, ties: Ties, status: Status, program: Program) -> int:
    """Run ``program`` as the lab's main process; the exit status for the launcher (0 at once when detached).

    Only the launcher returns from here. A function is called in a child of PID 1, whose status is 0 if it returns.
    The process must have one thread: unshare(CLONE_NEWUSER) refuses others.
    """
    doing = "make private namespaces"
    try:
        _unshare()
        doing = "start PID 1 of the lab"
        launcher = os.pidfd_open(os.getpid())
        pid = os.fork()
    except OSError as error:
        status.fail(error, doing)
        return 1
    if pid == 0:
        code = 1
        try:
            code = _pid_one(name, directory, ties, status, program, launcher)
        finally:
            os._exit(code)
    status.say("pid", pid)
    os.close(launcher)
    os.close(status.fd)
    os.close(ties.lifeline)
    return 0 if ties.detached else _stay(pid, ties.caller)


def _unshare() -> None:
    """Leave for private namespaces: with the caller's own rights if they suffice, else in a user namespace of which
    it is root.
    """
    if os.geteuid() == 0:
        try:
            sc.unshare(_NAMESPACES)
            return
        except PermissionError:
            pass  # root without CAP_SYS_ADMIN, as in most containers: same way as any user
    uid, gid = os.geteuid(), os.getegid()
    sc.unshare(_NAMESPACES | sc.CLONE_NEWUSER)
    # One id each needs no helper program; a gid map without privilege needs setgroups denied first
    # (user_namespaces(7)).
    for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        fd = os.open(f"/proc/self/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _stay(pid: int, caller: int) -> int:
    """Wait for PID 1 and return its exit status; kill it when the caller dies, should it be stopped and not see that
    itself.
    """
    lab = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(lab, select.POLLIN)
    poll.register(caller, select.POLLIN)
    if not any(fd == lab for fd, _ in poll.poll()):
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _pid_one(name: str, directory: str, ties: Ties, status: Status, program: Program, launcher: int) -> int:
    if not ties.detached:
        sc.die_with_parent(signal.SIGKILL)
        if select.select([launcher], [], [], 0)[0]:
            return 1  # the launcher died before we could ask to die with it
    os.close(launcher)
    doing = "make the lab's private mounts"
    try:
        _mounts(directory)
        doing = "set the lab's host name"
        sc.set_hostname(name)
        doing = "set the loopback device up"
        sc.link_up("lo")
        doing = "start the lab's main process"
        woken, main = _start(program, ties, status)
    except OSError as error:
        status.fail(error, doing)
        return 1
    if main:
        status.say("ready")
    code = _reap(main, woken, ties)
    status.say("exit", code)
    return code


def _mounts(directory: str) -> None:
    """Replace every mount that shows the host, or through which the lab could change it."""
    sc.mount("none", "/", flags=sc.MS_REC | sc.MS_PRIVATE)
    # Opened before /run is covered, as the directory may lie under it, and in this mount namespace: the kernel binds
    # no other.
    shown = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if directory else -1

    sc.mount("proc", "/proc", "proc", _PLAIN)
    # All of /proc/sys but net is the host's own: no lab may change it, root's neither. net follows the reader's
    # namespace.
    _read_only("/proc/sys", "/proc/sysrq-trigger")
    sc.mount("/proc/sys/net", "/proc/sys/net", flags=sc.MS_BIND)
    sc.mount("none", "/proc/sys/net", flags=sc.MS_REMOUNT | sc.MS_BIND | _PLAIN)

    sc.mount("sysfs", "/sys", "sysfs", _PLAIN | sc.MS_RDONLY)

    sc.mount("tmpfs", "/run", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755")
    for path in ("/run/lock", NETNS_DIRECTORY, HOST_DIRECTORY, "/run/cnilab/pods"):
        os.makedirs(path, 0o755)
    # `ip netns add` wants a shared mount here, so that names show up in mount namespaces made earlier.
    sc.mount(NETNS_DIRECTORY, NETNS_DIRECTORY, flags=sc.MS_BIND)
    sc.mount("none", NETNS_DIRECTORY, flags=sc.MS_SHARED)
    if shown >= 0:
        sc.mount(f"/proc/self/fd/{shown}", HOST_DIRECTORY, flags=sc.MS_BIND)
        os.close(shown)
    # POSIX shared memory is files here; an ipc namespace does not part them.
    if stat.S_ISDIR(os.lstat("/dev/shm").st_mode if os.path.lexists("/dev/shm") else 0):
        sc.mount("tmpfs", "/dev/shm", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=1777")


def _read_only(*paths: str) -> None:
    for path in paths:
        if os.path.exists(path):
            sc.mount(path, path, flags=sc.MS_BIND)
            sc.mount("none", path, flags=sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | _PLAIN)


def _start(program: Program, ties: Ties, status: Status) -> tuple[int, int]:
    """Fork ``program``; the pipe that wakes :func:`_reap`, and the child's pid, or 0 if it could not even be
    executed.
    """
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    # The kernel drops what PID 1 does not handle (pid_namespaces(7)); Python's own SIGINT handler would end the lab
    # at a Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    executed, trouble = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        code = 127
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)  # exec keeps what is ignored, and Python ignores the last two
            for fd in (woken, wake, executed, status.fd, ties.lifeline, ties.caller):
                os.close(fd)
            if callable(program):
                for number in (signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(number, signal.SIG_IGN)  # as Python starts: a closed peer is an error, not the end
                os.close(trouble)
                program()
                code = 0
            else:
                _execute(program, trouble)
        finally:
            os._exit(code)
    os.close(trouble)
    said = os.read(executed, 4096)  # empty: exec closed the other end
    os.close(executed)
    if said:
        status.say("failed", f"start the lab's main process: {said.decode(errors='replace')}", "")
        return woken, 0
    return woken, pid


def _execute(argv: list[str], trouble: int) -> None:
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(trouble, f"{argv[0]}: {error.strerror}".encode())


def _reap(main: int, woken: int, ties: Ties) -> int:
    """Collect the dead until the main process is among them or the tie to the caller ends; the exit status of PID 1."""
    poll = select.poll()
    for fd in (woken, ties.lifeline, ties.caller):
        poll.register(fd, select.POLLIN)
    while main:
        while True:
            try:
                pid, result = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == main:
                code = os.waitstatus_to_exitcode(result)
                return code if code >= 0 else 128 - code
        ready = {fd for fd, _ in poll.poll()}
        if woken in ready:
            os.read(woken, 512)
        if ready & {ties.lifeline, ties.caller}:
            if not ties.released():
                return 128 + signal.SIGKILL
            poll.unregister(ties.lifeline)
            poll.unregister(ties.caller)
    return 127


def main(arguments: list[str]) -> int:
    """``LIFELINE STATUS CALLER attached|detached NAME DIRECTORY ARGV...``, the first three being descriptors."""
    lifeline, status, caller = map(int, arguments[:3])
    mode, name, directory, *argv = arguments[3:]
    for fd in (lifeline, status, caller):
        os.set_inheritable(fd, False)
    ties = Ties(lifeline, caller, detached=mode == "detached")
    return launch(name, directory, ties, Status(status), argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
