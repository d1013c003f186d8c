"""The traffic process: every server, probe and stream of a lab, in one thread around one epoll.

A socket belongs to the namespace that its maker was in, so this process enters a pod's namespace, makes the socket,
and leaves again: a thousand pods are served without a process in any of them. The lab process (client.py) starts it as
``python -m emulator.traffic.engine FD PARENT`` and talks to it over the inherited socket FD in the frames of wire.py.
It ends when that socket closes or when the thread of process PARENT that started it ends, whichever comes first.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys

import msgspec

from emulator.kernel.syscalls import die_with_parent
from emulator.traffic import wire
from emulator.traffic.freshports import FreshPorts
from emulator.traffic.loop import READ, WRITE, Loop
from emulator.traffic.model import ProbeResult, StreamReport, probe_problem
from emulator.traffic.probes import Prober
from emulator.traffic.servers import NoNamespace, Servers
from emulator.traffic.streams import StreamError, Streams

FILES_WANTED = 1 << 20
PROBES_AT_ONCE = 2048  # two descriptors each, if both ends are ours


class Engine:
    """Requests from the control socket to servers, probes and streams; their results back."""

    def __init__(self, control: socket.socket, files: int) -> None:
        self._loop = Loop()
        self._control = control
        self._unframer = wire.Unframer()
        self._output = bytearray()
        ports = FreshPorts()
        self._servers = Servers(self._loop, lambda text: self._send(wire.Notice(text)))
        self._prober = Prober(self._loop, ports, min(PROBES_AT_ONCE, max(16, files // 4)))
        self._streams = Streams(self._loop, ports)
        control.setblocking(False)
        self._loop.watch(control.fileno(), READ, self._ready)
        self._send(wire.Hello(files))

    def run(self) -> None:
        """Until the lab closes its end."""
        self._loop.run()

    def _ready(self, events: int) -> None:
        if events & ~WRITE:
            try:
                data = self._control.recv(1 << 20)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"":
                self._loop.stop()
                return
            try:
                for body in self._unframer.feed(data or b""):
                    self._handle(wire.decode_request(body))
            except (msgspec.DecodeError, ValueError) as error:
                # What follows could be anything: there is no way to find the next frame.
                print(f"the lab process sent something else than a request: {error}", file=sys.stderr)
                self._loop.stop()
                return
        self._flush()

    def _handle(self, request: wire.AnyRequest) -> None:
        try:
            self._do(request)
        except NoNamespace as error:
            self._send(wire.Failed(request.id, "NotFound", str(error)))
        except StreamError as error:
            self._send(wire.Failed(request.id, "UserError", str(error)))
        except OSError as error:
            self._send(wire.Failed(request.id, "CnilabError", str(error)))

    def _do(self, request: wire.AnyRequest) -> None:
        number = request.id
        if isinstance(request, wire.RunProbes):
            for probe in request.probes:
                if problem := probe_problem(probe):
                    self._send(wire.Failed(number, "UserError", f"probe {probe.id}: {problem}"))
                    return
            self._prober.run(request.probes, lambda results: self._answer(number, results))
        elif isinstance(request, wire.Serve):
            for server in request.servers:
                self._servers.serve(server)
            self._answer(number)
        elif isinstance(request, wire.Stop):
            for ns in request.ns:
                self._servers.stop(ns)
            self._answer(number)
        elif isinstance(request, wire.StartStream):
            if problem := probe_problem(request.probe):
                self._send(wire.Failed(number, "UserError", f"stream {request.stream}: {problem}"))
                return
            self._streams.start(request.stream, request.probe, request.rate)
            self._answer(number)
        else:
            self._streams.stop(request.stream, request.grace, lambda report: self._answer(number, report))

    def _answer(self, number: int, value: list[ProbeResult] | StreamReport | None = None) -> None:
        self._send(wire.Done(number, value))

    def _send(self, message: wire.AnyReply) -> None:
        self._output += wire.frame(message)
        self._flush()

    def _flush(self) -> None:
        if self._output:
            try:
                sent = self._control.send(self._output)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._loop.stop()
                return
            del self._output[:sent]
        self._loop.change(self._control.fileno(), READ | WRITE if self._output else READ)


def raise_file_limit() -> int:
    """Allow as many descriptors as this user may have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= FILES_WANTED:
        soft = FILES_WANTED
    else:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_WANTED, FILES_WANTED))
            return FILES_WANTED
        except (OSError, ValueError):
            soft = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def main() -> None:
    """Serve the socket whose descriptor is the first argument, for the process whose id is the second."""
    fd, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        return  # it ended before the line above
    # Ctrl-C on the lab's terminal is for the lab to handle; it closes our socket when it is done with us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine = Engine(socket.socket(fileno=fd), raise_file_limit())
    # What the imports made never becomes garbage: full collections need not walk through it.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    engine.run()


if __name__ == "__main__":
    main()
