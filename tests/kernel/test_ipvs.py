"""kube-proxy's ipvs mode under a kernel that has ip_vs: what is set reads back, and packets go where they should."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import msgspec
import pytest

from emulator.cluster.services import Ingress
from emulator.errors import ApplyError
from emulator.kernel import ipvs as kernel_ipvs
from emulator.kernel.netns import netns_path
from emulator.kernel.readback import differences
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation
from emulator.plan.model import Address, Dummy, IpvsServers, RealServer, VirtualServer
from emulator.proxy import ipvs
from tests.golden.service_constructs import CONSTRUCTS, NODE_PORT, backends, on, service, six
from tests.kernel.service_site import (
    CLIENT,
    CLIENT_ADDRESS,
    GATEWAY,
    HERE,
    NODE,
    NODE_ADDRESS,
    ONE,
    STRANGER,
    Site,
    ask,
    built,
)

pytestmark = [
    pytest.mark.sandbox(timeout=180),
    pytest.mark.real_kernel,
    pytest.mark.requires("ipvs", "dummy", "ipset", "ipset-program", "iptables"),
]


@pytest.fixture
def site() -> Iterator[Site]:
    with built(ipvs) as made:
        yield made


def wrong(site: Site) -> list[str]:
    """What of the proxy's plan is not so in the kernel."""
    found = differences(site.plan, site.applier)
    # The site's own devices and addresses are in no plan.
    return [
        line
        for line in found
        if not any(word in line for word in ("eth", "dev one", "dev two", "device one", "device two"))
    ]


@pytest.mark.parametrize("name", [name for name in CONSTRUCTS if name != "long-names"])
def test_what_is_set_reads_back_before_and_after_the_change(name: str, site: Site) -> None:
    construct = CONSTRUCTS[name]
    given = {key: getattr(construct.settings, key) for key in construct.settings.__struct_fields__}

    site.serve(*construct.services, slices=construct.slices, **given)
    assert wrong(site) == []
    site.serve(*construct.later_services, slices=construct.later_slices, **given)
    assert wrong(site) == []


def pinged(ns: str, address: str) -> bool:
    """Whether an echo request is answered."""
    with inside(netns_path(ns)):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(3)
        # type 8, code 0, the sum over the header's one other word that is not zero
        sock.sendto(bytes((8, 0, 0xF7, 0xFE, 0, 1, 0, 0)), (address, 0))
        try:
            return sock.recv(100)[20] == 0  # an echo reply, not an error
        except TimeoutError:
            return False


def test_cluster_ip_goes_round_and_refuses_ping_and_other_ports(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))

    answers = [ask(CLIENT, "10.96.0.41") for _ in range(6)]

    assert sorted(answers) == [f"one {GATEWAY}"] * 3 + [f"two {GATEWAY}"] * 3
    assert answers[0] != answers[1]
    assert pinged(CLIENT, NODE_ADDRESS)
    assert not pinged(CLIENT, "10.96.0.41")
    assert ask(CLIENT, "10.96.0.41", 81) == "refused"


def test_pods_keep_their_address_except_towards_themselves(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))

    assert {ask(ONE, "10.96.0.41") for _ in range(6)} == {f"one {GATEWAY}", "two 10.244.0.2"}


def test_node_port_is_masqueraded_and_a_local_one_is_not(site: Site) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,))
    site.serve(made, slices=(backends(made, HERE[0]),))
    assert ask(CLIENT, NODE_ADDRESS, 30080) == f"one {GATEWAY}"

    local = msgspec.structs.replace(made, external_policy="Local")
    site.serve(local, slices=(backends(local, HERE[0]),))
    assert ask(CLIENT, NODE_ADDRESS, 30080) == f"one {CLIENT_ADDRESS}"


def test_affinity_is_persistence(site: Site) -> None:
    made = service(affinity=600)
    site.serve(made, slices=(backends(made, *HERE),))

    assert len({ask(CLIENT, "10.96.0.41") for _ in range(8)}) == 1


def test_load_balancer_serves_source_ranges_only(site: Site) -> None:
    made = service(type="LoadBalancer", load_balancer=(Ingress("203.0.113.1"),), source_ranges=("192.168.50.96/28",))
    site.serve(made, slices=(backends(made, HERE[0]),))

    assert ask(CLIENT, "203.0.113.1") == f"one {GATEWAY}"
    assert ask(STRANGER, "203.0.113.1") == "silence"


def test_ipv6_is_served(site: Site) -> None:
    made = service(families=(6,), cluster_ips=("fd00:10:96::7",))
    site.serve(made, slices=(backends(made, six("n1", 2)),))

    assert ask(CLIENT, "fd00:10:96::7") == "one fd00:10:244::1"


def test_an_endpoint_with_connections_leaves_gracefully(site: Site) -> None:
    """It gets no new connection, keeps the old one, and is gone once that has ended."""
    site.serve(service(), slices=(backends(service(), *HERE),))
    with inside(netns_path(ONE)):
        server = socket.create_server(("10.244.0.2", 9090))
    held = service(
        "held", cluster_ips=("10.96.0.50",), ports=(msgspec.structs.replace(NODE_PORT, node_port=0, target=9090),)
    )
    site.serve(held, slices=(backends(held, HERE[0]),))
    with inside(netns_path(CLIENT)):
        client = socket.create_connection(("10.96.0.50", 80), timeout=3)
    accepted, _ = server.accept()

    site.serve(held, slices=(backends(held, HERE[1]),))

    assert wrong(site) == []  # one of weight 0 is nobody's meddling
    client.sendall(b"still here")
    assert accepted.recv(100) == b"still here"
    with inside(netns_path(NODE)), kernel_ipvs._Ipvs() as kernel:
        weights = {each.address: each.weight for each, _ in kernel.real_servers(VirtualServer("TCP", "10.96.0.50", 80))}
    assert weights == {"10.244.0.2": 0, "10.244.0.3": 1}
    for sock in (client, accepted, server):
        sock.close()


def test_meddling_is_noticed_and_repaired(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))
    (item,) = (item for item in site.plan if isinstance(item, IpvsServers) and item.family == 4)
    with inside(netns_path(NODE)), kernel_ipvs._Ipvs() as kernel:
        kernel.ask(kernel_ipvs.DEL_SERVICE, item.servers["TCP 10.96.0.41:80"])
    assert any("TCP 10.96.0.41:80 is not there" in line for line in wrong(site))

    site.applier.apply([Operation(verb="replace", old=item, new=item)])

    assert wrong(site) == []


def test_a_failed_change_leaves_the_servers_of_before_and_names_the_one(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))
    (item,) = (item for item in site.plan if isinstance(item, IpvsServers) and item.family == 4)
    bad = VirtualServer("TCP", "10.96.0.99", 80, (RealServer("10.244.0.9", 80),), scheduler="nosuch")
    more = VirtualServer("TCP", "10.96.0.98", 80, (RealServer("10.244.0.9", 80),))
    broken = msgspec.structs.replace(item, servers=item.servers | {"TCP 10.96.0.98:80": more, "TCP 10.96.0.99:80": bad})

    with pytest.raises(ApplyError, match=r"TCP 10\.96\.0\.99:80"):
        site.applier.apply([Operation(verb="replace", old=item, new=broken)])

    assert wrong(site) == []


def test_removal_leaves_nothing(site: Site) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,))
    site.serve(made, slices=(backends(made, on("n1", 2)),))
    items = [item for item in site.plan if isinstance(item, (IpvsServers, Address, Dummy))]

    site.applier.apply([Operation(verb="remove", old=item) for item in reversed(items)])

    with inside(netns_path(NODE)), kernel_ipvs._Ipvs() as kernel:
        assert kernel.servers(4) == {}
        assert "kube-ipvs0" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
