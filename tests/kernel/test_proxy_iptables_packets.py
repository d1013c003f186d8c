"""kube-proxy's iptables rules move packets as a node's do: who answers, which source it sees, refusal or silence."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from emulator.cluster.services import Endpoint, EndpointPort, EndpointSlice, Ingress, ServicePort
from emulator.kernel.netns import netns_path
from emulator.kernel.syscalls import inside
from emulator.proxy import iptables
from tests.golden.service_constructs import HTTP, NODE_PORT, backends, on, service, six
from tests.kernel.service_site import (
    CLIENT,
    CLIENT_ADDRESS,
    GATEWAY,
    HERE,
    NODE,
    NODE_ADDRESS,
    ONE,
    OTHER_NODE_ADDRESS,
    SERVED,
    STRANGER,
    Site,
    ask,
    built,
)

BACKENDS = [
    pytest.param("nf_tables", marks=pytest.mark.requires("iptables-nft")),
    pytest.param("legacy", marks=pytest.mark.requires("iptables-legacy")),
]
pytestmark = [pytest.mark.sandbox, pytest.mark.parametrize("backend", BACKENDS)]


@pytest.fixture
def site(backend: Any) -> Iterator[Site]:
    with built(iptables) as made:
        made.applier.rulesets._wanted = backend
        yield made


def rules(backend: str, *words: str) -> None:
    with inside(netns_path(NODE)):
        subprocess.run((f"iptables-{'nft' if backend == 'nf_tables' else 'legacy'}", *words), check=True, timeout=20)


def test_cluster_ip_is_shared_out_and_masqueraded_for_clients_that_are_no_pods(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))

    answers = Counter(ask(CLIENT, "10.96.0.41") for _ in range(40))

    assert set(answers) == {f"one {GATEWAY}", f"two {GATEWAY}"}
    assert min(answers.values()) >= 5  # 40 throws of a coin


def test_pods_keep_their_address_except_towards_themselves(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))

    assert {ask(ONE, "10.96.0.41") for _ in range(30)} == {f"one {GATEWAY}", "two 10.244.0.2"}


def test_masquerade_all_hides_pods_too(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), HERE[1]),), masquerade_all=True)

    assert ask(ONE, "10.96.0.41") == f"two {GATEWAY}"


def test_service_without_endpoints_is_refused_and_what_no_rule_knows_is_left_alone(site: Site) -> None:
    empty = service("empty", cluster_ips=("10.96.0.42",))
    site.serve(service(), empty, slices=(backends(service(), *HERE),))

    assert ask(CLIENT, "10.96.0.42") == "refused"
    assert ask(NODE, "10.96.0.42") == "refused"
    assert ask(CLIENT, "10.96.0.41", 81) == "silence"  # an undefined port: routed on, to wherever
    assert ask(CLIENT, "10.96.0.99") == "silence"
    assert ask(NODE, "10.96.0.41").split()[0] in {"one", "two"}


def test_node_ports_serve_on_every_address_of_the_node_and_on_localhost(site: Site) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,))
    site.serve(made, slices=(backends(made, HERE[0]),))

    assert ask(CLIENT, NODE_ADDRESS, 30080) == f"one {GATEWAY}"
    assert ask(CLIENT, OTHER_NODE_ADDRESS, 30080) == f"one {GATEWAY}"
    assert ask(NODE, "127.0.0.1", 30080) == f"one {GATEWAY}"


def test_node_ports_serve_where_they_are_told_to(site: Site) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,))
    site.serve(made, slices=(backends(made, HERE[0]),), node_port_cidrs=("primary",))

    assert ask(CLIENT, NODE_ADDRESS, 30080) == f"one {GATEWAY}"
    assert ask(CLIENT, OTHER_NODE_ADDRESS, 30080) == "refused"
    assert ask(NODE, "127.0.0.1", 30080) == "refused"


def test_node_port_without_endpoints_is_refused(site: Site) -> None:
    site.serve(service(type="NodePort", ports=(NODE_PORT,)), slices=())

    assert ask(CLIENT, NODE_ADDRESS, 30080) == "refused"


def test_external_policy_local_keeps_the_source_or_is_silent(site: Site) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,), external_policy="Local")
    site.serve(made, slices=(backends(made, HERE[0], on("n2", 9)),))
    assert {ask(CLIENT, NODE_ADDRESS, 30080) for _ in range(10)} == {f"one {CLIENT_ADDRESS}"}

    site.serve(made, slices=(backends(made, on("n2", 9)),))
    assert ask(CLIENT, NODE_ADDRESS, 30080) == "silence"


def test_pods_and_the_node_are_not_bound_by_external_policy_local(site: Site) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,), external_policy="Local")
    elsewhere = backends(made, Endpoint("10.244.0.3", node="n2"))  # by the records: the second backend stands for it
    site.serve(made, slices=(elsewhere,))

    assert ask(ONE, NODE_ADDRESS, 30080) == "two 10.244.0.2"
    assert ask(NODE, NODE_ADDRESS, 30080) == f"two {GATEWAY}"
    assert ask(CLIENT, NODE_ADDRESS, 30080) == "silence"


def test_internal_policy_local_uses_this_node_only_or_is_silent(site: Site) -> None:
    made = service(internal_policy="Local")
    site.serve(made, slices=(backends(made, HERE[0], on("n2", 9)),))
    assert {ask(CLIENT, "10.96.0.41") for _ in range(10)} == {f"one {GATEWAY}"}

    site.serve(made, slices=(backends(made, on("n2", 9)),))
    assert ask(CLIENT, "10.96.0.41") == "silence"


def test_affinity_keeps_a_client_with_its_endpoint_until_it_expires(site: Site) -> None:
    made = service(affinity=1)
    site.serve(made, slices=(backends(made, *HERE),))

    first = ask(CLIENT, "10.96.0.41")
    assert [ask(CLIENT, "10.96.0.41") for _ in range(15)] == [first] * 15

    seen = {first}
    for _ in range(12):  # each waits until its endpoint has forgotten it: one in 2048 sees the same all the time
        time.sleep(2.1)  # whole seconds count
        seen.add(ask(CLIENT, "10.96.0.41"))
        if len(seen) == 2:
            break
    assert len(seen) == 2


def test_load_balancer_serves_source_ranges_only_and_node_ports_serve_all(site: Site) -> None:
    made = service(
        type="LoadBalancer",
        ports=(NODE_PORT,),
        load_balancer=(Ingress("203.0.113.1"), Ingress("203.0.113.2", proxy=True)),
        source_ranges=("192.168.50.96/28",),
    )
    site.serve(made, slices=(backends(made, HERE[0]),))

    assert ask(CLIENT, "203.0.113.1") == f"one {GATEWAY}"
    assert ask(STRANGER, "203.0.113.1") == "silence"
    assert ask(STRANGER, NODE_ADDRESS, 30080) == f"one {GATEWAY}"
    assert not ask(CLIENT, "203.0.113.2").startswith("one")  # ipMode Proxy: not kube-proxy's business


def test_external_ip_is_served(site: Site) -> None:
    made = service(external_ips=("198.51.100.7",))
    site.serve(made, slices=(backends(made, HERE[1]),))

    assert ask(CLIENT, "198.51.100.7") == f"two {GATEWAY}"


def test_udp_and_tcp_of_one_port_go_their_own_ways(site: Site) -> None:
    udp = ServicePort(name="u", protocol="UDP", port=80, target=SERVED)
    made = service(ports=(HTTP, udp))
    tcp_slice = backends(made, HERE[0], ports=(HTTP,))
    udp_slice = EndpointSlice("ns1", "web-u", "web", 4, (EndpointPort("u", "UDP", SERVED),), (HERE[1],))
    site.serve(made, slices=(tcp_slice, udp_slice))

    assert ask(CLIENT, "10.96.0.41") == f"one {GATEWAY}"
    assert ask(CLIENT, "10.96.0.41", udp=True) == f"two {GATEWAY}"


def test_ipv6_cluster_ip_is_served_and_refused_as_ipv4_is(site: Site) -> None:
    made = service(families=(6,), cluster_ips=("fd00:10:96::7",))
    site.serve(made, slices=(backends(made, six("n1", 2)),))
    assert ask(CLIENT, "fd00:10:96::7") == "one fd00:10:244::1"

    site.serve(made, slices=())
    assert ask(CLIENT, "fd00:10:96::7") == "refused"


def test_an_endpoint_that_goes_gets_no_new_connection(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))
    assert {ask(CLIENT, "10.96.0.41").split()[0] for _ in range(20)} == {"one", "two"}

    site.serve(service(), slices=(backends(service(), HERE[1]),))

    assert {ask(CLIENT, "10.96.0.41").split()[0] for _ in range(20)} == {"two"}


def test_three_endpoints_get_a_third_each(site: Site) -> None:
    """Of 300 clients each gets 100, give or take 33 (four standard deviations)."""
    made = service()
    slices = (backends(made, on("n1", 2), on("n1", 3)), EndpointSlice(
        "ns1", "again", "web", 4, (EndpointPort("p80", "TCP", SERVED + 1),), (on("n1", 3),)
    ))  # fmt: skip
    site.serve(made, slices=slices)

    answers = Counter(ask(CLIENT, "10.96.0.41") for _ in range(300))

    assert set(answers) == {f"one {GATEWAY}", f"two {GATEWAY}", "refused"}  # nobody serves the third port
    assert all(67 <= count <= 133 for count in answers.values()), answers


def test_marked_traffic_passes_a_node_that_forwards_nothing(site: Site, backend: str) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,))
    site.serve(made, slices=(backends(made, HERE[0]),))
    rules(backend, "-P", "FORWARD", "DROP")

    assert ask(CLIENT, NODE_ADDRESS, 30080) == f"one {GATEWAY}"
    assert ask(CLIENT, "10.96.0.41") == f"one {GATEWAY}"
    assert ask(CLIENT, "10.244.0.2", SERVED) == "silence"


def test_flushed_rules_serve_again_after_the_proxy_has_looked(site: Site, backend: str) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))
    for table in ("filter", "nat", "mangle"):
        rules(backend, "-t", table, "-F")
        rules(backend, "-t", table, "-X")
    assert ask(CLIENT, "10.96.0.41") == "silence"

    (told,) = site.applier.repair_proxy()

    assert "the canary of mangle, filter, nat was gone" in told
    assert ask(CLIENT, "10.96.0.41").split()[0] in {"one", "two"}
