"""The DNS process: every DNS server of a lab, in one thread around one epoll.

As the traffic engine does, it enters a namespace, makes the sockets, and leaves again. The lab process (client.py)
starts it as ``python -m emulator.dns.engine FD PARENT DOMAIN`` and talks to it over the inherited socket FD in the
frames of control.py. It ends when that socket closes or the thread of process PARENT that started it ends.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time

import msgspec

from emulator.dns import control
from emulator.dns.records import Answer
from emulator.dns.recursor import Directory
from emulator.dns.server import Answers, Server
from emulator.dns.zone import Zone
from emulator.kernel.syscalls import die_with_parent
from emulator.traffic.engine import raise_file_limit
from emulator.traffic.loop import READ, Loop
from emulator.traffic.wire import Unframer

SWEEP_SECONDS = 5.0  # how often idle connections are looked for


class Engine:
    """Requests from the control socket to the zone and the servers."""

    def __init__(self, lab: socket.socket, domain: str) -> None:
        self._loop = Loop()
        self._lab = lab
        self._unframer = Unframer()
        self._zone = Zone(domain)
        self._directory = Directory({})
        self._records: dict[str, tuple[str, ...]] = {}
        self._answers = {"cluster": Answers(), "upstream": Answers()}
        self._servers: dict[str, Server] = {}
        self._loop.watch(lab.fileno(), READ, self._ready)
        self._loop.after(SWEEP_SECONDS, self._sweep)

    def run(self) -> None:
        """Until the lab closes its end."""
        self._loop.run()

    def _ready(self, events: int) -> None:
        try:
            data = self._lab.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._loop.stop()
            return
        try:
            for body in self._unframer.feed(data):
                request = control.decode_request(body)
                try:
                    reply: control.AnyReply = self._do(request)
                except OSError as error:
                    reply = control.Failed(request.id, str(error))
                self._lab.sendall(control.frame(reply))
        except (msgspec.DecodeError, ValueError, OSError) as error:
            print(f"the lab process cannot be talked to any more: {error}", file=sys.stderr)
            self._loop.stop()

    def _do(self, request: control.AnyRequest) -> control.Done:
        if isinstance(request, control.Update):
            self._update(request)
        elif isinstance(request, control.Serve):
            return control.Done(request.id, notices=self._serve(request))
        elif isinstance(request, control.Stop):
            for ns in request.ns:
                self._stop(ns)
            self._know_servers()
        else:
            return control.Done(request.id, [server.counters() for server in self._servers.values()])
        return control.Done(request.id)

    def _update(self, request: control.Update) -> None:
        zone = self._zone
        for key in request.gone_services:
            zone.drop_service(key)
        for service in request.services:
            zone.put_service(service)
        for key in request.gone_slices:
            zone.drop_slice(key)
        for item in request.slices:
            zone.put_slice(item)
        if request.namespaces is not None:
            zone.set_namespaces(request.namespaces)
        self._answers["cluster"].forget()

    def _serve(self, request: control.Serve) -> tuple[str, ...]:
        if request.records != self._records:
            self._records = request.records
            self._directory = Directory(request.records)
            self._answers["upstream"].forget()
        notices = []
        for place in request.places:
            self._stop(place.ns)
            lookup = self._in_cluster if place.role == "cluster" else self._outside
            try:
                self._servers[place.ns] = Server(self._loop, place, lookup, self._answers[place.role])
            except OSError as error:
                notices.append(f"{place.ns}: DNS is not served on port 53: {error.strerror or error}")
        self._know_servers()
        return tuple(notices)

    def _stop(self, ns: str) -> None:
        server = self._servers.pop(ns, None)
        if server is not None:
            server.close()

    def _know_servers(self) -> None:
        """Which pods the zone's name servers are."""
        places = [server.place for server in self._servers.values() if server.place.role == "cluster"]
        self._zone.servers = tuple(address for place in places for address in place.addresses)
        self._answers["cluster"].forget()

    def _in_cluster(self, labels: tuple[str, ...], kind: str) -> Answer | None:
        return self._zone.lookup(labels, kind)

    def _outside(self, labels: tuple[str, ...], kind: str) -> Answer | None:
        return self._directory.lookup(labels, kind)

    def _sweep(self) -> None:
        now = time.monotonic()
        for server in self._servers.values():
            server.close_idle(now)
        self._loop.after(SWEEP_SECONDS, self._sweep)


def main() -> None:
    """Serve the socket whose descriptor is the first argument, for the process whose id is the second."""
    fd, parent, domain = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        return  # it ended before the line above
    # Ctrl-C on the lab's terminal is for the lab to handle; it closes our socket when it is done with us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    engine = Engine(socket.socket(fileno=fd), domain)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    engine.run()


if __name__ == "__main__":
    main()
