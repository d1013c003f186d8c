"""The network policy agent of one node under kindnet: it reads NFQUEUE 101 and says which connections may begin.

::

    nftables: first packet from or to a pod that a policy selects ── queue 101 ──▶ agent ──┬── accept, label 28
                                                                                          └── drop

Where iptables' NFQUEUE stands in for nftables' queue, the agent marks what it accepts and sends it through the hook
once more, and a rule labels its connection: not every kernel takes a label along with a verdict.

It stands in for the part of kindnetd that is kube-network-policies. Judging is
:mod:`emulator.policy.kindnet_judge`'s; it works off one packet after the other, and takes on a new configuration
between two of them, whole. Of each packet that it drops it writes a line. Packets that it cannot read pass.

Configuration is a JSON file: ``pods`` (key by address), ``ports`` (named ones, by pod), ``policies`` (key, the pods
that each selects, its rules with their peers resolved). A connection to its control socket has it read the file again.
Nothing but the standard library: it is started without site packages.

Source: kubernetes-sigs/kube-network-policies v1.1.2 pkg/dataplane/controller.go.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
from collections.abc import Collection

from emulator.kernel.nfqueue import ACCEPT, DROP, FAIL_OPEN, GSO, REPEAT, Queue, Queued, overrun
from emulator.policy.kindnet_judge import HOOKS, Configuration, judge, read_configuration, read_packet, record

COPIED = 128  # bytes of a packet: its headers
WAITING = 1024  # packets that may wait for their verdicts
INPUT = 1


class Agent:
    """One node's agent. ``own``: the addresses of the node that is never to be kept from its pods, nor they from it, as
    the API has it; kindnetd knows no such exception. ``mark``: accept by that mark, not by ``label``."""

    def __init__(self, path: str, number: int, own: Collection[str], *, label: int, mark: int) -> None:
        self._path = path
        self._label = label
        self._mark = mark
        self._own = frozenset(own)
        self._known = self._read()
        # Under a flood of new connections the real one lets pass what it cannot look at. The API knows nothing like it.
        self._queue = Queue(number, copied=COPIED, waiting=WAITING, flags=GSO if own else GSO | FAIL_OPEN)

        if not mark:
            self._queue.load_labels()

    def serve(self, control_path: str) -> None:
        """Judge packets for ever."""
        if os.path.exists(control_path):
            os.unlink(control_path)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(control_path)
        control.listen(8)
        poll = select.poll()
        poll.register(self._queue.socket, select.POLLIN)
        poll.register(control, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if control.fileno() in ready:
                caller, _ = control.accept()
                self._known = self._read()
                caller.close()
            if self._queue.socket.fileno() in ready:
                self._work_off()

    def _work_off(self) -> None:
        try:
            for queued in self._queue.packets():
                self._decide(queued)
        except OSError as error:
            if not overrun(error):
                raise
            what = "were dropped" if self._own else "passed"
            _say(f"packets {what} unjudged: more new connections at once than fit into the socket's buffer")

    def _decide(self, queued: Queued) -> None:
        packet = read_packet(queued.data)
        if packet is not None and not self._spared(queued.hook, packet.source, packet.target):
            finding = judge(self._known, packet)
            if not finding.allowed:
                self._queue.verdict(queued.number, DROP)
                _say(record(packet, HOOKS[queued.hook], finding))
                return
        if self._mark:
            self._queue.verdict(queued.number, REPEAT, mark=queued.mark | self._mark)
        else:
            self._queue.verdict(queued.number, ACCEPT, label=self._label)

    def _spared(self, hook: int, source: str, target: str) -> bool:
        return bool(self._own) and (hook == INPUT or source in self._own or target in self._own)

    def _read(self) -> Configuration:
        with open(self._path, encoding="utf-8") as file:
            return read_configuration(file.read())


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str]) -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("configuration")
    parser.add_argument("control")
    parser.add_argument("--queue", type=int, required=True)
    parser.add_argument("--label", type=int, default=-1)
    parser.add_argument("--mark", type=lambda text: int(text, 0), default=0)
    parser.add_argument("--own", action="append", default=[])
    given = parser.parse_args(arguments)
    agent = Agent(given.configuration, given.queue, given.own, label=given.label, mark=given.mark)
    agent.serve(given.control)


if __name__ == "__main__":
    main(sys.argv[1:])
