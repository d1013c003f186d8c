"""The lab process's side of the DNS process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

import msgspec

from emulator.cluster.services import EndpointSlice, Service
from emulator.dns import control
from emulator.dns.control import Counters, Place
from emulator.errors import CnilabError, DaemonError
from emulator.traffic.wire import Unframer

ANSWER_SECONDS = 30.0  # start included; it takes 0.1, a machine that swaps takes longer
TAIL_LINES = 20


class DnsServers:
    """The DNS process. Any thread may call any method, one request is under way at a time.

    Every method raises DaemonError, with the last lines that the process wrote, if it is dead or does not answer.
    """

    def __init__(self, domain: str) -> None:
        """Start the process, in the namespaces of the caller. The first request waits until it is ready."""
        self._domain = domain
        self._lock = threading.Lock()
        self._next = 1
        self._unframer = Unframer()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._control, self._its_end = socket.socketpair()
        self._control.settimeout(ANSWER_SECONDS)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        # The kernel ends the process with the *thread* that started it (PR_SET_PDEATHSIG): that must be one that stays.
        self._keeper = threading.Thread(target=self._keep, name="dns", daemon=True)
        self._keeper.start()

    @property
    def pid(self) -> int:
        """The process's id; 0 if it never ran."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._keeper.is_alive() and not self._closed

    def update(
        self,
        services: Iterable[Service] = (),
        slices: Iterable[EndpointSlice] = (),
        gone_services: Iterable[tuple[str, str]] = (),
        gone_slices: Iterable[tuple[str, str]] = (),
        namespaces: Iterable[str] | None = None,
    ) -> None:
        """Tell what changed. When this returns, every answer is by the new state."""
        self._call(
            control.Update(
                self._number(),
                tuple(services),
                tuple(gone_services),
                tuple(slices),
                tuple(gone_slices),
                None if namespaces is None else tuple(namespaces),
            )
        )

    def serve(self, places: Sequence[Place], records: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Serve in these places as well, or anew; the lines that people should read if one cannot be served."""
        named = {name: tuple(values) for name, values in records.items()}
        return self._call(control.Serve(self._number(), tuple(places), named)).notices

    def stop(self, ns: Iterable[str]) -> None:
        """Close the sockets in these namespaces of the plan, as must be done before one is removed."""
        self._call(control.Stop(self._number(), tuple(ns)))

    def counters(self) -> list[Counters]:
        """What each place was asked so far."""
        return msgspec.convert(self._call(control.Count(self._number())).value, list[Counters])

    def close(self) -> None:
        """End the process, and with it every socket. Harmless if it is dead."""
        self._closed = True
        try:
            self._control.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self._keeper is not threading.current_thread():
            self._keeper.join(5.0)
        if not self._keeper.is_alive():
            self._control.close()
            self._log.close()

    def __enter__(self) -> DnsServers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _number(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def _call(self, request: control.AnyRequest) -> control.Done:
        with self._lock:
            try:
                self._control.sendall(control.frame(request), socket.MSG_NOSIGNAL)
                while True:
                    data = self._control.recv(1 << 20)
                    if not data:
                        raise ConnectionResetError("it has ended")
                    for body in self._unframer.feed(data):
                        reply = control.decode_reply(body)
                        if reply.id != request.id:
                            continue  # of an earlier request that was not waited for long enough
                        if isinstance(reply, control.Failed):
                            raise CnilabError(f"DNS: {reply.message}")
                        return reply
            except (OSError, ValueError, msgspec.DecodeError) as error:
                raise DaemonError(f"the DNS server does not answer: {error}", log=self._tail()) from None

    def _keep(self) -> None:
        try:
            with self._its_end as end:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "emulator.dns.engine", str(end.fileno()), str(os.getpid()), self._domain],
                    pass_fds=(end.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                )
        except OSError:
            return  # the other end is closed now: whoever calls learns of it
        while True:
            try:
                self._process.wait(1.0 if self._closed else None)
                return
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _tail(self) -> tuple[str, ...]:
        """The last lines that the process wrote to its standard error."""
        try:
            size = os.fstat(self._log.fileno()).st_size
            text = os.pread(self._log.fileno(), 16384, max(0, size - 16384))
        except (OSError, ValueError):
            return ()
        return tuple(text.decode("utf-8", "replace").splitlines()[-TAIL_LINES:])
