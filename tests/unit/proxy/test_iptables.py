"""kube-proxy's iptables rules of single Services, one rule of the real one's at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from emulator.cluster.model import Cluster, Node, Topology
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Ingress, Service, ServicePort
from emulator.errors import CnilabError
from emulator.plan.diff import diff
from emulator.plan.model import Plan, ProxyRules
from emulator.plan.proxy_rules import as_iptables, chain_rules, service_of
from emulator.plan.render import as_json, as_text, describe, from_json
from emulator.proxy.iptables import IptablesProxy, load
from emulator.proxy.model import ProxySettings

NODES = tuple(
    Node(name=f"n{number}", addresses=(f"192.168.50.1{number}",), device="eth0", mtu=1500) for number in (1, 2)
)
TOPOLOGY = Topology("t", (), (), ("10.244.0.0/16",), ("10.96.0.0/12",), ("192.168.50.0/24",))
SETTINGS = ProxySettings(pod_cidrs=("10.244.0.0/16",))
PORT = ServicePort(name="p80", protocol="TCP", port=80, target=80)
CODE = "XPGD46QRK7WJZT7O"  # of ns1/svc1:p80 tcp, as upstream's tests have it
ENDPOINT = "KUBE-SEP-SXIVWICOYRO3J4NJ"  # of 10.180.0.1:80


def service(**fields: Any) -> Service:
    return Service(
        **{"namespace": "ns1", "name": "svc1", "type": "ClusterIP", "cluster_ips": ("172.30.0.41",), "ports": (PORT,)}
        | fields
    )


def slice_of(of: Service, *endpoints: Endpoint) -> EndpointSlice:
    ports = tuple(EndpointPort(each.name, each.protocol, 80) for each in of.ports)
    return EndpointSlice(of.namespace, f"{of.name}-a", of.name, 4, ports, endpoints)


def at(number: int, node: str = "n1") -> Endpoint:
    return Endpoint(f"10.180.0.{number}", node=node)


def cluster(services: Sequence[Service], slices: Sequence[EndpointSlice]) -> Cluster:
    return Cluster(
        topology=TOPOLOGY, nodes=NODES, pods=(), namespaces={}, services=tuple(services), slices=tuple(slices)
    )


def rules_of(proxy: IptablesProxy, made: Cluster, node: int = 0) -> ProxyRules:
    (found,) = (item for item in proxy.node(made, NODES[node]) if isinstance(item, ProxyRules))
    return found


def rules(of: Service, *endpoints: Endpoint, settings: ProxySettings = SETTINGS, node: int = 0) -> ProxyRules:
    return rules_of(load(settings), cluster([of], [slice_of(of, *endpoints)] if endpoints else []), node)


def lines(found: ProxyRules, table: str, chain: str) -> list[str]:
    return [line.removeprefix(f"-A {chain} ") for line in found.tables[table].get(chain, "").splitlines()]


def test_cluster_ip_goes_to_the_services_chain_by_upstreams_names() -> None:
    found = rules(service(), at(1))
    assert lines(found, "nat", "KUBE-SERVICES") == [
        f'-m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 -j KUBE-SVC-{CODE}',
        (
            '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" '
            "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
        ),
    ]
    assert lines(found, "nat", f"KUBE-SVC-{CODE}") == [
        (
            '-m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 ! -s 10.244.0.0/16 '
            "-j KUBE-MARK-MASQ"
        ),
        f'-m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -j {ENDPOINT}',
    ]
    assert lines(found, "nat", ENDPOINT) == [
        "-m comment --comment ns1/svc1:p80 -s 10.180.0.1 -j KUBE-MARK-MASQ",
        "-m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.1:80",
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_each_of_n_endpoints_has_its_share(count: int) -> None:
    found = lines(rules(service(), *(at(number) for number in range(1, count + 1))), "nat", f"KUBE-SVC-{CODE}")[1:]
    chances = [line.split("--probability ")[1].split()[0] for line in found if "statistic" in line]
    assert chances == [f"{1 / left:.10f}" for left in range(count, 1, -1)]
    assert len(found) == count
    assert "statistic" not in found[-1]


def test_affinity_comes_before_balancing_and_is_set_with_the_dnat() -> None:
    found = rules(service(affinity=10800), at(1), at(2))
    chain = lines(found, "nat", f"KUBE-SVC-{CODE}")
    assert [("recent" in line, "statistic" in line) for line in chain] == [
        (False, False),
        (True, False),
        (True, False),
        (False, True),
        (False, False),
    ]
    assert chain[1].endswith(f"-m recent --name {ENDPOINT} --rcheck --seconds 10800 --reap -j {ENDPOINT}")
    assert lines(found, "nat", ENDPOINT)[1] == (
        f"-m comment --comment ns1/svc1:p80 -m recent --name {ENDPOINT} --set -m tcp -p tcp "
        "-j DNAT --to-destination 10.180.0.1:80"
    )


def test_without_endpoints_everything_is_rejected_in_filter() -> None:
    found = rules(
        service(
            type="LoadBalancer",
            ports=(msgspec.structs.replace(PORT, node_port=30080),),
            external_ips=("192.0.2.1",),
            load_balancer=(Ingress("203.0.113.1"),),
        )
    )
    words = '-m comment --comment "ns1/svc1:p80 has no endpoints"'
    assert lines(found, "filter", "KUBE-SERVICES") == [f"{words} -m tcp -p tcp -d 172.30.0.41 --dport 80 -j REJECT"]
    assert lines(found, "filter", "KUBE-EXTERNAL-SERVICES") == [
        f"{words} -m tcp -p tcp -d 192.0.2.1 --dport 80 -j REJECT",
        f"{words} -m tcp -p tcp -d 203.0.113.1 --dport 80 -j REJECT",
        f"{words} -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j REJECT",
    ]
    assert len(lines(found, "nat", "KUBE-SERVICES")) == 1
    assert lines(found, "nat", "KUBE-NODEPORTS") == []


def test_without_local_endpoints_a_local_policy_drops_and_the_short_cut_stays() -> None:
    local = service(type="NodePort", external_policy="Local", ports=(msgspec.structs.replace(PORT, node_port=30080),))
    here, there = rules(local, at(1)), rules(local, at(1), node=1)
    assert lines(here, "filter", "KUBE-EXTERNAL-SERVICES") == []
    assert lines(here, "nat", f"KUBE-EXT-{CODE}")[-1] == f"-j KUBE-SVL-{CODE}"
    assert lines(there, "filter", "KUBE-EXTERNAL-SERVICES") == [
        (
            '-m comment --comment "ns1/svc1:p80 has no local endpoints" -m addrtype --dst-type LOCAL '
            "-m tcp -p tcp --dport 30080 -j DROP"
        )
    ]
    assert lines(there, "nat", f"KUBE-EXT-{CODE}") == lines(here, "nat", f"KUBE-EXT-{CODE}")[:-1]
    assert f"KUBE-SVL-{CODE}" not in there.tables["nat"]
    assert lines(there, "nat", "KUBE-NODEPORTS") == lines(here, "nat", "KUBE-NODEPORTS")


def test_internal_policy_local_uses_the_local_chain_and_nothing_of_other_nodes() -> None:
    found = rules(service(internal_policy="Local"), at(1), at(2, "n2"))
    assert lines(found, "nat", "KUBE-SERVICES")[0].endswith(f"-j KUBE-SVL-{CODE}")
    assert "! -s 10.244.0.0/16 -j KUBE-MARK-MASQ" in lines(found, "nat", f"KUBE-SVL-{CODE}")[0]
    assert [chain for chain in found.tables["nat"] if chain.startswith(("KUBE-SEP", "KUBE-SVC"))] == [ENDPOINT]


def test_external_policy_local_keeps_the_source_but_for_the_nodes_own_traffic() -> None:
    local = service(type="NodePort", external_policy="Local", ports=(msgspec.structs.replace(PORT, node_port=30080),))
    to = "for ns1/svc1:p80 external destinations"
    assert lines(rules(local, at(1)), "nat", f"KUBE-EXT-{CODE}") == [
        f'-m comment --comment "pod traffic {to}" -s 10.244.0.0/16 -j KUBE-SVC-{CODE}',
        f'-m comment --comment "masquerade LOCAL traffic {to}" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ',
        f'-m comment --comment "route LOCAL traffic {to}" -m addrtype --src-type LOCAL -j KUBE-SVC-{CODE}',
        f"-j KUBE-SVL-{CODE}",
    ]
    blind = rules(local, at(1), settings=ProxySettings())
    assert "pod traffic" not in blind.tables["nat"][f"KUBE-EXT-{CODE}"]
    assert "MASQ" not in blind.tables["nat"][f"KUBE-SVC-{CODE}"]


def test_source_ranges_have_a_firewall_chain_that_the_node_may_pass_only_if_it_is_in_one() -> None:
    def firewall(*ranges: str) -> list[str]:
        balanced = service(type="LoadBalancer", load_balancer=(Ingress("203.0.113.1"),), source_ranges=ranges)
        found = rules(balanced, at(1))
        assert lines(found, "nat", "KUBE-SERVICES")[1].endswith(f"-j KUBE-FW-{CODE}")
        assert lines(found, "filter", "KUBE-PROXY-FIREWALL") == [
            (
                f'-m comment --comment "ns1/svc1:p80 traffic not accepted by KUBE-FW-{CODE}" '
                "-m tcp -p tcp -d 203.0.113.1 --dport 80 -j DROP"
            )
        ]
        return [line.split(" -s ")[-1].split()[0] for line in lines(found, "nat", f"KUBE-FW-{CODE}")[:-1]]

    assert firewall("198.51.100.7/24", "2001:db8::/32") == ["198.51.100.0/24"]
    assert firewall("198.51.100.0/24", "192.168.50.0/24") == ["198.51.100.0/24", "192.168.50.0/24", "203.0.113.1"]


def test_balancer_address_of_mode_proxy_gets_no_rule() -> None:
    found = rules(service(type="LoadBalancer", load_balancer=(Ingress("203.0.113.1", proxy=True),)), at(1))
    assert "203.0.113.1" not in str(found.tables)
    assert f"KUBE-EXT-{CODE}" not in found.tables["nat"]


def test_health_check_node_port_is_let_in() -> None:
    found = rules(service(type="LoadBalancer", external_policy="Local", health_port=31234))
    assert lines(found, "filter", "KUBE-NODEPORTS") == [
        '-m comment --comment "ns1/svc1:p80 health check node port" -m tcp -p tcp --dport 31234 -j ACCEPT'
    ]


@pytest.mark.parametrize(("protocol", "word"), [("UDP", "udp"), ("SCTP", "sctp")])
def test_other_protocols_have_names_and_matches_of_their_own(protocol: Any, word: str) -> None:
    found = rules(service(ports=(msgspec.structs.replace(PORT, protocol=protocol),)), at(1))
    (chain,) = (each for each in found.tables["nat"] if each.startswith("KUBE-SVC-"))
    assert chain != f"KUBE-SVC-{CODE}"
    assert f"-m {word} -p {word} -d 172.30.0.41" in found.tables["nat"]["KUBE-SERVICES"]


def test_headless_and_external_name_services_leave_no_trace() -> None:
    nothing = load(SETTINGS)
    empty = rules_of(nothing, cluster([], []))
    for each in (service(headless=True, cluster_ips=()), service(type="ExternalName", cluster_ips=())):
        assert rules(each, at(1)).tables == empty.tables


# ------------------------------------------------------------ what users give


@pytest.mark.parametrize(
    "fields",
    [
        {"name": 'x" -j ACCEPT\n-A INPUT -j DROP\n-A KUBE-SERVICES -m comment --comment "'},
        {"name": "a b"},
        {"name": "a\tb"},
        {"name": ""},
        {"namespace": "ns1\n"},
        {"namespace": "-j"},
        {"name": "x" * 400},
        {"name": "é"},
        {"cluster_ips": ("172.30.0.41 -j ACCEPT",)},
        {"cluster_ips": ("172.30.0.41\n-A INPUT -j DROP",)},
        {"external_ips": ("192.0.2.1/32 -j ACCEPT",)},
        {"load_balancer": (Ingress("203.0.113.1 -j ACCEPT"),)},
        {"ports": (msgspec.structs.replace(PORT, name='p" -j ACCEPT'),)},
        {"ports": (msgspec.structs.replace(PORT, port="80 -j ACCEPT"),)},
        {"ports": (msgspec.structs.replace(PORT, node_port="1\n"),)},
        {"ports": (msgspec.structs.replace(PORT, protocol="TCP -j ACCEPT"),)},
        {"health_port": "1 -j ACCEPT"},
        {"affinity": "1 -j ACCEPT"},
        {"source_ranges": ("10.0.0.0/8 -j ACCEPT",), "load_balancer": (Ingress("203.0.113.1"),)},
    ],
)
def test_nothing_that_could_break_a_rule_is_written(fields: dict[str, Any]) -> None:
    with pytest.raises(CnilabError, match="failed to write the rules of Service"):
        rules(service(**fields), at(1))


@pytest.mark.parametrize("address", ["10.180.0.1 -j ACCEPT", "10.180.0.1\n-A INPUT -j DROP", '"', ""])
def test_no_endpoint_that_could_break_a_rule_is_written(address: str) -> None:
    with pytest.raises(CnilabError, match="no address"):
        rules(service(), Endpoint(address))


def test_the_longest_names_leave_room_in_every_comment() -> None:
    longest = service(
        namespace="n" * 63,
        name="s" * 63,
        type="LoadBalancer",
        ports=(msgspec.structs.replace(PORT, name="p" * 63, node_port=30080),),
        external_policy="Local",
        load_balancer=(Ingress("203.0.113.1"),),
        source_ranges=("10.0.0.0/8",),
        health_port=31234,
    )
    for found in (rules(longest), rules(longest, at(1)), rules(longest, at(1, "n2"))):
        for chains in found.tables.values():
            for text in chains.values():
                comments = [part.split('"')[0] for part in text.split('--comment "')[1:]]
                assert all(len(comment) <= 255 for comment in comments)


# ------------------------------------------------------------ sharing and syncs


def two_services() -> tuple[Cluster, Cluster]:
    """Before and after an endpoint of the second comes."""
    first, second = service(), service(name="svc2", cluster_ips=("172.30.0.42",))
    slices = [slice_of(first, at(1), at(2, "n2")), slice_of(second, at(3))]
    return cluster([first, second], slices), cluster([first, second], [slices[0], slice_of(second, at(3), at(4))])


def test_nodes_share_the_text_and_a_change_rewrites_only_its_service() -> None:
    proxy = load(SETTINGS)
    before, after = two_services()
    one, other = rules_of(proxy, before, 0), rules_of(proxy, before, 1)
    assert one.tables is other.tables

    later = rules_of(proxy, after)
    old, new = one.tables["nat"], later.tables["nat"]
    changed = {chain for chain in new if new[chain] is not old.get(chain) and new[chain] != old.get(chain)}
    assert all(chain.startswith("KUBE-SEP") or "ns1/svc2:p80" in new[chain] for chain in changed)
    assert len(changed) == 2
    assert new[f"KUBE-SVC-{CODE}"] is old[f"KUBE-SVC-{CODE}"]
    assert later.tables == rules_of(load(SETTINGS), after).tables


def test_what_is_remembered_never_outlives_its_service() -> None:
    proxy = load(SETTINGS)
    before, after = two_services()
    rules_of(proxy, before)
    gone = msgspec.structs.replace(after, services=after.services[:1], slices=after.slices[:1])
    assert rules_of(proxy, gone).tables == rules_of(load(SETTINGS), gone).tables
    assert rules_of(proxy, before).tables == rules_of(load(SETTINGS), before).tables


def plan_of(found: ProxyRules) -> Plan:
    return Plan(style="s", topology="t", fragments={"proxy/n1": (found,)})


def test_plans_with_proxy_rules_are_compared_printed_and_read_back() -> None:
    proxy = load(SETTINGS)
    before, after = two_services()
    old, new = plan_of(rules_of(proxy, before)), plan_of(rules_of(proxy, after))

    (step,) = diff(old, new)
    assert step.verb == "replace"
    assert diff(new, plan_of(rules_of(load(SETTINGS), after))) == []
    assert from_json(as_json(new)) == new
    text = as_text(new)
    assert f"  -A KUBE-SVC-{CODE} -m comment" in text
    assert "-I PREROUTING -m comment" in text
    (item,) = new
    assert describe(item).startswith("iptables: kube-proxy, ")


def test_single_rules_can_be_read_out_of_the_text() -> None:
    found = rules(service(), at(1), at(2))
    (mark, first, last) = chain_rules(found, "nat", f"KUBE-SVC-{CODE}")
    assert mark.args[:4] == ("-m", "comment", "--comment", "ns1/svc1:p80 cluster IP")
    assert first.args[3:8] == ("ns1/svc1:p80 -> 10.180.0.1:80", "-m", "statistic", "--mode", "random")
    assert last.args[-2] == "-j"
    assert chain_rules(found, "nat", "KUBE-SVC-NONE") == ()
    whole = as_iptables(found, "nat")
    assert {chain.name for chain in whole.chains} == set(found.tables["nat"])
    assert whole.jumps == found.jumps["nat"]


def test_a_line_is_traced_to_its_service_even_without_a_comment() -> None:
    ports = tuple(
        ServicePort(name=f"p{number}", protocol="TCP", port=number, target=number) for number in range(80, 90)
    )
    crowded = service(ports=ports)
    found = rules(crowded, *(Endpoint(f"10.180.{third}.{last}") for third in range(2) for last in range(1, 60)))
    nat = found.tables["nat"]
    chain = next(each for each in nat if each.startswith("KUBE-SEP-"))
    assert "--comment" not in nat[chain]
    assert service_of(found, nat[chain].splitlines()[1]).startswith("ns1/svc1:p8")
    assert service_of(found, f"-X {chain}").startswith("ns1/svc1:p8")
    assert service_of(found, "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000") == ""
    assert service_of(found, "COMMIT") == ""
