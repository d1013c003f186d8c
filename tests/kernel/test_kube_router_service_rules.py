"""kube-router's service firewall in this kernel, without IPVS: its ipsets and its chain in INPUT.

The Service's address is on ``lo`` here, and a server of the node's own listens where IPVS would take over.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from emulator.cluster.model import Cluster, Node
from emulator.kernel.netns import netns_path
from emulator.kernel.readback import differences
from emulator.kernel.syscalls import inside
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, IpSet, IptablesRules
from emulator.proxy import kube_router
from emulator.proxy.model import ProxySettings
from tests.golden.service_constructs import CONSTRUCTS, NODE_PORT, backends, service, six
from tests.kernel.service_site import CLIENT, HERE, NODE, NODE_ADDRESS, Site, ask, built

pytestmark = [pytest.mark.sandbox(timeout=60), pytest.mark.requires("ipset", "ipset-program", "iptables")]

VIP, VIP6 = "10.96.0.41", "fd00:10:96::7"


class Firewall:
    """The proxy's part that needs no ip_vs."""

    name = title = "firewall"
    requires: tuple[str, ...] = ()
    stand_in = ""

    @staticmethod
    def load(settings: ProxySettings) -> Firewall:
        return Firewall()

    def node(self, cluster: Cluster, node: Node) -> Iterator[AnyObject]:
        for item in kube_router.load(ProxySettings()).node(cluster, node):
            if isinstance(item, IpSet) or (isinstance(item, IptablesRules) and item.table == "filter"):
                yield item


@pytest.fixture
def site() -> Iterator[Site]:
    with built(Firewall) as made:
        made.applier.apply(
            [
                Operation(verb="add", new=Address(ns=NODE, device="lo", address=each))
                for each in (f"{VIP}/32", f"{VIP6}/128")
            ]
        )
        with inside(netns_path(NODE)):
            servers = [
                socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) for port in (80, 81)
            ]
        for server in servers:
            threading.Thread(target=_greet, args=(server,), daemon=True).start()
        yield made
        for server in servers:
            server.close()


def _greet(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"the node")


def rules_differ(site: Site) -> list[str]:
    """What of ipsets and chains is not as planned; the site's own devices and routes are in no plan."""
    found = [line.partition(": ")[2] for line in differences(site.plan, site.applier)]
    return [line for line in found if line.startswith(("chain ", "set ", "table ", "rules "))]


@pytest.mark.parametrize("name", ["node-port", "dual-stack"])
def test_what_is_loaded_reads_back_before_and_after_the_change(name: str, site: Site) -> None:
    construct = CONSTRUCTS[name]

    site.serve(*construct.services, slices=construct.slices)
    assert rules_differ(site) == []
    site.serve(*construct.later_services, slices=construct.later_slices)
    assert rules_differ(site) == []


@pytest.mark.parametrize(("vip", "endpoint"), [(VIP, HERE[0]), (VIP6, six("n1", 2))], ids=["ipv4", "ipv6"])
def test_only_a_services_own_port_passes_on_its_address(vip: str, endpoint: object, site: Site) -> None:
    made = service(families=(6,) if ":" in vip else (4,), cluster_ips=(vip,))
    assert ask(CLIENT, vip, 81) == "the node"

    site.serve(made, slices=(backends(made, endpoint),))  # type: ignore[arg-type]

    assert ask(CLIENT, vip, 80) == "the node"
    assert ask(CLIENT, vip, 81) == "refused"


def test_a_node_port_closes_no_other_port_of_the_node(site: Site) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,))

    site.serve(made, slices=(backends(made, HERE[0]),))

    (addresses,) = (item for item in site.plan if isinstance(item, IpSet) and item.name == "kube-router-svip")
    assert NODE_ADDRESS in addresses.members
    assert ask(CLIENT, NODE_ADDRESS, 81) == "the node"
