"""Starting a lab from the host, and getting at one that runs.

::

    caller ──Sandbox.start──▶ PID 1 ──exec──▶ lab process     boot record on stdin, progress on a pipe
       └── registry: <base>/<name>/lab.json, api.sock, lab.log
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from emulator.cluster.model import Topology
from emulator.errors import DaemonError, SandboxError
from emulator.kernel import neighbour_table, registry
from emulator.kernel.sandbox import Sandbox
from emulator.lab.process import SOCKET, STATUS_FD
from emulator.lab.records import Boot, DnsWish, Entry
from emulator.lab.wire import error_from_wire
from emulator.policy.enforcer import PolicyMode

INSIDE = "/run/cnilab/host"  # where the lab process finds its registry directory
LOG = "lab.log"
LOG_TAIL = 20  # lines of the lab process' own log that go into an error

Progress = Callable[[str], None]


class Launched:
    """A running lab as this process holds it: through its sandbox if it started it, else through the registry."""

    def __init__(self, name: str, directory: Path, pid: int, sandbox: Sandbox | None) -> None:
        self.name = name
        self.pid = pid
        self._directory = directory
        self._sandbox = sandbox

    @classmethod
    def running(cls, record: registry.LabRecord) -> Launched:
        """A lab that another process started."""
        return cls(record.name, record.directory, record.pid, None)

    @property
    def socket(self) -> str:
        """The path of the API socket."""
        return str(self._directory / SOCKET)

    def stop(self, *, wait: bool = False) -> None:
        """End the lab. Returns once it is told to die or, with ``wait``, once its last process is gone."""
        if self._sandbox is not None:
            self._sandbox.kill(wait=True)  # also reaps the launcher, which is our child
            registry.remove(self.name)
        else:
            registry.kill(self.name, wait=wait)

    def enter(self, entry: Entry, argv: Sequence[str]) -> int:
        """Run a command in the lab with this process's own terminal; its exit status."""
        from emulator.kernel.enter import enter

        return enter(self.pid, argv, **_place(entry))

    def run(self, entry: Entry, argv: Sequence[str], timeout: float | None) -> subprocess.CompletedProcess[str]:
        """Run a command in the lab and collect its output. Raises subprocess.TimeoutExpired."""
        from emulator.kernel.enter import run

        return run(self.pid, argv, timeout=timeout, **_place(entry))


def _place(entry: Entry) -> dict[str, Any]:
    return {
        "netns": entry.netns or None,
        "machine": entry.pid or None,
        "hostname": entry.hostname,
        "files": entry.files,
        "env": entry.env,
    }


def launch(
    *,
    topology: str | os.PathLike[str] | Topology,
    cni: str,
    objects: Sequence[dict[str, Any]],
    name: str | None,
    detached: bool,
    wire_accurate: bool,
    allow_missing: bool,
    dns: DnsWish,
    policy_mode: PolicyMode = "faithful",
    progress: Progress,
) -> Launched:
    """Start a lab and return when it is wired and its routes are in the kernel.

    Raises what is wrong with the input or this machine (UserError and below), and SandboxError, ApplyError or
    DaemonError for what fails on the way; nothing is left behind then.
    """
    from emulator.cluster.topology import load_topology
    from emulator.cni.styles import load_style, settle, style_key

    cni = settle(cni)  # the lab process runs in another folder
    load_style(cni)  # raises NotFound here already, before anything is begun
    resolved = topology if isinstance(topology, Topology) else load_topology(os.fspath(topology))
    chosen = _name(style_key(cni), detached) if name is None else name
    directory = registry.reserve(chosen)
    sandbox: Sandbox | None = None
    crowded = neighbour_table.refusals()

    def say(text: str) -> None:
        full = neighbour_table.refusals() > crowded
        progress(f"{text}; the machine's table of neighbours is full" if full else text)

    try:
        boot = Boot(chosen, INSIDE, resolved, cni, tuple(objects), wire_accurate, allow_missing, dns, policy_mode)
        sandbox, status = _start(chosen, directory, boot, detached)
        _await_ready(status, directory, say)
        registry.publish(chosen, pid=sandbox.pid, topology=resolved.name, style=style_key(cni), detached=detached)
        if detached:
            sandbox.release()
    except BaseException as error:
        if sandbox is not None:
            sandbox.kill(wait=True)
        registry.remove(chosen)
        if isinstance(error, DaemonError) and not error.hint and neighbour_table.refusals() > crowded:
            error.hint = neighbour_table.hint()
        raise
    return Launched(chosen, directory, sandbox.pid, sandbox)


def _name(cni: str, detached: bool) -> str:
    """``up`` names a lab after its style; private ones only need to differ."""
    plain = re.sub(r"[^a-z0-9]+", "-", cni.lower())[:48].strip("-")
    return plain if detached else f"{plain}-{secrets.token_hex(3)}"


def _start(name: str, directory: Path, boot: Boot, detached: bool) -> tuple[Sandbox, int]:
    boot_read, boot_write = os.pipe()
    status_read, status_write = os.pipe()
    try:
        with open(directory / LOG, "wb") as log:
            sandbox = Sandbox.start(
                [sys.executable, "-m", "emulator.lab.process"],
                name=name,
                detached=detached,
                directory=directory,
                env={**os.environ, STATUS_FD: str(status_write), "PYTHONPATH": _import_path()},
                pass_fds=(status_write,),
                stdin=boot_read,
                stdout=log,
                stderr=log,
            )
    except BaseException:
        os.close(boot_write)
        os.close(status_read)
        raise
    finally:
        os.close(boot_read)
        os.close(status_write)
    try:
        with os.fdopen(boot_write, "wb") as pipe:
            pipe.write(msgspec.json.encode(boot))
    except BrokenPipeError:
        pass  # the lab process died before it read: its status says why
    return sandbox, status_read


def _import_path() -> str:
    """Where this very package lies, for runs from a checkout that is not installed."""
    root = str(Path(__file__).parents[2])
    inherited = os.environ.get("PYTHONPATH", "")
    return f"{root}{os.pathsep}{inherited}" if inherited else root


def _await_ready(status: int, directory: Path, progress: Progress) -> None:
    with os.fdopen(status, "rb") as lines:
        for line in lines:
            message = msgspec.json.decode(line)
            if "error" in message:
                raise error_from_wire(message["error"])
            if message.get("ready"):
                return
            progress(str(message.get("progress", "")))
    tail = "\n".join(_tail(directory / LOG))
    raise SandboxError(f"the lab process died while it was starting{':' if tail else ''}\n{tail}".rstrip())


def _tail(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-LOG_TAIL:]
    except OSError:
        return []
