"""The lab process's side of the traffic engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, TypeVar

import msgspec

from emulator import errors
from emulator.errors import CnilabError, DaemonError
from emulator.traffic import injection, wire
from emulator.traffic.model import InjectionReport, Probe, ProbeResult, Server, StreamReport

START_SECONDS = 10.0  # it takes 0.05; a machine that swaps takes longer
ANSWER_SECONDS = 30.0  # for requests that wait for no packet, and on top of those that do
TAIL_LINES = 20

_Answer = TypeVar("_Answer")


class TrafficEngine:
    """The engine process and the requests under way. Any thread may call any method.

    Every method raises DaemonError, with the last lines that the engine wrote, if it is dead or does not answer.
    """

    def __init__(self, notice: Callable[[str], None] | None = None) -> None:
        """For :meth:`start`."""
        self._notice = notice
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._next = 1
        self._gone = ""
        self._closing = False
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the engine
        self._control, self._engines_end = socket.socketpair()
        self.files = 0
        # The kernel ends the engine with the *thread* that started it (PR_SET_PDEATHSIG), so that must be one that
        # lives as long as this object.
        self._reader = threading.Thread(target=self._run, name="traffic-engine", daemon=True)

    @classmethod
    def start(cls, notice: Callable[[str], None] | None = None, *, wait: bool = True) -> TrafficEngine:
        """Start the process, in the namespaces of the caller, and wait until it is ready.

        ``notice`` is called, from another thread, with each line that a user may want to know (a port that cannot be
        served, say). Without ``wait`` the first request waits instead, and raises what is wrong.
        """
        engine = cls(notice)
        engine._reader.start()
        if not wait:
            return engine
        engine._ready.wait(START_SECONDS)
        if engine._gone or not engine._ready.is_set():
            engine.close()
            raise engine._dead(engine._gone or f"did not start within {START_SECONDS:.0f} s")
        return engine

    @property
    def pid(self) -> int:
        """The engine's process id; 0 if it never ran."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        """Whether requests can be made."""
        return self._ready.is_set() and not self._gone

    def serve(self, servers: Iterable[Server]) -> None:
        """Have these namespaces answer on exactly the ports named; those not named here are left as they are.

        Raises NotFound if a namespace does not exist; those before it in the list are served.
        """
        self._call(lambda number: wire.Serve(number, tuple(servers)), object, ANSWER_SECONDS)

    def stop(self, ns: str | Iterable[str]) -> None:
        """Close what these namespaces (by their name in the plan) serve. To be called before one is removed: a
        listening socket keeps its namespace alive."""
        names = (ns,) if isinstance(ns, str) else tuple(ns)
        self._call(lambda number: wire.Stop(number, names), object, ANSWER_SECONDS)

    def probe(self, probes: Sequence[Probe], timeout: float | None = None) -> list[ProbeResult]:
        """Send all of them at once, and return their results in the same order.

        ``timeout`` bounds the whole call in seconds; by default it is what the probes may need. Raises UserError for a
        probe that no packet can be made of.
        """
        bound = timeout if timeout is not None else ANSWER_SECONDS + _longest(probes)
        return self._call(lambda number: wire.RunProbes(number, tuple(probes)), list[ProbeResult], bound)

    def stream_start(self, stream: str, probe: Probe, rate: float) -> None:
        """Repeat ``probe`` ``rate`` times a second (its count and interval do not matter) until :meth:`stream_stop`."""
        self._call(lambda number: wire.StartStream(number, stream, probe, rate), object, ANSWER_SECONDS)

    def stream_stop(self, stream: str, grace: float = 0.2) -> StreamReport:
        """End a stream; answers may arrive for ``grace`` more seconds."""
        return self._call(lambda number: wire.StopStream(number, stream, grace), StreamReport, ANSWER_SECONDS + grace)

    def replay(
        self,
        capture: str | os.PathLike[str],
        netns: str,
        *,
        device: str = "eth0",
        rewrite: Mapping[str, str] | None = None,
        speed: float = 1.0,
        source: str = "",
        timeout: float = 600.0,
    ) -> InjectionReport:
        """Send the packets of a capture from a namespace, addresses rewritten: see ``injection.replay``."""
        return injection.replay(
            os.fspath(capture), netns, device=device, rewrite=rewrite, speed=speed, source=source, timeout=timeout
        )

    def send(
        self,
        netns: str,
        expression: str,
        *,
        device: str = "eth0",
        count: int = 1,
        interval: float = 0.0,
        origin: str = "<expression>",
        subject: str = "",
        timeout: float = 60.0,
    ) -> InjectionReport:
        """Send hand-made packets, written as a scapy expression, from a namespace: see ``injection.send``."""
        return injection.send(
            netns,
            expression,
            device=device,
            count=count,
            interval=interval,
            origin=origin,
            subject=subject,
            timeout=timeout,
        )

    def close(self) -> None:
        """End the engine, and with it every socket. Harmless if it is dead."""
        self._closing = True
        try:
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self._reader.is_alive() and threading.current_thread() is not self._reader:
            self._reader.join(5.0)
        if not self._reader.is_alive():
            self._log.close()

    def __enter__(self) -> TrafficEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, make: Callable[[int], wire.AnyRequest], kind: type[_Answer], timeout: float) -> _Answer:
        pending = _Pending()
        with self._lock:
            if self._gone:
                raise self._dead(self._gone)
            number = self._next
            self._next += 1
            self._pending[number] = pending
        try:
            data = wire.frame(make(number))
            try:
                with self._sending:
                    # No SIGPIPE: whoever embeds us may not ignore it.
                    self._control.sendall(data, socket.MSG_NOSIGNAL)
            except OSError:
                pending.done.wait(1.0)  # the reader learns of it too, and knows why
            if not pending.done.wait(timeout):
                raise self._dead(f"did not answer within {timeout:.0f} s")
        finally:
            with self._lock:
                self._pending.pop(number, None)
        reply = pending.reply
        if reply is None:
            raise self._dead(self._gone)
        if isinstance(reply, wire.Failed):
            raise _error(reply)
        return msgspec.convert(reply.value, kind)

    def _run(self) -> None:
        """The reader thread: start the process, take its messages, and see it end."""
        reason = "ended"
        try:
            with self._engines_end as end:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "emulator.traffic.engine", str(end.fileno()), str(os.getpid())],
                    pass_fds=(end.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                )
            self._read()
        except (OSError, ValueError, msgspec.DecodeError) as error:
            reason = f"cannot be talked to: {error}"
        if self._process is not None:
            reason = self._reap(reason)
        with self._lock:
            self._gone = reason
            pending = list(self._pending.values())
        for one in pending:
            one.done.set()
        self._ready.set()
        self._control.close()

    def _read(self) -> None:
        unframer = wire.Unframer()
        while data := self._control.recv(1 << 20):
            for body in unframer.feed(data):
                message = wire.decode_reply(body)
                if isinstance(message, wire.Hello):
                    self.files = message.files
                    self._ready.set()
                elif isinstance(message, wire.Notice):
                    if self._notice is not None:
                        self._notice(message.text)
                else:
                    with self._lock:
                        pending = self._pending.get(message.id)
                    if pending is not None:
                        pending.reply = message
                        pending.done.set()

    def _reap(self, reason: str) -> str:
        assert self._process is not None
        self._control.close()
        try:
            code = self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._closing:
            return "was closed"
        return f"{reason} ({f'signal {-code}' if code < 0 else f'exit code {code}'})"

    def _dead(self, reason: str) -> DaemonError:
        return DaemonError(f"the traffic engine {reason}", log=self._tail())

    def _tail(self) -> tuple[str, ...]:
        """The last lines that the engine wrote to its standard error."""
        try:
            size = os.fstat(self._log.fileno()).st_size
            text = os.pread(self._log.fileno(), 16384, max(0, size - 16384))
        except (OSError, ValueError):
            return ()
        return tuple(text.decode("utf-8", "replace").splitlines()[-TAIL_LINES:])


class _Pending:
    """A request without an answer yet."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.reply: wire.Done | wire.Failed | None = None


def _error(reply: wire.Failed) -> CnilabError:
    kind = getattr(errors, reply.kind, CnilabError)
    return kind(reply.message) if kind is not CnilabError else CnilabError(reply.message)


def _longest(probes: Sequence[Probe]) -> float:
    """An upper bound, in seconds, of what the slowest of ``probes`` may take: every packet at its timeout."""
    return max((probe.count * (probe.timeout + probe.interval) for probe in probes), default=0.0) + len(probes) * 0.01
