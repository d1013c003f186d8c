"""Cluster DNS in running labs, asked by ``dig`` and by glibc from inside pods, through the Service or a pod itself."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator import Lab
from emulator.capture.decode import decode
from emulator.kernel import registry

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec", "dig")

TOPOLOGY = Path(__file__).parent / "topologies" / "dns.yaml"
DNS = "10.96.0.10"


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("labs")
    patch.setenv(registry.BASE_VARIABLE, str(path))
    yield path
    patch.undo()


def service(name: str, ports: list[dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80}] if ports is None else ports
    wanted = {"selector": {"app": "p"}, **({"ports": ports} if ports else {}), **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": wanted}


def workload(name: str, replicas: int) -> dict[str, Any]:
    container = {"name": "c", "image": "x", "ports": [{"name": "sql", "containerPort": 5432}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
        },
    }


@pytest.fixture(scope="module")
def lab(base: Path) -> Iterator[Lab]:
    objects = [
        service("web", [{"name": "http", "port": 80}, {"name": "stats", "port": 9100, "protocol": "UDP"}]),
        service("db", [{"name": "sql", "port": 5432}], clusterIP="None", selector={"app": "db"}),
        service("asleep", clusterIP="None", selector={"app": "nobody"}),
        {**service("outside", []), "spec": {"type": "ExternalName", "externalName": "www.example.com"}},
        {**service("inside", []), "spec": {"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}},
        workload("db", 2),
    ]
    with Lab(TOPOLOGY, "flannel", objects) as running:
        yield running


def dig(lab: Lab, *question: str, pod: str = "n1-p1") -> list[str]:
    """The answer's lines, each without its blanks' number; the last is the status, flags and sizes of sections."""
    done = lab.run(pod, "dig", "+tries=1", "+time=3", "+nocookie", "+noall", "+answer", "+comments", *question)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line and not line.startswith(";")]
    said = re.search(r"status: (\w+),.*\n;; flags: ([a-z ]+);", done.stdout)
    assert said is not None, done.stdout
    return [*lines, f"{said[1]} {said[2]}"]


def short(lab: Lab, *question: str, pod: str = "n1-p1") -> list[str]:
    done = lab.run(pod, "dig", "+tries=1", "+time=3", "+short", *question)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(done.stdout.split("\n")[:-1])


def addresses(lab: Lab, app: str) -> list[str]:
    return sorted(pod.addresses[0] for pod in lab.cluster().pods if pod.labels.get("app") == app)


def address_of(lab: Lab, name: str) -> str:
    return next(one.cluster_ips[0] for one in lab.cluster().services if one.name == name)


def coredns(lab: Lab) -> list[Any]:
    return [pod for pod in lab.cluster().pods if pod.labels.get("k8s-app") == "kube-dns"]


# Every record, every denial, from a pod through the Service


def test_services_and_their_ports(lab: Lab) -> None:
    web = address_of(lab, "web")
    assert dig(lab, "web.default.svc.cluster.local") == [
        f"web.default.svc.cluster.local. 30 IN A {web}",
        "NOERROR qr aa rd",
    ]
    assert dig(lab, "WEB.Default.svc.cluster.local")[0] == f"WEB.Default.svc.cluster.local. 30 IN A {web}"
    assert dig(lab, "-tAAAA", "web.default.svc.cluster.local") == ["NOERROR qr aa rd"]
    assert short(lab, "SRV", "_http._tcp.web.default.svc.cluster.local") == ["0 100 80 web.default.svc.cluster.local."]
    assert short(lab, "SRV", "_stats._udp.web.default.svc.cluster.local") == [
        "0 100 9100 web.default.svc.cluster.local."
    ]
    assert dig(lab, "-x", web)[0].endswith("IN PTR web.default.svc.cluster.local.")
    whole = lab.run("n1-p1", "dig", "+noall", "+additional", "SRV", "_http._tcp.web.default.svc.cluster.local").stdout
    assert f"IN\tA\t{web}" in whole


def test_headless_services(lab: Lab) -> None:
    assert short(lab, "db.default.svc.cluster.local") == addresses(lab, "db")
    (first,) = short(lab, "db-0.db.default.svc.cluster.local")
    assert first in addresses(lab, "db")
    assert short(lab, "SRV", "_sql._tcp.db.default.svc.cluster.local") == [
        "0 50 5432 db-0.db.default.svc.cluster.local.",
        "0 50 5432 db-1.db.default.svc.cluster.local.",
    ]
    assert short(lab, "-x", first) == ["db-0.db.default.svc.cluster.local."]
    assert dig(lab, "asleep.default.svc.cluster.local") == ["NXDOMAIN qr aa rd"]


def test_what_is_there_without_data_and_what_is_not(lab: Lab) -> None:
    for name in ("default.svc.cluster.local", "svc.cluster.local", "cluster.local"):
        assert dig(lab, name) == ["NOERROR qr aa rd"], name
    for name in ("nobody.default.svc.cluster.local", "nowhere.svc.cluster.local", "db-9.db.default.svc.cluster.local"):
        assert dig(lab, name) == ["NXDOMAIN qr aa rd"], name
    soa = lab.run("n1-p1", "dig", "+noall", "+authority", "nobody.default.svc.cluster.local").stdout.split()
    assert soa[:6] == ["cluster.local.", "30", "IN", "SOA", "ns.dns.cluster.local.", "hostmaster.cluster.local."]
    assert soa[7:] == ["7200", "1800", "86400", "30"]


def test_the_zone_itself_pods_and_the_version(lab: Lab) -> None:
    assert short(lab, "NS", "cluster.local") == ["kube-dns.kube-system.svc.cluster.local."]
    assert short(lab, "TXT", "dns-version.cluster.local") == ['"1.1.0"']
    assert short(lab, "10-9-8-7.default.pod.cluster.local") == ["10.9.8.7"]
    assert short(lab, "kubernetes.default.svc.cluster.local") == ["10.96.0.1"]
    assert dig(lab, "CH", "TXT", "version.bind")[-1].startswith("REFUSED")


def test_aliases_lead_inside_and_outside(lab: Lab) -> None:
    web = address_of(lab, "web")
    assert dig(lab, "inside.default.svc.cluster.local")[:-1] == [
        "inside.default.svc.cluster.local. 30 IN CNAME web.default.svc.cluster.local.",
        f"web.default.svc.cluster.local. 30 IN A {web}",
    ]
    outside = dig(lab, "outside.default.svc.cluster.local")
    assert outside[0] == "outside.default.svc.cluster.local. 30 IN CNAME www.example.com."
    assert outside[1] == "www.example.com. 30 IN CNAME example.com."
    assert sorted(outside[2:-1]) == ["example.com. 30 IN A 203.0.113.80", "example.com. 30 IN A 203.0.113.81"]


def test_foreign_names_come_from_the_resolver_outside(lab: Lab) -> None:
    assert dig(lab, "client.example") == ["client.example. 30 IN A 203.0.113.101", "NOERROR qr rd ra"]
    assert dig(lab, "nobody.example") == ["NXDOMAIN qr rd ra"]
    assert short(lab, "-x", "203.0.113.80") == ["example.com."]  # the reverse zones fall through
    assert dig(lab, "+tcp", "client.example")[0].endswith("A 203.0.113.101")


def test_the_question_travels_to_the_resolver_as_a_packet_of_the_coredns_pod(lab: Lab) -> None:
    with lab.capture("client") as capture:
        short(lab, "-tMX", f"fresh-{random.randrange(10**6)}.example")
    packets = [decode(event.frame, event.length) for event in capture.events()]
    sources = {packet.source for packet in packets if packet.target_port == 53}
    nodes = {address for node in lab.cluster().nodes for address in node.addresses}
    pods = {pod.addresses[0] for pod in coredns(lab)}
    assert sources, "no question was seen at the resolver"
    assert sources <= nodes | pods


def test_large_answers_come_over_tcp(lab: Lab) -> None:
    many = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "many", "namespace": "default", "labels": {"kubernetes.io/service-name": "many"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80}],
        "endpoints": [{"addresses": [f"10.50.0.{n}"]} for n in range(1, 101)],
    }
    headless = service("many", clusterIP="None")
    del headless["spec"]["selector"]
    lab.apply(headless, many)
    name = "many.default.svc.cluster.local"
    cut = dig(lab, "+ignore", "+noedns", name)
    assert " tc" in cut[-1]
    assert 20 < len(cut) < 32
    whole = lab.run("n1-p1", "dig", "+noedns", name).stdout
    assert "(TCP)" in whole
    assert len(short(lab, "+noedns", name)) == 100
    assert len(short(lab, "+bufsize=4096", name)) == 100
    lab.delete("service", "many")


# Pods' own programs


def test_resolv_conf_of_pods_and_nodes(lab: Lab) -> None:
    assert lab.run("n1-p1", "cat", "/etc/resolv.conf").stdout == (
        "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    )
    assert lab.run("n1", "cat", "/etc/resolv.conf").stdout == "nameserver 203.0.113.101\n"


@pytest.mark.parametrize(
    "name", ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "kube-dns.kube-system"]
)
def test_glibc_finds_services_by_each_of_their_names(lab: Lab, name: str) -> None:
    found = lab.run("n2-p1", "getent", "ahostsv4", name)
    wanted = DNS if name.startswith("kube-dns") else address_of(lab, "web")
    assert found.stdout.split()[:1] == [wanted]


def test_a_pod_can_have_a_dns_policy_and_config(lab: Lab) -> None:
    spec: dict[str, Any] = {
        "containers": [{"name": "c", "image": "x"}],
        "dnsPolicy": "None",
        "dnsConfig": {
            "nameservers": ["203.0.113.101"],
            "searches": ["example"],
            "options": [{"name": "ndots", "value": "2"}],
        },
    }
    lab.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loner"}, "spec": spec})
    assert (
        lab.run("loner", "cat", "/etc/resolv.conf").stdout
        == "search example\nnameserver 203.0.113.101\noptions ndots:2\n"
    )
    assert lab.run("loner", "getent", "ahostsv4", "client").stdout.split()[:1] == ["203.0.113.101"]
    assert lab.run("loner", "getent", "ahostsv4", "web").returncode == 2
    lab.delete("pod", "loner")


# Changes


def test_a_change_is_in_the_very_next_answer(lab: Lab) -> None:
    for count in (1, 3, 2):
        lab.apply(workload("db", count))
        assert short(lab, "db.default.svc.cluster.local") == addresses(lab, "db")
        assert len(addresses(lab, "db")) == count
    lab.apply(service("late"))
    assert short(lab, "late.default.svc.cluster.local") == [address_of(lab, "late")]
    lab.delete("service", "late")
    assert dig(lab, "late.default.svc.cluster.local") == ["NXDOMAIN qr aa rd"]


def test_the_order_of_addresses_changes(lab: Lab) -> None:
    questions = [word for _ in range(30) for word in ("db.default.svc.cluster.local",)]
    done = lab.run("n1-p1", "dig", "+short", *questions).stdout.split()
    pairs = {tuple(done[start : start + 2]) for start in range(0, len(done), 2)}
    assert len(pairs) == 2


def test_coredns_pods_come_and_go(lab: Lab) -> None:
    old = {pod.name for pod in coredns(lab)}
    victim = coredns(lab)[0]
    lab.delete("pod", victim.name, "kube-system")
    now = coredns(lab)
    assert len(now) == 2
    assert {pod.name for pod in now} != old
    for pod in now:
        assert short(lab, f"@{pod.addresses[0]}", "web.default.svc.cluster.local") == [address_of(lab, "web")]
    assert short(lab, "web.default.svc.cluster.local") == [address_of(lab, "web")]


def test_a_crashed_node_takes_its_server_along_and_brings_it_back(lab: Lab) -> None:
    (there,) = [pod for pod in coredns(lab) if pod.node == "n2"]
    lab.fault("node-crash", "n2")
    try:
        gone = lab.run("n1-p1", "dig", f"@{there.addresses[0]}", "+tries=1", "+time=1", "web.default.svc.cluster.local")
        assert gone.returncode == 9  # no reply
        (other,) = [pod for pod in coredns(lab) if pod.node == "n1"]
        assert short(lab, f"@{other.addresses[0]}", "web.default.svc.cluster.local") == [address_of(lab, "web")]
    finally:
        lab.fault("node-return", "n2")
    assert short(lab, f"@{there.addresses[0]}", "web.default.svc.cluster.local") == [address_of(lab, "web")]


# Trouble


def test_hostile_packets_do_not_disturb_it(lab: Lab, tmp_path: Path) -> None:
    server = coredns(lab)[0].addresses[0]
    script = f"""
import random, socket
random.seed(7)
good = bytes.fromhex("1234010000010000000000000377656207646566617570740373766307636c7573746572056c6f63616c0000010001")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(3000):
    data = bytearray(good if random.random() < 0.7 else random.randbytes(random.randrange(0, 600)))
    for _ in range(random.randrange(8)):
        if data:
            data[random.randrange(len(data))] = random.randrange(256)
    udp.sendto(bytes(data[: random.randrange(len(data) + 1)]), ({server!r}, 53))
for _ in range(40):
    tcp = socket.create_connection(({server!r}, 53), 2)
    tcp.send(random.choice([b"", b"\\x00", b"\\xff\\xff", b"\\x00\\x00" * 50, random.randbytes(5000)]))
    if random.random() < 0.5:
        tcp.close()
"""
    program = tmp_path / "hostile.py"
    program.write_text(script)
    done = lab.run("n1-p1", "python3", str(program), timeout=60)
    assert done.returncode == 0, done.stderr
    assert short(lab, f"@{server}", "web.default.svc.cluster.local") == [address_of(lab, "web")]
    assert short(lab, f"@{server}", "+tcp", "web.default.svc.cluster.local") == [address_of(lab, "web")]


def test_a_silent_resolver_is_a_server_failure(lab: Lab) -> None:
    lab.fault("link-down", "client")
    try:
        began = time.monotonic()
        done = lab.run(
            "n1-p1",
            "dig",
            f"@{coredns(lab)[0].addresses[0]}",
            "+tries=1",
            "+time=9",
            f"x{int(began)}.example",
        )
        assert "status: SERVFAIL" in done.stdout
        assert 4.0 < time.monotonic() - began < 8.5
    finally:
        lab.fault("link-up", "client")


def test_what_stands_in_says_so(lab: Lab) -> None:
    assert "cnilab" in lab.status().choices["dns"]
    (deployment,) = lab.get("deployment", "coredns", "kube-system")
    (kube_dns,) = lab.get("service", "kube-dns", "kube-system")
    for thing in (deployment, kube_dns, *lab.get("pod", namespace="kube-system")):
        assert "cnilab" in thing["metadata"]["annotations"]["cnilab.dev/stand-in"]
    assert {
        pod["metadata"]["annotations"]["cnilab.dev/served-by"] for pod in lab.get("pod", namespace="kube-system")
    } == {"cnilab, in CoreDNS' place"}


def test_without_services_there_is_no_dns(base: Path) -> None:
    with Lab("single-node", "flannel") as quiet:
        assert not coredns(quiet)
        assert quiet.run("n1-p1", "cat", "/etc/resolv.conf").stdout == (
            "search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        )
        # A program that runs already learns of the server when there is one
        command = [
            "sh",
            "-c",
            "while ! grep -q nameserver /etc/resolv.conf; do sleep 0.1; done; cat /etc/resolv.conf; sleep 99",
        ]
        pod = {"name": "c", "image": "x", "command": command}
        quiet.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "early"}, "spec": {"containers": [pod]}})
        quiet.apply(service("web"))
        deadline = time.monotonic() + 10
        while "nameserver 10.96.0.10" not in (said := "".join(quiet.logs("early").values())):
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        # Without a resolver outside, foreign names are refused at once
        assert dig(quiet, "www.example.com")[-1].startswith("REFUSED")


def test_dns_can_be_there_at_once_or_never(base: Path) -> None:
    with Lab("single-node", "flannel", dns="on") as early:
        assert len(coredns(early)) == 2
        assert short(early, "kubernetes.default.svc.cluster.local") == ["10.96.0.1"]
    with Lab("single-node", "flannel", [service("web")], dns="off") as without:
        assert not coredns(without)
        assert [one.name for one in without.cluster().services] == ["web", "kubernetes"]
        assert "nameserver" not in without.run("n1-p1", "cat", "/etc/resolv.conf").stdout


def test_machinery_and_pods_resolve_alike(lab: Lab) -> None:
    """What ``emulator.dns.resolver`` finds from within a pod is what glibc finds there."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from emulator.dns.resolver import resolve; from emulator.dns.resolv_conf import parse;"
        "conf = parse(open('/etc/resolv.conf').read());"
        "print(*[resolve(name, '/proc/self/ns/net', conf).addresses for name in sys.argv[2:]], sep='\\n')"
    )
    names = ["web", "www.example.com.", "client.example", "nobody.example", "db-0.db"]
    root = str(Path(__file__).parents[2])
    done = lab.run("n1-p1", sys.executable, "-c", code, root, *names)
    assert done.returncode == 0, done.stderr
    ours = [sorted(re.findall(r"[0-9]+\.[0-9.]+", line)) for line in done.stdout.splitlines()]
    theirs = [
        sorted({line.split()[0] for line in lab.run("n1-p1", "getent", "ahostsv4", name).stdout.splitlines()})
        for name in names
    ]
    assert ours == theirs
    assert [len(found) for found in ours] == [1, 2, 1, 0, 1]
