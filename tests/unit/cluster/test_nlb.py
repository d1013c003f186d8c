"""What annotations ask of a Network Load Balancer, and which subnets and addresses it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from emulator.cluster.eni_ipam import EniPools
from emulator.cluster.load_balancer import with_addresses
from emulator.cluster.model import HealthTimes, LoadBalancer, Topology
from emulator.cluster.nlb import PREFIX, SOURCE_RANGES, Denied, NlbSettings, nlb_settings
from emulator.cluster.services import Ingress, Service, ServicePort
from emulator.cluster.topology import load_topology
from emulator.cni.styles import load_style

SITES = Path(__file__).parents[3] / "scenarios" / "services" / "topologies"
BALANCER = LoadBalancer(kind="nlb", ranges=(), service_class="service.k8s.aws/nlb")
KEPT = "target-group-attributes", "preserve_client_ip.enabled=true"


def service(name: str = "web", *annotations: tuple[str, str], protocol: Any = "TCP", **fields: Any) -> Service:
    named = {PREFIX + key: text for key, text in annotations}
    ports = (ServicePort(name="", protocol=protocol, port=80, target=8080, node_port=30080),)
    return Service("default", name, "LoadBalancer", ports=ports, annotations=named, **fields)


def settings(*annotations: tuple[str, str], balancer: LoadBalancer = BALANCER) -> NlbSettings:
    return nlb_settings(service("web", *annotations), balancer)


@pytest.fixture(scope="module")
def vpc() -> Topology:
    """Two zones with a public and a private subnet each."""
    return load_style("aws-vpc").prepare(load_topology(str(SITES / "nlb.yaml")))


def test_without_annotations_it_is_internal_by_instance_and_stays_in_the_zone() -> None:
    assert settings() == NlbSettings()


@pytest.mark.parametrize(
    ("kind", "protocol", "attribute", "preserved"),
    [
        ("instance", "TCP", None, True),
        ("instance", "TCP", "false", False),
        ("ip", "TCP", None, False),
        ("ip", "TCP", "true", True),
        ("ip", "UDP", None, True),
        ("instance", "UDP", "false", True),
    ],
)
def test_whose_address_arrives_depends_on_type_protocol_and_attribute(
    kind: str, protocol: str, attribute: str | None, preserved: bool
) -> None:
    given = [("nlb-target-type", kind)]
    given += [("target-group-attributes", f"preserve_client_ip.enabled={attribute}")] if attribute else []
    assert settings(*given).preserves(protocol) is preserved


def test_the_legacy_type_means_ip_targets() -> None:
    assert settings(("type", "nlb-ip"), ("nlb-target-type", "instance")).targets == "ip"
    assert settings(("type", "external")).targets == "instance"


def test_both_spellings_of_scheme_and_cross_zone_are_read() -> None:
    assert settings(("internal", "false")).internet_facing
    assert settings(("scheme", "internet-facing"), ("internal", "true")).internet_facing
    assert settings(("cross-zone-load-balancing-enabled", "true")).cross_zone
    assert settings(
        ("attributes", "load_balancing.cross_zone.enabled=true,deletion_protection.enabled=true")
    ).cross_zone


def test_what_a_service_does_not_say_the_topology_may() -> None:
    hurry = msgspec.structs.replace(BALANCER, targets="ip", preserve_client_ip=True, health=HealthTimes(1, 0.5, 2, 2))
    assert settings(balancer=hurry).targets == "ip"
    assert settings(balancer=hurry).preserves("TCP")
    found = settings(("healthcheck-interval", "20"), ("nlb-target-type", "instance"), balancer=hurry)
    assert (found.targets, found.times) == ("instance", HealthTimes(20, 0.5, 2, 2))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("scheme", "public", "must be internal or internet-facing"),
        ("nlb-target-type", "pod", "must be instance or ip"),
        ("healthcheck-interval", "4", "must be a number from 5 to 300"),
        ("healthcheck-interval", "99999999999", "must be a number from 5 to 300"),
        ("healthcheck-interval", "١٠", "must be a number from 5 to 300"),
        ("healthcheck-healthy-threshold", "1", "must be a number from 2 to 10"),
        ("healthcheck-protocol", "grpc", "must be tcp or http"),
        ("healthcheck-protocol", "HTTPS", "not emulated"),
        ("healthcheck-port", "0", "must be a number from 1 to 65535"),
        ("healthcheck-path", "a b", "must be a path"),
        ("healthcheck-success-codes", "2xx", "must be like 200 or 200-399"),
        ("target-group-attributes", "preserve_client_ip.enabled", "which is no KEY=VALUE"),
        ("target-group-attributes", "preserve_client_ip.enabled=yes", "must be true or false"),
        ("target-group-attributes", "proxy_protocol_v2.enabled=true", "not emulated"),
        ("target-group-attributes", "target_failover.on_unhealthy=rebalance", "not emulated"),
        ("attributes", "zonal_shift.config.enabled=true", "not emulated"),
        ("ssl-cert", "arn:aws:acm:x", "not emulated"),
        ("security-groups", "sg-1", "not emulated"),
        ("ip-address-type", "dualstack", "must be ipv4"),
    ],
)
def test_what_cannot_be_is_denied_with_the_reason(name: str, text: str, reason: str) -> None:
    with pytest.raises(Denied, match=reason):
        settings((name, text))


def test_source_ranges_are_the_specs_alone() -> None:
    annotated = msgspec.structs.replace(service(), annotations={SOURCE_RANGES: "203.0.113.0/24"})
    with pytest.raises(Denied, match=r"there is spec\.loadBalancerSourceRanges"):
        nlb_settings(annotated, BALANCER)


def test_there_is_no_sctp() -> None:
    with pytest.raises(Denied, match="no SCTP"):
        nlb_settings(service(protocol="SCTP"), BALANCER)


def given(topology: Topology, *services: Service, before: tuple[Service, ...] = ()) -> dict[str, list[str]]:
    found, _ = with_addresses(services, topology, before)
    return {one.name: [f"{each.address} {each.private}".strip() for each in one.load_balancer] for one in found}


def test_there_is_an_address_in_each_zone_from_the_end_of_its_subnet(vpc: Topology) -> None:
    found = given(vpc, service("a"), service("b", ("scheme", "internet-facing")), service("c"))
    assert found == {
        "a": ["10.0.31.254", "10.0.47.254"],
        "b": ["198.51.100.254 10.0.0.254", "198.51.100.253 10.0.1.254"],
        "c": ["10.0.31.253", "10.0.47.253"],
    }


def test_kube_proxy_does_not_know_the_addresses(vpc: Topology) -> None:
    (found,), _ = with_addresses((service(),), vpc)
    assert all(one.proxy for one in found.load_balancer)


def test_what_it_has_it_keeps_and_another_scheme_means_other_addresses(vpc: Topology) -> None:
    before, _ = with_addresses((service("a"), service("b")), vpc)
    assert given(vpc, service("b"), before=before) == {"b": ["10.0.31.253", "10.0.47.253"]}
    assert given(vpc, service("b"), service("0"), before=before)["b"] == ["10.0.31.253", "10.0.47.253"]
    assert given(vpc, service("b", ("scheme", "internet-facing")), before=before)["b"][0].startswith("198.51.100.254 ")


def test_subnets_and_addresses_may_be_named(vpc: Topology) -> None:
    assert given(vpc, service("a", ("subnets", "private-b"))) == {"a": ["10.0.47.254"]}
    wanted = service("a", ("private-ipv4-addresses", "10.0.31.245, 10.0.47.250"))
    assert given(vpc, wanted) == {"a": ["10.0.31.245", "10.0.47.250"]}


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ([("subnets", "private-c")], "there is no subnet 'private-c'"),
        ([("subnets", "private-a,public-a")], "private-a and public-a are in one availability zone"),
        ([("private-ipv4-addresses", "10.0.16.11")], "10.0.16.11 is not of 10.0.31.239-10.0.31.254"),
        ([("private-ipv4-addresses", "192.0.2.1")], "192.0.2.1 is in none of its subnets, private-a, private-b"),
        ([("private-ipv4-addresses", "nonsense")], "nonsense is in none of its subnets"),
    ],
)
def test_what_there_is_not_leaves_it_pending(vpc: Topology, annotations: list[tuple[str, str]], reason: str) -> None:
    (found,), told = with_addresses((service("a", *annotations),), vpc)
    assert found.load_balancer == ()
    assert reason in told[0]


def test_without_an_internet_gateway_nothing_faces_the_internet() -> None:
    plain = load_style("aws-vpc").prepare(load_topology(str(SITES / "cloud.yaml")))
    _, told = with_addresses((service("a", ("scheme", "internet-facing")),), plain)
    assert told == (
        (
            "Service default/a is pending: no subnet's route table leads to an internet gateway, and it is to be "
            "internet-facing"
        ),
    )
    assert given(plain, service("a")) == {"a": ["192.168.50.254"]}


def test_a_subnet_runs_out_of_addresses_and_says_so(vpc: Topology) -> None:
    many = tuple(service(f"s{n:02}") for n in range(17))
    found, told = with_addresses(many, vpc)
    assert sum(bool(one.load_balancer) for one in found) == 16
    assert told == (
        "Service default/s16 is pending: there is no free address in 10.0.31.239-10.0.31.254 of 10.0.16.0/20",
    )


def test_another_class_is_somebody_elses(vpc: Topology) -> None:
    found, told = with_addresses(
        (
            service("mine", load_balancer_class="service.k8s.aws/nlb"),
            service("other", load_balancer_class="example.com/lb", load_balancer=(Ingress("192.0.2.1"),)),
        ),
        vpc,
    )
    assert found[0].load_balancer
    assert found[1].load_balancer == (Ingress("192.0.2.1"),)
    assert told == ()


def test_ipamd_takes_none_of_these_addresses(vpc: Topology) -> None:
    pools = EniPools(vpc)
    (subnet,) = (each for cidr, each in pools._subnets.items() if cidr == "10.0.16.0/20")
    assert {int(subnet.network.num_addresses) - 2, int(subnet.network.num_addresses) - 17} <= subnet.taken
