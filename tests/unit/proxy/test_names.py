"""Hashes and names as every cluster has them."""

from __future__ import annotations

import pytest

from emulator.proxy.names import endpoint_chain, endpoint_name, port_name, service_hash, service_name


@pytest.mark.parametrize(
    ("service", "port", "protocol", "expected"),
    [
        ("ns1/svc1", "p80", "tcp", "XPGD46QRK7WJZT7O"),
        ("default/kubernetes", "https", "tcp", "NPX46M4PTMTKRN6Y"),
        ("kube-system/kube-dns", "dns", "udp", "TCOU7JCQXEZGVUNU"),
        ("kube-system/kube-dns", "dns-tcp", "tcp", "ERIFXISQEP7F7OF4"),
        ("kube-system/kube-dns", "metrics", "tcp", "JD5MR3NA4I4DYORP"),
    ],
)
def test_hash_of_a_service_port(service: str, port: str, protocol: str, expected: str) -> None:
    assert service_hash(port_name(service, port), protocol) == expected


def test_chain_of_an_endpoint() -> None:
    assert endpoint_chain("ns1/svc1:p80", "tcp", "10.180.0.1:80") == "KUBE-SEP-SXIVWICOYRO3J4NJ"


def test_unnamed_port_has_no_colon() -> None:
    assert port_name("default/nginx", "") == "default/nginx"
    assert service_hash("default/nginx", "tcp") == "2CMXP7HKUVJN7L6M"  # as clusters with such a Service show it


def test_nftables_names() -> None:
    assert service_name("ns1/svc1", "tcp", "p80") == "ULMVA6XW-ns1/svc1/tcp/p80"
    assert endpoint_name("ns1/svc1", "tcp", "p80", "10.180.0.1", 80) == "5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"


def test_nftables_names_hold_no_colon_and_end_with_a_slash_for_an_unnamed_port() -> None:
    assert endpoint_name("ns1/svc1", "tcp", "p80", "fd00::1", 80).endswith("-ns1/svc1/tcp/p80__fd00..1/80")
    assert service_name("ns1/svc1", "tcp", "").endswith("-ns1/svc1/tcp/")


def test_long_nftables_names_are_cut_and_stay_apart() -> None:
    long = f"{'n' * 63}/{'s' * 63}"
    port = "p" * 15
    names = {
        endpoint_name(long, "sctp", port, f"fd00:0010:0244:0001:0002:0003:0004:{last}", 65535)
        for last in ("0005", "0006")
    }
    assert len(names) == 2
    short = endpoint_name(long, "tcp", port, "10.0.0.1", 80)
    assert not short.endswith("...")
    longer = endpoint_name(f"{'n' * 63}/{'s' * 140}", "tcp", port, "10.0.0.1", 8080)
    assert len(longer) == 240
    assert longer.endswith("...")
