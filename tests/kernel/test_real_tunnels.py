"""IP-in-IP by the kernel's own device: hop tables that tshark reads, and what the outer header holds.

Only a distribution's kernel has the device: ``./cnilab test --real-kernel`` (docs/real-kernel.md).

::

    n1-p1 ── n1 [tunnel] ══ outer IPv4, protocol 4, +20 bytes ══ [tunnel] n2 ── n2-p1
      64         63                   63 | 63                        63          62       TTL (outer | inner)
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from emulator import Lab
from tests.kernel.tshark_hops import ping_hops

pytestmark = [pytest.mark.real_kernel, pytest.mark.requires("ipip", "tshark")]

ECHO = 98  # bytes: 14 Ethernet, 20 IPv4, 8 ICMP, 56 data
IPV4, IPIP = 20, 4  # bytes of a header without options, and the number of its protocol (RFC 2003)
LARGEST = 1500 - IPV4 - IPV4 - 8  # bytes of data in an echo request that needs no fragments: two IPv4 headers, ICMP


@dataclass(frozen=True)
class Case:
    """A style whose packet from n1-p1 to ``far`` goes through a tunnel."""

    cni: str
    topology: str
    device: str
    far: str

    def __str__(self) -> str:
        return self.cni


WITHIN_A_SUBNET = (
    Case("calico:ipip", "three-nodes", "tunl0", "n2-p1"),
    Case("flannel:ipip", "three-nodes", "flannel.ipip", "n2-p1"),
    Case("kube-router:full", "three-nodes", "tun-*", "n2-p1"),
)
BETWEEN_SUBNETS = (
    Case("calico:ipip-crosssubnet", "racks", "tunl0", "n3-p1"),
    Case("flannel:ipip-directrouting", "racks", "flannel.ipip", "n3-p1"),
    # kube-router: tests/kernel/test_styles_kube_router.py
)


# Labs of racks are slow under emulation: what does not depend on the way is looked at on the short one.
anywhere = pytest.mark.parametrize(
    "started", [*WITHIN_A_SUBNET, *BETWEEN_SUBNETS], ids=str, indirect=True, scope="module"
)
nearby = pytest.mark.parametrize("started", WITHIN_A_SUBNET, ids=str, indirect=True, scope="module")


@pytest.fixture(scope="module")
def started(request: pytest.FixtureRequest) -> Iterator[tuple[Case, Lab]]:
    """One lab for all tests of a style: a start takes ten seconds."""
    with Lab(request.param.topology, cni=request.param.cni, wire_accurate=True) as lab:
        yield request.param, lab


def brief(line: str) -> str:
    """Without the columns that other tests look at: addresses' ends and MACs."""
    place, _, ttl, _, length = line.split("  ")
    return f"{place}  {ttl}  {length}"


def bridge(style: Case) -> str:
    return {"calico": "", "flannel": "cni0", "kube-router": "kube-bridge"}[style.cni.partition(":")[0]]


def tunnelled_hops(style: Case) -> list[str]:
    """What ``ping_hops`` is to see, from docs/calico.md, docs/flannel.md and docs/kube-router.md."""
    host_end = "veth*" if bridge(style) else "cali*"
    bridge_in = [f"n1:{bridge(style)} in  ttl 64  {ECHO} bytes"] if bridge(style) else []
    far = style.far.partition("-")[0]
    bridge_out = [f"{far}:{bridge(style)} out  ttl 62  {ECHO} bytes"] if bridge(style) else []
    if style.topology == "three-nodes":
        routers, arriving = [], 63
    else:
        # The routers see the outer header alone; the inner TTL crosses three of them unchanged.
        routers = [
            "tor1:eth0 in  ttl 63|63",
            "tor1:eth1 out  ttl 62|63",
            "spine:eth1 in  ttl 62|63",
            "spine:eth2 out  ttl 61|63",
            "tor2:eth1 in  ttl 61|63",
            "tor2:eth0 out  ttl 60|63",
        ]
        arriving = 60
    wire = ["n1:eth0 out  ttl 63|63", *routers, f"{far}:eth0 in  ttl {arriving}|63"]
    return [
        f"n1-p1:eth0 out  ttl 64  {ECHO} bytes",
        f"n1:{host_end} in  ttl 64  {ECHO} bytes",
        *bridge_in,
        f"n1:{style.device} out  ttl 63  {ECHO} bytes",
        *(f"{place}  {ECHO + IPV4} bytes" for place in wire),
        f"{far}:{style.device} in  ttl 63  {ECHO} bytes",
        *bridge_out,
        f"{far}:{host_end} out  ttl 62  {ECHO} bytes",
        f"{far}-p1:eth0 in  ttl 62  {ECHO} bytes",
    ]


@anywhere
def test_the_kernel_holds_what_was_planned(started: tuple[Case, Lab]) -> None:
    assert started[1].verify() == []


@anywhere
def test_packet_takes_the_tunnel_to_the_other_node(started: tuple[Case, Lab]) -> None:
    style, lab = started

    assert [brief(line) for line in ping_hops(lab, "n1-p1", style.far)] == tunnelled_hops(style)


@nearby
def test_outer_header_is_plain_ipv4_of_protocol_4_between_the_nodes(started: tuple[Case, Lab], tmp_path: Path) -> None:
    style, lab = started
    nodes = [lab.cluster().node(name).addresses[0] for name in ("n1", style.far.partition("-")[0])]
    assert lab.probe("n1-p1", style.far).reached
    with lab.capture("n1:eth0") as capture:
        assert lab.probe("n1-p1", style.far).reached
    capture.save(tmp_path / "hop.pcapng")

    fields = ("frame.protocols", "ip.src", "ip.dst", "ip.proto", "ip.hdr_len", "ip.len", "ip.dsfield", "ip.flags.df")
    (line,) = tshark(tmp_path / "hop.pcapng", "icmp.type == 8", fields)

    protocols, source, target, protocol, header, length, services, dont_fragment = line
    assert protocols == "eth:ethertype:ip:ip:icmp:data"
    assert (source.split("|")[0], target.split("|")[0]) == tuple(nodes)
    assert protocol == f"{IPIP}|1"
    assert header == f"{IPV4}|{IPV4}"
    assert length == f"{ECHO - 14 + IPV4}|{ECHO - 14}"
    assert services == "0x00|0x00"
    assert dont_fragment == "1|1"  # the inner packet's, copied


@nearby
def test_tunnel_leaves_1480_bytes(started: tuple[Case, Lab]) -> None:
    style, lab = started
    links = json.loads(lab.run("n1", "ip", "-j", "link", "show", "type", "ipip").stdout)
    ours = [link for link in links if link and link["ifname"].startswith(style.device.rstrip("*"))]
    assert ours
    assert {link["mtu"] for link in ours} == {1500 - IPV4}

    assert lab.probe("n1-p1", style.far, size=LARGEST, dont_fragment=True).reached
    too_large = lab.probe("n1-p1", style.far, size=LARGEST + 1, dont_fragment=True).result
    assert (too_large.verdict, too_large.mtu) == ("unreachable", 1500 - IPV4)


@anywhere
def test_nodes_of_the_same_subnet_need_a_tunnel_only_where_all_packets_take_one(started: tuple[Case, Lab]) -> None:
    style, lab = started

    wire = [line for line in ping_hops(lab, "n1-p1", "n2-p1") if line.startswith("n1:eth0 out")]

    assert [brief(line) for line in wire] == [
        f"n1:eth0 out  ttl 63|63  {ECHO + IPV4} bytes"
        if style.topology == "three-nodes"
        else f"n1:eth0 out  ttl 63  {ECHO} bytes"
    ]


@nearby
def test_trace_tells_the_tunnel_from_what_is_in_it(started: tuple[Case, Lab]) -> None:
    style, lab = started

    request = lab.trace("n1-p1", style.far).request

    assert request is not None
    tunnels = [hop.packet.tunnel for hop in request.hops if hop.packet.tunnel is not None]
    assert {(tunnel.kind, tunnel.overhead) for tunnel in tunnels} == {("ipip", IPV4)}
    assert tunnels[0].ttl == 63
    assert (request.hops[0].packet.ttl, request.hops[-1].packet.ttl) == (64, 62)


@nearby
def test_tcp_passes_the_tunnel_with_the_pods_own_address(started: tuple[Case, Lab]) -> None:
    style, lab = started
    pod = lab.get("pods", "n1-p1")[0]["status"]["podIP"]

    result = lab.probe("n1-p1", style.far, 80, size=100_000).result

    assert (result.answered_by, result.source_seen.rpartition(":")[0]) == (style.far, pod)


def tshark(file: Path, wanted: str, fields: tuple[str, ...]) -> list[list[str]]:
    names = [word for field in fields for word in ("-e", field)]
    command = ["tshark", "-r", str(file), "-Y", wanted, "-T", "fields", "-E", "aggregator=|", *names]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [line.split("\t") for line in output.splitlines()]
