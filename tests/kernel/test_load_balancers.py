"""Load balancers in running labs: who answers for an address, which node a packet enters by, whose address arrives, and
what the death of a node or a speaker costs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emulator import Lab
from emulator.kernel import registry
from emulator.lab.records import ProbeRequest
from tests.kernel.balanced import TOPOLOGIES, pod
from tests.kernel.waiting import eventually

pytestmark = pytest.mark.requires("netns", "veth", "vxlan", "ip", "mnexec")

DUAL_STACK = """
name: metallb-dual-stack
podCIDRs: [10.244.0.0/16, "fd00:10:244::/56"]
serviceCIDRs: [10.96.0.0/12, "fd00:10:96::/112"]
switches:
  - {name: s1, cidrs: [192.168.50.0/24, "fd00:192:168:50::/64"]}
  - {name: s2, cidrs: [203.0.113.0/24, "2001:db8:113::/64"]}
nodes: [{name: n1, switch: s1}, {name: n2, switch: s1}]
routers: [{name: tor, switch: s1}]
hosts: [{name: client, switch: s2}]
links: [{from: tor, to: s2}]
loadBalancer: {kind: metallb-l2, addresses: [192.168.50.200/30, "fd00:192:168:50::200/126"]}
"""
ASK = """
import json, sys, urllib.request, urllib.error
try:
    found = urllib.request.urlopen(sys.argv[1], timeout=3)
except urllib.error.HTTPError as error:
    found = error
print(json.dumps([found.status, dict(found.headers), found.read().decode()]))
"""


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    path = tmp_path_factory.mktemp("labs")
    patch.setenv(registry.BASE_VARIABLE, str(path))
    yield path
    patch.undo()


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    ports = [
        {"name": "tcp", "port": 80, "targetPort": 8080},
        {"name": "udp", "port": 80, "targetPort": 8080, "protocol": "UDP"},
    ]
    body = {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def lab(name: str, style: str) -> Lab:
    return Lab(str(TOPOLOGIES / f"{name}.yaml"), style)


def mac(running: Lab, node: str) -> str:
    (found,) = (one.interfaces[0].mac for one in running.cluster().topology.machines if one.name == node)
    return found


def believed(running: Lab, address: str) -> str:
    """The MAC that the router sends packets for ``address`` to."""
    words = running.run("tor", "ip", "neigh", "show", address).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def address_of(running: Lab, name: str) -> str:
    (found,) = running.get("services", name)
    return str(found["status"]["loadBalancer"]["ingress"][0]["ip"])


def asked(running: Lab, name: str, count: int = 1, **options: Any) -> Any:
    return running.probe("client", f"lb/{name}", protocol="tcp", port=80, count=count, **options).result


@pytest.mark.parametrize("style", ["flannel", "calico", "flannel+nftables"])
def test_one_node_answers_arp_and_the_endpoint_sees_whom_the_policy_lets_it(style: str) -> None:
    with lab("metallb-l2", style) as running:
        running.apply(pod("p", "n2"), service(), service("local", externalTrafficPolicy="Local"))
        result = asked(running, "web")
        assert (result.verdict, result.answered_by) == ("delivered", "p")
        assert result.source_seen.rpartition(":")[0] != "203.0.113.10"
        assert believed(running, "192.168.50.200") == mac(running, "n1")
        kept = asked(running, "local")
        assert kept.source_seen.rpartition(":")[0] == "203.0.113.10"
        assert believed(running, "192.168.50.201") == mac(running, "n2")
        assert "192.168.50.20" not in running.run("n1", "ip", "address").stdout, "the address is on no device"
        assert running.verify() == []


@pytest.mark.parametrize("style", ["flannel", "calico"])
def test_a_speaker_that_dies_is_succeeded_and_requests_are_lost_meanwhile(style: str) -> None:
    with lab("metallb-l2", style) as running:
        running.apply(pod("p", "n2"), service())
        asked(running, "web")
        request = ProbeRequest(source="client", target="lb/web", port=80, protocol="udp", timeout=0.5)
        with running.stream(request, rate=50) as stream:
            running.fault("node-crash", "n1")
            eventually(lambda: believed(running, "192.168.50.200") == mac(running, "n2"))
            time.sleep(0.5)
        report = stream.result
        assert report.lost, "the first node took requests along"
        assert max(window.milliseconds for window in report.lost) > 3000, "memberlist is not that quick"
        assert report.lost[-1].last < report.sent - 1, "the successor answers"
        running.fault("node-return", "n1")
        eventually(lambda: believed(running, "192.168.50.200") == mac(running, "n1"))


def test_an_orderly_end_is_told_and_the_address_moves_at_once() -> None:
    with lab("metallb-l2", "flannel") as running:
        running.apply(pod("p", "n2"), service(externalTrafficPolicy="Local"))
        assert asked(running, "web").verdict == "delivered"
        assert believed(running, "192.168.50.200") == mac(running, "n2")
        running.apply(pod("q", "n3"))
        running.delete("pod", "p")
        eventually(lambda: believed(running, "192.168.50.200") == mac(running, "n3"))
        assert asked(running, "web").answered_by == "q"
        running.delete("pod", "q")
        told = running.logs("node/n3", "speaker")["node/n3/speaker"]
        assert "192.168.50.200 is no longer ours" in told


@pytest.mark.parametrize("style", ["flannel", "calico"])
def test_ndp_is_answered_as_arp_is(style: str, tmp_path: Path) -> None:
    path = tmp_path / "dual.yaml"
    path.write_text(DUAL_STACK)
    with Lab(str(path), style) as running:
        running.apply(pod("p", "n2"), service(ipFamilyPolicy="RequireDualStack", externalTrafficPolicy="Local"))
        (found,) = running.get("services", "web")
        addresses = [one["ip"] for one in found["status"]["loadBalancer"]["ingress"]]
        assert addresses == ["192.168.50.200", "fd00:192:168:50::200"]
        for address, family in zip(addresses, (4, 6), strict=True):
            result = asked(running, "web", family=family)
            assert result.verdict == "delivered", family
            assert believed(running, address) == mac(running, "n2")


@pytest.mark.requires("bird")
@pytest.mark.parametrize("style", ["flannel", "flannel+nftables"])
def test_a_router_spreads_connections_over_the_nodes_that_announce(style: str) -> None:
    with lab("metallb-bgp", style) as running:
        running.apply(pod("p", "n1"), pod("q", "n3"), service(), service("local", externalTrafficPolicy="Local"))
        everywhere = asked(running, "web", count=60)
        assert everywhere.received == 60
        entered = {source for source in everywhere.sources if not source.endswith(".1")}
        assert len(everywhere.sources) >= 3, entered
        local = asked(running, "local", count=60)
        assert (local.received, set(local.answers), set(local.sources)) == (60, {"p", "q"}, {"203.0.113.10"})
        running.delete("pod", "q")

        def told() -> list[str]:
            return [str(route) for route in running.routes("tor") if route.destination == "198.51.100.1/32"]

        eventually(lambda: told() == ["198.51.100.1/32 via 192.168.50.11 dev eth0 proto bird"])
        alone = asked(running, "local", count=20)
        assert (alone.received, set(alone.answers)) == (20, {"p"})
        assert running.verify() == []


@pytest.mark.requires("bird")
def test_calico_announces_services_and_its_nodes_kernels_get_none_of_it() -> None:
    api = "projectcalico.org/v3"
    spec = {"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}], "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/28"}]}
    peer = {"peerIP": "192.168.50.1", "asNumber": 64512}
    with lab("metallb-bgp", "calico") as running:
        running.apply(
            {"apiVersion": api, "kind": "BGPConfiguration", "metadata": {"name": "default"}, "spec": spec},
            {"apiVersion": api, "kind": "BGPPeer", "metadata": {"name": "t"}, "spec": peer},
            pod("p", "n1"),
            pod("q", "n3"),
            service(),
            service("local", externalTrafficPolicy="Local"),
        )  # fmt: skip
        assert any("MetalLB only hands out addresses" in notice for notice in running.status().notices)
        local = asked(running, "local", count=40)
        assert (local.received, set(local.answers), set(local.sources)) == (40, {"p", "q"}, {"203.0.113.10"})
        inside = running.probe("client", "service/web", protocol="tcp", port=80, count=10).result
        assert inside.received == 10, "the cluster IPs are announced, too"
        for node in ("n1", "n2", "n3"):
            assert not [route for route in running.routes(node) if route.destination.startswith(("198.", "10.96."))]
        assert running.verify() == []


@pytest.mark.requires("nft-program", "nft-nat")
@pytest.mark.parametrize("style", ["flannel", "calico", "flannel+nftables"])
def test_a_cloud_balances_as_itself_and_heeds_health_checks(style: str) -> None:
    with lab("cloud", style) as running:
        running.apply(pod("p", "n2"), service(), service("local", externalTrafficPolicy="Local"))
        through = asked(running, "local", count=10)
        assert (through.received, set(through.sources)) == (10, {"192.168.50.1"})
        assert asked(running, "web", count=30).received == 30
        running.apply(pod("q", "n3"))
        running.delete("pod", "p")
        eventually(lambda: asked(running, "local", count=10, timeout=0.2).answers == {"q": 10})
        assert running.verify() == []


@pytest.mark.requires("nft-program", "nft-nat")
@pytest.mark.parametrize("style", ["flannel", "calico"])
def test_a_cloud_that_passes_packets_through_keeps_both_addresses(style: str) -> None:
    with lab("cloud-passthrough", style) as running:
        running.apply(
            pod("p", "n1"), pod("q", "n3"), service(externalTrafficPolicy="Local", allocateLoadBalancerNodePorts=False)
        )
        result = asked(running, "web", count=40)
        assert (result.received, set(result.answers), set(result.sources)) == (40, {"p", "q"}, {"203.0.113.10"})
        assert running.verify() == []


@pytest.mark.parametrize("style", ["flannel", "calico+nftables"])
def test_health_check_ports_answer_by_the_state_of_the_moment(style: str) -> None:
    with lab("metallb-l2", style) as running:
        running.apply(pod("p", "n2"), service(externalTrafficPolicy="Local", healthCheckNodePort=30100))

        def health(node: int, path: str = "/") -> tuple[int, dict[str, str], dict[str, Any]]:
            url = f"http://192.168.50.1{node}:30100{path}"
            status, headers, body = json.loads(running.run("client", "python3", "-c", ASK, url).stdout)
            return status, headers, json.loads(body)

        status, headers, body = health(2)
        assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (200, "1")
        assert headers["Content-Type"] == "application/json"
        expected = {"namespace": "default", "name": "web"}
        assert body == {"service": expected, "localEndpoints": 1, "serviceProxyHealthy": True}
        status, headers, body = health(1, "/any/path")
        assert (status, headers["X-Load-Balancing-Endpoint-Weight"], body["localEndpoints"]) == (503, "0", 0)
        running.ready("p", value=False)
        assert health(2)[0] == 503
        running.ready("p")
        assert health(2)[0] == 200
        running.apply(pod("q", "n2"), pod("r", "n1"))
        assert (health(2)[2]["localEndpoints"], health(1)[0]) == (2, 200)
        running.fault("node-crash", "n2")
        running.fault("node-return", "n2")
        eventually(lambda: health(2)[0] == 200)
        running.delete("service", "web")
        refused = running.probe("client", "n2", protocol="tcp", port=30100).result
        assert refused.verdict == "refused"


def test_who_gets_no_address_is_pending_and_a_warning_says_why() -> None:
    with lab("metallb-l2", "flannel") as running:
        running.apply(service(loadBalancerIP="10.0.0.1"))
        (found,) = running.get("services", "web")
        assert found["status"] == {"loadBalancer": {}}
        assert any("Service default/web is pending: 10.0.0.1 is not in" in line for line in running.warnings)
