"""Felix's verdicts with real packets, in Calico and in Canal: what passes, and which rule where dropped the rest.

The specification's verdict stands in each test's name and asserts; where Felix does otherwise, the name says so.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from emulator import Lab
from emulator.kernel import registry
from emulator.lab.records import ProbeRequest
from emulator.lab.verdicts import Ask
from emulator.plan.model import IptablesRules, NftRules
from emulator.policy.felix_endpoints import host_device
from emulator.scenario.policy_explain import explain_request
from tests.golden.felix_constructs import TOPOLOGY, Object, namespace, pod, policy

pytestmark = pytest.mark.requires("netns", "veth", "iptables", "ipset", "ip", "mnexec")

NAMESPACES = (namespace("shop", team="a"), namespace("lab", team="b"))
HTTP = {"containerPort": 80, "name": "http"}
PODS = (
    pod("web", "n1", ports=(HTTP, {"containerPort": 81}, {"containerPort": 90})),
    pod("db", "n1", ports=(HTTP,)),
    pod("api", "n2", ports=({"containerPort": 8080, "name": "http"}, {"containerPort": 80})),
    pod("probe", "n2", "lab", ports=(HTTP,)),
)
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "api", "namespace": "shop"},
    "spec": {"selector": {"app": "api"}, "ports": [{"port": 7000, "targetPort": 8080}]},
}
DEADLINE = 0.4  # s after which a probe counts as dropped


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv(registry.BASE_VARIABLE, str(tmp_path_factory.mktemp("labs")))
    yield
    patch.undo()


def topology(folder: Path, style: str) -> Path:
    text = TOPOLOGY
    if style.startswith("canal"):  # IPv4 pods only
        text = re.sub(r', "fd00[^"]*"', "", text)
    path = folder / "two.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["calico", "canal", "calico+nftables"])
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    path = topology(tmp_path_factory.mktemp("topology"), request.param)
    with Lab(path, request.param) as running:
        running.apply(*NAMESPACES, *PODS, SERVICE)
        yield running


@pytest.fixture
def lab(started: Lab) -> Iterator[Lab]:
    yield started
    for where in ("shop", "lab"):
        for thing in started.get("networkpolicies", namespace=where):
            started.delete("networkpolicy", thing["metadata"]["name"], where)
    assert started.verify() == []


def families(lab: Lab) -> tuple[int, ...]:
    return (4, 6) if any(":" in cidr for cidr in lab.cluster().topology.pod_cidrs) else (4,)


def enforce(lab: Lab, *policies: Object) -> None:
    lab.apply(*NAMESPACES, *policies)
    assert lab.verify() == []


def verdicts(
    lab: Lab, wanted: Sequence[tuple[str, str, int]], protocol: Any = "tcp"
) -> dict[tuple[str, str, int], bool]:
    """Whether each got through, in every family alike."""
    found: dict[tuple[str, str, int], bool] = {}
    pairs = list(itertools.product(wanted, families(lab)))
    answers = lab.probes(
        [
            ProbeRequest(source, target, port, protocol, timeout=DEADLINE, family=family)
            for (source, target, port), family in pairs
        ]
    )
    for (one, family), answer in zip(pairs, answers, strict=True):
        assert found.setdefault(one, answer.reached) == answer.reached, f"IPv{family} otherwise: {one}"
        assert answer.result.verdict in ("delivered", "dropped"), answer
    return found


def check(
    lab: Lab, allowed: Sequence[tuple[str, str, int]], denied: Sequence[tuple[str, str, int]], protocol: Any = "tcp"
) -> None:
    expected = {**dict.fromkeys(allowed, True), **dict.fromkeys(denied, False)}
    assert verdicts(lab, list(expected), protocol) == expected


def in_nftables(lab: Lab) -> bool:
    return any(isinstance(item, NftRules) and item.name == "calico" for item in lab.plan())


def rules_of(lab: Lab, node: str, chain: str, family: int = 4) -> list[tuple[int, str]]:
    """The rules of a chain of the filter table, each with the packets that it has matched."""
    if in_nftables(lab):
        name = f"filter-{chain}"
        printed = lab.run(node, "nft", "list", "chain", "ip" if family == 4 else "ip6", "calico", name).stdout
        return [
            (int(found[1]) if (found := re.search(r"counter packets (\d+)", line)) else 0, line)
            for line in printed.splitlines()
            if line.startswith("\t\t")
        ]
    program = "iptables" if family == 4 else "ip6tables"
    printed = lab.run(node, program, "-t", "filter", "-nvxL", chain).stdout
    return [(int(line.split()[0]), line) for line in printed.splitlines() if line[:1] == " " and "pkts" not in line]


def counted(lab: Lab, node: str, chain: str, text: str, family: int = 4) -> int:
    """The packets that the rule with that text has matched."""
    (packets,) = [packets for packets, line in rules_of(lab, node, chain, family) if text in line]
    return packets


def chain_of(lab: Lab, key: str, prefix: str) -> str:
    (found,) = [one for one in lab.cluster().pods if one.key == key]
    return f"{prefix}{host_device(found)}"


WEB_API, API_WEB = ("shop/web", "shop/api", 8080), ("shop/api", "shop/web", 80)
WEB_DB, PROBE_WEB = ("shop/web", "shop/db", 80), ("lab/probe", "shop/web", 80)
END = "End of tier default. Drop if no policies passed packet"


def test_without_a_policy_everybody_talks(lab: Lab) -> None:
    check(lab, [WEB_API, API_WEB, WEB_DB, PROBE_WEB], [])


def test_denied_ingress_is_dropped_on_the_node_of_its_destination(lab: Lab) -> None:
    enforce(lab, policy("deny", podSelector={"matchLabels": {"app": "api"}}))
    ends, starts = chain_of(lab, "shop/api", "cali-tw-"), chain_of(lab, "shop/web", "cali-fw-")
    for family in families(lab):
        answer = lab.probe("shop/web", "shop/api", 8080, timeout=DEADLINE, family=family)
        assert answer.result.verdict == "dropped"
        assert counted(lab, "n2", ends, END, family) > 0
        assert not [line for _, line in rules_of(lab, "n1", starts) if END in line]
    check(lab, [API_WEB], [WEB_API, ("shop/db", "shop/api", 80)])


def test_denied_egress_is_dropped_on_the_node_of_its_source(lab: Lab) -> None:
    enforce(lab, policy("deny", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"]))
    starts, ends = chain_of(lab, "shop/web", "cali-fw-"), chain_of(lab, "shop/api", "cali-tw-")
    check(lab, [API_WEB, PROBE_WEB], [WEB_API, WEB_DB])
    for family in families(lab):
        assert counted(lab, "n1", starts, END, family) > 0
    assert not [line for _, line in rules_of(lab, "n2", ends) if END in line]


def test_egress_and_ingress_must_both_allow_also_on_one_node(lab: Lab) -> None:
    enforce(
        lab,
        policy("out", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"], egress=[{}]),
        policy("in", podSelector={"matchLabels": {"app": "db"}}),
    )
    check(lab, [WEB_API], [WEB_DB])
    assert counted(lab, "n1", chain_of(lab, "shop/db", "cali-tw-"), END) > 0


def test_peers_of_one_item_are_anded_and_items_are_ored(lab: Lab) -> None:
    both = {"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": {"matchLabels": {"app": "api"}}}
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": [both]}]))
    check(lab, [], [API_WEB, PROBE_WEB])
    either = [{"namespaceSelector": both["namespaceSelector"]}, {"podSelector": both["podSelector"]}]
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": either}]))
    check(lab, [API_WEB, PROBE_WEB], [("shop/db", "shop/web", 80)])


def test_an_empty_namespace_selector_means_all_pods_and_a_missing_one_the_own_namespace(lab: Lab) -> None:
    enforce(lab, policy("it", ingress=[{"from": [{"namespaceSelector": {}}]}]))
    check(lab, [API_WEB, PROBE_WEB], [])
    enforce(lab, policy("it", ingress=[{"from": [{"podSelector": {}}]}]))
    check(lab, [API_WEB], [PROBE_WEB])


def test_a_block_matches_pods_and_its_exceptions_do_not(lab: Lab) -> None:
    addresses = {one.key: one.addresses for one in lab.cluster().pods}
    blocks = [
        {
            "ipBlock": {
                "cidr": cidr,
                "except": [f"{address}/{128 if ':' in address else 32}"],
            }
        }
        for cidr in lab.cluster().topology.pod_cidrs
        for address in addresses["lab/probe"]
        if (":" in address) == (":" in cidr)
    ]
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": blocks}]))
    check(lab, [API_WEB, ("shop/db", "shop/web", 80)], [PROBE_WEB])
    # Another item still allows what a block leaves out
    peers = [*blocks, {"namespaceSelector": {"matchLabels": {"team": "b"}}}]
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": peers}]))
    check(lab, [API_WEB, PROBE_WEB], [])


def test_a_port_range_includes_both_ends(lab: Lab) -> None:
    ports = [{"port": 80, "endPort": 81}]
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": ports}]))
    check(lab, [API_WEB, ("shop/api", "shop/web", 81)], [("shop/api", "shop/web", 90)])


def test_more_ports_than_a_match_holds_are_all_open(lab: Lab) -> None:
    ports = [{"port": 1000 + 2 * number} for number in range(20)] + [{"port": 81}]
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": ports}]))
    check(lab, [("shop/api", "shop/web", 81)], [API_WEB, ("shop/api", "shop/web", 90)])


def test_a_named_port_is_another_number_on_each_pod(lab: Lab) -> None:
    rule = {"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"], egress=[rule]))
    check(lab, [WEB_API, WEB_DB], [("shop/web", "shop/api", 80), ("shop/web", "lab/probe", 80)])


def test_a_named_port_that_nobody_has_matches_nothing(lab: Lab) -> None:
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": [{"port": "grpc"}]}]))
    check(lab, [], [API_WEB, PROBE_WEB])


def test_sctp_only_opens_no_tcp(lab: Lab) -> None:
    ports = [{"port": 80, "protocol": "SCTP"}]
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": ports}]))
    check(lab, [], [API_WEB])


def test_a_services_traffic_is_judged_after_its_translation(lab: Lab) -> None:
    address = next(one for one in lab.cluster().services if one.key == "shop/api").cluster_ips[0]
    rule = {"to": [{"podSelector": {"matchLabels": {"app": "api"}}}], "ports": [{"port": 8080}]}
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"], egress=[rule]))
    assert lab.probe("shop/web", address, 7000, timeout=DEADLINE).reached
    block = {"to": [{"ipBlock": {"cidr": f"{address}/32"}}]}
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"], egress=[block]))
    assert lab.probe("shop/web", address, 7000, timeout=DEADLINE).result.verdict == "dropped"


def test_rules_of_a_direction_that_is_no_type_do_nothing(lab: Lab) -> None:
    enforce(
        lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Ingress"], ingress=[{}], egress=[])
    )
    check(lab, [API_WEB, WEB_API], [])


def test_labels_are_live(lab: Lab) -> None:
    peers = [{"podSelector": {"matchLabels": {"role": "friend"}}}]
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": peers}]))
    check(lab, [], [API_WEB])
    (api,) = [one for one in PODS if one["metadata"]["name"] == "api"]
    friendly = {**api, "metadata": {**api["metadata"], "labels": {"app": "api", "role": "friend"}}}
    enforce(lab, friendly)
    check(lab, [API_WEB], [("shop/db", "shop/web", 80)])
    enforce(lab, api)
    check(lab, [], [API_WEB])


def test_a_namespaces_labels_are_live(lab: Lab) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"team": "c"}}}]
    enforce(lab, policy("it", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": peers}]))
    check(lab, [], [PROBE_WEB])
    lab.apply(namespace("lab", team="c"))
    check(lab, [PROBE_WEB], [API_WEB])
    lab.apply(namespace("lab", team="b"))
    check(lab, [], [PROBE_WEB])


def test_a_nodes_own_traffic_to_its_pods_is_never_judged_but_that_of_others_is(lab: Lab) -> None:
    enforce(lab, policy("deny"))
    assert lab.probe("n1", "shop/web", 80, timeout=DEADLINE).reached
    assert not lab.probe("n2", "shop/web", 80, timeout=DEADLINE).reached


def test_felix_judges_what_a_pod_sends_to_its_own_node(lab: Lab) -> None:
    """The API has it pass always; cali-wl-to-host asks the egress policies first."""
    assert lab.probe("shop/web", "n1", protocol="icmp", timeout=DEADLINE).reached
    enforce(lab, policy("deny", podSelector={"matchLabels": {"app": "web"}}, policyTypes=["Egress"]))
    assert lab.probe("shop/web", "n1", protocol="icmp", timeout=DEADLINE).result.verdict == "dropped"
    assert counted(lab, "n1", chain_of(lab, "shop/web", "cali-fw-"), END) > 0


def test_a_pod_always_reaches_its_own_address(lab: Lab) -> None:
    enforce(lab, policy("deny", policyTypes=["Ingress", "Egress"]))
    check(lab, [("shop/web", "shop/web", 80)], [WEB_DB])


def test_an_established_connection_outlives_the_policy_that_denies_it(lab: Lab, tmp_path: Path) -> None:
    address = next(one for one in lab.cluster().pods if one.key == "shop/api").addresses[0]
    script = (
        "import os,socket,sys,time\n"
        f"s=socket.create_connection(('{address}',8080),5)\n"
        f"open('{tmp_path}/open','w').close()\n"
        f"end=time.time()+20\nwhile not os.path.exists('{tmp_path}/denied') and time.time()<end: time.sleep(0.02)\n"
        "s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\nsys.stdout.write(s.recv(9).decode())\n"
    )
    said: list[str] = []
    client = threading.Thread(target=lambda: said.append(lab.run("shop/web", "python3", "-c", script).stdout))
    client.start()
    end = time.monotonic() + 10
    while not (tmp_path / "open").exists() and time.monotonic() < end:
        time.sleep(0.02)
    enforce(lab, policy("deny", policyTypes=["Ingress", "Egress"]))
    check(lab, [], [WEB_API])
    (tmp_path / "denied").touch()
    client.join(30)
    assert said == ["HTTP/1.0 "] or said == ["HTTP/1.1 "]


def test_a_pod_that_comes_under_a_policy_is_judged_from_its_first_packet_on(lab: Lab) -> None:
    enforce(lab, policy("deny", policyTypes=["Ingress", "Egress"]))
    for number in range(5):
        lab.apply(*NAMESPACES, pod(f"new{number}", "n2"))
        check(lab, [], [(f"shop/new{number}", "shop/web", 80), ("lab/probe", f"shop/new{number}", 80)])
    for number in range(5):
        lab.delete("pod", f"new{number}", "shop")


def test_the_trace_of_a_dropped_packet_names_policy_and_rule(lab: Lab) -> None:
    enforce(lab, policy("deny", podSelector={"matchLabels": {"app": "api"}}))
    trace = lab.trace("shop/web", "shop/api", 8080, timeout=DEADLINE)
    assert trace.request is not None
    verdict = trace.request.verdict
    for word in ("node/n2", chain_of(lab, "shop/api", "cali-tw-"), END):
        assert word in verdict


def test_felixs_rules_are_in_one_kind_of_tables_alone(lab: Lab) -> None:
    enforce(lab, policy("deny"))
    owners = {
        item.owner
        for item in lab.plan()
        if isinstance(item, IptablesRules) and any(chain.name.startswith("cali-") for chain in item.chains)
    }
    tables = lab.run("n1", "nft", "list", "tables").stdout.splitlines()
    if in_nftables(lab):
        assert owners == set()
        assert "cali" not in lab.run("n1", "iptables-save").stdout + lab.run("n1", "ipset", "list").stdout
        assert [f"table {'ip' if family == 4 else 'ip6'} calico" in tables for family in families(lab)]
    else:
        assert owners == {"felix"}
        assert not [line for line in tables if line.endswith(" calico")]


def test_explaining_names_nftables_rule_by_its_handle(lab: Lab) -> None:
    if not in_nftables(lab):
        pytest.skip("iptables numbers its rules")
    enforce(lab, policy("deny", podSelector={"matchLabels": {"app": "api"}}))
    found = explain_request(lab, Ask("shop/web", "shop/api", "tcp", 8080), "calico")
    assert found.stopped is not None
    chain = f"filter-{chain_of(lab, 'shop/api', 'cali-tw-')}"
    assert (found.stopped.program, found.stopped.chain, found.stopped.why) == ("nft", chain, END)
    printed = lab.run("n2", "nft", "-a", "list", "chain", "ip", "calico", chain).stdout
    (line,) = [line for line in printed.splitlines() if END in line]
    assert line.endswith(f"# handle {found.stopped.handle}")


def test_a_spoofed_source_is_dropped_before_anything_else(lab: Lab) -> None:
    script = (
        "import socket\n"
        "from scapy.all import IP, UDP, Ether, get_if_hwaddr, sendp\n"
        "sendp(Ether(dst='ee:ee:ee:ee:ee:ee')/IP(src='198.51.100.9',dst='192.168.50.1')/UDP(dport=9),'eth0',verbose=0)\n"
    )
    layer = "raw-cali-PREROUTING"

    def dropped() -> int:
        if in_nftables(lab):
            printed = lab.run("n1", "nft", "list", "chain", "ip", "calico", layer).stdout
            (line,) = [line for line in printed.splitlines() if " drop " in line]
            found = re.search(r"packets (\d+)", line)
            assert found is not None
            return int(found[1])
        printed = lab.run("n1", "iptables", "-t", "raw", "-nvxL", "cali-PREROUTING").stdout
        (line,) = [line for line in printed.splitlines() if " DROP " in line]
        return int(line.split()[0])

    before = dropped()
    lab.run("shop/web", sys.executable, "-c", script)
    assert dropped() == before + 1


def test_in_spec_mode_a_pod_reaches_its_own_node_whatever_its_egress_policies_say(tmp_path: Path) -> None:
    with Lab(topology(tmp_path, "calico"), "calico", policy_mode="spec") as spec:
        spec.apply(*NAMESPACES, *PODS, policy("deny", policyTypes=["Ingress", "Egress"]))
        for family in families(spec):
            assert spec.probe("shop/web", "n1", protocol="icmp", timeout=DEADLINE, family=family).reached
            assert not spec.probe("shop/web", "n2", protocol="icmp", timeout=DEADLINE, family=family).reached
        check(spec, [], [WEB_API, WEB_DB, PROBE_WEB])
        assert spec.verify() == []
