"""Faults of the data path in a running lab: each breaks what it says, is listed, survives other changes, and is mended
exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator import Lab
from emulator.errors import NotFound, UserError
from emulator.kernel import registry
from emulator.plan.model import Route

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec", "nft", "iptables")

PATIENT = 4.0  # seconds for a probe that must be answered: a lost SYN is sent again after 1 and 3
SHORT = 0.3  # seconds for one that must not

Wish = tuple[str, str, dict[str, Any]]
# What is broken, what `status` says of it, and what n1 (or its pod) then cannot do: from, to, size with DF set.
BREAKING: dict[str, tuple[Wish, str, tuple[str, str, int]]] = {
    "small MTU of a switch's port": (
        ("mtu", "n2", {"at": "port", "value": 1450}),
        "the MTU of switch port s1-n2 (n2) is 1450",
        ("n1-p1", "n2-p1", 1422),
    ),
    "small MTU of a device": (
        ("mtu", "n1", {"device": "flannel.1", "value": 1400}),
        "the MTU of n1:flannel.1 is 1400",
        ("n1-p1", "n2-p1", 1422),
    ),
    "small MTU of a pod": (
        ("mtu", "n1-p1", {"value": 1300}),
        "the MTU of pod/default/n1-p1:eth0 is 1300",
        ("n1-p1", "n2-p1", 1422),
    ),
    "MAC of a VTEP": (
        ("mac", "n2", {"device": "flannel.1", "value": "02:00:00:00:00:99"}),
        "the MAC of n2:flannel.1 is 02:00:00:00:00:99",
        ("n1-p1", "n2-p1", 0),
    ),
    "parameter that the plan sets": (
        ("sysctl", "n1", {"name": "net/ipv4/ip_forward", "value": 0}),
        "sysctl net/ipv4/ip_forward of n1 is 0",
        ("n1-p1", "n2-p1", 0),
    ),
    "parameter that it does not set": (
        ("sysctl", "n1", {"name": "net/ipv4/icmp_echo_ignore_all", "value": 1}),
        "sysctl net/ipv4/icmp_echo_ignore_all of n1 is 1",
        ("n2", "n1", 0),
    ),
    "filter at a port": (
        ("filter", "n2", {"at": "port", "protocol": "udp", "port": 8472}),
        "protocol udp, port 8472 is dropped at switch port s1-n2 (n2)",
        ("n1-p1", "n2-p1", 0),
    ),
    "filter at a hook": (
        ("filter", "n1", {"at": "forward", "source": "n1-p1", "destination": "n2-p1"}),
        "from n1-p1, to n2-p1 is dropped in forward of n1",
        ("n1-p1", "n2-p1", 0),
    ),
    "filter of an ICMP type": (
        ("filter", "n2", {"at": "input", "protocol": "icmp", "icmp_type": 8, "icmp_code": 0}),
        "protocol icmp, type 8, code 0 is dropped in input of n2",
        ("n1", "n2", 0),
    ),
    "filter in a pod": (
        ("filter", "n2-p1", {"at": "output", "protocol": 1}),
        "protocol 1 is dropped in output of pod/default/n2-p1",
        ("n1-p1", "n2-p1", 0),
    ),
    "route": (
        ("route", "n1", {"destination": "10.244.2.0/24"}),
        "n1 has no route to 10.244.2.0/24",
        ("n1-p1", "n2-p1", 0),
    ),
    "default route": (
        ("route", "n1", {"destination": "default"}),
        "n1 has no route to 0.0.0.0/0",
        ("n1", "client", 0),
    ),
    "flushed nat table": (
        ("flush", "n1", {"table": "nat"}),
        "the table nat of n1 is empty",
        ("n1-p1", "client", 0),
    ),
    "everything flushed": (("flush", "n1", {}), "the packet filter of n1 is empty", ("n1-p1", "client", 0)),
}


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("labs")
    patch.setenv(registry.BASE_VARIABLE, str(path))
    yield path
    patch.undo()


@pytest.fixture(scope="module")
def lab(base: Path) -> Iterator[Lab]:
    with Lab("three-nodes", "flannel") as running:
        yield running


@pytest.fixture
def whole(lab: Lab) -> Iterator[Lab]:
    """The lab, which must be as the plan says when the test is over."""
    yield lab
    assert lab.status().faults == ()
    assert lab.verify() == []


def pod(name: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "x", "ports": [{"containerPort": 8080}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container], **spec}}


def works(lab: Lab, source: str, target: str, size: int, timeout: float) -> bool:
    return lab.probe(source, target, size=size, dont_fragment=size > 0, timeout=timeout).reached


def state(lab: Lab, place: str) -> list[str]:
    """All that a namespace's tools tell of it, as far as it does not count or time anything. Sorted: the chains of a
    table come in the order in which they were made, and `verify` compares the rules within each."""
    commands = "ip -o link; ip -o addr; ip route show table all; ip neigh show nud permanent; nft -s list ruleset"
    return sorted(lab.run(place, "sh", "-c", commands).stdout.splitlines())


@pytest.mark.parametrize("name", BREAKING)
def test_fault_breaks_what_it_says_until_it_is_mended(whole: Lab, name: str) -> None:
    (kind, target, fields), says, (source, end, size) = BREAKING[name]
    assert works(whole, source, end, size, PATIENT)
    before = {place: state(whole, place) for place in ("n1", "n2", "n1-p1", "n2-p1")}
    whole.fault(kind, target, **fields)
    assert whole.status().faults == (says,)
    assert whole.verify() == []
    assert not works(whole, source, end, size, SHORT)
    whole.fault(kind, target, mend=True)
    assert {place: state(whole, place) for place in before} == before
    assert works(whole, source, end, size, PATIENT)


def test_parameter_that_the_plan_does_not_set_gets_its_old_value_back(whole: Lab) -> None:
    path = "/proc/sys/net/ipv4/tcp_fin_timeout"
    before = whole.run("n1", "cat", path).stdout
    for value in (7, 8):
        whole.fault("sysctl", "n1", name="net/ipv4/tcp_fin_timeout", value=value)
        assert whole.run("n1", "cat", path).stdout == f"{value}\n"
    whole.fault("sysctl", "n1", mend=True)
    assert whole.run("n1", "cat", path).stdout == before


def test_changes_neither_mend_a_fault_nor_trip_over_it(whole: Lab) -> None:
    wishes: list[Wish] = [
        ("filter", "n2", {"at": "port", "protocol": "udp", "port": 8472}),
        ("mac", "n1", {"device": "flannel.1", "value": "02:00:00:00:00:99"}),
        ("route", "n2", {"destination": "10.244.1.0/24"}),
        ("flush", "n3", {}),
        ("mtu", "n1-p1", {"value": 1400}),
        ("hairpin", "n2-p1", {}),
    ]
    for kind, target, fields in wishes:
        whole.fault(kind, target, **fields)
    whole.apply(pod("meanwhile", nodeName="n2"), pod("elsewhere", nodeName="n3"))
    assert len(whole.status().faults) == len(wishes)
    assert whole.verify() == []
    assert not works(whole, "n1-p1", "meanwhile", 0, SHORT)
    whole.delete("pod", "elsewhere")
    for kind, target, _ in wishes:
        whole.fault(kind, target, mend=True)
    assert works(whole, "n1-p1", "meanwhile", 0, PATIENT)
    whole.delete("pod", "meanwhile")


def test_node_that_crashes_forgets_its_faults(whole: Lab) -> None:
    whole.fault("mtu", "n3", at="port", value=1400)
    whole.fault("sysctl", "n3", name="net/ipv4/ip_forward", value=0)
    whole.fault("filter", "n3-p1", at="input")
    whole.fault("filter", "n1", at="output", destination="n3")
    whole.fault("node-crash", "n3")
    assert whole.status().faults == ("node n3 is down", "to n3 is dropped in output of n1")
    with pytest.raises(UserError, match="node n3 is down"):
        whole.fault("mtu", "n3", value=1400)
    whole.fault("node-return", "n3")
    whole.fault("filter", "n1", mend=True)
    assert works(whole, "n1-p1", "n3-p1", 1422, PATIENT)


def test_deleted_pod_takes_its_faults_along(whole: Lab) -> None:
    whole.apply(pod("short-lived", nodeName="n1"))
    whole.fault("filter", "short-lived", at="input")
    whole.delete("pod", "short-lived")
    assert whole.status().faults == ()
    whole.apply(pod("short-lived", nodeName="n1"))
    assert works(whole, "n1-p1", "short-lived", 0, PATIENT)
    whole.delete("pod", "short-lived")


def test_mending_names_as_much_as_it_must(whole: Lab) -> None:
    for port in (8472, 4789):
        whole.fault("filter", "n1", at="output", protocol="udp", port=port)
    whole.fault("filter", "n1", at="forward", protocol="udp", port=8472)
    whole.fault("filter", "n1", mend=True, at="output", protocol="udp", port=8472)
    assert whole.status().faults == (
        "protocol udp, port 4789 is dropped in output of n1",
        "protocol udp, port 8472 is dropped in forward of n1",
    )
    whole.fault("filter", "n1", mend=True)


@pytest.mark.parametrize(
    ("kind", "target", "fields", "complaint"),
    [
        ("mtu", "n1", {"value": 67}, "value: must be a number of bytes between 68 and 65535"),
        ("mtu", "n1", {"value": "1400; reboot"}, "value: must be a number"),
        ("mtu", "n1", {}, "value: must be a number"),
        ("mtu", "n1", {"device": "flannel.1", "value": 1480}, "this fault cannot be: .*Invalid argument"),
        ("mtu", "n1", {"device": "eth7", "value": 1400}, "there is no device 'eth7' in n1"),
        ("mtu", "n1", {"device": "../eth0", "value": 1400}, "is no device name"),
        ("mtu", "n1", {"value": 1400, "table": "nat"}, "table: a fault of the kind mtu has no table"),
        ("mtu", "n1-p1", {"at": "port", "value": 1400}, "only machines are plugged into switches"),
        ("mac", "n1", {"value": "03:00:00:00:00:01"}, "no multicast address"),
        ("mac", "n1", {"value": "00:00:00:00:00:00"}, "not all zeros"),
        ("mac", "n1", {"value": "02:00:00:00:00:1"}, "must be a MAC"),
        ("sysctl", "n1", {"name": "kernel/hostname", "value": "x"}, "must be a parameter below net/"),
        ("sysctl", "n1", {"name": "net/../kernel/hostname", "value": "x"}, "must be a parameter below net/"),
        ("sysctl", "n1", {"name": "net/ipv4/ip_forward", "value": "1\n2"}, "value: must be a number, a word"),
        ("sysctl", "n1", {"name": "net/ipv4/nonesuch", "value": 1}, "this fault cannot be: .*No such file"),
        ("sysctl", "n1", {"name": "net/ipv6/conf/all/disable_ipv6", "value": 0}, "cannot be mended exactly"),
        ("filter", "n1", {}, "at: must be input or output or forward or port"),
        ("filter", "n1", {"at": "input", "protocol": "udp; flush ruleset"}, "protocol: must be"),
        ("filter", "n1", {"at": "input", "port": 80}, "port: needs a protocol that has ports"),
        ("filter", "n1", {"at": "input", "protocol": "tcp", "icmp_type": 3}, "icmpType: needs the protocol icmp"),
        ("filter", "n1", {"at": "input", "source": "} ; flush ruleset"}, "there is no pod or machine"),
        ("filter", "n1", {"at": "input", "source": "10.0.0.0/33"}, "source: must be a CIDR"),
        ("filter", "n1", {"at": "input", "source": "fd00::1", "destination": "n2"}, "no common address family"),
        ("filter", "n1", {"at": "input", "device": "eth0"}, "only says which cable's port"),
        ("route", "n1", {"destination": "10.99.0.0/16"}, "n1 has no route to 10.99.0.0/16"),
        ("route", "n1", {"destination": "10.244.2.7/24"}, "destination: must be a CIDR"),
        ("flush", "n1", {"table": "nonesuch"}, "n1 has no nonesuch to flush"),
        ("flush", "n1", {"table": "nat }"}, "table: must be an iptables table"),
        ("flush", "n1-p1", {}, "is a pod, whose packet filter is empty"),
        ("link-down", "n1", {"mend": True}, "link-up mends link-down"),
        ("mtu", "192.168.50.11", {"value": 1400}, "faults strike machines and pods"),
    ],
)
def test_fault_that_cannot_be_is_refused_and_changes_nothing(
    whole: Lab, kind: str, target: str, fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        whole.fault(kind, target, **fields)


def test_mending_what_is_not_broken_is_refused(whole: Lab) -> None:
    whole.fault("mtu", "n1", value=1400)
    for kind, target in (("mtu", "n2"), ("mac", "n1")):
        with pytest.raises(NotFound, match="like that is in force"):
            whole.fault(kind, target, mend=True)
    whole.fault("mtu", "n1", mend=True)


@pytest.mark.parametrize("proxy", ["iptables", "nftables"])
def test_flushing_a_node_takes_its_services_away_until_it_is_mended(base: Path, proxy: str) -> None:
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}], "clusterIP": "10.96.0.77"}
    with Lab("three-nodes", f"flannel+{proxy}") as lab:
        web = pod("web", nodeName="n2")
        web["metadata"]["labels"] = {"app": "web"}
        lab.apply(web, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service})
        for table in ("nat", "") if proxy == "iptables" else ("kube-proxy", ""):
            assert lab.probe("n1-p1", "10.96.0.77", 80, timeout=PATIENT).reached
            lab.fault("flush", "n1", table=table)
            assert not lab.probe("n1-p1", "10.96.0.77", 80, timeout=SHORT).reached
            assert lab.probe("n3-p1", "10.96.0.77", 80, timeout=PATIENT).reached
            assert lab.verify() == []
            lab.fault("flush", "n1", mend=True)
        assert lab.probe("n1-p1", "10.96.0.77", 80, timeout=PATIENT).reached
        assert lab.verify() == []


@pytest.mark.requires("bird")
def test_route_that_a_daemon_brings_cannot_be_taken_away(base: Path) -> None:
    with Lab("three-nodes", "calico") as calico:
        learned = "10.244.0.64/26"
        assert any(isinstance(item, Route) and item.learned and item.destination == learned for item in calico.plan())
        with pytest.raises(UserError, match="brought by a routing daemon"):
            calico.fault("route", "n1", destination=learned)
        assert calico.status().faults == ()
