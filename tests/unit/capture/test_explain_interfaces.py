"""Reasons on a node with several network interfaces, and in a VPC: which rule chose the table, and what was dropped."""

from __future__ import annotations

from functools import cache

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from scapy.packet import Packet as Layer

from emulator.capture.explain import explain
from emulator.capture.follow import follow
from emulator.capture.model import Direction, Event, Journey
from emulator.cluster.assemble import assemble
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.aws_vpc import host_device
from emulator.cni.styles import load_style
from emulator.plan.build import build
from emulator.plan.model import Plan

TEXT = """\
name: small
switches: [{name: s1, cidrs: [10.0.0.0/24]}]
nodes:
  - {name: n1, switch: s1, pods: 4, labels: {node.kubernetes.io/instance-type: t3.small}}
  - {name: n2, switch: s1, pods: 1}
routers: [{name: tor, switch: s1}]
"""
CLIENT = "203.0.113.10"


@cache
def planned() -> tuple[Cluster, Plan]:
    style = load_style("aws-vpc")
    topology = style.prepare(parse_topology(TEXT, "test"))
    cluster = assemble(topology, [], style.ipam(topology))
    return cluster, build(cluster, style)


def address(name: str) -> str:
    return next(pod.addresses[0] for pod in planned()[0].pods if pod.name == name)


def host_end(name: str) -> str:
    return next(host_device(pod) for pod in planned()[0].pods if pod.name == name)


def echo(source: str, target: str, ttl: int) -> Layer:
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    return ether / IP(src=source, dst=target, ttl=ttl, id=9) / ICMP(id=1, seq=1) / b"nonce"


def event(time: int, ns: str, device: str, direction: Direction, layers: Layer) -> Event:
    frame = bytes(layers)
    return Event(time, ns, device, direction, frame, len(frame), False)


def told(*events: Event) -> Journey:
    (journey,) = explain(follow(list(events)).journeys, planned()[1])
    return journey


def subjects(journey: Journey, hop: int) -> list[str]:
    return [reason.subject for reason in journey.hops[hop].reasons]


def test_a_pod_of_the_second_interface_is_looked_up_in_its_table() -> None:
    source, target = address("n1-p4"), address("n2-p1")
    journey = told(
        event(0, "pod/default/n1-p4", "eth0", "out", echo(source, target, 64)),
        event(1, "node/n1", host_end("n1-p4"), "in", echo(source, target, 64)),
        event(2, "node/n1", "eth1", "out", echo(source, target, 63)),
    )
    assert subjects(journey, 2) == [
        f"rule 1536: from {source}/32 lookup 2",
        "route default via 10.0.0.1 dev eth1 table 2",
        "route 10.0.0.1/32 dev eth1 scope link table 2",
    ]


def test_out_of_the_vpc_the_mark_explains_the_first_interface() -> None:
    source = address("n1-p4")
    journey = told(
        event(0, "node/n1", host_end("n1-p4"), "in", echo(source, CLIENT, 64)),
        event(1, "node/n1", "eth0", "out", echo("10.0.0.11", CLIENT, 63)),
    )
    (snat, rule, route) = subjects(journey, 1)
    assert snat.startswith("iptables -t nat AWS-SNAT-CHAIN-0 rule 2")
    assert rule == "rule 1024: fwmark 0x80/0x80 lookup main"
    assert route.startswith("route default via 10.0.0.1 dev eth0")


def test_a_device_that_no_rule_leads_to_is_not_explained() -> None:
    source, target = address("n1-p4"), address("n2-p1")
    journey = told(
        event(0, "node/n1", host_end("n1-p4"), "in", echo(source, target, 64)),
        event(1, "node/n1", "eth2", "out", echo(source, target, 63)),
    )
    assert subjects(journey, 1) == []


def test_a_packet_to_a_pod_is_found_in_the_main_table() -> None:
    source, target = address("n2-p1"), address("n1-p4")
    journey = told(
        event(0, "node/n1", "eth1", "in", echo(source, target, 63)),
        event(1, "node/n1", host_end("n1-p4"), "out", echo(source, target, 62)),
    )
    assert subjects(journey, 1)[0] == f"rule 512: to {target}/32 lookup main"


def test_the_fabric_says_why_the_ttl_stays() -> None:
    source, target = address("n1-p1"), address("n2-p1")
    journey = told(
        event(0, "router/vpc", "n1-eth0", "in", echo(source, target, 63)),
        event(1, "router/vpc", "n2-eth0", "out", echo(source, target, 63)),
    )
    assert subjects(journey, 1)[-1] == "iptables -t mangle PREROUTING: -j TTL --ttl-inc 1"


def test_a_router_that_takes_its_one_says_nothing_of_it() -> None:
    journey = told(
        event(0, "router/vpc", "n1-eth0", "in", echo(address("n1-p1"), address("n2-p1"), 63)),
        event(1, "router/vpc", "n2-eth0", "out", echo(address("n1-p1"), address("n2-p1"), 62)),
    )
    assert not [subject for subject in subjects(journey, 1) if "TTL" in subject]


def test_a_foreign_source_ends_at_the_source_check() -> None:
    journey = told(
        event(0, "node/n1", "eth0", "out", echo("198.18.0.1", address("n2-p1"), 64)),
        event(1, "router/vpc", "n1-eth0", "in", echo("198.18.0.1", address("n2-p1"), 64)),
    )
    assert journey.verdict.startswith("last seen at router/vpc n1-eth0 (in): iptables -t raw VPC-SOURCE-CHECK rule 1")
    assert journey.verdict.endswith("source check: not an address of eth0 of n1")


def test_an_address_of_the_interface_is_not_said_to_be_dropped() -> None:
    journey = told(
        event(0, "node/n1", "eth0", "out", echo(address("n1-p1"), address("n2-p1"), 63)),
        event(1, "router/vpc", "n1-eth0", "in", echo(address("n1-p1"), address("n2-p1"), 63)),
    )
    assert journey.verdict == "last seen at router/vpc n1-eth0 (in)"
