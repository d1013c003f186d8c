"""kindnet's enforcer: its rules word for word, what its agent knows and says of packets, and what it deviates in."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import pytest

from emulator.cni.kindnet import load as load_kindnet
from emulator.cni.policy_notes import PolicyNotes
from emulator.cni.styles import load_style
from emulator.plan.model import Daemon, File, IpSet, IptablesRules, NftTable
from emulator.policy.enforcement import enforce
from emulator.policy.enforcer import PolicyMode
from emulator.policy.kindnet import AGENT, load
from emulator.policy.kindnet_judge import Packet, judge, read_configuration, read_packet, record
from emulator.policy.kindnet_rules import Way

# controller_test.go of kube-network-policies, with kindnetd's table, queue and bypass
REAL = """\
set podips-v4 {
    type ipv4_addr
    elements = { 10.244.1.2 }
}
set podips-v6 {
    type ipv6_addr
    elements = { fd00:10:244:1::2 }
}
chain postrouting {
    type filter hook postrouting priority srcnat - 5; policy accept;
    udp dport 53 accept
    icmpv6 type nd-router-solicit accept
    icmpv6 type nd-router-advert accept
    icmpv6 type nd-neighbor-solicit accept
    icmpv6 type nd-neighbor-advert accept
    icmpv6 type nd-redirect accept
    meta skuid 0 counter accept
    ct label 28 ct state established,related counter accept
    ip saddr @podips-v4 queue flags bypass to 101
    ip daddr @podips-v4 queue flags bypass to 101
    ip6 saddr @podips-v6 queue flags bypass to 101
    ip6 daddr @podips-v6 queue flags bypass to 101
    ct label set 28
}
chain input {
    type filter hook input priority 101; policy accept;
    iifname "lo" accept
    ip saddr @podips-v4 ct state new queue flags bypass to 101
    ip6 saddr @podips-v6 ct state new queue flags bypass to 101
}
chain prerouting {
    type filter hook prerouting priority dstnat + 5; policy accept;
    meta l4proto != udp accept
    udp dport != 53 accept
    ip saddr @podips-v4 queue flags bypass to 101
    ip daddr @podips-v4 queue flags bypass to 101
    ip6 saddr @podips-v6 queue flags bypass to 101
    ip6 daddr @podips-v6 queue flags bypass to 101
}"""


def policy(name: str = "p", kind: str = "NetworkPolicy", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": {}, **spec},
    }


def made(planned: Any, *objects: dict[str, Any], mode: PolicyMode = "faithful", way: Way = "nft") -> list[Any]:
    found = planned("kindnet", "dual-stack", objects=objects)
    enforcement = enforce(load(mode, way), found.cluster)
    return list(enforcement.node(found.cluster, found.cluster.node("n1")))


def one(items: list[Any], kind: type, **fields: Any) -> Any:
    (found,) = (
        item
        for item in items
        if isinstance(item, kind) and all(getattr(item, name) == value for name, value in fields.items())
    )
    return found


def test_the_table_is_that_of_the_real_agent(planned: Any) -> None:
    items = made(planned, policy(podSelector={"matchLabels": {"kubernetes.io/hostname": "x"}}), policy("q"))
    table = one(items, NftTable)
    assert (table.family, table.name) == ("inet", "kindnet-network-policies")
    found = planned("kindnet", "dual-stack")
    own = sorted(address for pod in found.cluster.pods_on("n1") for address in pod.addresses)
    expected = REAL
    for old, family in (("10.244.1.2", 4), ("fd00:10:244:1::2", 6)):
        expected = expected.replace(f"{{ {old} }}", f"{{ {', '.join(a for a in own if (':' in a) == (family == 6))} }}")
    assert table.body == expected


def test_only_own_pods_that_a_policy_selects_are_policed(planned: Any) -> None:
    items = made(planned, policy(podSelector={"matchLabels": {"node": "n2"}}))
    assert "elements" not in one(items, NftTable).body
    assert isinstance(one(items, File, path="/run/kindnet/policies.json"), File)  # it judges for both ends


def test_without_policies_there_are_rules_and_no_agent(planned: Any) -> None:
    items = made(planned)
    assert [type(item) for item in items] == [NftTable]
    assert one(items, NftTable) in planned("kindnet", "dual-stack").of(NftTable, "node/n1")


def test_the_stand_in_queues_the_same_packets_by_iptables(planned: Any) -> None:
    items = made(planned, policy(), way="iptables")
    assert {item.name for item in items if isinstance(item, IpSet)} == {"podips-v4", "podips-v6"}
    table = one(items, IptablesRules, family=6)
    assert (table.table, [jump.chain for jump in table.jumps]) == (
        "mangle", ["FORWARD", "INPUT", "INPUT", "POSTROUTING"],
    )  # fmt: skip
    chain = {chain.name: [" ".join(rule.args) for rule in chain.rules] for chain in table.chains}["KINDNET-POSTROUTING"]
    assert chain == [
        "-m mark --mark 0x10000000/0x10000000 -m connlabel --label 28 --set",
        "-m mark --mark 0x10000000/0x10000000 -j RETURN",
        "-p udp -m udp --dport 53 -j RETURN",
        *(f"-p ipv6-icmp -m icmp6 --icmpv6-type {number} -j RETURN" for number in range(133, 138)),
        "-m owner --uid-owner 0 -j RETURN",
        "-m connlabel --label 28 -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        "-m set --match-set podips-v6 src -j NFQUEUE --queue-num 101 --queue-bypass",
        "-m set --match-set podips-v6 dst -j NFQUEUE --queue-num 101 --queue-bypass",
        "-m connlabel --label 28 --set",
    ]
    assert one(items, Daemon).argv[-2:] == ("--mark", "0x10000000")


def test_the_agent_decides_before_devices_come_and_its_loss_is_told(planned: Any) -> None:
    daemon = one(made(planned, policy()), Daemon)
    assert (daemon.name, daemon.before_devices, daemon.files) == (AGENT, True, ("/run/kindnet/policies.json",))
    assert "no policy holds there" in daemon.loss
    assert daemon.argv[3:] == ("--queue", "101", "--label", "28")


def test_in_spec_mode_the_agent_knows_its_node(planned: Any) -> None:
    words = one(made(planned, policy(), mode="spec"), Daemon).argv
    own = {value for word, value in pairwise(words) if word == "--own"}
    assert {"192.168.50.11", "10.244.1.1", "fd00:10:244:1::1"} <= own


@pytest.mark.parametrize(
    ("lacking", "way", "stand_in"),
    [
        ((), "nft", "a policy agent of cnilab's for kindnetd's"),
        (
            ("nft-queue",),
            "iptables",
            "a policy agent of cnilab's for kindnetd's, iptables' NFQUEUE for nftables' queue",
        ),
        (("nft-queue", "nfqueue"), "none", ""),
    ],
)
def test_the_way_to_the_agent_is_what_the_machine_can_do(lacking: tuple[str, ...], way: Way, stand_in: str) -> None:
    adapted = load_kindnet("").adapted(lambda names: [name for name in names if name in lacking])
    assert (adapted.way, adapted.stand_in) == (way, stand_in)  # type: ignore[attr-defined]


def test_where_nothing_can_queue_it_is_said_in_one_loud_line(planned: Any) -> None:
    found = planned("kindnet", "single-node", objects=(policy(),))
    enforcement = enforce(load("faithful", "none"), found.cluster)
    (line,) = PolicyNotes(found.style).labels(found.cluster, enforcement)
    assert line.startswith("NOT ENFORCED: kindnetd's agent gets no packets")
    assert list(enforcement.node(found.cluster, found.cluster.nodes[0])) == []


@pytest.mark.parametrize(
    ("mode", "way", "told"),
    [
        ("faithful", "nft", ["egress policies judge", "each packet of UDP to port 53"]),
        ("spec", "nft", []),
        ("spec", "iptables", ["iptables' NFQUEUE stands in"]),
    ],
)
def test_what_it_does_otherwise_is_told(planned: Any, mode: PolicyMode, way: Way, told: list[str]) -> None:
    found = planned("kindnet", "single-node", objects=(policy(policyTypes=["Egress"]),))
    notices = PolicyNotes(found.style).notices(found.cluster, enforce(load(mode, way), found.cluster))
    assert [any(words in line for line in notices) for words in told] == [True] * len(told)
    assert len(notices) == len(told)


def test_the_style_brings_its_enforcer() -> None:
    enforcer = load_style("kindnet").enforcer("spec")
    assert enforcer is not None
    assert (enforcer.name, enforcer.mode, enforcer.requires) == ("kindnet", "spec", ("nft-queue",))


# -- packets ----------------------------------------------------------------------------------------------------


def ipv4(protocol: int, *words: int, options: bytes = b"") -> bytes:
    length = 0x45 + len(options) // 4
    head = struct.pack("!BBHHHBBH", length, 0, 0, 0, 0, 64, protocol, 0)
    return (
        head + ip_address("10.0.0.1").packed + ip_address("10.0.0.2").packed + options + struct.pack("!HHI", *words, 0)
    )


def ipv6(chain: list[tuple[int, bytes]], protocol: int, *words: int) -> bytes:
    kinds = [kind for kind, _ in chain] + [protocol]
    head = struct.pack("!IHBB", 6 << 28, 0, kinds[0], 64)
    body = b"".join(bytes((following,)) + rest for (_, rest), following in zip(chain, kinds[1:], strict=True))
    return head + ip_address("fd00::1").packed + ip_address("fd00::2").packed + body + struct.pack("!HHI", *words, 0)


@pytest.mark.parametrize(
    ("data", "packet"),
    [
        (ipv4(6, 40000, 80), Packet("10.0.0.1", "10.0.0.2", "TCP", 40000, 80)),
        (ipv4(17, 40000, 53, options=bytes(8)), Packet("10.0.0.1", "10.0.0.2", "UDP", 40000, 53)),
        (ipv4(132, 1, 2), Packet("10.0.0.1", "10.0.0.2", "SCTP", 1, 2)),
        (ipv4(1, 0x0800, 0), Packet("10.0.0.1", "10.0.0.2")),
        (ipv6([], 6, 40000, 80), Packet("fd00::1", "fd00::2", "TCP", 40000, 80)),
        (ipv6([(0, b"\0" * 7), (60, b"\x01" + b"\0" * 14)], 17, 1, 53), Packet("fd00::1", "fd00::2", "UDP", 1, 53)),
        (ipv6([(44, b"\0\0\0\0\0\0\0")], 6, 1, 80), Packet("fd00::1", "fd00::2", "TCP", 1, 80)),
        (ipv6([(44, b"\0\0\x08\0\0\0\0")], 6, 1, 80), Packet("fd00::1", "fd00::2")),
        (b"\x45" * 12, None),
        (ipv4(6, 40000, 80)[:22], None),
        (b"\x75" + bytes(60), None),
    ],
)
def test_packets_are_read(data: bytes, packet: Packet | None) -> None:
    assert read_packet(data) == packet


def test_a_denied_packet_is_recorded_with_whose_policy_it_was(planned: Any) -> None:
    content = one(made(planned, policy("a"), policy("b", ingress=[{"ports": [{"port": 81}]}])), File).content
    known = read_configuration(content)
    packet = Packet("203.0.113.9", "10.244.1.2", "TCP", 40000, 80)
    finding = judge(known, packet)
    pod = known.pods["10.244.1.2"]
    assert record(packet, "postrouting", finding) == (
        f"drop TCP 203.0.113.9:40000 > 10.244.1.2:80 at postrouting: ingress of {pod}: no rule allows it, isolated by "
        "NetworkPolicy default/a, NetworkPolicy default/b"
    )
    allowed = judge(known, Packet("203.0.113.9", "10.244.1.2", "TCP", 40000, 81))
    assert (allowed.allowed, allowed.policy, allowed.rule) == (True, "NetworkPolicy default/b", 0)
