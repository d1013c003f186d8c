"""kube-proxy's nftables rules in a real kernel: they load, read back as planned, change by parts, and move packets."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from emulator.cluster.services import EndpointPort, EndpointSlice, Ingress, Service, ServicePort
from emulator.errors import ApplyError
from emulator.kernel import nft_rules
from emulator.kernel.applier import Applier
from emulator.kernel.namespaces import create, release
from emulator.kernel.netns import netns_path
from emulator.kernel.rules_readback import differences
from emulator.kernel.rulesets import Rulesets
from emulator.kernel.syscalls import inside
from emulator.kernel.underlay import LabNet
from emulator.plan.diff import Operation
from emulator.plan.model import Address, AnyObject, Namespace, NftElement, NftRules, Route, Sysctl, Veth
from emulator.proxy import nftables
from tests.golden.service_constructs import (
    CONSTRUCTS,
    HTTP,
    NODE_PORT,
    SETTINGS,
    Construct,
    backends,
    base_cluster,
    clusters,
    on,
    service,
    six,
)

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("nft-program", "nft-nat", "nft-numgen", "nft-fib")]

NODE = "pod/node"


def tables(construct: Construct) -> tuple[list[NftRules], list[NftRules]]:
    """What n1 gets before and after the change, all in one namespace."""
    proxy = nftables.load(construct.settings)
    before, after = (
        [item for item in proxy.node(cluster, cluster.nodes[0]) if isinstance(item, NftRules)]
        for cluster in clusters(construct)
    )
    return [msgspec.structs.replace(item, ns=NODE) for item in before], [
        msgspec.structs.replace(item, ns=NODE) for item in after
    ]


def ignore(_: AnyObject) -> None:
    """Nobody keeps books here."""


@pytest.fixture
def rulesets() -> Iterator[Rulesets]:
    net = LabNet()
    create([(NODE, ())], lambda _: None)
    yield Rulesets(net)
    release(NODE)
    net.close()


def printed(*words: str) -> str:
    with inside(netns_path(NODE)):
        return subprocess.run(("nft", *words), capture_output=True, text=True, check=False).stdout


# ------------------------------------------------------------ the tables


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_rules_read_back_as_planned_before_and_after_the_change(name: str, rulesets: Rulesets) -> None:
    before, after = tables(CONSTRUCTS[name])

    rulesets.load(before, [], ignore)
    assert differences({NODE: before}, rulesets) == []

    rulesets.load([], list(zip(before, after, strict=True)), ignore)
    assert differences({NODE: after}, rulesets) == []

    rulesets.load([], list(zip(after, before, strict=True)), ignore)  # and the way back
    assert differences({NODE: before}, rulesets) == []

    rulesets.remove(before, ignore)
    assert printed("list", "ruleset") == ""


@pytest.mark.parametrize(
    ("meddling", "words"),
    [
        ("flush ruleset", "chain services is not there"),
        (
            "flush chain ip kube-proxy services",
            "rule is not there: ip daddr . meta l4proto . th dport vmap @service-ips",
        ),
        ("delete element ip kube-proxy cluster-ips { 10.96.0.41 }", "element is not there: 10.96.0.41"),
        ("add element ip kube-proxy cluster-ips { 10.96.0.99 }", "element is not planned: 10.96.0.99"),
        ("add rule ip kube-proxy services drop", "rule is not planned: drop"),
        ("add chain ip kube-proxy mine", "chain mine is not planned"),
        ("add table ip other", "table ip other is not planned"),
    ],
)
def test_meddling_is_noticed_and_a_new_load_repairs_it(meddling: str, words: str, rulesets: Rulesets) -> None:
    before, _ = tables(CONSTRUCTS["cluster-ip"])
    rulesets.load(before, [], ignore)

    printed(*meddling.split())
    found = differences({NODE: before}, rulesets)
    assert any(words in line for line in found), found

    printed("delete", "table", "ip", "other")
    rulesets.load(before, [], ignore)
    assert differences({NODE: before}, rulesets) == []


def test_a_change_makes_a_table_anew_that_somebody_flushed(rulesets: Rulesets) -> None:
    before, after = tables(CONSTRUCTS["cluster-ip"])
    rulesets.load(before, [], ignore)
    printed("flush", "ruleset")

    rulesets.load([], list(zip(before, after, strict=True))[:1], ignore)

    assert differences({NODE: after[:1]}, rulesets) == []


def many(count: int, broken: int = -1, generation: int = 0) -> list[NftRules]:
    """A table with many Services; ``broken`` is one whose element nft accepts and the kernel does not."""
    services, slices = [], []
    for number in range(count):
        made = service(f"s{number}", cluster_ips=(f"10.97.{number >> 8}.{number & 255}",))
        services.append(made)
        slices.append(backends(made, on("n1", 1 + generation)))
    construct = Construct(tuple(services), tuple(slices), "", (), ())
    (first, *_) = tables(construct)[0]
    if broken >= 0:
        part = first.parts[f"ns1/s{broken}"]
        bad = NftElement("service-ips", "10.97.255.1 . tcp . 80", "goto nowhere")
        parts = first.parts | {f"ns1/s{broken}": msgspec.structs.replace(part, elements=(*part.elements, bad))}
        first = msgspec.structs.replace(first, parts=parts)
    return [first]


@pytest.mark.parametrize("old_count", [0, 3])
def test_a_failed_load_leaves_the_rules_of_before_and_names_the_service(
    old_count: int, rulesets: Rulesets, monkeypatch: pytest.MonkeyPatch
) -> None:
    rulesets._nft._at_once = 4  # several transactions, of which the first succeed
    old, new = many(old_count), many(12, broken=9, generation=1)
    if old_count:
        rulesets.load(old, [], ignore)
    in_force = printed("list", "ruleset")

    with pytest.raises(ApplyError, match=r"Service ns1/s9: .*No such file or directory.*goto nowhere") as caught:
        rulesets.load([] if old_count else new, [(old[0], new[0])] if old_count else [], ignore)

    assert caught.value.subject == "Service ns1/s9"
    assert not getattr(caught.value, "__notes__", [])
    if old_count:
        assert differences({NODE: old}, rulesets) == []
    else:
        assert printed("list", "ruleset") == in_force == ""


def test_a_table_in_several_transactions_is_the_same_and_hooked_last(
    rulesets: Rulesets, monkeypatch: pytest.MonkeyPatch
) -> None:
    rulesets._nft._at_once = 5
    hooks: list[bool] = []
    real = nft_rules._nft

    def spy(text: str, step: Any) -> None:
        real(text, step)
        hooks.append("hook prerouting" in printed("list", "ruleset"))

    monkeypatch.setattr(nft_rules, "_nft", spy)
    (planned,) = many(12)
    rulesets.load([planned], [], ignore)

    assert hooks == [False, False, True]
    assert differences({NODE: [planned]}, rulesets) == []


def test_transactions_get_smaller_where_nft_cannot_send_large_ones(
    rulesets: Rulesets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without root in the first user namespace, where nft 1.0.6 may not enlarge its socket's buffer."""
    real = nft_rules._nft

    def narrow(text: str, step: Any) -> None:
        if len(step.parts) > 3:
            raise nft_rules._TooLong("Message too long")
        real(text, step)

    monkeypatch.setattr(nft_rules, "_nft", narrow)
    (planned,), (changed,) = many(20), many(20, generation=1)
    rulesets.load([planned], [], ignore)
    assert differences({NODE: [planned]}, rulesets) == []
    rulesets._nft._at_once = 500
    rulesets.load([], [(planned, changed)], ignore)
    assert differences({NODE: [changed]}, rulesets) == []


def test_clients_that_affinity_has_learnt_stay_when_an_endpoint_goes(rulesets: Rulesets) -> None:
    sticky = service("sticky", affinity=600)
    kept = backends(sticky, on("n1", 2), on("n2", 2))
    before, after = tables(Construct((sticky,), (kept,), "", (sticky,), (backends(sticky, on("n1", 2)),)))
    rulesets.load(before, [], ignore)
    name = next(item.name for item in before[0].parts["ns1/sticky"].sets if "10.244.0.2" in item.name)
    printed("add", "element", "ip", "kube-proxy", name, "{ 192.0.2.9 }")
    assert differences({NODE: before}, rulesets) == []  # what rules learn is nobody's meddling

    rulesets.load([], list(zip(before, after, strict=True)), ignore)

    assert "192.0.2.9" in printed("list", "set", "ip", "kube-proxy", name)
    assert differences({NODE: after}, rulesets) == []


# ------------------------------------------------------------ packets

CLIENT, STRANGER, ONE, TWO = "pod/client", "pod/stranger", "pod/one", "pod/two"
CLIENT_ADDRESS, STRANGER_ADDRESS, NODE_ADDRESS, OTHER_NODE_ADDRESS = (
    "192.168.50.100",
    "198.18.0.2",
    "192.168.50.11",
    "192.168.50.111",
)
GATEWAY = "10.244.0.1"
SERVED = 8080
# Seconds until silence counts as such. On veths an ICMP error may come back while connect(2) still holds the socket,
# which drops it (LockDroppedIcmps); the second SYN, a second later, is then the one that is refused.
PATIENCE = 1.6


def cable(ns: str, far: str, address: str, gateway: str, *, v6: bool = False) -> Iterator[AnyObject]:
    """A namespace on a cable of its own to the node, which is its way to everywhere."""
    bits, everything = (128, "::/0") if v6 else (32, "0.0.0.0/0")
    yield Address(ns=ns, device="eth0", address=f"{address}/{bits}")
    yield Address(ns=NODE, device=far, address=f"{gateway}/{bits}")
    yield Route(ns=NODE, destination=f"{address}/{bits}", device=far, scope="global" if v6 else "link")
    yield Route(ns=ns, destination=f"{gateway}/{bits}", device="eth0", scope="global" if v6 else "link")
    yield Route(ns=ns, destination=everything, via=gateway)


def wired() -> Iterator[AnyObject]:
    for ns in (NODE, CLIENT, STRANGER, ONE, TWO):
        yield Namespace(ns=ns, role="pod", hostname=ns.removeprefix("pod/"))
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        yield Sysctl(ns=NODE, name=name, value="1")
    for ns, far in ((CLIENT, "eth0"), (STRANGER, "eth1"), (ONE, "one"), (TWO, "two")):
        yield Veth(ns=ns, name="eth0", mtu=1500, peer_ns=NODE, peer=far)
    yield from cable(CLIENT, "eth0", CLIENT_ADDRESS, NODE_ADDRESS)
    yield from cable(STRANGER, "eth1", STRANGER_ADDRESS, "198.18.0.1")
    yield from cable(ONE, "one", "10.244.0.2", GATEWAY)
    yield from cable(TWO, "two", "10.244.0.3", GATEWAY)
    yield from cable(CLIENT, "eth0", "fd00:192:168:50::100", "fd00:192:168:50::11", v6=True)
    yield from cable(STRANGER, "eth1", "fd00:198:18::2", "fd00:198:18::1", v6=True)
    yield from cable(ONE, "one", "fd00:10:244::2", "fd00:10:244::1", v6=True)
    yield Address(ns=NODE, device="eth0", address=f"{OTHER_NODE_ADDRESS}/32")
    # Without a route to the Services the kernel would say so before any rule is asked.
    yield Route(ns=NODE, destination="0.0.0.0/0", via=STRANGER_ADDRESS)
    yield Route(ns=NODE, destination="::/0", via="fd00:198:18::2")


class Backend:
    """Tells each TCP client and each datagram who answers and which source it saw."""

    def __init__(self, ns: str) -> None:
        self.name = ns.removeprefix("pod/")
        with inside(netns_path(ns)):
            self.tcp = socket.create_server(("::", SERVED), family=socket.AF_INET6, dualstack_ipv6=True)
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind(("0.0.0.0", SERVED))
        for target in (self._serve_tcp, self._serve_udp):
            threading.Thread(target=target, daemon=True).start()

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, peer = self.tcp.accept()
            except OSError:
                return
            with connection:
                connection.sendall(f"{self.name} {peer[0].removeprefix('::ffff:')}".encode())

    def _serve_udp(self) -> None:
        while True:
            try:
                _, peer = self.udp.recvfrom(100)
                self.udp.sendto(f"{self.name} {peer[0]}".encode(), peer)
            except OSError:
                return


class Site:
    """A client, a stranger, a node and two backends."""

    def __init__(self, applier: Applier) -> None:
        self.applier = applier
        self.item: AnyObject | None = None

    def serve(self, *services: Service, slices: tuple[EndpointSlice, ...], **settings: Any) -> None:
        """Put the Services' rules in force."""
        cluster = msgspec.structs.replace(base_cluster(), services=services, slices=slices)
        proxy = nftables.load(msgspec.structs.replace(SETTINGS, **settings))
        items = [msgspec.structs.replace(item, ns=NODE) for item in proxy.node(cluster, cluster.nodes[0])]
        self.applier.apply([Operation(verb="add", new=item) for item in items])


@pytest.fixture
def site() -> Iterator[Site]:
    applier = Applier()
    applier.apply([Operation(verb="add", new=item) for item in wired()])
    served = [Backend(ns) for ns in (ONE, TWO)]
    yield Site(applier)
    for backend in served:
        backend.tcp.close()
        backend.udp.close()
    applier.close()


def ask(ns: str, address: str, port: int = 80, *, udp: bool = False) -> str:
    """Who answered and which source it saw; ``refused``, or ``silence``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(netns_path(ns)):
        sock = socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    with sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect((address, port))
            if udp:
                sock.send(b"who")
            return sock.recv(100).decode()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silence"


HERE = [on("n1", 2), on("n1", 3)]


def test_cluster_ip_is_shared_out_and_masqueraded_for_clients_that_are_no_pods(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))

    answers = Counter(ask(CLIENT, "10.96.0.41") for _ in range(40))

    assert set(answers) == {f"one {GATEWAY}", f"two {GATEWAY}"}
    assert min(answers.values()) >= 5  # 40 throws of a coin


def test_pods_keep_their_address_except_towards_themselves(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))

    assert {ask(ONE, "10.96.0.41") for _ in range(30)} == {f"one {GATEWAY}", "two 10.244.0.2"}


def test_undefined_port_is_refused_and_an_unallocated_address_silent(site: Site) -> None:
    empty = service("empty", cluster_ips=("10.96.0.42",))
    site.serve(service(), empty, slices=(backends(service(), *HERE),))

    assert ask(CLIENT, "10.96.0.41", 81) == "refused"
    assert ask(CLIENT, "10.96.0.99") == "silence"
    assert ask(CLIENT, "10.96.0.42") == "refused"
    assert ask(NODE, "10.96.0.41", 81) == "refused"
    assert ask(NODE, "10.96.0.41").split()[0] in {"one", "two"}


@pytest.mark.parametrize(("cidrs", "elsewhere"), [((), "refused"), (("0.0.0.0/0",), "one")])
def test_node_ports_serve_on_the_primary_address_unless_told_otherwise(
    cidrs: tuple[str, ...], elsewhere: str, site: Site
) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,))
    site.serve(made, slices=(backends(made, HERE[0]),), node_port_cidrs=cidrs)

    assert ask(CLIENT, NODE_ADDRESS, 30080) == f"one {GATEWAY}"
    assert ask(CLIENT, OTHER_NODE_ADDRESS, 30080).split()[0] == elsewhere
    assert ask(NODE, "127.0.0.1", 30080) == "refused"


def test_node_port_without_endpoints_is_refused(site: Site) -> None:
    site.serve(service(type="NodePort", ports=(NODE_PORT,)), slices=())

    assert ask(CLIENT, NODE_ADDRESS, 30080) == "refused"


def test_external_policy_local_keeps_the_source_or_is_silent(site: Site) -> None:
    made = service(type="NodePort", ports=(NODE_PORT,), external_policy="Local")
    site.serve(made, slices=(backends(made, HERE[0], on("n2", 9)),))
    assert {ask(CLIENT, NODE_ADDRESS, 30080) for _ in range(10)} == {f"one {CLIENT_ADDRESS}"}

    gone = backends(made, on("n2", 9))
    site.serve(made, slices=(gone,))
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

    assert CLIENT_ADDRESS in printed("list", "ruleset")
    time.sleep(1.2)
    assert CLIENT_ADDRESS not in printed("list", "ruleset")


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
    assert ask(CLIENT, "fd00:10:96::7", 81) == "refused"
    assert ask(CLIENT, "fd00:10:96::8") == "silence"


def test_an_endpoint_that_goes_gets_no_new_connection(site: Site) -> None:
    site.serve(service(), slices=(backends(service(), *HERE),))
    before = {ask(CLIENT, "10.96.0.41").split()[0] for _ in range(20)}
    assert before == {"one", "two"}

    site.serve(service(), slices=(backends(service(), HERE[1]),))

    assert {ask(CLIENT, "10.96.0.41").split()[0] for _ in range(20)} == {"two"}
