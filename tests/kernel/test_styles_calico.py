"""Calico's modes in a real kernel: the hop tables of docs/calico.md, read from captures by tshark, and what BGP brings.

Convergence is measured by scenarios/bgp/*.yaml; here the routes themselves are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from emulator.kernel.netns import netns_path
from emulator.traffic.freshports import PORTS
from tests.kernel.tshark_hops import ping_hops

pytestmark = pytest.mark.requires(*load_style("calico").requires, "vxlan", "tshark")
SCENARIOS = Path(__file__).parents[2] / "scenarios"
HOST_END = "ee:ee:ee:ee:ee:ee"
WIRE = "n1:eth0|n1:vxlan.calico>n2:eth0|n2:vxlan.calico  udp 4789 vni 4096  148 bytes"
NODES = "192.168.50.11|{}>192.168.50.12|10.244.0.65"


@pytest.fixture(scope="module")
def vxlan() -> Iterator[Lab]:
    """Its router sends the pod network to n1, so that a host outside reaches pods."""
    with Lab(SCENARIOS / "connectivity/topologies/routed-pods.yaml", cni="calico:vxlan", wire_accurate=True) as started:
        yield started


def resource(kind: str, name: str, spec: dict[str, Any], **meta: Any) -> dict[str, Any]:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name, **meta}, "spec": spec}


def bird_routes(lab: Lab, place: str) -> set[str]:
    """What BIRD has in the kernel there: ``10.244.0.64/26 via 192.168.50.12``."""
    lines = lab.run(place, "ip", "route", "show", "proto", "bird").stdout.splitlines()
    return {" ".join(line.split()[:3]) if " via " in line else line.strip() for line in lines}


def eventually(holds: Callable[[], bool], timeout: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_the_kernel_holds_what_was_planned(vxlan: Lab) -> None:
    assert vxlan.verify() == []


def test_pods_of_two_nodes_talk_through_felixs_tunnel(vxlan: Lab) -> None:
    assert ping_hops(vxlan, "n1-p1", "n2-p1") == [
        f"n1-p1:eth0 out  10.244.0.1>10.244.0.65  ttl 64  n1-p1:eth0>{HOST_END}  98 bytes",
        f"n1:cali* in  10.244.0.1>10.244.0.65  ttl 64  n1-p1:eth0>{HOST_END}  98 bytes",
        "n1:vxlan.calico out  10.244.0.1>10.244.0.65  ttl 63  n1:vxlan.calico>n2:vxlan.calico  98 bytes",
        f"n1:eth0 out  {NODES.format('10.244.0.1')}  ttl 64|63  {WIRE}",
        f"n2:eth0 in  {NODES.format('10.244.0.1')}  ttl 64|63  {WIRE}",
        "n2:vxlan.calico in  10.244.0.1>10.244.0.65  ttl 63  n1:vxlan.calico>n2:vxlan.calico  98 bytes",
        f"n2:cali* out  10.244.0.1>10.244.0.65  ttl 62  {HOST_END}>n2-p1:eth0  98 bytes",
        f"n2-p1:eth0 in  10.244.0.1>10.244.0.65  ttl 62  {HOST_END}>n2-p1:eth0  98 bytes",
    ]


def test_pods_of_one_node_need_no_tunnel(vxlan: Lab) -> None:
    assert ping_hops(vxlan, "n1-p1", "n1-p2")[2:] == [
        f"n1:cali* out  10.244.0.1>10.244.0.2  ttl 63  {HOST_END}>n1-p2:eth0  98 bytes",
        f"n1-p2:eth0 in  10.244.0.1>10.244.0.2  ttl 63  {HOST_END}>n1-p2:eth0  98 bytes",
    ]


def test_a_node_talks_to_another_nodes_pod_from_its_tunnels_address(vxlan: Lab) -> None:
    assert ping_hops(vxlan, "n1", "n2-p1")[:2] == [
        "n1:vxlan.calico out  10.244.0.0>10.244.0.65  ttl 64  n1:vxlan.calico>n2:vxlan.calico  98 bytes",
        f"n1:eth0 out  {NODES.format('10.244.0.0')}  ttl 64|64  {WIRE}",
    ]


def test_a_pod_is_seen_outside_as_its_node(vxlan: Lab) -> None:
    assert ping_hops(vxlan, "n1-p1", "client")[2:3] == [
        "n1:eth0 out  192.168.50.11>203.0.113.10  ttl 63  n1:eth0>tor:eth0  98 bytes"
    ]


def test_a_host_outside_keeps_its_address_through_the_tunnel(vxlan: Lab) -> None:
    hops = ping_hops(vxlan, "client", "n2-p1")
    assert f"n1:eth0 out  192.168.50.11|203.0.113.10>192.168.50.12|10.244.0.65  ttl 64|62  {WIRE}" in hops
    assert hops[-1].startswith("n2-p1:eth0 in  203.0.113.10>10.244.0.65  ttl 61")


def test_a_packet_to_an_address_that_no_pod_has_is_dropped_in_silence(vxlan: Lab) -> None:
    answer = vxlan.probe("n1-p1", "10.244.0.100").result
    assert answer.verdict == "dropped"


def test_only_nodes_may_send_encapsulated_packets(vxlan: Lab) -> None:
    """Felix's INPUT rule: VXLAN from elsewhere never reaches the tunnel's end."""
    inner = 'Ether(dst="ff:ff:ff:ff:ff:ff")/IP(src="10.244.0.65",dst="10.244.0.1")/ICMP()'
    packet = f'IP(dst="192.168.50.11")/UDP(sport=40000,dport=4789)/VXLAN(vni=4096,flags=8)/{inner}'
    with vxlan.capture("n1:vxlan.calico") as capture:
        vxlan.send("client", packet)
        time.sleep(0.3)
    assert not [event for event in capture.events() if event.direction == "in"]


def test_cross_subnet_wraps_between_racks_only() -> None:
    with Lab("racks", cni="calico:vxlan-crosssubnet", wire_accurate=True) as lab:
        assert lab.verify() == []
        within = ping_hops(lab, "n1-p1", "n2-p1")
        assert not [line for line in within if "vxlan" in line]
        between = ping_hops(lab, "n1-p1", "n3-p1")
        assert len([line for line in between if "udp 4789 vni 4096  148 bytes" in line]) == 8
        assert between[-1].split("  ")[2] == "ttl 62", "routers take from the outer header"


def test_racks_hear_of_each_other_by_their_routers() -> None:
    with Lab("racks", cni="calico", manifests=[SCENARIOS / "connectivity/manifests/bgp-tor.yaml"]) as lab:
        assert lab.verify() == []
        assert bird_routes(lab, "n1") == {
            "blackhole 10.244.0.0/26",
            "10.244.0.64/26 via 192.168.51.12",
            "10.244.0.128/26 via 192.168.51.1",
            "10.244.0.192/26 via 192.168.51.1",
        }
        assert bird_routes(lab, "spine") == {
            f"10.244.0.{base}/26 via 172.16.0.{hop}" for base, hop in ((0, 1), (64, 1), (128, 3), (192, 3))
        }
        assert ping_hops(lab, "n1-p1", "n3-p1")[-1].split("  ")[2] == "ttl 59", "two nodes and three routers"
        before = {place: bird_routes(lab, place) for place in ("n1", "n3", "tor1", "tor2", "spine")}

        lab.fault("link-down", "tor1", device="eth1")
        far, near = ("10.244.0.128/26", "10.244.0.192/26"), ("10.244.0.0/26", "10.244.0.64/26")
        lost = {"n1": far, "tor1": far, "spine": near, "tor2": near, "n3": near}
        for place, prefixes in lost.items():
            left = {line for line in before[place] if not line.startswith(prefixes)}
            assert eventually(lambda place=place, left=left: bird_routes(lab, place) == left), place  # type: ignore[misc]

        lab.fault("link-up", "tor1", device="eth1")
        for place, routes in before.items():
            assert eventually(lambda place=place, routes=routes: bird_routes(lab, place) == routes), place  # type: ignore[misc]


def test_clients_lose_and_regain_just_what_their_reflector_told_them() -> None:
    objects = [
        resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False}),
        resource("Node", "n1", {"bgp": {"routeReflectorClusterID": "244.0.0.1"}}, labels={"rr": "true"}),
        resource("BGPPeer", "rr", {"nodeSelector": "all()", "peerSelector": "has(rr)", "maxRestartTime": "1s"}),
    ]
    with Lab("three-nodes", cni="calico", manifests=objects) as lab:
        assert lab.verify() == []
        before = {place: bird_routes(lab, place) for place in ("n1", "n2", "n3")}
        assert before["n2"] == {
            "blackhole 10.244.0.64/26",
            "10.244.0.0/26 via 192.168.50.11",
            "10.244.0.128/26 via 192.168.50.13",
        }
        lab.fault("daemon-kill", "n1", daemon="bird")
        assert eventually(lambda: bird_routes(lab, "n2") == {"blackhole 10.244.0.64/26"})
        assert eventually(lambda: bird_routes(lab, "n3") == {"blackhole 10.244.0.128/26"})
        assert bird_routes(lab, "n1") == before["n1"], "the kernel keeps a dead daemon's routes"
        (told,) = (line for line in lab.verify() if "daemon" in line)
        assert told.startswith("node/n1: daemon bird")
        assert told.endswith(" has died")
        lab.fault("daemon-start", "n1", daemon="bird")
        for place, routes in before.items():
            assert eventually(lambda place=place, routes=routes: bird_routes(lab, place) == routes), place  # type: ignore[misc]


def test_a_borrowed_address_is_announced_and_wins() -> None:
    """The pool is two blocks of four: n1's third pod gets an address of n2's block."""
    objects = [
        resource("IPPool", "small", {"cidr": "10.244.0.0/29", "blockSize": 30}),
        *({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}"}, "spec":
           {"nodeName": "n1", "containers": [{"name": "c", "image": "agnhost"}]}} for number in range(5)),
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "far"}, "spec":
         {"nodeName": "n2", "containers": [{"name": "c", "image": "agnhost"}]}},
    ]  # fmt: skip
    topology = SCENARIOS.parent / "tests/kernel/topologies/two-nodes.yaml"
    with Lab(topology, cni="calico", manifests=objects) as lab:
        assert lab.verify() == []
        (borrower,) = [pod for pod in lab.cluster().pods if pod.node == "n1" and pod.addresses[0] >= "10.244.0.4"]
        assert f"{borrower.addresses[0]} via 192.168.50.11" in bird_routes(lab, "n2"), "longer than n2's own block"
        assert lab.probe("far", borrower.name).result.verdict == "delivered"
        assert lab.probe("client", borrower.addresses[0]).result.verdict != "delivered", "nobody told the router"


def test_sessions_with_a_password_hear_nobody_who_does_not_sign() -> None:
    """TCP MD5: the kernel drops segments that are not signed with the same password (RFC 2385)."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp", "namespace": "kube-system"}}
    mesh = {"nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}}}
    objects = [{**secret, "stringData": {"mesh": "hush"}}, resource("BGPConfiguration", "default", mesh)]
    with Lab("three-nodes", cni="calico", manifests=objects) as lab:
        assert lab.verify() == []
        unsigned = ("timeout", "1.5", "bash", "-c", "exec 3<>/dev/tcp/192.168.50.12/179")
        assert lab.run("n1", *unsigned).returncode == 124


def test_whoever_has_a_pods_address_next_asks_from_ports_that_were_not_used(vxlan: Lab) -> None:
    """Connection tracking takes the two for one: a datagram from a port that the first was answered on passes rules
    that deny the second."""
    begins = {
        name: crc32(netns_path(f"pod/default/{name}").encode()) % PORTS for name in map("p{}".format, range(9999))
    }
    second = next(name for name, begin in begins.items() if 0 <= begin - begins["p0"] < 3 and name != "p0")
    asked: list[list[int]] = []
    for name in ("p0", second):  # by themselves they would begin at nearly the same port
        wish = {"cni.projectcalico.org/ipAddrs": '["10.244.0.50"]'}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": wish},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        }
        vxlan.apply(pod)
        assert [one.addresses for one in vxlan.cluster().pods if one.name == name] == [("10.244.0.50",)]
        asked.append([vxlan.probe(name, "n2-p1", 80, "udp").result.local_port for _ in range(5)])
        vxlan.delete_manifests(pod, grace_period=0)
    assert set(asked[0]).isdisjoint(asked[1])
