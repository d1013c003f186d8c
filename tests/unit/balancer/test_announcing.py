"""Who announces, what the plans of load balancers hold, and the frames of a layer 2 speaker."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from emulator.balancer.announcing import elected
from emulator.balancer.load import load_balancer
from emulator.balancer.metallb_l2 import SPEAKER_CONFIG, announced
from emulator.cluster.assemble import assemble
from emulator.cluster.manifests import validate_objects
from emulator.cluster.model import Cluster
from emulator.cluster.topology import parse_topology
from emulator.cni.styles import load_style
from emulator.errors import Unsupported, UserError
from emulator.kernel import metallb_speaker as speaker
from emulator.plan.build import build
from emulator.plan.model import Address, Daemon, File, NftRules, Plan, PolicyRule, Route, Sysctl

SITE = """
switches: [{{name: s1, cidrs: [192.168.50.0/24]}}, {{name: s2, cidrs: [203.0.113.0/24]}}]
nodes: [{{name: n1, switch: s1}}, {{name: n2, switch: s1}}, {{name: n3, switch: s1, labels: {{{labels}}}}}]
routers: [{{name: tor, asn: 64513}}]
hosts: [{{name: client, switch: s2}}]
links: [{{from: tor, to: s1}}, {{from: tor, to: s2}}]
loadBalancer: {balancer}
"""
L2 = "{kind: metallb-l2, addresses: [192.168.50.200-192.168.50.209]}"
BGP = "{kind: metallb-bgp, addresses: [198.51.100.0/28], holdTime: 9}"
CLOUD = "{kind: cloud, machine: tor, addresses: [203.0.113.200-203.0.113.209]}"
EXCLUDED = '"node.kubernetes.io/exclude-from-external-load-balancers": ""'


def pod(name: str, node: str, **labels: str) -> dict[str, Any]:
    container = {"name": "c", "image": "web", "ports": [{"containerPort": 8080}]}
    spec = {"nodeName": node, "containers": [container]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {"app": "web"}},
        "spec": spec,
    }


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    body = {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def planned(
    balancer: str,
    *objects: dict[str, Any],
    style: str = "flannel",
    labels: str = "",
    down: tuple[str, ...] = (),
    health: dict[str, str] | None = None,
) -> tuple[Cluster, Plan]:
    topology = parse_topology(SITE.format(balancer=balancer, labels=labels), "t.yaml")
    chosen = load_style(style)
    topology = chosen.prepare(topology)
    cluster = assemble(topology, list(validate_objects(list(objects))), chosen.ipam(topology))
    cluster = msgspec.structs.replace(cluster, not_ready_nodes=frozenset(down), target_health=health or {})
    found = load_balancer(topology, chosen)
    assert found is not None
    found.check(cluster)
    return cluster, build(cluster, chosen, balancer=found)


def claims(plan: Plan, node: str = "n1") -> dict[str, list[str]]:
    (file,) = (
        item for item in plan if isinstance(item, File) and (item.ns, item.path) == (f"node/{node}", SPEAKER_CONFIG)
    )
    return dict(json.loads(file.content)["addresses"])


def by_hash(nodes: str, address: str) -> list[str]:
    return sorted(nodes.split(), key=lambda node: hashlib.sha256(f"{node}#{address}".encode()).hexdigest())


def test_the_smallest_hash_of_node_and_address_wins() -> None:
    # The order that MetalLB's own rule gives for these names, worked out with sha256sum
    assert elected(["n1", "n2", "n3"], "192.168.50.200") == ("n1", "n2", "n3")
    assert elected(["n1", "n2", "n3"], "192.168.50.201") == ("n3", "n2", "n1")


def test_every_node_may_announce_under_policy_cluster_and_only_those_with_an_endpoint_under_local() -> None:
    local = service("local", externalTrafficPolicy="Local")
    _, plan = planned(L2, pod("p", "n2"), service(), local)
    assert claims(plan) == {"192.168.50.200": by_hash("n1 n2 n3", "192.168.50.200"), "192.168.50.201": ["n2"]}


def test_nobody_announces_a_service_without_endpoints() -> None:
    _, plan = planned(L2, service())
    assert claims(plan) == {"192.168.50.200": []}


def test_an_excluded_node_runs_no_speaker_and_has_no_claim() -> None:
    _, plan = planned(L2, pod("p", "n2"), service(), labels=EXCLUDED)
    assert claims(plan) == {"192.168.50.200": by_hash("n1 n2", "192.168.50.200")}
    assert not [item for item in plan if isinstance(item, Daemon) and item.ns == "node/n3"]


def test_of_a_node_that_is_down_speakers_learn_from_one_another() -> None:
    _, plan = planned(L2, pod("p", "n2"), service(externalTrafficPolicy="Local"), down=("n2",))
    assert claims(plan) == {"192.168.50.200": ["n2"]}


def test_speakers_are_labelled_as_what_they_are() -> None:
    _, plan = planned(L2, service())
    daemons = [item for item in plan if isinstance(item, Daemon)]
    assert {item.component for item in daemons} == {"MetalLB speaker (stand-in)"}
    assert {item.ns for item in daemons} == {"node/n1", "node/n2", "node/n3"}


def test_a_trace_can_read_what_a_speaker_answers_for() -> None:
    _, plan = planned(L2, pod("p", "n2"), service(externalTrafficPolicy="Local"))
    told = {item.ns: announced(item) for item in plan if isinstance(item, File) and item.path == SPEAKER_CONFIG}
    assert told == {"node/n1": (), "node/n2": ("192.168.50.200",), "node/n3": ()}


def routes(plan: Plan) -> dict[str, list[str]]:
    return {
        item.destination: [via for via, _ in item.hops] or [item.via]
        for item in plan
        if isinstance(item, Route) and item.ns == "router/tor" and item.learned
    }


def test_the_router_learns_an_address_from_every_node_or_from_those_with_an_endpoint() -> None:
    local = service("local", externalTrafficPolicy="Local")
    _, plan = planned(BGP, pod("p", "n2"), service(), local)
    assert routes(plan) == {
        "198.51.100.0/32": ["192.168.50.11", "192.168.50.12", "192.168.50.13"],
        "198.51.100.1/32": ["192.168.50.12"],
    }
    assert Sysctl(ns="router/tor", name="net/ipv4/fib_multipath_hash_policy", value="1") in {
        msgspec.structs.replace(item, component="", why="") for item in plan if isinstance(item, Sysctl)
    }


def test_a_nodes_bird_announces_and_learns_nothing() -> None:
    _, plan = planned(BGP, pod("p", "n2"), service())
    (config,) = (
        item.content
        for item in plan
        if isinstance(item, File) and (item.ns, item.path[-9:]) == ("node/n1", "bird.conf")
    )
    assert "route 198.51.100.0/32 blackhole;" in config
    assert "import none;" in config
    assert "hold time 9;" in config
    assert "protocol kernel" not in config


def test_a_node_that_is_down_is_no_next_hop() -> None:
    _, plan = planned(BGP, pod("p", "n2"), service(), down=("n3",))
    assert routes(plan) == {"198.51.100.0/32": ["192.168.50.11", "192.168.50.12"]}


def test_beside_calicos_bird_no_speaker_runs_and_calico_announces() -> None:
    ranges = {"serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/28"}], "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}]}
    api = "projectcalico.org/v3"
    resources = (
        {
            "apiVersion": api,
            "kind": "BGPConfiguration",
            "metadata": {"name": "default"},
            "spec": {**ranges, "asNumber": 64513},
        },
        {
            "apiVersion": api,
            "kind": "BGPPeer",
            "metadata": {"name": "t"},
            "spec": {"peerIP": "192.168.50.1", "asNumber": 64513},
        },
    )
    local = service("local", externalTrafficPolicy="Local")
    cluster, plan = planned(BGP, pod("p", "n2"), service(), local, *resources, style="calico")
    everywhere = ["192.168.50.11", "192.168.50.12", "192.168.50.13"]
    own = next(one for one in cluster.services if one.name == "local")
    found = {cidr: hops for cidr, hops in routes(plan).items() if not cidr.startswith("10.244.")}
    assert found == {
        "198.51.100.0/28": everywhere,
        "10.96.0.0/12": everywhere,
        "198.51.100.1/32": ["192.168.50.12"],
        f"{own.cluster_ips[0]}/32": ["192.168.50.12"],
    }
    assert not [item for item in plan if "MetalLB" in item.component]
    config = next(
        item.content for item in plan if isinstance(item, File) and item.ns == "node/n1" and "bird" in item.path
    )
    kernel = config.partition("filter calico_kernel_programming_v4 {")[2].partition("\n}")[0]
    assert "net ~ 10.96.0.0/12 ) then { reject; }" in kernel
    assert "198.51.100.1/32" not in config


def test_calico_announces_a_single_address_only_while_a_service_has_it() -> None:
    spec = {"serviceLoadBalancerIPs": [{"cidr": "198.51.100.1/32"}], "asNumber": 64513}
    api = "projectcalico.org/v3"
    resources = (
        {"apiVersion": api, "kind": "BGPConfiguration", "metadata": {"name": "default"}, "spec": spec},
        {
            "apiVersion": api,
            "kind": "BGPPeer",
            "metadata": {"name": "t"},
            "spec": {"peerIP": "192.168.50.1", "asNumber": 64513},
        },
    )
    _, plan = planned(BGP, pod("p", "n2"), service(), *resources, style="calico")
    assert not [cidr for cidr in routes(plan) if cidr.startswith("198.")]
    _, plan = planned(BGP, pod("p", "n2"), service(loadBalancerIP="198.51.100.1"), *resources, style="calico")
    assert len(routes(plan)["198.51.100.1/32"]) == 3


@pytest.mark.parametrize("balancer", [L2, BGP])
def test_nobody_announces_addresses_in_a_vpc(balancer: str) -> None:
    with pytest.raises(Unsupported, match="MetalLB cannot announce addresses under aws-vpc: a VPC carries no ARP"):
        planned(balancer, style="aws-vpc")


def test_pods_that_the_balancer_cannot_reach_are_no_targets() -> None:
    with pytest.raises(UserError, match=r"tor has no route to those of n1 \(10.244.1.0/24\)"):
        planned(CLOUD.replace("kind: cloud", "kind: cloud, targets: ip"))


def rules(plan: Plan, chain: str) -> list[str]:
    (table,) = (item for item in plan if isinstance(item, NftRules) and item.ns == "router/tor")
    return [rule for one in table.hooks if one.name == chain for rule in one.rules]


def test_a_cloud_sends_to_node_ports_and_under_policy_local_to_those_that_pass_the_health_check() -> None:
    local = service("local", externalTrafficPolicy="Local", ports=[{"port": 80, "targetPort": 8080, "nodePort": 30081}])
    wide = service(
        ports=[{"port": 80, "targetPort": 8080, "nodePort": 30080}], loadBalancerSourceRanges=["203.0.113.0/25"]
    )
    local["spec"]["healthCheckNodePort"] = 30100
    passed = {"default/local:80/TCP n2 (192.168.50.12:30100)": "healthy"}
    _, plan = planned(CLOUD, pod("p", "n2"), wide, local, health=passed)
    head = "ip daddr 203.0.113.200 tcp dport 80"
    assert rules(plan, "listeners") == [
        f'{head} jhash ip saddr . tcp sport mod 3 seed 0x1 0 dnat to 192.168.50.11:30080 comment "default/web"',
        f'{head} jhash ip saddr . tcp sport mod 3 seed 0x1 1 dnat to 192.168.50.12:30080 comment "default/web"',
        f'{head} jhash ip saddr . tcp sport mod 3 seed 0x1 2 dnat to 192.168.50.13:30080 comment "default/web"',
        'ip daddr 203.0.113.201 tcp dport 80 dnat to 192.168.50.12:30081 comment "default/local"',
    ]
    assert rules(plan, "allowed") == [f'{head} ip saddr != {{ 203.0.113.0/25 }} drop comment "default/web"']
    assert rules(plan, "sources") == ["ct original ip daddr { 203.0.113.200, 203.0.113.201 } ct status dnat masquerade"]
    assert {item.address for item in plan if isinstance(item, Address) and "load balancer" in item.component} == {
        "203.0.113.200/32",
        "203.0.113.201/32",
    }


def test_if_every_node_fails_its_health_check_all_get_traffic() -> None:
    _, plan = planned(CLOUD, service(externalTrafficPolicy="Local"))
    assert len(rules(plan, "listeners")) == 3


def test_preserving_the_clients_address_leaves_the_source_alone() -> None:
    _, plan = planned(CLOUD.replace("kind: cloud", "kind: cloud, preserveClientIP: true"), pod("p", "n2"), service())
    assert rules(plan, "sources") == []


def test_a_session_stays_by_the_clients_address_alone() -> None:
    _, plan = planned(CLOUD, pod("p", "n2"), service(sessionAffinity="ClientIP"))
    assert "jhash ip saddr mod 3" in rules(plan, "listeners")[0]


def test_passing_packets_through_marks_them_for_a_node() -> None:
    written = "{kind: cloud, machine: tor, targets: passthrough, addresses: [198.51.100.0/28]}"
    local = service(externalTrafficPolicy="Local", healthCheckNodePort=30100)
    passed = {"default/web:80/TCP n2 (192.168.50.12:30100)": "healthy"}
    _, plan = planned(written, pod("p", "n2"), local, health=passed)
    (rule,) = (item for item in plan if isinstance(item, PolicyRule) and item.fwmark == 0x101)
    way = next(item for item in plan if isinstance(item, Route) and item.table == rule.table)
    assert way.via == "192.168.50.12"
    assert rules(plan, "listeners")[0].startswith("ip daddr 198.51.100.0 tcp dport 80 meta mark set 0x101 accept")


def test_a_proxying_balancer_says_so_in_the_status() -> None:
    cluster, _ = planned(CLOUD.replace("kind: cloud", "kind: cloud, ipMode: Proxy"), service())
    assert next(one for one in cluster.services if one.name == "web").load_balancer[0].proxy


class TestSpeaker:
    """The daemon's own decisions and frames."""

    CONFIGURATION = speaker.Configuration(
        "n2",
        ("eth0",),
        ("192.168.50.12",),
        {"n1": ("192.168.50.11",)},
        {"192.0.2.1": ("n1", "n2"), "192.0.2.2": ("n2",)},
    )
    MAC, ASKER = bytes.fromhex("020000000002"), bytes.fromhex("0200000000aa")

    def test_it_announces_what_nobody_alive_has_a_better_claim_to(self) -> None:
        assert speaker.mine(self.CONFIGURATION, {"n1"}) == {"192.0.2.2"}
        assert speaker.mine(self.CONFIGURATION, set()) == {"192.0.2.1", "192.0.2.2"}

    def test_silence_makes_dead_after_five_seconds(self) -> None:
        members = speaker.Membership({"n1": 100.0})
        assert members.alive(104.9) == {"n1"}
        assert members.alive(105.0) == set()
        assert members.next_death(101.0) == 105.0

    def test_only_requests_to_all_or_to_us_are_heard(self) -> None:
        zero = bytes(6)
        for target, heard in ((speaker.BROADCAST, True), (self.MAC, True), (self.ASKER, False)):
            body = speaker.ARP.pack(1, 0x0800, 6, 4, speaker.REQUEST, self.ASKER, b"\xc0\0\2\7", zero, b"\xc0\0\2\1")
            asked = speaker.asked_by_arp(target + self.ASKER + b"\x08\x06" + body, self.MAC)
            assert asked == (("192.0.2.1", self.ASKER, b"\xc0\0\2\7") if heard else None)
        reply = speaker.arp_frame(speaker.REPLY, self.ASKER, b"\xc0\0\2\7", speaker.BROADCAST, b"\xc0\0\2\1")
        assert speaker.asked_by_arp(reply, self.MAC) is None
        assert speaker.asked_by_arp(b"\xff" * 20, self.MAC) is None

    def test_an_answer_says_whose_the_address_is(self) -> None:
        frame = speaker.arp_frame(speaker.REPLY, self.MAC, b"\xc0\0\2\1", self.ASKER, b"\xc0\0\2\7")
        assert frame[:12] == self.ASKER + self.MAC
        assert speaker.ARP.unpack_from(frame, 14)[4:7] == (2, self.MAC, b"\xc0\0\2\1")

    def test_solicitations_are_read_and_answered_with_a_sound_checksum(self) -> None:
        source, target = ipaddress.ip_address("fe80::aa").packed, ipaddress.ip_address("2001:db8::1").packed
        body = bytes((135, 0, 0, 0, 0, 0, 0, 0)) + target + bytes((1, 1)) + self.ASKER
        header = speaker.IPV6.pack(6 << 28, len(body), 58, 255, source, speaker.solicited_node("2001:db8::1").packed)
        frame = bytes(6) + self.ASKER + b"\x86\xdd" + header + body
        assert speaker.asked_by_ndp(frame) == ("2001:db8::1", self.ASKER, source)
        routed = frame[:21] + b"\x40" + frame[22:]  # hop limit 64: it came from elsewhere
        assert speaker.asked_by_ndp(routed) is None
        own = ipaddress.ip_address("fe80::2").packed
        answer = speaker.advertisement(self.MAC, own, target, self.ASKER, source, speaker.SOLICITED)
        payload = answer[54:]
        pseudo = own + source + len(payload).to_bytes(4, "big") + bytes((0, 0, 0, 58))
        total = sum(int.from_bytes((pseudo + payload)[at : at + 2], "big") for at in range(0, len(pseudo + payload), 2))
        assert (total & 0xFFFF) + (total >> 16) in (0xFFFF, 0x1FFFE)
        assert payload[8:24] == target
        assert payload[-6:] == self.MAC

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises((ValueError, KeyError)):
            speaker.read_configuration('{"node": "n1"}')
