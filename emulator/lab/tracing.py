"""Which of the captured journeys belong to a probe."""

from __future__ import annotations

from collections.abc import Sequence

from emulator.capture.model import Journey, Packet
from emulator.lab.records import ProbeAnswer

_PROTOCOLS = {"icmp": ("icmp", "icmpv6"), "tcp": ("tcp",), "udp": ("udp",)}


def sort_journeys(
    journeys: Sequence[Journey], answer: ProbeAnswer
) -> tuple[list[Journey], list[Journey], tuple[Journey, ...]]:
    """The probe's requests, its replies, and everything else (ARP, BGP, ICMP errors), each in order of time.

    A request starts where the probe was sent and is bound for its target; a reply ends there. Addresses are compared
    at that one place only: on the way they may be translated.
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
    return requests, replies, tuple(others)


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
