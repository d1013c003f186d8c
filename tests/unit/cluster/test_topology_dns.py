from __future__ import annotations

import pytest

from emulator.cluster.model import Topology
from emulator.cluster.topology import parse_topology
from emulator.errors import TopologyError

BASE = """
switches: [{name: s1, cidrs: [192.168.50.0/24, "fd00:50::/64"]}]
nodes: [{name: n1, switch: s1, defaultRoute: false}]
hosts: [{name: client, switch: s1, defaultRoute: false, ports: [80, 443]}]
podCIDRs: [10.244.0.0/16, "fd00:10::/56"]
serviceCIDRs: [10.96.0.0/12, "fd00:96::/112"]
"""


def parsed(dns: str, base: str = BASE) -> Topology:
    return parse_topology(base + dns, "t.yaml")


def refusal(dns: str, base: str = BASE) -> str:
    with pytest.raises(TopologyError) as error:
        parsed(dns, base)
    return str(error.value)


def test_the_resolver_is_a_host_with_its_addresses_and_records() -> None:
    upstream = parsed("""
dns:
  upstream: client
  records:
    Example.COM.: [203.0.113.80, "2001:DB8::80"]
    www.example.com: example.com.
    me: client
""").upstream
    assert upstream is not None
    assert (upstream.host, upstream.addresses) == ("client", ("192.168.50.101", "fd00:50::101"))
    assert upstream.records == {
        "example.com": ("203.0.113.80", "2001:db8::80"),
        "www.example.com": ("example.com",),
        "me": ("192.168.50.101", "fd00:50::101"),
    }


def test_without_the_section_there_is_none() -> None:
    assert parsed("").upstream is None


@pytest.mark.parametrize(
    ("dns", "said"),
    [
        ("dns: {upstream: n1}", 'dns.upstream: Invalid value: "n1": there is no host of this name'),
        ("dns: {upstream: clint}", 'did you mean "client"'),
        ("dns: {}", "dns.upstream"),
        ("dns: {upstream: client, records: {a..b: 10.0.0.1}}", "must be a DNS name"),
        ("dns: {upstream: client, records: {example.com: [10.0.0.1, other.example]}}", "has no further values"),
        ("dns: {upstream: client, records: {example.com: 'not a name'}}", "must be an IP address, a machine"),
        ("dns: {upstream: client, records: {example.com: []}}", "must have 1 to 256 values"),
        ("dns: {upstream: client, records: {example.com: 7}}", "dns.records"),
        ("dns: {upstream: client, record: {}}", "unknown field"),
        (f"dns: {{upstream: client, records: {{{'a' * 64}.com: 10.0.0.1}}}}", "no more than 63 bytes"),
    ],
)
def test_what_is_refused_is_named(dns: str, said: str) -> None:
    assert said in refusal(dns)


def test_a_host_cannot_answer_twice_on_port_53() -> None:
    assert "port 53 is taken" in refusal("dns: {upstream: client}", BASE.replace("[80, 443]", "[53]"))
