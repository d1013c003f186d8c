"""What the policy agent of a node says of a packet that netfilter queues for it, by what the plan has it know."""

from __future__ import annotations

import itertools
from functools import cached_property

from emulator.capture.rule_walk import Seen
from emulator.plan.model import Daemon, File
from emulator.policy.kindnet_judge import PROTOCOLS, Configuration, Packet, judge, read_configuration

MODULE = "emulator.kernel.kindnet_agent"
_PORTED = frozenset(PROTOCOLS.values())


class QueueAgent:
    """An agent of a plan: its process and the file that it reads."""

    def __init__(self, daemon: Daemon, file: File) -> None:
        self.daemon = daemon
        self._file = file

    def denies(self, seen: Seen) -> str:
        """Why it drops a packet; empty if it lets it pass."""
        if self._own and (not self._own.isdisjoint((seen.source, seen.target)) or seen.target in seen.local):
            return ""
        name = seen.protocol.upper()
        ported = name in _PORTED
        ports = (seen.source_port, seen.target_port) if ported else (0, 0)
        finding = judge(self._known, Packet(seen.source, seen.target, name if ported else "", *ports))
        return "" if finding.allowed else str(finding)

    @cached_property
    def _known(self) -> Configuration:
        return read_configuration(self._file.content)

    @cached_property
    def _own(self) -> frozenset[str]:
        words = self.daemon.argv
        return frozenset(value for word, value in itertools.pairwise(words) if word == "--own")
