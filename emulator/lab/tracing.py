"""Which of the captured journeys belong to a probe."""

from __future__ import annotations

from collections.abc import Sequence

from emulator.capture.model import Journey, Packet
from emulator.lab.records import ProbeAnswer

_PROTOCOLS = {"icmp": ("icmp", "icmpv6"), "tcp": ("tcp",), "udp": ("udp",), "sctp": ("sctp",)}


def sort_journeys(
    journeys: Sequence[Journey], answer: ProbeAnswer
) -> tuple[list[Journey], list[Journey], tuple[Journey, ...]]:
    """The probe's requests, its replies, and everything else (ARP, BGP, ICMP errors), each in order of time.

    A request starts where the probe was sent and is bound for its target; a reply ends there. Addresses are compared
    at that one place only: on the way they may be translated. If no reply ended there, those count that set out from
    where requests had arrived and got lost. A machine's own requests to a Service are translated before they can be
    seen at all: they are known by the source that the server saw.
    """
    requests, replies, others = [], [], []
    for journey in journeys:
        first, last = journey.hops[0], journey.hops[-1]
        if first.ns == answer.source_ns and first.direction == "out" and _is_request(first.packet, answer):
            requests.append(journey)
        elif last.ns == answer.source_ns and last.direction == "in" and _is_reply(last.packet, answer):
            replies.append(journey)
        else:
            others.append(journey)
    if not requests and answer.result.source_seen:
        return _by_source_seen(journeys, answer)
    port = answer.result.local_port if answer.result.sent == 1 else 0
    # Others may talk between the same two: BIRD calls port 179 as a probe does. Where the sender's own rules have
    # changed the port before the packet could be seen, it tells nothing.
    if port and any(journey.hops[0].packet.source_port == port for journey in requests):
        strangers = [journey for journey in requests if journey.hops[0].packet.source_port != port]
        strangers += [journey for journey in replies if journey.hops[-1].packet.target_port != port]
        requests = [journey for journey in requests if journey not in strangers]
        replies = [journey for journey in replies if journey not in strangers]
        others = sorted([*others, *strangers], key=lambda journey: journey.hops[0].time)
    if not replies:
        replies = [journey for journey in others if any(_answers(journey, request) for request in requests)]
        others = [journey for journey in others if journey not in replies]
    return requests, replies, tuple(others)


def _by_source_seen(
    journeys: Sequence[Journey], answer: ProbeAnswer
) -> tuple[list[Journey], list[Journey], tuple[Journey, ...]]:
    """The first request of a probe that was answered, and its replies, by the client's address and port there."""
    requests: list[Journey] = []
    replies: list[Journey] = []
    others: list[Journey] = []
    for journey in journeys:
        first, last = journey.hops[0], journey.hops[-1]
        asked, told, chosen = last.packet, first.packet, others
        if asked.protocol in _PROTOCOLS[answer.protocol] and not told.fragment_offset:
            left = (first.ns, first.direction) == (answer.source_ns, "out")
            came = not left and (last.ns, last.direction) == (answer.source_ns, "in")
            if left and _end(asked.source, asked.source_port) == answer.result.source_seen:
                chosen = requests
            elif came and _end(told.target, told.target_port) == answer.result.source_seen:
                chosen = replies
        chosen.append(journey)
    return requests, replies, tuple(others)


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _answers(journey: Journey, request: Journey) -> bool:
    """Whether a packet set out from where a request arrived, back to whom the request seemed to come from."""
    arrival, start = request.hops[-1], journey.hops[0]
    asked, told = arrival.packet, start.packet
    if journey.kind != "packet" or arrival.direction != "in" or (start.ns, start.direction) != (arrival.ns, "out"):
        return False
    if (told.protocol, told.source, told.target) != (asked.protocol, asked.target, asked.source):
        return False
    if told.protocol in _PROTOCOLS["icmp"]:
        return told.icmp_type in (0, 129) and told.icmp_id == asked.icmp_id
    return (told.source_port, told.target_port) == (asked.target_port, asked.source_port)


def _is_request(packet: Packet, answer: ProbeAnswer) -> bool:
    if packet.fragment_offset:
        return False  # a further piece: it has neither ports nor an ICMP type
    if packet.protocol not in _PROTOCOLS[answer.protocol] or packet.target != answer.address:
        return False
    return packet.icmp_type in (8, 128) if answer.protocol == "icmp" else packet.target_port == answer.port


def _is_reply(packet: Packet, answer: ProbeAnswer) -> bool:
    if packet.fragment_offset:
        return False
    if packet.protocol not in _PROTOCOLS[answer.protocol] or packet.source != answer.address:
        return False
    return packet.icmp_type in (0, 129) if answer.protocol == "icmp" else packet.source_port == answer.port
