"""Every record and every denial of the Kubernetes DNS specification, and what CoreDNS makes of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort
from emulator.dns.records import Answer, Record, Soa, Srv, labels_of
from emulator.dns.zone import Zone

HTTP = ServicePort("http", "TCP", 80, 8080)
METRICS = ServicePort("metrics", "UDP", 9100, 9100)
ON_80 = (EndpointPort("http", "TCP", 8080),)


def cluster_ip(name: str, *addresses: str, ports: tuple[ServicePort, ...] = (HTTP,)) -> Service:
    return Service("default", name, "ClusterIP", cluster_ips=addresses, ports=ports)


def headless(name: str, *, publish: bool = False, ports: tuple[ServicePort, ...] = (HTTP,)) -> Service:
    return Service("default", name, "ClusterIP", headless=True, ports=ports, publish_not_ready=publish)


def external(name: str, target: str) -> Service:
    return Service("default", name, "ExternalName", external_name=target)


def slice_of(
    service: str, *endpoints: Endpoint, ports: tuple[EndpointPort, ...] = ON_80, name: str = ""
) -> EndpointSlice:
    family = 6 if endpoints and ":" in endpoints[0].address else 4
    return EndpointSlice("default", name or f"{service}-{family}", service, family, ports, endpoints)  # type: ignore[arg-type]


@pytest.fixture
def zone() -> Zone:
    zone = Zone("cluster.local")
    zone.set_namespaces(["default", "kube-system", "empty"])
    for service in (
        cluster_ip("web", "10.96.1.1", "fd00:96::1", ports=(HTTP, METRICS)),
        cluster_ip("plain", "10.96.1.2", ports=(ServicePort("", "TCP", 80, 80),)),
        cluster_ip("portless", "10.96.1.3", ports=()),
        headless("db"),
        headless("starting", publish=True),
        headless("sleeping"),
        headless("bare", ports=()),
        external("outside", "www.example.com"),
        external("inside", "web.default.svc.cluster.local"),
        external("missing", "nobody.default.svc.cluster.local"),
        external("ring-a", "ring-b.default.svc.cluster.local"),
        external("ring-b", "ring-a.default.svc.cluster.local"),
        external("self", "self.default.svc.cluster.local"),
        external("address", "192.0.2.1"),
        Service("kube-system", "kube-dns", "ClusterIP", cluster_ips=("10.96.0.10",), ports=(HTTP,)),
    ):
        zone.put_service(service)
    zone.put_slice(slice_of("web", Endpoint("10.244.1.5"), Endpoint("10.244.1.6", ready=False)))
    zone.put_slice(slice_of("db", Endpoint("10.244.1.7", hostname="db-0"), Endpoint("10.244.2.7", hostname="db-1")))
    zone.put_slice(slice_of("db", Endpoint("fd00:10:244::7", hostname="db-0"), Endpoint("10.244.1.9")))
    zone.put_slice(slice_of("starting", Endpoint("10.244.1.8", hostname="s-0", ready=False)))
    zone.put_slice(slice_of("sleeping", Endpoint("10.244.1.10", ready=False)))
    zone.put_slice(slice_of("bare", Endpoint("10.244.1.11"), ports=()))
    zone.put_slice(
        EndpointSlice(
            "kube-system", "kube-dns-1", "kube-dns", 4, ON_80, (Endpoint("10.244.1.2"), Endpoint("10.244.2.2"))
        )
    )
    zone.servers = ("10.244.1.2", "10.244.2.2")
    return zone


def ask(zone: Zone, name: str, kind: str = "A") -> Answer:
    answer = zone.lookup(labels_of(name), kind)
    assert answer is not None, f"{name} was left to another resolver"
    return answer


def data(records: tuple[Record, ...]) -> list[object]:
    return [record.data for record in records]


def assert_no_such_name(answer: Answer) -> None:
    assert (answer.rcode, answer.answer) == ("NXDOMAIN", ())
    assert_denied_by_soa(answer)


def assert_no_data(answer: Answer) -> None:
    assert (answer.rcode, answer.answer) == ("NOERROR", ())
    assert_denied_by_soa(answer)


def assert_denied_by_soa(answer: Answer) -> None:
    (soa,) = answer.authority
    assert (soa.owner, soa.kind, soa.ttl) == ("cluster.local", "SOA", 30)
    assert isinstance(soa.data, Soa)
    assert soa.data[:2] == ("ns.dns.cluster.local", "hostmaster.cluster.local")
    assert soa.data[3:] == (7200, 1800, 86400, 30)
    assert answer.authoritative


# Services with an address


def test_a_service_has_its_cluster_ips(zone: Zone) -> None:
    assert ask(zone, "web.default.svc.cluster.local").answer == (Record("", "A", 30, "10.96.1.1"),)
    assert ask(zone, "web.default.svc.cluster.local", "AAAA").answer == (Record("", "AAAA", 30, "fd00:96::1"),)
    assert ask(zone, "web.default.svc.cluster.local").authoritative


def test_a_service_without_that_family_or_type_exists_without_data(zone: Zone) -> None:
    for kind in ("AAAA", "MX", "TXT", "CNAME", "NS", "SOA", "HTTPS", "ANY"):
        assert_no_data(ask(zone, "plain.default.svc.cluster.local", kind))


def test_a_service_without_endpoints_still_has_its_address(zone: Zone) -> None:
    assert data(ask(zone, "plain.default.svc.cluster.local").answer) == ["10.96.1.2"]


def test_a_service_without_ports_has_an_address_and_no_srv(zone: Zone) -> None:
    assert data(ask(zone, "portless.default.svc.cluster.local").answer) == ["10.96.1.3"]
    assert_no_data(ask(zone, "portless.default.svc.cluster.local", "SRV"))


def test_srv_of_a_named_port_leads_to_the_service(zone: Zone) -> None:
    answer = ask(zone, "_http._tcp.web.default.svc.cluster.local", "SRV")
    # One for each address, the same: each has half of the weight, and one of them is told
    assert data(answer.answer) == [Srv(0, 50, 80, "web.default.svc.cluster.local")]
    assert [(r.owner, r.kind, r.data) for r in answer.additional] == [
        ("web.default.svc.cluster.local", "A", "10.96.1.1"),
        ("web.default.svc.cluster.local", "AAAA", "fd00:96::1"),
    ]


def test_srv_at_the_services_own_name_lists_all_its_ports(zone: Zone) -> None:
    answer = ask(zone, "web.default.svc.cluster.local", "SRV")
    assert [srv.port for srv in data(answer.answer) if isinstance(srv, Srv)] == [80, 9100]
    assert data(ask(zone, "plain.default.svc.cluster.local", "SRV").answer) == [
        Srv(0, 100, 80, "plain.default.svc.cluster.local")
    ]


@pytest.mark.parametrize("name", ["_http._udp.web", "_https._tcp.web", "_http._tcp.plain", "_a._b._http._tcp.web"])
def test_srv_of_a_port_that_is_not_there_is_no_name(zone: Zone, name: str) -> None:
    assert_no_such_name(ask(zone, f"{name}.default.svc.cluster.local", "SRV"))


# Headless Services


def test_a_headless_service_has_its_ready_endpoints(zone: Zone) -> None:
    assert data(ask(zone, "db.default.svc.cluster.local").answer) == ["10.244.1.7", "10.244.2.7", "10.244.1.9"]
    assert data(ask(zone, "db.default.svc.cluster.local", "AAAA").answer) == ["fd00:10:244::7"]


def test_its_endpoints_have_names_of_their_own(zone: Zone) -> None:
    assert data(ask(zone, "db-0.db.default.svc.cluster.local").answer) == ["10.244.1.7"]
    assert data(ask(zone, "10-244-1-9.db.default.svc.cluster.local").answer) == ["10.244.1.9"]
    assert_no_such_name(ask(zone, "db-2.db.default.svc.cluster.local"))
    # Whoever has a hostname does not go by the address
    assert_no_such_name(ask(zone, "10-244-1-7.db.default.svc.cluster.local"))


def test_srv_of_a_headless_service_leads_to_each_endpoint_at_its_own_port(zone: Zone) -> None:
    answer = ask(zone, "_http._tcp.db.default.svc.cluster.local", "SRV")
    assert data(answer.answer) == [
        Srv(0, 25, 8080, "db-0.db.default.svc.cluster.local"),
        Srv(0, 25, 8080, "db-1.db.default.svc.cluster.local"),
        Srv(0, 25, 8080, "10-244-1-9.db.default.svc.cluster.local"),
    ]
    assert ("db-0.db.default.svc.cluster.local", "AAAA") in [(r.owner, r.kind) for r in answer.additional]
    assert len(answer.additional) == 4


def test_a_headless_service_without_ready_endpoints_is_no_name(zone: Zone) -> None:
    for kind in ("A", "AAAA", "SRV", "TXT"):
        assert_no_such_name(ask(zone, "sleeping.default.svc.cluster.local", kind))


def test_publish_not_ready_addresses_names_the_others_too(zone: Zone) -> None:
    assert data(ask(zone, "starting.default.svc.cluster.local").answer) == ["10.244.1.8"]
    assert data(ask(zone, "s-0.starting.default.svc.cluster.local").answer) == ["10.244.1.8"]


def test_a_headless_service_without_ports_has_addresses_and_no_srv(zone: Zone) -> None:
    assert data(ask(zone, "bare.default.svc.cluster.local").answer) == ["10.244.1.11"]
    assert_no_data(ask(zone, "bare.default.svc.cluster.local", "SRV"))


def test_many_endpoints_have_a_weight_of_one_at_least(zone: Zone) -> None:
    zone.put_slice(slice_of("db", *(Endpoint(f"10.245.{n // 250}.{n % 250 + 1}") for n in range(300))))
    zone.drop_slice(("default", "db-6"))
    answer = ask(zone, "db.default.svc.cluster.local", "SRV")
    assert len(answer.answer) == 300
    assert {srv.weight for srv in data(answer.answer) if isinstance(srv, Srv)} == {1}


# Addresses to names


def test_ptr_of_a_cluster_ip_is_its_service(zone: Zone) -> None:
    assert data(ask(zone, "1.1.96.10.in-addr.arpa", "PTR").answer) == ["web.default.svc.cluster.local"]
    reverse = "1." + "0." * 23 + "6.9.0.0.0.0.d.f.ip6.arpa"
    assert data(ask(zone, reverse, "PTR").answer) == ["web.default.svc.cluster.local"]


def test_ptr_of_an_endpoint_is_its_name(zone: Zone) -> None:
    assert data(ask(zone, "7.1.244.10.in-addr.arpa", "PTR").answer) == ["db-0.db.default.svc.cluster.local"]
    assert data(ask(zone, "5.1.244.10.in-addr.arpa", "PTR").answer) == ["10-244-1-5.web.default.svc.cluster.local"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("1.2.0.192.in-addr.arpa", "PTR"),  # nobody's
        ("10.1.244.10.in-addr.arpa", "PTR"),  # an endpoint that is not ready
        ("1.1.96.10.in-addr.arpa", "A"),
        ("96.10.in-addr.arpa", "PTR"),
        ("999.1.96.10.in-addr.arpa", "PTR"),
        ("x.ip6.arpa", "PTR"),
        ("example.com", "A"),
        ("local", "A"),
        ("notcluster.local", "A"),
        ("", "NS"),
    ],
)
def test_what_is_not_ours_falls_through_to_the_resolver_outside(zone: Zone, name: str, kind: str) -> None:
    assert zone.lookup(labels_of(name), kind) is None


# Pods


@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("10-244-1-5.default.pod", "A", "10.244.1.5"),
        ("192-0-2-77.default.pod", "A", "192.0.2.77"),  # any address: `pods insecure`
        ("fd00-10--1.default.pod", "AAAA", "fd00:10::1"),
    ],
)
def test_pods_have_names_made_of_addresses(zone: Zone, name: str, kind: str, address: str) -> None:
    assert data(ask(zone, f"{name}.cluster.local", kind).answer) == [address]


def test_a_pods_name_has_no_other_family(zone: Zone) -> None:
    assert_no_data(ask(zone, "10-244-1-5.default.pod.cluster.local", "AAAA"))


@pytest.mark.parametrize(
    "name", ["web-0.default.pod", "10-244-1.default.pod", "10-0-0-256.default.pod", "1-2-3-4.no.pod"]
)
def test_what_is_no_address_is_no_pod(zone: Zone, name: str) -> None:
    assert_no_such_name(ask(zone, f"{name}.cluster.local"))


# ExternalName


def test_an_external_name_is_an_alias_that_leads_out(zone: Zone) -> None:
    answer = ask(zone, "outside.default.svc.cluster.local")
    assert answer.answer == (Record("", "CNAME", 30, "www.example.com"),)
    assert answer.chase == "www.example.com"
    alias = ask(zone, "outside.default.svc.cluster.local", "CNAME")
    assert (data(alias.answer), alias.chase) == (["www.example.com"], "")


def test_an_alias_within_the_cluster_is_followed_at_once(zone: Zone) -> None:
    answer = ask(zone, "inside.default.svc.cluster.local")
    assert [(r.owner, r.kind, r.data) for r in answer.answer] == [
        ("", "CNAME", "web.default.svc.cluster.local"),
        ("web.default.svc.cluster.local", "A", "10.96.1.1"),
    ]
    assert answer.chase == ""


@pytest.mark.parametrize("name", ["missing", "ring-a", "self"])
def test_an_alias_of_nothing_exists_without_data(zone: Zone, name: str) -> None:
    assert_no_data(ask(zone, f"{name}.default.svc.cluster.local"))


def test_an_external_name_has_no_srv_and_no_endpoints(zone: Zone) -> None:
    assert_no_data(ask(zone, "outside.default.svc.cluster.local", "SRV"))
    assert_no_such_name(ask(zone, "x.outside.default.svc.cluster.local"))
    assert_no_such_name(ask(zone, "address.default.svc.cluster.local"))  # an address is no name to be an alias of


# Names above, and the zone's own


@pytest.mark.parametrize("name", ["svc", "pod", "default.svc", "default.pod", "empty.svc", ""])
def test_names_above_others_exist_without_data(zone: Zone, name: str) -> None:
    full = f"{name}.cluster.local".strip(".")
    for kind in ("A", "AAAA", "SRV", "TXT"):
        assert_no_data(ask(zone, full, kind))


@pytest.mark.parametrize(
    "name",
    [
        "nobody.default.svc",
        "web.nowhere.svc",
        "nowhere.svc",
        "web",
        "web.default",
        "default",
        "x.y",
        "a.b.c.d.e.svc",
        "dns",
    ],
)
def test_all_else_is_no_name(zone: Zone, name: str) -> None:
    for kind in ("A", "SRV", "TXT", "MX"):
        assert_no_such_name(ask(zone, f"{name}.cluster.local", kind))


def test_the_version_of_the_specification(zone: Zone) -> None:
    assert ask(zone, "dns-version.cluster.local", "TXT").answer == (Record("", "TXT", 28800, "1.1.0"),)
    assert_no_data(ask(zone, "dns-version.cluster.local", "A"))


def test_the_zones_soa_and_name_server(zone: Zone) -> None:
    (soa,) = ask(zone, "cluster.local", "SOA").answer
    assert soa.kind == "SOA"
    servers = ask(zone, "cluster.local", "NS")
    assert data(servers.answer) == ["kube-dns.kube-system.svc.cluster.local"]
    assert data(servers.additional) == ["10.96.0.10"]
    assert data(ask(zone, "ns.dns.cluster.local", "A").answer) == ["10.96.0.10"]
    assert_no_data(ask(zone, "ns.dns.cluster.local", "AAAA"))


def test_without_the_service_the_pods_themselves_are_the_name_servers(zone: Zone) -> None:
    zone.drop_service(("kube-system", "kube-dns"))
    assert data(ask(zone, "cluster.local", "NS").answer) == ["ns.dns.cluster.local"]
    assert data(ask(zone, "ns.dns.cluster.local").answer) == ["10.244.1.2", "10.244.2.2"]


# Changes


def test_a_change_is_in_the_next_answer(zone: Zone) -> None:
    serial = zone.serial
    zone.put_slice(slice_of("db", Endpoint("10.244.1.7", hostname="db-0", ready=False)))
    assert data(ask(zone, "db.default.svc.cluster.local").answer) == ["10.244.1.9"]
    assert_no_data(ask(zone, "db-0.db.default.svc.cluster.local"))  # its IPv6 address is still there
    assert zone.lookup(labels_of("7.1.244.10.in-addr.arpa"), "PTR") is None
    assert zone.lookup(labels_of("7.2.244.10.in-addr.arpa"), "PTR") is None
    assert zone.serial > serial


def test_a_service_that_goes_takes_its_names_along(zone: Zone) -> None:
    zone.drop_service(("default", "web"))
    assert_no_such_name(ask(zone, "web.default.svc.cluster.local"))
    assert zone.lookup(labels_of("1.1.96.10.in-addr.arpa"), "PTR") is None
    assert zone.lookup(labels_of("5.1.244.10.in-addr.arpa"), "PTR") is None  # a slice alone names nothing


def test_a_namespace_that_goes_is_no_name(zone: Zone) -> None:
    zone.set_namespaces(["kube-system"])
    assert_no_such_name(ask(zone, "web.default.svc.cluster.local"))
    assert_no_such_name(ask(zone, "default.svc.cluster.local"))


def test_a_service_that_changes_its_address_leaves_none_behind(zone: Zone) -> None:
    zone.put_service(cluster_ip("web", "10.96.7.7"))
    assert data(ask(zone, "web.default.svc.cluster.local").answer) == ["10.96.7.7"]
    assert zone.lookup(labels_of("1.1.96.10.in-addr.arpa"), "PTR") is None


LABEL = st.one_of(
    st.sampled_from(
        ["web", "db", "default", "svc", "pod", "cluster", "local", "in-addr", "arpa", "_http", "_tcp", "10-0-0-1"]
    ),
    st.text(st.characters(max_codepoint=255), min_size=1, max_size=63),
)


@given(
    st.lists(LABEL, max_size=8).map(tuple),
    st.sampled_from(
        [(), ("cluster", "local"), ("svc", "cluster", "local"), ("pod", "cluster", "local"), ("ip6", "arpa")]
    ),
    st.sampled_from(["A", "AAAA", "SRV", "PTR", "TXT", "CNAME", "NS", "SOA", "ANY", "TYPE65280"]),
)
def test_any_name_has_an_answer(labels: tuple[str, ...], above: tuple[str, ...], kind: str) -> None:
    zone = Zone("cluster.local")
    zone.set_namespaces(["default"])
    zone.put_service(cluster_ip("web", "10.96.1.1"))
    zone.put_service(headless("db"))
    zone.put_slice(slice_of("db", Endpoint("10.244.1.7", hostname="db-0")))
    answer = zone.lookup((*labels, *above), kind)
    if answer is None:
        assert (*labels, *above)[-2:] != ("cluster", "local")
    elif not answer.answer:
        assert [record.kind for record in answer.authority] == ["SOA"]
    else:
        assert answer.rcode == "NOERROR"
