"""kube-proxy's nftables mode: the upstream test's names and rules, what nodes share, what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from emulator.cluster.model import Cluster
from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Ingress, Service, ServicePort
from emulator.errors import CnilabError, UserError
from emulator.plan.model import NftPart, NftRules
from emulator.plan.nftables import transactions
from emulator.proxy import nftables
from emulator.proxy.model import ProxySettings
from tests.golden.service_constructs import HTTP, NODE_PORT, SETTINGS, backends, base_cluster, on, service

P80 = ServicePort(name="p80", protocol="TCP", port=80, target=80)
# kubernetes/kubernetes pkg/proxy/nftables/proxier_test.go, TestOverallNFTablesRules
UPSTREAM = ProxySettings(pod_cidrs=("10.0.0.0/8",), service_cidrs=("172.30.0.0/16",))


def upstream(number: int, **fields: Any) -> Service:
    return Service(
        **{
            "namespace": f"ns{number}",
            "name": f"svc{number}",
            "type": "ClusterIP",
            "cluster_ips": (f"172.30.0.{40 + number}",),
            "ports": (P80,),
        }
        | fields
    )


def served(of: Service, *endpoints: tuple[str, str]) -> EndpointSlice:
    return EndpointSlice(
        of.namespace,
        f"{of.name}-x",
        of.name,
        4,
        (EndpointPort("p80", "TCP", 80),),
        tuple(Endpoint(address=address, node=node) for address, node in endpoints),
    )


def tables(cluster: Cluster, settings: ProxySettings = SETTINGS, node: int = 0) -> list[NftRules]:
    made = list(nftables.load(settings).node(cluster, cluster.nodes[node]))
    assert all(isinstance(item, NftRules) for item in made)
    return [item for item in made if isinstance(item, NftRules)]


def cluster_of(services: tuple[Service, ...], slices: tuple[EndpointSlice, ...] = ()) -> Cluster:
    return msgspec.structs.replace(base_cluster(), services=services, slices=slices)


def lines(part: NftPart) -> dict[str, list[str]]:
    """Rules by chain, elements by set."""
    found = {chain.name: list(chain.rules) for chain in part.chains}
    for item in part.elements:
        comment = f' comment "{item.comment}"' if item.comment else ""
        found.setdefault(item.of, []).append(f"{item.key}{comment}" + (f" : {item.verdict}" if item.verdict else ""))
    return found


def test_rules_are_those_of_the_upstream_test() -> None:
    node_ported = msgspec.structs.replace
    first = upstream(1)
    second = upstream(
        2,
        type="LoadBalancer",
        external_policy="Local",
        ports=(node_ported(P80, node_port=3001),),
        load_balancer=(Ingress("1.2.3.4"),),
        external_ips=("192.168.99.22",),
    )
    third = upstream(3, type="NodePort", ports=(node_ported(P80, node_port=3003),))
    fourth = upstream(4, type="NodePort", external_ips=("192.168.99.33",))
    fifth = upstream(
        5,
        type="LoadBalancer",
        ports=(node_ported(P80, node_port=3002),),
        load_balancer=(Ingress("5.6.7.8"),),
        source_ranges=(" 203.0.113.0/25",),
        affinity=10800,
    )
    sixth = upstream(6)
    slices = (
        served(first, ("10.180.0.1", "")),
        served(second, ("10.180.0.2", "")),
        served(third, ("10.180.0.3", "")),
        served(fourth, ("10.180.0.4", ""), ("10.180.0.5", "n1")),
        served(fifth, ("10.180.0.3", "")),
    )
    (four, _six) = tables(cluster_of((first, second, third, fourth, fifth, sixth), slices), UPSTREAM)

    parts = {subject: lines(part) for subject, part in four.parts.items()}
    assert parts["ns1/svc1"] == {
        "endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80": [
            "ip saddr 10.180.0.1 jump mark-for-masquerade",
            "meta l4proto tcp dnat to 10.180.0.1:80",
        ],
        "service-ULMVA6XW-ns1/svc1/tcp/p80": [
            "ip daddr 172.30.0.41 ip saddr != 10.0.0.0/8 jump mark-for-masquerade",
            "numgen random mod 1 vmap { 0 : goto endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80 }",
        ],
        "cluster-ips": ["172.30.0.41"],
        "service-ips": ["172.30.0.41 . tcp . 80 : goto service-ULMVA6XW-ns1/svc1/tcp/p80"],
    }
    external = "external-42NFTM6N-ns2/svc2/tcp/p80"
    assert parts["ns2/svc2"][external] == [
        'ip saddr 10.0.0.0/8 goto service-42NFTM6N-ns2/svc2/tcp/p80 comment "short-circuit pod traffic"',
        'fib saddr type local jump mark-for-masquerade comment "masquerade local traffic"',
        'fib saddr type local goto service-42NFTM6N-ns2/svc2/tcp/p80 comment "short-circuit local traffic"',
    ]
    assert parts["ns2/svc2"]["service-ips"] == [
        "172.30.0.42 . tcp . 80 : goto service-42NFTM6N-ns2/svc2/tcp/p80",
        f"192.168.99.22 . tcp . 80 : goto {external}",
        f"1.2.3.4 . tcp . 80 : goto {external}",
    ]
    assert parts["ns2/svc2"]["no-endpoint-services"] == [
        '192.168.99.22 . tcp . 80 comment "ns2/svc2:p80" : drop',
        '1.2.3.4 . tcp . 80 comment "ns2/svc2:p80" : drop',
    ]
    assert parts["ns2/svc2"]["service-nodeports"] == [f"tcp . 3001 : goto {external}"]
    assert parts["ns2/svc2"]["no-endpoint-nodeports"] == ['tcp . 3001 comment "ns2/svc2:p80" : drop']
    assert parts["ns3/svc3"]["external-4AT6LBPK-ns3/svc3/tcp/p80"] == [
        "jump mark-for-masquerade",
        "goto service-4AT6LBPK-ns3/svc3/tcp/p80",
    ]
    assert parts["ns4/svc4"]["service-LAUZTJTB-ns4/svc4/tcp/p80"] == [
        "ip daddr 172.30.0.44 ip saddr != 10.0.0.0/8 jump mark-for-masquerade",
        (
            "numgen random mod 2 vmap { 0 : goto endpoint-UNZV3OEC-ns4/svc4/tcp/p80__10.180.0.4/80, "
            "1 : goto endpoint-5RFCDDV7-ns4/svc4/tcp/p80__10.180.0.5/80 }"
        ),
    ]
    sticky = "GTK6MW7G-ns5/svc5/tcp/p80__10.180.0.3/80"
    assert parts["ns5/svc5"]["service-HVFWP5L3-ns5/svc5/tcp/p80"] == [
        "ip daddr 172.30.0.45 ip saddr != 10.0.0.0/8 jump mark-for-masquerade",
        f"ip saddr @affinity-{sticky} goto endpoint-{sticky}",
        f"numgen random mod 1 vmap {{ 0 : goto endpoint-{sticky} }}",
    ]
    assert parts["ns5/svc5"][f"endpoint-{sticky}"] == [
        "ip saddr 10.180.0.3 jump mark-for-masquerade",
        f"update @affinity-{sticky} {{ ip saddr }}",
        "meta l4proto tcp dnat to 10.180.0.3:80",
    ]
    (learnt,) = four.parts["ns5/svc5"].sets
    assert (learnt.name, learnt.type, learnt.flags, learnt.timeout) == (
        f"affinity-{sticky}",
        "ipv4_addr",
        ("dynamic", "timeout"),
        10800,
    )
    assert parts["ns5/svc5"]["firewall-HVFWP5L3-ns5/svc5/tcp/p80"] == ["ip saddr != { 203.0.113.0/25 } drop"]
    assert parts["ns5/svc5"]["firewall-ips"] == [
        "5.6.7.8 . tcp . 80 : goto firewall-HVFWP5L3-ns5/svc5/tcp/p80"
    ]  # fmt: skip
    assert parts["ns6/svc6"] == {
        "cluster-ips": ["172.30.0.46"],
        "no-endpoint-services": ['172.30.0.46 . tcp . 80 comment "ns6/svc6:p80" : goto reject-chain'],
    }


def test_nodes_share_the_parts_that_do_not_tell_them_apart() -> None:
    same, local = service(), service("local", cluster_ips=("10.96.0.42",), internal_policy="Local")
    cluster = cluster_of((same, local), (backends(same, on("n1", 2)), backends(local, on("n1", 3))))
    proxy = nftables.load(SETTINGS)

    (one, _), (two, _) = (tuple(proxy.node(cluster, node)) for node in cluster.nodes)

    assert isinstance(one, NftRules)
    assert isinstance(two, NftRules)
    assert one.parts["ns1/web"] is two.parts["ns1/web"]
    assert "drop" not in str(one.parts["ns1/local"])
    assert "drop" in str(two.parts["ns1/local"])


def test_a_changed_endpoint_makes_one_part_anew() -> None:
    services = tuple(service(f"s{number}", cluster_ips=(f"10.96.1.{number}",)) for number in range(20))
    slices = tuple(backends(each, on("n1", 2)) for each in services)
    before = cluster_of(services, slices)
    after = cluster_of(services, (*slices[:-1], backends(services[-1], on("n1", 9))))
    proxy = nftables.load(SETTINGS)

    old, new = (next(iter(proxy.node(cluster, cluster.nodes[0]))) for cluster in (before, after))

    assert isinstance(old, NftRules)
    assert isinstance(new, NftRules)
    assert [name for name in new.parts if new.parts[name] is not old.parts[name]] == ["ns1/s19"]


def test_headless_and_external_name_services_get_nothing() -> None:
    headless = service("headless", headless=True, cluster_ips=())
    alias = service("alias", type="ExternalName", cluster_ips=(), external_name="example.com")

    assert tables(cluster_of((headless, alias)))[0].parts == {}


def test_balancers_own_addresses_may_come_where_the_node_may() -> None:
    made = service(
        type="LoadBalancer",
        load_balancer=(Ingress("203.0.113.1"),),
        source_ranges=("198.51.100.0/24", "192.168.50.11/32"),  # n1 alone
    )
    cluster = cluster_of((made,), (backends(made, on("n1", 2)),))
    rules = [str(tables(cluster, node=number)[0].parts["ns1/web"].chains[-1].rules) for number in (0, 1)]

    assert "{ 198.51.100.0/24, 192.168.50.11/32, 203.0.113.1 } drop" in rules[0]
    assert "{ 198.51.100.0/24, 192.168.50.11/32 } drop" in rules[1]


@pytest.mark.parametrize(
    ("cidrs", "elements", "match"),
    [
        ((), ["192.168.50.11"], "ip daddr @nodeport-ips"),
        (("192.168.0.0/16",), ["192.168.50.11"], "ip daddr @nodeport-ips"),
        (("172.16.0.0/16",), [], "ip daddr @nodeport-ips"),
        (("0.0.0.0/0",), [], "fib daddr type local ip daddr != 127.0.0.0/8"),
    ],
)
def test_node_port_addresses(cidrs: tuple[str, ...], elements: list[str], match: str) -> None:
    frame = lines(tables(cluster_of(()), msgspec.structs.replace(SETTINGS, node_port_cidrs=cidrs))[0].frame)

    assert frame.get("nodeport-ips", []) == elements
    assert frame["services"][1] == f"{match} meta l4proto . th dport vmap @service-nodeports"


def test_node_port_addresses_among_pods_are_refused() -> None:
    with pytest.raises(UserError, match=r"10\.244\.1\.0/24 overlaps with the pods' network"):
        nftables.load(msgspec.structs.replace(SETTINGS, node_port_cidrs=("10.244.1.0/24",)))


def test_comments_longer_than_nft_takes_are_cut() -> None:
    made = service("s" * 63, namespace="n" * 63, ports=(msgspec.structs.replace(HTTP, name="p" * 15),))
    (element,) = (item for item in tables(cluster_of((made,)))[0].parts[made.key].elements if item.comment)

    assert element.comment == f"{'n' * 63}/{'s' * 63}:"[:128]
    assert len(element.comment) == 128


INJECTION = 'x" ; drop'


@pytest.mark.parametrize(
    "hostile",
    [
        {"cluster_ips": ("10.96.0.1 : drop }\nflush ruleset",)},
        {"cluster_ips": (INJECTION,)},
        {"external_ips": ("1.2.3.4 . tcp . 1 : drop, 5.6.7.8",)},
        {"load_balancer": (Ingress("1.2.3.4\n"),)},
        {"source_ranges": ("0.0.0.0/0 } accept ; drop { 1.2.3.4",), "load_balancer": (Ingress("1.2.3.4"),)},
        {"name": INJECTION},
        {"name": "web\nflush ruleset"},
        {"namespace": "ns1 { type nat }"},
        {"ports": (msgspec.structs.replace(NODE_PORT, name='p"'),)},
        {"ports": (msgspec.structs.replace(NODE_PORT, name="p;"),)},
    ],
)
@pytest.mark.parametrize("endpoints", [True, False])
def test_hostile_text_never_becomes_a_rule(hostile: dict[str, Any], endpoints: bool) -> None:
    made = service(**({"type": "LoadBalancer"} | hostile))
    slices = (backends(made, on("n1", 2)),) if endpoints else ()

    with pytest.raises(CnilabError):
        _ = [list(transactions(None, table)) for table in tables(cluster_of((made,), slices))]


def test_hostile_endpoint_never_becomes_a_rule() -> None:
    made = service()
    slices = (backends(made, Endpoint(address="10.244.0.2 drop")),)

    with pytest.raises(UserError, match=r"Service ns1/web: '10\.244\.0\.2 drop' is no IP address"):
        tables(cluster_of((made,), slices))
