"""Sessions between WireGuard peers, begun one side at a time.

A tunnel has a session once one side has asked for it with its first packet and the other has answered. If both ask at
once, each forgets its own question over the other's, no answer fits any more, and both wait five seconds before they
ask again (REKEY_TIMEOUT). Traffic that starts everywhere at the same moment meets that nearly always; so whoever
is about to ask all nodes at once has the sessions begun before, by one of the two.

Sources: Linux drivers/net/wireguard/noise.c (``wg_noise_handshake_consume_response``: only in the state in which a
handshake was begun), messages.h (REKEY_TIMEOUT, REKEY_AFTER_TIME); wireguard-go device/noise-protocol.go.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_network

from emulator.kernel.syscalls import inside
from emulator.kernel.wireguard import Wireguards
from emulator.plan.model import Key, Wireguard, WireguardPeer

STILL_GOOD = 60.0  # s: half of REKEY_AFTER_TIME, after which the next packet asks for a new session
PATIENCE = 2.0  # s for all of them: a peer that is cut off never answers
PAUSE = 0.005  # s between two looks
DISCARD = 9  # the UDP port that nobody listens at


Pair = tuple[Wireguard, WireguardPeer]


def begin_sessions(
    wireguards: Wireguards,
    netns: Callable[[str], str | int],
    first: Sequence[Pair],
    second: Sequence[Pair],
    patience: float = PATIENCE,
) -> None:
    """Have the ``first`` devices begin sessions with their peers, unless there are some of late, and wait until the
    ``second``, at the other ends, know of them: they do with the first packet that follows. Whoever has none
    after ``patience`` seconds is cut off; a device whose process is dead, or that no route leads to, is left alone."""
    waiting = _without_session(wireguards, first)
    for device, peer in waiting:
        network = ip_network(peer.allowed_ips[0])
        family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
        with inside(netns(device.ns)), socket.socket(family, socket.SOCK_DGRAM) as asking, suppress(OSError):
            asking.sendto(b"", (str(network.network_address), DISCARD))
    waiting += _without_session(wireguards, second)
    deadline = time.monotonic() + patience
    while waiting and time.monotonic() < deadline:
        time.sleep(PAUSE)
        waiting = _without_session(wireguards, waiting)


def _without_session(wireguards: Wireguards, pairs: Sequence[Pair]) -> list[Pair]:
    now = time.time()
    begun: dict[Key, Mapping[str, int]] = {}
    for device, _ in pairs:
        if device.key not in begun:
            try:
                begun[device.key] = wireguards.state(device).handshakes
            except OSError:
                begun[device.key] = {}
    return [(device, peer) for device, peer in pairs if now - begun[device.key].get(peer.public_key, now) > STILL_GOOD]
