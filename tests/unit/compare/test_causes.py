"""emulator.compare.causes: which objects of a plan a difference is put down to."""

from __future__ import annotations

from typing import Any

import msgspec

from emulator.capture.model import Direction, Hop, Journey, Packet, Reason, Tunnel
from emulator.compare.causes import causes
from emulator.compare.comparison import Column, FlowColumn
from emulator.compare.path import path_of
from emulator.compare.records import FlowJourney, FlowResult
from emulator.plan.model import Address, AnyObject, Daemon, File, Plan, Route, Sysctl, Veth

POD = Reason("veth eth0 mtu 1450 peer veth1 in node/n1", "bridge plugin", "host end")
BRIDGE = Reason("bridge cni0 mtu 1450", "bridge plugin", "connects the pods")
ROUTE = Reason("route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink", "flanneld", "pods of n2")
FDB = Reason("fdb 7a:39:86:5a:e1:44 dev flannel.1 dst 192.168.50.12", "flanneld", "the outer destination")
WIRE = Reason("bridge s1 mtu 1500", "topology", "a learning switch")
MASQUERADE = Reason("iptables -t nat POSTROUTING rule 5: -j MASQUERADE", "flanneld", "leaves with the node's address")
VXLAN = Tunnel(kind="vxlan", source="192.168.50.11", target="192.168.50.12", ttl=64, overhead=50, vni=1)


def hop(ns: str, device: str, direction: Direction, *reasons: Reason, tunnel: Tunnel | None = None, ttl: int = 64,
        source: str = "10.244.1.2") -> Hop:  # fmt: skip
    packet = Packet("", "", 98, "icmp", 4, source, "10.244.2.2", ttl, tunnel=tunnel)
    return Hop(0, 0, ns, device, direction, packet, (), reasons)


def column(*hops: Hop, verdict: Any = "delivered", error: Hop | None = None) -> FlowColumn:
    result = FlowResult(
        scenario="s", style="flannel", flow="ping", title="", source="a", target="b", source_ns="pod/default/a",
        target_address="10.244.2.2", protocol="icmp", verdict=verdict, pod_mtu=1450,
    )  # fmt: skip
    journey = Journey(1, hops)
    return FlowColumn(
        Column("flannel", "Flannel"),
        None,
        result,
        request=FlowJourney("s", "flannel", "ping", "request", 0, journey),
        error=FlowJourney("s", "flannel", "ping", "error", 0, Journey(2, (error,))) if error else None,
        path=path_of(journey),
    )


TUNNELLED = column(
    hop("pod/default/a", "eth0", "out", Reason("route default via 10.244.1.1 dev eth0", "bridge plugin", "")),
    hop("node/n1", "veth1", "in", POD),
    hop("node/n1", "cni0", "in", BRIDGE),
    hop("node/n1", "flannel.1", "out", ROUTE, ttl=63),
    hop("node/n1", "eth0", "out", FDB, ttl=63, tunnel=VXLAN),
    hop("underlay", "s1-n1", "in", WIRE, ttl=63, tunnel=VXLAN),
)


def subjects(label: str, of: FlowColumn, plan: Plan | None = None) -> list[str]:
    return [
        reason.subject.split(" ", 2)[0] + " " + reason.subject.split(" ", 2)[1] for _, reason in causes(label, of, plan)
    ]


def planned(*items: AnyObject) -> Plan:
    return Plan(style="flannel", topology="t", fragments={"x": items})


def test_devices_on_the_way_are_those_of_the_style_not_of_the_underlay() -> None:
    assert subjects("device traversals", TUNNELLED) == ["bridge cni0"]


def test_hops_are_put_down_to_routes_and_an_encapsulation_to_what_holds_the_outer_address() -> None:
    assert subjects("routed hops", TUNNELLED) == ["route 10.244.2.0/24"]
    assert subjects("encapsulation on the wire", TUNNELLED) == ["fdb 7a:39:86:5a:e1:44"]


def test_without_encapsulation_it_is_the_route_that_leads_out() -> None:
    plain = column(hop("node/n1", "veth1", "in", POD), hop("node/n1", "eth0", "out", ROUTE, ttl=63))
    assert subjects("encapsulation on the wire", plain) == ["route 10.244.2.0/24"]


def test_what_is_bridged_is_put_down_to_its_bridge() -> None:
    local = column(hop("node/n1", "veth1", "in", POD), hop("node/n1", "cni0", "in", BRIDGE))
    assert subjects("TTL at the receiver", local) == ["bridge cni0"]


def test_a_rewritten_source_is_put_down_to_its_rule_and_a_kept_one_to_who_has_it() -> None:
    out = column(
        hop("node/n1", "cni0", "in", BRIDGE),
        hop("node/n1", "eth0", "out", ROUTE, MASQUERADE, ttl=63, source="192.168.50.11"),
    )
    assert subjects("source seen by the receiver", out) == ["iptables -t"]
    plan = planned(Address(ns="pod/default/a", device="eth0", address="10.244.1.2/24"))
    assert subjects("source seen by the receiver", TUNNELLED, plan) == ["address 10.244.1.2/24"]


def test_an_mtu_is_put_down_to_the_pods_device() -> None:
    veth = Veth(ns="pod/default/a", name="eth0", peer_ns="node/n1", peer="veth1", mtu=1450)
    assert subjects("pod MTU, largest packet without fragments", TUNNELLED, planned(veth)) == ["veth eth0"]


def test_what_came_back_is_put_down_to_what_made_its_sender_answer() -> None:
    refused = column(
        hop("pod/default/a", "eth0", "out"), verdict="unreachable", error=hop("node/n1", "cni0", "out", BRIDGE)
    )
    assert subjects("verdict", refused) == ["bridge cni0"]


def test_hook_passes_of_bridged_frames_are_put_down_to_the_bridges_parameter() -> None:
    plan = planned(
        Sysctl(ns="node/n1", name="net/bridge/bridge-nf-call-iptables", value="1"),
        Sysctl(ns="node/n9", name="net/bridge/bridge-nf-call-iptables", value="1"),
    )
    found = subjects("netfilter hook passes", TUNNELLED, plan)
    assert found == ["sysctl net/bridge/bridge-nf-call-iptables", "route 10.244.2.0/24", "fdb 7a:39:86:5a:e1:44"]


def test_rows_that_no_plan_decides_have_no_cause() -> None:
    assert subjects("median round trip", TUNNELLED) == []


BIRD = Daemon(ns="node/n1", name="bird", argv=("bird",), files=("/etc/bird.cfg",))
CONFIG = File(ns="node/n1", path="/etc/bird.cfg", content="")
OTHERS = (File(ns="node/n1", path="/etc/other", content=""), Daemon(ns="node/n2", name="bird", argv=("bird",)))


def read_off(protocol: str, state: str) -> FlowColumn:
    result = FlowResult(
        scenario="s", style="calico", flow="r", title="", source="n1", target="n1", source_ns="node/n1",
        target_address="", protocol=protocol, verdict="observed", state=state,
    )  # fmt: skip
    return FlowColumn(Column("calico", "Calico"), None, result)


def test_a_routing_table_is_put_down_to_the_planned_routes_that_are_in_it() -> None:
    routes = (
        Route(ns="node/n1", destination="0.0.0.0/0", via="192.168.50.1", device="eth0"),
        Route(ns="node/n1", destination="10.244.0.64/26", via="192.168.50.12", device="eth0"),
        Route(ns="node/n1", destination="10.244.0.128/26", via="192.168.50.13", device="eth0"),  # of another next hop
        Route(ns="node/n1", destination="10.244.0.0/26", type="blackhole"),
        Route(ns="node/n1", destination="10.244.1.0/26", type="blackhole"),  # is not there
        Route(ns="node/n2", destination="0.0.0.0/0", via="192.168.50.1", device="eth0"),  # elsewhere
        Route(ns="node/n1", destination="10.9.0.0/24", hops=(("192.168.50.12", "eth0"), ("192.168.50.13", "eth0"))),
    )
    state = """\
default via 192.168.50.1 dev eth0 proto static
blackhole 10.244.0.0/26 proto bird
10.244.0.64/26 via 192.168.50.12 dev eth0 proto bird
10.244.0.128/26 via 192.168.50.12 dev eth0 proto bird
10.9.0.0/24 via 192.168.50.13 dev eth0 via 192.168.50.12 dev eth0 proto bird"""

    assert subjects("state", read_off("routes", state), planned(*routes)) == [
        "route default",
        "route 10.244.0.64/26",
        "route blackhole",
        "route 10.9.0.0/24",
    ]


def test_a_session_is_put_down_to_the_daemon_of_its_end_and_that_ones_configuration() -> None:
    found = causes("state", read_off("bgp", "Established"), planned(BIRD, CONFIG, *OTHERS))
    assert [(ns, reason.subject.split()[0]) for ns, reason in found] == [("node/n1", "daemon"), ("node/n1", "file")]
    assert found[1][1].subject.split()[1] == "/etc/bird.cfg"


def test_an_interrupted_stream_is_put_down_to_the_routes_of_both_ways_and_the_daemons_that_learn_them() -> None:
    static = Reason("route 10.244.1.0/24 via 192.168.50.11 dev eth0", "flanneld", "")
    learned = Reason("route 10.244.2.0/24 via 192.168.50.12 dev eth0 proto bird (learned)", "bird", "")
    there = column(hop("pod/default/a", "eth0", "out", POD), hop("node/n1", "eth0", "out", learned))
    back = FlowJourney("s", "flannel", "ping", "reply", 0, Journey(3, (hop("node/n2", "eth0", "out", static),)))
    both = msgspec.structs.replace(there, reply=back)

    found = causes("requests of the stream answered", both, planned(BIRD, CONFIG, *OTHERS))

    assert [(ns, " ".join(reason.subject.split()[:2])) for ns, reason in found] == [
        ("node/n1", "route 10.244.2.0/24"),
        ("node/n2", "route 10.244.1.0/24"),
        ("node/n1", "daemon bird:"),  # n2's route is nobody's who could die
    ]
