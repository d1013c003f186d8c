"""Flannel's backend wireguard in a real kernel: the hop table of docs/flannel.md, read by tshark, and what the tunnel
does with packets of every size, with peers that come and go, and with a process that dies.

The stand-in runs everywhere; the kernel's own WireGuard where there is one.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emulator import Lab
from emulator.cni.flannel_wireguard import public_key
from emulator.cni.styles import load_style
from emulator.lab.verdicts import MatrixWish, PortWish
from emulator.plan.model import Wireguard, WireguardPeer

FIELDS = ("frame.interface_name", "frame.packet_flags_direction", "frame.len", "ip.src", "ip.dst", "ip.ttl")
STAND_IN, NATIVE = "flannel:wireguard-go", "flannel:wireguard"
STYLES = [
    pytest.param(STAND_IN, marks=pytest.mark.requires(*load_style(STAND_IN).requires, "tshark")),
    pytest.param(NATIVE, marks=[pytest.mark.real_kernel, pytest.mark.requires(*load_style(NATIVE).requires, "tshark")]),
]
PSK = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="
stand_in_alone = pytest.mark.parametrize("lab", STYLES[:1], indirect=True)


@pytest.fixture(scope="module", params=STYLES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab("three-nodes", cni=request.param, wire_accurate=True) as started:
        yield started


def config(**backend: object) -> list[dict[str, object]]:
    conf = {"EnableIPv6": backend.pop("EnableIPv6", False), "Backend": {"Type": "wireguard", **backend}}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-flannel"}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "kube-flannel-cfg", "namespace": "kube-flannel"},
            "data": {"net-conf.json": json.dumps(conf)},
        },
    ]


def tshark(file: Path, display_filter: str, *more: str) -> list[list[str]]:
    """What tshark reads of the packets that pass the filter, in order of time, but for the switch's ports."""
    wanted = [word for field in ("frame.time_epoch", *FIELDS, *more) for word in ("-e", field)]
    command = ["tshark", "-r", str(file), "-Y", display_filter, "-T", "fields", *wanted]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    rows = sorted((line.split("\t") for line in output.splitlines()), key=lambda row: (row[0], row[2].endswith("1")))
    return [row[1:] for row in rows if not row[1].startswith("underlay:")]


def test_the_kernel_and_the_tunnel_hold_what_was_planned(lab: Lab) -> None:
    assert lab.verify() == []


def test_the_title_says_whether_it_is_the_kernels_own(lab: Lab) -> None:
    stands_in = lab.status().style == STAND_IN
    assert ("stand-in" in lab.status().title) is stands_in
    assert {item.userspace for item in lab.plan() if isinstance(item, Wireguard)} == {stands_in}


def test_tshark_sees_the_hop_table(lab: Lab, tmp_path: Path) -> None:
    assert lab.probe("n1-p1", "n2-p1").reached
    with lab.capture() as capture:
        assert lab.probe("n1-p1", "n2-p1").reached
    capture.save(file := tmp_path / "hops.pcapng")

    inner = tshark(file, "icmp.type == 8")
    devices = [row[0].rstrip("0123456789abcdef") if "veth" in row[0] else row[0] for row in inner]
    assert devices == [
        "default_n1-p1:eth0", "n1:veth", "n1:cni0", "n1:flannel-wg", "n2:flannel-wg", "n2:cni0", "n2:veth",
        "default_n2-p1:eth0",
    ]  # fmt: skip
    assert [row[5] for row in inner] == ["64", "64", "64", "63", "63", "62", "62", "62"]
    assert {row[2] for row in inner} == {"98"}

    outer = tshark(file, "wg.type == 4 && ip.src == 192.168.50.11", "udp.dstport", "wg.counter")
    assert [row[0] for row in outer] == ["n1:eth0", "n2:eth0"]
    assert {tuple(row[2:7]) for row in outer} == {("170", "192.168.50.11", "192.168.50.12", "64", "51820")}
    assert len({row[7] for row in outer}) == 1  # one packet, seen twice
    assert tshark(file, "udp.port == 51820 && icmp") == []  # nothing of it is to be read on the wire


def test_the_path_goes_through_the_encrypted_packet(lab: Lab) -> None:
    request = lab.trace("n1-p1", "n2-p1").request
    assert request is not None
    wrapped = [
        (hop.ns, hop.device, hop.packet.length, hop.packet.tunnel.kind, hop.packet.tunnel.overhead)
        for hop in request.hops
        if hop.packet.tunnel is not None and hop.ns != "underlay"
    ]
    assert wrapped == [("node/n1", "eth0", 170, "wireguard", 72), ("node/n2", "eth0", 170, "wireguard", 72)]
    assert request.verdict == "delivered"
    left = next(hop for hop in request.hops if (hop.ns, hop.device) == ("node/n1", "eth0"))
    assert any(public_key("n2") in reason.subject for reason in left.reasons)


def test_many_packets_at_once_are_told_apart(lab: Lab) -> None:
    with lab.capture() as capture:
        assert lab.probe("n1-p1", "n2-p1", count=20, interval=0.001).result.received == 20
        assert lab.probe("n1-p1", "n2-p1", 80).result.answered_by == "n2-p1"
        assert lab.probe("n1-p1", "n3-p1", count=5, interval=0.001).result.received == 5
    crossing = [journey for journey in capture.journeys() if any(hop.device == "flannel-wg" for hop in journey.hops)]
    assert len(crossing) > 50  # both ways
    for journey in crossing:
        tunnels = {hop.packet.tunnel.target for hop in journey.hops if hop.packet.tunnel is not None}
        last = journey.hops[-1].packet
        assert tunnels == {"192.168.50.1" + last.target.split(".")[2]}, last.summary


def test_packets_up_to_the_mtu_pass_and_no_larger_ones(lab: Lab) -> None:
    assert lab.probe("n1-p1", "n2-p1", size=1392, dont_fragment=True).result.verdict == "delivered"
    refused = lab.probe("n1-p1", "n2-p1", size=1393, dont_fragment=True).result
    assert (refused.verdict, refused.mtu) == ("unreachable", 1420)


def test_what_tells_the_stand_in_from_the_kernels_own(lab: Lab) -> None:
    """A packet for no peer, and the don't-fragment bit of the datagrams."""
    stands_in = lab.status().style == STAND_IN
    stray = lab.probe("n1-p1", "10.244.77.7", 80, "udp").result
    assert stray.verdict == ("dropped" if stands_in else "unreachable")
    request = lab.trace("n1-p1", "n2-p1").request
    assert request is not None
    assert {hop.packet.tunnel.dont_fragment for hop in request.hops if hop.packet.tunnel} == {stands_in}


def test_nodes_reach_remote_pods_from_the_tunnels_address(lab: Lab) -> None:
    assert lab.probe("n1", "n2-p1", 80).result.source_seen.startswith("10.244.1.0:")


@stand_in_alone
def test_a_process_that_is_started_again_is_told_everything_anew(lab: Lab) -> None:
    lab.fault("daemon-kill", "n1", daemon="flannel-wg")
    assert lab.probe("n1-p1", "n2-p1").result.verdict == "dropped"
    assert any("flannel-wg" in line for line in lab.verify())
    lab.fault("daemon-start", "n1", daemon="flannel-wg")
    assert lab.verify() == []
    assert lab.probe("n1-p1", "n2-p1").reached


@pytest.mark.parametrize("cni", STYLES)
def test_a_new_key_and_port_are_told_to_devices_that_are_there(cni: str) -> None:
    with Lab("three-nodes", cni=cni, manifests=config(), wire_accurate=True) as lab:
        assert lab.probe("n1-p1", "n2-p1").reached
        lab.apply(*config(PSK=PSK, ListenPort=4500, PersistentKeepaliveInterval=25))
        assert {(item.preshared_key, item.keepalive) for item in lab.plan() if isinstance(item, WireguardPeer)} == {
            (PSK, 25)
        }
        assert lab.verify() == []
        request = lab.trace("n1-p1", "n2-p1").request
        assert request is not None
        assert {hop.packet.tunnel.target_port for hop in request.hops if hop.packet.tunnel} == {4500}


@pytest.mark.parametrize("cni", STYLES)
@pytest.mark.requires("ipv6")
def test_each_family_has_its_tunnel(cni: str) -> None:
    with Lab("dual-stack", cni=cni, wire_accurate=True) as lab:
        assert lab.verify() == []
        found = {}
        for family in (4, 6):
            request = lab.trace("n1-p1", "n2-p1", family=family).request
            assert request is not None
            (tunnel,) = {
                (hop.packet.tunnel.target, hop.packet.tunnel.target_port, hop.packet.tunnel.overhead)
                for hop in request.hops
                if hop.packet.tunnel is not None
            }
            found[family] = tunnel
        assert found[4][1:] == (51820, 72)
        assert found[6][1:] == (51821, 88)  # 80, and 8 from 104 to 112
        assert ":" in found[6][0]


@pytest.mark.parametrize("cni", STYLES)
@pytest.mark.requires("ipv6")
def test_one_tunnel_may_carry_both_families(cni: str) -> None:
    with Lab("dual-stack", cni=cni, manifests=config(EnableIPv6=True, Mode="auto"), wire_accurate=True) as lab:
        assert lab.verify() == []
        request = lab.trace("n1-p1", "n2-p1", family=6).request
        assert request is not None
        (tunnel,) = {hop.packet.tunnel for hop in request.hops if hop.packet.tunnel is not None}
        assert (tunnel.target, tunnel.target_port) == ("192.168.50.12", 51820)


@stand_in_alone
def test_a_matrix_is_taken_where_no_route_leads_into_the_tunnel(lab: Lab) -> None:
    lab.run("n1", "ip", "route", "flush", "dev", "flannel-wg")
    lab.run("n1", "ip", "route", "add", "unreachable", "10.244.0.0/16")
    try:
        matrix = lab.matrix(MatrixWish(ports=(PortWish("tcp", 80),)))
    finally:
        lab.run("n1", "ip", "route", "del", "unreachable", "10.244.0.0/16")
        lab.run("n1", "ip", "route", "add", "10.244.0.0/16", "dev", "flannel-wg", "scope", "link")
    ways = {(cell.source.split("/")[-1][:2], cell.target.split("/")[-1][:2]) for cell in matrix.cells if cell.allowed}
    assert ("n2", "n3") in ways
    assert not ways & {("n1", "n2"), ("n1", "n3")}


@pytest.mark.parametrize("style", STYLES)
def test_a_matrix_asks_all_nodes_at_once_and_no_tunnel_waits_for_its_session(style: str) -> None:
    """Nothing was sent before: where both ends of a tunnel began a session with their first packets, neither would have
    one for five seconds."""
    with Lab("three-nodes", cni=style) as fresh:
        matrix = fresh.matrix(MatrixWish(ports=(PortWish("tcp", 80),)))
    silent = {(cell.source, cell.target) for cell in matrix.cells if not cell.allowed}
    assert {source for source, _ in silent} <= {"host/client"}
    assert len(matrix.cells) > len(silent)
