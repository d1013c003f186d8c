"""emulator.policy.kube_router_chains: the chains without policies, rule by rule as clusters show them."""

from __future__ import annotations

from typing import Any

from emulator.plan.iptables import rule_text
from emulator.plan.model import IptablesRules
from emulator.policy.kube_router_chains import LONGEST_COMMENT, LocalPod, firewall

POD = LocalPod("default", "web", "10.244.1.2")


def chains(*pods: LocalPod) -> dict[str, list[str]]:
    rules = firewall("node/n1", 4, "eth0", "kube-bridge", ("10.43.0.0/16",), pods)
    return {chain.name: [rule_text(rule) for rule in chain.rules] for chain in rules.chains}


def test_the_jumps_carry_the_codes_that_every_cluster_shows() -> None:
    rules = firewall("node/n1", 4, "eth0", "kube-bridge", (), ())
    first = [rule_text(jump.rule) for jump in rules.jumps[:3]]
    assert first == [
        '-m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT',
        '-m comment --comment "kube-router netpol - TEMCG2JMHZYE7H7T" -j KUBE-ROUTER-FORWARD',
        '-m comment --comment "kube-router netpol - VEAAIY32XVBHCSCY" -j KUBE-ROUTER-OUTPUT',
    ]


def test_forwarding_is_allowed_behind_the_policies() -> None:
    rules = firewall("node/n1", 4, "eth0", "kube-bridge", (), ())
    forward = [rule_text(jump.rule).split('" ')[-1] for jump in rules.jumps if jump.chain == "FORWARD"]
    assert forward == [
        "-j KUBE-ROUTER-FORWARD",
        "-o eth0 -j ACCEPT",
        "-o kube-bridge -j ACCEPT",
        "-i kube-bridge -j ACCEPT",
    ]
    assert {jump.position for jump in rules.jumps} == {"insert"}


def test_services_are_let_in_before_pods_are_looked_at() -> None:
    first, tcp, udp, *_ = chains(POD)["KUBE-ROUTER-INPUT"]
    assert first.startswith('-m comment --comment "allow traffic to primary/secondary cluster IP range - ')
    assert first.endswith("-d 10.43.0.0/16 -j RETURN")
    for rule, protocol in ((tcp, "tcp"), (udp, "udp")):
        assert rule.startswith(f"-p {protocol} -m comment")
        assert rule.endswith("-m addrtype --dst-type LOCAL -m multiport --dports 30000:32767 -j RETURN")


def test_a_pods_packets_pass_its_chain_whether_routed_or_bridged() -> None:
    found = chains(POD)
    jumps = [rule for rule in found["KUBE-ROUTER-FORWARD"] if rule.endswith(f"-j {POD.chain}")]
    assert [("-d" if " -d " in rule else "-s", "physdev" in rule) for rule in jumps] == [
        ("-d", False),
        ("-d", True),
        ("-s", False),
        ("-s", True),
    ]
    assert found["KUBE-ROUTER-FORWARD"][-1].endswith("-m mark --mark 0x20000/0x20000 -j ACCEPT")


def test_what_holds_for_all_packets_comes_first() -> None:
    comment = "-m comment --comment"
    assert chains()["KUBE-NWPLCY-COMMON"] == [
        f'{comment} "rule to drop invalid state for pod" -m conntrack --ctstate INVALID -j DROP',
        f'{comment} "rule for stateful firewall for pod" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
        f'{comment} "allow icmp echo requests" -p icmp --icmp-type echo-request -j ACCEPT',
        (
            f'{comment} "allow icmp destination unreachable messages" -p icmp '
            "--icmp-type destination-unreachable -j ACCEPT"
        ),
        f'{comment} "allow icmp time exceeded messages" -p icmp --icmp-type time-exceeded -j ACCEPT',
    ]
    six = firewall("node/n1", 6, "eth0", "kube-bridge", (), ())
    common = next(chain for chain in six.chains if chain.name == "KUBE-NWPLCY-COMMON")
    assert [rule.args[rule.args.index("--icmpv6-type") + 1] for rule in common.rules[2:]] == [
        "echo-request",
        "destination-unreachable",
        "time-exceeded",
        "neighbor-solicitation",
        "neighbor-advertisement",
        "echo-reply",
    ]


def test_a_pods_chain_is_that_of_a_real_cluster() -> None:
    """Compared with the iptables-save of a cluster, but for the pod's name and address, and the first rule."""
    comment = "-m comment --comment"
    mark = "-m mark ! --mark 0x10000/0x10000"
    who = "POD name:web namespace: default"
    assert chains(POD)[POD.chain] == [
        f'{comment} "run through common network policy chain" -j KUBE-NWPLCY-COMMON',
        (
            f'{comment} "rule to permit the traffic traffic to pods when source is the pod\'s local node" '
            "-m addrtype --src-type LOCAL -d 10.244.1.2 -j ACCEPT"
        ),
        f'{comment} "run through default egress network policy chain" -s 10.244.1.2 -j KUBE-NWPLCY-DEFAULT',
        f'{comment} "run through default ingress network policy chain" -d 10.244.1.2 -j KUBE-NWPLCY-DEFAULT',
        (
            f'{comment} "rule to log dropped traffic {who}" {mark} -m limit --limit 10/minute --limit-burst 10 '
            "-j NFLOG --nflog-group 100"
        ),
        f'{comment} "rule to REJECT traffic destined for {who}" {mark} -j REJECT',
        "-j MARK --set-xmark 0x0/0x10000",
        f'{comment} "set mark to ACCEPT traffic that comply to network policies" -j MARK --set-xmark 0x20000/0x20000',
    ]


def test_a_long_name_does_not_make_a_comment_too_long() -> None:
    rules = firewall("node/n1", 4, "eth0", "kube-bridge", (), (LocalPod("n" * 63, "p" * 253, "10.244.1.2"),))
    comments = [
        rule.args[rule.args.index("--comment") + 1]
        for chain in rules.chains
        for rule in chain.rules
        if "--comment" in rule.args
    ]
    assert max(len(comment.encode()) for comment in comments) == LONGEST_COMMENT


def test_a_pod_that_comes_changes_no_other_pods_chain(planned: Any) -> None:
    made = planned("kube-router")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    }
    before = made.one(IptablesRules, "node/n1", table="filter")
    after = made.then(objects=(pod,)).one(IptablesRules, "node/n1", table="filter")
    own = {chain.name: chain for chain in before.chains if chain.name.startswith("KUBE-POD-FW-")}
    assert {chain.name: chain for chain in after.chains if chain.name in own} == own
    assert len(after.chains) == len(before.chains) + 1
