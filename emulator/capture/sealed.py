"""Which encrypted packet carries which packet, told without opening it.

::

    n1: flannel-wg out     A, B        C        D            what goes into the tunnel, in the clear
    n1: eth0 out              a   b       c        d         what comes out, encrypted
    n2: eth0 in                  a   b       c        d
    n2: flannel-wg in               A   B       C        D   known again by its content

WireGuard keeps the packets for one peer in order, and an encrypted packet says how long its content is, padded. So of
what a machine sent to one peer, every encrypted packet (keepalives and handshakes aside) belongs to a packet that went
into the tunnel before it, that has its size, that came out at the far end after it arrived there, and all of them in
one order. A link is made only where a single assignment is possible: where two would do, as with two retransmissions
of which one was lost before it was encrypted, the encrypted packet stays a journey of its own. The true assignment is
always among the possible ones (in a capture that lost nothing), so a link that is made is the true one.

Tunnel devices are known by their frames: they have no Ethernet header (zeros stand there), and what leaves by one is
not seen with an outer header afterwards.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from emulator.capture.model import Event
from emulator.capture.wireguard import DATA, Message, may_hold, message

NO_ETHERNET = bytes(12)
ETHERNET_HEADER = 14  # bytes, of which a device without Ethernet shows twelve zeros
UDP = 17


class Crossing(NamedTuple):
    """A packet that goes through a tunnel: the sighting on its way in, and the one at the far end, if any. ``owner`` is
    the number of its journey."""

    owner: int
    before: Event
    after: Event | None


class Carrier(NamedTuple):
    """An encrypted packet: its message, where it was bound for, and all its sightings."""

    owner: int
    message: Message
    target: bytes
    events: Sequence[Event]

    def arrived(self, ns: str) -> int:
        """When it came into a namespace for the last time, 0 if it did not."""
        return max((event.time for event in self.events if event.ns == ns and event.direction == "in"), default=0)


class Link(NamedTuple):
    """The journey ``carrier`` is part of the journey ``carried``; ``inner`` is the packet as it went in."""

    carrier: int
    carried: int
    inner: Event


def links(journeys: Sequence[Sequence[Event]]) -> list[Link]:
    """The encrypted packets among the journeys (sightings in order of time) that can be told for certain."""
    carriers: dict[tuple[str, bytes], list[Carrier]] = defaultdict(list)
    crossings: dict[str, list[Crossing]] = defaultdict(list)
    for number, events in enumerate(journeys):
        carrier = _carrier(number, events)
        if carrier is None:
            for crossing in _crossings(number, events):
                crossings[crossing.before.ns].append(crossing)
        elif carrier.message.type == DATA and carrier.message.size:
            carriers[events[0].ns, carrier.target].append(carrier)
    found: list[Link] = []
    for (ns, target), sent in carriers.items():
        sent.sort(key=lambda each: each.events[0].time)
        others = [each for (where, to), listed in carriers.items() if where == ns and to != target for each in listed]
        given = sorted(crossings[ns], key=lambda each: each.before.time)
        found += _assigned(sent, given, others)
    return found


def _assigned(sent: Sequence[Carrier], given: Sequence[Crossing], others: Sequence[Carrier]) -> list[Link]:
    """What is the same in every assignment: each carrier has a crossing, in order, and what came out was carried.

    ``others`` went to other addresses. Sets of carriers are numbers, a bit for each: few steps for many packets.
    """
    sizes: dict[int, int] = defaultdict(int)
    for number, carrier in enumerate(sent):
        sizes[carrier.message.size] |= 1 << number
    fitting = [_fitting(crossing, sent, sizes) for crossing in given]
    # What carries nothing that was seen says nothing: its packet went in before the capture began, say.
    useful = 0
    for mask in fitting:
        useful |= mask
    if useful != (1 << len(sent)) - 1:
        kept = [carrier for number, carrier in enumerate(sent) if useful >> number & 1]
        return _assigned(kept, given, others) if kept else []
    ways = [bool(mask) and _only_by(crossing, others) for crossing, mask in zip(given, fitting, strict=True)]
    before = [1]  # after each crossing, how many carriers may be taken: bit n for the first n of them
    for mask, must in zip(fitting, ways, strict=True):
        taken = (before[-1] & mask) << 1
        before.append(taken if must else taken | before[-1])
    after, once, twice = 1 << len(sent), 0, 0
    possible = []
    for place in range(len(given) - 1, -1, -1):
        pairs = before[place] & fitting[place] & (after >> 1)
        possible.append((place, pairs))
        twice |= once & pairs
        once |= pairs
        after = pairs if ways[place] else pairs | after & before[place]
    certain = once & ~twice
    pairs_found = [(number, place) for place, pairs in reversed(possible) for number in _bits(pairs & certain)]
    arrivals = [event.time for _, place in pairs_found if (event := given[place].after) is not None]
    if arrivals != sorted(arrivals):
        return []  # the sightings contradict the order that is counted on
    return [Link(sent[number].owner, given[place].owner, given[place].before) for number, place in pairs_found]


def _fitting(crossing: Crossing, sent: Sequence[Carrier], sizes: dict[int, int]) -> int:
    """The carriers that may hold a packet: left after it went in, of its size, there before it came out."""
    packet = crossing.before.length - ETHERNET_HEADER
    mask = 0
    for size, numbers in sizes.items():
        if may_hold(size, packet):
            mask |= numbers
    first = bisect_left(sent, crossing.before.time, key=lambda each: each.events[0].time)
    mask &= -1 << first
    if crossing.after is None or not mask:
        return mask
    ns, until = crossing.after.ns, crossing.after.time
    last = bisect_right(sent, until, key=lambda each: each.events[0].time)
    return sum(1 << number for number in _bits(mask & ((1 << last) - 1)) if 0 < sent[number].arrived(ns) <= until)


def _only_by(crossing: Crossing, others: Sequence[Carrier]) -> bool:
    """Whether a packet that came out can have come by none but this tunnel: no other one leads to where it did."""
    return crossing.after is not None and not any(each.arrived(crossing.after.ns) for each in others)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _carrier(number: int, events: Sequence[Event]) -> Carrier | None:
    found = _wireguard(events[0].frame)
    if found is None or events[0].direction != "out":
        return None
    return Carrier(number, *found, events)


def _crossings(number: int, events: Sequence[Event]) -> list[Crossing]:
    found = []
    for place, event in enumerate(events):
        if event.direction != "out" or not event.frame.startswith(NO_ETHERNET):
            continue
        following = events[place + 1] if place + 1 < len(events) else None
        if following is None:
            found.append(Crossing(number, event, None))
        elif following.ns != event.ns and following.direction == "in" and following.frame.startswith(NO_ETHERNET):
            found.append(Crossing(number, event, following))
    return found


def _wireguard(frame: bytes) -> tuple[Message, bytes] | None:
    """The message in a frame, and the address that it goes to."""
    kind = frame[12:14]
    if kind == b"\x08\x00" and len(frame) > 34 and frame[23] == UDP and not frame[20] & 0x3F and not frame[21]:
        at, target = 14 + (frame[14] & 15) * 4, frame[30:34]
    elif kind == b"\x86\xdd" and len(frame) > 54 and frame[20] == UDP:
        at, target = 54, frame[38:54]
    else:
        return None
    if len(frame) < at + 8:
        return None
    source, port, size = (int.from_bytes(frame[at + place : at + place + 2], "big") for place in (0, 2, 4))
    found = message(frame, at + 8, size - 8, source, port)
    return (found, target) if found is not None else None
