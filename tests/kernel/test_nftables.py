"""kube-proxy's nftables rules in a real kernel: they load, read back as planned, change by parts, and move packets."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from emulator.cluster.services import EndpointPort, EndpointSlice, Ingress, ServicePort
from emulator.errors import ApplyError
from emulator.kernel import nft_rules
from emulator.kernel.namespaces import create, release
from emulator.kernel.netns import netns_path
from emulator.kernel.rules_readback import differences
from emulator.kernel.rulesets import Rulesets
from emulator.kernel.syscalls import inside
from emulator.kernel.underlay import LabNet
from emulator.plan.model import AnyObject, NftElement, NftRules
from emulator.proxy import nftables
from tests.golden.service_constructs import (
    CONSTRUCTS,
    HTTP,
    NODE_PORT,
    Construct,
    backends,
    clusters,
    on,
    service,
    six,
)
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

pytestmark = [pytest.mark.sandbox, pytest.mark.requires("nft-program", "nft-nat", "nft-numgen", "nft-fib")]


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


# The same rule in a chain that no packet comes to
UNHOOKED = """
delete chain ip kube-proxy nat-output
add chain ip kube-proxy nat-output
add rule ip kube-proxy nat-output jump services
"""


@pytest.mark.parametrize(
    "meddling",
    [
        "flush ruleset",
        "flush chain ip kube-proxy services",
        "add rule ip kube-proxy services counter",
        "delete chain ip6 kube-proxy nat-output",
        UNHOOKED,
    ],
)
def test_lost_chains_are_put_back_by_the_look_now_and_then(meddling: str, rulesets: Rulesets) -> None:
    before, _ = tables(CONSTRUCTS["cluster-ip"])
    rulesets.load(before, [], ignore)
    assert rulesets.repair(before) == []

    with inside(netns_path(NODE)):
        subprocess.run(["nft", "-f", "-"], input=meddling, text=True, check=True)
    told = rulesets.repair(before)

    assert any("nftables table" in line and "was gone" in line for line in told), told
    assert differences({NODE: before}, rulesets) == []
    assert rulesets.repair(before) == []


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
    real = nft_rules._run

    def spy(step: Any) -> None:
        real(step)
        hooks.append("hook prerouting" in printed("list", "ruleset"))

    monkeypatch.setattr(nft_rules, "_run", spy)
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


@pytest.fixture
def site() -> Iterator[Site]:
    with built(nftables) as made:
        yield made


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
