"""Runs that never ran, but whose hops are what the real styles do: device by device, TTL, MACs, encapsulation.

The hop tables follow the public data paths of Flannel (vxlan, host-gw) and Calico (BGP, VXLAN), with the sightings that
one packet socket per namespace gives: each device once per direction, switch ports included.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from emulator.capture.model import Direction, Hop, Journey, Packet, Reason, Tunnel
from emulator.compare.records import RUN_SCHEMA, Check, FlowJourney, FlowResult, RunMeta, StyleMeta

Step = tuple[str, str, Direction, Packet, tuple[Reason, ...], int]
START = 1_760_000_000_000_000_000  # ns; any moment will do

POD_A, POD_B = "0a:58:0a:f4:01:02", "0a:58:0a:f4:02:02"
CNI0_1, CNI0_2 = "0a:58:0a:f4:01:01", "0a:58:0a:f4:02:01"
VTEP_1, VTEP_2 = "8a:1f:2e:00:00:01", "8a:1f:2e:00:00:02"
NODE_1, NODE_2 = "02:00:00:00:01:0b", "02:00:00:00:01:0c"
CALICO = "ee:ee:ee:ee:ee:ee"

FLANNEL = StyleMeta(style="flannel", title="Flannel · vxlan", setup_seconds=0.8, choices={"loss": "nft numgen"})
HOST_GW = StyleMeta(style="flannel:host-gw", title="Flannel · host-gw", setup_seconds=0.7)
CALICO_BGP = StyleMeta(style="calico", title="Calico · BGP, no encapsulation", setup_seconds=2.9)
CALICO_VXLAN = StyleMeta(style="calico:vxlan", title="Calico · VXLAN", setup_seconds=1.4)


def walk(steps: Sequence[Step], *, id: int = 1, start: int = START) -> Journey:
    """The steps as a journey; the last number of each is the ns since the step before."""
    hops, now = [], start
    for ns, device, direction, packet, reasons, later in steps:
        now += later
        hops.append(Hop(now, now - start, ns, device, direction, packet, (), reasons))
    return Journey(id, tuple(hops))


def echo(source: str, target: str, *, reply: bool = False, data: int = 56) -> Packet:
    """An ICMP echo as its sender emits it. ``data`` in bytes."""
    six = ":" in source
    kinds = (129, 128) if six else (0, 8)
    return Packet(
        source_mac=POD_A,
        target_mac=CNI0_1,
        length=14 + (40 if six else 20) + 8 + data,
        protocol="icmpv6" if six else "icmp",
        version=6 if six else 4,
        source=source,
        target=target,
        ttl=64,
        dont_fragment=not six,
        icmp_type=kinds[0] if reply else kinds[1],
        icmp_id=4711,
        icmp_seq=1,
        payload=data,
        summary=f"echo {'reply' if reply else 'request'} id 4711 seq 1",
    )


def syn(source: str, target: str, port: int) -> Packet:
    """The first packet of a TCP connection."""
    return Packet(
        source_mac=POD_A,
        target_mac=CNI0_1,
        length=74,
        protocol="tcp",
        version=4,
        source=source,
        target=target,
        ttl=64,
        dont_fragment=True,
        source_port=40312,
        target_port=port,
        tcp_flags="S",
        tcp_seq=1000,
        summary=f"tcp 40312 → {port} SYN",
    )


def changed(packet: Packet, **fields: object) -> Packet:
    """The packet with other header fields; a tunnel makes it longer, losing one shorter."""
    after = msgspec.structs.replace(packet, **fields)
    before, now = (item.tunnel.overhead if item.tunnel else 0 for item in (packet, after))
    return msgspec.structs.replace(after, length=packet.length - before + now)


def _why(subject: str, component: str, why: str) -> tuple[Reason, ...]:
    return (Reason(subject, component, why),)


def flannel_vxlan(sent: Packet, a: str = "a", b: str = "b", n1: str = "n1", n2: str = "n2") -> list[Step]:
    """Pod to pod over nodes: 12 device traversals, two routers, VNI 1 on port 8472, +50 bytes."""
    pod_a, pod_b, one, two = f"pod/default/{a}", f"pod/default/{b}", f"node/{n1}", f"node/{n2}"
    vxlan = Tunnel(
        kind="vxlan",
        source="192.168.50.11",
        target="192.168.50.12",
        ttl=64,
        overhead=50,
        source_mac=NODE_1,
        target_mac=NODE_2,
        source_port=41691,
        target_port=8472,
        vni=1,
    )
    vtep = "flannel-v6.1" if sent.version == 6 else "flannel.1"
    cidr, base = ("fd00:10:244:2::/64", "fd00:10:244:2::") if sent.version == 6 else ("10.244.2.0/24", "10.244.2.0")
    routed = changed(sent, ttl=63, source_mac=VTEP_1, target_mac=VTEP_2)
    wired = changed(routed, tunnel=vxlan)
    landed = changed(routed, ttl=62, source_mac=CNI0_2, target_mac=POD_B)
    gateway = "fd00:10:244:1::1" if sent.version == 6 else "10.244.1.1"
    anywhere = "::/0" if sent.version == 6 else "0.0.0.0/0"
    return [
        (
            pod_a,
            "eth0",
            "out",
            sent,
            _why(f"route {anywhere} via {gateway} dev eth0", "bridge", "the pod's gateway is the bridge on its node"),
            0,
        ),
        (
            one,
            "veth3f2a91bc",
            "in",
            sent,
            _why("port veth3f2a91bc of cni0", "bridge", "each pod is a port of the bridge"),
            1_100,
        ),
        (one, "cni0", "in", sent, (), 700),
        (
            one,
            vtep,
            "out",
            routed,
            _why(f"route {cidr} via {base} dev {vtep} onlink", "flanneld", f"pods of {n2} are behind its VTEP"),
            2_600,
        ),
        (
            one,
            "eth0",
            "out",
            wired,
            (
                Reason(f"fdb {VTEP_2} dst 192.168.50.12 dev {vtep}", "flanneld", f"which node has {n2}'s VTEP"),
                Reason(f"vxlan {vtep} vni 1 port 8472", "flanneld", "the overlay between nodes"),
            ),
            1_800,
        ),
        ("underlay", "s1-p1", "in", wired, (), 900),
        ("underlay", "s1-p2", "out", wired, (), 600),
        (two, "eth0", "in", wired, (), 900),
        (
            two,
            vtep,
            "in",
            routed,
            _why(f"vxlan {vtep} vni 1 port 8472", "flanneld", "the kernel took the outer headers off"),
            1_500,
        ),
        (
            two,
            "cni0",
            "out",
            landed,
            _why(f"route {cidr} dev cni0", "kernel", "connected: the bridge's own subnet"),
            1_300,
        ),
        (two, "veth91bc3f2a", "out", landed, (), 600),
        (pod_b, "eth0", "in", landed, (), 700),
    ]


def flannel_host_gw(sent: Packet) -> list[Step]:
    """Pod to pod over nodes by plain routes: no tunnel."""
    routed = changed(sent, ttl=63, source_mac=NODE_1, target_mac=NODE_2)
    landed = changed(routed, ttl=62, source_mac=CNI0_2, target_mac=POD_B)
    vxlan = flannel_vxlan(sent)
    return [
        *vxlan[:3],
        (
            "node/n1",
            "eth0",
            "out",
            routed,
            _why("route 10.244.2.0/24 via 192.168.50.12 dev eth0", "flanneld", "pods of n2 are behind n2 itself"),
            2_900,
        ),
        ("underlay", "s1-p1", "in", routed, (), 800),
        ("underlay", "s1-p2", "out", routed, (), 600),
        ("node/n2", "eth0", "in", routed, (), 800),
        (
            "node/n2",
            "cni0",
            "out",
            landed,
            _why("route 10.244.2.0/24 dev cni0", "kernel", "connected: the bridge's own subnet"),
            2_100,
        ),
        *((ns, device, way, landed, (), later) for ns, device, way, _, _, later in vxlan[10:]),
    ]


def calico_bgp(sent: Packet, a: str = "a", b: str = "b", n1: str = "n1", n2: str = "n2") -> list[Step]:
    """Pod to pod over nodes, routed by BGP: 8 device traversals, two routers, no tunnel."""
    sent = changed(sent, target_mac=CALICO)
    routed = changed(sent, ttl=63, source_mac=NODE_1, target_mac=NODE_2)
    landed = changed(routed, ttl=62, source_mac=CALICO, target_mac=POD_B)
    pod = sent.target
    block, host = ("fd00:10:244:2::/122", 128) if sent.version == 6 else ("10.244.2.0/26", 32)
    node = "fd00:50::12" if sent.version == 6 else "192.168.50.12"
    gateway = "fe80::ecee:eeff:feee:eeee" if sent.version == 6 else "169.254.1.1"
    anywhere = "::/0" if sent.version == 6 else "0.0.0.0/0"
    return [
        (
            f"pod/default/{a}",
            "eth0",
            "out",
            sent,
            _why(f"route {anywhere} via {gateway} dev eth0", "calico", "proxy ARP: the node answers for it"),
            0,
        ),
        (f"node/{n1}", "cali440f4556934", "in", sent, (), 1_000),
        (
            f"node/{n1}",
            "eth0",
            "out",
            routed,
            _why(f"route {block} via {node} dev eth0", "bird", f"learned by BGP from {n2}"),
            2_100,
        ),
        ("underlay", "s1-p1", "in", routed, (), 800),
        ("underlay", "s1-p2", "out", routed, (), 500),
        (f"node/{n2}", "eth0", "in", routed, (), 900),
        (
            f"node/{n2}",
            "cali8b1d2e09aa4",
            "out",
            landed,
            _why(f"route {pod}/{host} dev cali8b1d2e09aa4", "felix", f"pod default/{b} is here"),
            1_900,
        ),
        (f"pod/default/{b}", "eth0", "in", landed, (), 600),
    ]


def calico_vxlan(sent: Packet) -> list[Step]:
    """As Flannel's overlay, with Calico's devices: VNI 4096 on port 4789."""
    renamed = {"veth3f2a91bc": "cali440f4556934", "veth91bc3f2a": "cali8b1d2e09aa4", "flannel.1": "vxlan.calico"}
    steps: list[Step] = []
    for ns, device, way, packet, reasons, later in flannel_vxlan(changed(sent, target_mac=CALICO)):
        if device == "cni0":
            continue
        tunnel = packet.tunnel and msgspec.structs.replace(packet.tunnel, vni=4096, target_port=4789)
        packet = msgspec.structs.replace(packet, tunnel=tunnel)
        if device == "veth91bc3f2a" or ns == "pod/default/b":
            packet = msgspec.structs.replace(packet, source_mac=CALICO)
            reasons = _why("route 10.244.2.2/32 dev cali8b1d2e09aa4", "felix", "pod default/b is here")
        reasons = tuple(
            Reason(r.subject.replace("flannel.1", "vxlan.calico"), "felix", r.why)
            for r in reasons
            if "cni0" not in r.why
        )
        steps.append((ns, renamed.get(device, device), way, packet, reasons, later))
    return steps


def masqueraded(sent: Packet, pod_side: Sequence[Step], component: str, rule: str) -> list[Step]:
    """From a pod to a host outside: the node's address replaces the pod's."""
    out = changed(pod_side[-1][3], ttl=63, source="192.168.50.11", source_mac=NODE_1, target_mac="02:00:00:00:01:64")
    return [
        *pod_side,
        ("node/n1", "eth0", "out", out, _why(rule, component, "pods' addresses mean nothing outside"), 3_400),
        ("underlay", "s1-p1", "in", out, (), 800),
        ("underlay", "s1-p9", "out", out, (), 500),
        ("host/client", "eth0", "in", out, (), 700),
    ]


def too_big(sent: Packet, router: str, mtu: int) -> list[Step]:
    """The ICMP error that a router sends back to the pod."""
    error = changed(
        sent,
        source=router,
        target=sent.source,
        source_mac=CNI0_1,
        target_mac=POD_A,
        icmp_type=3,
        icmp_code=4,
        icmp_mtu=mtu,
        length=590,
        summary=f"destination unreachable: fragmentation needed, mtu {mtu}",
    )
    return [
        ("node/n1", "cni0", "out", error, (), 0),
        ("node/n1", "veth3f2a91bc", "out", error, (), 700),
        ("pod/default/a", "eth0", "in", error, (), 900),
    ]


def through_racks(sent: Packet) -> list[Step]:
    """Between racks: two ToRs and a spine route the tunnel's outer packet. 20 hops, for folding."""
    steps = flannel_vxlan(sent)
    wired = steps[4][3]
    assert wired.tunnel
    middle: list[Step] = []
    ttl = 64
    for name, ingress, egress in (("tor1", "eth1", "eth0"), ("spine", "eth1", "eth2"), ("tor2", "eth0", "eth1")):
        before = msgspec.structs.replace(wired, tunnel=msgspec.structs.replace(wired.tunnel, ttl=ttl))
        ttl -= 1
        after = msgspec.structs.replace(wired, tunnel=msgspec.structs.replace(wired.tunnel, ttl=ttl))
        middle.append((f"router/{name}", ingress, "in", before, (), 900))
        middle.append(
            (
                f"router/{name}",
                egress,
                "out",
                after,
                _why("route 192.168.52.0/24 via 10.9.0.2 dev eth0", "topology", "the racks' subnets"),
                1_200,
            )
        )
        middle.append(("underlay", f"{name}-up", "in", after, (), 500))
        middle.append(("underlay", f"{name}-down", "out", after, (), 500))
    last = middle[-1][3]
    return [*steps[:5], *middle, (steps[7][0], "eth0", "in", last, (), 700), *steps[8:]]


def backwards(steps: Sequence[Step], source: str, target: str, *, icmp: bool) -> list[Step]:
    """A reply over the same devices: the steps in reverse, directions turned, TTL counted down from 64."""
    answer: list[Step] = []
    forward = [step[3] for step in steps]
    first = forward[0].ttl
    for number, (ns, device, way, packet, reasons, later) in enumerate(reversed(steps)):
        spent = packet.ttl - forward[-1].ttl
        tunnel = packet.tunnel
        if tunnel:
            tunnel = msgspec.structs.replace(
                tunnel,
                source=tunnel.target,
                target=tunnel.source,
                source_mac=tunnel.target_mac,
                target_mac=tunnel.source_mac,
            )
        turned = msgspec.structs.replace(
            packet,
            source=source,
            target=target if packet.source == forward[0].source else packet.source,
            source_mac=packet.target_mac,
            target_mac=packet.source_mac,
            source_port=packet.target_port,
            target_port=packet.source_port,
            ttl=first - spent,
            tunnel=tunnel,
            icmp_type={8: 0, 128: 129}.get(packet.icmp_type, 0) if icmp else 0,
            tcp_flags="" if icmp else "SA",
            summary="echo reply id 4711 seq 1" if icmp else f"tcp {packet.target_port} → {packet.source_port} SYN ACK",
        )
        kept = tuple(reason for reason in reasons if not reason.subject.startswith("route"))
        answer.append((ns, device, "in" if way == "out" else "out", turned, kept, later if number else 0))
    return answer


Way = Literal["request", "reply", "error"]


class RunBuilder:
    """Collects what a run directory holds, then writes it."""

    def __init__(self, styles: Sequence[StyleMeta], **meta: object) -> None:
        self.results: list[FlowResult] = []
        self.journeys: list[FlowJourney] = []
        self.meta = msgspec.structs.replace(
            RunMeta(
                schema=RUN_SCHEMA,
                started="2025-10-09T08:53:20Z",
                command=("cnilab", "run", "connectivity"),
                topology="three-nodes",
                scenarios=(),
                styles=tuple(styles),
                kernel="6.1.0-40-amd64",
                seed=42,
                offloads="off",
                versions={"cnilab": "0.1.0", "python": "3.11.2", "bird": "2.0.12", "iptables": "1.8.9 (nf_tables)"},
                machine={"cpus": 2, "model": "Intel Xeon", "memory_gib": 8},
            ),
            **meta,
        )

    def flow(
        self,
        result: FlowResult,
        request: Sequence[Step] = (),
        *,
        reply: Sequence[Step] = (),
        error: Sequence[Step] = (),
        packets: int = 3,
    ) -> None:
        """Add one flow under one style with its packets."""
        self.results.append(result)
        ways: Iterable[tuple[Way, Sequence[Step]]] = (("request", request), ("reply", reply), ("error", error))
        for way, steps in ways:
            for index in range(packets if steps else 0):
                slower = [(*step[:5], step[5] + 90 * index) for step in steps]
                journey = walk(slower, id=len(self.journeys) + 1, start=START + index * 1_000_000)
                self.journeys.append(FlowJourney(result.scenario, result.style, result.flow, way, index, journey))

    def write(self, directory: Path) -> Path:
        """The run directory, written."""
        directory.mkdir(parents=True, exist_ok=True)
        scenarios = tuple(dict.fromkeys(result.scenario for result in self.results))
        meta = msgspec.structs.replace(self.meta, scenarios=scenarios)
        (directory / "meta.json").write_bytes(msgspec.json.encode(meta))
        (directory / "results.jsonl").write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in self.results))
        (directory / "hops.jsonl").write_bytes(b"".join(msgspec.json.encode(j) + b"\n" for j in self.journeys))
        return directory


def result(style: StyleMeta, **fields: object) -> FlowResult:
    """A flow that was delivered, with fields replaced."""
    base = FlowResult(
        scenario="connectivity/cross-node",
        style=style.style,
        flow="ping",
        title="ping: default/a on n1 → default/b on n2",
        source="default/a",
        target="default/b",
        source_ns="pod/default/a",
        target_address="10.244.2.2",
        protocol="icmp",
        verdict="delivered",
        size=56,
        count=3,
        sent=3,
        received=3,
        times=(31.2, 28.9, 30.4),
        checks=(
            Check("delivered", "delivered", True),
            Check("source seen is the pod", "10.244.1.2", True),
            Check("TTL at the receiver is 62", "62", True),
        ),
        hook_passes={
            "node/n1": {"prerouting": 3, "forward": 3, "postrouting": 3},
            "node/n2": {"prerouting": 3, "forward": 3, "postrouting": 3},
        },
        pod_mtu=1500,
    )
    return msgspec.structs.replace(base, **fields)


VXLAN_HOOKS = {
    "node/n1": {"prerouting": 3, "forward": 3, "output": 3, "postrouting": 6},
    "node/n2": {"prerouting": 6, "input": 3, "forward": 3, "postrouting": 3},
}


def two_styles(directory: Path) -> Path:
    """Flannel vxlan beside Calico BGP: cross-node ping, masquerade, large packets, a dropped flow."""
    return showcase(directory, (FLANNEL, CALICO_BGP))


def four_styles(directory: Path) -> Path:
    """Two Flannels and two Calicos, one of which could not run for one flow."""
    return showcase(directory, (FLANNEL, HOST_GW, CALICO_BGP, CALICO_VXLAN))


def showcase(directory: Path, styles: Sequence[StyleMeta]) -> Path:
    """Every kind of flow that a report must be able to draw."""
    run = RunBuilder(styles)
    for style in styles:
        vxlan = "vxlan" in style.title.lower()
        mtu = 1450 if vxlan else 1500
        hooks = VXLAN_HOOKS if vxlan else result(style).hook_passes
        way = {"flannel": flannel_vxlan, "flannel:host-gw": flannel_host_gw, "calico": calico_bgp}.get(
            style.style, calico_vxlan
        )
        ping = way(echo("10.244.1.2", "10.244.2.2"))
        back = backwards(ping, "10.244.2.2", "10.244.1.2", icmp=True)
        run.flow(result(style, pod_mtu=mtu, hook_passes=hooks), ping, reply=back)

        pod_side = ping[:3] if style.style.startswith("flannel") else ping[:2]
        pod_side = [(*step[:3], changed(step[3], target="192.168.50.100"), *step[4:]) for step in pod_side]
        component, rule = (
            ("flanneld", "iptables nat FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully")
            if style.style.startswith("flannel")
            else ("felix", "iptables nat cali-nat-outgoing -m set --match-set cali40masq-ipam-pools src -j MASQUERADE")
        )
        outward = masqueraded(pod_side[0][3], pod_side, component, rule)
        run.flow(
            result(
                style,
                scenario="connectivity/pod-to-external",
                flow="ping",
                title="ping: default/a → client outside the cluster",
                target="client",
                target_address="192.168.50.100",
                pod_mtu=mtu,
                checks=(Check("source seen is the node's address", "192.168.50.11", True),),
                hook_passes={"node/n1": {"prerouting": 3, "forward": 3, "postrouting": 3}},
            ),
            outward,
            reply=backwards(outward, "192.168.50.100", "192.168.50.11", icmp=True),
        )

        big = way(echo("10.244.1.2", "10.244.2.2", data=1472))
        if vxlan:
            run.flow(
                result(
                    style,
                    scenario="connectivity/large-packets",
                    flow="df-1500",
                    title="1500-byte ping with DF: default/a → default/b",
                    size=1472,
                    verdict="unreachable",
                    received=0,
                    times=(),
                    detail="fragmentation needed, mtu 1450, from 10.244.1.1",
                    pod_mtu=mtu,
                    checks=(Check("delivered", "unreachable: fragmentation needed, mtu 1450", False),),
                    hook_passes={"node/n1": {"prerouting": 3}},
                ),
                big[: 3 if style.style == "flannel" else 2],
                error=too_big(big[0][3], "10.244.1.1", 1450),
            )
        else:
            run.flow(
                result(
                    style,
                    scenario="connectivity/large-packets",
                    flow="df-1500",
                    title="1500-byte ping with DF: default/a → default/b",
                    size=1472,
                    checks=(Check("delivered", "delivered", True),),
                ),
                big,
                reply=backwards(big, "10.244.2.2", "10.244.1.2", icmp=True),
            )

        lost = way(syn("10.244.1.2", "10.244.2.2", 8080))
        run.flow(
            result(
                style,
                scenario="connectivity/node-crash",
                flow="http-during",
                title="TCP 8080 while n2 is down",
                protocol="tcp",
                port=8080,
                verdict="dropped",
                received=0,
                times=(),
                checks=(Check("dropped", "dropped", True),),
                pod_mtu=mtu,
                hook_passes=hooks,
            ),
            [step for step in lost if step[0] not in ("node/n2", "pod/default/b")],
        )
    return run.write(directory)


def ipv6(directory: Path) -> Path:
    """Long addresses, long names, and a style that could not run at all."""
    failed = msgspec.structs.replace(
        CALICO_VXLAN, error="the kernel refused vxlan-v6.calico: this kernel lacks IPv6 VXLAN"
    )
    run = RunBuilder((FLANNEL, CALICO_BGP, failed), topology="ipv6")
    source, target = "fd00:10:244:1:a:b:c:1002", "fd00:10:244:2:ffff:eeee:dddd:2002"
    names = ("web-frontend-7d4b9c6f5d-x2x8k", "orders-database-primary-0", "worker-eu-west-1a", "worker-eu-west-1b")
    for style, way in ((FLANNEL, flannel_vxlan), (CALICO_BGP, calico_bgp)):
        steps = way(echo(source, target), *names)
        run.flow(
            result(
                style,
                flow="ping-v6",
                title=f"ping: default/{names[0]} → default/{names[1]}",
                source=f"default/{names[0]}",
                target=f"default/{names[1]}",
                target_address=target,
                pod_mtu=1430 if style is FLANNEL else 1500,
            ),
            steps,
            reply=backwards(steps, target, source, icmp=True),
        )
    return run.write(directory)


def racks(directory: Path) -> Path:
    """A long way, with routers; a capture that lost packets, and a label."""
    lossy = msgspec.structs.replace(
        FLANNEL,
        captured=90_000,
        lost=12,
        labels=("loss of link n1-tor1 was left out (--allow-missing): no netem here",),
    )
    run = RunBuilder((lossy, CALICO_BGP), topology="racks")
    steps = through_racks(echo("10.244.1.2", "10.244.2.2"))
    run.flow(result(lossy, pod_mtu=1450), steps, reply=backwards(steps, "10.244.2.2", "10.244.1.2", icmp=True))
    run.flow(result(CALICO_BGP), calico_bgp(echo("10.244.1.2", "10.244.2.2")))
    return run.write(directory)


HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m</title>"


def hostile(directory: Path) -> Path:
    """Markup, quotes and terminal escapes wherever a user's text can get."""
    style = msgspec.structs.replace(FLANNEL, title=HOSTILE, labels=(HOSTILE,), choices={HOSTILE: HOSTILE})
    run = RunBuilder((style,), topology=HOSTILE, command=(HOSTILE,), versions={HOSTILE: HOSTILE})
    steps = [
        (ns, HOSTILE, way, msgspec.structs.replace(packet, summary=HOSTILE), _why(HOSTILE, HOSTILE, HOSTILE), later)
        for ns, _, way, packet, _, later in flannel_vxlan(echo("10.244.1.2", "10.244.2.2"), a=HOSTILE)
    ]
    run.flow(
        result(
            style,
            scenario=HOSTILE,
            flow=HOSTILE,
            title=HOSTILE,
            source=HOSTILE,
            target=HOSTILE,
            detail=HOSTILE,
            answered_by=HOSTILE,
            checks=(Check(HOSTILE, HOSTILE, False),),
        ),
        steps,
    )
    return run.write(directory)


def many(directory: Path, flows: int = 100) -> Path:
    """A large run: that many flows under four styles."""
    styles = (FLANNEL, HOST_GW, CALICO_BGP, CALICO_VXLAN)
    run = RunBuilder(styles)
    for number in range(flows):
        source, target = f"10.244.1.{2 + number}", f"10.244.2.{2 + number}"
        for style, way in zip(styles, (flannel_vxlan, flannel_host_gw, calico_bgp, calico_vxlan), strict=True):
            steps = way(echo(source, target))
            run.flow(
                result(style, flow=f"ping-{number}", title=f"ping {number}: a-{number} → b-{number}"),
                steps,
                reply=backwards(steps, target, source, icmp=True),
                packets=1,
            )
    return run.write(directory)


if __name__ == "__main__":
    import sys

    makers = {f.__name__: f for f in (two_styles, four_styles, ipv6, racks, hostile, many)}
    print(json.dumps({name: str(make(Path(sys.argv[1]) / name)) for name, make in makers.items()}, indent=1))
