from __future__ import annotations

import pytest

from emulator.cluster.model import DnsConfig, DnsPolicy, Pod
from emulator.dns.resolv_conf import ResolvConf, Resolvers, parse, pod_resolv_conf
from emulator.dns.resolver import candidates

RESOLVERS = Resolvers(("10.96.0.10",), ResolvConf(("203.0.113.53",), ("corp.example",)))


def pod(policy: DnsPolicy = "ClusterFirst", dns: DnsConfig | None = None, *, host_network: bool = False) -> Pod:
    return Pod(
        "shop", "web", "n1", ("10.244.1.2",), dns_policy=policy, dns=dns or DnsConfig(), host_network=host_network
    )


def test_cluster_first() -> None:
    assert pod_resolv_conf(pod(), RESOLVERS).text() == (
        "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\n"
        "nameserver 10.96.0.10\n"
        "options ndots:5\n"
    )


def test_without_cluster_dns_the_search_path_is_there() -> None:
    assert pod_resolv_conf(pod(), Resolvers()).text() == (
        "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )


@pytest.mark.parametrize(
    ("policy", "host_network", "server"),
    [
        ("Default", False, "203.0.113.53"),
        ("Default", True, "203.0.113.53"),
        ("ClusterFirst", True, "203.0.113.53"),
        ("ClusterFirstWithHostNet", True, "10.96.0.10"),
        ("ClusterFirstWithHostNet", False, "10.96.0.10"),
    ],
)
def test_who_is_asked_by_policy(policy: DnsPolicy, host_network: bool, server: str) -> None:
    assert pod_resolv_conf(pod(policy, host_network=host_network), RESOLVERS).nameservers == (server,)


def test_none_has_what_dns_config_gives_and_no_more() -> None:
    config = DnsConfig(("192.0.2.1",), ("my.dns.search.suffix",), ("ndots:2", "edns0"))
    assert pod_resolv_conf(pod("None", config), RESOLVERS).text() == (
        "search my.dns.search.suffix\nnameserver 192.0.2.1\noptions ndots:2 edns0\n"
    )


def test_dns_config_adds_to_the_policy_and_its_options_win() -> None:
    config = DnsConfig(("192.0.2.1", "10.96.0.10"), ("cluster.local", "extra.example"), ("ndots:2", "single-request"))
    conf = pod_resolv_conf(pod(dns=config), RESOLVERS)
    assert conf.nameservers == ("10.96.0.10", "192.0.2.1")
    assert conf.search[-2:] == ("corp.example", "extra.example")
    assert conf.search.count("cluster.local") == 1
    assert conf.options == ("ndots:2", "single-request")


def test_the_limits_of_the_kubelet() -> None:
    servers = tuple(f"192.0.2.{n}" for n in range(5))
    conf = pod_resolv_conf(pod(dns=DnsConfig(servers, tuple(f"s{n}.example" for n in range(60)))), RESOLVERS)
    assert conf.nameservers == ("10.96.0.10", "192.0.2.0", "192.0.2.1")
    assert len(conf.search) == 32
    long = pod_resolv_conf(pod(dns=DnsConfig(searches=tuple(f"{n:0200}.example" for n in range(20)))), RESOLVERS)
    assert len(" ".join(long.search)) <= 2048
    assert len(long.search) == 4 + 9


def test_what_is_written_is_read_back() -> None:
    conf = pod_resolv_conf(pod(), RESOLVERS)
    assert parse(conf.text()) == conf


def test_glibc_reads_three_servers_and_the_last_search() -> None:
    text = "# a\nnameserver 1.1.1.1\nnameserver x\nsearch a b\nnameserver 2.2.2.2\nnameserver ::1\n"
    text += "nameserver 4.4.4.4\nsearch c.\n"
    assert parse(text) == ResolvConf(("1.1.1.1", "2.2.2.2", "::1"), ("c",))
    assert parse("\n\n options ndots:3 rotate\n").options == ("ndots:3", "rotate")


@pytest.mark.parametrize(
    ("options", "dots"), [((), 1), (("ndots:5",), 5), (("ndots:99",), 15), (("ndots:x", "ndots:2"), 2)]
)
def test_ndots(options: tuple[str, ...], dots: int) -> None:
    assert ResolvConf(options=options).number("ndots", 1, 15) == dots


def test_the_search_list_of_a_pod_makes_four_names_of_one() -> None:
    conf = pod_resolv_conf(pod(), Resolvers(("10.96.0.10",)))
    assert list(candidates("www.example.com", conf)) == [
        "www.example.com.shop.svc.cluster.local.",
        "www.example.com.svc.cluster.local.",
        "www.example.com.cluster.local.",
        "www.example.com.",
    ]
    assert list(candidates("www.example.com.", conf)) == ["www.example.com."]
    assert next(candidates("a.b.c.d.e.f", conf)) == "a.b.c.d.e.f."
    assert next(candidates("web.shop.svc.cluster.local", conf)) == "web.shop.svc.cluster.local.shop.svc.cluster.local."
