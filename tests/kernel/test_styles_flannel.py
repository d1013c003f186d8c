"""Flannel's further modes in a real kernel: the hop tables of docs/flannel.md, read from captures by tshark."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from emulator import Lab
from emulator.cni.styles import load_style
from tests.kernel.tshark_hops import ping_hops

pytestmark = pytest.mark.requires(*load_style("flannel").requires, "tshark")


@pytest.fixture(scope="module")
def udp() -> Iterator[Lab]:
    with Lab("three-nodes", cni="flannel:udp", wire_accurate=True) as started:
        yield started


@pytest.mark.requires("tun")
class TestUdp:
    """The backend udp: a proxy in each node."""

    def test_the_kernel_holds_what_was_planned(self, udp: Lab) -> None:
        assert udp.verify() == []

    def test_each_proxy_takes_one_more_from_the_ttl(self, udp: Lab) -> None:
        request = udp.trace("n1-p1", "n2-p1").request
        assert request is not None
        assert [
            (
                hop.ns,
                hop.device.rstrip("0123456789abcdef") if hop.device.startswith("veth") else hop.device,
                hop.packet.ttl,
            )
            for hop in request.hops
            if hop.ns != "underlay"
        ] == [
            ("pod/default/n1-p1", "eth0", 64),
            ("node/n1", "veth", 64),
            ("node/n1", "cni0", 64),
            ("node/n1", "flannel0", 63),
            ("node/n1", "eth0", 62),
            ("node/n2", "eth0", 62),
            ("node/n2", "flannel0", 61),
            ("node/n2", "cni0", 60),
            ("node/n2", "veth", 60),
            ("pod/default/n2-p1", "eth0", 60),
        ]

    def test_the_packet_stands_bare_in_a_datagram_of_28_bytes_more(self, udp: Lab) -> None:
        request = udp.trace("n1-p1", "n2-p1").request
        assert request is not None
        (tunnel,) = {hop.packet.tunnel for hop in request.hops if hop.packet.tunnel is not None}
        assert (tunnel.kind, tunnel.overhead, tunnel.source_port, tunnel.target_port) == ("udp", 28, 8285, 8285)

    def test_tcp_and_large_packets_pass(self, udp: Lab) -> None:
        assert udp.probe("n1-p1", "n2-p1", 80).result.answered_by == "n2-p1"
        assert udp.probe("n1-p1", "n2-p1", size=1444, dont_fragment=True).result.verdict == "delivered"
        assert udp.probe("n1-p1", "n2-p1", size=1445, dont_fragment=True).result.verdict == "unreachable"

    def test_the_proxys_complaint_does_not_get_past_the_node(self, udp: Lab) -> None:
        """It carries the device's own address as its source, which the kernel takes from nobody (martian)."""
        trace = udp.trace("n1-p1", "10.244.77.7", 80, "udp")
        assert trace.answer.result.verdict == "dropped"
        (complaint,) = [journey for journey in trace.others if journey.kind == "error"]
        (seen,) = complaint.hops
        assert (seen.ns, seen.device, seen.direction) == ("node/n1", "flannel0", "in")
        assert (seen.packet.source, seen.packet.target, seen.packet.ttl) == ("10.244.1.0", "10.244.1.2", 8)
        assert (seen.packet.icmp_type, seen.packet.icmp_code) == (3, 0)

    def test_a_dead_proxy_carries_nothing_and_a_new_one_does(self, udp: Lab) -> None:
        udp.fault("daemon-kill", "n1", daemon="flannel-proxy")
        assert udp.probe("n1-p1", "n2-p1").result.verdict == "dropped"
        udp.fault("daemon-start", "n1", daemon="flannel-proxy")
        assert udp.probe("n1-p1", "n2-p1").result.verdict == "delivered"


@pytest.mark.requires("nft", "nft-nat", "nft-program")
def test_nftables_rules_masquerade_what_leaves_the_cluster() -> None:
    with Lab("three-nodes", cni="flannel:vxlan-nftables", wire_accurate=True) as lab:
        assert lab.verify() == []
        assert ping_hops(lab, "n1-p1", "client")[-1].startswith("client:eth0 in  192.168.50.11>203.0.113.10  ttl 62")
        assert "10.244.1.2>10.244.2.2  ttl 62" in ping_hops(lab, "n1-p1", "n2-p1")[-1]
        assert "10.244.1.0>10.244.2.2" in ping_hops(lab, "n1", "n2-p1")[-1]


def test_another_vni_and_port_are_on_the_wire() -> None:
    conf = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789}}
    manifest = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-flannel"}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "kube-flannel-cfg", "namespace": "kube-flannel"},
            "data": {"net-conf.json": json.dumps(conf)},
        },
    ]
    with Lab("three-nodes", cni="flannel", manifests=manifest, wire_accurate=True) as lab:
        assert lab.verify() == []
        wire = [line for line in ping_hops(lab, "n1-p1", "n2-p1") if line.startswith("n1:eth0 out")]
        assert "udp 4789 vni 7  148 bytes" in wire[0]
