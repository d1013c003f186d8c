"""Reasons at hops, from the plans of the shipped default topology; nothing is said where nothing fits."""

from __future__ import annotations

from functools import cache

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layer

from emulator.capture.explain import explain, verdict
from emulator.capture.follow import follow
from emulator.capture.model import Direction, Event, Journey
from emulator.cluster.assemble import assemble
from emulator.cluster.model import Cluster, Pod
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort
from emulator.cluster.topology import load_topology
from emulator.cni.styles import load_style
from emulator.plan.build import build
from emulator.plan.model import Plan, Veth, Vxlan
from emulator.proxy.model import ProxySettings
from emulator.proxy.modes import load_proxy

ANY = "0a:0a:0a:0a:0a:0a"


@cache
def planned(style: str) -> tuple[Cluster, Plan]:
    topology, loaded = load_topology("three-nodes"), load_style(style)
    cluster = assemble(topology, [], loaded.ipam(topology))
    return cluster, build(cluster, loaded)


def pod(style: str, node: str, number: int = 0) -> Pod:
    return [each for each in planned(style)[0].pods if each.node == node][number]


def host_end(style: str, of: Pod) -> str:
    return next(item.peer for item in planned(style)[1].in_namespace(of.ns) if isinstance(item, Veth))


def event(time: int, ns: str, device: str, direction: Direction, layers: Layer, promiscuous: bool = False) -> Event:
    frame = bytes(layers)
    return Event(time, ns, device, direction, frame, len(frame), promiscuous)


def subjects(journey: Journey, hop: int) -> list[str]:
    return [reason.subject for reason in journey.hops[hop].reasons]


def datagram(source: str, target: str, ttl: int, source_mac: str = ANY, target_mac: str = ANY, **udp: int) -> Layer:
    ports = {"sport": 4000, "dport": 80, **udp}
    return Ether(src=source_mac, dst=target_mac) / IP(src=source, dst=target, ttl=ttl, id=5) / UDP(**ports) / b"nonce"


def flannel_path() -> tuple[Journey, Pod, Pod]:
    style = "flannel:vxlan"
    a, b = pod(style, "n1"), pod(style, "n2")
    source, target = a.addresses[0], b.addresses[0]
    vteps = {item.ns: item for item in planned(style)[1] if isinstance(item, Vxlan)}
    one, two = vteps["node/n1"], vteps["node/n2"]
    inner = datagram(source, target, 63, one.mac, two.mac)
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    outer = ether / IP(src=one.local, dst=two.local) / UDP(sport=40000, dport=8472) / VXLAN(vni=1, flags=8) / inner
    events = [
        event(0, a.ns, "eth0", "out", datagram(source, target, 64)),
        event(1, "node/n1", host_end(style, a), "in", datagram(source, target, 64), True),
        event(2, "node/n1", "cni0", "in", datagram(source, target, 64)),
        event(3, "node/n1", "flannel.1", "out", inner),
        event(4, "node/n1", "eth0", "out", outer),
        event(5, "underlay", "s1-n1", "in", outer, True),
        event(6, "underlay", "s1-n2", "out", outer),
        event(7, "node/n2", "eth0", "in", outer),
        event(8, "node/n2", "flannel.1", "in", inner),
        event(9, "node/n2", "cni0", "out", datagram(source, target, 62)),
        event(10, "node/n2", host_end(style, b), "out", datagram(source, target, 62)),
        event(11, b.ns, "eth0", "in", datagram(source, target, 62)),
    ]
    (journey,) = explain(follow(events).journeys, planned(style)[1])
    return journey, a, b


def test_flannels_path_is_explained_hop_by_hop() -> None:
    journey, a, b = flannel_path()
    told = [subjects(journey, number) for number in range(len(journey.hops))]
    assert told[0] == ["route 10.244.0.0/16 via 10.244.1.1 dev eth0"]
    assert told[1][0].startswith(f"veth eth0 mtu 1450 mac {_mac(a)} peer {host_end('flannel:vxlan', a)}")
    assert told[2][0].startswith("bridge cni0")
    assert told[3][0] == "route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"
    assert told[3][1].startswith("neighbour 10.244.2.0 lladdr")
    assert told[4][0].startswith("fdb ")
    assert "dst 192.168.50.12" in told[4][0]
    assert told[4][1].startswith("vxlan flannel.1 id 1 dstport 8472")
    assert told[4][2].startswith("address 192.168.50.11/24 dev eth0")
    assert told[5][0].startswith("bridge s1")
    assert told[6][0].startswith("bridge s1")
    assert told[7][0].startswith("veth eth0 mtu 1500")
    assert told[8][0].startswith("vxlan flannel.1")
    assert told[9][0].startswith("address 10.244.2.1/24 dev cni0")
    assert told[10][0].startswith("veth eth0 mtu 1450")
    assert told[11][0].startswith(f"veth eth0 mtu 1450 mac {_mac(b)}")


def _mac(of: Pod) -> str:
    return next(item.mac for item in planned("flannel:vxlan")[1].in_namespace(of.ns) if isinstance(item, Veth))


def test_each_end_of_a_cable_has_its_own_reason() -> None:
    journey, a, _b = flannel_path()
    assert journey.hops[1].reasons[0].why == f"host end of {a.key}"
    assert journey.hops[11].reasons[0].why == "the pod's interface"


def test_a_packet_that_arrives_is_delivered() -> None:
    journey, _, b = flannel_path()
    assert journey.verdict == "delivered"
    assert verdict(journey, planned("flannel:vxlan")[1], b.ns) == "delivered"


def test_a_packet_that_does_not_arrive_was_last_seen_somewhere() -> None:
    journey, _, b = flannel_path()
    cut = Journey(1, journey.hops[:8])
    assert verdict(cut, planned("flannel:vxlan")[1], b.ns) == "last seen at node/n2 eth0 (in)"


def test_copies_that_a_switch_flooded_are_left_out() -> None:
    _journey, _, _ = flannel_path()
    style = "flannel:vxlan"
    outer = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(id=9) / UDP(sport=1, dport=2) / b"x"
    events = [
        event(0, "node/n1", "eth0", "out", outer),
        event(1, "underlay", "s1-n1", "in", outer, True),
        event(2, "underlay", "s1-n2", "out", outer),
        event(3, "underlay", "s1-n3", "out", outer),
        event(4, "node/n3", "eth0", "in", outer, True),
        event(5, "node/n2", "eth0", "in", outer),
    ]
    (told,) = explain(follow(events).journeys, planned(style)[1])
    assert [hop.device for hop in told.hops] == ["eth0", "s1-n1", "s1-n2", "eth0"]
    assert told.hops[-1].ns == "node/n2"
    assert told.copies == 2


def test_what_a_tunnel_delivers_to_another_mac_ends_there() -> None:
    """flannel.1 got another MAC than its peers know: no switch has flooded that frame."""
    style = "flannel:vxlan"
    a, b = pod(style, "n1"), pod(style, "n2")
    inner = datagram(a.addresses[0], b.addresses[0], 63, target_mac="7a:00:00:00:00:01")
    outer = Ether(src=ANY, dst=ANY) / IP(src="192.168.50.11", dst="192.168.50.12") / UDP(sport=40000, dport=8472)
    events = [
        event(0, "node/n1", "flannel.1", "out", inner),
        event(1, "node/n1", "eth0", "out", outer / VXLAN(vni=1, flags=8) / inner),
        event(2, "node/n2", "eth0", "in", outer / VXLAN(vni=1, flags=8) / inner),
        event(3, "node/n2", "flannel.1", "in", inner, True),
    ]
    (told,) = explain(follow(events).journeys, planned(style)[1])
    assert [hop.device for hop in told.hops] == ["flannel.1", "eth0", "eth0", "flannel.1"]
    assert told.copies == 0
    assert told.verdict == (
        "last seen at node/n2 flannel.1 (in): "
        "the frame is addressed to 7a:00:00:00:00:01, which is not the device's MAC"
    )


def test_calicos_pod_reaches_everything_by_its_link_local_gateway() -> None:
    style = "calico"
    a, b = pod(style, "n1"), pod(style, "n2")
    out = datagram(a.addresses[0], b.addresses[0], 64, ANY, "ee:ee:ee:ee:ee:ee")
    (journey,) = explain(follow([event(0, a.ns, "eth0", "out", out)]).journeys, planned(style)[1])
    told = subjects(journey, 0)
    assert told[0].startswith("route default via 169.254.1.1 dev eth0")
    assert told[1].startswith("route 169.254.1.1")


def test_calicos_routes_between_nodes_are_those_that_bird_learned() -> None:
    style = "calico"
    a, b = pod(style, "n1"), pod(style, "n2")
    source, target = a.addresses[0], b.addresses[0]
    events = [
        event(0, a.ns, "eth0", "out", datagram(source, target, 64)),
        event(1, "node/n1", host_end(style, a), "in", datagram(source, target, 64)),
        event(2, "node/n1", "eth0", "out", datagram(source, target, 63)),
    ]
    (journey,) = explain(follow(events).journeys, planned(style)[1])
    (route,) = journey.hops[2].reasons
    assert "via 192.168.50.12" in route.subject
    assert route.component == "bird"


def device_mac(style: str, ns: str, device: str) -> str:
    """The MAC that the plan gives to a machine's interface."""
    for item in planned(style)[1]:
        if isinstance(item, Veth) and (item.ns, item.name) == (ns, device):
            return item.mac
        if isinstance(item, Veth) and (item.peer_ns, item.peer) == (ns, device):
            return item.peer_mac
    raise KeyError(device)


@pytest.mark.parametrize(
    ("receiver", "route"),
    [
        ("node/n2", "route 10.244.0.64/26 via 192.168.50.12 dev eth0 proto bird"),
        ("router/tor", "route default via 192.168.50.1"),
        ("node/n3", ""),  # neither route leads there: nothing is said
    ],
)
def test_a_learned_route_is_named_only_if_its_gateway_got_the_frame(receiver: str, route: str) -> None:
    """While BGP converges a learned route may be away: then the packet took the next longest match."""
    style = "calico"
    a, b = pod(style, "n1"), pod(style, "n2")
    source, target = a.addresses[0], b.addresses[0]
    frame = datagram(source, target, 63, device_mac(style, "node/n1", "eth0"), device_mac(style, receiver, "eth0"))
    events = [
        event(1, "node/n1", host_end(style, a), "in", datagram(source, target, 64)),
        event(2, "node/n1", "eth0", "out", frame),
    ]
    (journey,) = explain(follow(events).journeys, planned(style)[1])
    assert [text[: len(route)] for text in subjects(journey, 1)[:1]] == ([route] if route else [])


def test_a_blackhole_beneath_a_learned_route_that_is_away_is_named() -> None:
    """A borrowed address that its node does not announce: the owner of its block drops it."""
    topology, calico = load_topology("three-nodes"), load_style("calico")
    vm = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "vm", "annotations": {"cni.projectcalico.org/ipAddrs": '["10.244.0.9"]'}},
        "spec": {"nodeName": "n3", "containers": [{"name": "web", "image": "web"}]},
    }
    cluster = assemble(topology, [vm], calico.ipam(topology))
    plan = build(cluster, calico)
    (journey,) = follow([event(0, "node/n1", "eth0", "in", datagram("10.244.0.64", "10.244.0.9", 63))]).journeys
    told = verdict(journey, plan, "pod/default/vm")
    assert told.startswith("last seen at node/n1 eth0 (in): route blackhole 10.244.0.0/26")
    assert told.endswith("the longer route to 10.244.0.9 is missing")


def test_calicos_gateway_answer_is_proxy_arp() -> None:
    style = "calico"
    a = pod(style, "n1")
    request = Ether(src=ANY, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, psrc=a.addresses[0], pdst="169.254.1.1")
    reply = Ether(src="ee:ee:ee:ee:ee:ee", dst=ANY) / ARP(op=2, psrc="169.254.1.1", pdst=a.addresses[0])
    events = [event(0, a.ns, "eth0", "out", request), event(9, "node/n1", host_end(style, a), "out", reply)]
    _, answer = explain(follow(events).journeys, planned(style)[1])
    assert subjects(answer, 0) == [f"sysctl net/ipv4/conf/{host_end(style, a)}/proxy_arp = 1"]


@pytest.mark.parametrize(
    ("style", "rule"),
    [
        ("flannel:vxlan", "iptables -t nat FLANNEL-POSTRTG rule 5: "),
        ("calico", "iptables -t nat cali-nat-outgoing rule 1: "),
    ],
)
def test_masquerading_names_its_rule_for_the_request_and_for_the_reply(style: str, rule: str) -> None:
    a = pod(style, "n1")
    source, world, node = a.addresses[0], "203.0.113.9", "192.168.50.11"
    entered = host_end(style, a)
    events = [
        event(0, a.ns, "eth0", "out", datagram(source, world, 64)),
        event(1, "node/n1", entered, "in", datagram(source, world, 64)),
        event(2, "node/n1", "eth0", "out", datagram(node, world, 63, sport=61000)),
        event(9, "node/n1", "eth0", "in", datagram(world, node, 63, sport=80, dport=61000)),
        event(10, "node/n1", entered, "out", datagram(world, source, 62, sport=80, dport=4000)),
    ]
    request, reply = explain(follow(events).journeys, planned(style)[1])
    assert request.hops[2].reasons[0].subject.startswith(rule)
    assert reply.hops[1].reasons[0].subject.startswith(rule)
    assert reply.hops[1].reasons[0].component == "conntrack"


def test_ipvs_names_its_virtual_server_for_the_request_and_for_the_reply() -> None:
    style = "kube-router"
    cluster, plan = planned(style)
    a, b = pod(style, "n1"), pod(style, "n2")
    source, target, vip = a.addresses[0], b.addresses[0], "10.96.0.41"
    made = Service("default", "web", "ClusterIP", cluster_ips=(vip,), ports=(ServicePort("", "UDP", 80, 8080),))
    ends = EndpointSlice("default", "web-1", "web", 4, (EndpointPort("", "UDP", 8080),), (Endpoint(target, "n2"),))
    served = msgspec.structs.replace(cluster, services=(made,), slices=(ends,))
    plan = build(served, load_style(style), proxy=load_proxy("kube-router", ProxySettings()))
    port = host_end(style, a)
    events = [
        event(0, a.ns, "eth0", "out", datagram(source, vip, 64)),
        event(1, "node/n1", port, "in", datagram(source, vip, 64)),
        event(2, "node/n1", "eth0", "out", datagram(source, target, 63, dport=8080)),
        event(9, "node/n1", "eth0", "in", datagram(target, source, 63, sport=8080, dport=4000)),
        event(10, "node/n1", port, "out", datagram(vip, source, 62, sport=80, dport=4000)),
    ]
    request, reply = explain(follow(events).journeys, plan)
    named = f"ipvs UDP {vip}:80 rr -> {target} port 8080"
    assert named in subjects(request, 2)
    assert [reason.component for reason in reply.hops[1].reasons if reason.subject == named] == ["conntrack"]


def test_what_no_rule_can_have_done_has_no_reason() -> None:
    style = "flannel:vxlan"
    a, b = pod(style, "n1"), pod(style, "n2")
    events = [
        event(0, "node/n1", host_end(style, a), "in", datagram(a.addresses[0], b.addresses[0], 64)),
        event(1, "node/n1", "eth0", "out", datagram("192.168.50.11", b.addresses[0], 63)),
    ]
    (journey,) = explain(follow(events).journeys, planned(style)[1])
    assert journey.hops[1].reasons == ()


def test_an_unknown_place_is_followed_without_reasons() -> None:
    (journey,) = explain(
        follow([event(0, "node/elsewhere", "eth9", "out", datagram("1.1.1.1", "2.2.2.2", 64))]).journeys,
        planned("calico")[1],
    )
    assert journey.hops[0].reasons == ()


def test_fragmentation_needed_names_the_device_whose_mtu_it_was() -> None:
    style = "flannel:vxlan"
    a, b = pod(style, "n1"), pod(style, "n2")
    quoted = IP(src=a.addresses[0], dst=b.addresses[0], id=9) / UDP()
    ether = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    error = ether / IP(src="10.244.1.1", dst=a.addresses[0]) / ICMP(type=3, code=4, nexthopmtu=1450) / quoted
    (journey,) = explain(follow([event(0, "node/n1", "cni0", "out", error)]).journeys, planned(style)[1])
    reason = journey.hops[0].reasons[0]
    assert reason.subject.startswith("vxlan flannel.1")
    assert "1450" in reason.why


def test_a_packet_to_a_free_address_of_a_block_ends_at_the_blackhole() -> None:
    style = "calico"
    a, b = pod(style, "n1"), pod(style, "n2")
    free = b.addresses[0].rpartition(".")[0] + ".120"
    events = [
        event(0, a.ns, "eth0", "out", datagram(a.addresses[0], free, 64)),
        event(1, "node/n2", "eth0", "in", datagram(a.addresses[0], free, 63)),
    ]
    ending = verdict(follow(events).journeys[0], planned(style)[1], b.ns)
    assert ending.startswith("last seen at node/n2 eth0 (in): ")
    assert "blackhole" in ending
